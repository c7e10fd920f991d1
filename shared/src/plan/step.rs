//! What the host is told to do, and what goes one after the other.

use std::fmt;

use super::Tuning;
use crate::id::{NamespaceId, PublicationId, SuperblockId, TargetId};
use crate::observed::Observed;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Make a network namespace with a TUN device, address and route for its target; or, for a direct one, give the
    /// node's own that name.
    MakeNamespace(NamespaceId),
    /// Start the data path.
    AttachTunnel(NamespaceId),
    /// End the data path for good, and leave a mark that outlives the agent.
    Fence(NamespaceId),
    /// Let go of a namespace that no superblock of ours is in.
    RemoveNamespace(NamespaceId),
    /// Make the device and the route that lead to a target on the node's own network, or what is missing of them.
    MakeWay(TargetId),
    /// Start its data path.
    CarryWay(TargetId),
    /// Take away what leads there. `unused` is what was seen: nobody has a mount from its server, and if somebody has by
    /// then, it stays.
    RemoveWay {
        target: TargetId,
        unused: bool,
    },
    /// Write down what mounts from servers of gateways of scope host take for granted, or remove the file.
    SetMountDefaults,
    Mount(SuperblockId, Tuning),
    /// Put a clone of the superblock's base mount at the publication's empty target.
    Publish(PublicationId, SuperblockId),
    /// Put a clone of `new` over every copy of `old`, in the host's and every container's mount namespace.
    Replace {
        old: SuperblockId,
        new: SuperblockId,
    },
    /// End with an error what is outstanding, and what comes while the step lasts.
    Abort(SuperblockId),
    /// Detach what kubelet would meet of the publication on the host, at its target and at its subPaths: its pod is being
    /// deleted and its server is away, so kubelet would wait for it. Containers keep what they have.
    Hide(PublicationId),
    /// Write what pods left unwritten, while their mounts stay.
    Flush(SuperblockId),
    /// Detach what is ours at the target. It is still wanted, and comes back when the node goes on.
    Detach(PublicationId),
    /// Detach what is ours at the target, then forget the publication.
    Unpublish(PublicationId),
    /// Clear away what is left of a mount that is there no more, or never came to be: a directory, a mark.
    Clear(SuperblockId),
    /// Detach the base mount; `abort` first where the server can't take what is unwritten.
    Retire {
        superblock: SuperblockId,
        abort: bool,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeNamespace(id) => write!(f, "make the network namespace {id}"),
            Self::AttachTunnel(id) => write!(f, "attach the tunnel of {id}"),
            Self::Fence(id) => write!(f, "fence {id}"),
            Self::RemoveNamespace(id) => write!(f, "remove the network namespace {id}"),
            Self::MakeWay(id) => write!(f, "make the node's way to {id}"),
            Self::CarryWay(id) => write!(f, "attach the tunnel of the node's way to {id}"),
            Self::RemoveWay { target, .. } => write!(f, "remove the node's way to {target}"),
            Self::SetMountDefaults => f.write_str("write the node's mount defaults"),
            Self::Mount(id, _) => write!(f, "mount {id}"),
            Self::Publish(id, superblock) => write!(f, "publish {id} from {superblock}"),
            Self::Replace { old, new } => write!(f, "put {new} in the place of {old}"),
            Self::Abort(id) => write!(f, "abort {id}"),
            Self::Hide(id) => write!(f, "hide {id} from kubelet"),
            Self::Flush(id) => write!(f, "flush {id}"),
            Self::Detach(id) => write!(f, "detach {id}"),
            Self::Unpublish(id) => write!(f, "unpublish {id}"),
            Self::Clear(id) => write!(f, "clear away what is left of {id}"),
            Self::Retire { superblock, abort: false } => write!(f, "retire {superblock}"),
            Self::Retire { superblock, abort: true } => write!(f, "abort and retire {superblock}"),
        }
    }
}

/// Steps of one lane run one after the other; lanes run side by side, so a step that blocks delays only its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    Server(TargetId),
    Way(TargetId),
    MountDefaults,
    Fence(NamespaceId),
    Publication(PublicationId),
    Ending(SuperblockId),
}

