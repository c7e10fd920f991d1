//! The node's own object: the startup taint goes when the node can mount, a label says of each node mount that it is there,
//! and a condition whether the servers answer. A server that is away taints nothing: one dead gateway would keep a whole
//! cluster from scheduling. What others labelled it says which node mounts are for it.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use moorline_shared::selector::Labels;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::WallClock;
use crate::reconcile::{Event, Nameplate, chain};

/// Put there by whoever makes nodes (kubelet's --register-with-taints), so that no pod comes before its storage can.
const TAINT: &str = "moorline.io/agent-not-ready";
/// Before the Share's name, in labels of the node.
const LABEL: &str = "mounted.moorline.io/";
const CONDITION: &str = "MoorlineServersAnswer";
/// Whatever others made of the object meanwhile is found again.
const PERIOD: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(10);

/// Until nobody shows how the node stands any more.
pub(crate) async fn keep(
    client: Client,
    name: String,
    mut nameplate: watch::Receiver<Nameplate>,
    is_fit: impl Fn() -> bool,
    wall: WallClock,
    events: mpsc::Sender<Event>,
) {
    let nodes: Api<Node> = Api::all(client);
    let (mut said, mut told) = (None, None);
    loop {
        let shown = nameplate.borrow_and_update().clone();
        let fit = is_fit();
        let settled = timeout(PATIENCE, settle(&nodes, &name, &shown, fit, &wall)).await;
        let pause = match settled {
            Ok(Ok(labels)) => {
                if told.as_ref() != Some(&labels) {
                    told = Some(labels.clone());
                    if events.send(Event::Labels(labels)).await.is_err() {
                        return;
                    }
                }
                if fit { PERIOD } else { RETRY }
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                if said.as_ref() != Some(&status.message) {
                    warn!(
                        "{}: the node's taint, labels and condition stay as they are, and no Share with a nodeSelector is mounted on it",
                        status.message
                    );
                    said = Some(status.message);
                }
                PERIOD
            }
            // Somebody else changed it meanwhile, or the API server is away.
            Ok(Err(error)) => {
                debug!("keep the Node {name}: {}", chain(&error));
                RETRY
            }
            Err(_) => RETRY,
        };
        // Both may be waited for again.
        tokio::select! {
            changed = nameplate.changed() => if changed.is_err() { return },
            () = sleep(pause) => {}
        }
    }
}

/// The labels that others gave it.
async fn settle(
    nodes: &Api<Node>,
    name: &str,
    nameplate: &Nameplate,
    fit: bool,
    wall: &WallClock,
) -> Result<Labels, kube::Error> {
    let node = nodes.get(name).await?;
    if let Some(patch) = change(&node, nameplate, fit) {
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        info!("Node {name}: {}", patch["metadata"]["labels"]);
    }
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let before = conditions.iter().find(|condition| condition.type_ == CONDITION);
    // A clock that no calendar knows is nothing to fail for.
    let now = wall().try_into().ok().map(Time);
    if let Some(condition) = condition(before, nameplate, now) {
        let patch = json!({"status": {"conditions": [condition]}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await?;
    }
    let mut labels = node.metadata.labels.unwrap_or_default();
    labels.retain(|key, _| !key.starts_with(LABEL));
    Ok(labels)
}

/// What is to be changed of labels and taints, if anything is: of this very version, since a list of taints is replaced as a
/// whole.
fn change(node: &Node, nameplate: &Nameplate, fit: bool) -> Option<Value> {
    let nothing = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&nothing);
    let wanted: BTreeMap<String, &str> =
        nameplate.mounted.iter().map(|share| (format!("{LABEL}{share}"), "true")).collect();
    let gone = labels.keys().filter(|key| key.starts_with(LABEL) && !wanted.contains_key(*key));
    let mut changes: BTreeMap<&str, Value> = gone.map(|key| (key.as_str(), Value::Null)).collect();
    let new = wanted.iter().filter(|(key, value)| labels.get(*key).map(String::as_str) != Some(**value));
    changes.extend(new.map(|(key, value)| (key.as_str(), json!(value))));

    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let kept: Vec<&Taint> = taints.iter().filter(|taint| taint.key != TAINT).collect();
    let untaint = fit && kept.len() < taints.len();
    if changes.is_empty() && !untaint {
        return None;
    }
    let mut patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version, "labels": changes}});
    if untaint {
        patch["spec"] = json!({"taints": kept});
    }
    Some(patch)
}

