//! Many seeds, side by side, and where an interrupted sweep goes on.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::run;

#[derive(Debug, Clone)]
pub struct Sweep {
    pub seeds: Range<u64>,
    pub threads: usize,
    /// No seed is begun after this.
    pub limit: Option<Duration>,
    /// Keeps the first seed that is not done, or failed; a later sweep begins there.
    pub resume: Option<PathBuf>,
    /// Goes on after so many failures.
    pub failures: usize,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { seeds: 0..1000, threads: 2, limit: None, resume: None, failures: 5 }
    }
}

#[derive(Debug, Default)]
pub struct Swept {
    pub runs: u64,
    /// The first seed that was not done.
    pub next: u64,
    pub failures: Vec<String>,
}

struct Progress {
    /// The next to begin.
    next: u64,
    under_way: BTreeSet<u64>,
    runs: u64,
    failures: Vec<String>,
}

impl Progress {
    /// All before it are done.
    fn first_open(&self) -> u64 {
        self.under_way.first().copied().unwrap_or(self.next)
    }
}

/// Tells of each failure as it is found.
#[expect(clippy::disallowed_methods, reason = "wiring: how long people wait for it")]
pub fn sweep(wanted: &Sweep, found: impl Fn(&str) + Sync) -> Swept {
    let began = Instant::now();
    let kept = wanted.resume.as_ref().and_then(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    // Once all are done it begins anew.
    let next = kept.filter(|kept| wanted.seeds.contains(kept)).unwrap_or(wanted.seeds.start);
    let progress = Mutex::new(Progress { next, under_way: BTreeSet::new(), runs: 0, failures: Vec::new() });
    let lock = || progress.lock().unwrap_or_else(PoisonError::into_inner);
    let take = || {
        let mut progress = lock();
        let late = wanted.limit.is_some_and(|limit| began.elapsed() >= limit);
        if late || progress.next >= wanted.seeds.end || progress.failures.len() >= wanted.failures {
            return None;
        }
        let seed = progress.next;
        progress.next += 1;
        progress.under_way.insert(seed);
        Some(seed)
    };
    thread::scope(|scope| {
        for _ in 0..wanted.threads {
            scope.spawn(|| {
                while let Some(seed) = take() {
                    let broken = run(seed, false).broken;
                    let mut progress = lock();
                    progress.runs += 1;
                    match broken {
                        // Never done, so that the next sweep begins with it.
                        Some(broken) => {
                            let failure = format!("seed {seed}: {broken}\n  replay: {}", replay(seed));
                            found(&failure);
                            progress.failures.push(failure);
                        }
                        None => drop(progress.under_way.remove(&seed)),
                    }
                    if progress.runs % 100 == 0 {
                        keep(wanted, progress.first_open());
                    }
                }
            });
        }
    });
    let progress = progress.into_inner().unwrap_or_else(PoisonError::into_inner);
    let next = progress.first_open();
    keep(wanted, next);
    Swept { runs: progress.runs, next, failures: progress.failures }
}

/// What replays a seed and tells its story.
pub fn replay(seed: u64) -> String {
    format!("cargo run -p moorline-agent --features simulation --bin simulate -- --seeds {seed} --trace")
}

fn keep(wanted: &Sweep, next: u64) {
    let Some(file) = &wanted.resume else { return };
    let fresh = file.with_extension("new");
    let kept: io::Result<()> = fs::write(&fresh, next.to_string()).and_then(|()| fs::rename(&fresh, file));
    if let Err(error) = kept {
        eprintln!("keep the progress in {}: {error}", file.display());
    }
}
