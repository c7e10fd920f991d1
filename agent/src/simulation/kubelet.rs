//! Kubelet and the runtime, as they treat one pod: ask, ask again, start, stop, give back.

use std::path::PathBuf;
use std::time::Duration;

use moorline_shared::id::PublicationId;
use moorline_shared::publication::{Pod, Publication};
use moorline_shared::share::Access;
use moorline_shared::wishes::Wishes;
use tokio::time::{sleep, timeout};

use super::world::{PodTruth, Shared, Volume, World, paths};
use crate::door::Door;
use crate::reconcile::{Denied, Event};

/// What the agent promises, and the round in which it notices.
const PUBLISH: Duration = Duration::from_millis(15_600);
const UNPUBLISH: Duration = Duration::from_millis(2_600);
/// A sheltered volume comes within this, of an agent that has been there for as long.
const SHELTERED: Duration = Duration::from_secs(8);

/// What became of a call.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    /// It may be asked again, and may have been done.
    Later,
    /// The last word: nothing was done.
    No,
}

/// The life of a pod that uses one volume.
pub(super) async fn pod(world: Shared, slot: usize, uid: String) {
    let target = {
        let mut world = world.lock();
        let directory = paths().pods().join(&uid);
        let target = directory.join("mount");
        let id = PublicationId::of(&target.to_string_lossy());
        let read_only = world.scene.slots[slot].read_only;
        world.directories.insert(directory);
        world.pods.insert(uid.clone(), PodTruth::default());
        world.volumes.insert(
            id,
            Volume {
                uid: uid.clone(),
                slot,
                target: target.clone(),
                asked: false,
                wanted: true,
                there: false,
                read_only,
            },
        );
        world.say(|| format!("pod {uid} comes, for slot {slot}"));
        world.tell_of_pods();
        target
    };
    let pod = Kubelet { world, slot, uid, id: PublicationId::of(&target.to_string_lossy()), target };
    let asked = loop {
        let asked = pod.mount().await;
        // After a boot it is asked for anew.
        if !asked || !pod.run().await {
            break asked;
        }
    };
    pod.stop().await;
    if asked {
        pod.unmount().await;
    }
    pod.forget(asked);
}

struct Kubelet {
    world: Shared,
    slot: usize,
    uid: String,
    id: PublicationId,
    target: PathBuf,
}

impl Kubelet {
    fn is_deleted(&self) -> bool {
        self.world.lock().pods.get(&self.uid).is_none_or(|pod| pod.deleted.is_some())
    }

    async fn rest(&self, from: u64, to: u64) {
        let pause = self.world.lock().pause(from, to);
        sleep(pause).await;
    }

    /// Until the volume is there or the pod is deleted. Whether it must be given back: what was refused for good need not.
    async fn mount(&self) -> bool {
        let mut uncertain = false;
        while !self.is_deleted() {
            match self.publish().await {
                Answer::Yes => {
                    let mut world = self.world.lock();
                    if let Some(volume) = world.volumes.get_mut(&self.id) {
                        volume.there = true;
                    }
                    world.say(|| format!("{} has its volume", self.uid));
                    return true;
                }
                Answer::Later => uncertain = true,
                Answer::No => uncertain = false,
            }
            self.rest(300, 2000).await;
        }
        uncertain
    }

    /// Containers, and now and then a call that was made already. True when the node has booted meanwhile.
    async fn run(&self) -> bool {
        let boot = self.world.lock().boots;
        while !self.is_deleted() {
            self.rest(200, 3000).await;
            if self.world.lock().boots != boot {
                return true;
            }
            let again = {
                let mut world = self.world.lock();
                let running = world.containers.values().filter(|container| container.uid == self.uid).count();
                if running < 2 && (running == 0 || world.rng.u32(..8) == 0) && world.trouble_or_none_runs(running) {
                    world.start_container(self.id);
                }
                world.trouble && world.rng.u32(..20) == 0
            };
            if again && !self.is_deleted() && self.publish().await == Answer::No {
                let what = format!("the volume of {} is there, and a second call for it is refused", self.uid);
                self.world.lock().breaks("the same call finds what was done", what);
            }
        }
        false
    }

