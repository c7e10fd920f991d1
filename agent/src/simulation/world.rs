//! A node and all that is around it, made up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use moorline_shared::happening::Kind;
use moorline_shared::id::{NamespaceId, PublicationId, SuperblockId, TargetId};
use moorline_shared::observed::{Deletion, Moment, Pods};
use moorline_shared::yaml::Located;
use moorline_sys::mountinfo::{Attributes, Device, Mount};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::apps::Container;
use super::boots::Shutdown;
use super::nodes::{Followers, Places};
use super::scene::Scene;
use super::storage::{Server, Store, Superblock};
use super::table::{Detached, MountTable};
use super::truth::Heard;
use super::ways::Device as WayDevice;
use crate::config::Reading;
use crate::door::Door;
use crate::paths::Paths;
use crate::window::Window;

/// What everybody holds. Nobody waits with it locked: all of them take turns on one thread.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(super) fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct World {
    pub scene: Scene,
    pub rng: Rng,
    origin: Instant,
    /// Faults may happen.
    pub trouble: bool,
    /// Nothing more is to come: who loops ends.
    pub over: bool,

    /// The node's disk: what lies in memory until the next boot.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    pub directories: BTreeSet<PathBuf>,
    /// What people wrote, as it is now.
    pub objects: Vec<Located>,
    /// And what they say of the node's places, now and before.
    pub asked: Places,

    pub host: MountTable,
    pub containers: BTreeMap<u64, Container>,
    /// What of them follows which mount of the host's.
    pub followers: Followers,
    pub superblocks: BTreeMap<Device, Superblock>,
    /// Network namespaces as the kernel knows them. That of the host is the first.
    pub networks: BTreeMap<u64, Network>,
    /// Ways on the host's.
    pub ways: BTreeMap<TargetId, WayDevice>,
    /// Mounts of others that go by them.
    pub guests: BTreeMap<u64, IpAddr>,
    numbers: u64,

    pub servers: Vec<Server>,
    pub stores: Vec<Store>,
    pub uplink: bool,
    /// What was written last, by file.
    pub written: u64,
    /// What was acknowledged, by share and file.
    pub acknowledged: BTreeMap<(String, u8), u64>,

    /// What hands may still show, by hand, and whose they are.
    pub at_work: BTreeMap<u64, (u64, SuperblockId)>,
    pub agent: Option<Agent>,
    pub lives: u64,
    pub boots: u64,
    pub shutdown: Option<Shutdown>,
    /// When one did not come after all.
    pub called_off: Option<Duration>,
    pub pods: BTreeMap<String, PodTruth>,
    pub volumes: BTreeMap<PublicationId, Volume>,
    pub heard: BTreeMap<NamespaceId, Heard>,
    /// When a look last found a share stale, or its server was last given up.
    pub excused: BTreeMap<String, Duration>,
    /// What was retired last of each share, and when.
    pub retired: BTreeMap<String, (SuperblockId, Duration)>,

    looks: (Duration, u32),
    pub broken: Vec<String>,
    story: Option<Vec<String>>,
    window: Option<Arc<Window>>,
    told: u64,
}

/// An agent that lives.
pub(super) struct Agent {
    pub life: u64,
    /// Where it is asked, once it is there.
    pub door: Option<Door>,
    pub main: Option<JoinHandle<()>>,
    /// When it began.
    pub origin: Duration,
}

pub(super) const HOST_NETWORK: u64 = 1;

#[derive(Debug, Clone, Default)]
pub(super) struct Network {
    pub path: Option<DataPath>,
}

#[derive(Debug, Clone)]
pub(super) struct DataPath {
    pub life: u64,
    pub server: usize,
    pub running: bool,
}

/// A pod as the API server has it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PodTruth {
    /// When it was asked to end, and when its grace is over.
    pub deleted: Option<(Duration, Duration)>,
}

/// A volume as kubelet has it.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub uid: String,
    pub slot: usize,
    pub target: PathBuf,
    /// It has asked for it since the node booted.
    pub asked: bool,
    /// It wants it.
    pub wanted: bool,
    /// And was told that it is there.
    pub there: bool,
    /// Written by nobody, whatever happens.
    pub read_only: bool,
}

pub(super) fn paths() -> Paths {
    Paths { run: "/run/moorline".into(), kubelet: "/var/lib/kubelet".into() }
}

