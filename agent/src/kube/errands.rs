//! What the controller asks of this node, in the object that bears its name: done as errands, and said in its status. As long
//! as a request stands its errand is tried, and when it is gone it is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use moorline_shared::cluster::{GROUP, VERSION};
use moorline_shared::errand::{Errand, Outcome, State};
use moorline_shared::name::Name;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{Ear, WATCH};
use crate::door::Door;
use crate::reconcile::Denied;

/// From one try to the next: where time may help, and where somebody must change something.
const RETRY: Duration = Duration::from_secs(2);
const PERIOD: Duration = Duration::from_secs(30);

pub(super) fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, "MoorlineNode"), "moorlinenodes")
}

/// Until nobody reads what became of them any more. While the API server is away what it said last stands.
pub(crate) async fn run(client: Client, node: String, door: Door, outcomes: watch::Sender<Vec<Outcome>>) {
    let api: Api<DynamicObject> = Api::all_with(client, &resource());
    let config = watcher::Config::default().fields(&format!("metadata.name={node}")).timeout(WATCH);
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    let mut desk = Desk { door, outcomes, running: BTreeMap::new(), listed: Vec::new(), first: true };
    let mut ear = Ear::of("moorlinenodes", "what the controller asks for");
    while let Some(event) = stream.next().await {
        if let Some(event) = ear.hear(event) {
            desk.take_in(event).await;
        }
        if desk.outcomes.is_closed() {
            return;
        }
    }
}

struct Desk {
    door: Door,
    outcomes: watch::Sender<Vec<Outcome>>,
    running: BTreeMap<Name, (Errand, AbortHandle)>,
    /// What a list that is under way has brought so far.
    listed: Vec<Errand>,
    /// Nothing was heard yet.
    first: bool,
}

impl Desk {
    async fn take_in(&mut self, event: watcher::Event<DynamicObject>) {
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(object) => self.listed = requests(&object),
            watcher::Event::InitDone => {
                let wanted = std::mem::take(&mut self.listed);
                if std::mem::replace(&mut self.first, false) {
                    self.forget_all_but(&wanted).await;
                }
                self.settle(wanted);
            }
            watcher::Event::Apply(object) => self.settle(requests(&object)),
            watcher::Event::Delete(_) => self.settle(Vec::new()),
        }
    }

    /// What an earlier agent was asked for, and nobody asks for any more: the same directory's may be another by now.
    async fn forget_all_but(&self, wanted: &[Errand]) {
        for errand in self.door.errands().await.iter().filter(|errand| !wanted.contains(errand)) {
            forget(&self.door, &errand.id).await;
        }
    }

    fn settle(&mut self, wanted: Vec<Errand>) {
        let gone: Vec<Errand> = self
            .running
            .values()
            .map(|(errand, _)| errand)
            .filter(|errand| !wanted.contains(errand))
            .cloned()
            .collect();
        let mut replaced = BTreeSet::new();
        for errand in gone {
            if let Some((_, task)) = self.running.remove(&errand.id) {
                task.abort();
            }
            self.outcomes.send_if_modified(|outcomes| {
                let before = outcomes.len();
                outcomes.retain(|outcome| outcome.request != errand);
                outcomes.len() < before
            });
            if wanted.iter().all(|other| other.id != errand.id) {
                // What is under way may be done all the same; the answer is nobody's.
                let door = self.door.clone();
                tokio::spawn(async move { forget(&door, &errand.id).await });
            } else {
                replaced.insert(errand.id);
            }
        }
        for errand in wanted {
            if self.running.contains_key(&errand.id) {
                continue;
            }
            info!("the controller asks for {} in Share {}", errand.sub_dir, errand.share);
            let (door, outcomes) = (self.door.clone(), self.outcomes.clone());
            let (request, is_another) = (errand.clone(), replaced.contains(&errand.id));
            let task = tokio::spawn(async move {
                if is_another {
                    forget(&door, &request.id).await;
                }
                pursue(door, request, outcomes).await;
            });
            self.running.insert(errand.id.clone(), (errand, task.abort_handle()));
        }
    }
}

