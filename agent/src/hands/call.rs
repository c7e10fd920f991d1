//! The agent's side of a hand.

use std::collections::BTreeSet;
use std::fs;
use std::pin::pin;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moorline_shared::id::SuperblockId;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Done, Failure, Request, SUBCOMMAND};

/// How long a hand that was killed may take to end before it counts as left behind.
const LAST_BREATH: Duration = Duration::from_secs(1);
/// How many hands that are kept may be at work at once: a thousand volumes that come together shall not cost a thousand
/// processes. One that waits in the kernel when its turn is over is held up by somebody, and holds up nobody else.
const TURNS: usize = 4;
const TURN: Duration = Duration::from_millis(50);

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

/// All hands of an agent. What leaves no trace in a process is done by one that is kept for the next time, since starting one
/// takes longer than most of what it does; everything else by a process of its own.
#[derive(Debug)]
pub struct Hands {
    /// What those may still show that were given up and have not ended.
    lingering: Arc<Mutex<Vec<SuperblockId>>>,
    idle: Mutex<Vec<Hand>>,
    turns: Semaphore,
}

impl Default for Hands {
    fn default() -> Self {
        Self { lingering: Arc::default(), idle: Mutex::default(), turns: Semaphore::new(TURNS) }
    }
}

impl Hands {
    /// Has a request performed, in `deadline` at most.
    pub async fn call(&self, request: &Request, deadline: Duration) -> Result<Done, HandsError> {
        let mut text = serde_json::to_vec(request).map_err(HandsError::Reply)?;
        text.push(b'\n');
        let kept = request.work.leaves_no_trace();
        // Never closed, so there is always a turn to come.
        let mut turn = if kept { self.turns.acquire().await.ok() } else { None };
        let mut hand = match kept.then(|| self.take()).flatten() {
            Some(hand) => hand,
            None => Hand::start()?,
        };
        let pid = hand.child.id();
        let outcome = {
            let mut asking = pin!(timeout(deadline, hand.ask(&text)));
            loop {
                match timeout(TURN, asking.as_mut()).await {
                    Ok(outcome) => break outcome,
                    Err(_) if pid.is_none_or(waits_in_the_kernel) => {
                        turn = None;
                        break asking.await;
                    }
                    // The machine is busy, and would be more so with one more process.
                    Err(_) => {}
                }
            }
        };
        let reply = match outcome {
            Ok(Ok(reply)) => serde_json::from_slice::<Result<Done, Failure>>(&reply).map_err(HandsError::Reply),
            Ok(Err(error)) => Err(HandsError::Talk(error)),
            Err(_) => Err(HandsError::Deadline(deadline)),
        };
        if kept && reply.is_ok() {
            self.idle().push(hand);
        } else {
            let shown = request.work.shows().filter(|_| reply.is_err());
            hand.reap(shown.map(|shown| Lingering::new(&self.lingering, shown)));
        }
        // Whoever has the turn next finds the hand there; of those that are done at once, the last sees that nobody works.
        drop(turn);
        self.trim();
        reply?.map_err(HandsError::Failed)
    }

    fn take(&self) -> Option<Hand> {
        let mut idle = self.idle();
        // One that has ended meanwhile, whoever killed it, is reaped by asking.
        std::iter::from_fn(|| idle.pop()).find_map(|mut hand| matches!(hand.child.try_wait(), Ok(None)).then_some(hand))
    }

    /// One waits for the next request. More of them, when many requests have come at once, wait only as long as others work.
    fn trim(&self) {
        let mut idle = self.idle();
        if self.turns.available_permits() == TURNS && idle.len() > 1 {
            idle.drain(1..).for_each(|hand| hand.reap(None));
        }
    }

    pub(crate) fn lingering(&self) -> BTreeSet<SuperblockId> {
        self.lingering.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Hand>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process that performs requests, a line each, for as long as it can read them.
#[derive(Debug)]
struct Hand {
    child: Child,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Hand {
    fn start() -> Result<Self, HandsError> {
        let mut child = Command::new("/proc/self/exe")
            .arg0("moorline")
            .arg(SUBCOMMAND)
            .arg(std::process::id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Nobody waits for it any more if the future that asks it is dropped.
            .kill_on_drop(true)
            .spawn()
            .map_err(HandsError::Start)?;
        let no_pipe = || HandsError::Start(std::io::Error::other("it has no pipe"));
        let (requests, replies) = (child.stdin.take().ok_or_else(no_pipe)?, child.stdout.take().ok_or_else(no_pipe)?);
        Ok(Self { child, requests, replies: BufReader::new(replies) })
    }

    async fn ask(&mut self, request: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut reply = Vec::new();
        self.requests.write_all(request).await?;
        self.replies.read_until(b'\n', &mut reply).await?;
        Ok(reply)
    }

    /// Ends the process and waits for it aside: one that the kernel holds ends when its server is back, or never.
    fn reap(mut self, lingering: Option<Lingering>) {
        tokio::spawn(async move {
            let _lingering = lingering;
            // The reply is in, or not wanted any more; an error says that it has ended already.
            let _ = self.child.start_kill();
            if timeout(LAST_BREATH, self.child.wait()).await.is_err() {
                LEFT_BEHIND.fetch_add(1, Ordering::Relaxed);
                let _ = self.child.wait().await;
                LEFT_BEHIND.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }
}

/// Work that was given up, and is not over before its process has ended.
struct Lingering {
    all: Arc<Mutex<Vec<SuperblockId>>>,
    shown: SuperblockId,
}

impl Lingering {
    fn new(all: &Arc<Mutex<Vec<SuperblockId>>>, shown: &SuperblockId) -> Self {
        all.lock().unwrap_or_else(PoisonError::into_inner).push(shown.clone());
        Self { all: all.clone(), shown: shown.clone() }
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = all.iter().position(|other| *other == self.shown) {
            all.swap_remove(mine);
        }
    }
}

/// It waits for something that no signal but SIGKILL ends: a lock, say, that somebody holds who asks a dead server. What is
/// not known of a process counts as that.
fn waits_in_the_kernel(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in brackets and may hold anything.
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('D'))
}

/// How many processes the kernel holds at the moment, after their work was given up or done.
pub(crate) fn left_behind() -> u64 {
    LEFT_BEHIND.load(Ordering::Relaxed)
}
