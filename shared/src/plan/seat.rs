//! Where a share is served, and when it moves.

use super::View;
use crate::gateway::Gateway;
use crate::id::{NamespaceId, SuperblockId, TargetId};
use crate::observed::{Liveness, Moment, Tunnel};
use crate::share::{Access, Policy, Share};

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
    /// The server in force is away, and what its writers left can't be kept from it: no other may serve them.
    CannotFence,
    /// The server in force is away, and its gateway does not say that the others hold the same data.
    DataNotShared,
    /// Another target may take over, and does when it is this node's turn.
    Turn,
    /// It was given a successor, and not all of it is there yet.
    Moving,
    /// Its server does not know its root any more, and none lets us mount it anew.
    Stale,
    /// The server in force is away for longer than the share's deadline: what is asked of it fails.
    PastDeadline,
}

impl Waiting {
    /// In words for people, with the likely cure.
    pub fn explain(self, share: &Share) -> String {
        let Share { name, gateway, .. } = share;
        let meanwhile = |until: &str| match share.policy {
            Policy::Hard => format!("I/O blocks until {until}"),
            policy => format!("I/O ends with an error in its time ({policy}), until {until}"),
        };
        match self {
            Self::NoTarget => format!(
                "Share {name} waits: no target of Gateway {gateway} answers yet; are their endpoints, keys and servers right, and is UDP open on the way?"
            ),
            Self::NoSuccessor => format!(
                "Share {name} waits: its server is away, and no other target of Gateway {gateway} answers; {}",
                meanwhile("one does")
            ),
            Self::Turn => format!(
                "Share {name} is about to be mounted from another target of Gateway {gateway}, since its server is away; nodes do that one after the other (--recovery-jitter)"
            ),
            Self::Moving => format!(
                "Share {name} is being mounted anew from a target of Gateway {gateway}, since its server is away or stale: I/O blocks or fails until that is done"
            ),
            Self::CannotFence => format!(
                "Share {name} waits: its server is away, Gateway {gateway} is on the node's own network (direct, or scope: host), and this kernel can't keep unwritten data from the old server (that needs Linux 6.4); a ReadWrite share stays where it is; {}",
                meanwhile("the server is back")
            ),
            Self::Stale => format!(
                "Share {name} is stale: its server answers and does not know {} any more; is it exported again, as it was? It is mounted anew as soon as that works",
                share.export
            ),
            Self::PastDeadline => format!(
                "Share {name} fails: its server has been away for longer than its policy allows ({}); I/O ends with an error until a server is back",
                share.policy
            ),
            Self::DataNotShared => format!(
                "Share {name} waits: its server is away, and Gateway {gateway} does not say that its targets share their data (sharedData: true), so a ReadWrite share stays where it is; {}",
                meanwhile("the server is back")
            ),
        }
    }
}

impl<'a> View<'a> {
    /// The share's highest epoch is where it is; it moves when that server is away, or fenced, and another may serve.
    pub(super) fn seat(&self, share: &Share) -> Seat {
        // A mount that is under way counts: a second one elsewhere would be its equal.
        let current = self.all_superblocks().filter(|id| id.share == share.name).max_by_key(|id| id.epoch);
        let ready = |target: &TargetId| {
            let (id, tunnel) = self.open_namespace(target)?;
            let ready = *tunnel == Tunnel::Attached && self.observed.liveness(id, self.now) == Liveness::Alive;
            ready.then(|| id.clone())
        };
        let Some(current) = current else {
            // The first that is not away: one that was not asked often enough yet is waited for, in its turn. One that was
            // asked and can't be mounted is the last resort.
            let known_away = |target: &TargetId| self.open_namespace(target).is_some_and(|(id, _)| self.away(id));
            let mut there: Vec<TargetId> = self.may_serve(share).filter(|target| !known_away(target)).collect();
            there.sort_by_key(|target| self.unmountable(share, target));
            let first = there.first().and_then(ready);
            return first.map_or(Seat::Waiting(Waiting::NoTarget), |namespace| Seat::At { epoch: 1, namespace });
        };
        let cut_off = !self.is_open(&current.namespace);
        let stay = Seat::At { epoch: current.epoch, namespace: current.namespace.clone() };
        let next = |namespace| Seat::At { epoch: current.epoch + 1, namespace };
        let its_turn = |since: Moment| self.now >= since + self.desired.jitter.before_leaving(&current.namespace);
        if !cut_off && !self.away(&current.namespace) {
            let remount = self.stale_since(current).filter(|since| its_turn(*since));
            let anew = remount.is_some() || self.has_lost_one(share, current.epoch);
            return Some(current).filter(|_| anew).and_then(|old| self.remount(share, old)).map_or(stay, next);
        }
        let old = self.observed.servers.get(&current.namespace);
        let may_succeed = |id: &NamespaceId| {
            let server = self.observed.servers.get(id);
            server.is_some_and(|server| old.is_none_or(|old| server.may_succeed(old, self.now)))
        };
        let may_mount = |target: &TargetId| !self.unmountable(share, target);
        let successor = |target: TargetId| ready(&target).filter(may_succeed);
        match self.may_serve(share).filter(may_mount).find_map(successor) {
            Some(namespace) if namespace != current.namespace => {
                if old.is_none_or(|old| its_turn(old.given_up())) {
                    next(namespace)
                } else {
                    Seat::Waiting(Waiting::Turn)
                }
            }
            _ if cut_off => Seat::Waiting(Waiting::NoSuccessor),
            _ => stay,
        }
    }

