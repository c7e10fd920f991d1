//! Random walks through a small world: targets that die and come back, pods that come and go, an agent that restarts,
//! steps that fail. A failing walk prints its operations and the world's state.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::observed::{Copies, Deletion, Occupants, Server};
use crate::publication::Pod;
use crate::share::{Namespaces, Policy};
use crate::yaml::{Located, parse};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
/// The last is the node's own.
const SLOTS: usize = 5;
const NODE: usize = 4;

#[derive(Debug, Clone)]
enum Op {
    /// A pod wants a share: slots 0 and 1 read `data`, 2 and 3 write `checkpoints`. Or that is to be mounted on the node, 4.
    Publish(usize),
    Unpublish(usize),
    StartContainer(usize),
    EndContainers(usize),
    KillContainers(usize),
    /// A pod is asked to end.
    Delete(usize),
    ServerDies(usize),
    ServerReturns(usize),
    /// What is mounted from a target is no longer known to it.
    ExportReplaced(usize),
    AgentRestarts,
    /// The node is about to go down, in so many seconds.
    ShutDown(u64),
    GoOn,
    /// A second passes. Of the lanes, those whose bit is set in `failing` fail, and those in `slow` take longer.
    Second {
        failing: u8,
        slow: u8,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0..SLOTS).prop_map(Op::Publish),
        1 => (0..SLOTS).prop_map(Op::Unpublish),
        2 => (0..SLOTS).prop_map(Op::StartContainer),
        1 => (0..SLOTS).prop_map(Op::EndContainers),
        1 => (0..SLOTS).prop_map(Op::KillContainers),
        1 => (0..SLOTS).prop_map(Op::Delete),
        1 => (0..2usize).prop_map(Op::ServerDies),
        1 => (0..2usize).prop_map(Op::ServerReturns),
        1 => (0..2usize).prop_map(Op::ExportReplaced),
        1 => Just(Op::AgentRestarts),
        1 => (0..20u64).prop_map(Op::ShutDown),
        1 => Just(Op::GoOn),
        12 => any::<(u8, u8)>().prop_map(|(a, b)| Op::Second { failing: a & a.rotate_left(3), slow: b & b.rotate_left(3) }),
    ]
}

/// A container's view of its volume, lowest layer first.
#[derive(Debug, Clone)]
struct Container {
    layers: Vec<SuperblockId>,
    killed: bool,
}

#[derive(Debug)]
struct World {
    desired: Desired,
    observed: Observed,
    alive: [bool; 2],
    containers: BTreeMap<PublicationId, Vec<Container>>,
    /// Superblocks whose root their server does not know any more.
    stale: BTreeSet<SuperblockId>,
    /// Steps under way, by lane.
    busy: BTreeMap<Lane, Vec<Step>>,
    /// When each began.
    began: BTreeMap<Lane, Moment>,
    now: Moment,
}

