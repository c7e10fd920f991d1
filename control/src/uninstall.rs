//! Taking everything out of a cluster, in order: what is to be mounted goes, what pods use is waited for, and only then go the
//! agents that take care of it.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client, ResourceExt};
use kube_core::gvk::ParseGroupVersionError;
use moorline_shared::cluster::{GROUP, VERSION};
use moorline_shared::status::NodeStatus;
use serde_json::Value;
use tokio::time::sleep;

use crate::controller::status_of;

/// What `kubectl apply -k manifests` makes, in its order.
const MANIFESTS: [&str; 8] = [
    include_str!("../../manifests/crds.yaml"),
    include_str!("../../manifests/namespace.yaml"),
    include_str!("../../manifests/serviceaccount.yaml"),
    include_str!("../../manifests/rbac.yaml"),
    include_str!("../../manifests/admission.yaml"),
    include_str!("../../manifests/csidriver.yaml"),
    include_str!("../../manifests/agent.yaml"),
    include_str!("../../manifests/controller.yaml"),
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
    let client = Client::try_default().await.map_err(|error| UninstallError::Client(Box::new(error)))?;
    if dry_run {
        for line in in_use(&client).await? {
            say(&format!("would wait: {line}"));
        }
        for object in installed()? {
            say(&format!("would delete: {object}"));
        }
        return Ok(());
    }
    withdraw(&client).await?;
    say("no new pod gets a volume; waiting for those that have one");
    let mut said = Vec::new();
    loop {
        let waits = in_use(&client).await?;
        if waits.is_empty() {
            break;
        }
        waits.iter().filter(|line| !said.contains(*line)).for_each(|line| say(line));
        said = waits;
        sleep(PERIOD).await;
    }
    // The agents go before what they are told by.
    for object in installed()?.iter().rev() {
        object.delete(&client).await?;
        say(&format!("deleted {object}"));
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
    gone(&format!("delete the ConfigMap {FILES}"), files.delete(FILES, &DeleteParams::default()).await)
}

/// What is still there of volumes, node mounts, tunnels and Shares, a line each.
async fn in_use(client: &Client) -> Result<Vec<String>, UninstallError> {
    let nodes = listed(&ours(client, ("MoorlineNode", "moorlinenodes")), "moorlinenodes").await?;
    let nodes = nodes.iter().filter_map(|node| Some((node.name_any(), status_of(node)?)));
    let mut lines = waits(&nodes.collect());
    let shares = listed(&ours(client, ("Share", "shares")), "shares").await?;
    let names: Vec<String> = shares.iter().map(ResourceExt::name_any).collect();
    if lines.is_empty() && !names.is_empty() {
        lines.push(format!("Shares {}: does the controller run, which lets them go?", names.join(", ")));
    }
    Ok(lines)
}

fn waits(nodes: &BTreeMap<String, NodeStatus>) -> Vec<String> {
    let mut lines = Vec::new();
    for (node, status) in nodes {
        for share in &status.shares {
            let place = if share.node_mount { ", and by its node mount" } else { "" };
            lines.push(format!(
                "node {node}: Share {} is in use by {} pods{place}",
                share.name,
                share.volumes + share.pending
            ));
        }
        if status.shares.is_empty() && !status.servers.is_empty() {
            lines.push(format!("node {node}: {} ways to servers are being taken down", status.servers.len()));
        }
    }
    lines
}

fn ours(client: &Client, (kind, plural): (&str, &str)) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(GROUP, VERSION, kind);
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, plural))
}

/// None of a kind that the API server does not know (any more).
async fn listed(api: &Api<DynamicObject>, plural: &str) -> Result<Vec<DynamicObject>, UninstallError> {
    match api.list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        outcome => Ok(asked(format!("list {plural}"), outcome)?.items),
    }
}

/// What is gone already is gone.
fn gone<T>(what: &str, outcome: Result<T, kube::Error>) -> Result<(), UninstallError> {
    match outcome {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        outcome => asked(what, outcome).map(drop),
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
    async fn delete(&self, client: &Client) -> Result<(), UninstallError> {
        let api: Api<DynamicObject> = match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &self.resource),
            None => Api::all_with(client.clone(), &self.resource),
        };
        gone(&format!("delete {self}"), api.delete(&self.name, &DeleteParams::background()).await)
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

    #[test]
    fn who_is_waited_for_is_named() {
        let status: NodeStatus = serde_json::from_value(serde_json::json!({
            "version": "1",
            "shares": [{"name": "data", "volumes": 2, "pending": 1, "nodeMount": true}],
            "servers": [{"gateway": "gw", "target": "a", "answers": true}],
        }))
        .unwrap();
        let nodes = BTreeMap::from([("n1".to_owned(), status.clone())]);
        assert_eq!(waits(&nodes), ["node n1: Share data is in use by 3 pods, and by its node mount"]);
        let emptied = NodeStatus { shares: Vec::new(), ..status };
        assert_eq!(waits(&[("n1".to_owned(), emptied)].into()), ["node n1: 1 ways to servers are being taken down"]);
        assert!(waits(&[("n1".to_owned(), NodeStatus::default())].into()).is_empty());
    }
}
