//! What people are told: Events on the pods that suffer, and on the Share, Gateway or Node that it comes from. Few, and the
//! last word is always said.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::DynamicObject;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use moorline_shared::happening::{Gravity, Kind, Record};
use moorline_shared::observed::Moment;
use moorline_shared::report::{PublicationReport, PublicationState};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::objects;
use crate::door::Door;
use crate::reconcile::{Clock, chain};
use crate::window::Window;

const CONTROLLER: &str = "moorline.io/agent";
/// What the API server takes for a note.
const LONGEST: usize = 1024;
/// Of so many it is known what was said last; then all begins anew.
const REMEMBERED: usize = 4096;
/// How long one request may take, and from one that failed to the next.
const PATIENCE: Duration = Duration::from_secs(5);

/// Until nobody tells anything any more.
pub(crate) async fn tell(client: Client, node: String, window: Arc<Window>, door: Door, clock: Clock) {
    let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(node.clone()) };
    let mut teller = Teller {
        recorder: Recorder::new(client.clone(), reporter.clone()),
        reporter,
        said: BTreeMap::new(),
        names: Names { client: client.clone(), left: BTreeMap::new() },
        client,
        node,
        door,
        limits: Limits::default(),
        refused: false,
    };
    let mut news = window.chronicle.news();
    // What was told while the agent began is told as well.
    let mut seen = 0;
    news.mark_changed();
    loop {
        // Both may be waited for again.
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return },
            () = sleep(PATIENCE), if !teller.limits.held_back.is_empty() || !teller.names.left.is_empty() => {}
        }
        for (subject, word) in teller.names.find_those_left().await {
            teller.limits.hear(subject, word);
        }
        for record in window.chronicle.after(seen) {
            seen = record.sequence;
            if let Some((word, whom)) = Word::of(&record) {
                teller.hear(whom, word).await;
            }
        }
        let now = clock();
        for (subject, word) in teller.limits.due(now) {
            teller.say(subject, word).await;
        }
    }
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    reason: &'static str,
    warns: bool,
    note: String,
}

/// Of whom.
#[derive(Debug, Clone, PartialEq)]
enum Whom {
    Pod(ObjectReference),
    /// The Share, and the pods that use it here.
    Share(String),
    Gateway(String),
    Node,
}

impl Word {
    /// Most of what happens is for the log alone. What kubelet says itself when a volume does not come is not said twice.
    fn of(record: &Record) -> Option<(Self, Whom)> {
        let share = || record.share.as_ref().map(|share| Whom::Share(share.to_string()));
        let pod = || record.pod.as_ref().map(|pod| Whom::Pod(pod_reference(&pod.namespace, &pod.name, &pod.uid)));
        let gateway = || record.namespace.as_ref().map(|id| Whom::Gateway(id.target.gateway.to_string()));
        let (reason, whom) = match record.kind {
            Kind::ShareWaits => ("StorageWaits", share()),
            Kind::ShareStale => ("StorageStale", share()),
            Kind::ShareServed => ("StorageServed", share()),
            Kind::FailedOver => ("StorageMoved", share()),
            Kind::Aborting => ("StorageAborted", pod().or_else(share)),
            Kind::ServerAway => ("ServerAway", gateway()),
            Kind::ServerAlive => ("ServerAlive", gateway()),
            Kind::Fenced => ("ServerFenced", gateway()),
            Kind::ShuttingDown => ("StorageLetGo", Some(Whom::Node)),
            Kind::LetGo => ("StorageGone", Some(Whom::Node)),
            Kind::NoNfs => ("NoNfs", Some(Whom::Node)),
            Kind::Adopted
            | Kind::EarlierBoot
            | Kind::ObjectsRead
            | Kind::ObjectRefused
            | Kind::Publishing
            | Kind::Published
            | Kind::ErrandDone
            | Kind::Withdrawn
            | Kind::Unpublishing
            | Kind::Hidden
            | Kind::Unpublished
            | Kind::Orphaned
            | Kind::GoesOn
            | Kind::NamespaceMade
            | Kind::TunnelAttached
            | Kind::NamespaceRemoved
            | Kind::WayMade
            | Kind::WayCarried
            | Kind::WayRemoved
            | Kind::MountDefaultsSet
            | Kind::Mounted
            | Kind::Retired
            | Kind::StepFailed => return None,
        };
        let note = record.message.chars().take(LONGEST).collect();
        Some((Self { reason, warns: record.gravity != Gravity::Info, note }, whom?))
    }
}