impl World {
    fn new(shared_data: bool) -> Self {
        let text = format!(
            "apiVersion: moorline.io/v1alpha1\nkind: Gateway\nmetadata: {{name: gw}}\nspec:\n  sharedData: {shared_data}\n  tunnel: {{address: 10.0.0.2, privateKey: {KEY}}}\n  targets:\n  - {{name: a, endpoint: '192.0.2.1:1', publicKey: {KEY}, server: 10.0.0.1}}\n  - {{name: b, endpoint: '192.0.2.2:1', publicKey: {KEY}, server: 10.0.1.1}}\n---\napiVersion: moorline.io/v1alpha1\nkind: Share\nmetadata: {{name: data}}\nspec: {{gateway: gw, export: /data, access: ReadOnly, namespaces: ['*']}}\n---\napiVersion: moorline.io/v1alpha1\nkind: Share\nmetadata: {{name: checkpoints}}\nspec: {{gateway: gw, export: /ckpt, access: ReadWrite, namespaces: ['*']}}\n"
        );
        let files: Vec<Located> = parse("f.yaml", &text).unwrap();
        let (objects, problems) = Objects::default().revise(&files, false, &BTreeSet::new());
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

    fn publication(slot: usize) -> Publication {
        let node = slot == NODE;
        Publication {
            volume_id: if node { String::new() } else { format!("v{slot}") },
            target_path: if node { "/mnt/node".to_owned() } else { format!("/pods/{slot}") },
            share: if slot < 2 { "data" } else { "checkpoints" }.parse().unwrap(),
            sub_path: None,
            read_only: slot < 2,
            pod: if node { Pod::default() } else { Pod { uid: slot.to_string(), ..Pod::default() } },
            node,
            wanted: true,
        }
    }

    fn apply(&mut self, op: &Op) {
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
                self.busy.clear();
                self.observed.beginning.clear();
                self.observed.ending.clear();
                self.apply(&Op::GoOn);
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

    fn ask_for_node_mount(&mut self, place: Option<&str>) {
        let share = self.desired.objects.shares.get_mut(&"checkpoints".parse().unwrap()).unwrap();
        share.node_mount = place.map(|place| place.parse().unwrap());
    }

    fn second(&mut self, failing: u8, slow: u8) {
        self.now += Duration::from_secs(1);
        for publication in self.desired.node_mount_changes() {
            self.desired.publications.insert(publication.id(), publication);
        }
        self.probe();
        self.look();
        let mut lanes: BTreeMap<Lane, Vec<Step>> = BTreeMap::new();
        for step in plan(&self.desired, &self.observed, self.now) {
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
                    | Step::Flush(_)
                    | Step::Detach(_)
                    | Step::Hide(_)
                    | Step::Abort(_)
                    | Step::Unpublish(_)
                    | Step::Retire { .. }
            );
            // What is to be written needs its way, after an agent's death as well.
            let Observed { superblocks, beginning, ending, .. } = &self.observed;
            let held = || superblocks.iter().chain(beginning).chain(ending);
            let holds = |id: &NamespaceId| held().any(|held| held.namespace == *id);
            let begins = begins && !matches!(&step, Step::AttachTunnel(id) if holds(id));
            assert!(!begins || self.desired.shutdown.is_none(), "{step} begins while the node shuts down");
            if !self.busy.contains_key(&step.lane()) {
                lanes.entry(step.lane()).or_default().push(step);
            }
        }
        self.began.extend(lanes.keys().map(|lane| (lane.clone(), self.now)));
        self.busy.extend(lanes);
        for step in self.busy.values().flatten() {
            if let Step::Retire { superblock, .. } = step {
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
        note_under_way(&mut self.observed, self.busy.values().flatten());
        self.look();
    }

    /// Its server may be back when it is done: it is published again then.
    fn may_be_hidden(&self, id: PublicationId) {
        let publication = &self.desired.publications[&id];
        let its = self
            .observed
            .superblocks
            .iter()
            .filter(|id| id.share == publication.share && id.user == publication.user());
        let newest = its.max_by_key(|id| id.epoch).expect("something that kubelet would wait for");
        assert!(!self.is_believed_alive(newest), "{newest} is taken from a pod though its server is there");
        let told = self.observed.pods.known.contains_key(&publication.pod.uid);
        assert!(told && !publication.node, "{publication:?} stays");
    }

    fn probe(&mut self) {
        for (id, tunnel) in &self.observed.namespaces {
            if *tunnel != Tunnel::Attached {
                continue;
            }
            let server =
                self.observed.servers.entry(id.clone()).or_insert(Server::new(Duration::from_secs(4), self.now));
            let alive = self.alive[usize::from(id.target.target.as_str() == "b")];
            server.asked(self.now, alive.then_some(Duration::from_millis(1)));
        }
    }

    /// What is in containers, as an observation sees it, and which mounts are stale, where their servers answer.
    fn look(&mut self) {
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

    /// Of a newer one that is mounted and shown to nobody yet nothing is written.
    fn writers_elsewhere(&self, superblock: &SuperblockId) -> Option<&SuperblockId> {
        self.observed.superblocks.iter().find(|other| {
            other.share == superblock.share
                && other.epoch < superblock.epoch
                && other.user.writes()
                && other.namespace != superblock.namespace
                && self.observed.namespaces.get(&other.namespace) != Some(&Tunnel::Fenced)
        })
    }

    fn may_be_written(&self, id: &SuperblockId) {
        if id.user.writes() {
            assert_eq!(self.writers_elsewhere(id), None, "{id} would be written beside an unfenced superblock");
        }
    }

    /// Does a step as the host would, and holds it against the invariants.
    fn perform(&mut self, step: &Step) {
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
            Step::Fence(id) => drop(self.observed.namespaces.insert(id.clone(), Tunnel::Fenced)),
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
                let superseded = self
                    .observed
                    .superblocks
                    .iter()
                    .any(|o| o.share == id.share && o.user == id.user && o.epoch > id.epoch);
                let own_writer = matches!(id.user, User::ReadWrite(_));
                let too_late = self.desired.shutdown.is_some_and(|shutdown| self.now >= shutdown.pods_until);
                assert!(
                    superseded
                        || (own_writer || too_late) && !self.is_believed_alive(id)
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

    /// When the faults stop, everything that is wanted is served, and nothing else is left.
    fn settle(&mut self) {
        self.alive = [true; 2];
        if self.desired.publications.contains_key(&Self::publication(NODE).id()) {
            self.ask_for_node_mount(Some("/mnt/node"));
        }
        self.apply(&Op::GoOn);
        for _ in 0..40 {
            self.second(0, 0);
        }
        for (id, publication) in &self.desired.publications {
            assert!(publication.wanted, "{publication:?} is still being unpublished");
            let Some(Layer::Ours(top)) = self.observed.published.get(id).and_then(|layers| layers.last()) else {
                panic!("{publication:?} is not published");
            };
            assert!(
                self.is_alive(&top.namespace) && self.observed.superblocks.contains(top) && !self.stale.contains(top),
                "{publication:?} is on {top}"
            );
            for container in self.containers.get(id).into_iter().flatten() {
                assert_eq!(container.layers.last(), Some(top), "a container sees something else than its publication");
            }
        }
        self.containers.clear();
        self.ask_for_node_mount(None);
        for publication in self.desired.publications.values_mut() {
            publication.wanted = false;
        }
        for _ in 0..5 {
            self.second(0, 0);
        }
        assert!(plan(&self.desired, &self.observed, self.now).is_empty());
        let Observed { superblocks, husks, given_up, namespaces, .. } = &self.observed;
        assert!(
            superblocks.is_empty() && husks.is_empty() && given_up.is_empty() && namespaces.is_empty(),
            "something is left behind"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_walk_keeps_the_invariants_and_ends_well(
        shared_data in any::<bool>(),
        spread in 0..6u64,
        ops in prop::collection::vec(op(), 0..120),
    ) {
        let mut world = World::new(shared_data);
        world.desired.jitter = Jitter::new("node/1", Duration::from_secs(spread));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            ops.iter().for_each(|op| world.apply(op));
            world.settle();
        }));
        prop_assert!(outcome.is_ok(), "the world at the end: {:#?}", world);
    }
}

#[test]
fn what_is_being_retired_takes_nobodys_place() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(1));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ExportReplaced(0));
    let old = world.observed.superblocks.first().unwrap().clone();
    let new = SuperblockId { epoch: old.epoch + 1, ..old.clone() };
    world.observed.superblocks.insert(new.clone());
    let replace = Step::Replace { old, new: new.clone() };
    assert!(plan(&world.desired, &world.observed, world.now).contains(&replace));
    world.observed.ending.insert(new);
    assert!(!plan(&world.desired, &world.observed, world.now).contains(&replace));
}

#[test]
fn what_a_fence_has_shut_down_that_was_not_ended_is_mounted_anew_from_the_same_server() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::StartContainer(2));
    let shut = world.observed.superblocks.first().unwrap().clone();
    world.observed.given_up.insert(shut.clone());
    (0..5).for_each(|_| world.second(0, 0));
    let new = SuperblockId { epoch: shut.epoch + 1, ..shut };
    let id = World::publication(2).id();
    assert_eq!(world.observed.published[&id].last(), Some(&Layer::Ours(new.clone())));
    assert_eq!(world.containers[&id][0].layers.last(), Some(&new));
    assert_eq!(world.observed.tunnel(&new.namespace), Some(Tunnel::Attached), "nobody is fenced");
}

