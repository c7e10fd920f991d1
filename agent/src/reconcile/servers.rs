//! What is known of servers: a prober for each, and what their silence means.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use moorline_shared::happening::Happening;
use moorline_shared::id::{NamespaceId, SuperblockId};
use moorline_shared::name::Name;
use moorline_shared::observed::{Liveness, Observed, Server, Tunnel};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use super::{Clock, Event, Reconciler};
use crate::host::{Host, Look};
use crate::probe::{PAUSE, Question};

impl Reconciler {
    /// A prober for each namespace that leads somewhere.
    pub(super) fn probe(&mut self, observed: &Observed) {
        let open = |id: &NamespaceId| observed.namespaces.get(id) == Some(&Tunnel::Attached);
        // One whose patience is another by now is asked by another prober.
        let (gateways, servers, now) = (&self.desired.objects.gateways, &self.servers, (self.clock)());
        let as_asked = |id: &NamespaceId| {
            gateways.get(&id.target.gateway).zip(servers.get(id)).is_none_or(|(gateway, server)| {
                server.away_after == gateway.away_after || !server.may_be_given(gateway.away_after, now)
            })
        };
        self.probers.retain(|id, prober| {
            let stays = open(id) && as_asked(id);
            if !stays {
                prober.abort();
            }
            stays
        });
        self.servers.retain(|id, _| observed.namespaces.contains_key(id));
        for id in observed.namespaces.keys().filter(|id| open(id)) {
            if self.probers.contains_key(id) {
                continue;
            }
            let gateway = self.desired.objects.gateways.get(&id.target.gateway);
            let Some((gateway, target)) =
                gateway.and_then(|gateway| Some((gateway, gateway.target(&id.target.target)?)))
            else {
                continue;
            };
            let question = Question {
                namespace: self.host.paths().namespace(id),
                server: target.server,
                // Two of them, and the pauses, fit into the time that it may be silent.
                patience: gateway.away_after / 2,
            };
            let now = (self.clock)();
            let server = self.servers.entry(id.clone()).or_insert_with(|| Server::new(gateway.away_after, now));
            if server.may_be_given(gateway.away_after, now) {
                server.away_after = gateway.away_after;
            }
            self.probers.insert(
                id.clone(),
                tokio::spawn(ask_for_ever(
                    self.host.clone(),
                    question,
                    id.clone(),
                    self.clock.clone(),
                    self.events.clone(),
                )),
            );
        }
    }

    /// Whether it changes what is thought of the server.
    pub(super) fn note_probe(&mut self, namespace: &NamespaceId, answer: Option<Duration>) -> bool {
        let now = (self.clock)();
        let Some(server) = self.servers.get_mut(namespace) else { return false };
        let before = server.liveness(now);
        server.asked(now, answer);
        before != server.liveness(now)
    }

    /// Of each share the mounts in the epoch that is in force are looked at in turn, as long as their server answers. Most
    /// of the time all of them have one root; one that was mounted after its export was replaced has another.
    pub(super) fn look(&mut self, observed: &Observed) {
        let now = (self.clock)();
        let mut in_force: BTreeMap<&Name, u32> = BTreeMap::new();
        for id in &observed.superblocks {
            let newest = in_force.entry(&id.share).or_insert(id.epoch);
            *newest = id.epoch.max(*newest);
        }
        let mut wanted: BTreeMap<(Name, u32), BTreeSet<&SuperblockId>> = BTreeMap::new();
        for id in observed.superblocks.iter().filter(|id| in_force.get(&id.share) == Some(&id.epoch)) {
            if observed.liveness(&id.namespace, now) == Liveness::Alive {
                wanted.entry((id.share.clone(), id.epoch)).or_default().insert(id);
            }
        }
        self.lookers.retain(|which, looker| {
            if !wanted.contains_key(which) {
                looker.task.abort();
            }
            wanted.contains_key(which)
        });
        let there: BTreeSet<(Name, u32)> = observed.superblocks.iter().map(|id| (id.share.clone(), id.epoch)).collect();
        self.stale.retain(|which, _| there.contains(which));
        self.usage.retain(|share, _| there.iter().any(|(there, _)| there == share));
        for (which, ids) in wanted {
            let before = self.lookers.get(&which);
            if before.is_some_and(|looker| !looker.task.is_finished()) {
                continue;
            }
            let next = ids.iter().find(|id| before.is_none_or(|looker| looker.at < ***id)).or(ids.first());
            let Some(at) = next.map(|id| (*id).clone()) else { continue };
            // The first has nobody to wait for: kubelet may ask for what it brings.
            let pause = if before.is_some() { BETWEEN_LOOKS } else { Duration::ZERO };
            let task = tokio::spawn(look_later(pause, self.host.clone(), at.clone(), self.events.clone()));
            self.lookers.insert(which, Looker { at, task });
        }
    }

    /// Whether it changes what is thought of the share.
    pub(super) fn note_look(&mut self, which: (Name, u32), seen: Look) -> bool {
        if let Look::Serves(usage) = seen {
            self.usage.insert(which.0.clone(), ((self.clock)(), usage));
        }
        let stale = seen == Look::Stale;
        let changed = self.stale.contains_key(&which) != stale;
        if stale {
            if changed {
                self.tell(&Happening::ShareStale { share: which.0.clone() });
            }
            let now = (self.clock)();
            self.stale.entry(which).or_insert(now);
        } else {
            self.stale.remove(&which);
        }
        changed
    }
}

/// Each look costs a process, so there are fewer of them than questions to servers.
const BETWEEN_LOOKS: Duration = Duration::from_secs(3);
/// Of a look that takes longer nothing is learnt: whether its server is there the prober knows.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);

/// A look that is under way, or the last that was.
pub(super) struct Looker {
    at: SuperblockId,
    task: JoinHandle<()>,
}

async fn look_later(pause: Duration, host: Arc<Host>, superblock: SuperblockId, events: mpsc::Sender<Event>) {
    tokio::time::sleep(pause).await;
    let Some(seen) = host.look(&superblock, LOOK_PATIENCE).await else { return };
    let (share, epoch) = (superblock.share, superblock.epoch);
    // The loop ends before this only when the process does.
    let _ = events.send(Event::Looked { share, epoch, seen }).await;
}

async fn ask_for_ever(
    host: Arc<Host>,
    question: Question,
    namespace: NamespaceId,
    clock: Clock,
    events: mpsc::Sender<Event>,
) {
    loop {
        let answer = host.ask(&question, &clock).await;
        if let Err(error) = &answer {
            debug!(%namespace, "no answer from {}: {error}", question.server);
        }
        // One that took all its time need not wait for the next.
        let waited = matches!(&answer, Err(error) if error.kind() == std::io::ErrorKind::TimedOut);
        if events.send(Event::Probed { namespace: namespace.clone(), answer: answer.ok() }).await.is_err() {
            return;
        }
        if !waited {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
