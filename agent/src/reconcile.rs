//! The one loop: snapshot, plan, steps, observation.

mod callers;
mod servers;
mod telling;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use moorline_shared::happening::Happening;
use moorline_shared::id::{NamespaceId, PublicationId, SuperblockId, TargetId};
use moorline_shared::name::Name;
use moorline_shared::observed::{Deletion, Liveness, Moment, Observed, Pods, Server};
use moorline_shared::plan::{self, Desired, Lane, Step};
use moorline_shared::publication::Publication;
use moorline_shared::report::Report;
use moorline_shared::yaml::Problem;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, error};

use crate::config::Reading;
use crate::host::{Host, StepError};
use crate::report::report;
use crate::window::Window;

use callers::Waiter;
pub(crate) use callers::{Denied, Reply};

/// From one look at the host to the next, while something is published.
const LOOK: Duration = Duration::from_millis(500);
const IDLE_LOOK: Duration = Duration::from_secs(5);
/// How long another target is preferred to one that would not let a share be mounted.
const UNMOUNTABLE: Duration = Duration::from_secs(60);

pub(crate) enum Event {
    Objects(Reading),
    Publish(Publication, Reply),
    Unpublish {
        target_path: String,
        reply: Reply,
    },
    Report(oneshot::Sender<Report>),
    /// All pods of the node, as the API server has them.
    Pods(Pods),
    /// Somebody says that a pod was asked to end, and how much grace it has.
    Deleted {
        uid: String,
        grace: Duration,
    },
    Probed {
        namespace: NamespaceId,
        /// How long the answer took, if one came.
        answer: Option<Duration>,
    },
    /// A look at a mount of this share and epoch has ended.
    Looked {
        share: Name,
        epoch: u32,
        stale: bool,
    },
    Did {
        step: Step,
        result: Result<(), StepError>,
    },
    /// All steps of a lane are done.
    Free(Lane),
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
    /// What others see of all this.
    window: Arc<Window>,
    desired: Arc<Desired>,
    files: Reading,
    problems: Vec<Problem>,
    /// Shares that rest on a mount, as they were when the files were last held against them.
    in_use: BTreeSet<Name>,
    servers: BTreeMap<NamespaceId, Server>,
    probers: BTreeMap<NamespaceId, JoinHandle<()>>,
    pods: Pods,
    lookers: BTreeMap<(Name, u32), JoinHandle<()>>,
    stale: BTreeSet<(Name, u32)>,
    /// Until when a share is not tried again on a target that would not let it be mounted, if another may serve it.
    unmountable: BTreeMap<(Name, TargetId), Moment>,
    /// Steps that are under way.
    busy: BTreeMap<Lane, Vec<Step>>,
    setbacks: HashMap<Step, Setback>,
    waiters: HashMap<PublicationId, Vec<Waiter>>,
    /// Superblocks whose end with an error was logged: it is repeated as long as they are held.
    said_aborting: BTreeSet<SuperblockId>,
    /// What each share waits for, as it was last logged.
    said_waiting: BTreeMap<Name, plan::Waiting>,
    /// How each server is, as it was last logged.
    said_servers: BTreeMap<NamespaceId, Liveness>,
    /// When publications that are not there yet were first asked for.
    asked: BTreeMap<PublicationId, Moment>,
}

impl Reconciler {
    pub(crate) fn new(
        node: String,
        host: Arc<Host>,
        clock: Clock,
        events: mpsc::Sender<Event>,
        window: Arc<Window>,
    ) -> Result<Self, StepError> {
        let publications = host.publications()?;
        window.chronicle.tell(&Happening::Adopted { publications: publications.len() });
        let objects = host.objects();
        Ok(Self {
            node,
            host,
            clock,
            events,
            window,
            desired: Arc::new(Desired { objects, publications }),
            files: Reading::default(),
            problems: Vec::new(),
            in_use: BTreeSet::new(),
            servers: BTreeMap::new(),
            probers: BTreeMap::new(),
            pods: Pods::default(),
            lookers: BTreeMap::new(),
            stale: BTreeSet::new(),
            unmountable: BTreeMap::new(),
            busy: BTreeMap::new(),
            setbacks: HashMap::new(),
            waiters: HashMap::new(),
            said_aborting: BTreeSet::new(),
            said_waiting: BTreeMap::new(),
            said_servers: BTreeMap::new(),
            asked: BTreeMap::new(),
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
                self.window.vitals.made_a_round();
            }
        }
    }

