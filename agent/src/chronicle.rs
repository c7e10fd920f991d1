//! What happened, told once: logged, counted, and kept for those who ask on the agent's socket.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::jiff::Timestamp;
use moorline_shared::happening::{Gravity, Happening, Record};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::kube::WallClock;
use crate::metrics::Metrics;

/// How many are kept: enough for the story of one failover under many pods, and some hundred kilobytes at most.
const KEPT: usize = 256;

pub(crate) struct Chronicle {
    wall: WallClock,
    metrics: Metrics,
    /// Held for as long as it takes to copy some pointers, never while somebody waits for a reader.
    kept: Mutex<VecDeque<Arc<Record>>>,
    /// The sequence number of the latest.
    latest: watch::Sender<u64>,
}

impl Chronicle {
    pub(crate) fn new(wall: WallClock, metrics: Metrics) -> Self {
        Self { wall, metrics, kept: Mutex::default(), latest: watch::Sender::new(0) }
    }

    pub(crate) fn tell(&self, happening: &Happening) {
        log(happening);
        self.metrics.count(happening);
        let sequence = *self.latest.borrow() + 1;
        let record = Arc::new(Record::of(happening, sequence, self.time_of_day()));
        let mut kept = self.kept();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(record);
        drop(kept);
        self.latest.send_replace(sequence);
    }

    /// Those after number `sequence` that are still kept.
    pub(crate) fn after(&self, sequence: u64) -> Vec<Arc<Record>> {
        self.kept().iter().filter(|record| record.sequence > sequence).cloned().collect()
    }

    /// Changes with each happening.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    fn time_of_day(&self) -> String {
        // One that no calendar knows is a clock that is badly wrong: nothing to fail for.
        Timestamp::try_from((self.wall)()).map(|at| format!("{at:.3}")).unwrap_or_default()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Record>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(happening: &Happening) {
    macro_rules! at {
        ($level:ident) => {
            $level!(
                kind = ?happening.kind(),
                share = happening.share().map(display),
                namespace = happening.pod().map(|pod| display(&pod.namespace)),
                pod = happening.pod().map(|pod| display(&pod.name)),
                publication = happening.publication().map(|publication| display(publication.id())),
                superblock = happening.superblock().map(display),
                "{happening}"
            )
        };
    }
    match happening.gravity() {
        Gravity::Info => at!(info),
        Gravity::Warning => at!(warn),
        Gravity::Error => at!(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_latest_are_kept_and_a_gap_shows() {
        let wall: WallClock = Arc::new(|| UNIX_EPOCH + Duration::from_millis(1_700_000_000_250));
        let chronicle = Chronicle::new(wall, Metrics::default());
        for shares in 0..KEPT + 10 {
            chronicle.tell(&Happening::ObjectsRead { gateways: 1, shares });
        }
        let all = chronicle.after(0);
        assert_eq!(all.len(), KEPT);
        assert_eq!(all.first().map(|record| record.sequence), Some(11), "a reader sees that ten are missing");
        assert_eq!(all[0].at, "2023-11-14T22:13:20.250Z");
        assert_eq!(chronicle.after(KEPT as u64 + 9).len(), 1);
        assert!(chronicle.after(KEPT as u64 + 10).is_empty());
    }
}