fn pod_reference(namespace: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

struct Teller {
    client: Client,
    recorder: Recorder,
    reporter: Reporter,
    /// The last note for each reason, by the subject's UID.
    said: BTreeMap<(String, &'static str), String>,
    names: Names,
    node: String,
    door: Door,
    limits: Limits,
    /// That it may not was said in the log.
    refused: bool,
}

impl Teller {
    /// The recorder counts up what has the same reason, and keeps the note of the first. What is said in other words is another
    /// Event.
    fn begin_anew_with(&mut self, subject: &ObjectReference, word: &Word) {
        let key = (subject.uid.clone().unwrap_or_default(), word.reason);
        let before = self.said.insert(key, word.note.clone());
        if before.is_some_and(|before| before != word.note) || self.said.len() > REMEMBERED {
            self.recorder = Recorder::new(self.client.clone(), self.reporter.clone());
            self.said.retain(|_, note| *note == word.note);
        }
    }

    async fn hear(&mut self, whom: Whom, word: Word) {
        let object = match whom {
            Whom::Pod(pod) => return self.limits.hear(pod, word),
            // As kubelet does it: `kubectl describe node` looks for this.
            Whom::Node => {
                let node = ObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Node".to_owned()),
                    name: Some(self.node.clone()),
                    uid: Some(self.node.clone()),
                    ..ObjectReference::default()
                };
                return self.limits.hear(node, word);
            }
            Whom::Gateway(name) => (objects::Kind::Gateway, name),
            Whom::Share(name) => {
                if let Ok(report) = self.door.report().await {
                    // To a pod whose volume has yet to come kubelet says itself why it does not.
                    let has_it = |it: &&PublicationReport| it.state == PublicationState::Published && !it.node;
                    for user in report.publications.iter().filter(|it| it.share == name).filter(has_it) {
                        self.limits.hear(pod_reference(&user.namespace, &user.pod, &user.pod_uid), word.clone());
                    }
                }
                (objects::Kind::Share, name)
            }
        };
        if let Some((subject, word)) = self.names.find(object, word).await {
            self.limits.hear(subject, word);
        }
    }

    async fn say(&mut self, subject: ObjectReference, word: Word) {
        self.begin_anew_with(&subject, &word);
        let event = Event {
            type_: if word.warns { EventType::Warning } else { EventType::Normal },
            reason: word.reason.to_owned(),
            note: Some(word.note.clone()),
            action: "Serve".to_owned(),
            secondary: None,
        };
        match timeout(PATIENCE, self.recorder.publish(&event, &subject)).await {
            Ok(Ok(())) => {}
            Ok(Err(kube::Error::Api(status))) => {
                // The pod's namespace is being deleted, or the agent may not.
                if !std::mem::replace(&mut self.refused, true) {
                    warn!("tell {} on {}: {}: Events like it are lost", word.reason, shown(&subject), status.message);
                }
            }
            Ok(Err(error)) => {
                debug!("tell {}: {}; later", word.reason, chain(&error));
                self.limits.hear_again(subject, word);
            }
            Err(_) => self.limits.hear_again(subject, word),
        }
    }
}

/// Which object of the cluster is meant: an Event is of a UID, and what happens is of a name.
struct Names {
    client: Client,
    /// The last word of each that was not found out about, since the API server did not answer.
    left: BTreeMap<(objects::Kind, String), Word>,
}

/// The API server did not answer.
struct Away;

impl Names {
    /// None if there is no such object in the cluster, for it may stand in a file; or if that is found out later.
    async fn find(&mut self, object: (objects::Kind, String), word: Word) -> Option<(ObjectReference, Word)> {
        // It is asked once while it is away, and not for each.
        if self.left.is_empty()
            && let Ok(found) = self.reference(&object).await
        {
            return Some((found?, word));
        }
        self.left.insert(object, word);
        None
    }

    async fn find_those_left(&mut self) -> Vec<(ObjectReference, Word)> {
        let mut found = Vec::new();
        while let Some((object, word)) = self.left.pop_first() {
            match self.reference(&object).await {
                Ok(reference) => found.extend(reference.map(|reference| (reference, word))),
                Err(Away) => {
                    self.left.insert(object, word);
                    break;
                }
            }
        }
        found
    }

    async fn reference(&self, (kind, name): &(objects::Kind, String)) -> Result<Option<ObjectReference>, Away> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind.resource());
        let metadata = match timeout(PATIENCE, api.get_metadata_opt(name)).await {
            Ok(Ok(found)) => found.map(|found| found.metadata),
            // The agent may not: that is said where it is told.
            Ok(Err(kube::Error::Api(status))) if status.code < 500 => None,
            Ok(Err(_)) | Err(_) => return Err(Away),
        };
        Ok(metadata.map(|metadata| ObjectReference {
            api_version: Some(kind.resource().api_version),
            kind: Some(kind.name().to_owned()),
            name: metadata.name,
            uid: metadata.uid,
            ..ObjectReference::default()
        }))
    }
}

