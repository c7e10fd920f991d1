//! The one loop: snapshot, plan, steps, observation.

mod callers;
mod claims;
mod lanes;
mod nameplate;
mod orphans;
mod pods;
mod servers;
mod setbacks;
mod shutdown;
mod telling;
mod volumes;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use moorline_shared::errand::Errand;
use moorline_shared::happening::Happening;
use moorline_shared::id::{NamespaceId, PublicationId, SuperblockId, TargetId};
use moorline_shared::name::Name;
use moorline_shared::objects::InUse;
use moorline_shared::observed::{Leases, Liveness, Moment, Observed, Pods, Server};
use moorline_shared::plan::{self, Desired, Jitter, Lane, Step};
use moorline_shared::publication::Publication;
use moorline_shared::report::Report;
use moorline_shared::selector::Labels;
use moorline_shared::usage::Usage;
use moorline_shared::wishes::Wishes;
use moorline_shared::yaml::Problem;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::error;

use crate::config::Reading;
use crate::host::{Host, Look, StepError};
use crate::report::report;
use crate::window::Window;

use callers::Waiter;
pub(crate) use callers::{Denied, Reply};
use claims::Claiming;
pub(crate) use claims::Claims;
pub(crate) use nameplate::Nameplate;
use orphans::Orphans;
use servers::Looker;
use setbacks::Setbacks;
use shutdown::Leaving;
use volumes::Curious;
pub(crate) use volumes::VolumeState;

/// From one look at the host to the next, while something is published.
const LOOK: Duration = Duration::from_millis(500);
const IDLE_LOOK: Duration = Duration::from_secs(5);
/// While the node shuts down, which waits for us.
const HASTY_LOOK: Duration = Duration::from_millis(100);

pub(crate) enum Event {
    Objects(Reading),
    /// A volume, and how its PersistentVolume says it is to be mounted.
    Publish(Publication, Wishes, Reply),
    Unpublish {
        target_path: String,
        reply: Reply,
    },
    Report(oneshot::Sender<Report>),
    /// Which errands are on record.
    Errands(oneshot::Sender<Vec<Errand>>),
    /// How a volume is.
    Volume {
        target_path: String,
        reply: oneshot::Sender<Result<VolumeState, Denied>>,
    },
    /// Which node has which volume, of those that only one may have.
    Leases {
        leases: Leases,
        number: u64,
    },
    /// The labels of each namespace of the cluster.
    Namespaces(BTreeMap<String, Labels>),
    /// And those of this node.
    Labels(Labels),
    /// All pods of the node, as the API server has them.
    Pods(Pods),
    /// Somebody says that a pod was asked to end, and how much grace it has.
    Deleted {
        uid: String,
        grace: Duration,
    },
    /// The node shuts down. It waits as long as the lock is open, and `within` at most.
    ShuttingDown {
        within: Duration,
        lock: OwnedFd,
    },
    /// It does not after all.
    GoesOn,
    /// The agent is asked to end: answered when it may.
    Stop(oneshot::Sender<()>),
    Probed {
        namespace: NamespaceId,
        /// How long the answer took, if one came.
        answer: Option<Duration>,
    },
    /// A look at a mount of this share and epoch has ended.
    Looked {
        share: Name,
        epoch: u32,
        seen: Look,
    },
    Did {
        step: Step,
        result: Result<Option<String>, StepError>,
    },
    /// All steps of a lane are done, the last of them so, unless it ended in a bug.
    Free {
        lane: Lane,
        last: Option<(Step, Result<Option<String>, StepError>)>,
    },
}

/// What differs from node to node.
pub(crate) struct Habits {
    pub(crate) jitter: Jitter,
    /// How long kubelet may take to give back the volumes of a pod that is gone.
    pub(crate) orphan_patience: Duration,
}

/// Reads the clock: the loop itself does not.
pub(crate) type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

