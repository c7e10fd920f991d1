//! What the application writes down: one JSON line for each thing it did.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Seconds on CLOCK_MONOTONIC, when the operation ended.
    pub at: f64,
    /// How long it took, in seconds.
    pub took: f64,
    pub op: Op,
    pub path: String,
    /// 0, or the error's number.
    pub errno: i32,
    pub bytes: u64,
    /// The tag of what was read, or the number of the record that was acknowledged.
    pub tag: String,
    /// What was wrong, in words: also for a file that could be read and was not whole.
    pub problem: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Open, read all, verify.
    Read,
    /// Append a record and fsync: acknowledged when it is done.
    Write,
    /// An fsync begins, of the record whose number is the tag; how it ended is a Write.
    Sync,
    /// Its working directory is listed.
    List,
    /// A record is written, and not synced.
    Dirty,
    /// A write where there must be none.
    Trespass,
    /// A look for a name that was never asked for, and isn't there.
    Search,
    /// A read through a descriptor that was opened once.
    Keep,
    /// A file that was mapped into memory once is read through the mapping, or altered, and that acknowledged by msync.
    Map,
}

impl Event {
    pub fn succeeded(&self) -> bool {
        self.errno == 0 && self.problem.is_none()
    }
}
