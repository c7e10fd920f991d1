//! On which nodes agents run, as the agents' pods tell.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

/// What the pods of the DaemonSet are labelled.
pub(crate) const LABELLED: &str = "app.kubernetes.io/name=moorline-agent";

/// Those whose agent has started. One that never could has nothing mounted.
pub(crate) fn nodes<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> BTreeSet<String> {
    let phase = |pod: &'a Pod| pod.status.as_ref()?.phase.as_deref();
    let started = pods.into_iter().filter(|pod| phase(pod) == Some("Running"));
    started.filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_agent_that_has_not_started_is_none() {
        let pod = |node: &str, phase: &str| {
            serde_json::from_value(json!({"spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}}))
        };
        let pods = [("n1", "Running"), ("n1", "Pending"), ("n2", "Pending"), ("n3", "Running")];
        let pods: Vec<Pod> = pods.into_iter().map(|(node, phase)| pod(node, phase).unwrap()).collect();
        assert_eq!(nodes(&pods), BTreeSet::from(["n1".to_owned(), "n3".to_owned()]));
    }
}
