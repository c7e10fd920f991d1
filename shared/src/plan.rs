//! The planner: what to do next, from what is wanted and what was seen. Each round plans only what can be done at
//! once; what follows from it is planned when the next round has seen it done. Applied twice, it does nothing twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::gateway::Gateway;
use crate::health::Health;
use crate::id::{NamespaceId, PublicationId, SuperblockId, TargetId, User};
use crate::name::Name;
use crate::objects::Objects;
use crate::observed::{Layer, Liveness, Moment, Observed, Occupants, Tunnel};
use crate::publication::Publication;
use crate::share::{Access, Share};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    pub objects: Objects,
    pub publications: BTreeMap<PublicationId, Publication>,
}

impl Desired {
    /// Whether a publication that is not there yet may come, as the objects are now: they may have changed since it was
    /// asked for.
    pub fn may_begin(&self, publication: &Publication) -> Result<(), Refusal> {
        let name = &publication.share;
        let share = self.objects.shares.get(name).ok_or_else(|| Refusal::NoShare(name.clone()))?;
        let namespace = &publication.pod.namespace;
        if self.objects.withdrawn.contains(name) {
            Err(Refusal::Withdrawn(name.clone()))
        } else if !share.namespaces.allow(namespace) {
            Err(Refusal::OtherNamespace { share: name.clone(), namespace: namespace.clone() })
        } else if share.access == Access::ReadOnly && !publication.read_only {
            Err(Refusal::ReadOnly(name.clone()))
        } else {
            Ok(())
        }
    }
}

/// Why a publication may not come, with the cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no Share {0} on this node any more")]
    NoShare(Name),
    #[error("the object of Share {0} is gone; it is kept for the pods that use it only")]
    Withdrawn(Name),
    #[error("Share {share} is not for namespace {namespace:?}: its spec.namespaces must list it")]
    OtherNamespace { share: Name, namespace: String },
    #[error("Share {0} has become ReadOnly; ask again")]
    ReadOnly(Name),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Make a network namespace with a TUN device, address and route for its target.
    MakeNamespace(NamespaceId),
    /// Start the data path.
    AttachTunnel(NamespaceId),
    /// End the data path for good, and leave a mark that outlives the agent.
    Fence(NamespaceId),
    /// Let go of a namespace that no superblock of ours is in.
    RemoveNamespace(NamespaceId),
    Mount(SuperblockId),
    /// Put a clone of the superblock's base mount at the publication's empty target.
    Publish(PublicationId, SuperblockId),
    /// Put a clone of `new` over every copy of `old`, in the host's and every container's mount namespace.
    Replace {
        old: SuperblockId,
        new: SuperblockId,
    },
    /// End with an error what is outstanding, and what comes while the step lasts.
    Abort(SuperblockId),
    /// Detach what is ours at the target, then forget the publication.
    Unpublish(PublicationId),
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
            Self::Mount(id) => write!(f, "mount {id}"),
            Self::Publish(id, superblock) => write!(f, "publish {id} from {superblock}"),
            Self::Replace { old, new } => write!(f, "put {new} in the place of {old}"),
            Self::Abort(id) => write!(f, "abort {id}"),
            Self::Unpublish(id) => write!(f, "unpublish {id}"),
            Self::Retire { superblock, abort: false } => write!(f, "retire {superblock}"),
            Self::Retire { superblock, abort: true } => write!(f, "abort and retire {superblock}"),
        }
    }
}

/// Steps of one lane run one after the other; lanes run side by side, so a step that blocks delays only its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    Server(TargetId),
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
            // Its own lane: it must not wait behind a mount that asks the dead server.
            Self::Fence(id) => Lane::Fence(id.clone()),
            Self::Mount(id) | Self::Replace { new: id, .. } => Lane::Server(id.namespace.target.clone()),
            // One lane for both: what is taken back while it is being published is detached after that.
            Self::Publish(id, _) | Self::Unpublish(id) => Lane::Publication(*id),
            Self::Abort(id) | Self::Retire { superblock: id, .. } => Lane::Ending(id.clone()),
        }
    }
}

