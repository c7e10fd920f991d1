//! A node, its servers and its pods, as far as the planner can tell: it does what a step says and holds that against the
//! invariants.

mod laws;

use super::*;
use crate::mount_defaults;
use crate::objects::InUse;
use crate::observed::{Copies, Deletion, Occupants, Server};
use crate::publication::Pod;
use crate::way::WaySeen;
use crate::yaml::{Located, parse};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A container's view of its volume, lowest layer first.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) layers: Vec<SuperblockId>,
    pub(super) killed: bool,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) desired: Desired,
    pub(super) observed: Observed,
    pub(super) alive: [bool; 2],
    pub(super) containers: BTreeMap<PublicationId, Vec<Container>>,
    /// Superblocks whose root their server does not know any more.
    pub(super) stale: BTreeSet<SuperblockId>,
    /// Steps under way, by lane.
    pub(super) busy: BTreeMap<Lane, Vec<Step>>,
    /// When each began.
    pub(super) began: BTreeMap<Lane, Moment>,
    pub(super) now: Moment,
}

impl World {
    pub(super) fn new(shared_data: bool) -> Self {
        let text = format!(
            "apiVersion: moorline.io/v1alpha1\nkind: Gateway\nmetadata: {{name: gw}}\nspec:\n  sharedData: {shared_data}\n  tunnel: {{address: 10.0.0.2, privateKey: {KEY}}}\n  targets:\n  - {{name: a, endpoint: '192.0.2.1:1', publicKey: {KEY}, server: 10.0.0.1}}\n  - {{name: b, endpoint: '192.0.2.2:1', publicKey: {KEY}, server: 10.0.1.1}}\n---\napiVersion: moorline.io/v1alpha1\nkind: Share\nmetadata: {{name: data}}\nspec: {{gateway: gw, export: /data, access: ReadOnly, namespaces: ['*']}}\n---\napiVersion: moorline.io/v1alpha1\nkind: Share\nmetadata: {{name: checkpoints}}\nspec: {{gateway: gw, export: /ckpt, access: ReadWrite, namespaces: ['*']}}\n"
        );
        let files: Vec<Located> = parse("f.yaml", &text).unwrap();
        let (objects, problems) = Objects::default().revise(&files, false, &InUse::default());
        assert!(problems.is_empty(), "{problems:?}");
        Self {
            desired: Desired { objects, ..Desired::default() },
            observed: Observed::default(),
            alive: [true; 2],
            containers: BTreeMap::new(),
            stale: BTreeSet::new(),
            busy: BTreeMap::new(),
            began: BTreeMap::new(),
            now: Duration::from_secs(100),
        }
    }

    /// Its gateway's scope is the host.
    pub(super) fn on_host(mut self) -> Self {
        for gateway in self.desired.objects.gateways.values_mut() {
            if let crate::gateway::Path::Tunnel(tunnel) = &mut gateway.path {
                tunnel.on_host = true;
            }
        }
        self
    }

    pub(super) fn publication(slot: usize) -> Publication {
        let node = slot == NODE;
        Publication {
            volume_id: if node { String::new() } else { format!("v{slot}") },
            target_path: if node { "/mnt/node".to_owned() } else { format!("/pods/{slot}") },
            share: if slot < 2 { "data" } else { "checkpoints" }.parse().unwrap(),
            sub_dir: None,
            read_only: slot < 2,
            pod: if node { Pod::default() } else { Pod { uid: slot.to_string(), ..Pod::default() } },
            sole: None,
            errand: None,
            inline: false,
            node,
            wanted: true,
        }
    }

