//! Volumes that one node may have at a time: a Lease for each, in the agent's own namespace, whose holder is the node that has
//! it. It has no term, since a node that is not heard from may still write: it goes when nothing of the volume is left on its
//! node, or when the controller knows that there is no such node any more. An agent touches only its own.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use moorline_shared::cluster::{LEASE as LABEL, OF_A_VOLUME as LABELLED};
use moorline_shared::id::fingerprint;
use moorline_shared::observed::Leases;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{Ear, WATCH, WallClock};
use crate::reconcile::{Claims, Event, chain};

/// The volume's handle, which may be no label.
const VOLUME: &str = "moorline.io/volume";
/// From a request that failed to the next.
const RETRY: Duration = Duration::from_secs(2);

/// Takes what this node needs, gives back what it does not, and tells who has what, until nobody listens any more.
pub(crate) async fn keep(
    client: Client,
    node: String,
    mut claims: watch::Receiver<Claims>,
    wall: WallClock,
    events: mpsc::Sender<Event>,
) {
    let mut keeper = Keeper { api: Api::default_namespaced(client), known: Known::new(node), wall, events, said: 0 };
    let config = watcher::Config::default().labels(&format!("{LABEL}={LABELLED}")).timeout(WATCH);
    let mut stream = pin!(watcher(keeper.api.clone(), config).default_backoff());
    let mut ear = Ear::of("leases", "Leases");
    let mut behind = false;
    loop {
        // All of them may be waited for again.
        tokio::select! {
            event = stream.next() => match event {
                Some(event) => if let Some(event) = ear.hear(event) {
                    keeper.known.take_in(event);
                },
                None => return,
            },
            changed = claims.changed() => if changed.is_err() { return },
            () = sleep(RETRY), if behind => {}
        }
        if keeper.tell().await.is_err() {
            return;
        }
        behind = keeper.settle(&mut claims).await.is_err();
    }
}

/// Nobody listens any more, or the API server did not do what it was asked: the next round tries again.
struct Cut;

struct Keeper {
    api: Api<Lease>,
    known: Known,
    wall: WallClock,
    events: mpsc::Sender<Event>,
    /// How often the loop was told.
    said: u64,
}

impl Keeper {
    async fn tell(&mut self) -> Result<(), Cut> {
        let Some(leases) = self.known.news() else { return Ok(()) };
        self.said += 1;
        self.events.send(Event::Leases { leases, number: self.said }).await.map_err(|_| Cut)
    }

    /// The loop has heard that the volume is this node's no more, and has not begun anything with it before.
    async fn is_let_go(&mut self, volume: &str, claims: &watch::Receiver<Claims>) -> Result<bool, Cut> {
        self.known.leaving.insert(volume.to_owned());
        self.tell().await?;
        let said = self.said;
        // Of its own, since what else is claimed meanwhile is still news to the receiver itself.
        let mut claims = claims.clone();
        let claims = claims.wait_for(|claims| claims.heard >= said).await.map_err(|_| Cut)?;
        Ok(!claims.unsure && !claims.volumes.contains(volume))
    }

    async fn settle(&mut self, claims: &mut watch::Receiver<Claims>) -> Result<(), Cut> {
        let wanted = claims.borrow_and_update().clone();
        let mut outcome = Ok(());
        for act in self.known.acts(&wanted) {
            let done = match &act {
                Act::Ask(volume) => self.ask(volume).await,
                Act::Take(volume) => self.take(volume).await,
                Act::GiveBack(volume) if self.is_let_go(volume, claims).await? => self.give_back(volume).await,
                Act::GiveBack(volume) => {
                    self.known.leaving.remove(volume);
                    Ok(())
                }
            };
            if let Err(error) = done {
                warn!("{act}: {}; trying on", chain(&error));
                outcome = Err(Cut);
            }
            self.tell().await?;
        }
        outcome
    }

    /// Whose it is: what became of an earlier request is not known.
    async fn ask(&mut self, volume: &str) -> Result<(), kube::Error> {
        let found = self.api.get_opt(&name(volume)).await?;
        self.known.leaving.remove(volume);
        self.known.found(volume, found);
        Ok(())
    }