/// Who stops forgets it too, and what is still under way goes by itself.
async fn forget(door: &Door, id: &Name) {
    let _ = door.forget_errand(id).await;
}

/// One that this version does not know is nothing it could do; its own place in the status says as much, by being missing.
fn requests(object: &DynamicObject) -> Vec<Errand> {
    let requests = object.data.pointer("/spec/requests").and_then(Value::as_array);
    let read = |request: &Value| {
        let errand = serde_json::from_value(request.clone());
        errand.inspect_err(|error| warn!("a request of the controller's is not understood: {error}")).ok()
    };
    requests.into_iter().flatten().filter_map(read).collect()
}

async fn pursue(door: Door, request: Errand, outcomes: watch::Sender<Vec<Outcome>>) {
    loop {
        let (state, message) = match door.run_errand(request.clone()).await {
            Ok(words) => (State::Done, words),
            // A Share may have been made lately.
            Err(denied @ (Denied::Unavailable(_) | Denied::NotFound(_))) => (State::Waiting, denied.to_string()),
            Err(denied) => (State::Failed, denied.to_string()),
        };
        let outcome = Outcome { request: request.clone(), state, message };
        outcomes.send_if_modified(|outcomes| tell(outcomes, outcome));
        match state {
            State::Done => return,
            State::Waiting => sleep(RETRY).await,
            State::Failed => sleep(PERIOD).await,
        }
    }
}

/// Whether it is news.
fn tell(outcomes: &mut Vec<Outcome>, outcome: Outcome) -> bool {
    match outcomes.iter_mut().find(|other| other.request.id == outcome.request.id) {
        Some(other) if *other == outcome => return false,
        Some(other) => *other = outcome,
        None => outcomes.push(outcome),
    }
    true
}

#[cfg(test)]
mod tests {
    use moorline_shared::errand::Task;
    use moorline_shared::publication::Publication;
    use serde_json::json;
    use tokio::sync::mpsc;
    use tokio::time::timeout;
    use watcher::Event;

    use super::*;
    use crate::reconcile;

    fn node(requests: &Value) -> DynamicObject {
        DynamicObject::new("n", &resource()).data(json!({"spec": {"requests": requests}}))
    }

    fn request(id: &str) -> Value {
        json!({"id": id, "share": "data", "subDir": id, "task": {"archive": {}}})
    }

    fn errand(id: &str) -> Errand {
        serde_json::from_value(request(id)).unwrap()
    }

    fn desk() -> (Desk, mpsc::Receiver<reconcile::Event>, watch::Receiver<Vec<Outcome>>) {
        let (events, inbox) = mpsc::channel(8);
        let (outcomes, said) = watch::channel(Vec::new());
        let desk = Desk {
            door: Door::new("/pods".into(), events),
            outcomes,
            running: BTreeMap::new(),
            listed: vec![],
            first: true,
        };
        (desk, inbox, said)
    }

    async fn next(inbox: &mut mpsc::Receiver<reconcile::Event>) -> reconcile::Event {
        timeout(2 * PERIOD, inbox.recv()).await.ok().flatten().expect("something is asked for")
    }

    async fn asked(inbox: &mut mpsc::Receiver<reconcile::Event>) -> (Publication, reconcile::Reply) {
        match next(inbox).await {
            reconcile::Event::Publish(publication, _, reply) => (publication, reply),
            _ => panic!("something else is asked for"),
        }
    }

