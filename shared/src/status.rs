//! What the cluster is told of how things are: by each agent of its node, and of all nodes together in the status of what
//! people write.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::errand::{Errand, Outcome};
use crate::report::{PublicationState, Report, ServerState, TunnelState};

/// How things are on one node, as its agent says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Of the agent.
    pub version: String,
    /// The Shares by name, for a column.
    #[serde(default)]
    pub summary: String,
    /// How many Shares a new pod can have here: those of the cluster and those of files.
    #[serde(default)]
    pub offered: u32,
    /// The Shares that are used on the node.
    #[serde(default)]
    pub shares: Vec<NodeShare>,
    /// The servers that a way leads to.
    #[serde(default)]
    pub servers: Vec<NodeServer>,
    /// What was refused, and what fails and is tried again.
    #[serde(default)]
    pub problems: Vec<String>,
    /// What became of what the controller asked for.
    #[serde(default)]
    pub outcomes: Vec<Outcome>,
}

/// What the controller asks of one node's agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// Directories that are to be made, put aside or deleted, until the controller has seen that they are.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"])))]
    pub requests: Vec<Errand>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeShare {
    pub name: String,
    /// The target that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Volumes of pods that are there, and those that are on their way.
    pub volumes: u32,
    pub pending: u32,
    /// Its nodeMount is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node_mount: bool,
    /// What it waits for, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// When it was last given another server, or the same one anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_recovery: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeServer {
    pub gateway: String,
    pub target: String,
    pub answers: bool,
}

impl NodeStatus {
    /// Figures that change all the time are left out: each change is a write to the API server.
    pub fn of(report: &Report) -> Self {
        let shares = report.shares.iter().map(|share| {
            let mine = || report.publications.iter().filter(|it| it.share == share.name);
            let count = |state: PublicationState| {
                u32::try_from(mine().filter(|it| !it.node && it.state == state).count()).unwrap_or(u32::MAX)
            };
            NodeShare {
                name: share.name.clone(),
                target: share.target.clone(),
                volumes: count(PublicationState::Published),
                pending: count(PublicationState::Publishing),
                node_mount: mine().any(|it| it.node && it.state == PublicationState::Published),
                waits: share.waiting.clone(),
                last_recovery: None,
            }
        });
        let known =
            report.tunnels.iter().filter(|it| it.state == TunnelState::Attached && it.server != ServerState::Unknown);
        let shares: Vec<NodeShare> = shares.filter(|it| it.volumes + it.pending > 0 || it.node_mount).collect();
        let offered = report.shares.iter().filter(|share| !share.withdrawn).count();
        Self {
            version: report.version.clone(),
            offered: u32::try_from(offered).unwrap_or(u32::MAX),
            summary: listed(shares.iter().map(|share| share.name.clone())),
            shares,
            servers: known
                .map(|it| NodeServer {
                    gateway: it.gateway.clone(),
                    target: it.target.clone(),
                    answers: it.server == ServerState::Alive,
                })
                .collect(),
            problems: report.problems.clone(),
            outcomes: Vec::new(),
        }
    }

    fn share(&self, name: &str) -> Option<&NodeShare> {
        self.shares.iter().find(|share| share.name == name)
    }
}

fn listed(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<String>>().join(", ")
}

/// How a Share is on all nodes together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ShareStatus {
    pub health: ShareHealth,
    /// Nodes where it is mounted.
    pub nodes: u32,
    /// Nodes where it waits for a server.
    pub waiting: u32,
    /// Volumes of pods.
    pub volumes: u32,
    /// What it waits for, on one of the nodes where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When a node last gave it another server, or the same one anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_recovery: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum ShareHealth {
    /// Nobody uses it.
    #[default]
    Idle,
    /// On every node that uses it.
    Served,
    /// On some node that uses it a server is waited for.
    Waiting,
}

impl ShareStatus {
    pub fn of<'a>(name: &str, nodes: impl IntoIterator<Item = &'a NodeStatus>) -> Self {
        let mut status = Self::default();
        for share in nodes.into_iter().filter_map(|node| node.share(name)) {
            status.nodes += u32::from(share.volumes > 0 || share.node_mount);
            status.waiting += u32::from(share.waits.is_some());
            status.volumes += share.volumes;
            status.message = status.message.or_else(|| share.waits.clone());
            // RFC 3339 in UTC: what is later is greater.
            status.last_recovery = status.last_recovery.max(share.last_recovery.clone());
        }
        status.health = match () {
            () if status.waiting > 0 => ShareHealth::Waiting,
            () if status.nodes > 0 => ShareHealth::Served,
            () => ShareHealth::Idle,
        };
        status
    }
}