/// Adds to an observation what the steps that are under way will change.
pub fn note_under_way<'a>(observed: &mut Observed, steps: impl Iterator<Item = &'a Step>) {
    for step in steps {
        match step {
            Step::MakeNamespace(_)
            | Step::AttachTunnel(_)
            | Step::Fence(_)
            | Step::RemoveNamespace(_)
            | Step::Unpublish(_)
            | Step::Abort(_) => {}
            Step::Mount(id) | Step::Publish(_, id) => drop(observed.beginning.insert(id.clone())),
            Step::Replace { old, new } => observed.beginning.extend([old.clone(), new.clone()]),
            Step::Retire { superblock, .. } => drop(observed.ending.insert(superblock.clone())),
        }
    }
}

/// Where a share's superblocks belong now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seat {
    At {
        epoch: u32,
        namespace: NamespaceId,
    },
    /// Nowhere yet, or no longer where it was and not yet elsewhere.
    Waiting(Waiting),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// No target that may serve the share has answered yet.
    NoTarget,
    /// The server in force is away, and so is every other that may take its place.
    NoSuccessor,
    /// The server in force is away, and its gateway does not say that the others hold the same data.
    DataNotShared,
    /// It was given a successor, and not all of it is there yet.
    Moving,
}

impl Waiting {
    /// In words for people, with the likely cure.
    pub fn explain(self, share: &Share) -> String {
        let Share { name, gateway, .. } = share;
        match self {
            Self::NoTarget => format!(
                "Share {name} waits: no target of Gateway {gateway} answers yet; are their endpoints, keys and servers right, and is UDP open on the way?"
            ),
            Self::NoSuccessor => format!(
                "Share {name} waits: its server is away, and no other target of Gateway {gateway} answers; I/O blocks until one does"
            ),
            Self::Moving => format!(
                "Share {name} is moving to another target of Gateway {gateway}: I/O blocks until its mounts there are made"
            ),
            Self::DataNotShared => format!(
                "Share {name} waits: its server is away, and Gateway {gateway} does not say that its targets share their data (sharedData: true), so a ReadWrite share stays where it is; I/O blocks until the server is back"
            ),
        }
    }
}

pub fn plan(desired: &Desired, observed: &Observed, now: Moment) -> Vec<Step> {
    let view = View { desired, observed, now };
    let mut steps = Vec::new();
    view.end(&mut steps);
    view.keep_namespaces(&mut steps);
    for share in view.shares_in_use() {
        view.serve(share, &mut steps);
    }
    steps
}

/// Why a share waits, for people; None when it does not.
pub fn waiting(desired: &Desired, observed: &Observed, now: Moment, share: &Share) -> Option<Waiting> {
    let view = View { desired, observed, now };
    match view.seat(share) {
        Seat::Waiting(waiting) => Some(waiting),
        Seat::At { namespace, .. } if view.away(&namespace) => Some(view.why_it_stays(share)),
        Seat::At { epoch, .. } if view.left_behind(share, epoch) => Some(Waiting::Moving),
        Seat::At { .. } => None,
    }
}

pub fn health(desired: &Desired, observed: &Observed, now: Moment, superblock: &SuperblockId) -> Health {
    let view = View { desired, observed, now };
    if observed.tunnel(&superblock.namespace) == Some(Tunnel::Fenced) {
        Health::Fenced
    } else if view.superseded(superblock) {
        Health::FailingOver
    } else if !view.needed(superblock) {
        Health::Unmounting
    } else if view.away(&superblock.namespace) {
        Health::Hung
    } else {
        Health::Healthy
    }
}

/// A newer epoch has taken its place.
pub fn superseded(observed: &Observed, id: &SuperblockId) -> bool {
    let newer = |other: &SuperblockId| other.share == id.share && other.user == id.user && other.epoch > id.epoch;
    observed.superblocks.iter().any(newer)
}

