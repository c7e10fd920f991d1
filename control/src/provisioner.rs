//! What `provision` decides, done: PersistentVolumes, requests to the agents, Events. What fails, and what somebody else has
//! changed meanwhile, is seen so in the next round.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};
use moorline_shared::errand::Errand;
use moorline_shared::name::Name;
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::provision::desks::{Memory, Moment};
use crate::provision::{Act, Word, acts};
use crate::sight::{Sight, requests, resource};

const CONTROLLER: &str = "moorline.io/controller";
/// What the API server takes for a note.
const LONGEST: usize = 1024;
/// What stays true is said again then.
const AGAIN: Duration = Duration::from_secs(300);

pub(crate) struct Provisioner {
    client: Client,
    sight: Sight,
    memory: Memory,
    teller: Teller,
}

impl Provisioner {
    pub(crate) fn new(client: Client, name: &str, sight: Sight) -> Self {
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(name.to_owned()) };
        let teller = Teller { recorder: Recorder::new(client.clone(), reporter), said: BTreeMap::new() };
        Self { client, sight, memory: Memory::default(), teller }
    }

    /// As long as it is this one that acts.
    pub(crate) async fn settle(&mut self, leads: impl Fn() -> bool, now: Moment) {
        let Some(world) = self.sight.world() else { return };
        for act in acts(&world, &mut self.memory, now) {
            if !leads() {
                return;
            }
            let what = describe(&act);
            match self.run(act, now).await {
                Ok(()) => {}
                // It was changed, made or deleted meanwhile.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    debug!("{what}: {}", status.message)
                }
                Err(error) => warn!("{what}: {error}"),
            }
        }
    }

    async fn run(&mut self, act: Act, now: Moment) -> Result<(), kube::Error> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let parameters = PatchParams::default();
        match act {
            Act::Ask { node, version, requests } => ask(&self.client, &node, &version, &requests).await?,
            Act::MakeVolume(volume) => {
                volumes.create(&PostParams::default(), &volume).await?;
                let name = volume.name_any();
                info!("PersistentVolume {name} is there for its claim");
                if let Some(subject) = volume.spec.and_then(|spec| spec.claim_ref) {
                    let note = format!("Successfully provisioned volume {name}");
                    self.teller.say(Word { subject, reason: "ProvisioningSucceeded", warns: false, note }, now).await;
                }
            }
            Act::LetGo { volume, uid, version, finalizers, delete } => {
                let finalizers = if finalizers.is_empty() { Value::Null } else { json!(finalizers) };
                let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
                volumes.patch(&volume, &parameters, &Patch::Merge(patch)).await?;
                if delete {
                    let preconditions = Some(Preconditions { uid: Some(uid), resource_version: None });
                    volumes.delete(&volume, &DeleteParams { preconditions, ..DeleteParams::default() }).await?;
                }
                info!("PersistentVolume {volume} goes: its directory is in order");
            }
            Act::GrowVolume { volume, version, storage } => {
                let patch =
                    json!({"metadata": {"resourceVersion": version}, "spec": {"capacity": {"storage": storage}}});
                volumes.patch(&volume, &parameters, &Patch::Merge(patch)).await?;
            }
            Act::GrowClaim { namespace, claim, version, storage, conditions } => {
                let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
                let status = json!({"capacity": {"storage": storage}, "conditions": conditions});
                let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
                let grown = claims.patch_status(&claim, &parameters, &Patch::Merge(patch)).await?;
                let note = format!("it is {storage} now; the Share has no limit of its own");
                let word =
                    Word { subject: grown.object_ref(&()), reason: "VolumeResizeSuccessful", warns: false, note };
                self.teller.say(word, now).await;
            }
            Act::Tell(word) => self.teller.say(word, now).await,
        }
        Ok(())
    }
}

/// Of this very version: requests are written by whoever leads, and by the CSI service.
pub(crate) async fn ask(client: &Client, node: &str, version: &str, requests: &[Errand]) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource("MoorlineNode", "moorlinenodes"));
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"requests": requests}});
    api.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// Takes a request back. Read anew as often as somebody else has written meanwhile: its agent does all the time.
pub(crate) async fn take_back(client: &Client, node: &str, id: &Name) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource("MoorlineNode", "moorlinenodes"));
    let only = ListParams::default().fields(&format!("metadata.name={node}"));
    loop {
        let Some(object) = api.list(&only).await?.items.pop() else { return Ok(()) };
        let asked = requests(&object);
        let rest: Vec<Errand> = asked.iter().filter(|request| request.id != *id).cloned().collect();
        if rest.len() == asked.len() {
            return Ok(());
        }
        match ask(client, node, &object.resource_version().unwrap_or_default(), &rest).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            other => return other,
        }
    }
}