impl Step {
    pub fn lane(&self) -> Lane {
        match self {
            Self::MakeNamespace(id) | Self::AttachTunnel(id) | Self::RemoveNamespace(id) => {
                Lane::Server(id.target.clone())
            }
            Self::MakeWay(id) | Self::CarryWay(id) | Self::RemoveWay { target: id, .. } => Lane::Way(id.clone()),
            Self::SetMountDefaults => Lane::MountDefaults,
            // Its own lane: it must not wait behind a mount that asks the dead server.
            Self::Fence(id) => Lane::Fence(id.clone()),
            Self::Mount(id, _) | Self::Replace { new: id, .. } => Lane::Server(id.namespace.target.clone()),
            // One lane for both: what is taken back while it is being published is detached after that.
            Self::Publish(id, _) | Self::Hide(id) | Self::Detach(id) | Self::Unpublish(id) => Lane::Publication(*id),
            Self::Flush(id) | Self::Abort(id) | Self::Clear(id) | Self::Retire { superblock: id, .. } => {
                Lane::Ending(id.clone())
            }
        }
    }

    fn is_published_from(&self) -> Option<&TargetId> {
        match self {
            Self::Publish(_, superblock) => Some(&superblock.namespace.target),
            _ => None,
        }
    }
}

/// How many publications of one server are made at once, in a process each. Of a server that has just died each may wait for it.
const AT_ONCE: usize = 16;

/// The server that this step asks has as many to answer as it may have: it waits for one of them to end, and no other server's do.
pub fn waits_its_turn<'a>(step: &Step, under_way: impl Iterator<Item = &'a Step>) -> bool {
    let server = step.is_published_from();
    server.is_some() && under_way.filter(|other| other.is_published_from() == server).count() >= AT_ONCE
}

/// Adds to an observation what the steps that are under way will change.
pub fn note_under_way<'a>(observed: &mut Observed, steps: impl Iterator<Item = &'a Step>) {
    for step in steps {
        match step {
            Step::MakeNamespace(_)
            | Step::AttachTunnel(_)
            | Step::Fence(_)
            | Step::RemoveNamespace(_)
            | Step::MakeWay(_)
            | Step::CarryWay(_)
            | Step::RemoveWay { .. }
            | Step::SetMountDefaults
            | Step::Hide(_)
            | Step::Flush(_)
            | Step::Detach(_)
            | Step::Unpublish(_)
            | Step::Abort(_) => {}
            Step::Mount(id, _) | Step::Publish(_, id) => drop(observed.beginning.insert(id.clone())),
            Step::Replace { old, new } => observed.beginning.extend([old.clone(), new.clone()]),
            Step::Clear(id) => drop(observed.clearing.insert(id.clone())),
            Step::Retire { superblock, .. } => drop(observed.ending.insert(superblock.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::User;

    #[test]
    fn one_servers_crowd_is_in_nobody_elses_way() {
        let publish = |number: usize, target: &str| {
            let target = TargetId { gateway: "gw".parse().unwrap(), target: target.parse().unwrap() };
            let superblock = SuperblockId {
                share: "data".parse().unwrap(),
                epoch: 1,
                namespace: NamespaceId { target, generation: 1 },
                user: User::ReadOnly,
            };
            Step::Publish(PublicationId::of(&number.to_string()), superblock)
        };
        let mut under_way: Vec<Step> = (1..AT_ONCE).map(|number| publish(number, "a")).collect();
        let (another, elsewhere) = (publish(0, "a"), publish(0, "b"));
        assert!(!waits_its_turn(&another, under_way.iter()));
        under_way.push(publish(AT_ONCE, "a"));
        assert!(waits_its_turn(&another, under_way.iter()));
        assert!(!waits_its_turn(&elsewhere, under_way.iter()));
        let Step::Publish(id, _) = another else { unreachable!() };
        assert!(!waits_its_turn(&Step::Unpublish(id), under_way.iter()), "what is taken back waits for nobody");
    }
}
