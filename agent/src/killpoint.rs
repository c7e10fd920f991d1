//! Every place in the executor where a crash leaves something half-done, by name. In a build with the feature `failpoints`
//! a process can be made to die there; in any other, nothing of this is left.
//!
//! A step without a point, and a kind of work for a hand without one, do not compile (see `done` and `untold`), and the lab
//! has a test for each point or does not compile either.
//!
//! Even where they are built in they sleep, unless `MOORLINE_KILL_POINTS` names a directory. Whoever writes a file there that
//! has a point's name, with `hand` or `agent` in it, ends the first process that comes by: that one alone, or the agent and all
//! its hands. The file is gone then. While it is the agent that dies, one is there that is called POINT.agent.

use moorline_shared::plan::Step;

use crate::hands::Work;

/// Who comes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Agent,
    Hand,
}

/// Calls a macro with the list of all points, by what is being done there. Each comes with who does it, the name of its
/// file, and what has just happened.
#[macro_export]
macro_rules! kill_points {
    ($make:ident) => {
        $make! {
            Prepare {
                Hand NodeMounted "node_mounted" "The file system of ours is mounted, and may still be bound along.";
                Hand NodeUnbindable "node_unbindable" "It is unbindable, and has no directories.";
                Agent BootWritten "boot_written" "The boot of the node is written beside the one that was known.";
                Hand PrepareUntold "prepare_untold" "The node is ready, and the agent is not told.";
            }
            Record {
                Agent ObjectsWritten "objects_written" "The objects are written beside those in force.";
                Agent RecordWritten "record_written" "A publication is written, and has no name yet.";
                Agent Recorded "recorded" "A publication is recorded, and nothing is done for it.";
                Agent ReturningWritten "returning_written" "What a shutdown takes away is written down, beside its place.";
                Agent Withdrawn "withdrawn" "It is recorded as no longer wanted, and nothing is taken away.";
            }
            MakeNamespace {
                Hand NamespaceEmpty "namespace_empty" "The network namespace has nothing in it.";
                Hand DeviceMade "device_made" "It has its device, and no address.";
                Hand NamespaceConfigured "namespace_configured" "It has address and route; its NFS client has no name.";
                Hand ClientNamed "client_named" "It is whole, and is bound nowhere.";
                Hand NamespaceFileMade "namespace_file_made" "The file that it is to be bound to is there.";
                Hand NamespaceUntold "namespace_untold" "It is bound, and the agent is not told.";
                Hand NameUntold "name_untold" "The node's own network is bound, and the agent is not told.";
                Agent NamespaceDone "namespace_done" "The agent knows, and does the next step.";
            }
            AttachTunnel {
                Agent TunnelOpen "tunnel_open" "Device and socket are open, and no data path runs.";
                Agent TunnelDone "tunnel_done" "The data path runs.";
            }
            Fence {
                Hand WriterMarked "writer_marked" "A writer's superblock is marked as ended for good, and is not.";
                Hand WriterEnded "writer_ended" "One writer's superblock is ended, without a tunnel, and the others are not.";
                Hand ShutDownUntold "shut_down_untold" "All are, and the agent is not told.";
                Agent FenceUnmarked "fence_unmarked" "All are, and there is no mark.";
                Agent MarkWritten "mark_written" "The mark is written beside its place.";
                Agent FenceMarked "fence_marked" "The mark is there, and the data path runs.";
                Agent FenceDone "fence_done" "The data path has ended.";
            }
            RemoveNamespace {
                Agent TunnelEnded "tunnel_ended" "The data path has ended, and the namespace is there.";
                Hand NamespaceUnbound "namespace_unbound" "The namespace is bound nowhere; its file and its mark are there.";
                Hand MarkRemoved "mark_removed" "The file is there alone.";
                Hand RemovalUntold "removal_untold" "Nothing is left, and the agent is not told.";
                Agent RemovalDone "removal_done" "The agent knows.";
            }
            Ways {
                Hand WayConfigured "way_configured" "A device of the node's has address and route to a server, and goes with its maker.";
                Hand WayUntold "way_untold" "It stays by itself, and the agent is not told.";
                Agent WayDone "way_done" "The agent knows.";
                Agent WayOpen "way_open" "That device and a socket are open, and no data path runs.";
                Agent WayCarried "way_carried" "The data path runs.";
                Hand WayRemovalUntold "way_removal_untold" "The device is gone, and the agent is not told.";
                Agent WayRemovalDone "way_removal_done" "The agent knows.";
                Hand DefaultsWritten "defaults_written" "The node's mount defaults are written beside their place.";
                Hand DefaultsUntold "defaults_untold" "They are in it, or gone, and the agent is not told.";
                Agent DefaultsDone "defaults_done" "The agent knows.";
            }
            Mount {
                Hand SuperblockMade "superblock_made" "The server has a client more, mounted nowhere.";
                Hand BaseMade "base_made" "The directory for it is there.";
                Hand MountUntold "mount_untold" "It is mounted, and the agent is not told.";
                Agent MountDone "mount_done" "The agent knows, and does the next step.";
            }
            Publish {
                Hand TargetMade "target_made" "The target directory is there, with nothing on it.";
                Hand TargetCloned "target_cloned" "The clone for it is made, and is nowhere.";
                Hand TargetSealed "target_sealed" "The target is sealed, and the clone is not there.";
                Hand PublishUntold "publish_untold" "It is there, and the agent is not told.";
                Agent PublishDone "publish_done" "The agent knows, and kubelet is not told.";
            }
            Replace {
                Hand ClonesMade "clones_made" "The clones are made, and the container's namespace is not entered.";
                Hand PlaceEntered "place_entered" "It is entered.";
                Hand MountedBeneath "mounted_beneath" "The new mount is beneath the old one.";
                Hand Uncovered "uncovered" "The old one is gone, there and nowhere else.";
                Hand MadePrivate "made_private" "The old mount spreads nothing any more, and is on top.";
                Hand MountedOver "mounted_over" "The new mount is over the old one, there and nowhere else.";
                Hand ReplaceUntold "replace_untold" "A namespace is done, and the agent is not told.";
                Agent ReplaceDone "replace_done" "All are.";
            }
            Abort {
                Hand AbortedOnce "aborted_once" "What was outstanding has ended, and more may come.";
                Hand AbortUntold "abort_untold" "It was aborted for its time, and the agent is not told.";
                Agent AbortDone "abort_done" "The agent knows.";
            }
            Unpublish {
                Hand LayerDetached "layer_detached" "The topmost layer is gone from the target.";
                Hand TargetBare "target_bare" "All layers are, and the directory is there.";
                Hand UnpublishUntold "unpublish_untold" "It is gone as well, and the agent is not told.";
                Agent TargetGone "target_gone" "It is, and the record is there.";
                Agent UnpublishDone "unpublish_done" "Record and target are gone, and kubelet is not told.";
            }
            Errand {
                Hand ErrandUntold "errand_untold" "A directory is made, put aside or deleted, and the agent is not told.";
            }
            Hide {
                Hand HideUntold "hide_untold" "What kubelet would meet is gone, and the agent is not told.";
                Agent HideDone "hide_done" "The agent knows.";
            }
            Flush {
                Hand FlushUntold "flush_untold" "What pods left unwritten is written, and the agent is not told.";
                Agent FlushDone "flush_done" "The agent knows.";
            }
            Detach {
                Hand DetachUntold "detach_untold" "A node's last look at a volume is over, and the agent is not told.";
                Agent DetachDone "detach_done" "The agent knows.";
            }
            Retire {
                Hand RetireAborted "retire_aborted" "A base mount that is given up was aborted, and is there.";
                Hand RetireMarked "retire_marked" "It is marked as ended for good, and is not.";
                Hand RetireShutDown "retire_shut_down" "Its superblock is ended for good, where the kernel can.";
                Hand Flushed "flushed" "What a pod left unwritten is written, and the base mount is there.";
                Hand BaseDetached "base_detached" "The base mount is gone, and its directory is there.";
                Hand RetireUntold "retire_untold" "Both are gone, and the agent is not told.";
                Agent RetireDone "retire_done" "The agent knows.";
            }
            Look {
                Hand LookUntold "look_untold" "The server has said how a mount is, and the agent is not told.";
            }
        }
    };
}