pub(crate) struct Reconciler {
    node: String,
    habits: Habits,
    host: Arc<Host>,
    clock: Clock,
    events: mpsc::Sender<Event>,
    /// What others see of all this.
    window: Arc<Window>,
    desired: Arc<Desired>,
    files: Reading,
    problems: Vec<Problem>,
    /// Why what the files say is not in force: it could not be put on record.
    unrecorded: Option<String>,
    /// What is to come back, as it is on record, if that can be read.
    returning_on_record: Option<BTreeSet<PublicationId>>,
    /// Shares that rest on a mount, and gateways that others mount through, as they were when the files were last held against
    /// them.
    in_use: InUse,
    servers: BTreeMap<NamespaceId, Server>,
    probers: BTreeMap<NamespaceId, JoinHandle<()>>,
    leases: Leases,
    claims: Claiming,
    nameplate: watch::Sender<Nameplate>,
    pods: Pods,
    /// Those that have volumes here and are not listed any more.
    gone: BTreeSet<String>,
    lookers: BTreeMap<(Name, u32), Looker>,
    /// How full each share is, and when that was seen.
    usage: BTreeMap<Name, (Moment, Usage)>,
    /// Since when each is.
    stale: BTreeMap<(Name, u32), Moment>,
    /// Until when a share is not tried again on a target that would not let it be mounted, if another may serve it.
    unmountable: BTreeMap<(Name, TargetId), Moment>,
    /// Steps that are under way.
    busy: BTreeMap<Lane, Vec<Step>>,
    setbacks: Setbacks,
    waiters: BTreeMap<PublicationId, Vec<Waiter>>,
    curious: Vec<Curious>,
    /// Superblocks whose end with an error was logged: it is repeated as long as they are held.
    said_aborting: BTreeSet<SuperblockId>,
    /// What of the round itself fails, in this round and in the last one: it is logged once.
    complaints: BTreeSet<String>,
    complained: BTreeSet<String>,
    /// What each share waits for, as it was last logged.
    said_waiting: BTreeMap<Name, plan::Waiting>,
    /// How each server is, as it was last logged.
    said_servers: BTreeMap<NamespaceId, Liveness>,
    /// When publications that are not there yet were first asked for.
    asked: BTreeMap<PublicationId, Moment>,
    orphans: Orphans,
    leaving: Leaving,
}

impl Reconciler {
    pub(crate) fn new(
        node: String,
        habits: Habits,
        host: Arc<Host>,
        clock: Clock,
        events: mpsc::Sender<Event>,
        window: Arc<Window>,
    ) -> Result<Self, StepError> {
        let mut publications = host.publications()?;
        publications.values_mut().for_each(|publication| publication.wanted &= publication.outlives_its_agent());
        window.chronicle.tell(&Happening::Adopted { publications: publications.len() });
        let returning_on_record = host.returning();
        // One that was taken back, by an agent that died before it could say so, does not return.
        let returning = returning_on_record.iter().flatten().filter(|id| publications.contains_key(*id)).copied();
        let desired = Desired {
            objects: host.objects(),
            returning: returning.collect(),
            publications,
            jitter: habits.jitter.clone(),
            shutdown: None,
            namespaces: None,
            labels: None,
        };
        Ok(Self {
            node,
            host,
            clock,
            events,
            window,
            desired: Arc::new(desired),
            habits,
            files: Reading::default(),
            problems: Vec::new(),
            unrecorded: None,
            returning_on_record,
            in_use: InUse::default(),
            servers: BTreeMap::new(),
            probers: BTreeMap::new(),
            leases: Leases::default(),
            claims: Claiming::default(),
            nameplate: watch::Sender::default(),
            pods: Pods::default(),
            gone: BTreeSet::new(),
            lookers: BTreeMap::new(),
            usage: BTreeMap::new(),
            stale: BTreeMap::new(),
            unmountable: BTreeMap::new(),
            busy: BTreeMap::new(),
            setbacks: Setbacks::default(),
            waiters: BTreeMap::new(),
            curious: Vec::new(),
            said_aborting: BTreeSet::new(),
            complaints: BTreeSet::new(),
            complained: BTreeSet::new(),
            said_waiting: BTreeMap::new(),
            said_servers: BTreeMap::new(),
            asked: BTreeMap::new(),
            orphans: Orphans::default(),
            leaving: Leaving::default(),
        })
    }

    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut looked_at = Moment::ZERO;
        loop {
            let quiet = self.busy.is_empty() && self.setbacks.is_empty();
            let idle = self.desired.publications.is_empty() && quiet;
            let pause = match () {
                () if self.is_leaving() => HASTY_LOOK,
                () if idle => IDLE_LOOK,
                () => LOOK,
            };
            let due = looked_at + pause;
            // Both branches are cancel-safe: `recv` loses no event when the other one wins, and the timer has no state.
            let mut news = tokio::select! {
                // In this order, so that a simulated run is the same each time; a round follows from either.
                biased;
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
            // Who was answered hears of it before the next round, which reads what the answer does not wait for.
            tokio::task::yield_now().await;
            if news || (self.clock)() >= due {
                looked_at = (self.clock)();
                self.round();
                self.window.metrics.made_a_round((self.clock)().saturating_sub(looked_at));
                self.window.vitals.made_a_round();
            }
        }
    }

