//! The planner: what to do next, from what is wanted and what was seen. Each round plans only what can be done at
//! once; what follows from it is planned when the next round has seen it done. Applied twice, it does nothing twice.

mod ending;
mod jitter;
mod orphan;
mod seat;
mod shutdown;
mod step;
mod tuning;
mod ways;

use std::collections::{BTreeMap, BTreeSet};

use crate::errand::Task;
use crate::gateway::Gateway;
use crate::health::Health;
use crate::id::{NamespaceId, PublicationId, SuperblockId, TargetId, User};
use crate::name::Name;
use crate::objects::Objects;
use crate::observed::{Layer, Leases, Liveness, Moment, Observed, Tunnel};
use crate::publication::{Publication, Sole};
use crate::selector::Labels;
use crate::share::{Access, Share};

pub use jitter::Jitter;
pub use orphan::{Traces, evidence_of_its_end};
pub use seat::{Seat, Waiting};
pub use shutdown::{Flush, Shutdown};
pub use step::{Lane, Step, note_under_way, waits_its_turn};
pub use tuning::Tuning;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    pub objects: Objects,
    pub publications: BTreeMap<PublicationId, Publication>,
    pub jitter: Jitter,
    /// The node shuts down, and this is the time that is left.
    pub shutdown: Option<Shutdown>,
    /// Publications that were there when the node was last asked to shut down. Should it not, they come back: their pods had
    /// their word, and who may use a Share by now is for new ones.
    pub returning: BTreeSet<PublicationId>,
    /// The labels of each of the cluster's namespaces, if they were ever told.
    pub namespaces: Option<BTreeMap<String, Labels>>,
    /// And of the node's own, if they were.
    pub labels: Option<Labels>,
}

impl Desired {
    /// Whether a publication that is not there yet may come, as the objects are now: they may have changed since it was
    /// asked for.
    pub fn may_begin(&self, publication: &Publication) -> Result<(), Refusal> {
        let name = &publication.share;
        let share = self.objects.shares.get(name).ok_or_else(|| Refusal::NoShare(name.clone()))?;
        let namespace = &publication.pod.namespace;
        if publication.node {
            return if publication.wanted { Ok(()) } else { Err(Refusal::Withdrawn(name.clone())) };
        }
        if share.access == Access::ReadOnly && !publication.read_only {
            Err(Refusal::ReadOnly(name.clone()))
        } else if matches!(publication.errand, Some(Task::Delete { dry_run: false })) && !share.allow_delete {
            Err(Refusal::MayNotDelete(name.clone()))
        } else if publication.errand.is_some() {
            // What is deleted may be put in order for as long as it is known.
            Ok(())
        } else if self.returning.contains(&publication.id()) {
            Ok(())
        } else if self.objects.withdrawn.contains(name) {
            Err(Refusal::Withdrawn(name.clone()))
        } else if publication.inline && share.not_inline {
            Err(Refusal::NotInline(name.clone()))
        } else {
            // One that was not heard of yet may have any.
            let labels = self.namespaces.as_ref().and_then(|all| all.get(namespace));
            let allowed = share.namespaces.allow(namespace, labels);
            let (share, namespace) = (name.clone(), namespace.clone());
            match allowed {
                Some(true) => Ok(()),
                Some(false) => Err(Refusal::OtherNamespace { share, namespace }),
                None => Err(Refusal::UnknownLabels { share, namespace }),
            }
        }
    }
}

impl Desired {
    /// Whether another has the volume, which is one node's or one pod's alone.
    pub fn is_taken(&self, publication: &Publication, leases: &Leases) -> Result<(), Refusal> {
        let Some(sole) = publication.sole else { return Ok(()) };
        let volume = &publication.volume_id;
        if let Some(node) = leases.others.get(volume) {
            return Err(Refusal::OtherNode { volume: volume.clone(), node: node.clone() });
        }
        let mut others = self.publications.values().filter(|other| other.volume_id == *volume && other.is_pods());
        match others.find(|other| other.pod.uid != publication.pod.uid) {
            Some(Publication { pod, .. }) if sole == Sole::Pod => {
                let pod = format!("{}/{}", pod.namespace, pod.name);
                Err(Refusal::OtherPod { volume: volume.clone(), pod })
            }
            _ => Ok(()),
        }
    }

