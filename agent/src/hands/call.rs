//! The agent's side of a hand.

use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Done, Failure, Request, SUBCOMMAND};

/// How long a hand that was killed may take to end before it counts as left behind.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// Hands that were killed and have not ended.
static LEFT_BEHIND: AtomicU64 = AtomicU64::new(0);

#[derive(Debug, thiserror::Error)]
pub enum HandsError {
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("start a process for it")]
    Start(#[source] std::io::Error),
    #[error("talk to the process that does it")]
    Talk(#[source] std::io::Error),
    #[error("it gave no reply that can be read")]
    Reply(#[source] serde_json::Error),
    #[error("not done after {0:?}: the process was killed, and left behind if the kernel holds it")]
    Deadline(Duration),
}

impl HandsError {
    pub fn definite(&self) -> bool {
        matches!(self, Self::Failed(Failure { definite: true, .. }))
    }
}

/// Performs a request in a process of its own, for `deadline` at most.
pub async fn call(request: &Request, deadline: Duration) -> Result<Done, HandsError> {
    let text = serde_json::to_vec(request).map_err(HandsError::Reply)?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("moorline")
        .arg(SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Nobody waits for it any more if this future is dropped.
        .kill_on_drop(true)
        .spawn()
        .map_err(HandsError::Start)?;
    let outcome = timeout(deadline, exchange(&mut child, &text)).await;
    reap(child);
    let reply = outcome.map_err(|_| HandsError::Deadline(deadline))??;
    serde_json::from_slice::<Result<Done, Failure>>(&reply).map_err(HandsError::Reply)?.map_err(HandsError::Failed)
}

async fn exchange(child: &mut Child, request: &[u8]) -> Result<Vec<u8>, HandsError> {
    let mut reply = Vec::new();
    if let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) {
        stdin.write_all(request).await.map_err(HandsError::Talk)?;
        drop(stdin);
        stdout.read_to_end(&mut reply).await.map_err(HandsError::Talk)?;
    }
    Ok(reply)
}

/// Ends the process and waits for it aside: one that the kernel holds ends when its server is back, or never.
fn reap(mut child: Child) {
    tokio::spawn(async move {
        // The reply is in, or not wanted any more; an error says that it has ended already.
        let _ = child.start_kill();
        if timeout(LAST_BREATH, child.wait()).await.is_err() {
            LEFT_BEHIND.fetch_add(1, Ordering::Relaxed);
            let _ = child.wait().await;
            LEFT_BEHIND.fetch_sub(1, Ordering::Relaxed);
        }
    });
}

/// How many processes the kernel holds at the moment, after their work was given up or done.
pub(crate) fn left_behind() -> u64 {
    LEFT_BEHIND.load(Ordering::Relaxed)
}