    /// Takes an event in, and says whether anything may follow from it.
    fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Objects(files) => self.take_files(files),
            Event::Publish(publication, reply) => self.publish(publication, reply),
            Event::Unpublish { target_path, reply } => self.unpublish(&target_path, reply),
            Event::Report(reply) => {
                match self.observe(true) {
                    // A caller that has gone away needs no answer.
                    Ok(observed) => drop(reply.send(self.report(&observed))),
                    Err(error) => error!("look at the host: {error}"),
                }
                return false;
            }
            Event::Pods(pods) => self.pods = pods,
            Event::Deleted { uid, grace } => {
                let asked = (self.clock)();
                // Told of for as long as it has volumes here.
                let mine = |uid: &String| self.desired.publications.values().any(|p| p.pod.uid == *uid);
                self.pods.known.retain(|uid, _| mine(uid));
                self.pods.known.insert(uid, Some(Deletion { asked, ends: asked + grace }));
            }
            Event::Probed { namespace, answer } => return self.note_probe(&namespace, answer),
            Event::Looked { share, epoch, stale } => return self.note_look((share, epoch), stale),
            Event::Did { step, result } => self.note_result(step, result),
            Event::Free(lane) => drop(self.busy.remove(&lane)),
        }
        true
    }

    fn report(&self, observed: &Observed) -> Report {
        let failing = self.setbacks.iter().filter(|(_, setback)| !setback.said.is_empty());
        let failing = failing.map(|(step, setback)| format!("failing, tried again: {step}: {}", setback.said));
        let problems = self.problems.iter().map(|problem| format!("refused: {problem}")).chain(failing).collect();
        report(&self.node, &self.desired, observed, problems, &self.host, (self.clock)())
    }

    fn take_files(&mut self, files: Reading) {
        self.files = files;
        match self.observe(false) {
            Ok(observed) => {
                self.revise(&observed);
                self.window.vitals.objects_read();
            }
            Err(error) => error!("look at the host: {error}; the objects are not read anew"),
        }
    }

    /// Holds the files against what is in use: that does not change, everything else follows them.
    fn revise(&mut self, observed: &Observed) {
        self.in_use = shares_in_use(observed);
        let Reading { objects: files, problems: bad, incomplete } = &self.files;
        let (objects, contradictions) = self.desired.objects.revise(files, *incomplete, &self.in_use);
        let problems: Vec<Problem> = bad.iter().cloned().chain(contradictions).collect();
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            self.tell(&Happening::ObjectRefused { problem: problem.to_string() });
        }
        self.problems = problems;
        if objects == self.desired.objects {
            return;
        }
        self.tell(&Happening::ObjectsRead { gateways: objects.gateways.len(), shares: objects.shares.len() });
        // Namespaces that lead where a changed Gateway led are given up; the next generation is made as it now says.
        let changed = |id: &&NamespaceId| {
            let gateway = &id.target.gateway;
            self.desired
                .objects
                .gateways
                .get(gateway)
                .is_some_and(|old| objects.gateways.get(gateway).is_some_and(|new| !new.extends(old)))
        };
        // Those that are only about to be made were asked for by the old Gateway as well.
        let about_to_be = self.busy.values().flatten().filter_map(|step| match step {
            Step::MakeNamespace(id) | Step::AttachTunnel(id) => Some(id),
            _ => None,
        });
        let led: BTreeSet<&NamespaceId> = observed.namespaces.keys().chain(about_to_be).collect();
        let fence = |id: &NamespaceId| {
            self.host.fence(id)?;
            self.tell(&Happening::Fenced { namespace: id.clone() });
            Ok(())
        };
        let stale = led.into_iter().filter(changed).map(fence);
        for failure in stale.chain([self.host.keep_objects(&objects)]).filter_map(Result::err) {
            error!("{}", chain(&failure));
        }
        Arc::make_mut(&mut self.desired).objects = objects;
        // What failed may have been cured.
        self.setbacks.clear();
    }

    /// All that matters now, and if somebody watches all that there is to see.
    fn observe_what_matters(&self, now: Moment, watched: bool) -> std::io::Result<Observed> {
        if watched {
            return self.observe(true);
        }
        let observed = self.observe(false)?;
        if plan::depends_on_containers(&self.desired, &observed, now) { self.observe(true) } else { Ok(observed) }
    }

    /// With what containers hold, or without.
    fn observe(&self, containers: bool) -> std::io::Result<Observed> {
        let mut observed = self.host.observe(&self.desired.publications, containers)?;
        observed.servers = self.servers.clone();
        observed.pods = self.pods.clone();
        observed.stale = self.stale.clone();
        let now = (self.clock)();
        let refused = self.unmountable.iter().filter(|(_, until)| **until > now);
        observed.unmountable = refused.map(|(which, _)| which.clone()).collect();
        plan::note_under_way(&mut observed, self.busy.values().flatten());
        Ok(observed)
    }

    fn round(&mut self) {
        let now = (self.clock)();
        let watched = self.window.is_watched();
        let observed = match self.observe_what_matters(now, watched) {
            Ok(observed) => observed,
            Err(error) => return error!("look at the host: {error}; trying again"),
        };
        let in_use = shares_in_use(&observed);
        if self.in_use.is_subset(&in_use) {
            self.in_use = in_use;
        } else {
            self.revise(&observed);
        }
        self.reconsider(&observed);
        self.probe(&observed);
        self.look(&observed);
        self.answer(&observed, now);
        self.tell_how_servers_are(&observed, now);
        self.tell_what_waits(&observed, now);
        if watched {
            self.window.show(self.report(&observed));
        }
        let steps = plan::plan(&self.desired, &observed, now);
        self.setbacks.retain(|step, _| steps.contains(step) || self.busy.contains_key(&step.lane()));
        let mut lanes: BTreeMap<Lane, Vec<Step>> = BTreeMap::new();
        for step in steps {
            let paused = self.setbacks.get(&step).is_some_and(|setback| setback.until > now);
            // What ends for its pod's sake, and not for good, has no time to lose.
            let held_back = paused && !matches!(&step, Step::Abort(id) if !plan::superseded(&observed, id));
            if !held_back && !self.busy.contains_key(&step.lane()) {
                lanes.entry(step.lane()).or_default().push(step);
            }
        }
        self.said_aborting.retain(|superblock| observed.superblocks.contains(superblock));
        for (lane, steps) in lanes {
            steps.iter().for_each(|step| self.tell_what_is_lost(step));
            self.execute(lane, steps);
        }
    }

    /// A lane's steps, one after the other. What was planned while it is busy is planned again when it is done.
    fn execute(&mut self, lane: Lane, steps: Vec<Step>) {
        self.busy.insert(lane.clone(), steps.clone());
        let (host, desired, events) = (self.host.clone(), self.desired.clone(), self.events.clone());
        // The loop ends before its executors only when the process does: nobody minds what can't be sent then.
        let work = async move {
            for step in steps {
                let result = host.perform(&step, &desired).await;
                let _ = events.send(Event::Did { step, result }).await;
            }
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            // A panic ends the step, not the lane.
            if let Err(panic) = tokio::spawn(work).await {
                error!("a step of {lane:?} ended in a bug: {panic}");
            }
            let _ = events.send(Event::Free(lane)).await;
        });
    }

    fn note_result(&mut self, step: Step, result: Result<(), StepError>) {
        match result {
            Ok(()) => {
                match &step {
                    // Repeated as long as anything holds it: what opens it later must not wait either. Less and less
                    // often, since each costs a process.
                    Step::Abort(_) => {
                        let until = (self.clock)();
                        let pause =
                            self.setbacks.entry(step).or_insert(Setback { count: 0, until, said: String::new() });
                        pause.until = until + Duration::from_millis(500) * 2u32.pow(pause.count.min(4));
                        pause.count += 1;
                        return;
                    }
                    Step::Unpublish(id) => {
                        self.tell_done(&step);
                        self.asked.remove(id);
                        Arc::make_mut(&mut self.desired).publications.remove(id);
                    }
                    step => self.tell_done(step),
                }
                if let Step::Mount(id, _) = &step {
                    self.unmountable.remove(&(id.share.clone(), id.namespace.target.clone()));
                }
                self.setbacks.remove(&step);
            }
            Err(error) => {
                let message = chain(&error);
                if let Step::Mount(id, _) = &step {
                    let until = (self.clock)() + UNMOUNTABLE;
                    self.unmountable.insert((id.share.clone(), id.namespace.target.clone()), until);
                }
                let setback = self.setbacks.entry(step.clone()).or_insert_with(|| Setback {
                    count: 0,
                    until: Moment::ZERO,
                    said: String::new(),
                });
                setback.count += 1;
                let delay = Duration::from_millis(500) * 2u32.pow(setback.count.min(7) - 1);
                setback.until = (self.clock)() + delay;
                let is_new = setback.said != message;
                if is_new {
                    setback.said.clone_from(&message);
                } else {
                    debug!("still failing: {step}: {message}");
                }
                self.tell_failed(&step, &error, &message, is_new);
                self.tell_publishers(&step, &message, error.definite());
            }
        }
    }
}

/// A share whose mount is there, or was asked for, is in use until that is gone.
fn shares_in_use(observed: &Observed) -> BTreeSet<Name> {
    let superblocks = observed.superblocks.iter().chain(&observed.beginning).chain(&observed.ending);
    superblocks.map(|superblock| superblock.share.clone()).collect()
}

/// An error with all its causes, each said once: some libraries' errors repeat their cause themselves.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}