    async fn take(&mut self, volume: &str) -> Result<(), kube::Error> {
        let lease = lease(volume, &self.known.node, &self.wall);
        match self.api.create(&PostParams::default(), &lease).await {
            Ok(taken) => {
                info!("volume {volume} is this node's");
                self.known.found(volume, Some(taken));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => self.ask(volume).await,
            Err(error) => Err(error),
        }
    }

    async fn give_back(&mut self, volume: &str) -> Result<(), kube::Error> {
        // The very object that was seen to be this node's.
        let uid = self.known.leases.get(volume).and_then(|held| held.uid.clone());
        let preconditions = Some(Preconditions { uid, resource_version: None });
        let parameters = DeleteParams { preconditions, ..DeleteParams::default() };
        match self.api.delete(&name(volume), &parameters).await {
            Ok(_) => info!("volume {volume} is this node's no more"),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return Err(error),
        }
        self.known.found(volume, None);
        self.known.leaving.remove(volume);
        Ok(())
    }
}

/// A volume's handle may be anything; an object's name may not.
fn name(volume: &str) -> String {
    format!("volume-{}", fingerprint(volume))
}

fn lease(volume: &str, node: &str, wall: &WallClock) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(name(volume)),
            labels: Some(BTreeMap::from([(LABEL.to_owned(), LABELLED.to_owned())])),
            annotations: Some(BTreeMap::from([(VOLUME.to_owned(), volume.to_owned())])),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            // A clock that no calendar knows is nothing to fail for.
            acquire_time: wall().try_into().ok().map(MicroTime),
            ..LeaseSpec::default()
        }),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    Ask(String),
    Take(String),
    GiveBack(String),
}

impl std::fmt::Display for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ask(volume) => write!(f, "find out whose volume {volume} is"),
            Self::Take(volume) => write!(f, "take the Lease of volume {volume}"),
            Self::GiveBack(volume) => write!(f, "give back the Lease of volume {volume}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    holder: String,
    uid: Option<String>,
}

/// Who has what, by volume.
struct Known {
    node: String,
    /// A list has come.
    whole: bool,
    leases: BTreeMap<String, Held>,
    /// What a list that is under way has brought so far.
    listed: BTreeMap<String, Held>,
    /// This node's that are being given back, or of which it is not known whether they were.
    leaving: BTreeSet<String>,
    told: Option<Leases>,
}

impl Known {
    fn new(node: String) -> Self {
        Self {
            node,
            whole: false,
            leases: BTreeMap::new(),
            listed: BTreeMap::new(),
            leaving: BTreeSet::new(),
            told: None,
        }
    }

    fn take_in(&mut self, event: watcher::Event<Lease>) {
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(lease) => self.listed.extend(read(lease)),
            watcher::Event::InitDone => {
                self.leases = std::mem::take(&mut self.listed);
                self.whole = true;
            }
            watcher::Event::Apply(lease) => self.leases.extend(read(lease)),
            watcher::Event::Delete(lease) => {
                // An earlier one of the same name may be told of late.
                if let Some((volume, gone)) = read(lease)
                    && self.leases.get(&volume).is_some_and(|held| held.uid == gone.uid)
                {
                    self.leases.remove(&volume);
                }
            }
        }
    }

    fn found(&mut self, volume: &str, lease: Option<Lease>) {
        match lease.and_then(read) {
            Some((of, held)) if of == volume => drop(self.leases.insert(of, held)),
            _ => drop(self.leases.remove(volume)),
        }
    }

    /// Who has what, unless it was told already. There is nothing to say before the first list is whole.
    fn news(&mut self) -> Option<Leases> {
        let mut leases = Leases::default();
        for (volume, held) in &self.leases {
            if held.holder != self.node {
                leases.others.insert(volume.clone(), held.holder.clone());
            } else if !self.leaving.contains(volume) {
                leases.held.insert(volume.clone());
            }
        }
        if !self.whole || self.told.as_ref() == Some(&leases) {
            return None;
        }
        self.told = Some(leases.clone());
        Some(leases)
    }

    fn acts(&self, claims: &Claims) -> Vec<Act> {
        if !self.whole {
            return Vec::new();
        }
        let unknown = self.leaving.iter().map(|volume| Act::Ask(volume.clone()));
        let is_free = |volume: &&String| !self.leases.contains_key(*volume) && !self.leaving.contains(*volume);
        let take = claims.volumes.iter().filter(is_free).map(|volume| Act::Take(volume.clone()));
        let is_idle = |volume: &&String| !claims.unsure && !claims.volumes.contains(*volume);
        let mine = self.leases.iter().filter(|(_, held)| held.holder == self.node).map(|(volume, _)| volume);
        let give_back = mine.filter(is_idle).filter(|volume| !self.leaving.contains(*volume));
        unknown.chain(take).chain(give_back.map(|volume| Act::GiveBack(volume.clone()))).collect()
    }
}

