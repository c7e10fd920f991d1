//! What is asked of a node's agent to be done in a share: a directory for a claim is made, put aside or deleted. Asked by the
//! controller, through the object that bears the node's name.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::sub_dir::SubDir;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Errand {
    /// What tells it from all others, for ever: the UID of the claim that it is for. Parts of names are made of it.
    #[cfg_attr(feature = "schema", schemars(with = "String", regex(pattern = crate::schema::NAME), length(max = 63)))]
    pub id: Name,
    #[cfg_attr(feature = "schema", schemars(with = "String", regex(pattern = crate::schema::NAME), length(max = 63)))]
    pub share: Name,
    /// The share's root itself is nobody's to make or to delete.
    #[cfg_attr(feature = "schema", schemars(with = "String", length(min = 1, max = 1024)))]
    pub sub_dir: SubDir,
    pub task: Task,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Task {
    /// With this owner and these permissions, if it is not there yet.
    Make { uid: u32, gid: u32, mode: u32 },
    /// If it was made for the same id, and nothing is in it.
    Unmake {},
    /// It stays, under another name beside its own.
    Archive {},
    /// With all that is in it, and nothing that is mounted there. A dry run says what would go.
    #[serde(rename_all = "camelCase")]
    Delete { dry_run: bool },
    /// It stays as it is: whatever was asked for by the same id before is not to be done any more.
    Keep {},
}

impl Errand {
    /// What an agent says of a directory that it was to make, and that it has found: no agent ever takes it away.
    pub fn was_there(&self) -> String {
        format!("{} was there", self.sub_dir)
    }

    /// Why such a one stays.
    pub fn is_not_ours(&self) -> String {
        format!(
            "{} was not made for this claim, and so it stays: it was there before. To give up the volume without it, set persistentVolumeReclaimPolicy: Retain and delete the PersistentVolume",
            self.sub_dir
        )
    }
}

impl Task {
    /// Whether something may be gone when it is done.
    pub fn takes_away(&self) -> bool {
        matches!(self, Self::Unmake {} | Self::Archive {} | Self::Delete { dry_run: false })
    }
}

/// What became of an errand so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    pub request: Errand,
    pub state: State,
    /// What was done, what it waits for, or why it can't be.
    #[serde(default)]
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum State {
    /// It is tried again by itself.
    Waiting,
    Done,
    /// Until somebody changes something.
    Failed,
}