/// Of the node's own file systems, of which nothing is asked.
const OTHER: Device = Device { major: 8, minor: 1 };
pub(super) const TMPFS: Device = Device { major: 0, minor: 5 };
const NSFS: Device = Device { major: 0, minor: 4 };

/// A container's own.
pub(super) fn overlay() -> Detached {
    Detached { device: Device { major: 0, minor: 9 }, attributes: Attributes::default(), source: "overlay".into() }
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "wiring: the origin of the time that is made up here")]
    pub(super) fn new(scene: Scene, rng: Rng, tell: bool) -> Self {
        let mut world = Self {
            origin: Instant::now(),
            trouble: false,
            over: false,
            files: BTreeMap::new(),
            directories: BTreeSet::from([paths().pods()]),
            objects: scene.files(),
            asked: Places::new(),
            host: MountTable::default(),
            containers: BTreeMap::new(),
            followers: Followers::new(),
            superblocks: BTreeMap::new(),
            networks: BTreeMap::from([(HOST_NETWORK, Network::default())]),
            ways: BTreeMap::new(),
            guests: BTreeMap::new(),
            numbers: 100,
            servers: Vec::new(),
            stores: Vec::new(),
            uplink: true,
            written: 0,
            acknowledged: BTreeMap::new(),
            at_work: BTreeMap::new(),
            agent: None,
            lives: 0,
            boots: 1,
            shutdown: None,
            called_off: None,
            pods: BTreeMap::new(),
            volumes: BTreeMap::new(),
            heard: BTreeMap::new(),
            excused: BTreeMap::new(),
            retired: BTreeMap::new(),
            looks: (Duration::ZERO, 0),
            broken: Vec::new(),
            story: tell.then(Vec::new),
            window: None,
            told: 0,
            scene,
            rng,
        };
        let root = Detached { device: OTHER, attributes: Attributes::default(), source: "/dev/vda".into() };
        world.host.put_over(1, Path::new("/"), root);
        world.build_servers();
        world.note_asked();
        world
    }

    #[expect(clippy::disallowed_methods, reason = "wiring: the time that is made up here")]
    pub(super) fn now(&self) -> Duration {
        Instant::now().duration_since(self.origin)
    }

    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// One in so many thousand, while there is trouble.
    pub(super) fn mishap(&mut self, in_thousand: u32) -> bool {
        self.trouble && self.rng.u32(..1000) < in_thousand
    }

    /// A duration between these, in milliseconds.
    pub(super) fn pause(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.u64(from..=to))
    }

    pub(super) fn breaks(&mut self, invariant: &str, what: String) {
        self.say(|| format!("BROKEN {invariant}: {what}"));
        self.broken.push(format!("{invariant}: {what}"));
    }

    /// How often the agent has looked at the host at this moment.
    pub(super) fn note_look(&mut self) -> u32 {
        let now = self.now();
        let before = if self.looks.0 == now { self.looks.1 } else { 0 };
        self.looks = (now, before + 1);
        before + 1
    }

    /// A line of the story, if anybody wants it.
    pub(super) fn say(&mut self, line: impl FnOnce() -> String) {
        let now = self.now();
        let Some(story) = &mut self.story else { return };
        if let Some(window) = &self.window {
            for record in window.chronicle.after(self.told) {
                self.told = record.sequence;
                story.push(format!("{:>9.3}  agent: {}", now.as_secs_f64(), record.message));
            }
        }
        story.push(format!("{:>9.3}  {}", now.as_secs_f64(), line()));
    }

    /// What the agent that lives has said last of this kind.
    pub(super) fn last_said(&self, kind: Kind) -> Option<String> {
        let told = self.window.as_ref()?.chronicle.after(0);
        told.iter().rev().find(|record| record.kind == kind).map(|record| record.message.clone())
    }

    pub(super) fn take_story(&mut self) -> Vec<String> {
        self.say(|| "the end".into());
        self.story.take().unwrap_or_default()
    }

    // The agent.

    pub(super) fn begin_life(&mut self, window: Arc<Window>) -> u64 {
        self.lives += 1;
        let life = self.lives;
        self.agent = Some(Agent { life, door: None, main: None, origin: self.now() });
        self.say(|| format!("agent {life} starts"));
        (self.window, self.told) = (Some(window), 0);
        self.heard.clear();
        life
    }

    pub(super) fn lives(&self, life: u64) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.life == life)
    }

    pub(super) fn door(&self) -> Option<Door> {
        self.agent.as_ref()?.door.clone()
    }

    /// As by SIGKILL: what it does ends between two calls, and its data paths with it.
    pub(super) fn kill_agent(&mut self, why: &str) {
        let Some(agent) = self.agent.take() else { return };
        self.say(|| format!("agent {} is killed: {why}", agent.life));
        if let Some(main) = agent.main {
            main.abort();
        }
        for network in self.networks.values_mut() {
            network.path.take_if(|path| path.life == agent.life);
        }
        for way in self.ways.values_mut() {
            way.path.take_if(|path| path.life == agent.life);
        }
    }

    /// What the API server tells the agent, in the time of its clock.
    pub(super) fn pods_for(&self, origin: Duration) -> Pods {
        let local = |at: Duration| -> Moment { at.saturating_sub(origin) };
        let deletion =
            |pod: &PodTruth| pod.deleted.map(|(asked, ends)| Deletion { asked: local(asked), ends: local(ends) });
        Pods {
            known: self.pods.iter().map(|(uid, pod)| (uid.clone(), deletion(pod))).collect(),
            heard: true,
            complete: true,
        }
    }

    pub(super) fn reading(&self) -> Reading {
        Reading { objects: self.objects.clone(), ..Reading::default() }
    }

    // The kernel.

    pub(super) fn network_of(&self, id: &NamespaceId) -> Option<u64> {
        let at = paths().namespace(id);
        self.host.top(&at)?.source.to_str()?.strip_prefix("net:")?.parse().ok()
    }

    pub(super) fn mount_node(&mut self) {
        let node = paths().node();
        if self.host.top(&node).is_none() {
            let id = self.number();
            let tmpfs = Detached { device: TMPFS, attributes: Attributes::default(), source: "tmpfs".into() };
            self.host.put_over(id, &node, tmpfs);
        }
    }

    pub(super) fn name_network(&mut self, id: &NamespaceId, network: u64) {
        let mount = self.number();
        let what =
            Detached { device: NSFS, attributes: Attributes::default(), source: format!("net:{network}").into() };
        self.host.put_over(mount, &paths().namespace(id), what);
    }

    pub(super) fn is_marked(&self, id: &NamespaceId) -> bool {
        self.files.contains_key(&paths().fence(id))
    }

    /// The base mount of a superblock.
    pub(super) fn base(&self, id: &SuperblockId) -> Option<&Mount> {
        self.host.top(&paths().base(id))
    }

    pub(super) fn bases(&self) -> impl Iterator<Item = (SuperblockId, Device)> {
        let mounts = paths().mounts();
        self.host.0.iter().filter_map(move |mount| {
            let below = mount.mount_point.strip_prefix(&mounts).ok()?;
            Some((below.to_str()?.parse().ok()?, mount.device))
        })
    }

    /// Whether anything still holds a superblock: a mount, or a descriptor.
    fn is_held(&self, device: Device) -> bool {
        self.host.shows(device)
            || self.containers.values().any(|container| container.holds(device) || container.table.shows(device))
    }

    /// Lets go of superblocks that nothing holds. One with unwritten data stays as long as it has it: the kernel, in
    /// whoever let go of it last, goes on trying to write.
    pub(super) fn let_go(&mut self) {
        let unheld: Vec<Device> = self.superblocks.keys().copied().filter(|device| !self.is_held(*device)).collect();
        for device in unheld {
            let Some(superblock) = self.superblocks.get_mut(&device) else { continue };
            if superblock.dirty.is_empty() || superblock.shut {
                let id = self.superblocks.remove(&device).map(|superblock| superblock.id);
                self.say(|| format!("the kernel lets go of {}", id.map_or(String::new(), |id| id.to_string())));
            } else {
                superblock.dirty.iter_mut().for_each(|write| write.sent = true);
            }
        }
        let named: BTreeSet<u64> = {
            let directory = paths().namespaces();
            let binds = self.host.0.iter().filter(|mount| mount.mount_point.parent() == Some(&directory));
            binds.filter_map(|mount| mount.source.to_str()?.strip_prefix("net:")?.parse().ok()).collect()
        };
        let used: BTreeSet<u64> = self.superblocks.values().map(|superblock| superblock.network).collect();
        self.networks.retain(|inode, _| *inode == HOST_NETWORK || named.contains(inode) || used.contains(inode));
    }
}