#[test]
fn a_base_mount_stays_until_what_rested_on_it_is_given_back() {
    let mut world = World::new(true);
    [0, 2].into_iter().for_each(|slot| world.apply(&Op::Publish(slot)));
    (0..5).for_each(|_| world.second(0, 0));
    [0, 2].into_iter().for_each(|slot| world.apply(&Op::Unpublish(slot)));
    // Every layer is gone, and the hand that took them away is not done: a late one may still be put there.
    world.observed.published.clear();
    let retired = |world: &World| {
        let steps = plan(&world.desired, &world.observed, world.now);
        steps.iter().filter(|step| matches!(step, Step::Retire { .. })).count()
    };
    assert_eq!((world.observed.superblocks.len(), retired(&world)), (2, 0));
    world.desired.publications.clear();
    assert_eq!(retired(&world), 2);
}

#[test]
fn a_dead_server_is_left_only_for_one_that_answers_and_writers_only_after_a_fence() {
    let mut world = World::new(true);
    for op in [Op::Publish(0), Op::Publish(2)] {
        world.apply(&op);
    }
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::StartContainer(2));
    world.apply(&Op::ServerDies(0));
    let mut kinds = Vec::new();
    for _ in 0..8 {
        world.now += Duration::from_secs(1);
        world.probe();
        world.look();
        for step in plan(&world.desired, &world.observed, world.now) {
            let kind = format!("{step:?}").split(['(', ' ']).next().unwrap().to_owned();
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
            world.perform(&step);
        }
    }
    let position =
        |kind: &str| kinds.iter().position(|k| k == kind).unwrap_or_else(|| panic!("no {kind} in {kinds:?}"));
    assert!(position("Mount") < position("Fence"), "a fence is not spent on a server that can't be mounted: {kinds:?}");
    assert!(position("Fence") < position("Replace"), "{kinds:?}");
}

