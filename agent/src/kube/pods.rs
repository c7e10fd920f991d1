//! What the API server says of this node's pods: which are being deleted, and when their grace periods end. Only
//! metadata is read.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ObjectMeta, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use moorline_shared::observed::{Deletion, Moment, Pods};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{WATCH, WallClock, explain, is_outdated};
use crate::reconcile::{Clock, Event};

type Metadata = PartialObjectMeta<Pod>;

/// Tells the loop of every change, until the loop has ended. While the API server is away what it said last stands.
pub(crate) async fn watch(client: Client, node: String, clock: Clock, wall: WallClock, events: mpsc::Sender<Event>) {
    let pods: Api<Metadata> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}")).timeout(WATCH);
    let mut stream = pin!(watcher(pods, config).default_backoff());
    let mut known = Known::default();
    // Whether the API server is heard, as it was last said in the log.
    let mut heard = None;
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) if is_outdated(&error) => {
                debug!("listing pods anew: {error}");
                continue;
            }
            Err(error) => {
                if heard == Some(true) && known.whole && events.send(Event::Pods(known.all(false))).await.is_err() {
                    return;
                }
                if heard != Some(false) {
                    warn!(
                        "watch the pods of {node}: {}; trying on, what was said last stands",
                        explain(&error, "pods")
                    );
                }
                heard = Some(false);
                continue;
            }
        };
        // These say that a list will be asked for, and what of it has come so far.
        let again = heard == Some(false) && known.whole;
        if heard != Some(true) && !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
            info!("the API server tells which pods of {node} are being deleted");
            heard = Some(true);
        }
        let changed = known.take_in(event, wall(), clock());
        if let Some(changed) = changed.or_else(|| (again && heard == Some(true)).then(|| known.all(true))) {
            debug!("pods, by UID: {changed:?}");
            if events.send(Event::Pods(changed)).await.is_err() {
                return;
            }
        }
    }
}

/// When a pod was asked to end, and when its grace period is over; none for a pod that may stay.
///
/// The node's time of day may differ from the API server's: it can't make the grace period longer than it is, nor end it
/// before now.
fn deletion(metadata: &ObjectMeta, wall: SystemTime, now: Moment) -> Option<Deletion> {
    let Time(at) = metadata.deletion_timestamp.as_ref()?;
    let grace = metadata.deletion_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let grace = Duration::from_secs(grace.unwrap_or_default());
    let left = SystemTime::from(*at).duration_since(wall).unwrap_or_default().min(grace);
    let ends = now + left;
    Some(Deletion { asked: ends.saturating_sub(grace), ends })
}

/// The node's pods by UID, and what is known of the end of those that are being deleted.
#[derive(Default)]
struct Known {
    /// A list has come.
    whole: bool,
    pods: BTreeMap<String, Option<Ending>>,
    /// What a list that is under way has brought so far.
    listed: BTreeMap<String, Option<Ending>>,
}

#[derive(Clone, PartialEq)]
struct Ending {
    /// What the API server said: as long as it says the same, `deletion` stays what it was when it first did.
    timestamp: Option<Time>,
    grace: Option<i64>,
    deletion: Deletion,
}