    pub(super) fn apply(&mut self, op: &Op) {
        let id = |slot: usize| Self::publication(slot).id();
        match *op {
            Op::Publish(NODE) => self.ask_for_node_mount(Some("/mnt/node")),
            Op::Unpublish(NODE) => self.ask_for_node_mount(None),
            Op::Publish(slot) => {
                self.desired.publications.entry(id(slot)).or_insert_with(|| Self::publication(slot));
            }
            Op::Unpublish(slot) => {
                // Kubelet takes a volume back only when its containers have ended.
                if self.containers.get(&id(slot)).is_none_or(Vec::is_empty)
                    && let Some(publication) = self.desired.publications.get_mut(&id(slot))
                {
                    publication.wanted = false;
                }
            }
            Op::StartContainer(slot) => {
                // A node's directories are anybody's as long as they are there.
                let wanted = self.desired.publications.get(&id(slot)).is_some_and(Publication::is_served);
                if let Some(Layer::Ours(top)) = self.observed.published.get(&id(slot)).and_then(|layers| layers.last())
                    && wanted
                {
                    let container = Container { layers: vec![top.clone()], killed: false };
                    self.containers.entry(id(slot)).or_default().push(container);
                }
            }
            Op::EndContainers(slot) => drop(self.containers.remove(&id(slot))),
            Op::KillContainers(slot) => {
                self.containers.entry(id(slot)).or_default().iter_mut().for_each(|c| c.killed = true)
            }
            Op::Delete(slot) => {
                let deletion = Deletion { asked: self.now, ends: self.now + Duration::from_secs(30) };
                self.observed.pods.known.entry(Self::publication(slot).pod.uid).or_insert(Some(deletion));
            }
            Op::ServerDies(target) => self.alive[target] = false,
            Op::ServerReturns(target) => self.alive[target] = true,
            Op::ExportReplaced(target) => {
                let there = self.observed.superblocks.iter();
                let of_it = there.filter(|id| usize::from(id.namespace.target.target.as_str() == "b") == target);
                self.stale.extend(of_it.cloned());
            }
            Op::AgentRestarts => {
                self.observed
                    .namespaces
                    .values_mut()
                    .filter(|t| **t == Tunnel::Attached)
                    .for_each(|t| *t = Tunnel::Detached);
                self.observed.servers.clear();
                self.observed.ways.values_mut().for_each(|way| way.carried = false);
                self.busy.clear();
                self.observed.beginning.clear();
                self.observed.ending.clear();
                self.observed.clearing.clear();
                self.apply(&Op::GoOn);
            }
            Op::SomebodyMounts(target) => {
                let way = self.observed.ways.values().find(|way| leads_to(&way.way.target, target) && way.carried);
                self.observed.used_servers.extend(way.map(|way| way.way.server));
            }
            Op::NobodyMounts => self.observed.used_servers.clear(),
            Op::RouteGoes(target) => {
                let mut ways = self.observed.ways.values_mut();
                ways.by_ref().filter(|way| leads_to(&way.way.target, target)).for_each(|way| way.whole = false);
            }
            Op::ShutDown(seconds) => {
                self.desired.shutdown = Some(Shutdown::new(self.now, Duration::from_secs(seconds)));
                self.observed.flushed.clear();
            }
            Op::GoOn => {
                self.desired.shutdown = None;
                self.observed.flushed.clear();
            }
            Op::Second { failing, slow } => self.second(failing, slow),
        }
    }

    pub(super) fn ask_for_node_mount(&mut self, place: Option<&str>) {
        let share = self.desired.objects.shares.get_mut(&"checkpoints".parse().unwrap()).unwrap();
        share.node_mount = place.map(|place| place.parse().unwrap());
    }

