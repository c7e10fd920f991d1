//! One agent's life, from its start to its death: the real loop over a machine that is made up.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use moorline_shared::client::ClientIdentity;
use moorline_shared::gateway::{Peer, TunnelSpec};
use moorline_shared::happening::Happening;
use moorline_shared::id::{NamespaceId, SuperblockId, TargetId};
use moorline_shared::plan::Jitter;
use moorline_shared::way::Way;
use moorline_sys::mountinfo::{Device, Mount};
use moorline_tunnel::{Stats, Tunnel};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::hands::{HOST, Hand};
use super::world::{DataPath, HOST_NETWORK, Shared, World, paths};
use crate::door::Door;
use crate::hands::{Done, HandsError, Label, Request};
use crate::host::{Host, Machine, MountNamespace, Promise, StepError, TunnelError};
use crate::killpoint::Point;
use crate::probe::Question;
use crate::reconcile::{Clock, Event, Habits, Reconciler};
use crate::window::Window;

/// Starts an agent, as kubelet does.
pub(super) fn begin(world: &Shared) {
    let clock = clock();
    let started = world.lock().now();
    let wall = {
        let clock = clock.clone();
        Arc::new(move || UNIX_EPOCH + started + clock())
    };
    let window = Arc::new(Window::new(clock.clone(), wall));
    let life = world.lock().begin_life(window.clone());
    let shared = world.clone();
    let main = tokio::spawn(async move {
        if let Err(error) = run(&shared, life, clock, window).await {
            let mut world = shared.lock();
            if world.lives(life) {
                world.kill_agent(&format!("it can't start: {}", crate::chain(&error)));
            }
        }
    });
    if let Some(agent) = &mut world.lock().agent {
        agent.main = Some(main);
    }
}

#[expect(clippy::disallowed_methods, reason = "wiring: the agent's clock, which begins with it")]
fn clock() -> Clock {
    let origin = Instant::now();
    Arc::new(move || Instant::now().duration_since(origin))
}

/// How long kubelet may take to give back the volumes of a pod that is gone.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(60);
/// More looks at the host at one moment than any loop that comes to rest has.
const RESTLESS: u32 = 1000;

async fn run(world: &Shared, life: u64, clock: Clock, window: Arc<Window>) -> Result<(), StepError> {
    let machine = Arc::new(Life { world: world.clone(), life });
    let [node, machine_id, hardware, kept] = ["node", "machine", "", "kept"].map(str::to_owned);
    let identity = ClientIdentity { node, machine: machine_id, hardware, kept };
    let host = Host::prepare(machine, paths(), identity, Label::default(), window.metrics.clone()).await?;
    if let Some(publications) = host.forget_earlier_boot()? {
        window.chronicle.tell(&Happening::EarlierBoot { publications });
    }
    let habits = Habits { jitter: Jitter::default(), orphan_patience: ORPHAN_PATIENCE };
    let (events, inbox) = mpsc::channel(256);
    let reconciler = Reconciler::new("node".into(), habits, Arc::new(host), clock, events.clone(), window)?;
    {
        let mut world = world.lock();
        let (reading, heard) = (world.reading(), world.scene.api_server);
        let pods = world.agent.as_ref().map(|agent| agent.origin).map(|origin| world.pods_for(origin));
        // The channel is empty and the loop owns its other end.
        let _ = events.try_send(Event::Objects(reading));
        if let Some(pods) = pods.filter(|_| heard) {
            let _ = events.try_send(Event::Pods(pods));
        }
        if let Some(agent) = world.agent.as_mut().filter(|agent| agent.life == life) {
            agent.door = Some(Door::new(paths().pods().display().to_string(), events));
        }
    }
    reconciler.run(inbox).await;
    world.lock().breaks("the loop never ends", format!("agent {life}"));
    Ok(())
}

/// The machine as one agent sees it. When that is dead, nothing happens here any more.
struct Life {
    world: Shared,
    life: u64,
}

impl Life {
    /// A call that has no effect on a machine whose agent is dead.
    fn call<T>(&self, call: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.world.lock();
        if world.lives(self.life) { call(&mut world) } else { Err(io::Error::other("the agent is dead")) }
    }

    /// A call after which, or before which, the agent may be killed, and which may fail.
    fn risky<T>(&self, what: &str, call: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        self.call(|world| {
            let (failing, killing) = (world.scene.failing / 4, world.scene.killing / 4);
            if world.mishap(failing) {
                return Err(io::Error::other("it just failed"));
            }
            if world.mishap(killing) {
                world.kill_agent(&format!("before it could {what}"));
                return Err(io::Error::other("the agent is dead"));
            }
            let outcome = call(world);
            if world.mishap(killing) {
                world.kill_agent(&format!("after it could {what}"));
            }
            outcome
        })
    }
}

/// Whoever waits for it has died.
async fn forever<T>() -> T {
    std::future::pending().await
}