/// Nothing of a Lease that is none of ours, whatever it is labelled.
fn read(lease: Lease) -> Option<(String, Held)> {
    let volume = lease.metadata.annotations?.remove(VOLUME)?;
    let holder = lease.spec?.holder_identity?;
    (lease.metadata.name? == name(&volume)).then_some((volume, Held { holder, uid: lease.metadata.uid }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use watcher::Event;

    use super::*;

    fn of(volume: &str, node: &str, uid: &str) -> Lease {
        let wall: WallClock = Arc::new(|| UNIX_EPOCH);
        let mut lease = lease(volume, node, &wall);
        lease.metadata.uid = Some(uid.to_owned());
        lease
    }

    fn known(leases: Vec<Lease>) -> Known {
        let mut known = Known::new("here".to_owned());
        known.take_in(Event::Init);
        leases.into_iter().for_each(|lease| known.take_in(Event::InitApply(lease)));
        assert_eq!(known.news(), None, "nothing is said before all is known");
        assert_eq!(known.acts(&claims(&["a"])), []);
        known.take_in(Event::InitDone);
        known
    }

    fn claims(volumes: &[&str]) -> Claims {
        Claims { volumes: volumes.iter().map(|volume| (*volume).to_owned()).collect(), ..Claims::default() }
    }

    #[test]
    fn what_is_needed_and_nobodys_is_taken_and_what_is_idle_given_back() {
        let mut known = known(vec![of("mine", "here", "1"), of("idle", "here", "2"), of("theirs", "there", "3")]);
        let leases = known.news().unwrap();
        assert_eq!(leases.held, ["mine".to_owned(), "idle".to_owned()].into());
        assert_eq!(leases.others, [("theirs".to_owned(), "there".to_owned())].into());
        assert_eq!(known.news(), None, "it was told");
        let wanted = claims(&["mine", "theirs", "new"]);
        assert_eq!(known.acts(&wanted), [Act::Take("new".into()), Act::GiveBack("idle".into())]);
        let unsure = Claims { unsure: true, ..wanted };
        assert_eq!(known.acts(&unsure), [Act::Take("new".into())], "it may be what is still mounted");
    }

    #[test]
    fn one_that_is_given_back_is_held_no_more_and_asked_for_if_its_end_is_not_known() {
        let mut known = known(vec![of("a", "here", "1")]);
        known.leaving.insert("a".into());
        assert!(known.news().unwrap().held.is_empty());
        assert_eq!(known.acts(&claims(&["a"])), [Act::Ask("a".into())]);
        known.leaving.clear();
        known.found("a", Some(of("a", "there", "2")));
        assert_eq!(known.news().unwrap().others["a"], "there");
        // The word of the first one's end is late.
        known.take_in(Event::Delete(of("a", "here", "1")));
        assert_eq!(known.news(), None);
        known.take_in(Event::Delete(of("a", "there", "2")));
        assert_eq!(known.acts(&claims(&["a"])), [Act::Take("a".into())]);
    }

    #[test]
    fn a_lease_that_only_looks_like_one_is_none() {
        let mut forged = of("a", "there", "1");
        forged.metadata.name = Some("volume-of-somebody".into());
        assert!(known(vec![forged]).news().unwrap().others.is_empty());
    }

    #[tokio::test]
    async fn nothing_is_given_back_before_the_loop_has_heard_that_it_is() {
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let (events, mut heard) = mpsc::channel(8);
        let (loops, claims) = watch::channel(Claims::default());
        let known = known(vec![of("a", "here", "1"), of("b", "here", "2")]);
        let wall: WallClock = Arc::new(|| UNIX_EPOCH);
        let mut keeper = Keeper { api: Api::default_namespaced(client), known, wall, events, said: 0 };
        for (volume, needed, let_go) in [("a", vec![], true), ("b", vec!["b"], false)] {
            let answer = {
                let mut asked = pin!(keeper.is_let_go(volume, &claims));
                let crate::reconcile::Event::Leases { leases, number } = (tokio::select! {
                    biased;
                    _ = &mut asked => panic!("the loop has not heard"),
                    event = heard.recv() => event.unwrap(),
                }) else {
                    panic!("something else is told")
                };
                assert!(!leases.held.contains(volume));
                // What the loop said before it has heard may be of a round that began with the volume held.
                loops.send_replace(self::claims(&[]));
                let still = tokio::time::timeout(Duration::ZERO, &mut asked).await;
                assert!(still.is_err(), "it was said before");
                loops.send_replace(Claims { heard: number, ..self::claims(&needed) });
                asked.await
            };
            assert_eq!(answer.is_ok_and(|answer| answer), let_go, "{volume}");
        }
    }
}