fn describe(act: &Act) -> String {
    match act {
        Act::Ask { node, .. } => format!("ask the agent of node {node}"),
        Act::MakeVolume(volume) => format!("make PersistentVolume {}", volume.name_any()),
        Act::LetGo { volume, .. } => format!("let go of PersistentVolume {volume}"),
        Act::GrowVolume { volume, .. } => format!("let PersistentVolume {volume} grow"),
        Act::GrowClaim { namespace, claim, .. } => format!("let the claim {namespace}/{claim} grow"),
        Act::Tell(word) => format!("tell {:?} of {:?}", word.reason, word.subject.name),
    }
}

struct Teller {
    recorder: Recorder,
    /// When what was last said of whom.
    said: BTreeMap<(ObjectKey, &'static str), (String, Moment)>,
}

type ObjectKey = (Option<String>, Option<String>);

impl Teller {
    async fn say(&mut self, word: Word, now: Moment) {
        let ObjectReference { uid, name, .. } = &word.subject;
        let key = ((uid.clone(), name.clone()), word.reason);
        self.said.retain(|_, (_, at)| now.saturating_sub(*at) < AGAIN);
        if self.said.get(&key).is_some_and(|(note, _)| *note == word.note) {
            return;
        }
        info!("{} {}: {}", word.reason, name.as_deref().unwrap_or_default(), word.note);
        let note = shortened(&word.note);
        let type_ = if word.warns { EventType::Warning } else { EventType::Normal };
        let reason = word.reason.to_owned();
        let event = Event { type_, action: reason.clone(), reason, note: Some(note), secondary: None };
        match self.recorder.publish(&event, &word.subject).await {
            Ok(()) => drop(self.said.insert(key, (word.note, now))),
            Err(error) => warn!("tell of {}: {error}", name.as_deref().unwrap_or_default()),
        }
    }
}

fn shortened(note: &str) -> String {
    let end = note.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= LONGEST - 4).last();
    match end {
        Some(end) if end < note.len() => format!("{} ...", &note[..end]),
        _ => note.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use http_body_util::{BodyExt, Full};
    use hyper::body::Bytes;
    use hyper::{Request, Response};
    use kube::client::Body;

    use super::*;

    fn request(id: &str) -> Value {
        json!({"id": id, "share": "data", "subDir": id, "task": {"archive": {}}})
    }

    #[tokio::test]
    async fn a_request_is_taken_back_though_its_agent_writes_meanwhile() {
        let patches: Arc<Mutex<Vec<Value>>> = Arc::default();
        let seen = patches.clone();
        let api_server = tower::service_fn(move |asked: Request<Body>| {
            let seen = seen.clone();
            async move {
                let is_patch = asked.method() == "PATCH";
                let body = asked.into_body().collect().await.unwrap().to_bytes();
                let mut seen = seen.lock().unwrap();
                if is_patch {
                    seen.push(serde_json::from_slice(&body).unwrap());
                }
                let node = json!({
                    "apiVersion": "moorline.io/v1alpha1", "kind": "MoorlineNode",
                    "metadata": {"name": "n", "resourceVersion": (seen.len() + 1).to_string()},
                    "spec": {"requests": [request("csi-a"), request("theirs")]},
                });
                let (code, answer) = match (is_patch, seen.len()) {
                    (true, 1) => {
                        (409, json!({"kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409}))
                    }
                    (true, _) => (200, node),
                    (false, _) => {
                        let list = json!({"apiVersion": "moorline.io/v1alpha1", "kind": "MoorlineNodeList", "metadata": {}, "items": [node]});
                        (200, list)
                    }
                };
                Ok::<_, Infallible>(
                    Response::builder().status(code).body(Full::new(Bytes::from(answer.to_string()))).unwrap(),
                )
            }
        });
        take_back(&Client::new(api_server, "moorline-system"), "n", &"csi-a".parse().unwrap()).await.unwrap();
        let patch = |version: &str| json!({"metadata": {"resourceVersion": version}, "spec": {"requests": [request("theirs")]}});
        assert_eq!(*patches.lock().unwrap(), [patch("1"), patch("2")]);
    }

    #[test]
    fn a_note_is_as_long_as_the_api_server_takes_it() {
        assert_eq!(shortened("short"), "short");
        let long = shortened(&"é".repeat(1000));
        assert!(long.len() <= LONGEST && long.ends_with(" ..."));
    }
}
