//! What the objects that people write are to say of themselves, from what each agent says of its node.

use kube::ResourceExt;
use kube::api::DynamicObject;
use moorline_shared::status::{GatewayStatus, NodeStatus, ShareStatus};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// As long as pods use it, a Share that is deleted stays, and says so. Nothing is taken from them either way: this is for
/// people.
pub(crate) const IN_USE: &str = "moorline.io/in-use";

/// A change of one object: of its status, and of itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub(crate) name: String,
    pub(crate) status: Option<Value>,
    /// A patch of its list of finalizers, which is replaced as a whole: of the very version that was seen, since others may have
    /// some there.
    pub(crate) finalizers: Option<Value>,
}

impl Change {
    fn any(self) -> Option<Self> {
        (self.status.is_some() || self.finalizers.is_some()).then_some(self)
    }
}

/// Nodes as their agents say, and whether there are some whose agent has said nothing (yet, or because its report was deleted):
/// what it counts is unknown, and not nothing.
pub(crate) struct Reports {
    pub(crate) nodes: Vec<NodeStatus>,
    pub(crate) incomplete: bool,
}

/// None if it says so already.
pub(crate) fn of_share(share: &DynamicObject, reports: &Reports) -> Option<Change> {
    let name = share.name_any();
    let mut status = ShareStatus::of(&name, &reports.nodes);
    let before: ShareStatus = said(share);
    if reports.incomplete && status.volumes < before.volumes {
        status = before;
    }
    if share.metadata.deletion_timestamp.is_some() && status.volumes > 0 {
        status.message = Some(format!(
            "deleted, and in use by {} pods: they keep it, no other gets it, and it goes with the last of them",
            status.volumes
        ));
    }
    let mut finalizers = share.finalizers().to_vec();
    let held = finalizers.iter().any(|finalizer| finalizer == IN_USE);
    let in_use = status.volumes > 0;
    // None is added to what is being deleted: the API server would refuse it.
    let add = in_use && !held && share.metadata.deletion_timestamp.is_none();
    let finalizers = match () {
        () if add => {
            finalizers.push(IN_USE.to_owned());
            Some(finalizers)
        }
        () if held && !in_use && !reports.incomplete => {
            finalizers.retain(|finalizer| finalizer != IN_USE);
            Some(finalizers)
        }
        () => None,
    };
    let version = share.resource_version();
    let finalizers = finalizers.map(|it| json!({"metadata": {"resourceVersion": version, "finalizers": it}}));
    Change { name, status: news(share, &json!(status)), finalizers }.any()
}

pub(crate) fn of_gateway(gateway: &DynamicObject, reports: &Reports) -> Option<Change> {
    let targets = gateway.data.pointer("/spec/targets").and_then(Value::as_array);
    let names = targets.into_iter().flatten().filter_map(|target| target["name"].as_str()).map(str::to_owned);
    let names: Vec<String> = names.collect();
    let name = gateway.name_any();
    let status = GatewayStatus::of(&name, &names, &reports.nodes);
    let before: GatewayStatus = said(gateway);
    let asked = |status: &GatewayStatus| status.targets.iter().map(|it| it.answers + it.away).sum::<u32>();
    if reports.incomplete && asked(&status) < asked(&before) {
        return None;
    }
    Change { name, status: news(gateway, &json!(status)), finalizers: None }.any()
}

fn said<T: DeserializeOwned + Default>(object: &DynamicObject) -> T {
    let status = object.data.get("status").cloned();
    status.and_then(|status| serde_json::from_value(status).ok()).unwrap_or_default()
}

