//! The labels of namespaces, for Shares that say by label whose pods may use them. Only metadata is read.

use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use moorline_shared::selector::Labels;
use tokio::sync::mpsc;

use super::{Ear, WATCH};
use crate::reconcile::Event;

type Metadata = PartialObjectMeta<Namespace>;

/// Tells the loop of every change, until the loop has ended. While the API server is away what it said last stands.
pub(crate) async fn watch(client: Client, events: mpsc::Sender<Event>) {
    let namespaces: Api<Metadata> = Api::all(client);
    let mut stream = pin!(watcher(namespaces, watcher::Config::default().timeout(WATCH)).default_backoff());
    let mut known = Known::default();
    let mut ear = Ear::of("namespaces", "namespaces");
    while let Some(event) = stream.next().await {
        let changed = ear.hear(event).is_some_and(|event| known.take_in(event));
        if changed && events.send(Event::Namespaces(known.labels.clone())).await.is_err() {
            return;
        }
    }
}

#[derive(Default)]
struct Known {
    /// A list has come.
    whole: bool,
    labels: BTreeMap<String, Labels>,
    /// What a list that is under way has brought so far.
    listed: BTreeMap<String, Labels>,
}

impl Known {
    /// Whether anything is to be told.
    fn take_in(&mut self, event: watcher::Event<Metadata>) -> bool {
        let named = |namespace: Metadata| (namespace.name_any(), namespace.metadata.labels.unwrap_or_default());
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(namespace) => self.listed.extend([named(namespace)]),
            watcher::Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let first = !std::mem::replace(&mut self.whole, true);
                return std::mem::replace(&mut self.labels, listed) != self.labels || first;
            }
            watcher::Event::Apply(namespace) => {
                let (name, labels) = named(namespace);
                return self.labels.insert(name, labels.clone()) != Some(labels) && self.whole;
            }
            watcher::Event::Delete(namespace) => return self.labels.remove(&namespace.name_any()).is_some(),
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;
    use watcher::Event;

    use super::*;

    fn namespace(name: &str, team: &str) -> Metadata {
        let labels = Some([("team".to_owned(), team.to_owned())].into());
        let metadata = ObjectMeta { name: Some(name.to_owned()), labels, ..ObjectMeta::default() };
        Metadata { metadata, ..Metadata::default() }
    }

    #[test]
    fn labels_are_told_when_all_are_known_and_when_they_change() {
        let mut known = Known::default();
        assert!(!known.take_in(Event::Init) && !known.take_in(Event::InitApply(namespace("a", "ml"))));
        assert!(known.labels.is_empty() && known.take_in(Event::InitDone));
        assert_eq!(known.labels["a"]["team"], "ml");
        assert!(!known.take_in(Event::Apply(namespace("a", "ml"))), "nothing is new");
        assert!(known.take_in(Event::Apply(namespace("a", "web"))));
        assert!(known.take_in(Event::Delete(namespace("a", "web"))) && known.labels.is_empty());
    }
}
