//! Signs of life: values that anybody may look at without waiting for anybody, whatever the loop hangs on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::reconcile::Clock;

/// The loop makes a round every five seconds at the least: three that are missing are no coincidence.
const LONGEST_ROUND: Duration = Duration::from_secs(15);

pub(crate) struct Vitals {
    clock: Clock,
    /// When the loop ended its last round, in milliseconds of the loop's clock.
    last_round: AtomicU64,
    made_a_round: AtomicBool,
    objects_read: AtomicBool,
    serves_kubelet: AtomicBool,
    registered: AtomicBool,
}

impl Vitals {
    pub(crate) fn new(clock: Clock) -> Self {
        // Until the first round counts from now: it is late after the same time.
        let last_round = AtomicU64::new(millis(clock()));
        Self {
            clock,
            last_round,
            made_a_round: AtomicBool::new(false),
            objects_read: AtomicBool::new(false),
            serves_kubelet: AtomicBool::new(false),
            registered: AtomicBool::new(false),
        }
    }

    /// The loop has ended a round.
    pub(crate) fn made_a_round(&self) {
        self.last_round.store(millis((self.clock)()), Ordering::Relaxed);
        self.made_a_round.store(true, Ordering::Relaxed);
    }

    pub(crate) fn objects_read(&self) {
        self.objects_read.store(true, Ordering::Relaxed);
    }

    pub(crate) fn serves_kubelet(&self) {
        self.serves_kubelet.store(true, Ordering::Relaxed);
    }

    /// Kubelet knows the driver, or does not any more.
    pub(crate) fn registered(&self, registered: bool) {
        self.registered.store(registered, Ordering::Relaxed);
    }

    pub(crate) fn since_round(&self) -> Duration {
        (self.clock)().saturating_sub(Duration::from_millis(self.last_round.load(Ordering::Relaxed)))
    }

    /// What is wrong with the loop, if anything is. A restart is the cure.
    pub(crate) fn illness(&self) -> Option<String> {
        let since = self.since_round();
        (since > LONGEST_ROUND).then(|| format!("the loop has made no round for {:.0} s", since.as_secs_f64()))
    }

    /// Whether a pod that comes now gets its volumes, as far as it lies with the agent.
    pub(crate) fn is_fit(&self) -> bool {
        self.registered.load(Ordering::Relaxed) && self.missing().is_empty()
    }

    /// What is still missing before pods can be served. It comes, or the log says what is in its way.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let marks = [
            (&self.made_a_round, "what an earlier agent left is not adopted yet"),
            (&self.objects_read, "the objects are not read yet"),
            (&self.serves_kubelet, "the CSI socket is not served yet"),
        ];
        marks.iter().filter(|(mark, _)| !mark.load(Ordering::Relaxed)).map(|(_, what)| *what).collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_loop_that_stands_still_is_ill_and_recovers_with_its_next_round() {
        let now = Arc::new(AtomicU64::new(100_000));
        let clock: Clock = {
            let now = now.clone();
            Arc::new(move || Duration::from_millis(now.load(Ordering::Relaxed)))
        };
        let vitals = Vitals::new(clock);
        now.store(115_000, Ordering::Relaxed);
        assert_eq!(vitals.illness(), None);
        now.store(116_000, Ordering::Relaxed);
        assert!(vitals.illness().is_some_and(|what| what.contains("16 s")), "the first round counts as well");
        vitals.made_a_round();
        assert_eq!(vitals.illness(), None);
    }

    #[test]
    fn ready_is_who_has_everything() {
        let vitals = Vitals::new(Arc::new(Duration::default));
        assert_eq!(vitals.missing().len(), 3);
        vitals.made_a_round();
        vitals.objects_read();
        assert_eq!(vitals.missing(), ["the CSI socket is not served yet"]);
        vitals.serves_kubelet();
        assert!(vitals.missing().is_empty());
    }
}
