//! Gateways and Shares that are objects of the API server.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream::select_all;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use moorline_shared::cluster::{API_VERSION, GROUP, VERSION};
use moorline_shared::yaml;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{WATCH, answer, explain, is_outdated};
use crate::config::{Good, Reading};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Gateway,
    Share,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Gateway, Self::Share];

    fn plural(self) -> &'static str {
        match self {
            Self::Gateway => "gateways",
            Self::Share => "shares",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "Gateway",
            Self::Share => "Share",
        }
    }

    pub(super) fn resource(self) -> ApiResource {
        let kind = GroupVersionKind::gvk(GROUP, VERSION, self.name());
        ApiResource::from_gvk_with_plural(&kind, self.plural())
    }
}

/// What is said before the API server was heard: there may be anything.
pub(crate) fn unheard() -> Reading {
    Reading { incomplete: true, ..Reading::default() }
}

/// Tells of every change, until nobody listens any more.
pub(crate) async fn watch(client: Client, readings: mpsc::Sender<Reading>) {
    let mut events = select_all(Kind::ALL.map(|kind| {
        let objects: Api<DynamicObject> = Api::all_with(client.clone(), &kind.resource());
        let config = watcher::Config::default().timeout(WATCH);
        watcher(objects, config).default_backoff().map(move |event| (kind, event)).boxed()
    }));
    let mut cluster = Cluster::default();
    // Of each kind, what was last said in the log of whether it is heard.
    let mut heard: BTreeMap<Kind, bool> = BTreeMap::new();
    while let Some((kind, event)) = events.next().await {
        let changed = match event {
            Ok(event) => {
                let lists = matches!(event, watcher::Event::Init | watcher::Event::InitApply(_));
                if !lists && heard.insert(kind, true) != Some(true) {
                    info!("the API server tells of {}", kind.plural());
                }
                cluster.take_in(kind, event)
            }
            Err(error) if is_outdated(&error) => {
                debug!("listing {} anew: {error}", kind.plural());
                false
            }
            Err(error) => {
                let unknown = answer(&error).is_some_and(|status| status.code == 404);
                if heard.insert(kind, false) != Some(false) {
                    if unknown {
                        info!("the API server has no {}: their CustomResourceDefinition is not there", kind.plural());
                    } else {
                        let why = explain(&error, kind.plural());
                        warn!("watch {}: {why}; trying on, what was said last stands", kind.plural());
                    }
                }
                unknown && cluster.have_none(kind)
            }
        };
        if changed && readings.send(cluster.reading()).await.is_err() {
            return;
        }
    }
}

#[derive(Default)]
struct Cluster {
    objects: BTreeMap<Kind, Listed>,
    good: Good,
}

#[derive(Default)]
struct Listed {
    /// A list has come.
    whole: bool,
    objects: BTreeMap<String, Value>,
    /// What a list that is under way has brought so far.
    listed: BTreeMap<String, Value>,
}

impl Cluster {
    /// Whether anything is to be told.
    fn take_in(&mut self, kind: Kind, event: watcher::Event<DynamicObject>) -> bool {
        let of_kind = self.objects.entry(kind).or_default();
        let named = |object: DynamicObject| {
            let spec = object.data.get("spec").cloned().unwrap_or_default();
            object.metadata.name.map(|name| (name, spec))
        };
        // What is being deleted is gone for new pods, however long somebody holds it.
        let event = match event {
            watcher::Event::Apply(object) if object.metadata.deletion_timestamp.is_some() => {
                watcher::Event::Delete(object)
            }
            watcher::Event::InitApply(object) if object.metadata.deletion_timestamp.is_some() => return false,
            event => event,
        };
        match event {
            watcher::Event::Init => of_kind.listed.clear(),
            watcher::Event::InitApply(object) => of_kind.listed.extend(named(object)),
            watcher::Event::InitDone => {
                let listed = std::mem::take(&mut of_kind.listed);
                let first = !std::mem::replace(&mut of_kind.whole, true);
                return std::mem::replace(&mut of_kind.objects, listed) != of_kind.objects || first;
            }
            // Most changes are of somebody's status.
            watcher::Event::Apply(object) => {
                let Some((name, spec)) = named(object) else { return false };
                return of_kind.objects.insert(name, spec.clone()) != Some(spec) && of_kind.whole;
            }
            watcher::Event::Delete(object) => {
                return named(object).is_some_and(|(name, _)| of_kind.objects.remove(&name).is_some());
            }
        }
        false
    }