fn shown(subject: &ObjectReference) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{} {}/{}", part(&subject.kind), part(&subject.namespace), part(&subject.name))
}

/// How often one subject is spoken of: so many at once, and one more in each period. Of what is held back the last word is
/// kept.
const AT_ONCE: u32 = 6;
const PERIOD: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Limits {
    /// What is to be said, by the subject's UID; who has no allowance left waits for it.
    held_back: BTreeMap<String, (ObjectReference, Vec<Word>)>,
    /// How many were said lately, and since when that counts.
    spent: BTreeMap<String, (u32, Moment)>,
}

impl Limits {
    fn hear(&mut self, subject: ObjectReference, word: Word) {
        let Some(uid) = subject.uid.clone() else { return };
        let (_, words) = self.held_back.entry(uid).or_insert_with(|| (subject, Vec::new()));
        words.push(word);
        if words.len() > AT_ONCE as usize {
            words.remove(0);
        }
    }

    /// What could not be said comes before what was heard since.
    fn hear_again(&mut self, subject: ObjectReference, word: Word) {
        let Some(uid) = subject.uid.clone() else { return };
        let (_, words) = self.held_back.entry(uid).or_insert_with(|| (subject, Vec::new()));
        if words.len() < AT_ONCE as usize {
            words.insert(0, word);
        }
    }

    fn due(&mut self, now: Moment) -> Vec<(ObjectReference, Word)> {
        self.spent.retain(|_, (count, since)| {
            let periods = u32::try_from(now.saturating_sub(*since).as_secs() / PERIOD.as_secs()).unwrap_or(u32::MAX);
            *count = count.saturating_sub(periods);
            *since += PERIOD * periods.min(AT_ONCE);
            *count > 0
        });
        let mut due = Vec::new();
        for (uid, (subject, words)) in &mut self.held_back {
            let (count, _) = self.spent.entry(uid.clone()).or_insert((0, now));
            let allowed = (AT_ONCE - (*count).min(AT_ONCE)) as usize;
            // Too late for what came before the last: that is how things are.
            if allowed == 0 && words.len() > 1 {
                words.drain(..words.len() - 1);
            }
            let said = words.len().min(allowed);
            *count += said as u32;
            due.extend(words.drain(..said).map(|word| (subject.clone(), word)));
        }
        self.held_back.retain(|_, (_, words)| !words.is_empty());
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(reason: &'static str) -> Word {
        Word { reason, warns: true, note: String::new() }
    }

    fn said(limits: &mut Limits, seconds: u64) -> Vec<&'static str> {
        limits.due(Duration::from_secs(seconds)).into_iter().map(|(_, word)| word.reason).collect()
    }

    #[test]
    fn a_subject_is_spoken_of_so_often_and_of_more_the_last_is_said_later() {
        let mut limits = Limits::default();
        let pod = |name: &str| pod_reference("training", name, name);
        for _ in 0..3 {
            limits.hear(pod("a"), word("waits"));
            limits.hear(pod("a"), word("served"));
        }
        limits.hear(pod("b"), word("waits"));
        assert_eq!(said(&mut limits, 100), ["waits", "served", "waits", "served", "waits", "served", "waits"]);
        limits.hear(pod("a"), word("waits"));
        limits.hear(pod("a"), word("moved"));
        limits.hear(pod("b"), word("served"));
        assert_eq!(said(&mut limits, 101), ["served"], "b's");
        assert_eq!(said(&mut limits, 129), [""; 0]);
        assert_eq!(said(&mut limits, 130), ["moved"]);
        assert!(limits.held_back.is_empty());
        assert_eq!(said(&mut limits, 1000), [""; 0]);
        assert!(limits.spent.is_empty(), "nothing is kept of who is quiet");
    }

    #[test]
    fn what_could_not_be_said_comes_first() {
        let mut limits = Limits::default();
        let pod = pod_reference("training", "a", "a");
        limits.hear(pod.clone(), word("second"));
        limits.hear_again(pod, word("first"));
        assert_eq!(said(&mut limits, 1), ["first", "second"]);
    }

    #[tokio::test]
    async fn the_last_word_of_an_object_is_kept_while_the_api_server_is_away() {
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let mut names = Names { client, left: BTreeMap::new() };
        let share = || (objects::Kind::Share, "data".to_owned());
        assert!(names.find(share(), word("waits")).await.is_none());
        assert!(names.find(share(), word("served")).await.is_none());
        assert!(names.find_those_left().await.is_empty());
        assert_eq!(names.left, BTreeMap::from([(share(), word("served"))]));
    }
}