    /// SIGTERM, the grace period, SIGKILL.
    async fn stop(&self) {
        let mine = |world: &World| -> Vec<u64> {
            world.containers.iter().filter(|(_, c)| c.uid == self.uid).map(|(inode, _)| *inode).collect()
        };
        let (ends, life, began) = {
            let mut world = self.world.lock();
            for inode in mine(&world) {
                world.ask_to_leave(inode);
            }
            let ends = world.pods.get(&self.uid).and_then(|pod| pod.deleted).map(|(_, ends)| ends);
            (ends, world.agent.as_ref().map(|agent| agent.life), world.now())
        };
        let mut killed = false;
        loop {
            {
                let mut world = self.world.lock();
                let left = mine(&world);
                if left.is_empty() || world.over {
                    let late = world.now().saturating_sub(ends.unwrap_or_default().max(began));
                    // Where there is no API server, an agent that did not live when it was told does not know.
                    if ends.is_some() && life.is_some_and(|life| world.lives(life)) {
                        world.judge_pod_end(&self.uid, late);
                    }
                    break;
                }
                if !killed && ends.is_none_or(|ends| world.now() >= ends) {
                    killed = true;
                    left.into_iter().for_each(|inode| world.kill_container(inode));
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
        self.clean_sub_paths();
    }

    /// Kubelet unmounts these itself, layer by layer.
    fn clean_sub_paths(&self) {
        let mut world = self.world.lock();
        let directory = self.target.parent();
        let subs: Vec<u64> = world
            .host
            .0
            .iter()
            .filter(|mount| mount.mount_point.parent() == directory && mount.mount_point != self.target)
            .map(|mount| mount.id)
            .collect();
        for id in subs {
            world.host.take_away(id);
        }
        world.flow();
    }

    async fn unmount(&self) {
        {
            let mut world = self.world.lock();
            if let Some(volume) = world.volumes.get_mut(&self.id) {
                volume.wanted = false;
            }
            world.say(|| format!("{} gives its volume back", self.uid));
        }
        loop {
            // A layer may have been put there while it was being cleaned.
            self.clean_sub_paths();
            let target = self.target.display().to_string();
            let answer = self.call(UNPUBLISH, |door| async move { door.unpublish(target).await }).await;
            if answer == Answer::Yes || self.world.lock().over {
                return;
            }
            self.rest(100, 1000).await;
        }
    }

    fn forget(&self, asked: bool) {
        let mut world = self.world.lock();
        // It would delete through the mount.
        let mounted = world.host.0.iter().any(|mount| mount.mount_point.starts_with(&self.target));
        if !world.over && (mounted || asked && world.directories.contains(&self.target)) {
            let what = format!("{} is given back, and still there", self.target.display());
            world.breaks("a volume that was given back is gone", what);
        }
        if let Some(directory) = self.target.parent() {
            let directory = directory.to_owned();
            world.directories.remove(&directory);
        }
        world.volumes.remove(&self.id);
        world.pods.remove(&self.uid);
        world.say(|| format!("pod {} is gone", self.uid));
        world.tell_of_pods();
    }

    async fn publish(&self) -> Answer {
        let (publication, sheltered, since) = {
            let world = self.world.lock();
            let slot = &world.scene.slots[self.slot];
            let share = &world.scene.shares[slot.share];
            // A Share that is ReadOnly is so whatever the pod asks.
            let read_only = slot.read_only && (share.access == Access::ReadWrite || self.slot.is_multiple_of(2));
            let publication = Publication {
                volume_id: format!("v{}", self.slot),
                target_path: self.target.display().to_string(),
                share: share.name.clone(),
                sub_dir: slot.part.map(|part| part.parse().expect("a directory")),
                read_only,
                pod: Pod { namespace: slot.namespace.into(), name: format!("pod{}", self.slot), uid: self.uid.clone() },
                sole: None,
                inline: false,
                errand: None,
                node: false,
                wanted: true,
            };
            let sheltered = world.scene.is_sheltered(&share.gateway);
            (publication, sheltered, world.agent.as_ref().map(|agent| (agent.life, agent.origin)))
        };
        let began = {
            let mut world = self.world.lock();
            world.volumes.entry(self.id).and_modify(|volume| volume.asked = true);
            world.now()
        };
        let answer = self.call(PUBLISH, |door| async move { door.publish(publication, Wishes::default()).await }).await;
        let mut world = self.world.lock();
        if sheltered
            && answer == Answer::Later
            && !world.is_going_down()
            && since.is_some_and(|(life, origin)| world.lives(life) && origin + SHELTERED <= began)
            && world.now() >= began + SHELTERED
        {
            let what = format!("{}, of whose server nothing is wrong, still waits for its volume", self.uid);
            world.breaks("no pod's fault reaches another", what);
        }
        answer
    }

    /// A call that the agent answers in time, if it lives to see it.
    async fn call<F: Future<Output = Result<(), Denied>>>(
        &self,
        bound: Duration,
        call: impl FnOnce(Door) -> F,
    ) -> Answer {
        let (door, life, began, patience) = {
            let mut world = self.world.lock();
            // Kubelet may be restarted, or lose its patience.
            let patience = if world.mishap(50) { world.pause(10, 3000) } else { Duration::from_secs(120) };
            (world.door(), world.agent.as_ref().map(|agent| agent.life), world.now(), patience)
        };
        let Some(door) = door else { return Answer::Later };
        let answer = timeout(patience, call(door)).await;
        let mut world = self.world.lock();
        let took = world.now().saturating_sub(began);
        if took > bound && life.is_some_and(|life| world.lives(life)) {
            world.breaks("no CSI call waits for a server", format!("{} waited for {took:?}", self.uid));
        }
        match answer {
            // Who is killed in the middle of a round says nothing more.
            _ if !life.is_some_and(|life| world.lives(life)) => Answer::Later,
            Ok(Ok(())) => Answer::Yes,
            Err(_) | Ok(Err(Denied::Unavailable(_))) => Answer::Later,
            Ok(Err(denied)) => {
                world.say(|| format!("{} is refused: {denied}", self.uid));
                Answer::No
            }
        }
    }
}

impl World {
    fn trouble_or_none_runs(&self, running: usize) -> bool {
        self.trouble || running == 0
    }

    pub(super) fn delete_pod(&mut self, uid: &str, grace: Duration) {
        let now = self.now();
        let Some(pod) = self.pods.get_mut(uid).filter(|pod| pod.deleted.is_none()) else { return };
        pod.deleted = Some((now, now + grace));
        self.say(|| format!("pod {uid} is deleted, with {grace:?} of grace"));
        if self.scene.api_server {
            self.tell_of_pods();
        } else if let Some(door) = self.door() {
            let uid = uid.to_owned();
            tokio::spawn(async move { door.send(Event::Deleted { uid, grace }).await });
        }
    }

    /// The API server's news, where there is one.
    pub(super) fn tell_of_pods(&mut self) {
        let Some(agent) = self.agent.as_ref().filter(|_| self.scene.api_server) else { return };
        let (door, pods) = (agent.door.clone(), self.pods_for(agent.origin));
        if let Some(door) = door {
            tokio::spawn(async move { door.send(Event::Pods(pods)).await });
        }
    }
}
