//! What happens on a node: each moment that somebody may ask about is one value, which the agent logs, keeps for who
//! asks on its socket, and counts.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{NamespaceId, SuperblockId, TargetId};
use crate::name::Name;
use crate::plan::Step;
use crate::publication::{Pod, Publication};

/// Displayed as the log says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// The agent began, and found what an earlier one left.
    Adopted { publications: usize },
    /// The node's kernel can mount nothing of what anybody will ask for.
    NoNfs,
    /// What an earlier boot of the node left on record is forgotten: its mounts ended with it.
    EarlierBoot { publications: usize },
    /// What the objects now say is in force.
    ObjectsRead { gateways: usize, shares: usize },
    /// A file, or what it says of one object, can't be taken; what it said before stays in force.
    ObjectRefused { problem: String },
    /// A volume was asked for and may be: it is on record, and comes when its server answers.
    Publishing(Publication),
    /// The volume is there.
    Published { publication: Publication, superblock: SuperblockId },
    /// A directory of a share was made, put aside or deleted.
    ErrandDone { publication: Publication, words: String },
    /// What was asked for and is not there yet may not be any more: it does not come.
    Withdrawn { publication: Publication, reason: String },
    /// A volume was given back: it is on record, and goes at once.
    Unpublishing(Publication),
    /// What kubelet would have met of a volume is gone from the host: it need not wait for the volume's server.
    Hidden(Publication),
    /// Nothing of the volume is left on the host.
    Unpublished(Publication),
    /// The volume's pod is gone, and nobody gave the volume back: it goes.
    Orphaned { publication: Publication, evidence: String },
    /// The node shuts down, and waits so long for us at most.
    ShuttingDown { within: Duration },
    /// The node may go down: all is let go of, or the time is over.
    LetGo { in_time: bool },
    /// The node does not shut down after all: what was let go of comes back.
    GoesOn,
    /// The server behind a network namespace answers, for the first time or again.
    ServerAlive { namespace: NamespaceId },
    /// It has not answered for so long that it counts as away.
    ServerAway { namespace: NamespaceId, silent: Duration },
    /// A share that pods use is not served, or its I/O blocks; the reason names the likely cure.
    ShareWaits { share: Name, reason: String },
    /// Its server answers and does not know its root any more: the export was replaced or removed.
    ShareStale { share: Name },
    /// It is served again.
    ShareServed { share: Name },
    /// A network namespace that leads to one target was made.
    NamespaceMade { namespace: NamespaceId },
    /// Its data path runs.
    TunnelAttached { namespace: NamespaceId },
    /// It leads nowhere any more, for good: what is unwritten behind it can't reach its server, not even later.
    Fenced { namespace: NamespaceId },
    /// It was let go of, since nothing needs it.
    NamespaceRemoved { namespace: NamespaceId },
    /// The node's own network leads to a target, since its gateway's scope is the host.
    WayMade { target: TargetId },
    /// The data path of that runs.
    WayCarried { target: TargetId },
    /// It is gone: nobody has a mount from its server, and its Gateway is gone or has changed.
    WayRemoved { target: TargetId },
    /// What mounts of such servers take for granted was written down, or the file removed with the last of them.
    MountDefaultsSet,
    /// A superblock of the kernel's NFS client was made.
    Mounted { superblock: SuperblockId },
    /// What pods saw of `old` they see of `new`: another target serves them, or the same one a new export.
    FailedOver { old: SuperblockId, new: SuperblockId },
    /// What waits in a superblock is ended with an error, and so is what comes, until nobody holds it any more. The
    /// publication is the one whose own it is: what that pod wrote and did not sync is lost.
    Aborting { superblock: SuperblockId, publication: Option<Publication> },
    /// The superblock's mount is gone: flushed, or aborted if its server could not take what was unwritten.
    Retired { superblock: SuperblockId, aborted: bool },
    /// A step failed in a way that was not told yet; it is tried again, later each time.
    StepFailed { step: Step, message: String },
}

