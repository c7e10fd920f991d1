//! The host as the loop knows it: what is there, and one method that does a step.

pub(crate) mod containers;
pub(crate) mod kernel;
mod listings;
mod machine;
pub(crate) mod network;
mod observe;
mod records;
mod tunnels;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moorline_shared::client::ClientIdentity;
use moorline_shared::gateway::{Gateway, Target};
use moorline_shared::id::{NamespaceId, PublicationId, SuperblockId, TargetId};
use moorline_shared::mount_defaults;
use moorline_shared::objects::Objects;
use moorline_shared::observed::{Observed, Tunnel};
use moorline_shared::plan::{Desired, Step};
use moorline_shared::publication::Publication;
use moorline_shared::share::Policy;
use moorline_shared::usage::Usage;
use moorline_shared::way::{Way, WaySeen};

use crate::hands::{Done, HandsError, Label, Mount, Namespace, Publish, Replace, Request, Work};
use crate::killpoint::{self, Point};
use crate::metrics::Metrics;
use crate::paths::Paths;
use crate::probe::Question;
use crate::reconcile::{Clock, chain};
use tunnels::Tunnels;
use ways::Ways;

pub(crate) use machine::{Linux, Machine};

#[cfg(any(test, feature = "simulation"))]
pub(crate) use containers::MountNamespace;
#[cfg(any(test, feature = "simulation"))]
pub(crate) use machine::Promise;

pub use tunnels::{TunnelError, TunnelView};

/// Ways, the servers that are mounted from, and the file of mount defaults.
type SeenOnNetwork = (BTreeMap<TargetId, WaySeen>, BTreeSet<IpAddr>, Option<String>);