/// How long before the end of its grace period a pod's own superblock is aborted: what waits in it needs time to end.
const LAST_CALL: Duration = Duration::from_secs(3);

struct View<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    now: Moment,
}

impl<'a> View<'a> {
    /// What is no longer wanted goes first.
    fn end(&self, steps: &mut Vec<Step>) {
        let unwanted = self.desired.publications.iter().filter(|(_, publication)| !publication.wanted);
        steps.extend(unwanted.map(|(id, _)| Step::Unpublish(*id)));
        for id in &self.observed.superblocks {
            let away = self.away(&id.namespace);
            if self.superseded(id) && self.seen_somewhere(id) {
                // Descriptors, mappings and locks that are still on it must not wait for a server that is given up.
                steps.push(Step::Abort(id.clone()));
            } else if !self.needed(id) && !self.seen_somewhere(id) && !self.observed.beginning.contains(id) {
                steps.push(Step::Retire { superblock: id.clone(), abort: away || self.superseded(id) });
            } else if let User::ReadWrite(publication) = id.user
                && away
                && (self.may_lose(publication) || !self.needed(id))
            {
                steps.push(Step::Abort(id.clone()));
            }
        }
    }

    fn keep_namespaces(&self, steps: &mut Vec<Step>) {
        let gateways: BTreeMap<&Name, &Gateway> = self
            .shares_in_use()
            .filter_map(|share| self.gateway(share))
            .map(|gateway| (&gateway.name, gateway))
            .collect();
        for gateway in gateways.values() {
            for target in &gateway.targets {
                let target = TargetId { gateway: gateway.name.clone(), target: target.name.clone() };
                match self.open_namespace(&target) {
                    Some((id, Tunnel::Detached)) => steps.push(Step::AttachTunnel(id.clone())),
                    Some(_) => {}
                    None => {
                        let generation =
                            self.namespaces_of(&target).map(|(id, _)| id.generation).max().unwrap_or(0) + 1;
                        steps.push(Step::MakeNamespace(NamespaceId { target, generation }));
                    }
                }
            }
        }
        for (id, tunnel) in &self.observed.namespaces {
            let empty = !self.all_superblocks().any(|superblock| superblock.namespace == *id);
            let wanted = *tunnel != Tunnel::Fenced && gateways.contains_key(&id.target.gateway);
            // A superblock whose base is gone may live on in a container until that ends: so does its namespace,
            // which the kernel keeps. Only the name and the data path go.
            if empty && !wanted {
                steps.push(Step::RemoveNamespace(id.clone()));
            }
        }
    }

    fn serve(&self, share: &Share, steps: &mut Vec<Step>) {
        let Seat::At { epoch, namespace } = self.seat(share) else { return };
        if let Some(fence) = self.must_be_fenced_before(share, epoch) {
            steps.push(Step::Fence(fence));
            return;
        }
        let usable = self.observed.tunnel(&namespace) == Some(Tunnel::Attached)
            && self.observed.liveness(&namespace, self.now) == Liveness::Alive;
        let mut missing = BTreeSet::new();
        for (id, publication) in self.wanted(share) {
            let superblock = SuperblockId {
                share: share.name.clone(),
                epoch,
                namespace: namespace.clone(),
                user: publication.user(),
            };
            let there = self.observed.is_published(id);
            let refused = !there && self.desired.may_begin(publication).is_err();
            if refused || self.observed.ending.contains(&superblock) {
                continue;
            }
            if !self.observed.superblocks.contains(&superblock) {
                if usable && missing.insert(superblock.clone()) {
                    steps.push(Step::Mount(superblock));
                }
                continue;
            }
            // A target that is not empty is refused by the executor, and its error reaches the caller. Of a server that
            // is away nothing is published: kubelet and the runtime look at what they are given, and would block.
            if !there && usable {
                steps.push(Step::Publish(id, superblock));
            }
        }
        for old in self.observed.superblocks.iter().filter(|old| old.share == share.name && old.epoch < epoch) {
            let new = SuperblockId { epoch, namespace: namespace.clone(), ..old.clone() };
            if self.observed.superblocks.contains(&new) && self.needed(&new) && self.seen_on_top(old) {
                steps.push(Step::Replace { old: old.clone(), new });
            }
        }
    }