    async fn forgotten(inbox: &mut mpsc::Receiver<reconcile::Event>) -> String {
        match next(inbox).await {
            reconcile::Event::Unpublish { target_path, .. } => target_path,
            _ => panic!("something else is asked for"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_pursued_until_it_is_done_and_forgotten_when_it_is_gone() {
        let (mut desk, mut inbox, mut said) = desk();
        desk.take_in(Event::Init).await;
        desk.take_in(Event::InitApply(node(&json!([request("a"), {"id": "of another version"}])))).await;
        let earlier = async {
            match next(&mut inbox).await {
                reconcile::Event::Errands(reply) => reply.send(["a", "old"].map(errand).into()).unwrap(),
                _ => panic!("something else is asked for"),
            }
            assert_eq!(forgotten(&mut inbox).await, "errand:old");
        };
        tokio::join!(desk.take_in(Event::InitDone), earlier);
        let (publication, reply) = asked(&mut inbox).await;
        assert_eq!(publication.errand, Some(Task::Archive {}));
        reply.send(Err(Denied::Unavailable("its server is away".into()))).unwrap();
        said.changed().await.unwrap();
        assert_eq!(said.borrow_and_update()[0].state, State::Waiting);
        let (_, reply) = asked(&mut inbox).await;
        reply.send(Ok(Some("done".into()))).unwrap();
        said.changed().await.unwrap();
        let outcome = said.borrow_and_update()[0].clone();
        assert_eq!((outcome.state, outcome.message.as_str()), (State::Done, "done"));
        // The very same stands: nothing is to be done.
        desk.take_in(Event::Apply(node(&json!([request("a")])))).await;
        desk.take_in(Event::Apply(node(&json!([])))).await;
        assert_eq!(*said.borrow(), []);
        assert_eq!(forgotten(&mut inbox).await, "errand:a");
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_earlier_agent_was_asked_for_is_forgotten_if_it_is_not_the_very_same_by_now() {
        let (desk, mut inbox, _said) = desk();
        let delete = |dry_run| Errand { task: Task::Delete { dry_run }, ..errand("a") };
        let earlier = async {
            match next(&mut inbox).await {
                reconcile::Event::Errands(reply) => reply.send(vec![delete(false), errand("b")]).unwrap(),
                _ => panic!("something else is asked for"),
            }
            assert_eq!(forgotten(&mut inbox).await, "errand:a");
            inbox
        };
        let wanted = [delete(true), errand("b")];
        let ((), mut inbox) = tokio::join!(desk.forget_all_but(&wanted), earlier);
        assert!(inbox.try_recv().is_err(), "b is asked for as it was");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_to_stay_is_said_to_when_nothing_is_under_way_any_more() {
        let (mut desk, mut inbox, mut said) = desk();
        desk.take_in(Event::Apply(node(&json!([request("a")])))).await;
        let _archiving = asked(&mut inbox).await;
        let mut keep = request("a");
        keep["task"] = json!({"keep": {}});
        desk.take_in(Event::Apply(node(&json!([keep])))).await;
        // What asked for the archive is told off first.
        forgotten(&mut inbox).await;
        for answer in [Err(Denied::Unavailable("its hand is at work".into())), Ok(None)] {
            let reconcile::Event::Unpublish { reply, .. } = next(&mut inbox).await else { panic!() };
            let state = if answer.is_ok() { State::Done } else { State::Waiting };
            reply.send(answer).unwrap();
            said.changed().await.unwrap();
            assert_eq!(said.borrow_and_update()[0].state, state);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_changes_is_another() {
        let (mut desk, mut inbox, said) = desk();
        desk.take_in(Event::Apply(node(&json!([request("a")])))).await;
        let (_, first) = asked(&mut inbox).await;
        let mut other = request("a");
        other["task"] = json!({"unmake": {}});
        desk.take_in(Event::Apply(node(&json!([other])))).await;
        assert_eq!(forgotten(&mut inbox).await, "errand:a", "before the other begins");
        assert_eq!(asked(&mut inbox).await.0.errand, Some(Task::Unmake {}));
        assert!(first.send(Ok(None)).is_err(), "nobody waits for it");
        assert_eq!(*said.borrow(), []);
    }
}