/// How the servers of a Gateway are, as the nodes see them that use it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// Answers from all of them, from some, or from none; none is asked where nobody uses it.
    pub health: GatewayHealth,
    /// The targets in their order, and which of them are away, for a column.
    #[serde(default)]
    pub summary: String,
    #[serde(default)]
    pub targets: Vec<TargetStatus>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum GatewayHealth {
    #[default]
    Idle,
    Answers,
    Degraded,
    Away,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    pub name: String,
    /// Nodes that it answers.
    pub answers: u32,
    /// Nodes that it does not answer.
    pub away: u32,
}

impl GatewayStatus {
    /// Its targets in their order.
    pub fn of<'a>(name: &str, targets: &[String], nodes: impl IntoIterator<Item = &'a NodeStatus>) -> Self {
        let mut seen: Vec<TargetStatus> =
            targets.iter().map(|name| TargetStatus { name: name.clone(), ..TargetStatus::default() }).collect();
        for server in nodes.into_iter().flat_map(|node| &node.servers).filter(|server| server.gateway == name) {
            if let Some(target) = seen.iter_mut().find(|target| target.name == server.target) {
                target.answers += u32::from(server.answers);
                target.away += u32::from(!server.answers);
            }
        }
        let (answers, away) = seen.iter().fold((0, 0), |sum, it| (sum.0 + it.answers, sum.1 + it.away));
        let health = match (answers, away) {
            (0, 0) => GatewayHealth::Idle,
            (_, 0) => GatewayHealth::Answers,
            (0, _) => GatewayHealth::Away,
            _ => GatewayHealth::Degraded,
        };
        let words = |it: &TargetStatus| match (it.answers, it.away) {
            (_, 0) => it.name.clone(),
            (0, _) => format!("{} (away)", it.name),
            (answers, away) => format!("{} (away for {away} of {} nodes)", it.name, answers + away),
        };
        Self { health, summary: listed(seen.iter().map(words)), targets: seen }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::ShareReport;

    fn node(volumes: u32, waits: Option<&str>, recovered: Option<&str>, answers: bool) -> NodeStatus {
        NodeStatus {
            shares: vec![NodeShare {
                name: "data".into(),
                volumes,
                waits: waits.map(str::to_owned),
                last_recovery: recovered.map(str::to_owned),
                ..NodeShare::default()
            }],
            servers: vec![NodeServer { gateway: "gw".into(), target: "a".into(), answers }],
            ..NodeStatus::default()
        }
    }

    #[test]
    fn a_share_that_is_withdrawn_is_offered_to_nobody() {
        let share = |name: &str, withdrawn: bool| ShareReport {
            name: name.into(),
            gateway: "gw".into(),
            access: "ReadOnly".into(),
            policy: "hard".into(),
            target: None,
            publications: 0,
            withdrawn,
            waiting: None,
        };
        let report = Report {
            node: "n".into(),
            version: "1".into(),
            shares: vec![share("a", false), share("b", true)],
            mounts: Vec::new(),
            publications: Vec::new(),
            tunnels: Vec::new(),
            problems: Vec::new(),
        };
        assert_eq!(NodeStatus::of(&report).offered, 1);
    }

    #[test]
    fn a_share_is_as_it_is_on_the_node_where_it_is_worst() {
        let nodes = [node(2, None, Some("2026-01-01T00:00:00Z"), true), node(1, Some("gone"), None, false)];
        let status = ShareStatus::of("data", &nodes);
        assert_eq!((status.health, status.nodes, status.waiting, status.volumes), (ShareHealth::Waiting, 2, 1, 3));
        assert_eq!(status.message.as_deref(), Some("gone"));
        assert_eq!(status.last_recovery.as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(ShareStatus::of("data", &nodes[..1]).health, ShareHealth::Served);
        assert_eq!(ShareStatus::of("other", &nodes), ShareStatus::default());
    }

    #[test]
    fn a_gateways_targets_are_counted_by_the_nodes_that_ask_them() {
        let nodes = [node(1, None, None, true), node(1, None, None, false)];
        let targets = ["a".to_owned(), "b".to_owned()];
        let status = GatewayStatus::of("gw", &targets, &nodes);
        assert_eq!(status.health, GatewayHealth::Degraded);
        assert_eq!((status.targets[0].answers, status.targets[0].away), (1, 1));
        assert_eq!((status.targets[1].answers, status.targets[1].away), (0, 0));
        assert_eq!(status.summary, "a (away for 1 of 2 nodes), b");
        assert_eq!(GatewayStatus::of("gw", &targets, &nodes[1..]).health, GatewayHealth::Away);
        assert_eq!(GatewayStatus::of("other", &targets, &nodes).health, GatewayHealth::Idle);
    }
}
