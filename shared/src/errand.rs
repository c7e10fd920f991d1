//! What is asked of a node's agent to be done in a share: a directory for a claim is made, put aside or deleted. Asked by the
//! controller, through the object that bears the node's name.

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::sub_dir::SubDir;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Errand {
    /// What tells it from all others, for ever: the UID of the claim that it is for. Parts of names are made of it.
    pub id: Name,
    pub share: Name,
    /// The share's root itself is nobody's to make or to delete.
    pub sub_dir: SubDir,
    pub task: Task,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Task {
    /// With this owner and these permissions, if it is not there yet.
    Make { uid: u32, gid: u32, mode: u32 },
    /// It stays, under another name beside its own.
    Archive,
    /// With all that is in it, and nothing that is mounted there. A dry run says what would go.
    #[serde(rename_all = "camelCase")]
    Delete { dry_run: bool },
}
