//! The one loop: snapshot, plan, steps, observation.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use moorline_shared::id::{NamespaceId, PublicationId, SuperblockId, User};
use moorline_shared::name::Name;
use moorline_shared::observed::{Layer, Moment, Observed, Server, Tunnel};
use moorline_shared::plan::{self, Desired, Lane, Step};
use moorline_shared::publication::Publication;
use moorline_shared::report::Report;
use moorline_shared::yaml::{Located, Problem};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use crate::host::{Host, StepError, paths};
use crate::probe::{PAUSE, Question};
use crate::report::report;

/// How long a publish waits for its mount before the caller is told why and may ask again.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(15);
/// No CSI call waits for a server: an unpublish that is not done by then goes on by itself.
const UNPUBLISH_DEADLINE: Duration = Duration::from_secs(2);
/// From one look at the host to the next, while something is published.
const LOOK: Duration = Duration::from_millis(500);
const IDLE_LOOK: Duration = Duration::from_secs(5);

/// Why a publication is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Conflict(String),
    /// Trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// Trying again won't help until somebody changes something.
    #[error("{0}")]
    Failed(String),
}

pub(crate) type Reply = oneshot::Sender<Result<(), Denied>>;

pub(crate) enum Event {
    Objects(Vec<Located>, Vec<Problem>),
    Publish(Publication, Reply),
    Unpublish { target_path: String, reply: Reply },
    Report(oneshot::Sender<Report>),
    Probed { namespace: NamespaceId, answered: bool },
    Done { lane: Lane, results: Vec<(Step, Result<(), StepError>)> },
}

/// A caller that waits until its publication is there, or gone.
struct Waiter {
    wants_it: bool,
    until: Moment,
    reply: Reply,
}

/// A step that failed is tried again later each time.
struct Setback {
    count: u32,
    until: Moment,
    said: String,
}

/// Reads the clock: the loop itself does not.
pub(crate) type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

pub(crate) struct Reconciler {
    node: String,
    host: Arc<Host>,
    clock: Clock,
    events: mpsc::Sender<Event>,
    desired: Arc<Desired>,
    problems: Vec<Problem>,
    servers: BTreeMap<NamespaceId, Server>,
    probers: BTreeMap<NamespaceId, JoinHandle<()>>,
    /// Steps that are under way.
    busy: BTreeMap<Lane, Vec<Step>>,
    setbacks: HashMap<Step, Setback>,
    waiters: HashMap<PublicationId, Vec<Waiter>>,
    /// Superblocks whose end with an error was logged: it is repeated as long as they are held.
    said_aborting: BTreeSet<SuperblockId>,
    /// What each share waits for, as it was last logged.
    said_waiting: BTreeMap<Name, plan::Waiting>,
}