macro_rules! define {
    ($($chapter:ident { $($place:ident $point:ident $name:literal $what:literal;)+ })+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point {
            $($(#[doc = $what] $point,)+)+
        }

        /// What is being done at a point.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Chapter {
            $($chapter,)+
        }

        impl Point {
            pub const ALL: &[Self] = &[$($(Self::$point,)+)+];

            pub const fn name(self) -> &'static str {
                match self {
                    $($(Self::$point => $name,)+)+
                }
            }

            pub const fn place(self) -> Place {
                match self {
                    $($(Self::$point => Place::$place,)+)+
                }
            }

            pub const fn chapter(self) -> Chapter {
                match self {
                    $($(Self::$point => Chapter::$chapter,)+)+
                }
            }
        }
    };
}

kill_points!(define);

/// In the agent: a step is done, and the loop has not heard of it.
pub(crate) fn done(step: &Step) -> Point {
    match step {
        Step::MakeNamespace(_) => Point::NamespaceDone,
        Step::AttachTunnel(_) => Point::TunnelDone,
        Step::Fence(_) => Point::FenceDone,
        Step::RemoveNamespace(_) => Point::RemovalDone,
        Step::MakeWay(_) => Point::WayDone,
        Step::CarryWay(_) => Point::WayCarried,
        Step::RemoveWay { .. } => Point::WayRemovalDone,
        Step::SetMountDefaults => Point::DefaultsDone,
        Step::Mount(..) => Point::MountDone,
        Step::Publish(..) => Point::PublishDone,
        Step::Replace { .. } => Point::ReplaceDone,
        Step::Abort(_) => Point::AbortDone,
        Step::Hide(_) => Point::HideDone,
        Step::Flush(_) => Point::FlushDone,
        Step::Detach(_) => Point::DetachDone,
        Step::Unpublish(_) => Point::UnpublishDone,
        Step::Clear(_) | Step::Retire { .. } => Point::RetireDone,
    }
}

