//! What is known of servers: a prober for each, and what their silence means.

use std::time::Duration;

use moorline_shared::id::NamespaceId;
use moorline_shared::observed::{Observed, Server, Tunnel};
use tokio::sync::mpsc;
use tracing::debug;

use super::{Clock, Event, Reconciler};
use crate::paths;
use crate::probe::{PAUSE, Question};

impl Reconciler {
    /// A prober for each namespace that leads somewhere.
    pub(super) fn probe(&mut self, observed: &Observed) {
        let open = |id: &NamespaceId| observed.namespaces.get(id) == Some(&Tunnel::Attached);
        self.probers.retain(|id, prober| {
            if !open(id) {
                prober.abort();
            }
            open(id)
        });
        self.servers.retain(|id, _| observed.namespaces.contains_key(id));
        for id in observed.namespaces.keys().filter(|id| open(id)) {
            if self.probers.contains_key(id) {
                continue;
            }
            let Some(target) = self
                .desired
                .objects
                .gateways
                .get(&id.target.gateway)
                .and_then(|gateway| gateway.target(&id.target.target))
            else {
                continue;
            };
            let question =
                Question { namespace: paths::from_agent(&self.host.paths().namespace(id)), server: target.server };
            self.servers.insert(id.clone(), Server { first_asked: (self.clock)(), ..Server::default() });
            self.probers.insert(
                id.clone(),
                tokio::spawn(ask_for_ever(question, id.clone(), self.clock.clone(), self.events.clone())),
            );
        }
    }

    /// Whether it changes what is thought of the server.
    pub(super) fn note_probe(&mut self, namespace: &NamespaceId, answered_in: Option<Duration>) -> bool {
        let now = (self.clock)();
        let Some(server) = self.servers.get_mut(namespace) else { return false };
        let before = server.liveness(now);
        server.asked(now, answered_in.is_some());
        server.answered_in = answered_in.or(server.answered_in);
        before != server.liveness(now)
    }
}

async fn ask_for_ever(question: Question, namespace: NamespaceId, clock: Clock, events: mpsc::Sender<Event>) {
    loop {
        let asked = clock();
        let answer = question.ask().await;
        let answered_in = answer.is_ok().then(|| clock().saturating_sub(asked));
        if let Err(error) = &answer {
            debug!(%namespace, "no answer from {}: {error}", question.server);
        }
        // One that took all its time need not wait for the next.
        let waited = matches!(&answer, Err(error) if error.kind() == std::io::ErrorKind::TimedOut);
        if events.send(Event::Probed { namespace: namespace.clone(), answered_in }).await.is_err() {
            return;
        }
        if !waited {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