    /// Takes an event in, and says whether anything may follow from it.
    fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Objects(files) => self.take_files(files),
            Event::Publish(publication, wishes, reply) => self.publish(publication, &wishes, reply),
            Event::Unpublish { target_path, reply } => self.unpublish(&target_path, reply),
            Event::Errands(reply) => {
                // A caller that has gone away needs no answer.
                drop(reply.send(self.errands()));
                return false;
            }
            Event::Report(reply) => {
                match self.observe(true) {
                    // A caller that has gone away needs no answer.
                    Ok(observed) => drop(reply.send(self.report(&observed))),
                    Err(error) => error!("look at the host: {error}"),
                }
                return false;
            }
            Event::Volume { target_path, reply } => {
                self.ask_of_volume(target_path, reply);
                return false;
            }
            Event::Leases { leases, number } => (self.leases, self.claims.heard) = (leases, number),
            Event::Namespaces(labels) => Arc::make_mut(&mut self.desired).namespaces = Some(labels),
            Event::Labels(labels) => Arc::make_mut(&mut self.desired).labels = Some(labels),
            Event::Pods(pods) => self.note_pods(pods),
            Event::Deleted { uid, grace } => self.note_deletion(uid, grace),
            Event::ShuttingDown { within, lock } => self.shut_down(within, lock),
            Event::GoesOn => self.go_on(),
            Event::Stop(done) => self.stop(done),
            Event::Probed { namespace, answer } => return self.note_probe(&namespace, answer),
            Event::Looked { share, epoch, seen } => {
                let changed = self.note_look((share, epoch), seen);
                self.answer_the_curious();
                return changed;
            }
            Event::Did { step, result } => self.note_result(step, result),
            Event::Free { lane, last } => {
                self.busy.remove(&lane);
                last.into_iter().for_each(|(step, result)| self.note_result(step, result));
            }
        }
        true
    }

    fn report(&self, observed: &Observed) -> Report {
        let failing = self.setbacks.failing().map(|(step, said)| format!("failing, tried again: {step}: {said}"));
        let unrecorded = self.unrecorded.iter().map(|said| format!("failing, tried again: keep the objects: {said}"));
        let refused = self.problems.iter().map(|problem| format!("refused: {problem}"));
        let problems = refused.chain(unrecorded).chain(failing).collect();
        report(&self.node, &self.desired, observed, problems, &self.host, (self.clock)())
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
        let mut observed = self.host.observe(&self.desired, containers)?;
        observed.servers = self.servers.clone();
        observed.pods = self.pods.clone();
        observed.leases = self.leases.clone();
        observed.gone = self.gone.clone();
        observed.stale = self.stale.clone();
        let now = (self.clock)();
        let refused = self.unmountable.iter().filter(|(_, until)| **until > now);
        observed.unmountable = refused.map(|(which, _)| which.clone()).collect();
        self.note_flushes(&mut observed);
        plan::note_under_way(&mut observed, self.busy.values().flatten());
        Ok(observed)
    }

    /// What a round could not do is tried again by the next one.
    fn complain(&mut self, said: String) {
        if !self.complained.contains(&said) && !self.complaints.contains(&said) {
            error!("{said}; trying again");
        }
        self.complaints.insert(said);
    }

    fn round(&mut self) {
        self.complained = std::mem::take(&mut self.complaints);
        self.follow_node_mounts();
        let now = (self.clock)();
        let watched = self.window.is_watched();
        let observed = match self.observe_what_matters(now, watched) {
            Ok(observed) => observed,
            Err(error) => return self.complain(format!("look at the host: {error}")),
        };
        if self.desired.shutdown.is_none() {
            self.note_returned(&observed);
        }
        self.keep_returning();
        let in_use = self.in_use(&observed);
        if self.unrecorded.is_none() && self.in_use.is_subset(&in_use) {
            self.in_use = in_use;
        } else {
            // Nothing is planned of a namespace that was just given up, nor for a node mount before it is known what is asked
            // for by now.
            if self.revise(&observed) | self.follow_node_mounts() {
                return self.round();
            }
        }
        // What is let go of by a node that shuts down is not judged again.
        if self.desired.shutdown.is_none() {
            self.reconsider(&observed);
            self.take_back_orphans(&observed, now);
        }
        // Before anything is planned: what is given back is told so before it is, and what is claimed by then stays.
        self.claim(&observed);
        self.probe(&observed);
        self.look(&observed);
        self.answer(&observed, now);
        self.answer_the_curious();
        self.tell_how_servers_are(&observed, now);
        self.tell_what_waits(&observed, now);
        self.show_nameplate(&observed, now);
        if watched {
            self.window.show(self.report(&observed));
        }
        let steps = plan::plan(&self.desired, &observed, now);
        self.let_go(&observed, &steps, now);
        self.setbacks.retain(|step| steps.contains(step) || self.busy.contains_key(&step.lane()));
        let mut lanes: BTreeMap<Lane, Vec<Step>> = BTreeMap::new();
        for step in steps {
            let urgent = |id: &SuperblockId| plan::has_no_time_to_lose(&self.desired, &observed, now, id);
            let is_urgent = || matches!(&step, Step::Abort(id) if urgent(id));
            let held_back = self.setbacks.holds_back(&step, now, is_urgent);
            let under_way = self.busy.values().chain(lanes.values()).flatten();
            let waits = self.busy.contains_key(&step.lane()) || plan::waits_its_turn(&step, under_way);
            if !held_back && !waits {
                lanes.entry(step.lane()).or_default().push(step);
            }
        }
        self.said_aborting.retain(|superblock| observed.superblocks.contains(superblock));
        for (lane, steps) in lanes {
            steps.iter().for_each(|step| self.tell_what_is_lost(step));
            self.note_flush_begins(&steps, now);
            self.execute(lane, steps);
        }
    }
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