/// The variants of [`Happening`], which says what each means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    Adopted,
    NoNfs,
    EarlierBoot,
    ObjectsRead,
    ObjectRefused,
    Publishing,
    Published,
    ErrandDone,
    Withdrawn,
    Unpublishing,
    Hidden,
    Unpublished,
    Orphaned,
    ShuttingDown,
    LetGo,
    GoesOn,
    ServerAlive,
    ServerAway,
    ShareWaits,
    ShareStale,
    ShareServed,
    NamespaceMade,
    TunnelAttached,
    Fenced,
    NamespaceRemoved,
    WayMade,
    WayCarried,
    WayRemoved,
    MountDefaultsSet,
    Mounted,
    FailedOver,
    Aborting,
    Retired,
    StepFailed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Gravity {
    /// In the order of things.
    Info,
    /// Something waits, fails for now, or was lost.
    Warning,
    /// Somebody must change something.
    Error,
}

impl Happening {
    /// What follows for people when a step is done. Aborts are told when they begin, since they are repeated.
    pub fn of_done(step: &Step, publication: Option<Publication>) -> Option<Self> {
        Some(match step {
            Step::MakeNamespace(id) => Self::NamespaceMade { namespace: id.clone() },
            Step::AttachTunnel(id) => Self::TunnelAttached { namespace: id.clone() },
            Step::Fence(id) => Self::Fenced { namespace: id.clone() },
            Step::RemoveNamespace(id) => Self::NamespaceRemoved { namespace: id.clone() },
            Step::MakeWay(target) => Self::WayMade { target: target.clone() },
            Step::CarryWay(target) => Self::WayCarried { target: target.clone() },
            Step::RemoveWay { target, .. } => Self::WayRemoved { target: target.clone() },
            Step::SetMountDefaults => Self::MountDefaultsSet,
            Step::Mount(id, _) => Self::Mounted { superblock: id.clone() },
            Step::Publish(_, id) => Self::Published { publication: publication?, superblock: id.clone() },
            Step::Hide(_) => Self::Hidden(publication?),
            Step::Unpublish(_) => Self::Unpublished(publication?),
            Step::Replace { old, new } => Self::FailedOver { old: old.clone(), new: new.clone() },
            Step::Retire { superblock, abort } => Self::Retired { superblock: superblock.clone(), aborted: *abort },
            Step::Abort(_) | Step::Flush(_) | Step::Detach(_) | Step::Clear(_) => return None,
        })
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Adopted { .. } => Kind::Adopted,
            Self::NoNfs => Kind::NoNfs,
            Self::EarlierBoot { .. } => Kind::EarlierBoot,
            Self::ObjectsRead { .. } => Kind::ObjectsRead,
            Self::ObjectRefused { .. } => Kind::ObjectRefused,
            Self::Publishing(_) => Kind::Publishing,
            Self::Published { .. } => Kind::Published,
            Self::ErrandDone { .. } => Kind::ErrandDone,
            Self::Withdrawn { .. } => Kind::Withdrawn,
            Self::Unpublishing(_) => Kind::Unpublishing,
            Self::Hidden(_) => Kind::Hidden,
            Self::Unpublished(_) => Kind::Unpublished,
            Self::Orphaned { .. } => Kind::Orphaned,
            Self::ShuttingDown { .. } => Kind::ShuttingDown,
            Self::LetGo { .. } => Kind::LetGo,
            Self::GoesOn => Kind::GoesOn,
            Self::ServerAlive { .. } => Kind::ServerAlive,
            Self::ServerAway { .. } => Kind::ServerAway,
            Self::ShareWaits { .. } => Kind::ShareWaits,
            Self::ShareStale { .. } => Kind::ShareStale,
            Self::ShareServed { .. } => Kind::ShareServed,
            Self::NamespaceMade { .. } => Kind::NamespaceMade,
            Self::TunnelAttached { .. } => Kind::TunnelAttached,
            Self::Fenced { .. } => Kind::Fenced,
            Self::NamespaceRemoved { .. } => Kind::NamespaceRemoved,
            Self::WayMade { .. } => Kind::WayMade,
            Self::WayCarried { .. } => Kind::WayCarried,
            Self::WayRemoved { .. } => Kind::WayRemoved,
            Self::MountDefaultsSet => Kind::MountDefaultsSet,
            Self::Mounted { .. } => Kind::Mounted,
            Self::FailedOver { .. } => Kind::FailedOver,
            Self::Aborting { .. } => Kind::Aborting,
            Self::Retired { .. } => Kind::Retired,
            Self::StepFailed { .. } => Kind::StepFailed,
        }
    }

    pub fn gravity(&self) -> Gravity {
        match self {
            Self::ObjectRefused { .. } | Self::NoNfs => Gravity::Error,
            Self::Withdrawn { .. }
            | Self::LetGo { in_time: false }
            | Self::ServerAway { .. }
            | Self::ShareWaits { .. }
            | Self::ShareStale { .. }
            | Self::Fenced { .. }
            | Self::StepFailed { .. } => Gravity::Warning,
            Self::Aborting { superblock, .. } if superblock.user.writes() => Gravity::Warning,
            Self::Adopted { .. }
            | Self::EarlierBoot { .. }
            | Self::Orphaned { .. }
            | Self::ShuttingDown { .. }
            | Self::LetGo { in_time: true }
            | Self::GoesOn
            | Self::ObjectsRead { .. }
            | Self::Publishing(_)
            | Self::Published { .. }
            | Self::ErrandDone { .. }
            | Self::Unpublishing(_)
            | Self::Hidden(_)
            | Self::Unpublished(_)
            | Self::ServerAlive { .. }
            | Self::ShareServed { .. }
            | Self::NamespaceMade { .. }
            | Self::WayMade { .. }
            | Self::WayCarried { .. }
            | Self::WayRemoved { .. }
            | Self::MountDefaultsSet
            | Self::TunnelAttached { .. }
            | Self::NamespaceRemoved { .. }
            | Self::Mounted { .. }
            | Self::FailedOver { .. }
            | Self::Aborting { .. }
            | Self::Retired { .. } => Gravity::Info,
        }
    }

    pub fn share(&self) -> Option<&Name> {
        let superblock = || self.superblock().map(|superblock| &superblock.share);
        match self {
            Self::ShareWaits { share, .. } | Self::ShareStale { share } | Self::ShareServed { share } => Some(share),
            _ => self.publication().map(|publication| &publication.share).or_else(superblock),
        }
    }

    pub fn pod(&self) -> Option<&Pod> {
        self.publication().filter(|publication| publication.is_pods()).map(|publication| &publication.pod)
    }

    pub fn publication(&self) -> Option<&Publication> {
        match self {
            Self::Publishing(publication)
            | Self::Published { publication, .. }
            | Self::ErrandDone { publication, .. }
            | Self::Withdrawn { publication, .. }
            | Self::Orphaned { publication, .. }
            | Self::Unpublishing(publication)
            | Self::Hidden(publication)
            | Self::Unpublished(publication) => Some(publication),
            Self::Aborting { publication, .. } => publication.as_ref(),
            _ => None,
        }
    }

    /// Of two, the one that is in force afterwards.
    pub fn superblock(&self) -> Option<&SuperblockId> {
        match self {
            Self::Published { superblock, .. }
            | Self::Mounted { superblock }
            | Self::FailedOver { new: superblock, .. }
            | Self::Aborting { superblock, .. }
            | Self::Retired { superblock, .. } => Some(superblock),
            Self::StepFailed { step, .. } => superblock_of(step),
            _ => None,
        }
    }

    /// The network namespace that it is about, and so its Gateway and target.
    pub fn namespace(&self) -> Option<&NamespaceId> {
        match self {
            Self::ServerAlive { namespace }
            | Self::ServerAway { namespace, .. }
            | Self::NamespaceMade { namespace }
            | Self::TunnelAttached { namespace }
            | Self::Fenced { namespace }
            | Self::NamespaceRemoved { namespace } => Some(namespace),
            _ => self.superblock().map(|superblock| &superblock.namespace),
        }
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adopted { publications } => {
                write!(f, "the agent begins; it adopts {publications} publications of an earlier one")
            }
            Self::NoNfs => f.write_str(
                "this kernel has no NFS client, so no volume can be mounted: load the module nfsv4, or install it (linux-modules-extra, kernel-modules)",
            ),
            Self::EarlierBoot { publications } => {
                write!(f, "the node has booted since this was written down: {publications} publications are forgotten")
            }
            Self::ObjectsRead { gateways, shares } => write!(f, "objects read: {gateways} Gateways, {shares} Shares"),
            Self::ObjectRefused { problem } => write!(f, "refused: {problem}; what was running goes on"),
            Self::Publishing(publication) => write!(f, "publishing {}", Volume(publication)),
            Self::Published { publication, superblock } => {
                write!(f, "published {} from {superblock}", Volume(publication))
            }
            Self::ErrandDone { publication, words } => write!(f, "in Share {}: {words}", publication.share),
            Self::Withdrawn { publication, reason } => write!(f, "{} does not come: {reason}", Volume(publication)),
            Self::Unpublishing(publication) => write!(f, "unpublishing {}", Volume(publication)),
            Self::Hidden(publication) => write!(
                f,
                "detached {} on the host: its pod is being deleted, and kubelet must not wait for its server",
                Volume(publication)
            ),
            Self::Unpublished(publication) => write!(f, "unpublished {}", Volume(publication)),
            Self::Orphaned { publication, evidence } => {
                write!(f, "{} is an orphan and goes: {evidence}", Volume(publication))
            }
            Self::ShuttingDown { within } => write!(
                f,
                "the node shuts down and waits {:.1} s for us: nothing new is published, what is there is flushed and let go of",
                within.as_secs_f64()
            ),
            Self::LetGo { in_time: true } => f.write_str("all mounts and tunnels are let go of; the node may go down"),
            Self::LetGo { in_time: false } => f.write_str(
                "the node goes down now; containers that still run hold mounts, and what they write from now on is lost (a longer InhibitDelayMaxSec in logind.conf gives them more time)",
            ),
            Self::GoesOn => f.write_str("the node does not shut down: volumes are published again"),
            Self::ServerAlive { namespace } => write!(f, "the server behind {namespace} answers"),
            Self::ServerAway { namespace, silent } => write!(
                f,
                "the server behind {namespace} is away: no answer for {:.1} s; does it run, and does its network pass UDP?",
                silent.as_secs_f64()
            ),
            Self::ShareWaits { reason, .. } => f.write_str(reason),
            Self::ShareStale { share } => {
                write!(f, "Share {share} is stale: its server does not know its root any more; is it exported again?")
            }
            Self::ShareServed { share } => write!(f, "Share {share} is served"),
            Self::NamespaceMade { namespace } => write!(f, "made the network namespace {namespace}"),
            Self::TunnelAttached { namespace } => write!(f, "attached the tunnel of {namespace}"),
            Self::Fenced { namespace } => {
                write!(f, "fenced {namespace}: what is unwritten behind it reaches its server no more")
            }
            Self::NamespaceRemoved { namespace } => write!(f, "removed the network namespace {namespace}"),
            Self::WayMade { target } => write!(f, "the node's own network leads to {target}"),
            Self::WayCarried { target } => write!(f, "attached the tunnel of the node's way to {target}"),
            Self::WayRemoved { target } => write!(f, "removed the node's way to {target}"),
            Self::MountDefaultsSet => f.write_str("set what mounts of the node from gateways of scope host take for granted"),
            Self::Mounted { superblock } => write!(f, "mounted {superblock}"),
            Self::FailedOver { old, new } => write!(f, "failed over: {new} is in the place of {old}"),
            Self::Aborting { superblock, .. } => {
                write!(f, "ending what waits for a server that is given up, in {superblock}: calls get EIO")?;
                if superblock.user.writes() {
                    f.write_str(", and what was written and not yet synced is lost")?;
                }
                Ok(())
            }
            Self::Retired { superblock, aborted: false } => write!(f, "retired {superblock}"),
            Self::Retired { superblock, aborted: true } => write!(f, "aborted and retired {superblock}"),
            Self::StepFailed { step, message } => write!(f, "failed, will try again: {step}: {message}"),
        }
    }
}

