//! Leases of volumes whose node is no more, or was given up by an admin: nobody writes there any longer.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;

/// How an admin says that a node is off, and that its volumes may be had by others.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Those that may be deleted, with the node that has each.
pub(crate) fn ownerless<'a>(leases: &'a [Lease], nodes: &BTreeMap<String, Node>) -> Vec<(&'a Lease, &'a str)> {
    let holder = |lease: &'a Lease| lease.spec.as_ref()?.holder_identity.as_deref();
    let held = leases.iter().filter_map(|lease| Some((lease, holder(lease)?)));
    held.filter(|(_, holder)| nodes.get(*holder).is_none_or(is_out_of_service)).collect()
}

pub(crate) fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lease_goes_with_its_node_and_no_sooner() {
        let lease = |holder: &str| serde_json::from_value(json!({"spec": {"holderIdentity": holder}})).unwrap();
        let leases: Vec<Lease> = ["there", "gone", "off"].map(lease).into();
        let node =
            |taint: &str| serde_json::from_value(json!({"spec": {"taints": [{"key": taint, "effect": "NoExecute"}]}}));
        let nodes = [("there", "node.kubernetes.io/unreachable"), ("off", OUT_OF_SERVICE)];
        let nodes = nodes.map(|(name, taint)| (name.to_owned(), node(taint).unwrap())).into();
        let holders: Vec<&str> = ownerless(&leases, &nodes).into_iter().map(|(_, holder)| holder).collect();
        assert_eq!(holders, ["gone", "off"], "a node that is not heard from may still write");
    }
}