    /// The share's highest epoch is where it is; it moves when that server is away, or fenced, and another may serve.
    fn seat(&self, share: &Share) -> Seat {
        // A mount that is under way counts: a second one elsewhere would be its equal.
        let current = self.all_superblocks().filter(|id| id.share == share.name).max_by_key(|id| id.epoch);
        let ready = |target: &TargetId| {
            let (id, tunnel) = self.open_namespace(target)?;
            let ready = *tunnel == Tunnel::Attached && self.observed.liveness(id, self.now) == Liveness::Alive;
            ready.then(|| id.clone())
        };
        let Some(current) = current else {
            // The first that is not away: one that was not asked often enough yet is waited for, in its turn.
            let known_away = |target: &TargetId| self.open_namespace(target).is_some_and(|(id, _)| self.away(id));
            let first = self.may_serve(share).find(|target| !known_away(target)).and_then(|target| ready(&target));
            return first.map_or(Seat::Waiting(Waiting::NoTarget), |namespace| Seat::At { epoch: 1, namespace });
        };
        let cut_off = !matches!(self.observed.tunnel(&current.namespace), Some(Tunnel::Attached | Tunnel::Detached));
        let stay = Seat::At { epoch: current.epoch, namespace: current.namespace.clone() };
        if !cut_off && !self.away(&current.namespace) {
            return stay;
        }
        let old = self.observed.servers.get(&current.namespace);
        let may_succeed = |id: &NamespaceId| {
            let server = self.observed.servers.get(id);
            server.is_some_and(|server| old.is_none_or(|old| server.may_succeed(old, self.now)))
        };
        let successor = |target: TargetId| ready(&target).filter(may_succeed);
        match self.may_serve(share).find_map(successor) {
            Some(namespace) if namespace != current.namespace => Seat::At { epoch: current.epoch + 1, namespace },
            _ if cut_off => Seat::Waiting(Waiting::NoSuccessor),
            _ => stay,
        }
    }

    fn why_it_stays(&self, share: &Share) -> Waiting {
        let shared = self.gateway(share).is_some_and(|gateway| gateway.shared_data || gateway.targets.len() == 1);
        if share.access == Access::ReadWrite && !shared { Waiting::DataNotShared } else { Waiting::NoSuccessor }
    }

