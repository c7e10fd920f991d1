//! The report, as it changes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use hyper::Response;
use hyper::body::Bytes;
use moorline_shared::report::Report;
use tokio::sync::watch;

use super::Api;
use crate::http::{Body, line, lines};
use crate::reconcile::Denied;

/// From one line to the next at the least.
const PAUSE: Duration = Duration::from_millis(250);
/// Lines that differ from the last in nothing but figures are sent this many looks apart.
const FIGURES_EVERY: u32 = 4;

/// The whole report at once, and again whenever it has changed.
pub(super) async fn watch(api: &Api) -> Result<Response<Body>, Denied> {
    // Subscribed before the first look, so that no change falls in between.
    let reports = api.window.reports();
    let first = Arc::new(api.door.report().await?);
    let begin = Follower { reports, sent: first.clone(), skipped: 0 };
    let rest = stream::unfold(begin, |mut follower| async move {
        let report = follower.next().await?;
        Some((Bytes::from(line(&*report)), follower))
    });
    let first = Bytes::from(line(&*first));
    Ok(lines(futures_util::StreamExt::chain(stream::iter([first]), rest)))
}

/// One reader. It is asked for its next line when there is room for it: one that does not read costs nothing, and
/// finds the state of that moment when it reads on.
struct Follower {
    reports: watch::Receiver<Option<Arc<Report>>>,
    sent: Arc<Report>,
    /// Reports since the last line that differed from it in figures alone.
    skipped: u32,
}

impl Follower {
    /// None when the agent ends.
    async fn next(&mut self) -> Option<Arc<Report>> {
        loop {
            tokio::time::sleep(PAUSE).await;
            self.reports.changed().await.ok()?;
            let Some(report) = self.reports.borrow_and_update().clone() else { continue };
            if *report == *self.sent {
                continue;
            }
            if report.differs_only_in_figures(&self.sent) && self.skipped + 1 < FIGURES_EVERY {
                self.skipped += 1;
                continue;
            }
            (self.sent, self.skipped) = (report.clone(), 0);
            return Some(report);
        }
    }
}