/// A publication in a few words.
struct Volume<'a>(&'a Publication);

impl fmt::Display for Volume<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Publication { share, sub_dir, read_only, pod, node, target_path, errand, .. } = self.0;
        let mode = if *read_only { "read-only" } else { "read-write" };
        match sub_dir {
            None => write!(f, "Share {share} ({mode})")?,
            Some(sub_dir) => write!(f, "{sub_dir} of Share {share} ({mode})")?,
        }
        if errand.is_some() {
            write!(f, ", for an errand")
        } else if *node {
            write!(f, " for the node, at {target_path}")
        } else {
            write!(f, " for pod {}/{}", pod.namespace, pod.name)
        }
    }
}

/// A happening as it is kept and sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Counts up from 1 with each agent's start: a gap says that some were not kept.
    pub sequence: u64,
    /// UTC, as RFC 3339 writes it.
    pub at: String,
    pub kind: Kind,
    pub gravity: Gravity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superblock: Option<SuperblockId>,
    /// The network namespace, `GATEWAY.TARGET.GENERATION`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespaceId>,
    pub message: String,
}

impl Record {
    pub fn of(happening: &Happening, sequence: u64, at: String) -> Self {
        Self {
            sequence,
            at,
            kind: happening.kind(),
            gravity: happening.gravity(),
            share: happening.share().cloned(),
            pod: happening.pod().cloned(),
            superblock: happening.superblock().cloned(),
            namespace: happening.namespace().cloned(),
            message: happening.to_string(),
        }
    }
}