    /// There is no such kind, so there are no objects of it.
    fn have_none(&mut self, kind: Kind) -> bool {
        let none = Listed { whole: true, ..Listed::default() };
        let before = self.objects.insert(kind, none);
        before.is_none_or(|before| !before.whole || !before.objects.is_empty())
    }

    fn reading(&mut self) -> Reading {
        let parsed = self.objects.iter().flat_map(|(kind, listed)| {
            listed.objects.iter().map(|(name, spec)| {
                let (place, kind) = (format!("{}/{name}", kind.name()), kind.name());
                let text = json!({
                    "apiVersion": API_VERSION,
                    "kind": kind,
                    "metadata": {"name": name},
                    "spec": spec,
                });
                let object = yaml::parse_object(&place, &text.to_string());
                (place, object.map(|object| vec![object]))
            })
        });
        let mut reading = self.good.take_in(parsed);
        reading.incomplete |= Kind::ALL.iter().any(|kind| self.objects.get(kind).is_none_or(|listed| !listed.whole));
        reading
    }
}

#[cfg(test)]
mod tests {
    use watcher::Event;

    use super::*;

    fn object(kind: Kind, name: &str, spec: Value) -> DynamicObject {
        DynamicObject::new(name, &kind.resource()).data(json!({"spec": spec, "status": {"nodes": 3}}))
    }

    fn gateway() -> DynamicObject {
        let targets = json!([{"name": "a", "server": "10.0.0.1"}]);
        object(Kind::Gateway, "gw", json!({"path": "direct", "sharedData": true, "targets": targets}))
    }

    fn share(access: &str) -> DynamicObject {
        let spec = json!({"gateway": "gw", "export": "/data", "access": access, "namespaces": ["training"],
                          "mountOptions": {"timeo": 600, "noexec": true}});
        object(Kind::Share, "data", spec)
    }

    /// Names, problems, and whether there may be more.
    fn seen(cluster: &mut Cluster) -> (usize, Vec<String>, bool) {
        let reading = cluster.reading();
        (reading.objects.len(), reading.problems.iter().map(ToString::to_string).collect(), reading.incomplete)
    }

    fn list(cluster: &mut Cluster, kind: Kind, objects: Vec<DynamicObject>) -> bool {
        assert!(!cluster.take_in(kind, Event::Init));
        for object in objects {
            assert!(!cluster.take_in(kind, Event::InitApply(object)));
        }
        cluster.take_in(kind, Event::InitDone)
    }

    #[test]
    fn objects_are_known_when_each_kind_was_listed() {
        let mut cluster = Cluster::default();
        assert!(list(&mut cluster, Kind::Gateway, vec![gateway()]));
        assert_eq!(seen(&mut cluster), (1, vec![], true));
        assert!(list(&mut cluster, Kind::Share, vec![share("ReadOnly")]));
        assert_eq!(seen(&mut cluster), (2, vec![], false));
        assert!(!list(&mut cluster, Kind::Share, vec![share("ReadOnly")]), "nothing is new");
        assert!(!cluster.take_in(Kind::Share, Event::Apply(share("ReadOnly"))), "but its status");
        assert!(cluster.take_in(Kind::Share, Event::Delete(share("ReadOnly"))));
        assert_eq!(seen(&mut cluster), (1, vec![], false));
        assert!(cluster.have_none(Kind::Gateway) && !cluster.have_none(Kind::Gateway));
        assert_eq!(seen(&mut cluster), (0, vec![], false));
    }

    #[test]
    fn an_object_that_turns_bad_is_named_and_what_it_said_stays() {
        let mut cluster = Cluster::default();
        list(&mut cluster, Kind::Gateway, vec![gateway()]);
        list(&mut cluster, Kind::Share, vec![share("ReadOnly")]);
        let good = cluster.reading().objects;
        assert!(cluster.take_in(Kind::Share, Event::Apply(share("RW"))));
        let reading = cluster.reading();
        assert_eq!((reading.objects, reading.incomplete), (good, false));
        let problem = reading.problems[0].to_string();
        assert_eq!(problem, "Share/data: spec.access: is \"RW\"; use ReadOnly or ReadWrite");
    }
}
