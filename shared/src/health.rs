//! How a mount is, and what may be done to it. One that is being made is none yet, and for one that is slow nothing is done:
//! how long its server takes to answer is told beside it.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Health {
    /// The server answers. Publish and detach freely; never abort.
    Healthy,
    /// The server is away and nothing may take its place yet: I/O blocks, as hard promises. Publishing waits.
    Hung,
    /// The server answers, and does not know the share's root any more. A new epoch is mounted, from the same server if it
    /// exports the share again, else for readers from another.
    Stale,
    /// A newer epoch takes its place: copies of this one are being replaced, its calls aborted.
    FailingOver,
    /// Its network namespace leads nowhere for good. Once a newer epoch has taken its place it is aborted until its last
    /// copy is gone; until then I/O blocks.
    Fenced,
    /// Nobody wants it any more: it is flushed, or aborted if its server is away, and detached.
    Unmounting,
}
