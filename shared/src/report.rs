//! What `moorline status` shows: the agent's view, as JSON on its socket.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::health::Health;
use crate::sub_dir::SubDir;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub node: String,
    pub version: String,
    pub shares: Vec<ShareReport>,
    pub mounts: Vec<MountReport>,
    pub publications: Vec<PublicationReport>,
    pub tunnels: Vec<TunnelReport>,
    /// What is wrong with the objects' files, and which steps fail, as it is said in the log.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether they differ in nothing but figures that change all the time: ages, durations and counts of bytes.
    pub fn differs_only_in_figures(&self, other: &Self) -> bool {
        let without = |report: &Self| {
            let mut report = report.clone();
            for tunnel in &mut report.tunnels {
                (tunnel.handshake_age, tunnel.answered_in, tunnel.silent_for) = (None, None, None);
                (tunnel.sent_bytes, tunnel.received_bytes) = (0, 0);
            }
            report
        };
        without(self) == without(other)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShareReport {
    pub name: String,
    pub gateway: String,
    pub access: String,
    pub policy: String,
    /// The target that serves it.
    pub target: Option<String>,
    pub publications: usize,
    /// Its object is gone, and pods that have it keep it: no other gets it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withdrawn: bool,
    /// In words, what it waits for.
    pub waiting: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountReport {
    pub superblock: String,
    pub share: String,
    pub target: String,
    pub read_only: bool,
    pub health: Health,
    /// Copies in containers, the host's publications not counted.
    pub copies: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublicationReport {
    pub id: String,
    pub share: String,
    /// The directory of the share that is shown; none is the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_dir: Option<SubDir>,
    pub namespace: String,
    pub pod: String,
    pub pod_uid: String,
    /// No pod's: its Share's nodeMount.
    #[serde(default)]
    pub node: bool,
    pub read_only: bool,
    pub target_path: String,
    pub state: PublicationState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PublicationState {
    Publishing,
    Published,
    Unpublishing,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelReport {
    pub namespace: String,
    pub gateway: String,
    pub target: String,
    pub endpoint: String,
    pub state: TunnelState,
    pub handshake_age: Option<Duration>,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Whether the NFS server behind it answers.
    pub server: ServerState,
    /// How long its last answer took.
    pub answered_in: Option<Duration>,
    /// Since its last answer, or since it was first asked.
    pub silent_for: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TunnelState {
    Detached,
    Attached,
    Fenced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerState {
    Unknown,
    Alive,
    Away,
}