/// In a hand: its work is done, and nobody has heard of it.
pub(crate) fn untold(work: &Work) -> Point {
    match work {
        Work::Prepare => Point::PrepareUntold,
        Work::MakeNamespace(_) => Point::NamespaceUntold,
        Work::NameHostNetwork { .. } => Point::NameUntold,
        Work::ShutDown(_) => Point::ShutDownUntold,
        Work::RemoveNamespace(_) => Point::RemovalUntold,
        Work::MakeWay(_) => Point::WayUntold,
        Work::RemoveWay { .. } => Point::WayRemovalUntold,
        Work::SetMountDefaults { .. } => Point::DefaultsUntold,
        Work::Hide { .. } => Point::HideUntold,
        Work::Flush { .. } => Point::FlushUntold,
        Work::Detach { .. } => Point::DetachUntold,
        Work::Mount(_) => Point::MountUntold,
        Work::Publish(_) => Point::PublishUntold,
        Work::Replace(_) => Point::ReplaceUntold,
        Work::Abort { .. } => Point::AbortUntold,
        Work::Look { .. } => Point::LookUntold,
        Work::Errand { .. } => Point::ErrandUntold,
        Work::Unpublish { .. } => Point::UnpublishUntold,
        Work::Retire { .. } => Point::RetireUntold,
    }
}

#[cfg(not(feature = "failpoints"))]
mod asleep {
    use super::Point;

    pub fn arm() {}

    #[inline(always)]
    pub(crate) fn hit(_: Point) {}
}

#[cfg(feature = "failpoints")]
mod awake {
    use std::env;
    use std::fs::File;
    use std::io::Read;
    use std::sync::Arc;

    use rustix::fd::OwnedFd;
    use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
    use rustix::process::{Signal, getpid, getppid, kill_process};

    use super::{Place, Point};

    /// Called once, first thing in each process.
    pub fn arm() {
        let Some(directory) = env::var_os("MOORLINE_KILL_POINTS") else { return };
        // Opened now: a hand goes to mount namespaces in which the path leads elsewhere.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let orders = match rustix::fs::open(&directory, flags, Mode::empty()) {
            Ok(orders) => Arc::new(orders),
            Err(error) => return eprintln!("moorline: no kill points: open {}: {error}", directory.display()),
        };
        for point in Point::ALL {
            let orders = orders.clone();
            if let Err(error) = fail::cfg_callback(point.name(), move || obey(*point, &orders)) {
                eprintln!("moorline: no kill point {}: {error}", point.name());
            }
        }
    }

    #[inline]
    pub(crate) fn hit(point: Point) {
        fail::fail_point!(point.name());
    }

    fn obey(point: Point, orders: &OwnedFd) {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(order) = openat(orders, point.name(), flags, Mode::empty()) else { return };
        let mut whom = String::new();
        if File::from(order).read_to_string(&mut whom).is_err() {
            return;
        }
        let agent = whom.trim() == "agent";
        // Of those that come by at once, one is meant.
        let taken = if agent {
            renameat(orders, point.name(), orders, format!("{}.agent", point.name()))
        } else {
            unlinkat(orders, point.name(), AtFlags::empty())
        };
        if taken.is_err() {
            return;
        }
        // An agent takes its hands along.
        let meant = if agent && point.place() == Place::Hand { getppid() } else { Some(getpid()) };
        if let Some(meant) = meant {
            let _ = kill_process(meant, Signal::KILL);
        }
        loop {
            rustix::event::pause();
        }
    }
}

#[cfg(not(feature = "failpoints"))]
pub use asleep::arm;
#[cfg(not(feature = "failpoints"))]
pub(crate) use asleep::hit;
#[cfg(feature = "failpoints")]
pub use awake::arm;
#[cfg(feature = "failpoints")]
pub(crate) use awake::hit;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_point_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