fn news(object: &DynamicObject, status: &Value) -> Option<Value> {
    (object.data.get("status") != Some(status)).then(|| status.clone())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::api::{ApiResource, GroupVersionKind};
    use moorline_shared::cluster::{GROUP, VERSION};

    use super::*;

    fn object(kind: &str, name: &str, data: Value) -> DynamicObject {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, VERSION, kind));
        let mut object = DynamicObject::new(name, &kind).data(data);
        object.metadata.resource_version = Some("7".to_owned());
        object
    }

    fn node(volumes: u32) -> NodeStatus {
        let share = json!({"name": "data", "volumes": volumes, "pending": 0});
        let server = json!({"gateway": "gw", "target": "a", "answers": true});
        serde_json::from_value(json!({"version": "1", "shares": [share], "servers": [server]})).unwrap()
    }

    fn reports<const N: usize>(nodes: [NodeStatus; N]) -> Reports {
        Reports { nodes: nodes.into(), incomplete: false }
    }

    fn finalizers(list: &[&str]) -> Option<Value> {
        Some(json!({"metadata": {"resourceVersion": "7", "finalizers": list}}))
    }

    fn held(change: Change, share: &mut DynamicObject) {
        share.data["status"] = change.status.unwrap();
        share.metadata.finalizers = Some(vec!["backup.example/of".to_owned(), IN_USE.to_owned()]);
    }

    #[test]
    fn a_share_in_use_is_held_and_says_by_how_many() {
        let mut share = object("Share", "data", json!({"spec": {}}));
        share.metadata.finalizers = Some(vec!["backup.example/of".to_owned()]);
        let change = of_share(&share, &reports([node(2), node(1)])).unwrap();
        assert_eq!(change.finalizers, finalizers(&["backup.example/of", IN_USE]), "of the version that was seen");
        assert_eq!(change.status.as_ref().unwrap()["health"], "Served");
        held(change, &mut share);
        assert_eq!(of_share(&share, &reports([node(2), node(1)])), None);
        share.metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        let status = of_share(&share, &reports([node(3)])).unwrap().status.unwrap();
        assert!(status["message"].as_str().unwrap().contains("in use by 3 pods"), "{status}");
        assert_eq!(of_share(&share, &reports([])).unwrap().finalizers, finalizers(&["backup.example/of"]));
        share.metadata.finalizers = None;
        assert_eq!(of_share(&share, &reports([node(1)])).unwrap().finalizers, None, "it is too late for one");
    }

    #[test]
    fn what_a_node_has_not_told_is_not_nothing() {
        let mut share = object("Share", "data", json!({"spec": {}}));
        let change = of_share(&share, &reports([node(2), node(1)])).unwrap();
        held(change, &mut share);
        let unknown = |nodes: Vec<NodeStatus>| Reports { nodes, incomplete: true };
        assert_eq!(of_share(&share, &unknown(vec![node(1)])), None, "what was said stands");
        let more = of_share(&share, &unknown(vec![node(4)])).unwrap();
        assert_eq!(more.status.unwrap()["volumes"], 4);
        share.metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        let change = of_share(&share, &unknown(vec![])).unwrap();
        assert_eq!(change.finalizers, None);
        assert!(change.status.unwrap()["message"].as_str().unwrap().contains("in use by 3 pods"));
        // Held, and it was not said any more by how many.
        share.data["status"] = json!(ShareStatus::default());
        assert_eq!(of_share(&share, &unknown(vec![])), None);

        let mut gateway = object("Gateway", "gw", json!({"spec": {"targets": [{"name": "a"}]}}));
        gateway.data["status"] = of_gateway(&gateway, &reports([node(1)])).unwrap().status.unwrap();
        assert_eq!(of_gateway(&gateway, &unknown(vec![])), None);
        assert!(of_gateway(&gateway, &reports([])).is_some());
    }

    #[test]
    fn a_gateway_has_its_targets_in_their_order() {
        let gateway = object("Gateway", "gw", json!({"spec": {"targets": [{"name": "b"}, {"name": "a"}]}}));
        let status = of_gateway(&gateway, &reports([node(1)])).unwrap().status.unwrap();
        let targets = json!([{"name": "b", "answers": 0, "away": 0}, {"name": "a", "answers": 1, "away": 0}]);
        assert_eq!((&status["targets"], &status["health"]), (&targets, &json!("Answers")));
    }
}
