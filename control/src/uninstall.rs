//! Taking everything out of a cluster, in order: what is to be mounted goes, what pods use is waited for, and only then go the
//! agents that take care of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, Pod};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use kube_core::gvk::ParseGroupVersionError;
use moorline_shared::status::NodeStatus;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::agents;
use crate::controller::status_of;
use crate::provision::{FINALIZER, directory};
use crate::sight::{connect, resource};

/// What `kubectl apply -k manifests` makes, in its order, and what may have been applied beside it.
const MANIFESTS: [&str; 9] = [
    include_str!("../../manifests/crds.yaml"),
    include_str!("../../manifests/namespace.yaml"),
    include_str!("../../manifests/serviceaccount.yaml"),
    include_str!("../../manifests/rbac.yaml"),
    include_str!("../../manifests/admission.yaml"),
    include_str!("../../manifests/csidriver.yaml"),
    include_str!("../../manifests/agent.yaml"),
    include_str!("../../manifests/controller.yaml"),
    include_str!("../../manifests/csi.yaml"),
];
const NAMESPACE: &str = "moorline-system";
/// Gateways and Shares may be files of it.
const FILES: &str = "moorline-config";
const PERIOD: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    #[error("find the API server: is there a kubeconfig, or does this run in a pod?")]
    Client(#[source] Box<kube::Error>),
    #[error("{0}")]
    Ask(String, #[source] Box<kube::Error>),
    #[error("read the manifests that this was built with")]
    Manifest(#[from] serde_saphyr::Error),
    #[error("read the manifests that this was built with")]
    Version(#[from] ParseGroupVersionError),
}

fn asked<T>(what: impl Into<String>, outcome: Result<T, kube::Error>) -> Result<T, UninstallError> {
    outcome.map_err(|error| UninstallError::Ask(what.into(), Box::new(error)))
}

/// Says what it does, and what it waits for as that changes.
pub async fn run(dry_run: bool, mut say: impl FnMut(&str)) -> Result<(), UninstallError> {
    let client = connect().await.map_err(|error| UninstallError::Client(Box::new(error)))?;
    if dry_run {
        let seen = Seen::now(&client).await?;
        seen.in_use().iter().for_each(|line| say(&format!("would wait: {line}")));
        held_volumes(&client).await?.iter().for_each(|volume| say(&format!("would let go of {}", described(volume))));
        for object in installed()? {
            if object.is_there(&client).await? {
                say(&format!("would delete: {object}"));
            }
        }
        return Ok(());
    }
    withdraw(&client).await?;
    say("no new pod gets a volume; waiting for those that have one");
    let mut said = Vec::new();
    loop {
        let waits = Seen::now(&client).await?.waits();
        if waits.is_empty() {
            break;
        }
        waits.iter().filter(|line| !said.contains(*line)).for_each(|line| say(line));
        said = waits;
        sleep(PERIOD).await;
    }
    // Nobody would do it afterwards, and they could not be deleted any more.
    loop {
        let volumes = held_volumes(&client).await?;
        if volumes.is_empty() {
            break;
        }
        for volume in volumes {
            if let_go(&client, &volume).await? {
                say(&format!("let go of {}", described(&volume)));
            }
        }
    }
    // The agents go before what they are told by.
    for object in installed()?.iter().rev() {
        if object.delete(&client).await? {
            say(&format!("deleted {object}"));
        }
    }
    Ok(())
}

/// Nothing is taken from anybody by that: what is deleted is for new pods.
async fn withdraw(client: &Client) -> Result<(), UninstallError> {
    for kind in [("Share", "shares"), ("Gateway", "gateways")] {
        let api = ours(client, kind);
        for object in listed(&api, kind.1).await? {
            let name = object.name_any();
            gone(&format!("delete {} {name}", kind.0), api.delete(&name, &DeleteParams::default()).await)?;
        }
    }
    let files: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    gone(&format!("delete the ConfigMap {FILES}"), files.delete(FILES, &DeleteParams::default()).await).map(drop)
}

/// How things are.
struct Seen {
    /// What each node's agent says.
    nodes: BTreeMap<String, NodeStatus>,
    /// The nodes where an agent runs.
    agents: BTreeSet<String>,
    shares: Vec<String>,
}

impl Seen {
    async fn now(client: &Client) -> Result<Self, UninstallError> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        let agents = asked("list the agents' pods", pods.list(&ListParams::default().labels(agents::LABELLED)).await)?;
        let nodes = listed(&ours(client, ("MoorlineNode", "moorlinenodes")), "moorlinenodes").await?;
        let shares = listed(&ours(client, ("Share", "shares")), "shares").await?;
        Ok(Self {
            nodes: nodes.iter().filter_map(|node| Some((node.name_any(), status_of(node)?))).collect(),
            agents: agents::nodes(&agents),
            shares: shares.iter().map(ResourceExt::name_any).collect(),
        })
    }

    /// What is still there, a line each, once there is nothing to be had any more. What a node says that still offers Shares is
    /// not its last word: a pod may just have got one.
    fn waits(&self) -> Vec<String> {
        let mut lines = self.in_use();
        for node in &self.agents {
            match self.nodes.get(node) {
                None => lines.push(format!("node {node}: its agent has not told what is in use there: may it make and write MoorlineNodes, and is there such a kind? `kubectl apply -k manifests` makes it again")),
                Some(status) if status.offered > 0 => {
                    lines.push(format!("node {node}: its agent has not said yet that no new pod gets a volume there"));
                }
                Some(_) => {}
            }
        }
        if lines.is_empty() && !self.shares.is_empty() {
            lines.push(format!("Shares {}: does the controller run, which lets them go?", self.shares.join(", ")));
        }
        lines
    }

    /// Volumes, node mounts and tunnels.
    fn in_use(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (node, status) in &self.nodes {
            for share in &status.shares {
                let place = if share.node_mount { ", and by its node mount" } else { "" };
                let pods = share.volumes + share.pending;
                lines.push(format!("node {node}: Share {} is in use by {pods} pods{place}", share.name));
            }
            if status.shares.is_empty() && !status.servers.is_empty() {
                lines.push(format!("node {node}: {} ways to servers are being taken down", status.servers.len()));
            }
        }
        lines
    }
}

/// Volumes that nobody but the controller lets go, when their directory is put aside or deleted.
async fn held_volumes(client: &Client) -> Result<Vec<PersistentVolume>, UninstallError> {
    let api: Api<PersistentVolume> = Api::all(client.clone());
    let mut volumes = asked("list PersistentVolumes", api.list(&ListParams::default()).await)?.items;
    volumes.retain(|volume| volume.finalizers().iter().any(|finalizer| finalizer == FINALIZER));
    Ok(volumes)
}

fn described(volume: &PersistentVolume) -> String {
    let (share, sub_dir) = directory(volume).unwrap_or_default();
    format!("PersistentVolume {}: {sub_dir} of Share {share} stays, whatever its class says", volume.name_any())
}

/// Whether it was: somebody may have changed it meanwhile.
async fn let_go(client: &Client, volume: &PersistentVolume) -> Result<bool, UninstallError> {
    let api: Api<PersistentVolume> = Api::all(client.clone());
    let others: Vec<&String> = volume.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
    let patch = json!({"metadata": {"resourceVersion": volume.resource_version(), "finalizers": others}});
    match api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        outcome => asked(format!("let go of PersistentVolume {}", volume.name_any()), outcome).map(|_| true),
    }
}

fn ours(client: &Client, (kind, plural): (&str, &str)) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &resource(kind, plural))
}

