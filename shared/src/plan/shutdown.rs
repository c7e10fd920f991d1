//! The node shuts down: what is written is brought to its server while there is a way, then everything is let go of,
//! and the tunnels last. Nothing new begins.

use std::time::Duration;

use super::{Lane, Step, View};
use crate::id::{PublicationId, SuperblockId, User};
use crate::observed::{Layer, Moment};

/// What the node's end costs us at most, once the pods had their time.
const RESERVE: Duration = Duration::from_secs(12);

/// How the time that the node gives us is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    /// Until then pods may end by themselves, and kubelet may take their volumes back.
    pub pods_until: Moment,
    /// Until then what they wrote is brought to its server.
    pub flush_until: Moment,
    /// Then the node goes on without us.
    pub ends: Moment,
}

impl Shutdown {
    /// The node waits for `delay`, counted from a moment that may be some time ago already.
    pub fn new(now: Moment, delay: Duration) -> Self {
        let budget = delay - (delay / 5).min(Duration::from_secs(1));
        let ends = now + budget;
        let reserve = RESERVE.min(budget / 2);
        Self { pods_until: ends - reserve, flush_until: ends - reserve * 3 / 5, ends }
    }

    /// The pods have no more time.
    pub fn hurry(&mut self, now: Moment) {
        let earlier = self.pods_until.saturating_sub(now);
        for moment in [&mut self.pods_until, &mut self.flush_until, &mut self.ends] {
            *moment = moment.saturating_sub(earlier);
        }
    }

    /// For one flush.
    pub fn patience(&self) -> Duration {
        self.flush_until.saturating_sub(self.pods_until)
    }
}

/// How a flush went that was asked for at the node's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flush {
    pub began: Moment,
    pub done: bool,
}

impl View<'_> {
    /// Each writer's superblock is flushed at once, since that takes the longest, and once more when its pod's time is up.
    pub(super) fn shut_down(&self, shutdown: &Shutdown, steps: &mut Vec<Step>) {
        let pods_over = self.now >= shutdown.pods_until || !self.observed.superblocks.iter().any(|id| self.copied(id));
        for id in &self.observed.superblocks {
            let ending = Lane::Ending(id.clone());
            if steps.iter().any(|step| step.lane() == ending) {
                continue;
            }
            let away = self.away(&id.namespace);
            let flushed = self.observed.flushed.get(id);
            let is_flushed = flushed.is_some_and(|flush| !pods_over || flush.began >= shutdown.pods_until);
            let writer = id.user.writes();
            let unwritten = writer && !away && self.copied(id);
            if unwritten && !is_flushed && self.now < shutdown.flush_until {
                steps.push(Step::Flush(id.clone()));
            } else if pods_over {
                let too_late = self.now >= shutdown.flush_until && !flushed.is_some_and(|flush| flush.done);
                self.let_go(id, away || writer && too_late, steps);
            }
        }
    }

    fn let_go(&self, id: &SuperblockId, abort: bool, steps: &mut Vec<Step>) {
        let mine = |layers: &Vec<Layer>| layers.contains(&Layer::Ours(id.clone()));
        let shown: Vec<PublicationId> = self
            .observed
            .published
            .iter()
            .filter(|(_, layers)| mine(layers))
            .map(|(publication, _)| *publication)
            .collect();
        // What is given back is detached for good already.
        let wanted =
            |id: &&PublicationId| self.desired.publications.get(id).is_some_and(|publication| publication.wanted);
        steps.extend(shown.iter().filter(wanted).map(|publication| Step::Detach(*publication)));
        // Programs of the node's may be on a node mount for as long as it can't be detached.
        let by_the_node = matches!(id.user, User::Node(_)) && !shown.is_empty();
        if self.copied(id) || by_the_node && abort {
            // Somebody is still on it, and would wait for ever once the tunnel has ended. Its base mount stays, or nobody
            // could end that. A reader can be killed.
            if abort || id.user.writes() {
                steps.push(Step::Abort(id.clone()));
            }
        } else if shown.is_empty() && !self.observed.beginning.contains(id) && !self.older_is_seen(id) {
            steps.push(Step::Retire { superblock: id.clone(), abort });
        }
    }

    /// A hand that was given up, and that the kernel holds, may put a copy of this one there yet.
    fn older_is_seen(&self, id: &SuperblockId) -> bool {
        self.observed.superblocks.iter().any(|old| id.succeeds(old) && self.seen_somewhere(old))
    }

    fn copied(&self, id: &SuperblockId) -> bool {
        self.observed.copies.get(id).is_some_and(|copies| copies.all > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_divided_and_never_overdrawn() {
        let now = Duration::from_secs(100);
        for delay in [0, 1, 5, 30, 300] {
            let delay = Duration::from_secs(delay);
            let shutdown = Shutdown::new(now, delay);
            assert!(now <= shutdown.pods_until && shutdown.pods_until <= shutdown.flush_until);
            assert!(shutdown.flush_until <= shutdown.ends && shutdown.ends <= now + delay, "{shutdown:?}");
        }
        let mut shutdown = Shutdown::new(now, Duration::from_secs(300));
        assert_eq!(shutdown.ends - shutdown.pods_until, RESERVE);
        shutdown.hurry(now);
        assert_eq!((shutdown.pods_until, shutdown.ends), (now, now + RESERVE));
        shutdown.hurry(now + RESERVE);
        assert_eq!(shutdown.ends, now + RESERVE, "what is over is over");
    }
}
