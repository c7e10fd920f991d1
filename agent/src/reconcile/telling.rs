//! What the loop tells of what it does. Nothing is decided here.

use std::collections::BTreeMap;

use moorline_shared::happening::Happening;
use moorline_shared::id::{PublicationId, User};
use moorline_shared::observed::{Liveness, Moment, Observed, Tunnel};
use moorline_shared::plan::{self, Step};

use super::Reconciler;
use crate::host::StepError;

impl Reconciler {
    /// The one way by which a moment gets into the log, to who asks for events, and into the counts.
    pub(super) fn tell(&self, happening: &Happening) {
        self.window.chronicle.tell(happening);
    }

    pub(super) fn tell_done(&mut self, step: &Step) {
        let publication = match step {
            Step::Publish(id, _) | Step::Hide(id) | Step::Unpublish(id) => self.desired.publications.get(id).cloned(),
            _ => None,
        };
        if let Step::Publish(id, _) = step
            && let Some(asked) = self.asked.remove(id)
        {
            self.window.metrics.published_after((self.clock)().saturating_sub(asked));
        }
        if let Some(happening) = Happening::of_done(step, publication) {
            self.tell(&happening);
        }
    }

    /// A publication is new: how long it takes is measured from here.
    pub(super) fn tell_publishing(&mut self, id: PublicationId) {
        self.asked.insert(id, (self.clock)());
        if let Some(publication) = self.desired.publications.get(&id).filter(|it| it.errand.is_none()) {
            self.tell(&Happening::Publishing(publication.clone()));
        }
    }

    pub(super) fn tell_failed(&mut self, step: &Step, error: &StepError, message: &str, is_new: bool) {
        self.window.metrics.step_failed(step);
        // Copies that must stay where they are don't make it less of a failover for all others.
        if matches!(error, StepError::Partly { replaced: 1.., .. }) {
            self.tell_done(step);
        }
        if is_new {
            self.tell(&Happening::StepFailed { step: step.clone(), message: message.to_owned() });
        }
    }

    pub(super) fn tell_what_is_lost(&mut self, step: &Step) {
        let (Step::Abort(superblock) | Step::Retire { superblock, abort: true }) = step else { return };
        if !self.said_aborting.insert(superblock.clone()) {
            return;
        }
        let publication = match superblock.user {
            User::ReadOnly | User::Node(_) => None,
            User::ReadWrite(id) => self.desired.publications.get(&id).cloned(),
        };
        self.tell(&Happening::Aborting { superblock: superblock.clone(), publication });
    }

    pub(super) fn tell_how_servers_are(&mut self, observed: &Observed, now: Moment) {
        for (namespace, server) in &observed.servers {
            let liveness = server.liveness(now);
            let open = observed.tunnel(namespace) == Some(Tunnel::Attached);
            if !open || liveness == Liveness::Unknown || self.said_servers.get(namespace) == Some(&liveness) {
                continue;
            }
            self.said_servers.insert(namespace.clone(), liveness);
            let namespace = namespace.clone();
            if liveness == Liveness::Alive {
                // What its next outage costs is to be told again.
                self.said_aborting.retain(|superblock| superblock.namespace != namespace);
            }
            self.tell(&match liveness {
                Liveness::Away => Happening::ServerAway { namespace, silent: server.silence(now) },
                Liveness::Alive | Liveness::Unknown => Happening::ServerAlive { namespace },
            });
        }
        self.said_servers.retain(|namespace, _| observed.servers.contains_key(namespace));
    }

    pub(super) fn tell_what_waits(&mut self, observed: &Observed, now: Moment) {
        let mut waits = BTreeMap::new();
        if self.desired.shutdown.is_some() {
            return;
        }
        for share in self.desired.objects.shares.values() {
            let in_use = self
                .desired
                .publications
                .values()
                .any(|publication| publication.wanted && publication.share == share.name);
            if let Some(waiting) = plan::waiting(&self.desired, observed, now, share).filter(|_| in_use) {
                if self.said_waiting.get(&share.name) != Some(&waiting) {
                    self.tell(&Happening::ShareWaits { share: share.name.clone(), reason: waiting.explain(share) });
                }
                waits.insert(share.name.clone(), waiting);
            } else if in_use && self.said_waiting.contains_key(&share.name) {
                self.tell(&Happening::ShareServed { share: share.name.clone() });
            }
        }
        self.said_waiting = waits;
    }
}