/// None of a kind that the API server does not know (any more).
async fn listed(api: &Api<DynamicObject>, plural: &str) -> Result<Vec<DynamicObject>, UninstallError> {
    match api.list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        outcome => Ok(asked(format!("list {plural}"), outcome)?.items),
    }
}

/// Whether it was there: what is gone already is gone.
fn gone<T>(what: &str, outcome: Result<T, kube::Error>) -> Result<bool, UninstallError> {
    match outcome {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        outcome => asked(what, outcome).map(|_| true),
    }
}

/// An object of the manifests.
struct Installed {
    resource: ApiResource,
    namespace: Option<String>,
    name: String,
}

impl std::fmt::Display for Installed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.resource.kind, self.name)
    }
}

impl Installed {
    fn api(&self, client: &Client) -> Api<DynamicObject> {
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &self.resource),
            None => Api::all_with(client.clone(), &self.resource),
        }
    }

    async fn is_there(&self, client: &Client) -> Result<bool, UninstallError> {
        asked(format!("look for {self}"), self.api(client).get_metadata_opt(&self.name).await)
            .map(|found| found.is_some())
    }

    async fn delete(&self, client: &Client) -> Result<bool, UninstallError> {
        gone(&format!("delete {self}"), self.api(client).delete(&self.name, &DeleteParams::background()).await)
    }
}