/// What it is to become, if it is not so already.
fn condition(before: Option<&NodeCondition>, nameplate: &Nameplate, now: Option<Time>) -> Option<NodeCondition> {
    let away: Vec<String> =
        nameplate.servers.iter().filter(|(_, answers)| !**answers).map(|(target, _)| target.to_string()).collect();
    let (status, reason, message) = match () {
        () if nameplate.servers.is_empty() && before.is_none() => return None,
        () if nameplate.servers.is_empty() => ("True", "NoneNeeded", "no volume needs a server here".to_owned()),
        () if away.is_empty() => {
            ("True", "AllAnswer", format!("all {} servers of volumes here answer", nameplate.servers.len()))
        }
        () => ("False", "SomeAway", format!("away: {}; `moorline status` says what waits for them", away.join(", "))),
    };
    if before.is_some_and(|it| it.status == status && it.message.as_ref() == Some(&message)) {
        return None;
    }
    let since = before.filter(|before| before.status == status).and_then(|before| before.last_transition_time.clone());
    Some(NodeCondition {
        type_: CONDITION.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: now.clone(),
        last_transition_time: since.or(now),
    })
}

#[cfg(test)]
mod tests {
    use moorline_shared::id::TargetId;

    use super::*;

    fn node(labels: &[&str], taints: &[&str]) -> Node {
        serde_json::from_value(json!({
            "metadata": {
                "name": "n", "resourceVersion": "7",
                "labels": labels.iter().map(|key| (*key, "true")).collect::<BTreeMap<_, _>>(),
            },
            "spec": {"taints": taints.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect::<Vec<_>>()},
        }))
        .unwrap()
    }

    fn nameplate(mounted: &[&str], servers: &[(&str, bool)]) -> Nameplate {
        Nameplate {
            mounted: mounted.iter().map(|share| share.parse().unwrap()).collect(),
            servers: servers.iter().map(|(target, answers)| (target_of(target), *answers)).collect(),
        }
    }

    fn target_of(target: &str) -> TargetId {
        TargetId { gateway: "gw".parse().unwrap(), target: target.parse().unwrap() }
    }

    #[test]
    fn the_taint_goes_when_the_node_can_mount_and_no_other_does() {
        let tainted = node(&[], &["other", TAINT]);
        assert_eq!(change(&tainted, &nameplate(&[], &[]), false), None);
        // Whatever its servers do.
        let patch = change(&tainted, &nameplate(&[], &[("a", false)]), true).unwrap();
        assert_eq!(patch["spec"]["taints"], json!([{"key": "other", "effect": "NoSchedule"}]));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(change(&node(&[], &["other"]), &nameplate(&[], &[]), true), None);
    }

    #[test]
    fn a_label_is_there_for_each_node_mount_that_is() {
        let before = node(&["mounted.moorline.io/old", "mounted.moorline.io/data", "zone"], &[]);
        let patch = change(&before, &nameplate(&["data", "new"], &[]), true).unwrap();
        let labels = json!({"mounted.moorline.io/old": null, "mounted.moorline.io/new": "true"});
        assert_eq!(patch["metadata"]["labels"], labels);
        assert!(patch.get("spec").is_none());
    }

    #[test]
    fn a_condition_names_who_is_away_and_keeps_its_time() {
        let at = |seconds: i64| Some(Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap()));
        assert_eq!(condition(None, &nameplate(&[], &[]), at(1)), None);
        let well = condition(None, &nameplate(&[], &[("a", true)]), at(1)).unwrap();
        assert_eq!((well.status.as_str(), well.last_transition_time.clone()), ("True", at(1)));
        assert_eq!(condition(Some(&well), &nameplate(&[], &[("a", true)]), at(2)), None);
        let away = condition(Some(&well), &nameplate(&[], &[("a", true), ("b", false)]), at(3)).unwrap();
        assert_eq!((away.status.as_str(), away.last_transition_time.clone()), ("False", at(3)));
        assert!(away.message.as_ref().unwrap().starts_with("away: gw.b; "));
        let both = condition(Some(&away), &nameplate(&[], &[("a", false), ("b", false)]), at(4)).unwrap();
        assert_eq!(both.last_transition_time, at(3), "it is away since then");
    }
}