fn superblock_of(step: &Step) -> Option<&SuperblockId> {
    match step {
        Step::Mount(id, _)
        | Step::Publish(_, id)
        | Step::Replace { new: id, .. }
        | Step::Flush(id)
        | Step::Abort(id)
        | Step::Clear(id)
        | Step::Retire { superblock: id, .. } => Some(id),
        Step::MakeNamespace(_)
        | Step::AttachTunnel(_)
        | Step::Fence(_)
        | Step::RemoveNamespace(_)
        | Step::MakeWay(_)
        | Step::CarryWay(_)
        | Step::RemoveWay { .. }
        | Step::SetMountDefaults
        | Step::Hide(_)
        | Step::Detach(_)
        | Step::Unpublish(_) => None,
    }
}

/// What a step does, in one word of a bounded set.
pub fn action(step: &Step) -> &'static str {
    match step {
        Step::MakeNamespace(_) => "make_namespace",
        Step::AttachTunnel(_) => "attach_tunnel",
        Step::Fence(_) => "fence",
        Step::RemoveNamespace(_) => "remove_namespace",
        Step::MakeWay(_) => "make_way",
        Step::CarryWay(_) => "carry_way",
        Step::RemoveWay { .. } => "remove_way",
        Step::SetMountDefaults => "set_mount_defaults",
        Step::Mount(..) => "mount",
        Step::Publish(..) => "publish",
        Step::Replace { .. } => "replace",
        Step::Abort(_) => "abort",
        Step::Hide(_) => "hide",
        Step::Flush(_) => "flush",
        Step::Detach(_) => "detach",
        Step::Unpublish(_) => "unpublish",
        Step::Clear(_) => "clear",
        Step::Retire { .. } => "retire",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication() -> Publication {
        Publication {
            volume_id: "v".into(),
            target_path: "/var/lib/kubelet/pods/u/volumes/v/mount".into(),
            share: "ckpt".parse().unwrap(),
            sub_dir: None,
            read_only: false,
            pod: Pod { namespace: "training".into(), name: "job".into(), uid: "u".into() },
            sole: None,
            inline: false,
            errand: None,
            node: false,
            wanted: true,
        }
    }

    #[test]
    fn an_abort_of_a_pods_own_superblock_names_pod_and_loss() {
        let superblock: SuperblockId = "ckpt.1@gw.a.1@00ff00ff00ff00ff".parse().unwrap();
        let happening = Happening::Aborting { superblock, publication: Some(publication()) };
        let record = Record::of(&happening, 7, "2026-01-01T00:00:00Z".into());
        assert_eq!((record.kind, record.gravity), (Kind::Aborting, Gravity::Warning));
        assert_eq!(record.pod.as_ref().map(|pod| pod.name.as_str()), Some("job"));
        assert_eq!(record.namespace.as_ref().map(ToString::to_string).as_deref(), Some("gw.a.1"));
        assert!(record.message.contains("lost"), "{}", record.message);
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }

    #[test]
    fn what_many_pods_share_loses_nothing() {
        let superblock: SuperblockId = "data.1@gw.a.1@ro".parse().unwrap();
        let happening = Happening::Aborting { superblock, publication: None };
        assert_eq!(happening.gravity(), Gravity::Info);
        assert!(!happening.to_string().contains("lost"));
    }
}