#[test]
fn without_shared_data_a_writer_waits_and_says_so() {
    let mut world = World::new(false);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ServerDies(0));
    (0..8).for_each(|_| world.second(0, 0));
    let share = world.desired.objects.shares.get(&"checkpoints".parse().unwrap()).unwrap();
    assert_eq!(waiting(&world.desired, &world.observed, world.now, share), Some(Waiting::DataNotShared));
    assert!(plan(&world.desired, &world.observed, world.now).is_empty());
}

#[test]
fn when_every_server_falls_silent_at_once_nothing_is_fenced_and_nothing_moves() {
    let mut world = World::new(true);
    for op in [Op::Publish(0), Op::Publish(2)] {
        world.apply(&op);
    }
    (0..5).for_each(|_| world.second(0, 0));
    // The node's uplink goes, and a moment earlier the successor still answered.
    world.apply(&Op::ServerDies(0));
    world.now += Duration::from_secs(1);
    world.probe();
    world.apply(&Op::ServerDies(1));
    (0..30).for_each(|_| world.second(0, 0));
    assert!(world.observed.namespaces.values().all(|tunnel| *tunnel != Tunnel::Fenced));
    // It comes back, and the tunnel of the successor is the first to.
    world.apply(&Op::ServerReturns(1));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ServerReturns(0));
    (0..20).for_each(|_| world.second(0, 0));
    assert!(world.observed.namespaces.values().all(|tunnel| *tunnel != Tunnel::Fenced));
    assert!(world.observed.superblocks.iter().all(|id| id.epoch == 1));
    world.settle();
}