    pub(super) fn second(&mut self, failing: u8, slow: u8) {
        self.now += Duration::from_secs(1);
        for publication in self.desired.node_mount_changes() {
            self.desired.publications.insert(publication.id(), publication);
        }
        self.probe();
        self.look();
        let mut lanes: BTreeMap<Lane, Vec<Step>> = BTreeMap::new();
        for step in plan(&self.desired, &self.observed, self.now) {
            self.may_be_done_as_it_is(&step);
            match &step {
                Step::Hide(id) => self.may_be_hidden(*id),
                Step::Unpublish(id) if self.desired.publications[id].node => {
                    let held = self.containers.get(id).is_some_and(|containers| !containers.is_empty());
                    assert!(!held, "a node mount is taken from a container");
                }
                _ => {}
            }
            let begins = !matches!(
                step,
                Step::RemoveNamespace(_)
                    | Step::CarryWay(_)
                    | Step::RemoveWay { .. }
                    | Step::Flush(_)
                    | Step::Detach(_)
                    | Step::Hide(_)
                    | Step::Abort(_)
                    | Step::Unpublish(_)
                    | Step::Clear(_)
                    | Step::Retire { .. }
            );
            // What is to be written needs its way, after an agent's death as well.
            let Observed { superblocks, beginning, ending, .. } = &self.observed;
            let held = || superblocks.iter().chain(beginning).chain(ending);
            let holds = |id: &NamespaceId| held().any(|held| held.namespace == *id);
            let begins = begins && !matches!(&step, Step::AttachTunnel(id) if holds(id));
            // What others mount by is kept whole.
            let begins = begins && !matches!(&step, Step::MakeWay(target) if self.observed.ways.contains_key(target));
            assert!(!begins || self.desired.shutdown.is_none(), "{step} begins while the node shuts down");
            if !self.busy.contains_key(&step.lane()) {
                lanes.entry(step.lane()).or_default().push(step);
            }
        }
        self.began.extend(lanes.keys().map(|lane| (lane.clone(), self.now)));
        self.busy.extend(lanes);
        for step in self.busy.values().flatten() {
            if let Step::Clear(superblock) | Step::Retire { superblock, .. } = step {
                let mounting = |step: &Step| matches!(step, Step::Mount(id, _) if id == superblock);
                assert!(!self.busy.values().flatten().any(mounting), "{superblock} is mounted and retired at once");
            }
        }
        for (index, (lane, steps)) in self.busy.clone().into_iter().enumerate() {
            let bit = 1 << (index % 8);
            // An abort is short by its nature.
            if slow & bit == 0 || matches!(steps[..], [Step::Abort(_) | Step::Retire { abort: true, .. }]) {
                self.busy.remove(&lane);
                let done = failing & bit == 0;
                if !done && let Some(first) = steps.first() {
                    self.cut_short(first);
                }
                for step in &steps {
                    if done {
                        self.perform(step);
                    }
                    if let Step::Flush(id) = step {
                        self.observed.flushed.insert(id.clone(), Flush { began: self.began[&lane], done });
                    }
                }
            }
        }
        self.observed.beginning.clear();
        self.observed.ending.clear();
        self.observed.clearing.clear();
        note_under_way(&mut self.observed, self.busy.values().flatten());
        self.look();
    }

    pub(super) fn probe(&mut self) {
        for (id, tunnel) in &self.observed.namespaces {
            if *tunnel != Tunnel::Attached {
                continue;
            }
            let server =
                self.observed.servers.entry(id.clone()).or_insert(Server::new(Duration::from_secs(4), self.now));
            let leads = self.observed.ways.get(&id.target).is_none_or(|way| way.whole && way.carried);
            let alive = leads && self.alive[usize::from(id.target.target.as_str() == "b")];
            server.asked(self.now, alive.then_some(Duration::from_millis(1)));
        }
    }

    /// What is in containers, as an observation sees it, and which mounts are stale, where their servers answer.
    pub(super) fn look(&mut self) {
        self.stale = self.stale.intersection(&self.observed.superblocks).cloned().collect();
        let told = self.stale.iter().filter(|id| self.is_alive(&id.namespace)).map(|id| (id.share.clone(), id.epoch));
        let since = |which: &(Name, u32)| self.observed.stale.get(which).copied().unwrap_or(self.now);
        self.observed.stale = told.map(|which| (which.clone(), since(&which))).collect();
        self.observed.copies.clear();
        self.observed.occupants.clear();
        let there = self.observed.published.iter().filter(|(_, layers)| !layers.is_empty());
        self.observed.shown = there.map(|(id, _)| *id).collect();
        for (id, containers) in &self.containers {
            for container in containers {
                for (depth, layer) in container.layers.iter().enumerate() {
                    let copies: &mut Copies = self.observed.copies.entry(layer.clone()).or_default();
                    copies.all += 1;
                    copies.bound += 1;
                    copies.on_top += u32::from(depth + 1 == container.layers.len());
                }
            }
            let occupants =
                containers.iter().map(|c| if c.killed { Occupants::Killed } else { Occupants::Living }).max();
            self.observed.occupants.extend(occupants.map(|occupants| (*id, occupants)));
        }
    }

    fn is_alive(&self, namespace: &NamespaceId) -> bool {
        self.alive[usize::from(namespace.target.target.as_str() == "b")]
            && self.observed.namespaces.get(namespace) != Some(&Tunnel::Fenced)
    }