struct KillOnDrop(Arc<AtomicBool>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Machine for Life {
    fn hand(&self, request: Request, deadline: Duration) -> Promise<'_, Result<Done, HandsError>> {
        Box::pin(async move {
            let killed = Arc::new(AtomicBool::new(false));
            let (reply, answer) = oneshot::channel();
            let hand = {
                let mut world = self.world.lock();
                world.lives(self.life).then(|| {
                    world.judge_begin(&request.work);
                    let fate = world.draw_fate(&request.work);
                    Hand::new(self.world.clone(), (self.life, world.boots), killed.clone(), fate)
                })
            };
            let Some(hand) = hand else { return forever().await };
            let _killed = KillOnDrop(killed);
            tokio::spawn(hand.work(request.work, reply));
            let outcome = timeout(deadline, answer).await;
            if !self.world.lock().lives(self.life) {
                return forever().await;
            }
            match outcome {
                Ok(Ok(reply)) => Ok(reply?),
                Ok(Err(_)) => Err(HandsError::Talk(io::Error::other("the hand is gone"))),
                Err(_) => Err(HandsError::Deadline(deadline)),
            }
        })
    }

    fn lingering(&self) -> BTreeSet<SuperblockId> {
        let world = self.world.lock();
        let mine = world.at_work.values().filter(|(life, _)| *life == self.life);
        mine.map(|(_, shown)| shown.clone()).collect()
    }

    fn ask<'a>(&'a self, question: &'a Question, _: &'a Clock) -> Promise<'a, io::Result<Duration>> {
        Box::pin(async move {
            let name = question.namespace.file_name().and_then(|name| name.to_str());
            let Some(id) = name.and_then(|name| name.parse::<NamespaceId>().ok()) else {
                return Err(io::Error::other("no namespace"));
            };
            let (took, refused) = {
                let mut world = self.world.lock();
                if world.lives(self.life) {
                    world.hear(&id, false);
                }
                let (network, server) = (world.network_of(&id), world.server_at(question.server));
                let reaches =
                    |world: &World| network.zip(server).is_some_and(|(network, server)| world.reaches(network, server));
                let up = server.is_some_and(|server| world.servers[server].up);
                let losing = if world.scene.is_sheltered(&id.target.gateway) { 0 } else { world.scene.losing };
                let lost = !reaches(&world) || world.mishap(losing);
                let slow = !world.scene.is_sheltered(&id.target.gateway) && world.mishap(losing);
                let took = if slow { world.pause(100, 2500) } else { world.pause(1, 20) };
                ((!lost).then_some(took), !up)
            };
            let answer = match took {
                None => {
                    sleep(question.patience).await;
                    Err(io::ErrorKind::TimedOut.into())
                }
                Some(took) if refused => {
                    sleep(took.min(question.patience)).await;
                    Err(io::ErrorKind::ConnectionRefused.into())
                }
                Some(took) if took > question.patience => {
                    sleep(question.patience).await;
                    Err(io::ErrorKind::TimedOut.into())
                }
                Some(took) => {
                    sleep(took).await;
                    Ok(took)
                }
            };
            {
                let mut world = self.world.lock();
                if world.lives(self.life) {
                    world.hear(&id, answer.is_ok());
                    return answer;
                }
            }
            forever().await
        })
    }

    fn mounts(&self) -> io::Result<Arc<Vec<Mount>>> {
        let looks = self.world.lock().note_look();
        // No time passes between two of them: the run would never end.
        assert!(looks < RESTLESS, "the loop comes to no rest: {looks} looks at the host at one moment");
        self.call(|world| Ok(Arc::new(world.host.0.clone())))
    }

    fn holding(&self, devices: &BTreeSet<Device>, _written: &BTreeSet<Device>) -> Vec<MountNamespace> {
        let found = self.call(|world| {
            let of_interest = |table: &[Mount]| table.iter().any(|mount| devices.contains(&mount.device));
            let host = MountNamespace { inode: HOST, pid: 1, table: world.host.0.clone(), occupants: None };
            let own = world.containers.iter().filter(|(_, container)| !container.is_on_host());
            let containers = own.map(|(inode, container)| MountNamespace {
                inode: *inode,
                pid: container.pid,
                table: container.table.0.clone(),
                occupants: Some(container.state),
            });
            Ok(std::iter::once(host).chain(containers).filter(|namespace| of_interest(&namespace.table)).collect())
        });
        found.unwrap_or_default()
    }

    fn can_shut_down(&self) -> bool {
        let world = self.world.lock();
        world.scene.shuts_down && world.superblocks.values().any(|superblock| superblock.network == HOST_NETWORK)
    }

    fn start(&self, id: &NamespaceId, _: &TunnelSpec, peer: &Peer, _: IpAddr) -> Result<Box<dyn Tunnel>, TunnelError> {
        let started = self.risky("start a data path", |world| {
            let server = world.servers.iter().position(|server| server.endpoint == Some(peer.endpoint));
            let network = world.network_of(id);
            let (Some(server), Some(network)) = (server, network) else { return Err(io::Error::other("no way")) };
            let Some(there) = world.networks.get_mut(&network) else { return Err(io::Error::other("no network")) };
            if there.path.is_some() {
                return Err(io::Error::other("the device is busy"));
            }
            there.path = Some(DataPath { life: self.life, server, running: true });
            world.say(|| format!("a data path of {id} starts"));
            world.flow();
            Ok(network)
        });
        match started {
            Ok(network) => {
                let of = Of::Network(network);
                Ok(Box::new(MadeUp { world: self.world.clone(), life: self.life, of }))
            }
            Err(error) => Err(TunnelError::Device(id.clone(), error)),
        }
    }

    fn ways(&self) -> io::Result<BTreeMap<TargetId, (Way, bool)>> {
        self.call(|world| Ok(world.seen_ways()))
    }

    fn used_servers(&self) -> io::Result<BTreeSet<IpAddr>> {
        self.call(|world| Ok(world.used_servers()))
    }

    fn carry(&self, way: &Way, _: &TunnelSpec, peer: &Peer) -> Result<Box<dyn Tunnel>, TunnelError> {
        let started = self.risky("start a data path of the node's", |world| {
            let server = world.servers.iter().position(|server| server.endpoint == Some(peer.endpoint));
            let Some(server) = server else { return Err(io::Error::other("no way")) };
            let there = world.ways.get_mut(&way.target).filter(|there| there.way == *way);
            let Some(there) = there else { return Err(io::Error::other("no device")) };
            if there.path.is_some() {
                return Err(io::Error::other("the device is busy"));
            }
            there.path = Some(DataPath { life: self.life, server, running: true });
            world.say(|| format!("a data path of the node's to {} starts", way.target));
            world.flow();
            Ok(())
        });
        match started {
            Ok(()) => {
                let of = Of::Way(way.target.clone());
                Ok(Box::new(MadeUp { world: self.world.clone(), life: self.life, of }))
            }
            Err(error) => Err(TunnelError::Way { target: way.target.clone(), device: way.device(), error }),
        }
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.call(|world| {
            let mounted = world.host.0.iter().map(|mount| &mount.mount_point);
            let name =
                |path: &PathBuf| Some(path.to_str()?.strip_prefix(directory.to_str()?)?.strip_prefix('/')?.to_owned());
            Ok(world.files.keys().chain(mounted).filter_map(name).filter(|name| !name.contains('/')).collect())
        })
    }

    fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
        self.call(|world| world.files.get(file).cloned().ok_or_else(|| io::ErrorKind::NotFound.into()))
    }

    fn write(&self, file: &Path, content: &[u8], _: Point) -> io::Result<()> {
        self.risky(&format!("write {}", file.display()), |world| {
            if file.parent() == Some(&paths().fenced())
                && let Some(id) = file.file_name().and_then(|name| name.to_str()?.parse().ok())
            {
                world.judge_fence(&id);
            }
            world.say(|| format!("{} is written", file.display()));
            world.files.insert(file.to_owned(), content.to_vec());
            Ok(())
        })
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        self.risky(&format!("remove {}", file.display()), |world| {
            world.say(|| format!("{} is removed", file.display()));
            world.files.remove(file);
            Ok(())
        })
    }

    fn exists(&self, path: &Path) -> bool {
        self.world.lock().directories.contains(path)
    }

    fn boot(&self) -> io::Result<String> {
        self.call(|world| Ok(world.boots.to_string()))
    }

    fn with_processes(&self, uids: &BTreeSet<String>) -> BTreeSet<String> {
        let world = self.world.lock();
        let volumes = world.containers.values().filter_map(|container| world.volumes.get(&container.volume));
        volumes.map(|volume| volume.uid.clone()).filter(|uid| uids.contains(uid)).collect()
    }
}

/// A data path, which ends with the agent at the latest.
struct MadeUp {
    world: Shared,
    life: u64,
    of: Of,
}

/// What leads there.
#[derive(Debug)]
enum Of {
    Network(u64),
    Way(TargetId),
}

impl Of {
    fn path<'a>(&self, world: &'a mut World) -> Option<&'a mut Option<DataPath>> {
        match self {
            Self::Network(network) => world.networks.get_mut(network).map(|network| &mut network.path),
            Self::Way(target) => world.ways.get_mut(target).map(|way| &mut way.path),
        }
    }
}

impl Tunnel for MadeUp {
    fn stats(&self) -> Stats {
        let mut world = self.world.lock();
        let path = self.of.path(&mut world).and_then(|path| path.as_ref());
        let running = path.is_some_and(|path| path.life == self.life && path.running);
        Stats { running, ..Stats::default() }
    }
}

impl Drop for MadeUp {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        let ended = self.of.path(&mut world).and_then(|path| path.take_if(|path| path.life == self.life));
        if ended.is_some() {
            world.say(|| format!("the data path of {:?} ends", self.of));
        }
    }
}