#[test]
fn nothing_is_published_from_a_server_that_is_away() {
    let mut world = World::new(false);
    world.apply(&Op::Publish(0));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ServerDies(0));
    world.apply(&Op::ServerDies(1));
    (0..8).for_each(|_| world.second(0, 0));
    world.apply(&Op::Publish(1));
    (0..3).for_each(|_| world.second(0, 0));
    assert!(!world.observed.is_published(World::publication(1).id()));
    world.settle();
}

#[test]
fn what_a_pod_did_not_write_is_lost_when_its_grace_ends_and_not_while_anybody_may_count_on_it() {
    let mut world = World::new(false);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ServerDies(0));
    (0..8).for_each(|_| world.second(0, 0));
    let id = World::publication(2).id();
    let (now, second) = (world.now, Duration::from_secs(1));
    let deletion = |grace: u32| Some(Deletion { asked: now, ends: now + grace * second });
    let mut aborts = |occupants, told: Option<Option<Deletion>>, complete, at: u32| {
        world.observed.occupants = BTreeMap::from([(id, occupants)]);
        world.observed.pods.known = told.map(|told| ("2".to_owned(), told)).into_iter().collect();
        world.observed.pods.complete = complete;
        let steps = plan(&world.desired, &world.observed, now + at * second);
        steps.iter().any(|step| matches!(step, Step::Abort(_)))
    };
    use Occupants::{Ending, Killed, Living};
    assert!(!aborts(Living, None, false, 3600), "nobody says that it was deleted");
    assert!(!aborts(Ending, None, false, 3600), "it may have ended well");
    assert!(!aborts(Ending, Some(None), true, 3600), "it may have ended well, and its pod stays");
    assert!(aborts(Ending, None, true, 0), "its pod is no more");
    assert!(!aborts(Living, None, true, 0), "the word of it may be late");
    assert!(!aborts(Living, Some(deletion(30)), true, 19) && !aborts(Ending, Some(deletion(30)), true, 19));
    assert!(aborts(Living, Some(deletion(30)), true, 20) && aborts(Ending, Some(deletion(30)), true, 20));
    assert!(aborts(Living, Some(deletion(0)), true, 0), "no grace");
    assert!(aborts(Killed, Some(None), true, 0));
}

#[test]
fn a_bounded_share_blocks_until_its_deadline_and_fails_until_a_server_is_back() {
    let after = Duration::from_secs(20);
    for policy in [Policy::Hard, Policy::Soft, Policy::Bounded { after }] {
        let mut world = World::new(false);
        for share in world.desired.objects.shares.values_mut() {
            share.policy = policy;
        }
        world.apply(&Op::Publish(2));
        (0..5).for_each(|_| world.second(0, 0));
        world.apply(&Op::ServerDies(0));
        let died = world.now;
        let mut aborted = Vec::new();
        for _ in 0..40 {
            world.now += Duration::from_secs(1);
            world.probe();
            world.look();
            let steps = plan(&world.desired, &world.observed, world.now);
            if steps.iter().any(|step| matches!(step, Step::Abort(_))) {
                aborted.push(world.now - died);
            }
        }
        match policy {
            Policy::Bounded { .. } => {
                assert!(aborted[0] >= after && aborted[0] <= after + Duration::from_secs(2), "{aborted:?}");
                assert_eq!(aborted.last(), Some(&Duration::from_secs(40)));
            }
            _ => assert_eq!(aborted, []),
        }
        world.apply(&Op::ServerReturns(0));
        world.now += Duration::from_secs(1);
        world.probe();
        assert_eq!(plan(&world.desired, &world.observed, world.now), []);
    }
}

#[test]
fn a_direct_writer_moves_only_where_the_kernel_can_fence_it() {
    for can_shut_down in [false, true] {
        let mut world = World::new(true);
        for gateway in world.desired.objects.gateways.values_mut() {
            gateway.path = crate::gateway::Path::Direct;
        }
        world.observed.can_shut_down = can_shut_down;
        world.apply(&Op::Publish(2));
        (0..5).for_each(|_| world.second(0, 0));
        world.apply(&Op::ServerDies(0));
        (0..12).for_each(|_| world.second(0, 0));
        let moved = world.observed.superblocks.iter().any(|id| id.epoch == 2);
        assert_eq!(moved, can_shut_down);
        let share = world.desired.objects.shares.get(&"checkpoints".parse().unwrap()).unwrap();
        let waits = waiting(&world.desired, &world.observed, world.now, share);
        assert_eq!(waits, (!can_shut_down).then_some(Waiting::CannotFence));
    }
}

