//! What the objects that people write are to say of themselves, from what each agent says of its node.

use kube::ResourceExt;
use kube::api::DynamicObject;
use moorline_shared::status::{GatewayStatus, NodeStatus, ShareStatus};
use serde_json::{Value, json};

/// As long as pods use it, a Share that is deleted stays, and says so. Nothing is taken from them either way: this is for
/// people.
pub(crate) const IN_USE: &str = "moorline.io/in-use";

/// A change of one object: of its status, and of itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub(crate) name: String,
    pub(crate) status: Option<Value>,
    /// The list of finalizers, as a whole.
    pub(crate) finalizers: Option<Vec<String>>,
}

impl Change {
    fn any(self) -> Option<Self> {
        (self.status.is_some() || self.finalizers.is_some()).then_some(self)
    }
}

/// None if it says so already.
pub(crate) fn of_share(share: &DynamicObject, nodes: &[NodeStatus]) -> Option<Change> {
    let name = share.name_any();
    let mut status = ShareStatus::of(&name, nodes);
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
        () if held && !in_use => {
            finalizers.retain(|finalizer| finalizer != IN_USE);
            Some(finalizers)
        }
        () => None,
    };
    Change { name, status: news(share, &json!(status)), finalizers }.any()
}

pub(crate) fn of_gateway(gateway: &DynamicObject, nodes: &[NodeStatus]) -> Option<Change> {
    let targets = gateway.data.pointer("/spec/targets").and_then(Value::as_array);
    let names = targets.into_iter().flatten().filter_map(|target| target["name"].as_str()).map(str::to_owned);
    let names: Vec<String> = names.collect();
    let name = gateway.name_any();
    let status = GatewayStatus::of(&name, &names, nodes);
    Change { name, status: news(gateway, &json!(status)), finalizers: None }.any()
}

fn news(object: &DynamicObject, status: &Value) -> Option<Value> {
    (object.data.get("status") != Some(status)).then(|| status.clone())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::api::{ApiResource, GroupVersionKind};

    use super::*;

    fn object(kind: &str, name: &str, data: Value) -> DynamicObject {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("moorline.io", "v1alpha1", kind));
        DynamicObject::new(name, &kind).data(data)
    }

    fn node(volumes: u32) -> NodeStatus {
        let share = json!({"name": "data", "volumes": volumes, "pending": 0});
        let server = json!({"gateway": "gw", "target": "a", "answers": true});
        serde_json::from_value(json!({"version": "1", "shares": [share], "servers": [server]})).unwrap()
    }

    #[test]
    fn a_share_in_use_is_held_and_says_by_how_many() {
        let mut share = object("Share", "data", json!({"spec": {}}));
        let change = of_share(&share, &[node(2), node(1)]).unwrap();
        assert_eq!(change.finalizers.as_deref(), Some(&[IN_USE.to_owned()][..]));
        assert_eq!(change.status.as_ref().unwrap()["health"], "Served");
        share.data["status"] = change.status.unwrap();
        share.metadata.finalizers = change.finalizers;
        assert_eq!(of_share(&share, &[node(2), node(1)]), None);
        share.metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        let status = of_share(&share, &[node(3)]).unwrap().status.unwrap();
        assert!(status["message"].as_str().unwrap().contains("in use by 3 pods"), "{status}");
        assert_eq!(of_share(&share, &[]).unwrap().finalizers, Some(vec![]));
        share.metadata.finalizers = None;
        assert_eq!(of_share(&share, &[node(1)]).unwrap().finalizers, None, "it is too late for one");
    }

    #[test]
    fn a_gateway_has_its_targets_in_their_order() {
        let gateway = object("Gateway", "gw", json!({"spec": {"targets": [{"name": "b"}, {"name": "a"}]}}));
        let status = of_gateway(&gateway, &[node(1)]).unwrap().status.unwrap();
        let targets = json!([{"name": "b", "answers": 0, "away": 0}, {"name": "a", "answers": 1, "away": 0}]);
        assert_eq!((&status["targets"], &status["health"]), (&targets, &json!("Answers")));
    }
}
