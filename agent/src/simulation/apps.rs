//! Containers, and what the processes in them ask of their volumes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use moorline_shared::id::PublicationId;
use moorline_shared::observed::Occupants;
use moorline_shared::share::{Policy, Share};
use moorline_sys::mountinfo::{Attributes, Device};

use super::nodes::{NodeUse, Way};
use super::storage::Write;
use super::table::{Detached, MountTable};
use super::world::{World, overlay};

/// One process, in a mount namespace of its own.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub uid: String,
    pub volume: PublicationId,
    /// Of a node mount, and then no pod's.
    pub node: Option<NodeUse>,
    pub pid: i32,
    pub table: MountTable,
    /// Where it sees the volume, and whether it may never write there.
    pub places: Vec<(PathBuf, bool)>,
    pub state: Occupants,
    /// It ends as soon as it is out of its call.
    pub leaving: bool,
    pub call: Option<Call>,
    /// Descriptors.
    pub held: Vec<Device>,
}

/// A system call that waits for a server.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub device: Device,
    pub since: Duration,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Read {
        file: u8,
    },
    /// Of what was written to a file last.
    Sync {
        file: u8,
        number: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Failed,
    Stale,
}

impl Container {
    /// It sees the host's mounts.
    pub(super) fn is_on_host(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.way == Way::Host)
    }

    pub(super) fn holds(&self, device: Device) -> bool {
        self.held.contains(&device) || self.call_on(device).is_some()
    }

    pub(super) fn call_on(&self, device: Device) -> Option<&Call> {
        self.call.as_ref().filter(|call| call.device == device)
    }
}

impl World {
    /// The runtime gives a container a bind of its volume, and perhaps one of a directory in it.
    pub(super) fn start_container(&mut self, id: PublicationId) -> bool {
        let Some(volume) = self.volumes.get(&id).cloned() else { return false };
        let Some(top) = self.host.top(&volume.target).cloned() else { return false };
        // Who starts a container looks at what it is given.
        if !self.answers(top.device) || self.is_stale(top.device) {
            return false;
        }
        let inode = self.number();
        let mut container = Container {
            uid: volume.uid.clone(),
            volume: id,
            node: None,
            pid: i32::try_from(inode).unwrap_or(i32::MAX),
            table: MountTable::default(),
            places: Vec::new(),
            state: Occupants::Living,
            leaving: false,
            call: None,
            held: Vec::new(),
        };
        container.table.put_over(self.number(), Path::new("/"), overlay());
        let read_only = top.attributes.read_only || self.rng.u32(..4) == 0;
        let attributes = Attributes { read_only, ..top.attributes };
        let whole = Detached { device: top.device, attributes, source: top.source.clone() };
        container.table.put_over(self.number(), Path::new("/data"), whole);
        container.places.push(("/data".into(), read_only || volume.read_only));
        if self.rng.u32(..3) == 0 {
            let at = volume.target.with_file_name(format!("sub-{inode}"));
            let part = Detached { device: top.device, attributes: top.attributes, source: top.source.join("sub") };
            let host = self.number();
            self.host.put_over(host, &at, part.clone());
            container.table.put_over(self.number(), Path::new("/part"), part);
            container.places.push(("/part".into(), top.attributes.read_only || volume.read_only));
        }
        self.say(|| format!("container {inode} of {} starts", volume.uid));
        self.containers.insert(inode, container);
        true
    }

    /// The process does something.
    pub(super) fn act(&mut self, inode: u64) {
        let Some(container) = self.containers.get(&inode) else { return };
        if container.call.is_some() || container.leaving || container.state != Occupants::Living {
            return;
        }
        let held = container.held.clone();
        let place = self.rng.usize(..container.places.len());
        let (at, read_only) = self.containers[&inode].places[place].clone();
        let container = &self.containers[&inode];
        let table = if container.is_on_host() { &self.host } else { &container.table };
        // A seal is nobody's, and no share's.
        let Some(top) = table.top(&at).filter(|top| self.superblocks.contains_key(&top.device)).cloned() else {
            return;
        };
        let file = self.rng.u8(..2);
        match self.rng.u32(..6) {
            0 => self.call(inode, top.device, Kind::Read { file }),
            1 if held.len() < 2 => {
                self.containers.entry(inode).and_modify(|container| container.held.push(top.device));
            }
            2 => {
                self.containers.entry(inode).and_modify(|container| container.held.clear());
                self.flow();
            }
            choice => {
                // A descriptor that was opened for writing stays what it was.
                let device = if choice == 3 { *held.first().unwrap_or(&top.device) } else { top.device };
                let Some(superblock) = self.superblocks.get(&device) else { return };
                if top.attributes.read_only || !Self::is_writers(superblock) {
                    return;
                }
                if read_only {
                    let what = format!("container {inode} can write to {at:?} by {}", superblock.id);
                    return self.breaks("read-only never becomes writable", what);
                }
                if superblock.shut {
                    return;
                }
                self.written += 1;
                let number = self.written;
                let write = Write { file, number, container: inode, sent: false };
                self.superblocks.entry(device).and_modify(|superblock| superblock.dirty.push(write));
                if choice == 4 {
                    self.call(inode, device, Kind::Sync { file, number });
                }
            }
        }
    }