    /// The node mounts whose wanting must change, as the objects now are: each as it is to be.
    pub fn node_mount_changes(&self) -> Vec<Publication> {
        let there = self.publications.values().filter(|publication| publication.node);
        let turned = there.filter_map(|publication| {
            let is_wanted = self.asks_on_node(publication);
            // One that is to take the place of another comes when that is gone.
            (publication.wanted != is_wanted).then(|| Publication { wanted: is_wanted, ..publication.clone() })
        });
        let asked = self.objects.shares.values().filter_map(|share| self.on_node(&share.name));
        let is_here = |publication: &Publication| self.is_for_this_node(&publication.share).unwrap_or_default();
        let new = asked.filter(|asked| !self.publications.contains_key(&asked.id()) && is_here(asked));
        turned.chain(new).collect()
    }

    /// What a Share asks for on the node, unless its object is gone.
    fn on_node(&self, share: &Name) -> Option<Publication> {
        let share = self.objects.shares.get(share).filter(|share| !self.objects.withdrawn.contains(&share.name))?;
        Publication::of_node(share)
    }

    /// Its Share asks for this node mount, whether that is on record or not. As long as it is not known whether it is for this node
    /// what is on record stands.
    fn asks_on_node(&self, publication: &Publication) -> bool {
        let is_here = || self.is_for_this_node(&publication.share).unwrap_or(publication.wanted);
        self.on_node(&publication.share) == Some(Publication { wanted: true, ..publication.clone() }) && is_here()
    }

    /// None before the node's labels are known, if it depends on them.
    fn is_for_this_node(&self, share: &Name) -> Option<bool> {
        match &self.objects.shares.get(share)?.node_selector {
            None => Some(true),
            Some(selector) => self.labels.as_ref().map(|labels| selector.takes(labels)),
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
    #[error(
        "Share {share} is not for namespace {namespace:?}: its spec.namespaces must list it, or its spec.namespaceSelector take the namespace's labels"
    )]
    OtherNamespace { share: Name, namespace: String },
    #[error(
        "Share {0} is for PersistentVolumes alone (spec.inline: false): claim one by a StorageClass of the Share, and name the claim in the pod"
    )]
    NotInline(Name),
    #[error(
        "Share {share} is for namespaces by their labels, and those of {namespace:?} are not known yet: the API server must be asked first"
    )]
    UnknownLabels { share: Name, namespace: String },
    #[error("Share {0} has become ReadOnly; ask again")]
    ReadOnly(Name),
    #[error("nothing of Share {0} is deleted: its spec.allowDelete must be true for that")]
    MayNotDelete(Name),
    #[error(
        "volume {volume} is one node's at a time, and node {node} has it: its pods there must end first; should that node be gone for good, delete its Node object or taint it node.kubernetes.io/out-of-service"
    )]
    OtherNode { volume: String, node: String },
    #[error("volume {volume} is ReadWriteOncePod, and pod {pod} of this node has it")]
    OtherPod { volume: String, pod: String },
}

pub fn plan(desired: &Desired, observed: &Observed, now: Moment) -> Vec<Step> {
    let view = View::new(desired, observed, now);
    let mut steps = Vec::new();
    view.end(&mut steps);
    if let Some(shutdown) = &desired.shutdown {
        view.shut_down(shutdown, &mut steps);
    }
    for share in view.shares_in_use() {
        view.serve(share, &mut steps);
    }
    view.keep_namespaces(&mut steps);
    view.keep_ways(&mut steps);
    steps
}

/// Why a share waits, for people; None when it does not.
pub fn waiting(desired: &Desired, observed: &Observed, now: Moment, share: &Share) -> Option<Waiting> {
    let view = View::new(desired, observed, now);
    match view.seat(share) {
        Seat::Waiting(waiting) => Some(waiting),
        Seat::At { namespace, .. } if view.away(&namespace) && view.past_deadline(share, &namespace) => {
            Some(Waiting::PastDeadline)
        }
        Seat::At { namespace, .. } if view.away(&namespace) => Some(view.why_it_stays(share)),
        Seat::At { epoch, .. } if observed.stale.contains_key(&(share.name.clone(), epoch)) => Some(Waiting::Stale),
        Seat::At { epoch, .. } if view.left_behind(share, epoch) => Some(Waiting::Moving),
        Seat::At { .. } => None,
    }
}

/// Somebody waits for this end: a pod on its way out, or one whose share has a deadline. What is over for good, and what
/// nobody is on record for, ends as well when its turn comes.
pub fn has_no_time_to_lose(desired: &Desired, observed: &Observed, now: Moment, id: &SuperblockId) -> bool {
    let view = View::new(desired, observed, now);
    !view.superseded(id) && view.is_on_record(id)
}