#[test]
fn a_server_that_cannot_be_mounted_costs_no_fence_and_the_next_is_tried() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    world.observed.unmountable = BTreeSet::from([(
        "checkpoints".parse().unwrap(),
        TargetId { gateway: "gw".parse().unwrap(), target: "b".parse().unwrap() },
    )]);
    world.apply(&Op::ServerDies(0));
    (0..12).for_each(|_| world.second(0, 0));
    assert!(world.observed.namespaces.values().all(|tunnel| *tunnel != Tunnel::Fenced));
    world.observed.unmountable.clear();
    (0..6).for_each(|_| world.second(0, 0));
    assert!(world.observed.superblocks.iter().any(|id| id.epoch == 2 && id.namespace.target.target.as_str() == "b"));
    world.settle();
}

#[test]
fn a_stale_share_is_mounted_anew_from_the_same_server_and_nobody_is_fenced() {
    for slot in [0, 2] {
        let mut world = World::new(true);
        world.apply(&Op::Publish(slot));
        (0..5).for_each(|_| world.second(0, 0));
        world.apply(&Op::StartContainer(slot));
        world.apply(&Op::ExportReplaced(0));
        (0..5).for_each(|_| world.second(0, 0));
        assert!(world.observed.superblocks.iter().any(|id| id.epoch == 2 && id.namespace.generation == 1));
        assert!(world.observed.namespaces.values().all(|tunnel| *tunnel == Tunnel::Attached));
        world.settle();
    }
}

#[test]
fn of_a_pod_that_is_deleted_kubelet_meets_nothing_that_waits_and_no_other_pod_is_touched() {
    let mut world = World::new(false);
    for slot in 0..4 {
        world.apply(&Op::Publish(slot));
    }
    (0..5).for_each(|_| world.second(0, 0));
    let ids: Vec<PublicationId> = (0..4).map(|slot| World::publication(slot).id()).collect();
    for slot in [0, 2] {
        world.apply(&Op::StartContainer(slot));
        world.apply(&Op::Delete(slot));
    }
    (0..3).for_each(|_| world.second(0, 0));
    assert!(
        ids.iter().all(|id| world.observed.is_published(*id)),
        "its server is there, and so is what it may yet write"
    );
    world.apply(&Op::ServerDies(0));
    world.apply(&Op::ServerDies(1));
    (0..8).for_each(|_| world.second(0, 0));
    let shown: Vec<bool> = ids.iter().map(|id| world.observed.is_published(*id)).collect();
    assert_eq!(shown, [false, true, false, true]);
    assert!(!world.containers[&ids[0]].is_empty(), "its containers keep what they have");
    // A subPath that kubelet has bound is in its way as well.
    assert!(plan(&world.desired, &world.observed, world.now).is_empty());
    world.observed.shown.insert(ids[0]);
    assert_eq!(plan(&world.desired, &world.observed, world.now), [Step::Hide(ids[0])]);
    world.observed.shown.remove(&ids[0]);
    // So is one that is not asked, and merely no more.
    world.observed.gone.insert("1".to_owned());
    assert_eq!(plan(&world.desired, &world.observed, world.now), [Step::Hide(ids[1])]);
    world.observed.gone.clear();
    world.settle();
}

