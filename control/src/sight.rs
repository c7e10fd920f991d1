//! What the API server says of all that volumes depend on, as it changes.

use std::fmt::Debug;
use std::hash::Hash;

use futures_util::future::ready;
use futures_util::stream::{BoxStream, select_all};
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::reflector::Store;
use kube::runtime::reflector::store::Writer;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config, Resource, ResourceExt};
use moorline_shared::cluster::{API_VERSION, GROUP, SILENCE, VERSION, WATCH};
use moorline_shared::errand::Errand;
use moorline_shared::status::NodeStatus;
use moorline_shared::yaml::{self, Object};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::warn;

use crate::leases;
use crate::provision::World;
use crate::provision::desks::Desk;
use crate::provision::territory::Server;

/// A sign for each change.
pub(crate) type Changes = BoxStream<'static, ()>;

#[derive(Clone)]
pub(crate) struct Sight {
    pub(crate) claims: Store<PersistentVolumeClaim>,
    pub(crate) volumes: Store<PersistentVolume>,
    pub(crate) classes: Store<StorageClass>,
    pub(crate) gateways: Store<DynamicObject>,
    pub(crate) shares: Store<DynamicObject>,
    pub(crate) reports: Store<DynamicObject>,
    pub(crate) nodes: Store<Node>,
    /// Their labels alone.
    namespaces: Store<PartialObjectMeta<Namespace>>,
}

impl Sight {
    pub(crate) fn watch(client: &Client) -> (Self, Changes) {
        let mut streams = Vec::new();
        let sight = Self::follow(client, &mut streams);
        (sight, select_all(streams).boxed())
    }

    pub(crate) fn follow(client: &Client, streams: &mut Vec<Changes>) -> Self {
        let ours = |kind: &str, plural: &str, streams: &mut Vec<Changes>| {
            let kind = resource(kind, plural);
            follow(Api::all_with(client.clone(), &kind), kind, "", streams)
        };
        Self {
            gateways: ours("Gateway", "gateways", streams),
            shares: ours("Share", "shares", streams),
            reports: ours("MoorlineNode", "moorlinenodes", streams),
            claims: follow(Api::all(client.clone()), (), "", streams),
            volumes: follow(Api::all(client.clone()), (), "", streams),
            classes: follow(Api::all(client.clone()), (), "", streams),
            nodes: follow(Api::all(client.clone()), (), "", streams),
            namespaces: follow(Api::all(client.clone()), (), "", streams),
        }
    }

    /// None until all of it was listed: what is missing would be taken for gone.
    pub(crate) fn world(&self) -> Option<World> {
        let all = is_ready(&self.claims) && is_ready(&self.volumes) && is_ready(&self.classes);
        let all = all && is_ready(&self.shares) && is_ready(&self.reports) && is_ready(&self.nodes);
        if !(all && is_ready(&self.gateways) && is_ready(&self.namespaces)) {
            return None;
        }
        let labels = |namespace: &PartialObjectMeta<Namespace>| namespace.metadata.labels.clone().unwrap_or_default();
        let mut world = World {
            claims: self.claims.state(),
            volumes: self.volumes.state(),
            classes: self.classes.state().into_iter().map(|class| (class.name_any(), class)).collect(),
            namespaces: self.namespaces.state().iter().map(|it| (it.name_any(), labels(it))).collect(),
            desks: self.reports.state().iter().map(|report| (report.name_any(), self.desk(report))).collect(),
            ..World::default()
        };
        self.gateways.state().iter().for_each(|gateway| world.take_in("Gateway", gateway));
        self.shares.state().iter().for_each(|share| world.take_in("Share", share));
        Some(world)
    }

    fn desk(&self, report: &DynamicObject) -> Desk {
        let name = report.name_any();
        let status: NodeStatus = read(report, "/status");
        let node = self.nodes.find(|node| node.name_any() == name);
        let fit = node.is_some_and(|node| is_ready_node(&node) && !leases::is_out_of_service(&node));
        Desk {
            version: report.resource_version().unwrap_or_default(),
            requests: requests(report),
            fit: fit && !status.version.is_empty(),
            status,
        }
    }
}

pub(crate) fn is_ready<K>(store: &Store<K>) -> bool
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    store.wait_until_ready().now_or_never().is_some_and(|ready| ready.is_ok())
}

fn read<T: DeserializeOwned + Default>(object: &DynamicObject, at: &str) -> T {
    let part = object.data.pointer(at).cloned().and_then(|part| serde_json::from_value(part).ok());
    part.unwrap_or_default()
}

/// What a node is asked for. What this version does not know goes with the next change.
pub(crate) fn requests(report: &DynamicObject) -> Vec<Errand> {
    let requests = read::<Vec<Value>>(report, "/spec/requests").into_iter();
    requests.filter_map(|request| serde_json::from_value(request).ok()).collect()
}

fn is_ready_node(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

impl World {
    fn take_in(&mut self, kind: &str, object: &DynamicObject) {
        let name = object.name_any();
        let document = json!({
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": name},
            "spec": object.data.get("spec"),
        });
        match yaml::parse_object(&format!("{kind}/{name}"), &document.to_string()).map(|located| located.object) {
            Ok(Object::Share(share)) => drop(self.shares.insert(share.name.clone(), share)),
            Ok(Object::Gateway(gateway)) => {
                self.servers.insert(gateway.name.clone(), Server::all_of(&gateway));
            }
            Err(_) if kind == "Gateway" => {}
            Err(problem) => drop(self.bad_shares.insert(name.clone(), problem.to_string())),
        }
        if kind == "Share" && object.metadata.deletion_timestamp.is_some() {
            self.bad_shares.insert(name, "it is being deleted".to_owned());
        }
    }
}

/// A request that is not answered fails: nobody else would act as long as it waits.
pub(crate) async fn connect() -> Result<Client, kube::Error> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.read_timeout = Some(SILENCE);
    // Counted from the request, not from when its connection was last used.
    config.reset_reader_on_write = true;
    Client::try_from(config)
}

pub(crate) fn resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, kind), plural)
}

/// A copy of all objects of a kind, and a sign for each change.
pub(crate) fn follow<K>(api: Api<K>, kind: K::DynamicType, labels: &str, streams: &mut Vec<Changes>) -> Store<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Eq + Hash + Send + Sync,
{
    let name = K::plural(&kind).into_owned();
    let writer = Writer::new(kind);
    let store = writer.as_reader();
    let config = watcher::Config::default().labels(labels).timeout(WATCH);
    let stream = watcher(api, config).default_backoff().reflect(writer);
    let mut heard = true;
    let signs = stream.filter_map(move |event| {
        let sign = match event {
            Ok(_) => {
                heard = true;
                Some(())
            }
            // What went wrong is tried again by itself.
            Err(error) => {
                if std::mem::replace(&mut heard, false) {
                    warn!("watch {name}: {error}; trying on, what was said last stands");
                }
                None
            }
        };
        ready(sign)
    });
    streams.push(signs.boxed());
    store
}