/// Whether what containers hold makes a difference to what is to be done: it is dear to find out.
pub fn depends_on_containers(desired: &Desired, observed: &Observed, now: Moment) -> bool {
    let view = View::new(desired, observed, now);
    let written_and_away = |id: &SuperblockId| matches!(id.user, User::ReadWrite(_)) && view.away(&id.namespace);
    // A node mount that is not wanted any more stays as long as a container has it.
    let lingering = desired.publications.values().any(|publication| publication.node && !publication.wanted);
    desired.shutdown.is_some()
        || lingering
        || observed.superblocks.iter().any(|id| !view.needed(id) || view.is_ending(id) || written_and_away(id))
}

/// A node that shuts down need not wait for us any longer.
pub fn has_let_go(observed: &Observed) -> bool {
    let others = observed.ways.values().any(|way| observed.is_used(way));
    observed.superblocks.is_empty() && observed.ending.is_empty() && observed.namespaces.is_empty() && !others
}

pub fn health(desired: &Desired, observed: &Observed, now: Moment, superblock: &SuperblockId) -> Health {
    let view = View::new(desired, observed, now);
    if observed.tunnel(&superblock.namespace) == Some(Tunnel::Fenced) {
        Health::Fenced
    } else if view.superseded(superblock) {
        Health::FailingOver
    } else if !view.needed(superblock) {
        Health::Unmounting
    } else if view.away(&superblock.namespace) {
        Health::Hung
    } else if view.stale(superblock) {
        Health::Stale
    } else {
        Health::Healthy
    }
}

/// A newer epoch has taken its place.
pub fn superseded(observed: &Observed, id: &SuperblockId) -> bool {
    observed.superblocks.iter().any(|other| other.succeeds(id))
}

