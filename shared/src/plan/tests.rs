//! Random walks through a small world: targets that die and come back, pods that come and go, an agent that restarts,
//! steps that fail. A failing walk prints its operations and the world's state.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::observed::{Copies, Deletion, Occupants, Server};
use crate::publication::Pod;
use crate::share::Policy;
use crate::yaml::{Located, parse};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const SLOTS: usize = 4;

#[derive(Debug, Clone)]
enum Op {
    /// A pod wants a share: slots 0 and 1 read `data`, 2 and 3 write `checkpoints`.
    Publish(usize),
    Unpublish(usize),
    StartContainer(usize),
    EndContainers(usize),
    KillContainers(usize),
    ServerDies(usize),
    ServerReturns(usize),
    /// What is mounted from a target is no longer known to it.
    ExportReplaced(usize),
    AgentRestarts,
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
        1 => (0..2usize).prop_map(Op::ServerDies),
        1 => (0..2usize).prop_map(Op::ServerReturns),
        1 => (0..2usize).prop_map(Op::ExportReplaced),
        1 => Just(Op::AgentRestarts),
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
            desired: Desired { objects, publications: BTreeMap::new() },
            observed: Observed::default(),
            alive: [true; 2],
            containers: BTreeMap::new(),
            stale: BTreeSet::new(),
            busy: BTreeMap::new(),
            now: Duration::from_secs(100),
        }
    }

    fn publication(slot: usize) -> Publication {
        Publication {
            volume_id: format!("v{slot}"),
            target_path: format!("/pods/{slot}"),
            share: if slot < 2 { "data" } else { "checkpoints" }.parse().unwrap(),
            read_only: slot < 2,
            pod: Pod::default(),
            wanted: true,
        }
    }

    fn apply(&mut self, op: &Op) {
        let id = |slot: usize| Self::publication(slot).id();
        match *op {
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
                let wanted = self.desired.publications.get(&id(slot)).is_some_and(|publication| publication.wanted);
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
            }
            Op::Second { failing, slow } => self.second(failing, slow),
        }
    }

    fn second(&mut self, failing: u8, slow: u8) {
        self.now += Duration::from_secs(1);
        self.probe();
        self.look();
        let mut lanes: BTreeMap<Lane, Vec<Step>> = BTreeMap::new();
        for step in plan(&self.desired, &self.observed, self.now) {
            if !self.busy.contains_key(&step.lane()) {
                lanes.entry(step.lane()).or_default().push(step);
            }
        }
        self.busy.extend(lanes);
        for (index, (lane, steps)) in self.busy.clone().into_iter().enumerate() {
            let bit = 1 << (index % 8);
            // An abort is short by its nature.
            if slow & bit == 0 || matches!(steps[..], [Step::Abort(_) | Step::Retire { abort: true, .. }]) {
                self.busy.remove(&lane);
                if failing & bit == 0 {
                    steps.iter().for_each(|step| self.perform(step));
                }
            }
        }
        self.observed.beginning.clear();
        self.observed.ending.clear();
        note_under_way(&mut self.observed, self.busy.values().flatten());
        self.look();
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
        let told = self.stale.iter().filter(|id| self.is_alive(&id.namespace));
        self.observed.stale = told.map(|id| (id.share.clone(), id.epoch)).collect();
        self.observed.copies.clear();
        self.observed.occupants.clear();
        for (id, containers) in &self.containers {
            for container in containers {
                for (depth, layer) in container.layers.iter().enumerate() {
                    let copies: &mut Copies = self.observed.copies.entry(layer.clone()).or_default();
                    copies.all += 1;
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
                && matches!(other.user, User::ReadWrite(_))
                && other.namespace != superblock.namespace
                && self.observed.namespaces.get(&other.namespace) != Some(&Tunnel::Fenced)
        })
    }

    fn may_be_written(&self, id: &SuperblockId) {
        if matches!(id.user, User::ReadWrite(_)) {
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
                let writer = matches!(id.user, User::ReadWrite(_));
                if writer && self.is_alive(&id.namespace) {
                    let shared = self.desired.objects.gateways.values().all(|gateway| gateway.shared_data);
                    assert!(
                        shared || id.namespace.target.target.as_str() == "a",
                        "{id}: the targets don't share their data"
                    );
                }
                if self.is_alive(&id.namespace) {
                    assert!(self.observed.superblocks.insert(id.clone()), "{id} is mounted twice");
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
                assert!(
                    superseded || own_writer && !self.is_believed_alive(id),
                    "{id} is aborted though it is in force"
                );
                if let User::ReadWrite(publication) = id.user
                    && !superseded
                {
                    // Its killed processes can end now.
                    let wanted = self.desired.publications.get(&publication).is_some_and(|p| p.wanted);
                    assert!(
                        !wanted || self.observed.occupants.get(&publication) == Some(&Occupants::Killed),
                        "{id} is aborted under a living pod"
                    );
                    self.containers.remove(&publication);
                }
            }
            Step::Unpublish(id) => {
                assert!(!self.desired.publications[id].wanted);
                self.observed.published.remove(id);
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
                assert!(
                    !abort || newer || !self.is_believed_alive(superblock),
                    "{superblock} is aborted though its server could take what is unwritten"
                );
                self.observed.superblocks.remove(superblock);
            }
        }
    }

    fn is_believed_alive(&self, id: &SuperblockId) -> bool {
        self.observed.namespaces.get(&id.namespace) != Some(&Tunnel::Fenced)
            && self.observed.liveness(&id.namespace, self.now) != Liveness::Away
    }

    /// When the faults stop, everything that is wanted is served, and nothing else is left.
    fn settle(&mut self) {
        self.alive = [true; 2];
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
        for publication in self.desired.publications.values_mut() {
            publication.wanted = false;
        }
        for _ in 0..5 {
            self.second(0, 0);
        }
        assert!(plan(&self.desired, &self.observed, self.now).is_empty());
        assert!(
            self.observed.superblocks.is_empty() && self.observed.namespaces.is_empty(),
            "something is left behind"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_walk_keeps_the_invariants_and_ends_well(shared_data in any::<bool>(), ops in prop::collection::vec(op(), 0..120)) {
        let mut world = World::new(shared_data);
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
        world.observed.pods.known = told.map(|told| (String::new(), told)).into_iter().collect();
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
