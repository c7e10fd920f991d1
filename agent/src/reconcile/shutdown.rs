//! The node shuts down: it waits for us as long as a lock is held.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use moorline_shared::happening::Happening;
use moorline_shared::id::{PublicationId, SuperblockId};
use moorline_shared::observed::{Moment, Observed};
use moorline_shared::plan::{self, Flush, Shutdown, Step};
use tokio::sync::oneshot;
use tracing::error;

use super::{Reconciler, chain};

/// What the loop knows of it beside its times.
#[derive(Default)]
pub(super) struct Leaving {
    /// The node goes down when this is closed.
    lock: Option<OwnedFd>,
    /// Those who wait for the same.
    waiting: Vec<oneshot::Sender<()>>,
    /// When the flushes began that are under way.
    flushing: BTreeMap<SuperblockId, Moment>,
    flushed: BTreeMap<SuperblockId, Flush>,
    /// What was aborted at least once.
    aborted: BTreeSet<SuperblockId>,
}

impl Reconciler {
    pub(super) fn shut_down(&mut self, within: Duration, lock: OwnedFd) {
        let shutdown = Shutdown::new((self.clock)(), within);
        self.tell(&Happening::ShuttingDown { within });
        let there: Vec<PublicationId> = match self.observe(false) {
            Ok(observed) => {
                self.desired.publications.keys().filter(|id| observed.is_published(**id)).copied().collect()
            }
            Err(error) => {
                error!("look at the host: {error}");
                Vec::new()
            }
        };
        let desired = Arc::make_mut(&mut self.desired);
        desired.shutdown = Some(shutdown);
        // Beside those that are not back yet from the last one that did not come.
        desired.returning.extend(there);
        self.keep_returning();
        self.leaving = Leaving { lock: Some(lock), ..Leaving::default() };
        // There is no time for pauses that were grown before.
        self.setbacks.clear();
    }

    /// Those that are there again have not to come back, unless the shutdown's hand is about to take them yet.
    pub(super) fn note_returned(&mut self, observed: &Observed) {
        let taken = |id: &PublicationId| self.busy.values().flatten().any(|step| *step == Step::Detach(*id));
        let is_back = |id: &PublicationId| observed.is_published(*id) && !taken(id);
        let back: Vec<PublicationId> = self.desired.returning.iter().filter(|id| is_back(id)).copied().collect();
        if !back.is_empty() {
            Arc::make_mut(&mut self.desired).returning.retain(|id| !back.contains(id));
        }
    }

    /// Has it on record, if it is not: were the agent to die, its successor would know.
    pub(super) fn keep_returning(&mut self) {
        let returning = &self.desired.returning;
        if self.returning_on_record.as_ref() == Some(returning) {
            return;
        }
        match self.host.keep_returning(returning) {
            Ok(()) => self.returning_on_record = Some(returning.clone()),
            Err(error) => self.complain(chain(&error)),
        }
    }

    pub(super) fn go_on(&mut self) {
        if self.desired.shutdown.is_none() {
            return;
        }
        self.tell(&Happening::GoesOn);
        Arc::make_mut(&mut self.desired).shutdown = None;
        self.leaving = Leaving::default();
        self.setbacks.clear();
    }

    /// The agent is asked to end. Its mounts stay, unless the node ends as well: then the pods had their time, since
    /// kubelet ends those that it needs itself last.
    pub(super) fn stop(&mut self, done: oneshot::Sender<()>) {
        let now = (self.clock)();
        match &mut Arc::make_mut(&mut self.desired).shutdown {
            Some(shutdown) if self.leaving.lock.is_some() => {
                shutdown.hurry(now);
                self.leaving.waiting.push(done);
            }
            _ => {
                // Who asked waits for nothing else.
                let _ = done.send(());
            }
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.lock.is_some()
    }

    pub(super) fn note_flushes(&self, observed: &mut Observed) {
        observed.flushed.clone_from(&self.leaving.flushed);
    }

    pub(super) fn note_flush_begins(&mut self, steps: &[Step], now: Moment) {
        let flushes = steps.iter().filter_map(|step| if let Step::Flush(id) = step { Some(id.clone()) } else { None });
        self.leaving.flushing.extend(flushes.map(|id| (id, now)));
    }

    pub(super) fn note_flush(&mut self, id: &SuperblockId, done: bool) {
        if let Some(began) = self.leaving.flushing.remove(id) {
            self.leaving.flushed.insert(id.clone(), Flush { began, done });
        }
    }

    pub(super) fn note_abort(&mut self, id: &SuperblockId) {
        if self.is_leaving() {
            self.leaving.aborted.insert(id.clone());
        }
    }

    /// Lets the node go down when nothing is left to do for it, or no time. What containers still hold is aborted on and on, what
    /// programs of the node's use is not detached: neither can be waited for.
    pub(super) fn let_go(&mut self, observed: &Observed, next: &[Step], now: Moment) {
        let Some(shutdown) = self.desired.shutdown.filter(|_| self.is_leaving()) else { return };
        let in_time = plan::has_let_go(observed) && self.busy.is_empty();
        let mut left = next.iter().chain(self.busy.values().flatten());
        let is_repeated = |step: &Step| match step {
            Step::Abort(id) => self.leaving.aborted.contains(id),
            // A program of the node's is on it.
            Step::Detach(id) => {
                let is_node_mount = self.desired.publications.get(id).is_some_and(|publication| publication.node);
                is_node_mount && self.setbacks.failure(|failing| failing == step).is_some()
            }
            _ => false,
        };
        let only_held = now >= shutdown.pods_until && left.all(is_repeated);
        if !in_time && !only_held && now < shutdown.ends {
            return;
        }
        self.tell(&Happening::LetGo { in_time });
        drop(self.leaving.lock.take());
        for waiting in self.leaving.waiting.drain(..) {
            // Who has gone away meanwhile waits no more.
            let _ = waiting.send(());
        }
    }
}