struct View<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    now: Moment,
    /// Who wants a superblock of which share.
    wanted_by: BTreeSet<(&'a Name, User)>,
    /// And the newest epoch that is mounted for each.
    newest: BTreeMap<(&'a Name, User), u32>,
}

impl<'a> View<'a> {
    fn new(desired: &'a Desired, observed: &'a Observed, now: Moment) -> Self {
        let wanted = desired.publications.values().filter(|publication| publication.is_served());
        let mut newest = BTreeMap::new();
        for id in &observed.superblocks {
            let epoch = newest.entry((&id.share, id.user)).or_insert(id.epoch);
            *epoch = id.epoch.max(*epoch);
        }
        let wanted_by = wanted.map(|publication| (&publication.share, publication.user())).collect();
        Self { desired, observed, now, wanted_by, newest }
    }

    fn keep_namespaces(&self, steps: &mut Vec<Step>) {
        let gateways: BTreeMap<&Name, &Gateway> = self
            .shares_in_use()
            .filter_map(|share| self.gateway(share))
            .chain(self.gateways_on_ways())
            .map(|gateway| (&gateway.name, gateway))
            .collect();
        for gateway in gateways.values() {
            for target in &gateway.targets {
                let target = TargetId { gateway: gateway.name.clone(), target: target.name.clone() };
                match self.open_namespace(&target) {
                    // Not one that is about to be fenced, or a packet might pass in between.
                    Some((id, Tunnel::Detached)) if !steps.contains(&Step::Fence(id.clone())) => {
                        steps.push(Step::AttachTunnel(id.clone()));
                    }
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
            } else if !empty && *tunnel == Tunnel::Detached && !wanted && self.leads_to_its_target(id) {
                // An agent that began when all pods had gone: what they left is written, and taken down, over this way.
                steps.push(Step::AttachTunnel(id.clone()));
            }
        }
    }

    /// Its target is configured, and no newer namespace leads there.
    fn leads_to_its_target(&self, id: &NamespaceId) -> bool {
        let gateway = self.desired.objects.gateways.get(&id.target.gateway);
        let known = gateway.is_some_and(|gateway| gateway.target(&id.target.target).is_some());
        known && self.open_namespace(&id.target).is_some_and(|(newest, _)| newest == id)
    }

    fn serve(&self, share: &Share, steps: &mut Vec<Step>) {
        let Seat::At { epoch, namespace } = self.seat(share) else { return };
        // Mounted first, and shown to nobody: a server that answers and can't be mounted is not worth a fence.
        let fence = self.must_be_fenced_before(share, epoch, &namespace);
        if let Some(fence) = &fence
            && self.observed.superblocks.iter().any(|id| id.share == share.name && id.epoch == epoch)
        {
            steps.push(Step::Fence(fence.clone()));
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
            let may_come = there || self.desired.may_begin(publication).is_ok() && self.is_granted(publication);
            // What containers were given of a node mount moves with its share, though the node itself does not have it any
            // more.
            if !may_come && !self.is_held(publication) || self.is_ending(&superblock) {
                continue;
            }
            if !self.observed.superblocks.contains(&superblock) {
                if usable && missing.insert(superblock.clone()) {
                    let round_trip = self.observed.servers.get(&namespace).and_then(|server| server.round_trip);
                    steps.push(Step::Mount(superblock, Tuning::of(&share.options, round_trip)));
                }
                continue;
            }
            // A target that is not empty is refused by the executor, and its error reaches the caller. Of a server that
            // is away nothing is published: kubelet and the runtime look at what they are given, and would block.
            if !there && may_come && usable && fence.is_none() && !self.is_leaving(publication) {
                steps.push(Step::Publish(id, superblock));
            }
        }
        if fence.is_some() {
            return;
        }
        for old in self.observed.superblocks.iter().filter(|old| old.share == share.name && old.epoch < epoch) {
            let new = SuperblockId { epoch, namespace: namespace.clone(), ..old.clone() };
            let there = self.observed.superblocks.contains(&new) && !self.is_ending(&new);
            if there && self.needed(&new) && self.seen_on_top(old) {
                steps.push(Step::Replace { old: old.clone(), new });
            }
        }
    }

    /// No other node has its volume, or may have it meanwhile.
    fn is_granted(&self, publication: &Publication) -> bool {
        publication.sole.is_none() || self.observed.leases.held.contains(&publication.volume_id)
    }

    /// Nothing may rest on it any more.
    fn is_ending(&self, id: &SuperblockId) -> bool {
        self.observed.ending.contains(id)
            || self.observed.clearing.contains(id)
            || self.observed.given_up.contains(id) && self.observed.superblocks.contains(id)
    }

    /// Those that are there, about to be, or not quite gone.
    fn all_superblocks(&self) -> impl Iterator<Item = &'a SuperblockId> + use<'a> {
        self.observed.superblocks.iter().chain(&self.observed.beginning).chain(&self.observed.ending)
    }

    /// A wanted publication still rests on an earlier epoch.
    fn left_behind(&self, share: &Share, epoch: u32) -> bool {
        self.observed.superblocks.iter().any(|id| id.share == share.name && id.epoch < epoch && self.needed(id))
    }

    /// None of a node that shuts down.
    fn shares_in_use(&self) -> impl Iterator<Item = &'a Share> + use<'a> {
        let served = self.desired.publications.values().filter(|p| p.is_served() && self.desired.shutdown.is_none());
        let names: BTreeSet<&Name> = served.map(|p| &p.share).collect();
        names.into_iter().filter_map(|name| self.desired.objects.shares.get(name))
    }

    fn wanted(&self, share: &Share) -> impl Iterator<Item = (PublicationId, &'a Publication)> {
        self.desired.publications.iter().filter(|(_, p)| p.is_served() && p.share == share.name).map(|(id, p)| (*id, p))
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

    /// What is written there may still reach its server, now or once it is attached again.
    fn is_open(&self, namespace: &NamespaceId) -> bool {
        matches!(self.observed.tunnel(namespace), Some(Tunnel::Attached | Tunnel::Detached))
    }

    /// Its server does not answer, or the way there is cut.
    fn away(&self, namespace: &NamespaceId) -> bool {
        self.observed.tunnel(namespace) == Some(Tunnel::Fenced)
            || self.observed.liveness(namespace, self.now) == Liveness::Away
    }

    fn stale(&self, id: &SuperblockId) -> bool {
        self.stale_since(id).is_some()
    }

    fn stale_since(&self, id: &SuperblockId) -> Option<Moment> {
        self.observed.stale.get(&(id.share.clone(), id.epoch)).copied()
    }

    fn superseded(&self, id: &SuperblockId) -> bool {
        self.newest.get(&(&id.share, id.user)).is_some_and(|newest| *newest > id.epoch)
    }

    /// A wanted publication rests on it, or will until it is replaced.
    fn needed(&self, id: &SuperblockId) -> bool {
        self.wanted_by.contains(&(&id.share, id.user)) && !self.superseded(id)
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