fn installed() -> Result<Vec<Installed>, UninstallError> {
    let mut objects = Vec::new();
    for text in MANIFESTS {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
        for object in documents {
            let word = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
            let version: kube_core::gvk::GroupVersion = word("/apiVersion").parse()?;
            let resource = ApiResource::from_gvk(&version.with_kind(&word("/kind")));
            let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).map(str::to_owned);
            objects.push(Installed { resource, namespace, name: word("/metadata/name") });
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_that_is_installed_has_a_name() {
        let objects: Vec<String> = installed().unwrap().iter().map(ToString::to_string).collect();
        assert!(objects.iter().all(|object| !object.ends_with(' ')), "{objects:?}");
        for known in ["DaemonSet moorline-agent", "Deployment moorline-controller", "CSIDriver moorline.io"] {
            assert!(objects.iter().any(|object| object == known), "{known}: {objects:?}");
        }
        let plural =
            |kind: &str| installed().unwrap().into_iter().find(|it| it.resource.kind == kind).unwrap().resource.plural;
        assert_eq!(plural("ValidatingAdmissionPolicy"), "validatingadmissionpolicies");
        assert_eq!(plural("ValidatingAdmissionPolicyBinding"), "validatingadmissionpolicybindings");
    }

    #[test]
    fn openshift_lets_restricted_pods_have_inline_volumes() {
        let driver: Value = serde_saphyr::from_str(include_str!("../../manifests/csidriver.yaml")).unwrap();
        // As its documentation has it; without the label a driver counts as privileged.
        assert_eq!(driver["metadata"]["labels"]["security.openshift.io/csi-ephemeral-volume-profile"], "restricted");
    }

    fn status() -> NodeStatus {
        serde_json::from_value(json!({
            "version": "1",
            "shares": [{"name": "data", "volumes": 2, "pending": 1, "nodeMount": true}],
            "servers": [{"gateway": "gw", "target": "a", "answers": true}],
        }))
        .unwrap()
    }

    fn seen(status: Option<NodeStatus>) -> Seen {
        let nodes = status.map(|status| ("n1".to_owned(), status)).into_iter().collect();
        Seen { nodes, agents: BTreeSet::from(["n1".to_owned()]), shares: Vec::new() }
    }

    #[test]
    fn who_is_waited_for_is_named() {
        let whole = seen(Some(status()));
        assert_eq!(whole.waits(), ["node n1: Share data is in use by 3 pods, and by its node mount"]);
        let emptied = NodeStatus { shares: Vec::new(), ..status() };
        assert_eq!(seen(Some(emptied)).waits(), ["node n1: 1 ways to servers are being taken down"]);
        assert!(seen(Some(NodeStatus::default())).waits().is_empty());
    }

    #[test]
    fn an_agent_that_has_not_heard_or_told_is_waited_for() {
        let late = seen(Some(NodeStatus { offered: 1, ..NodeStatus::default() }));
        assert!(late.waits()[0].contains("not said yet that no new pod gets a volume"), "{:?}", late.waits());
        assert!(late.in_use().is_empty(), "and as long as nothing is taken out it need not");
        assert!(seen(None).waits()[0].starts_with("node n1: its agent has not told what is in use there"));
        let nowhere = Seen { agents: BTreeSet::new(), ..seen(None) };
        assert!(nowhere.waits().is_empty());
        assert!(
            Seen { shares: vec!["data".into()], ..nowhere }.waits()[0]
                .starts_with("Shares data: does the controller run")
        );
    }
}
