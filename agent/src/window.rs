//! What is seen of the agent from outside. The loop shows it and never waits for who looks.

use std::sync::Arc;

use moorline_shared::report::Report;
use tokio::sync::watch;

use crate::chronicle::Chronicle;
use crate::kube::WallClock;
use crate::metrics::Metrics;
use crate::reconcile::Clock;
use crate::vitals::Vitals;

pub(crate) struct Window {
    pub(crate) metrics: Metrics,
    pub(crate) chronicle: Chronicle,
    pub(crate) vitals: Vitals,
    /// The latest report, while somebody watches. Who is slow misses those in between.
    reports: watch::Sender<Option<Arc<Report>>>,
}

impl Window {
    pub(crate) fn new(clock: Clock, wall: WallClock) -> Self {
        let metrics = Metrics::default();
        Self {
            chronicle: Chronicle::new(wall, metrics.clone()),
            vitals: Vitals::new(clock),
            metrics,
            reports: watch::Sender::new(None),
        }
    }

    /// Whether anybody wants reports: they are dear to make.
    pub(crate) fn is_watched(&self) -> bool {
        self.reports.receiver_count() > 0
    }

    pub(crate) fn show(&self, report: Report) {
        self.reports.send_replace(Some(Arc::new(report)));
    }

    pub(crate) fn reports(&self) -> watch::Receiver<Option<Arc<Report>>> {
        self.reports.subscribe()
    }
}