impl Reconciler {
    pub(crate) fn new(
        node: String,
        host: Arc<Host>,
        clock: Clock,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, StepError> {
        let publications = host.publications()?;
        if !publications.is_empty() {
            info!(count = publications.len(), "adopting the publications of an earlier agent");
        }
        Ok(Self {
            node,
            host,
            clock,
            events,
            desired: Arc::new(Desired { publications, ..Desired::default() }),
            problems: Vec::new(),
            servers: BTreeMap::new(),
            probers: BTreeMap::new(),
            busy: BTreeMap::new(),
            setbacks: HashMap::new(),
            waiters: HashMap::new(),
            said_aborting: BTreeSet::new(),
            said_waiting: BTreeMap::new(),
        })
    }

    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut looked_at = Moment::ZERO;
        loop {
            let idle = self.desired.publications.is_empty() && self.busy.is_empty();
            let due = looked_at + if idle { IDLE_LOOK } else { LOOK };
            // Both branches are cancel-safe: `recv` loses no event when the other one wins, and the timer has no state.
            let mut news = tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                () = tokio::time::sleep(due.saturating_sub((self.clock)())) => true,
            };
            // What has come in meanwhile is one snapshot with it.
            while let Ok(event) = events.try_recv() {
                news |= self.handle(event);
            }
            if news || (self.clock)() >= due {
                looked_at = (self.clock)();
                self.round();
            }
        }
    }

    /// Takes an event in, and says whether anything may follow from it.
    fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Objects(objects, problems) => self.revise(&objects, problems),
            Event::Publish(publication, reply) => self.publish(publication, reply),
            Event::Unpublish { target_path, reply } => self.unpublish(&target_path, reply),
            Event::Report(reply) => {
                if let Ok(observed) = self.observe() {
                    // A caller that has gone away needs no answer.
                    let _ = reply.send(report(
                        &self.node,
                        &self.desired,
                        &observed,
                        &self.problems,
                        &self.host,
                        (self.clock)(),
                    ));
                }
                return false;
            }
            Event::Probed { namespace, answered } => return self.note_probe(&namespace, answered),
            Event::Done { lane, results } => {
                self.busy.remove(&lane);
                results.into_iter().for_each(|(step, result)| self.note_result(step, result));
            }
        }
        true
    }

    fn revise(&mut self, files: &[Located], mut problems: Vec<Problem>) {
        let in_use = self.desired.publications.values().map(|publication| publication.share.clone()).collect();
        let (objects, contradictions) = self.desired.objects.revise(files, &in_use);
        problems.extend(contradictions);
        for problem in &problems {
            error!("refused: {problem}; what was running goes on");
        }
        if objects != self.desired.objects {
            info!(gateways = objects.gateways.len(), shares = objects.shares.len(), "objects read");
            Arc::make_mut(&mut self.desired).objects = objects;
            // What failed may have been cured.
            self.setbacks.clear();
        }
        self.problems = problems;
    }

    fn publish(&mut self, mut publication: Publication, reply: Reply) {
        // A caller that has gone away asks again: nobody minds a reply that can't be sent.
        let id = publication.id();
        match self.admit(&mut publication) {
            Err(denied) => drop(reply.send(Err(denied))),
            Ok(is_new) => {
                if is_new {
                    if let Err(error) = self.host.record(&publication) {
                        drop(reply.send(Err(Denied::Unavailable(chain(&error)))));
                        return;
                    }
                    info!(%id, share = %publication.share, pod = %publication.pod.name, namespace = %publication.pod.namespace, read_only = publication.read_only, "publishing");
                    Arc::make_mut(&mut self.desired).publications.insert(id, publication);
                    self.forget_setbacks(id);
                }
                let until = (self.clock)() + PUBLISH_DEADLINE;
                self.waiters.entry(id).or_default().push(Waiter { wants_it: true, until, reply });
            }
        }
    }

    /// Whether a publication may be: true if it is new, false if it is there already.
    fn admit(&self, publication: &mut Publication) -> Result<bool, Denied> {
        let name = &publication.share;
        let objects = &self.desired.objects;
        let share = objects.shares.get(name).ok_or_else(|| {
            let known: Vec<&str> = objects.shares.keys().map(Name::as_str).collect();
            Denied::NotFound(format!("there is no Share {name} on this node; there are: [{}]", known.join(", ")))
        })?;
        let namespace = &publication.pod.namespace;
        if !share.namespaces.allow(namespace) {
            return Err(Denied::Forbidden(format!(
                "Share {name} is not for namespace {namespace:?}: its spec.namespaces must list it"
            )));
        }
        publication.read_only |= share.access == moorline_shared::share::Access::ReadOnly;
        match self.desired.publications.get(&publication.id()) {
            Some(there) if !there.wanted => {
                Err(Denied::Unavailable(format!("{} is still being unpublished; ask again", there.target_path)))
            }
            Some(there) if there == publication => Ok(false),
            Some(there) => Err(Denied::Conflict(format!(
                "{} is already published with other parameters (Share {}); unpublish it first",
                there.target_path, there.share
            ))),
            None if objects.withdrawn.contains(name) => {
                Err(Denied::NotFound(format!("Share {name} was deleted; it is kept for the pods that use it only")))
            }
            None => Ok(true),
        }
    }

    fn unpublish(&mut self, target_path: &str, reply: Reply) {
        let id = PublicationId::of(target_path);
        if !self.withdraw(id) {
            drop(reply.send(Ok(())));
            return;
        }
        let until = (self.clock)() + UNPUBLISH_DEADLINE;
        self.waiters.entry(id).or_default().push(Waiter { wants_it: false, until, reply });
    }

    /// Marks a publication as no longer wanted; false if there is none.
    fn withdraw(&mut self, id: PublicationId) -> bool {
        let Some(publication) = Arc::make_mut(&mut self.desired).publications.get_mut(&id) else { return false };
        if publication.wanted {
            publication.wanted = false;
            info!(%id, share = %publication.share, pod = %publication.pod.name, namespace = %publication.pod.namespace, "unpublishing");
            if let Err(error) = self.host.record(publication) {
                // A new agent would take it for wanted until kubelet asks again, which it does until we succeed.
                warn!(%id, "{}", chain(&error));
            }
            self.forget_setbacks(id);
        }
        true
    }

    fn forget_setbacks(&mut self, id: PublicationId) {
        self.setbacks.retain(|step, _| !matches!(step, Step::Publish(of, _) | Step::Unpublish(of) if *of == id));
    }

    fn observe(&self) -> std::io::Result<Observed> {
        let mut observed = self.host.observe(&self.desired.publications)?;
        observed.servers = self.servers.clone();
        plan::note_under_way(&mut observed, self.busy.values().flatten());
        Ok(observed)
    }

    fn round(&mut self) {
        let now = (self.clock)();
        let observed = match self.observe() {
            Ok(observed) => observed,
            Err(error) => return error!("look at the host: {error}; trying again"),
        };
        self.probe(&observed);
        self.answer(&observed, now);
        self.say_what_waits(&observed, now);
        let mut lanes: BTreeMap<Lane, Vec<Step>> = BTreeMap::new();
        for step in plan::plan(&self.desired, &observed, now) {
            let held_back = self.setbacks.get(&step).is_some_and(|setback| setback.until > now);
            if !held_back && !self.busy.contains_key(&step.lane()) {
                lanes.entry(step.lane()).or_default().push(step);
            }
        }
        self.said_aborting.retain(|superblock| observed.superblocks.contains(superblock));
        for (lane, steps) in lanes {
            steps.iter().for_each(|step| self.say_what_is_lost(step));
            self.execute(lane, steps);
        }
    }

    fn say_what_is_lost(&mut self, step: &Step) {
        let (Step::Abort(superblock) | Step::Retire { superblock, abort: true }) = step else { return };
        if !self.said_aborting.insert(superblock.clone()) {
            return;
        }
        match superblock.user {
            User::ReadOnly => info!(%superblock, "ending what waits for a server that is given up: calls get EIO"),
            User::ReadWrite(publication) => warn!(
                %superblock,
                %publication,
                "ending what waits for a server that is given up: calls get EIO, and what was written and not yet synced is lost"
            ),
        }
    }

    /// A lane's steps, one after the other. What was planned while it is busy is planned again when it is done.
    fn execute(&mut self, lane: Lane, steps: Vec<Step>) {
        self.busy.insert(lane.clone(), steps.clone());
        let (host, desired, events) = (self.host.clone(), self.desired.clone(), self.events.clone());
        tokio::spawn(async move {
            let mut results = Vec::with_capacity(steps.len());
            for step in steps {
                let result = host.perform(&step, &desired).await;
                results.push((step, result));
            }
            // The loop ends before its executors only when the process does.
            let _ = events.send(Event::Done { lane, results }).await;
        });
    }

    fn note_result(&mut self, step: Step, result: Result<(), StepError>) {
        match result {
            Ok(()) => {
                self.setbacks.remove(&step);
                match &step {
                    Step::Abort(_) => {}
                    Step::Unpublish(id) => {
                        Arc::make_mut(&mut self.desired).publications.remove(id);
                        info!(%id, "unpublished");
                    }
                    step => info!("done: {step:?}"),
                }
            }
            Err(error) => {
                let message = chain(&error);
                let setback = self.setbacks.entry(step.clone()).or_insert_with(|| Setback {
                    count: 0,
                    until: Moment::ZERO,
                    said: String::new(),
                });
                setback.count += 1;
                let delay = Duration::from_millis(500) * 2u32.pow(setback.count.min(7) - 1);
                setback.until = (self.clock)() + delay;
                if setback.said == message {
                    debug!("still failing: {step:?}: {message}");
                } else {
                    warn!("failed, will try again: {step:?}: {message}");
                    setback.said.clone_from(&message);
                }
                self.tell_publishers(&step, &message, error.definite());
            }
        }
    }

    /// A failure that concerns a caller who waits is told at once. What was never there is then no longer wanted:
    /// kubelet asks again, or says that the pod is gone.
    fn tell_publishers(&mut self, step: &Step, message: &str, definite: bool) {
        let concerned: Vec<PublicationId> = match step {
            Step::Publish(id, _) => vec![*id],
            Step::Mount(superblock) => {
                let mine = |publication: &Publication| {
                    publication.share == superblock.share && publication.user() == superblock.user
                };
                self.desired
                    .publications
                    .iter()
                    .filter(|(_, publication)| mine(publication))
                    .map(|(id, _)| *id)
                    .collect()
            }
            _ => return,
        };
        for id in concerned {
            let denied =
                if definite { Denied::Failed(message.to_owned()) } else { Denied::Unavailable(message.to_owned()) };
            self.deny(id, &denied);
        }
    }

    fn deny(&mut self, id: PublicationId, denied: &Denied) {
        let (told, rest): (Vec<Waiter>, Vec<Waiter>) =
            self.waiters.remove(&id).unwrap_or_default().into_iter().partition(|waiter| waiter.wants_it);
        if !rest.is_empty() {
            self.waiters.insert(id, rest);
        }
        if !told.is_empty() {
            self.withdraw(id);
        }
        for waiter in told {
            let _ = waiter.reply.send(Err(denied.clone()));
        }
    }

    /// Replies to callers whose publication is there, or gone, and to those who have waited long enough.
    fn answer(&mut self, observed: &Observed, now: Moment) {
        let desired = self.desired.clone();
        let mut late = Vec::new();
        for (id, waiters) in &mut self.waiters {
            let there = matches!(observed.published.get(id).and_then(|layers| layers.last()), Some(Layer::Ours(_)));
            let wanted = desired.publications.get(id);
            for waiter in std::mem::take(waiters) {
                if waiter.wants_it && there && wanted.is_some_and(|publication| publication.wanted)
                    || !waiter.wants_it && wanted.is_none()
                {
                    let _ = waiter.reply.send(Ok(()));
                } else if now >= waiter.until && !waiter.wants_it {
                    let _ = waiter
                        .reply
                        .send(Err(Denied::Unavailable("the volume is still being detached; ask again".into())));
                } else {
                    if now >= waiter.until {
                        late.push(*id);
                    }
                    waiters.push(waiter);
                }
            }
        }
        self.waiters.retain(|_, waiters| !waiters.is_empty());
        for id in late {
            let reason = desired
                .publications
                .get(&id)
                .map_or_else(String::new, |publication| self.why_late(publication, observed, now));
            self.deny(id, &Denied::Unavailable(reason));
        }
    }

    fn why_late(&self, publication: &Publication, observed: &Observed, now: Moment) -> String {
        let share = self.desired.objects.shares.get(&publication.share);
        let waiting = share.and_then(|share| Some((share, plan::waiting(&self.desired, observed, now, share)?)));
        let setback = self.setbacks.values().map(|setback| setback.said.as_str()).next();
        match (waiting, setback) {
            (Some((share, waiting)), None) => waiting.explain(share),
            (Some((share, waiting)), Some(said)) => format!("{} (last failure: {said})", waiting.explain(share)),
            (None, Some(said)) => format!("not mounted after {PUBLISH_DEADLINE:?}; last failure: {said}"),
            (None, None) => format!("not mounted after {PUBLISH_DEADLINE:?}; still trying"),
        }
    }

    fn say_what_waits(&mut self, observed: &Observed, now: Moment) {
        let mut waits = BTreeMap::new();
        for share in self.desired.objects.shares.values() {
            let in_use = self
                .desired
                .publications
                .values()
                .any(|publication| publication.wanted && publication.share == share.name);
            if let Some(waiting) = plan::waiting(&self.desired, observed, now, share).filter(|_| in_use) {
                if self.said_waiting.get(&share.name) != Some(&waiting) {
                    warn!(share = %share.name, "{}", waiting.explain(share));
                }
                waits.insert(share.name.clone(), waiting);
            } else if self.said_waiting.contains_key(&share.name) {
                info!(share = %share.name, "is served");
            }
        }
        self.said_waiting = waits;
    }

    /// A prober for each namespace that leads somewhere.
    fn probe(&mut self, observed: &Observed) {
        let open = |id: &NamespaceId| observed.namespaces.get(id) == Some(&Tunnel::Attached);
        self.probers.retain(|id, prober| {
            if !open(id) {
                prober.abort();
            }
            open(id)
        });
        self.servers.retain(|id, _| observed.namespaces.contains_key(id));
        for id in observed.namespaces.keys().filter(|id| open(id)) {
            if self.probers.contains_key(id) {
                continue;
            }
            let Some(target) = self
                .desired
                .objects
                .gateways
                .get(&id.target.gateway)
                .and_then(|gateway| gateway.target(&id.target.target))
            else {
                continue;
            };
            let question =
                Question { namespace: paths::from_agent(&self.host.paths().namespace(id)), server: target.server };
            self.servers.insert(id.clone(), Server { first_asked: (self.clock)(), ..Server::default() });
            self.probers.insert(id.clone(), tokio::spawn(ask_for_ever(question, id.clone(), self.events.clone())));
        }
    }

    /// Whether it changes what is thought of the server.
    fn note_probe(&mut self, namespace: &NamespaceId, answered: bool) -> bool {
        let now = (self.clock)();
        let Some(server) = self.servers.get_mut(namespace) else { return false };
        let before = server.liveness(now);
        if answered {
            (server.last_answer, server.misses) = (Some(now), 0);
        } else {
            server.misses += 1;
        }
        let after = server.liveness(now);
        if before != after {
            info!(%namespace, "the server was {before:?} and is {after:?}");
        }
        before != after
    }
}

async fn ask_for_ever(question: Question, namespace: NamespaceId, events: mpsc::Sender<Event>) {
    loop {
        let answer = question.ask().await;
        if let Err(error) = &answer {
            debug!(%namespace, "no answer from {}: {error}", question.server);
        }
        // One that took all its time need not wait for the next.
        let waited = matches!(&answer, Err(error) if error.kind() == std::io::ErrorKind::TimedOut);
        if events.send(Event::Probed { namespace: namespace.clone(), answered: answer.is_ok() }).await.is_err() {
            return;
        }
        if !waited {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// An error with all its causes, once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
