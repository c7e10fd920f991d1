//! What is known of servers: a prober for each, and what their silence means.

use std::time::Duration;

use moorline_shared::id::NamespaceId;
use moorline_shared::observed::{Observed, Server, Tunnel};
use tokio::sync::mpsc;
use tracing::{debug, info};

use super::{Event, Reconciler};
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
            let gateway = self.desired.objects.gateways.get(&id.target.gateway);
            let Some((gateway, target)) =
                gateway.and_then(|gateway| Some((gateway, gateway.target(&id.target.target)?)))
            else {
                continue;
            };
            let question = Question {
                namespace: paths::from_agent(&self.host.paths().namespace(id)),
                server: target.server,
                // Two of them, and the pauses, fit into the time that it may be silent.
                patience: gateway.away_after / 2,
            };
            self.servers.insert(id.clone(), Server::new(gateway.away_after, (self.clock)()));
            self.probers.insert(id.clone(), tokio::spawn(ask_for_ever(question, id.clone(), self.events.clone())));
        }
    }

    /// Whether it changes what is thought of the server.
    pub(super) fn note_probe(&mut self, namespace: &NamespaceId, answer: Option<Duration>) -> bool {
        let now = (self.clock)();
        let Some(server) = self.servers.get_mut(namespace) else { return false };
        let before = server.liveness(now);
        server.asked(now, answer);
        let after = server.liveness(now);
        if before != after {
            info!(%namespace, "the server was {before:?} and is {after:?}");
        }
        before != after
    }
}

async fn ask_for_ever(question: Question, namespace: NamespaceId, events: mpsc::Sender<Event>) {
    loop {
        let answer = question.ask().await;
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