    /// Does a step as the host would, and holds it against the invariants.
    pub(super) fn perform(&mut self, step: &Step) {
        match step {
            Step::MakeNamespace(id) => {
                assert!(self.observed.namespaces.insert(id.clone(), Tunnel::Detached).is_none(), "{id} is made twice");
            }
            Step::AttachTunnel(id) => {
                let tunnel = self.observed.namespaces.get_mut(id).unwrap();
                assert_ne!(*tunnel, Tunnel::Attached, "{id} is attached twice");
                // The host refuses, should a fence have come first while this was under way.
                if *tunnel == Tunnel::Detached {
                    *tunnel = Tunnel::Attached;
                }
            }
            Step::MakeWay(target) => {
                let ways = self.desired.objects.gateways.values().flat_map(Gateway::ways);
                let way = ways.into_iter().find(|way| way.target == *target).expect("a way that is wanted");
                let seen = WaySeen { way, whole: true, carried: false };
                let there = self.observed.ways.entry(target.clone()).or_insert(seen);
                there.whole = true;
            }
            Step::CarryWay(target) => {
                let way = self.observed.ways.get_mut(target).expect("a device");
                assert!(!way.carried, "{target} is carried twice");
                way.carried = true;
            }
            Step::RemoveWay { target, .. } => {
                if let Some(way) = self.observed.ways.remove(target) {
                    assert!(!self.observed.is_used(&way), "the way to {target} is taken from who uses it");
                }
            }
            Step::SetMountDefaults => self.observed.mount_defaults = mount_defaults::file(&self.desired.objects),
            Step::Fence(id) => {
                self.observed.namespaces.insert(id.clone(), Tunnel::Fenced);
                let gateway = &self.desired.objects.gateways[&id.target.gateway];
                if gateway.is_on_host() {
                    let writers = self.observed.superblocks.iter().filter(|s| s.namespace == *id && s.user.writes());
                    let writers: Vec<_> = writers.cloned().collect();
                    self.observed.given_up.extend(writers.iter().cloned());
                    self.observed.ended.extend(writers);
                }
            }
            Step::RemoveNamespace(id) => {
                assert!(!self.observed.superblocks.iter().any(|s| s.namespace == *id), "{id} is removed under a mount");
                self.observed.namespaces.remove(id);
                self.observed.servers.remove(id);
            }
            Step::Mount(id, _) => {
                if id.user.writes() && self.is_alive(&id.namespace) {
                    let shared = self.desired.objects.gateways.values().all(|gateway| gateway.shared_data);
                    assert!(
                        shared || id.namespace.target.target.as_str() == "a",
                        "{id}: the targets don't share their data"
                    );
                }
                if self.is_alive(&id.namespace) {
                    assert!(self.observed.superblocks.insert(id.clone()), "{id} is mounted twice");
                    self.observed.husks.remove(id);
                    self.observed.given_up.remove(id);
                    self.observed.ended.remove(id);
                }
            }
            Step::Publish(id, superblock) => {
                self.may_be_written(superblock);
                let layers = self.observed.published.entry(*id).or_default();
                assert!(layers.is_empty(), "published over something");
                assert_eq!(self.desired.publications[id].user(), superblock.user, "another's superblock");
                layers.push(Layer::Ours(superblock.clone()));
            }
            Step::Replace { old, new } => {
                assert_eq!((&old.share, old.user), (&new.share, new.user), "a copy may not change whose it is");
                assert!(old.epoch < new.epoch);
                self.may_be_written(new);
                for layers in self
                    .observed
                    .published
                    .values_mut()
                    .filter(|layers| layers.last() == Some(&Layer::Ours(old.clone())))
                {
                    layers.push(Layer::Ours(new.clone()));
                }
                for container in
                    self.containers.values_mut().flatten().filter(|container| container.layers.last() == Some(old))
                {
                    container.layers.push(new.clone());
                }
            }
            Step::Abort(id) => {
                let superseded = self.observed.superblocks.iter().any(|other| other.succeeds(id));
                let own_writer = matches!(id.user, User::ReadWrite(_));
                let too_late = self.desired.shutdown.is_some_and(|shutdown| self.now >= shutdown.pods_until);
                // There may be nobody whose time is waited for.
                let by_the_node = matches!(id.user, User::Node(_)) && self.desired.shutdown.is_some();
                assert!(
                    superseded
                        || (own_writer || too_late || by_the_node) && !self.is_believed_alive(id)
                        || id.user.writes() && too_late,
                    "{id} is aborted though it is in force"
                );
                if let User::ReadWrite(publication) = id.user
                    && !superseded
                    && !too_late
                {
                    // Its killed processes can end now.
                    let wanted = self.desired.publications.get(&publication).filter(|p| p.wanted);
                    let deletion = wanted.and_then(|p| self.observed.pods.known.get(&p.pod.uid).copied().flatten());
                    let last_call =
                        deletion.is_some_and(|deletion| self.now + Duration::from_secs(10) >= deletion.ends);
                    assert!(
                        wanted.is_none()
                            || last_call
                            || self.observed.occupants.get(&publication) == Some(&Occupants::Killed),
                        "{id} is aborted under a living pod"
                    );
                    self.containers.remove(&publication);
                }
            }
            Step::Hide(id) => drop(self.observed.published.remove(id)),
            Step::Flush(id) => {
                assert_ne!(id.user, User::ReadOnly, "{id}: a reader leaves nothing unwritten");
                assert!(self.observed.superblocks.contains(id));
            }
            Step::Detach(id) => {
                assert!(self.desired.publications.contains_key(id));
                self.observed.published.remove(id);
            }
            Step::Unpublish(id) => {
                let publication = &self.desired.publications[id];
                // A node mount may be asked for again meanwhile: it comes back when it has gone.
                assert!(publication.node || !publication.wanted);
                let held = self.containers.get(id).is_some_and(|containers| !containers.is_empty());
                // The kernel refuses, should one have begun since that was looked at.
                if publication.node && held {
                    return;
                }
                self.observed.published.remove(id);
                self.observed.pods.known.remove(&publication.pod.uid);
                self.desired.publications.remove(id);
            }
            Step::Clear(id) => {
                assert!(!self.observed.superblocks.contains(id), "{id} is there, and no husk");
                self.observed.husks.remove(id);
                self.observed.given_up.remove(id);
                self.observed.ended.remove(id);
            }
            Step::Retire { superblock, abort } => {
                let used =
                    self.observed.published.values().flatten().any(|layer| *layer == Layer::Ours(superblock.clone()));
                let newer =
                    self.observed.superblocks.iter().any(|o| {
                        o.share == superblock.share && o.user == superblock.user && o.epoch > superblock.epoch
                    });
                assert!(!used, "{superblock} is retired under a pod");
                let mut held = self.containers.values().flatten().flat_map(|container| &container.layers);
                assert!(!held.any(|layer| layer == superblock), "{superblock} is retired under a container");
                let too_late = self.desired.shutdown.is_some_and(|shutdown| self.now >= shutdown.flush_until);
                assert!(
                    !abort
                        || newer
                        || too_late
                        || self.observed.given_up.contains(superblock)
                        || !self.is_believed_alive(superblock),
                    "{superblock} is aborted though its server could take what is unwritten"
                );
                // What is unwritten waits for a server, and the kernel's last words do.
                let waits = !abort && self.observed.namespaces.get(&superblock.namespace) != Some(&Tunnel::Attached);
                if waits && self.observed.superblocks.contains(superblock) {
                    return;
                }
                self.observed.superblocks.remove(superblock);
                self.observed.husks.remove(superblock);
                self.observed.given_up.remove(superblock);
                self.observed.ended.remove(superblock);
            }
        }
    }