impl Known {
    /// All of them, if any has changed. There is nothing to say before the first list is whole.
    fn take_in(&mut self, event: watcher::Event<Metadata>, wall: SystemTime, now: Moment) -> Option<Pods> {
        let before = self.pods.clone();
        let mut first = false;
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(pod) => {
                let looked = self.look_at(&pod.metadata, wall, now);
                self.listed.extend(looked);
            }
            watcher::Event::InitDone => {
                self.pods = std::mem::take(&mut self.listed);
                (self.whole, first) = (true, true);
            }
            watcher::Event::Apply(pod) => {
                let looked = self.look_at(&pod.metadata, wall, now);
                self.pods.extend(looked);
            }
            watcher::Event::Delete(pod) => drop(pod.metadata.uid.and_then(|uid| self.pods.remove(&uid))),
        }
        (first || self.pods != before).then(|| self.all(true))
    }

    fn all(&self, heard: bool) -> Pods {
        let deletion = |ending: &Option<Ending>| ending.as_ref().map(|ending| ending.deletion);
        Pods {
            known: self.pods.iter().map(|(uid, ending)| (uid.clone(), deletion(ending))).collect(),
            complete: true,
            heard,
        }
    }

    fn look_at(&self, metadata: &ObjectMeta, wall: SystemTime, now: Moment) -> Option<(String, Option<Ending>)> {
        let uid = metadata.uid.clone()?;
        let (timestamp, grace) = (metadata.deletion_timestamp.clone(), metadata.deletion_grace_period_seconds);
        let ending = deletion(metadata, wall, now).map(|deletion| match self.pods.get(&uid) {
            Some(Some(known)) if known.timestamp == timestamp && known.grace == grace => known.clone(),
            // It was seen without one: it was asked just now, whatever the node's clock makes of the time of day.
            Some(None) => {
                let whole = deletion.ends.saturating_sub(deletion.asked);
                Ending { timestamp, grace, deletion: Deletion { asked: now, ends: now + whole } }
            }
            _ => Ending { timestamp, grace, deletion },
        });
        Some((uid, ending))
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use kube::core::PartialObjectMetaExt;
    use watcher::Event;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn moment(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    fn ending(uid: &str, ends: u64, grace: i64) -> Metadata {
        ObjectMeta {
            uid: Some(uid.to_owned()),
            deletion_timestamp: Some(Time(at(ends).try_into().unwrap())),
            deletion_grace_period_seconds: Some(grace),
            ..ObjectMeta::default()
        }
        .into_response_partial()
    }

    fn staying(uid: &str) -> Metadata {
        ObjectMeta { uid: Some(uid.to_owned()), ..ObjectMeta::default() }.into_response_partial()
    }

    fn span(asked: u64, ends: u64) -> Deletion {
        Deletion { asked: moment(asked), ends: moment(ends) }
    }

    #[track_caller]
    fn expect(changed: Option<Pods>, pods: &[(&str, Option<Deletion>)]) {
        let known = pods.iter().map(|(uid, deletion)| ((*uid).to_owned(), *deletion)).collect();
        assert_eq!(changed, Some(Pods { known, complete: true, heard: true }));
    }

    #[test]
    fn a_grace_period_ends_when_it_does_and_no_clock_stretches_it() {
        let seen = |wall, now, grace| deletion(&ending("a", 30, grace).metadata, at(wall), moment(now));
        assert_eq!(seen(0, 100, 30), Some(span(100, 130)), "asked just now");
        assert_eq!(seen(20, 100, 30), Some(span(80, 110)), "asked a while ago: the agent has restarted");
        assert_eq!(seen(20, 5, 30), Some(span(0, 15)), "asked before the origin of the loop's clock");
        assert_eq!(seen(500, 100, 30), Some(span(70, 100)), "long over, or the node's clock is ahead");
        assert_eq!(seen(0, 100, 10), Some(span(100, 110)), "the node's clock is behind");
        assert_eq!(seen(0, 100, 0), Some(span(100, 100)), "no grace");
        assert_eq!(seen(0, 100, -1), Some(span(100, 100)), "nonsense");
        assert_eq!(deletion(&staying("a").metadata, at(0), moment(100)), None);
    }

    #[test]
    fn an_end_is_fixed_when_first_seen_and_moves_only_with_the_word_of_it() {
        let mut known = Known::default();
        expect(known.take_in(Event::Apply(staying("a")), at(0), moment(100)), &[("a", None)]);
        let changed = known.take_in(Event::Apply(ending("a", 30, 30)), at(0), moment(100));
        expect(changed, &[("a", Some(span(100, 130)))]);
        // The node's clock was set back: the end stays where it was.
        assert_eq!(known.take_in(Event::Apply(ending("a", 30, 30)), at(5), moment(120)), None);
        // The node's clock is far ahead: a pod that was there a moment ago has its whole grace.
        known.take_in(Event::Apply(staying("b")), at(0), moment(50));
        let changed = known.take_in(Event::Apply(ending("b", 30, 30)), at(500), moment(100));
        expect(changed, &[("a", Some(span(100, 130))), ("b", Some(span(100, 130)))]);
        known.take_in(Event::Delete(staying("b")), at(0), moment(100));
        // Deleted once more, with less grace.
        let changed = known.take_in(Event::Apply(ending("a", 12, 2)), at(10), moment(110));
        expect(changed, &[("a", Some(span(110, 112)))]);
    }

    #[test]
    fn a_list_takes_the_place_of_what_was_known_when_it_is_whole() {
        let mut known = Known::default();
        for uid in ["a", "b"] {
            known.take_in(Event::Apply(ending(uid, 30, 30)), at(0), moment(100));
        }
        for event in [Event::Init, Event::InitApply(ending("c", 60, 30)), Event::Init] {
            assert_eq!(known.take_in(event, at(10), moment(110)), None, "cut short");
        }
        for event in [Event::InitApply(ending("b", 30, 30)), Event::InitApply(staying("d"))] {
            assert_eq!(known.take_in(event, at(40), moment(140)), None);
        }
        let listed = known.take_in(Event::InitDone, at(40), moment(140));
        expect(listed, &[("b", Some(span(100, 130))), ("d", None)]);
        expect(known.take_in(Event::Delete(ending("b", 30, 30)), at(41), moment(141)), &[("d", None)]);
        assert_eq!(known.take_in(Event::Delete(staying("e")), at(41), moment(141)), None);
    }

    #[test]
    fn an_empty_list_is_news_of_its_own() {
        expect(Known::default().take_in(Event::InitDone, at(0), moment(1)), &[]);
    }
}