#[test]
fn a_node_mount_stays_as_long_as_a_container_has_it_and_moves_with_its_share() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::StartContainer(NODE));
    world.apply(&Op::Unpublish(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    let id = World::publication(NODE).id();
    assert!(world.observed.is_published(id));
    // Of one that merely sees it, it is taken if that is meant.
    let goes = |world: &World| plan(&world.desired, &world.observed, world.now).contains(&Step::Unpublish(id));
    let mut seeing = World { observed: world.observed.clone(), ..World::new(true) };
    seeing.desired = world.desired.clone();
    seeing.observed.copies.values_mut().for_each(|copies| copies.bound = 0);
    assert!(goes(&seeing) && !goes(&world));
    seeing.desired.objects.withdrawn.insert("checkpoints".parse().unwrap());
    assert!(!goes(&seeing));
    world.apply(&Op::ServerDies(0));
    (0..12).for_each(|_| world.second(0, 0));
    let top = world.containers[&id][0].layers.last().unwrap().to_string();
    assert!(top.ends_with(".b.1@node-rw"), "{top}");
    assert!(world.observed.namespaces.values().any(|tunnel| *tunnel == Tunnel::Fenced), "it may have left something");
    world.apply(&Op::EndContainers(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    assert_eq!((world.desired.publications.len(), world.observed.superblocks.len()), (0, 0));
}

#[test]
fn one_node_mount_takes_the_place_of_another_when_that_is_gone() {
    let mut world = World::new(false);
    world.apply(&Op::Publish(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    let id = World::publication(NODE).id();
    world.apply(&Op::StartContainer(NODE));
    world.ask_for_node_mount(None);
    world.desired.objects.shares.get_mut(&"data".parse().unwrap()).unwrap().node_mount = "/mnt/node".parse().ok();
    (0..5).for_each(|_| world.second(0, 0));
    assert_eq!(world.desired.publications[&id].share.as_str(), "checkpoints");
    world.apply(&Op::EndContainers(NODE));
    (0..5).for_each(|_| world.second(0, 0));
    assert_eq!(world.desired.publications[&id].share.as_str(), "data");
    assert!(world.observed.is_published(id));
}

/// For how long after its server was given up a share stays, on a node that waits for its turn.
fn moves_after(jitter: Jitter, slot: usize) -> Duration {
    let mut world = World::new(true);
    world.desired.jitter = jitter;
    world.apply(&Op::Publish(slot));
    (0..5).for_each(|_| world.second(0, 0));
    assert!(world.observed.is_published(World::publication(slot).id()), "the first mount waits for nothing");
    let first = world.observed.superblocks.first().unwrap().namespace.clone();
    world.apply(&Op::ServerDies(0));
    for _ in 0..60 {
        world.now += Duration::from_millis(100);
        world.probe();
        if world.observed.liveness(&first, world.now) == Liveness::Away {
            break;
        }
    }
    let given_up = world.observed.servers[&first].given_up();
    let share = world.desired.objects.shares[&World::publication(slot).share].clone();
    let moves = |step: &Step| matches!(step, Step::Mount(id, _) if id.epoch == 2);
    while !plan(&world.desired, &world.observed, world.now).iter().any(moves) {
        assert_eq!(waiting(&world.desired, &world.observed, world.now, &share), Some(Waiting::Turn));
        assert!(world.observed.namespaces.values().all(|tunnel| *tunnel != Tunnel::Fenced));
        world.now += Duration::from_millis(10);
        world.probe();
    }
    let waited = world.now.saturating_sub(given_up);
    world.settle();
    waited
}

#[test]
fn a_node_waits_its_turn_and_no_longer_before_it_goes_to_another_server() {
    let server = "gw.a.1".parse().unwrap();
    for node in 0..20 {
        let jitter = Jitter::new(format!("node{node}"), Duration::from_secs(5));
        let turn = jitter.before_leaving(&server);
        for slot in [0, 2] {
            let waited = moves_after(jitter.clone(), slot);
            assert!(
                waited >= turn && waited <= turn + Duration::from_millis(150),
                "{waited:?} for a turn after {turn:?}"
            );
        }
    }
    assert!(moves_after(Jitter::default(), 2) <= Duration::from_millis(150));
}

#[test]
fn a_node_that_shuts_down_flushes_and_lets_go_of_everything_and_comes_back_when_it_does_not() {
    let mut world = World::new(true);
    for slot in 0..SLOTS {
        world.apply(&Op::Publish(slot));
    }
    (0..5).for_each(|_| world.second(0, 0));
    for slot in 0..SLOTS {
        world.apply(&Op::StartContainer(slot));
    }
    let before = world.observed.superblocks.clone();
    world.apply(&Op::ShutDown(30));
    let shutdown = world.desired.shutdown.unwrap();
    world.second(0, 0);
    assert_eq!(world.observed.flushed.len(), 3, "all writers, at once");
    world.second(0, 0);
    assert_eq!(world.observed.published.len(), SLOTS, "pods have their time");
    world.apply(&Op::EndContainers(2));
    while world.now < shutdown.pods_until {
        world.second(0, 0);
    }
    world.second(0, 0);
    let writer = before.iter().find(|id| id.user == User::ReadWrite(World::publication(3).id())).unwrap();
    assert!(world.observed.flushed[writer].began >= shutdown.pods_until, "what it wrote meanwhile");
    (0..3).for_each(|_| world.second(0, 0));
    assert!(world.observed.published.is_empty());
    let left: Vec<&SuperblockId> = world.observed.superblocks.iter().collect();
    assert!(left.len() == 3 && left.contains(&writer), "those that containers hold: {left:?}");
    assert!(plan(&world.desired, &world.observed, world.now).contains(&Step::Abort(writer.clone())));
    assert!(!has_let_go(&world.observed));
    // The last ones go, and with them the tunnels.
    let held = world.containers.clone();
    world.containers.clear();
    (0..4).for_each(|_| world.second(0, 0));
    assert!(has_let_go(&world.observed), "{:?}", world.observed);
    assert_eq!(world.desired.publications.len(), SLOTS, "all of them are still wanted");
    drop(held);
    world.apply(&Op::GoOn);
    world.settle();
}

#[test]
fn at_the_nodes_end_a_new_mount_outlasts_the_old_one_that_pods_see() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    let old = world.observed.superblocks.first().unwrap().clone();
    let new = SuperblockId { epoch: old.epoch + 1, ..old.clone() };
    world.observed.superblocks.insert(new.clone());
    world.apply(&Op::ShutDown(10));
    let retired = |world: &World| -> Vec<SuperblockId> {
        let retired = |step| if let Step::Retire { superblock, .. } = step { Some(superblock) } else { None };
        plan(&world.desired, &world.observed, world.now).into_iter().filter_map(retired).collect()
    };
    assert_eq!(retired(&world), []);
    world.observed.published.clear();
    assert_eq!(retired(&world), [old, new]);
}

#[test]
fn after_a_shutdown_that_did_not_come_a_pod_has_its_volume_again_whoever_may_use_the_share_by_now() {
    let mut world = World::new(true);
    world.apply(&Op::Publish(0));
    let Some(share) = world.desired.objects.shares.values_mut().find(|share| share.access == Access::ReadOnly) else {
        panic!("there is one");
    };
    share.namespaces = Namespaces::Only(BTreeSet::new());
    (0..5).for_each(|_| world.second(0, 0));
    let id = World::publication(0).id();
    assert!(!world.observed.is_published(id), "it may not come");
    world.desired.returning.insert(id);
    (0..5).for_each(|_| world.second(0, 0));
    assert!(world.observed.is_published(id), "it was there before");
}

#[test]
fn a_server_that_is_away_when_the_node_shuts_down_costs_no_time() {
    let mut world = World::new(false);
    world.apply(&Op::Publish(2));
    (0..5).for_each(|_| world.second(0, 0));
    world.apply(&Op::ServerDies(0));
    (0..8).for_each(|_| world.second(0, 0));
    world.apply(&Op::ShutDown(5));
    let id = world.observed.superblocks.first().unwrap().clone();
    (0..2).for_each(|_| world.second(0, 0));
    assert!(world.observed.flushed.is_empty() && !world.observed.superblocks.contains(&id), "{:?}", world.observed);
    world.second(0, 0);
    assert!(has_let_go(&world.observed), "{:?}", world.observed);
}
