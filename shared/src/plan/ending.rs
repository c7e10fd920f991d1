//! What is no longer wanted, and what must not wait for its server.

use std::time::Duration;

use super::{Step, View};
use crate::id::{NamespaceId, PublicationId, SuperblockId, User};
use crate::observed::{Copies, Occupants, Tunnel};
use crate::publication::Publication;
use crate::share::{Access, Share};

/// How long before the end of its grace period a pod's own superblock is aborted, or half of that period. What waits in it
/// needs time to end, and then runtime and kubelet some seconds to take the pod down.
const LAST_CALL: Duration = Duration::from_secs(10);

impl View<'_> {
    /// What is no longer wanted goes first.
    pub(super) fn end(&self, steps: &mut Vec<Step>) {
        let unwanted = self.desired.publications.iter().filter(|(_, p)| !p.wanted && !self.is_held(p));
        steps.extend(unwanted.map(|(id, _)| Step::Unpublish(*id)));
        let in_the_way =
            self.desired.publications.iter().filter(|(id, p)| p.wanted && self.may_hold_kubelet_up(**id, p));
        steps.extend(in_the_way.map(|(id, _)| Step::Hide(*id)));
        self.end_husks(steps);
        for id in &self.observed.superblocks {
            let away = self.away(&id.namespace);
            let given_up = self.observed.given_up.contains(id);
            let is_past = self.superseded(id) || self.cannot_come_back(id);
            if is_past && self.seen_somewhere(id) {
                // Descriptors, mappings and locks that are still on it must not wait for a server that is given up.
                steps.push(Step::Abort(id.clone()));
            } else if (given_up || !self.needed(id) && !self.is_being_given_back(id))
                && !self.seen_somewhere(id)
                && !self.observed.beginning.contains(id)
                && !self.may_be_written_unseen(id)
            {
                let abort = given_up || away || self.superseded(id);
                if !self.observed.lingering.contains(id) {
                    steps.push(Step::Retire { superblock: id.clone(), abort });
                } else if abort && self.desired.shutdown.is_none() {
                    // The hand that lingers may itself wait behind a call to that server.
                    steps.push(Step::Abort(id.clone()));
                }
            } else if let User::ReadWrite(publication) = id.user
                && away
                && (self.may_lose(publication) || !self.needed(id) && self.is_on_record(id))
            {
                steps.push(Step::Abort(id.clone()));
            } else if away && self.shares_past_deadline(id) {
                // Everybody on it chose this with the Share. What comes later fails as well, until a server is back.
                steps.push(Step::Abort(id.clone()));
            }
        }
    }

    /// Nothing reaches its server through it any more, or does now, and nobody is on record for whom it would move to another:
    /// a container keeps it that merely saw a node mount, or a copy of its own.
    fn cannot_come_back(&self, id: &SuperblockId) -> bool {
        let gateway = self.desired.objects.gateways.get(&id.namespace.target.gateway);
        // On the node's own network a fence ends those that write, and readers come back with their server.
        let is_cut_off = id.user.writes() || gateway.is_none_or(|gateway| !gateway.is_on_host());
        let fenced = self.observed.tunnel(&id.namespace) == Some(Tunnel::Fenced);
        // A node mount is on record as long as a container has it that was given it. Of the others, writers that were killed
        // must not wait for a server that may never be back; readers end by themselves.
        let occupants = || self.observed.copies.get(id).and_then(|copies| copies.occupants);
        let held_by_the_dead = id.user == User::Node(Access::ReadWrite)
            && self.away(&id.namespace)
            && occupants() == Some(Occupants::Killed);
        (fenced && is_cut_off || held_by_the_dead) && !self.needed(id) && !self.is_being_given_back(id)
    }

    /// A program of the node's may have a file of a node mount open that was detached from it when its share was mounted anew
    /// from the same server, and may write to it at any time. No table shows that, and not every kernel can keep it from doing
    /// so. The base mount stays as what is known of it, so that the way is cut before another server takes writes.
    fn may_be_written_unseen(&self, id: &SuperblockId) -> bool {
        let newer = |other: &&SuperblockId| other.share == id.share && other.epoch > id.epoch;
        let moved_on = || self.observed.superblocks.iter().filter(newer).any(|other| self.needed(other));
        id.user == User::Node(Access::ReadWrite)
            && !self.observed.given_up.contains(id)
            && self.desired.shutdown.is_none()
            && self.is_open(&id.namespace)
            && moved_on()
    }

    /// A publication rests on it, or did until it was taken back.
    pub(super) fn is_on_record(&self, id: &SuperblockId) -> bool {
        self.desired
            .publications
            .values()
            .any(|publication| publication.share == id.share && publication.user() == id.user)
    }

    /// A hand that was given up and that the kernel holds may put one more layer over a target: it is known for ours, and
    /// taken away, for as long as its base mount is there. A node mount that is not wanted any more may be held for long, and
    /// is served until then: what it has left behind ends as that of all others.
    fn is_being_given_back(&self, id: &SuperblockId) -> bool {
        let of_it = |publication: &Publication| publication.share == id.share && publication.user() == id.user;
        let stays = |publication: &Publication| publication.node && self.superseded(id);
        let given_back = |publication: &Publication| !publication.wanted && of_it(publication) && !stays(publication);
        self.desired.publications.values().any(given_back)
    }

    /// Kubelet is about to look at it, and its look would wait for a server that is away. Whether it is nobody knows before
    /// some questions went unanswered, and a look that has begun by then can't be called back. So what is known to be leaving
    /// does not wait for that; what is merely no more may be somebody's mistake.
    fn may_hold_kubelet_up(&self, id: PublicationId, publication: &Publication) -> bool {
        let (share, user) = (&publication.share, publication.user());
        let in_force = self.observed.superblocks.iter().filter(|it| it.share == *share && it.user == user);
        let newest = in_force.max_by_key(|superblock| superblock.epoch);
        let is_away = || newest.is_some_and(|superblock| self.away(&superblock.namespace));
        !publication.node
            && self.observed.shown.contains(&id)
            && (self.is_leaving(publication) || self.observed.is_ending(&publication.pod.uid) && is_away())
    }

    /// Its pod was asked to end: its containers have what they have, and kubelet starts none any more.
    pub(super) fn is_leaving(&self, publication: &Publication) -> bool {
        !publication.node && self.observed.pods.is_leaving(&publication.pod.uid)
    }

    /// A container has it from a node mount: what was given to it stays, and moves with its share. Whoever merely sees the
    /// directory above loses it when its Share says so, and not because the object is gone, which may be a mishap. A share
    /// that is wanted at another place of the node is kept up there, for all who have it.
    pub(super) fn is_held(&self, publication: &Publication) -> bool {
        if !publication.node {
            return false;
        }
        // That it is asked for again could not be put on record yet.
        if self.desired.asks_on_node(publication) {
            return true;
        }
        let share = &publication.share;
        let elsewhere = |other: &Publication| {
            other.node && other.wanted && other.share == *share && other.user() == publication.user()
        };
        if self.desired.publications.values().any(elsewhere) {
            return false;
        }
        let objects = &self.desired.objects;
        let meant = objects.shares.contains_key(share) && !objects.withdrawn.contains(share);
        let of_it = |id: &SuperblockId| id.share == *share && id.user == publication.user();
        let held = |copies: &Copies| if meant { copies.bound > 0 } else { copies.all > 0 };
        self.observed.copies.iter().any(|(id, copies)| of_it(id) && held(copies))
    }

    /// What is left of a mount that was cut short, if nobody is about to mount it after all.
    fn end_husks(&self, steps: &mut Vec<Step>) {
        let idle = |id: &&SuperblockId| !self.observed.beginning.contains(*id) && !self.needed(id);
        let husks = self.observed.husks.iter().filter(idle).cloned();
        steps.extend(husks.map(Step::Clear));
    }

    fn shares_past_deadline(&self, id: &SuperblockId) -> bool {
        self.desired.objects.shares.get(&id.share).is_some_and(|share| self.past_deadline(share, &id.namespace))
    }

    /// Its server was away for longer than the share's policy allows.
    pub(super) fn past_deadline(&self, share: &Share, namespace: &NamespaceId) -> bool {
        let out_for = self.observed.servers.get(namespace).map(|server| server.out_for(self.now));
        share.patience().zip(out_for).is_some_and(|(patience, out_for)| out_for >= patience)
    }

    /// While its server is away: whether nobody waits any more for what this pod has not written yet.
    pub(super) fn may_lose(&self, id: PublicationId) -> bool {
        let occupants = self.observed.occupants.get(&id);
        // A record may be lost or not be readable, and its pod live.
        let Some(publication) = self.desired.publications.get(&id) else {
            return occupants != Some(&Occupants::Living);
        };
        let pods = &self.observed.pods;
        occupants == Some(&Occupants::Killed)
            || match pods.known.get(&publication.pod.uid) {
                Some(None) => false,
                Some(Some(deletion)) => {
                    let grace = deletion.ends.saturating_sub(deletion.asked);
                    self.now + LAST_CALL.min(grace / 2) >= deletion.ends
                }
                // One that was just made may be here before the word of it is: it lives.
                None => pods.complete && occupants == Some(&Occupants::Ending),
            }
    }
}
