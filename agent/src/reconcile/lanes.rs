//! Steps are done in lanes: side by side, and in each lane one after the other.

use std::sync::Arc;
use std::time::Duration;

use moorline_shared::plan::{Lane, Step};
use tracing::{debug, error};

use crate::host::StepError;

use super::{Event, Reconciler, chain};

/// How long another target is preferred to one that would not let a share be mounted.
const UNMOUNTABLE: Duration = Duration::from_secs(60);

impl Reconciler {
    /// A lane's steps, one after the other. What was planned while it is busy is planned again when it is done.
    pub(super) fn execute(&mut self, lane: Lane, steps: Vec<Step>) {
        self.busy.insert(lane.clone(), steps.clone());
        let (host, desired, events) = (self.host.clone(), self.desired.clone(), self.events.clone());
        // The loop ends before its executors only when the process does: nobody minds what can't be sent then.
        let work = async move {
            let mut last = None;
            for step in steps {
                if let Some((step, result)) = last.take() {
                    let _ = events.send(Event::Did { step, result }).await;
                }
                let result = host.perform(&step, &desired).await;
                let failed = result.is_err();
                last = Some((step, result));
                // It may have taken long: what comes after it is planned anew, as things are by now.
                if failed {
                    break;
                }
            }
            last
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            // A panic ends the step, not the lane. The last step's end and the lane's are one event, and so one round.
            let last = tokio::spawn(work).await.unwrap_or_else(|panic| {
                error!("a step of {lane:?} ended in a bug: {panic}");
                None
            });
            let _ = events.send(Event::Free { lane, last }).await;
        });
    }

    pub(super) fn note_result(&mut self, step: Step, result: Result<Option<String>, StepError>) {
        if let Step::Flush(id) = &step {
            self.note_flush(id, result.is_ok());
        }
        match result {
            Ok(words) => {
                match &step {
                    // Repeated as long as anything holds it: what opens it later must not wait either.
                    Step::Abort(id) => self.note_abort(id),
                    Step::Unpublish(id) => {
                        self.tell_done(&step);
                        self.asked.remove(id);
                        let desired = Arc::make_mut(&mut self.desired);
                        desired.returning.remove(id);
                        let gone = desired.publications.remove(id);
                        self.tell_done_to_callers(*id, false, None);
                        // Told of, and not listed: nobody else will say that the pod is no more.
                        if let Some(gone) = gone.filter(|_| !self.pods.complete) {
                            let uid = &gone.pod.uid;
                            if !self.desired.publications.values().any(|publication| publication.pod.uid == *uid) {
                                self.pods.known.remove(uid);
                            }
                        }
                    }
                    Step::Publish(id, _) if words.is_some() => self.note_errand(*id, words),
                    Step::Publish(id, _) => {
                        self.tell_done(&step);
                        if self.desired.publications.get(id).is_some_and(|publication| publication.wanted) {
                            self.tell_done_to_callers(*id, true, None);
                        }
                    }
                    step => self.tell_done(step),
                }
                if let Step::Mount(id, _) = &step {
                    self.unmountable.remove(&(id.share.clone(), id.namespace.target.clone()));
                }
                // Planned again all the same it waits, and less and less often is it done: each time costs a process.
                self.setbacks.done_for_now(step, (self.clock)());
            }
            Err(error) => {
                let message = chain(&error);
                if let Step::Mount(id, _) = &step {
                    let until = (self.clock)() + UNMOUNTABLE;
                    self.unmountable.insert((id.share.clone(), id.namespace.target.clone()), until);
                }
                let is_new = self.setbacks.failed(step.clone(), (self.clock)(), &message);
                if !is_new {
                    debug!("still failing: {step}: {message}");
                }
                self.tell_failed(&step, &error, &message, is_new);
                self.tell_publishers(&step, &message, error.definite());
            }
        }
    }
}