    /// A fence that was begun, and not ended, has shut down a superblock that pods see: it serves nobody any more.
    fn has_lost_one(&self, share: &Share, epoch: u32) -> bool {
        let mut given_up = self.observed.given_up.iter().filter(|id| id.share == share.name && id.epoch == epoch);
        given_up.any(|id| self.needed(id) && self.seen_somewhere(id))
    }

    /// Where a share goes whose server does not know its root any more: to the same server, if it lets us; another is for
    /// readers only. Writers would cost the way to the old server, on which other shares are well.
    fn remount(&self, share: &Share, current: &SuperblockId) -> Option<NamespaceId> {
        let alive = |id: &NamespaceId| {
            self.observed.tunnel(id) == Some(Tunnel::Attached)
                && self.observed.liveness(id, self.now) == Liveness::Alive
                && !self.unmountable(share, &id.target)
        };
        let written = self
            .all_superblocks()
            .any(|id| id.share == share.name && id.user.writes() && id.namespace == current.namespace);
        let same = Some(current.namespace.clone()).filter(alive);
        let mut others = self.may_serve(share).filter(|_| !written).filter_map(|target| self.open_namespace(&target));
        same.or_else(|| others.find_map(|(id, _)| Some(id.clone()).filter(alive)))
    }

    fn unmountable(&self, share: &Share, target: &TargetId) -> bool {
        self.observed.unmountable.contains(&(share.name.clone(), target.clone()))
    }

    pub(super) fn why_it_stays(&self, share: &Share) -> Waiting {
        match self.gateway(share) {
            Some(gateway) if share.access == Access::ReadWrite && gateway.targets.len() > 1 => match () {
                () if !gateway.shared_data => Waiting::DataNotShared,
                () if !self.can_be_fenced(gateway) => Waiting::CannotFence,
                () => Waiting::NoSuccessor,
            },
            _ => Waiting::NoSuccessor,
        }
    }

    /// Whether what writers left on a server can be kept from it for good: with a tunnel of its own by that one's end, on the
    /// node's own network by the kernel, where it knows how.
    fn can_be_fenced(&self, gateway: &Gateway) -> bool {
        !gateway.is_on_host() || self.observed.can_shut_down
    }

    /// The targets that may serve a share, in order. Where targets do not share their data, what was written to the
    /// first is nowhere else: a read-write share stays with it.
    fn may_serve(&self, share: &Share) -> impl Iterator<Item = TargetId> + use<'a> {
        let gateway = self.gateway(share);
        let may_move = |gateway: &Gateway| gateway.shared_data && self.can_be_fenced(gateway);
        let one_only = share.access == Access::ReadWrite && gateway.is_some_and(|gateway| !may_move(gateway));
        let targets = gateway.map_or(&[][..], |gateway| &gateway.targets);
        let gateway = share.gateway.clone();
        targets[..if one_only { targets.len().min(1) } else { targets.len() }]
            .iter()
            .map(move |target| TargetId { gateway: gateway.clone(), target: target.name.clone() })
    }

    /// A read-write superblock may hold unwritten data. Before another server takes writes, the way to the old one
    /// is cut for good, or a healed partition would let old data overwrite new.
    ///
    /// A new mount of the same server needs none: what is written late goes to the same files as before.
    pub(super) fn must_be_fenced_before(&self, share: &Share, epoch: u32, new: &NamespaceId) -> Option<NamespaceId> {
        self.all_superblocks()
            .find(|id| {
                id.share == share.name
                    && id.epoch < epoch
                    && id.namespace != *new
                    && id.user.writes()
                    && (self.is_open(&id.namespace) || self.has_escaped(share, id))
            })
            .map(|id| id.namespace.clone())
    }

    /// On the node's own network a fence ends each writer by itself, and knows nothing of one whose mount was under way.
    fn has_escaped(&self, share: &Share, id: &SuperblockId) -> bool {
        let on_host = self.gateway(share).is_some_and(Gateway::is_on_host);
        on_host
            && self.observed.can_shut_down
            && self.observed.superblocks.contains(id)
            && !self.observed.ended.contains(id)
    }
}