    fn call(&mut self, inode: u64, device: Device, kind: Kind) {
        if let (Kind::Sync { .. }, Some(superblock)) = (&kind, self.superblocks.get_mut(&device)) {
            superblock.dirty.iter_mut().for_each(|write| write.sent |= write.container == inode);
        }
        let call = Call { device, since: self.now(), kind };
        self.containers.entry(inode).and_modify(|container| container.call = Some(call));
        self.flow();
    }

    pub(super) fn end_call(&mut self, inode: u64, outcome: &Outcome) {
        let Some(container) = self.containers.get_mut(&inode) else { return };
        let Some(call) = container.call.take() else { return };
        let (living, id) = (container.state == Occupants::Living, container.volume);
        let Some(superblock) = self.superblocks.get(&call.device).cloned() else { return };
        let share = superblock.id.share.to_string();
        let took = self.now().saturating_sub(call.since);
        if *outcome != Outcome::Done || took > Duration::from_secs(1) {
            self.say(|| {
                format!("container {inode}: {:?} on {} ended after {took:?}: {outcome:?}", call.kind, superblock.id)
            });
        }
        if living {
            self.judge_end(id, &superblock.id, outcome, took);
        }
        if *outcome != Outcome::Done {
            return;
        }
        match call.kind {
            // Of what was aborted before, the next sync says that it is lost.
            Kind::Sync { file, number } if self.content(call.device, file) >= number => {
                let acknowledged = self.acknowledged.entry((share, file)).or_default();
                *acknowledged = number.max(*acknowledged);
            }
            Kind::Sync { .. } => {}
            Kind::Read { file } => {
                let there = self.content(call.device, file);
                let acknowledged = self.acknowledged.get(&(share, file)).copied().unwrap_or(0);
                if there < acknowledged {
                    let what =
                        format!("file {file} by {} holds {there}, and {acknowledged} was acknowledged", superblock.id);
                    self.breaks("nothing acknowledged is lost", what);
                }
            }
        }
    }

    pub(super) fn policy(&self, share: &str) -> Policy {
        self.share(share).map_or(Policy::Hard, |share| share.policy)
    }

    pub(super) fn share(&self, name: &str) -> Option<&Share> {
        self.scene.shares.iter().find(|known| known.name.as_str() == name)
    }

    /// SIGTERM, which it heeds when it is out of its call; or its work is done.
    pub(super) fn ask_to_leave(&mut self, inode: u64) {
        self.containers.entry(inode).and_modify(|container| container.leaving = true);
        self.flow();
    }

    /// SIGKILL: a reader ends, a writer can't before its data is away.
    pub(super) fn kill_container(&mut self, inode: u64) {
        if let Some(container) = self.containers.get_mut(&inode) {
            container.state = Occupants::Killed;
            container.call.take_if(|call| matches!(call.kind, Kind::Read { .. }));
            self.say(|| format!("container {inode} is killed"));
        }
        self.flow();
    }

    /// Ends processes that are on their way out and that nothing holds.
    pub(super) fn reap(&mut self) {
        for inode in self.containers.keys().copied().collect::<Vec<_>>() {
            let Some(container) = self.containers.get_mut(&inode) else { continue };
            if container.call.is_some() || container.state == Occupants::Living && !container.leaving {
                continue;
            }
            container.state = container.state.min(Occupants::Ending);
            let mut unwritten = false;
            for superblock in self.superblocks.values_mut() {
                for write in superblock.dirty.iter_mut().filter(|write| write.container == inode) {
                    (write.sent, unwritten) = (true, true);
                }
            }
            if !unwritten {
                self.containers.remove(&inode);
                self.say(|| format!("container {inode} has ended"));
            }
        }
    }
}
