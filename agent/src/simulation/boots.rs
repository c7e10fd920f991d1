//! The node's end, in order or not, and its next beginning.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use moorline_shared::happening::{Happening, Kind};
use moorline_sys::mountinfo::Device;
use tokio::time::sleep;

use super::table::SEAL;
use super::world::{HOST_NETWORK, Network, Shared, World, paths};
use crate::reconcile::Event;

/// The node is to go down, and waits for who holds the lock.
pub(super) struct Shutdown {
    began: Duration,
    within: Duration,
    /// The agent that was told.
    life: u64,
    /// At its end when nobody holds the other one.
    lock: UnixStream,
    /// When it is called off.
    called_off: Option<Duration>,
}

/// A round, and what it takes to hear of it.
const HELD_UP: Duration = Duration::from_millis(700);
/// What was begun for a shutdown goes on for as long, though that was called off.
const ECHO: Duration = Duration::from_secs(60);

const IN_ORDER: &str = "after a shutdown nothing of ours is left, or it was said";

/// Follows what becomes of shutdowns.
pub(super) async fn follow(world: Shared) {
    while !world.lock().over {
        sleep(Duration::from_millis(100)).await;
        world.lock().follow_shutdown();
    }
}

impl World {
    /// Systemd says so; kubelet may end its pods first.
    pub(super) fn ask_to_shut_down(&mut self) {
        let Some((life, door)) = self.agent.as_ref().and_then(|agent| Some((agent.life, agent.door.clone()?))) else {
            return self.boot("the node shuts down, and no agent is there");
        };
        if self.shutdown.is_some() {
            return;
        }
        let (began, within) = (self.now(), Duration::from_secs(self.rng.u64(2..45)));
        let called_off = (self.rng.u32(..3) == 0).then(|| began + within.mul_f64(self.rng.f64()));
        let (lock, theirs) = UnixStream::pair().expect("a pair of sockets");
        lock.set_nonblocking(true).expect("a socket that does not block");
        self.say(|| format!("the node is to shut down, within {within:?}"));
        self.shutdown = Some(Shutdown { began, within, life, lock, called_off });
        tokio::spawn(async move { door.send(Event::ShuttingDown { within, lock: theirs.into() }).await });
        if self.rng.bool() {
            for uid in self.pods.keys().cloned().collect::<Vec<_>>() {
                self.delete_pod(&uid, within / 2);
            }
        }
    }

    fn follow_shutdown(&mut self) {
        let now = self.now();
        let trouble = self.trouble;
        let Some(Shutdown { began, within, life, lock, called_off }) = &mut self.shutdown else { return };
        let (ends, life, is_free) = (*began + *within, *life, matches!(lock.read(&mut [0]), Ok(0)));
        if !is_free && (!trouble || called_off.is_some_and(|at| at <= now)) {
            self.shutdown = None;
            self.called_off = Some(now);
            self.say(|| "the node does not shut down after all".into());
            if let Some(door) = self.door().filter(|_| self.lives(life)) {
                tokio::spawn(async move { door.send(Event::GoesOn).await });
            }
        } else if is_free || now >= ends + HELD_UP {
            if self.lives(life) {
                self.judge_end_of_node(is_free);
            }
            self.shutdown = None;
            self.boot("the node shuts down");
        }
    }

    fn judge_end_of_node(&mut self, is_free: bool) {
        let said = self.last_said(Kind::LetGo);
        let in_time = Happening::LetGo { in_time: true }.to_string();
        match said {
            _ if !is_free => self.breaks("a node that shuts down is not held up", "the lock is still there".into()),
            None => self.breaks(IN_ORDER, "it was let go of, and nobody said so".into()),
            Some(said) if said == in_time => {
                let mut left: Vec<String> = self.bases().map(|(id, _)| format!("{id} is mounted")).collect();
                let names = self.host.0.iter().filter(|mount| mount.mount_point.starts_with(paths().namespaces()));
                left.extend(names.map(|mount| format!("{} is there", mount.mount_point.display())));
                let places = self.asked.keys().map(|(place, _)| place);
                let targets = self.volumes.values().map(|volume| &volume.target).chain(places);
                let shared = targets.filter(|at| self.host.top(at).is_some_and(|top| top.source.as_os_str() != SEAL));
                left.extend(shared.map(|target| format!("{} is mounted", target.display())));
                let unwritten = self
                    .superblocks
                    .iter()
                    .filter(|(device, superblock)| !superblock.dirty.is_empty() && self.answers(**device));
                left.extend(unwritten.map(|(_, superblock)| format!("{} is not written", superblock.id)));
                if !left.is_empty() {
                    self.breaks(IN_ORDER, left.join("; "));
                }
            }
            Some(_) => {}
        }
    }

    /// Volumes may go though nobody gave them back, and calls fail.
    pub(super) fn is_going_down(&self) -> bool {
        self.shutdown.is_some() || self.called_off.is_some_and(|at| at + ECHO >= self.now())
    }

    /// The pods have had their time, or are no more.
    pub(super) fn may_let_go_of(&self, device: Option<Device>) -> bool {
        let idle =
            !self.containers.values().any(|container| device.is_some_and(|device| container.table.shows(device)));
        match &self.shutdown {
            Some(shutdown) => idle || self.now() >= shutdown.began + shutdown.within * 2 / 5,
            None => self.is_going_down(),
        }
    }

    /// Nothing is left but the disk, and what kubelet and the API server know.
    pub(super) fn boot(&mut self, why: &str) {
        self.kill_agent(why);
        self.boots += 1;
        let boots = self.boots;
        self.say(|| format!("{why}; boot {boots}"));
        self.shutdown = None;
        self.containers.clear();
        self.followers.clear();
        self.superblocks.clear();
        self.networks.clear();
        self.ways.clear();
        self.guests.clear();
        self.networks.insert(HOST_NETWORK, Network::default());
        self.host.0.retain(|mount| mount.mount_point == Path::new("/"));
        if !self.scene.keeps_run {
            // But for what is not the agent's own directory.
            let defaults = paths().mount_defaults();
            self.files.retain(|file, _| *file == defaults);
        }
        for volume in self.volumes.values_mut() {
            (volume.asked, volume.there) = (false, false);
            // Kubelet removes what is no mount any more.
            self.directories.remove(&volume.target);
        }
    }

    /// Kubelet asks for each volume anew in each boot.
    pub(super) fn judge_asked(&mut self, target: &Path) {
        let asked =
            self.volumes.values().any(|volume| volume.target == target && volume.asked) || self.was_asked(target);
        if self.boots > 1 && !asked {
            let what = format!("{} is published, and nobody has asked for it since the node booted", target.display());
            self.breaks("after a boot nothing comes back unasked", what);
        }
    }
}
