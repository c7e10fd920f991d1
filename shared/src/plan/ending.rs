//! What is no longer wanted, and what must not wait for its server.

use std::time::Duration;

use super::{Step, View};
use crate::id::{NamespaceId, PublicationId, SuperblockId, User};
use crate::observed::Occupants;
use crate::share::{Policy, Share};

/// How long before the end of its grace period a pod's own superblock is aborted, or half of that period. What waits in it
/// needs time to end, and then runtime and kubelet some seconds to take the pod down.
const LAST_CALL: Duration = Duration::from_secs(10);

impl View<'_> {
    /// What is no longer wanted goes first.
    pub(super) fn end(&self, steps: &mut Vec<Step>) {
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
            } else if away && self.shares_past_deadline(id) {
                // Everybody on it chose this with the Share. What comes later fails as well, until a server is back.
                steps.push(Step::Abort(id.clone()));
            }
        }
    }

    fn shares_past_deadline(&self, id: &SuperblockId) -> bool {
        self.desired.objects.shares.get(&id.share).is_some_and(|share| self.past_deadline(share, &id.namespace))
    }

    /// A bounded share's server was away for longer than it may be.
    pub(super) fn past_deadline(&self, share: &Share, namespace: &NamespaceId) -> bool {
        let out_for = self.observed.servers.get(namespace).map(|server| server.out_for(self.now));
        matches!((share.policy, out_for), (Policy::Bounded { after }, Some(out_for)) if out_for >= after)
    }

    /// While its server is away: whether nobody waits any more for what this pod has not written yet.
    pub(super) fn may_lose(&self, id: PublicationId) -> bool {
        let occupants = self.observed.occupants.get(&id);
        let Some(publication) = self.desired.publications.get(&id) else { return true };
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