    /// The targets that may serve a share, in order. Where targets do not share their data, what was written to the
    /// first is nowhere else: a read-write share stays with it.
    fn may_serve(&self, share: &Share) -> impl Iterator<Item = TargetId> + use<'a> {
        let gateway = self.gateway(share);
        let one_only = share.access == Access::ReadWrite && gateway.is_some_and(|gateway| !gateway.shared_data);
        let targets = gateway.map_or(&[][..], |gateway| &gateway.targets);
        let gateway = share.gateway.clone();
        targets[..if one_only { targets.len().min(1) } else { targets.len() }]
            .iter()
            .map(move |target| TargetId { gateway: gateway.clone(), target: target.name.clone() })
    }

    /// A read-write superblock may hold unwritten data. Before another server takes writes, the way to the old one
    /// is cut for good, or a healed partition would let old data overwrite new.
    fn must_be_fenced_before(&self, share: &Share, epoch: u32) -> Option<NamespaceId> {
        self.all_superblocks()
            .find(|id| {
                id.share == share.name
                    && id.epoch < epoch
                    && matches!(id.user, User::ReadWrite(_))
                    && matches!(self.observed.tunnel(&id.namespace), Some(Tunnel::Attached | Tunnel::Detached))
            })
            .map(|id| id.namespace.clone())
    }

    /// Those that are there, about to be, or not quite gone.
    fn all_superblocks(&self) -> impl Iterator<Item = &'a SuperblockId> + use<'a> {
        self.observed.superblocks.iter().chain(&self.observed.beginning).chain(&self.observed.ending)
    }

    /// A wanted publication still rests on an earlier epoch.
    fn left_behind(&self, share: &Share, epoch: u32) -> bool {
        self.observed.superblocks.iter().any(|id| id.share == share.name && id.epoch < epoch && self.needed(id))
    }

    fn shares_in_use(&self) -> impl Iterator<Item = &'a Share> + use<'a> {
        let names: BTreeSet<&Name> =
            self.desired.publications.values().filter(|p| p.wanted).map(|p| &p.share).collect();
        names.into_iter().filter_map(|name| self.desired.objects.shares.get(name))
    }

    fn wanted(&self, share: &Share) -> impl Iterator<Item = (PublicationId, &'a Publication)> {
        self.desired.publications.iter().filter(|(_, p)| p.wanted && p.share == share.name).map(|(id, p)| (*id, p))
    }

    fn gateway(&self, share: &Share) -> Option<&'a Gateway> {
        self.desired.objects.gateways.get(&share.gateway)
    }

    fn namespaces_of(&self, target: &TargetId) -> impl Iterator<Item = (&'a NamespaceId, &'a Tunnel)> {
        self.observed.namespaces.iter().filter(move |(id, _)| id.target == *target)
    }

    fn open_namespace(&self, target: &TargetId) -> Option<(&'a NamespaceId, &'a Tunnel)> {
        self.namespaces_of(target).filter(|(_, tunnel)| **tunnel != Tunnel::Fenced).max_by_key(|(id, _)| id.generation)
    }

    /// Its server does not answer, or the way there is cut.
    fn away(&self, namespace: &NamespaceId) -> bool {
        self.observed.tunnel(namespace) == Some(Tunnel::Fenced)
            || self.observed.liveness(namespace, self.now) == Liveness::Away
    }

    fn superseded(&self, id: &SuperblockId) -> bool {
        superseded(self.observed, id)
    }

    /// While its server is away: whether nobody waits any more for what this pod has not written yet.
    fn may_lose(&self, id: PublicationId) -> bool {
        let occupants = self.observed.occupants.get(&id);
        let Some(publication) = self.desired.publications.get(&id) else { return true };
        let pods = &self.observed.pods;
        occupants == Some(&Occupants::Killed)
            || match pods.known.get(&publication.pod.uid) {
                Some(None) => false,
                Some(Some(deletion)) => {
                    let grace = deletion.ends.saturating_sub(deletion.asked);
                    self.now + LAST_CALL.min(grace / 3) >= deletion.ends
                }
                // One that was just made may be here before the word of it is: it lives.
                None => pods.complete && occupants == Some(&Occupants::Ending),
            }
    }

    /// A wanted publication rests on it, or will until it is replaced.
    fn needed(&self, id: &SuperblockId) -> bool {
        let wanted = self.desired.publications.values().any(|p| p.wanted && p.share == id.share && p.user() == id.user);
        wanted && !self.superseded(id)
    }

    fn seen_somewhere(&self, id: &SuperblockId) -> bool {
        self.observed.copies.get(id).is_some_and(|copies| copies.all > 0)
            || self.observed.published.values().flatten().any(|layer| *layer == Layer::Ours(id.clone()))
    }

    fn seen_on_top(&self, id: &SuperblockId) -> bool {
        self.observed.copies.get(id).is_some_and(|copies| copies.on_top > 0)
            || self.observed.published.values().any(|layers| layers.last() == Some(&Layer::Ours(id.clone())))
    }
}

#[cfg(test)]
mod tests;