    /// A step that fails may leave half of what it does.
    fn cut_short(&mut self, step: &Step) {
        match step {
            Step::MakeNamespace(id) | Step::RemoveNamespace(id) => {
                self.observed.namespaces.insert(id.clone(), Tunnel::Fenced);
            }
            Step::Mount(id, _) => drop(self.observed.husks.insert(id.clone())),
            Step::Retire { superblock, abort: true } if self.observed.superblocks.contains(superblock) => {
                self.observed.given_up.insert(superblock.clone());
            }
            Step::Retire { superblock, .. } => {
                self.observed.superblocks.remove(superblock);
                self.observed.husks.insert(superblock.clone());
            }
            _ => {}
        }
    }

    fn is_believed_alive(&self, id: &SuperblockId) -> bool {
        self.observed.namespaces.get(&id.namespace) != Some(&Tunnel::Fenced)
            && self.observed.liveness(&id.namespace, self.now) != Liveness::Away
    }
}

fn leads_to(target: &TargetId, number: usize) -> bool {
    usize::from(target.target.as_str() == "b") == number
}

/// A server that is away.
pub(super) fn silent() -> Server {
    let mut server = Server::new(Duration::from_secs(4), Moment::ZERO);
    [10, 20].map(Duration::from_secs).into_iter().for_each(|at| server.asked(at, None));
    server
}