/// For what never leaves the node.
const LOCAL: Duration = Duration::from_secs(10);
/// For what asks a server.
const REMOTE: Duration = Duration::from_secs(30);
/// For writing what a pod left unwritten. A longer flush goes on in the kernel and is waited for again, unless its
/// server has gone away meanwhile.
const FLUSH: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Hands(#[from] HandsError),
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error("keep the mark of a fence")]
    Mark(#[source] io::Error),
    #[error("keep a record on the node")]
    Record(#[source] io::Error),
    #[error("find the containers that hold {0}")]
    Places(String, #[source] io::Error),
    /// Some copies were replaced, and some could not be.
    #[error("{}", .failures.join("; "))]
    Partly { replaced: u64, failures: Vec<String> },
    #[error("{0} is no longer configured")]
    Gone(String),
}

impl StepError {
    /// Trying again won't help until somebody changes something.
    pub fn definite(&self) -> bool {
        matches!(self, Self::Hands(error) if error.definite())
    }
}

/// What was seen of a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Serves(Usage),
    /// Nothing any more: its server does not know its root, or the kernel has ended it.
    Stale,
}

pub struct Host {
    machine: Arc<dyn Machine>,
    paths: Paths,
    client_identity: ClientIdentity,
    tunnels: Tunnels,
    ways: Ways,
    /// Something of what gateways of scope host have on the node may be there: looking for it costs each round some calls.
    may_have_ways: AtomicBool,
    /// What containers see shares with, where SELinux has a say.
    label: Label,
    metrics: Metrics,
}

impl Host {
    /// Makes the node ready to hold mounts.
    pub(crate) async fn prepare(
        machine: Arc<dyn Machine>,
        paths: Paths,
        client_identity: ClientIdentity,
        label: Label,
        metrics: Metrics,
    ) -> Result<Self, StepError> {
        let tunnels = Tunnels::new(machine.clone(), paths.clone());
        let ways = Ways::new(machine.clone());
        let may_have_ways = AtomicBool::new(true);
        let host = Self { machine, paths, client_identity, tunnels, ways, may_have_ways, label, metrics };
        host.hand(Work::Prepare, LOCAL).await?;
        Ok(host)
    }

    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// How many publications are forgotten, if the node has booted since they were written down.
    pub fn forget_earlier_boot(&self) -> Result<Option<usize>, StepError> {
        records::forget_earlier_boot(&*self.machine, &self.paths).map_err(StepError::Record)
    }

    /// Whether kubelet has a directory of the pod that a volume was published for.
    pub fn has_directory(&self, publication: &Publication) -> bool {
        let pod = observe::pod_of(&self.paths, Path::new(&publication.target_path));
        pod.is_none_or(|uid| self.machine.exists(&self.paths.pods().join(uid)))
    }

    /// Those of these pods, by UID, that have a process on the node.
    pub fn with_processes(&self, uids: &BTreeSet<String>) -> BTreeSet<String> {
        self.machine.with_processes(uids)
    }

    pub fn publications(&self) -> Result<BTreeMap<PublicationId, Publication>, StepError> {
        records::read_all(&*self.machine, &self.paths).map_err(StepError::Record)
    }

    /// The objects that an earlier agent had in force.
    pub fn objects(&self) -> Objects {
        records::read_objects(&*self.machine, &self.paths)
    }

    pub fn keep_objects(&self, objects: &Objects) -> Result<(), StepError> {
        records::write_objects(&*self.machine, &self.paths, objects).map_err(StepError::Record)
    }

    /// What an earlier agent took away for a shutdown, and had not published again.
    pub fn returning(&self) -> Option<BTreeSet<PublicationId>> {
        records::read_returning(&*self.machine, &self.paths)
    }

    pub fn keep_returning(&self, returning: &BTreeSet<PublicationId>) -> Result<(), StepError> {
        records::write_returning(&*self.machine, &self.paths, returning).map_err(StepError::Record)
    }

    pub fn record(&self, publication: &Publication) -> Result<(), StepError> {
        records::write(&*self.machine, &self.paths, publication).map_err(StepError::Record)?;
        killpoint::hit(if publication.wanted { Point::Recorded } else { Point::Withdrawn });
        Ok(())
    }

    /// What the kernel's tables and the data paths show, with or without the containers'; what probes found is the
    /// caller's to add.
    pub fn observe(&self, desired: &Desired, containers: bool) -> io::Result<Observed> {
        let seen = observe::observe(&*self.machine, &self.paths, &desired.publications, containers)?;
        let tunnel = |id: &NamespaceId| match () {
            // Fenced is what is marked and has stopped: before that, a packet may still leave.
            () if seen.fenced.contains(id) && !self.tunnels.has(id) => Tunnel::Fenced,
            () if seen.fenced.contains(id) || self.tunnels.carries(id) => Tunnel::Attached,
            () => Tunnel::Detached,
        };
        let (ways, used_servers, mount_defaults) = self.observe_ways(&desired.objects)?;
        Ok(Observed {
            ways,
            used_servers,
            mount_defaults,
            // A mark alone is what a removal that was cut short has left.
            namespaces: seen.namespaces.union(&seen.fenced).map(|id| (id.clone(), tunnel(id))).collect(),
            superblocks: seen.superblocks,
            husks: seen.husks,
            given_up: seen.given_up,
            ended: seen.ended,
            lingering: self.machine.lingering(),
            published: seen.published,
            shown: seen.shown,
            strays: seen.strays,
            copies: seen.copies,
            occupants: seen.occupants,
            can_shut_down: seen.can_shut_down,
            ..Observed::default()
        })
    }

    /// What there is on the node's own network, as far as there may be anything.
    fn observe_ways(&self, objects: &Objects) -> io::Result<SeenOnNetwork> {
        let wanted = objects.gateways.values().any(|gateway| gateway.ways().next().is_some());
        if !wanted && !self.may_have_ways.load(Ordering::Relaxed) {
            return Ok(SeenOnNetwork::default());
        }
        let seen = |(target, (way, whole)): (TargetId, (Way, bool))| {
            let carried = self.ways.carries(&target, objects.gateways.get(&target.gateway));
            (target, WaySeen { way, whole, carried })
        };
        let ways: BTreeMap<TargetId, WaySeen> = self.machine.ways()?.into_iter().map(seen).collect();
        let used_servers = if ways.is_empty() { BTreeSet::new() } else { self.machine.used_servers()? };
        let defaults = self.machine.read(&self.paths.mount_defaults()).ok();
        let defaults = defaults.map(|text| String::from_utf8_lossy(&text).into_owned());
        // Somebody else's is none, unless it is in our way.
        let defaults = defaults.filter(|text| wanted || text.starts_with(mount_defaults::OURS));
        self.may_have_ways.store(!ways.is_empty() || defaults.is_some(), Ordering::Relaxed);
        Ok((ways, used_servers, defaults))
    }

    pub fn tunnel(&self, id: &NamespaceId) -> Option<TunnelView> {
        self.tunnels.view(id).or_else(|| self.ways.view(&id.target))
    }

    /// What an errand did is said in words.
    pub async fn perform(&self, step: &Step, desired: &Desired) -> Result<Option<String>, StepError> {
        let errand = match step {
            Step::Publish(id, superblock) => publication(desired, *id)?.as_errand().map(|errand| (errand, superblock)),
            _ => None,
        };
        let words = match errand {
            Some((errand, superblock)) => {
                let work = Work::Errand { superblock: superblock.clone(), errand };
                self.hand_done(work, REMOTE).await?.words
            }
            None => {
                self.attempt(step, desired).await?;
                None
            }
        };
        killpoint::hit(killpoint::done(step));
        Ok(words)
    }

    async fn attempt(&self, step: &Step, desired: &Desired) -> Result<(), StepError> {
        match step {
            Step::MakeNamespace(id) => {
                let (gateway, target) = endpoint(desired, id)?;
                let Some(tunnel) = gateway.isolated_tunnel() else {
                    let client_identifier = self.client_identity.identifier(None);
                    return self.hand(Work::NameHostNetwork { id: id.clone(), client_identifier }, LOCAL).await;
                };
                let work = Namespace {
                    id: id.clone(),
                    address: tunnel.address,
                    server: target.server,
                    mtu: tunnel.mtu,
                    client_identifier: self.client_identity.identifier(Some(&id.target)),
                };
                self.hand(Work::MakeNamespace(work), LOCAL).await
            }
            Step::AttachTunnel(id) => {
                let (gateway, target) = endpoint(desired, id)?;
                match (gateway.isolated_tunnel(), &target.peer) {
                    (Some(tunnel), Some(peer)) => Ok(self.tunnels.attach(id, tunnel, peer, target.server)?),
                    _ => Ok(self.tunnels.attach_direct(id)?),
                }
            }
            Step::Fence(id) => {
                // Before the mark: were the agent to die in between, its successor does this again.
                let gateway = desired.objects.gateways.get(&id.target.gateway);
                if gateway.is_some_and(Gateway::is_on_host) {
                    self.hand(Work::ShutDown(id.clone()), LOCAL).await?;
                    killpoint::hit(Point::FenceUnmarked);
                }
                self.fence(id)
            }
            Step::RemoveNamespace(id) => {
                self.tunnels.detach(id);
                killpoint::hit(Point::TunnelEnded);
                self.hand(Work::RemoveNamespace(id.clone()), LOCAL).await
            }
            Step::MakeWay(target) => self.hand(Work::MakeWay(way(desired, target)?.0), LOCAL).await,
            Step::CarryWay(target) => {
                let (way, gateway, target) = way(desired, target)?;
                match (gateway.tunnel(), &target.peer) {
                    (Some(tunnel), Some(peer)) => Ok(self.ways.carry(&way, tunnel, peer)?),
                    _ => Err(StepError::Gone(format!("the tunnel of {}", way.target))),
                }
            }
            Step::RemoveWay { target, unused } => {
                // It is carried until the hand has seen that nobody came meanwhile.
                self.hand(Work::RemoveWay { target: target.clone(), unused: *unused }, LOCAL).await?;
                self.ways.let_go(target);
                Ok(())
            }
            Step::SetMountDefaults => {
                self.hand(Work::SetMountDefaults { text: mount_defaults::file(&desired.objects) }, LOCAL).await
            }
            Step::Mount(superblock, tuning) => {
                let (_, target) = endpoint(desired, &superblock.namespace)?;
                let share = desired
                    .objects
                    .shares
                    .get(&superblock.share)
                    .ok_or_else(|| StepError::Gone(format!("Share {}", superblock.share)))?;
                let work = Mount {
                    superblock: superblock.clone(),
                    server: target.server,
                    export: share.export.clone(),
                    soft: share.policy == Policy::Soft,
                    options: share.options,
                    tuning: *tuning,
                    label: self.label.clone(),
                };
                self.hand(Work::Mount(work), REMOTE).await
            }
            Step::Publish(id, superblock) => {
                let publication = publication(desired, *id)?;
                let target_path = publication.target_path.clone().into();
                self.hand(
                    Work::Publish(Publish {
                        superblock: superblock.clone(),
                        target_path,
                        sub_dir: publication.sub_dir.clone(),
                        read_only: publication.read_only,
                        node: publication.node,
                    }),
                    LOCAL,
                )
                .await
            }
            Step::Replace { old, new } => self.replace(old, new).await,
            Step::Flush(superblock) => {
                let patience = desired.shutdown.map_or(FLUSH, |shutdown| shutdown.patience());
                self.hand(Work::Flush { superblock: superblock.clone() }, patience).await
            }
            Step::Detach(id) => {
                let publication = publication(desired, *id)?;
                let target_path = publication.target_path.clone().into();
                self.hand(Work::Detach { target_path, node: publication.node }, LOCAL).await
            }
            Step::Abort(superblock) => self.hand(Work::Abort { superblock: superblock.clone() }, LOCAL).await,
            Step::Unpublish(id) => {
                let publication = publication(desired, *id)?;
                if publication.errand.is_none() {
                    let target_path = publication.target_path.clone().into();
                    self.hand(Work::Unpublish { target_path, node: publication.node }, LOCAL).await?;
                }
                killpoint::hit(Point::TargetGone);
                self.machine.remove(&self.paths.publication(*id)).map_err(StepError::Record)
            }
            Step::Hide(id) => {
                let publication = publication(desired, *id)?;
                self.hand(Work::Hide { publication: publication.clone() }, LOCAL).await
            }
            Step::Clear(superblock) => {
                self.hand(Work::Retire { superblock: superblock.clone(), abort: false }, LOCAL).await
            }
            Step::Retire { superblock, abort } => {
                let patience = match desired.shutdown {
                    _ if *abort => LOCAL,
                    Some(shutdown) => shutdown.patience(),
                    None => FLUSH,
                };
                self.hand(Work::Retire { superblock: superblock.clone(), abort: *abort }, patience).await
            }
        }
    }

    /// How a superblock is whose server answers. None if nothing is said.
    pub(crate) async fn look(&self, superblock: &SuperblockId, patience: Duration) -> Option<Look> {
        match self.hand_done(Work::Look { superblock: superblock.clone() }, patience).await {
            Ok(done) => Some(Look::Serves(done.usage.unwrap_or_default())),
            Err(error) => error.definite().then_some(Look::Stale),
        }
    }

    /// Asks the server behind a namespace whether it is there, and says how long it took to answer.
    pub(crate) async fn ask(&self, question: &Question, clock: &Clock) -> io::Result<Duration> {
        self.machine.ask(question, clock).await
    }

    /// Ends the way that a namespace leads, for good.
    pub fn fence(&self, id: &NamespaceId) -> Result<(), StepError> {
        // The mark first: were the agent to die in between, its successor must not attach it again.
        self.machine.write(&self.paths.fence(id), b"", Point::MarkWritten).map_err(StepError::Mark)?;
        killpoint::hit(Point::FenceMarked);
        self.tunnels.detach(id);
        Ok(())
    }

    /// All namespaces side by side: one that blocks keeps no other container on the dead server.
    async fn replace(&self, old: &SuperblockId, new: &SuperblockId) -> Result<(), StepError> {
        let places = observe::places(&*self.machine, &self.paths, old)
            .map_err(|error| StepError::Places(old.to_string(), error))?;
        let hands = places.into_iter().map(|place| {
            self.hand_done(
                Work::Replace(Replace {
                    old: old.clone(),
                    new: new.clone(),
                    pid: place.pid,
                    namespace_inode: place.inode,
                }),
                LOCAL,
            )
        });
        let (mut replaced, mut failures) = (0, Vec::new());
        for outcome in futures_util::future::join_all(hands).await {
            match outcome {
                Ok(done) => {
                    replaced += done.replaced;
                    failures.extend(done.left);
                }
                Err(failure) => failures.push(chain(&failure)),
            }
        }
        self.metrics.copies_replaced(&old.share, replaced);
        if failures.is_empty() { Ok(()) } else { Err(StepError::Partly { replaced, failures }) }
    }

    async fn hand(&self, work: Work, deadline: Duration) -> Result<(), StepError> {
        self.hand_done(work, deadline).await.map(drop)
    }

    async fn hand_done(&self, work: Work, deadline: Duration) -> Result<Done, StepError> {
        Ok(self.machine.hand(Request { paths: self.paths.clone(), work }, deadline).await?)
    }
}

fn endpoint<'a>(desired: &'a Desired, id: &NamespaceId) -> Result<(&'a Gateway, &'a Target), StepError> {
    let gateway = desired
        .objects
        .gateways
        .get(&id.target.gateway)
        .ok_or_else(|| StepError::Gone(format!("Gateway {}", id.target.gateway)))?;
    let target = gateway.target(&id.target.target).ok_or_else(|| StepError::Gone(format!("target {}", id.target)))?;
    Ok((gateway, target))
}

fn way<'a>(desired: &'a Desired, target: &TargetId) -> Result<(Way, &'a Gateway, &'a Target), StepError> {
    let gone = || StepError::Gone(format!("target {target}"));
    let gateway = desired.objects.gateways.get(&target.gateway).ok_or_else(gone)?;
    let way = gateway.ways().find(|way| way.target == *target).ok_or_else(gone)?;
    Ok((way, gateway, gateway.target(&target.target).ok_or_else(gone)?))
}

fn publication(desired: &Desired, id: PublicationId) -> Result<&Publication, StepError> {
    desired.publications.get(&id).ok_or_else(|| StepError::Gone(format!("publication {id}")))
}
