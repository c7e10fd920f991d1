//! A process dies at a kill point: a hand alone, or the agent with its hands. Then the same call is made again, by kubelet's
//! habit, and all is as if nobody had died: the pod reads and writes, what was acknowledged is there, and at the end nothing
//! is left behind.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::time::Duration;

use moorline_agent::killpoint::{Chapter, Place, Point};
use serde_json::{Value, json};

use super::Kernel;
use super::direct::kernel_is_newer;
use super::host_scope;
use super::mortal::{Death, NODE};
use crate::agent::{Agent, Whom};
use crate::csi::Volume;
use crate::data;
use crate::event::Op;
use crate::logind::Logind;
use crate::mounts::{self, Mount};
use crate::node::Node;
use crate::objects;
use crate::pod::{Draft, Pod, volume};
use crate::site::{Site, Tree};
use crate::wait::seconds;

/// From a server's death to a pod that reads the next one, and some deaths more in between.
const RECOVERY: Duration = seconds(90);

/// What is under way when a point is come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// An agent starts on a node that has never had one.
    Start,
    /// Its objects change.
    Configure,
    Publish,
    /// A pod reads and writes, and all is well.
    Serve,
    Unpublish,
    /// A server dies, and another takes over.
    Recover,
    /// The same without a tunnel.
    RecoverDirect,
    /// A pod is deleted while its server is away.
    Hide,
    /// The node shuts down, and does not after all.
    ShutDown,
    /// A directory of a share is made.
    Errand,
    /// A gateway of scope host comes and goes.
    Ways,
}

/// Each point has a test: one that is not here does not compile.
const fn act(point: Point) -> Act {
    use Point::*;
    match point {
        NodeMounted | NodeUnbindable | PrepareUntold | BootWritten => Act::Start,
        ObjectsWritten => Act::Configure,
        RecordWritten | Recorded | NamespaceEmpty | DeviceMade | NamespaceConfigured | ClientNamed
        | NamespaceFileMade | NamespaceUntold | NameUntold | NamespaceDone | TunnelOpen | TunnelDone
        | SuperblockMade | BaseMade | MountUntold | MountDone | TargetMade | TargetCloned | TargetSealed
        | PublishUntold | PublishDone => Act::Publish,
        LookUntold => Act::Serve,
        Withdrawn | TunnelEnded | NamespaceUnbound | MarkRemoved | RemovalUntold | RemovalDone | LayerDetached
        | TargetBare | UnpublishUntold | TargetGone | UnpublishDone | Flushed | BaseDetached | RetireUntold
        | RetireDone => Act::Unpublish,
        MarkWritten | FenceMarked | FenceDone | ClonesMade | PlaceEntered | MountedBeneath | Uncovered
        | MadePrivate | MountedOver | ReplaceUntold | ReplaceDone | AbortedOnce | AbortUntold | AbortDone
        | RetireAborted | RetireMarked | RetireShutDown => Act::Recover,
        WriterMarked | WriterEnded | ShutDownUntold | FenceUnmarked => Act::RecoverDirect,
        HideUntold | HideDone => Act::Hide,
        ErrandUntold => Act::Errand,
        WayConfigured | WayUntold | WayDone | WayOpen | WayCarried | WayRemovalUntold | WayRemovalDone
        | DefaultsWritten | DefaultsUntold | DefaultsDone => Act::Ways,
        ReturningWritten | FlushUntold | FlushDone | DetachUntold | DetachDone => Act::ShutDown,
    }
}

/// Where anybody comes by: some ways through the kernel are newer kernels' alone, and some the others'.
pub(super) const fn kernels(point: Point) -> &'static [Kernel] {
    use Point::*;
    match point {
        WriterMarked | WriterEnded | ShutDownUntold | FenceUnmarked => &[Kernel::Newer],
        MadePrivate | MountedOver => &[Kernel::Usual],
        _ => &[Kernel::Usual, Kernel::Newer],
    }
}

/// One death, and nothing else.
pub(super) fn one(point: Point, whom: Whom) {
    let death = [(point, whom)];
    match act(point) {
        Act::Start => starting(&death),
        Act::Configure => configuring(&death),
        Act::Publish => {
            let mut lab = Lab::start();
            lab.agent.alone = true;
            lab.cycle("pod", &death, &[], &[]);
        }
        Act::Serve => Lab::start().cycle("pod", &[], &death, &[]),
        Act::Unpublish => Lab::start().cycle("pod", &[], &[], &death),
        Act::Recover => recovering(false, &death, &[]),
        Act::RecoverDirect => recovering(true, &death, &[]),
        Act::Hide => hiding(&death),
        Act::ShutDown => shutting_down(&[death.to_vec()]),
        Act::Errand => on_an_errand(&death),
        Act::Ways => host_scope::dying(&death),
    }
}

pub(super) fn killed_at_the_start() {
    starting(&deaths(Act::Start, Kernel::Usual, Whom::Hand));
}

pub(super) fn killed_while_objects_change() {
    configuring(&deaths(Act::Configure, Kernel::Usual, Whom::Agent));
}

/// Cycle upon cycle, with up to two deaths in each chapter of it, until all have had their turn.
pub(super) fn killed_while_publishing() {
    let mut lab = Lab::start();
    let mut turns = [Act::Publish, Act::Serve, Act::Unpublish].map(|act| {
        let mut chapters: BTreeMap<Chapter, Vec<Death>> = BTreeMap::new();
        for death in deaths(act, Kernel::Usual, Whom::Agent) {
            chapters.entry(death.0.chapter()).or_default().push(death);
        }
        chapters
    });
    for number in 0.. {
        let [publish, serve, unpublish] = turns.each_mut().map(|chapters| {
            let two = |deaths: &mut Vec<Death>| deaths.drain(..deaths.len().min(2)).collect::<Vec<Death>>();
            chapters.values_mut().flat_map(two).collect::<Vec<Death>>()
        });
        if [&publish, &serve, &unpublish].iter().all(|deaths| deaths.is_empty()) {
            break;
        }
        lab.cycle(&format!("pod{number}"), &publish, &serve, &unpublish);
    }
}

pub(super) fn killed_while_recovering() {
    // Layers are stacked there: the topmost goes, and the one that is left is a dead server's.
    recovering(false, &while_stacking(), &[(Point::LayerDetached, Whom::Agent)]);
}

pub(super) fn killed_while_recovering_beneath() {
    recovering(false, &while_beneath(), &[]);
}

pub(super) fn killed_while_recovering_without_a_tunnel() {
    recovering(true, &deaths(Act::RecoverDirect, Kernel::Newer, Whom::Hand), &[]);
}

pub(super) fn killed_while_hiding() {
    hiding(&deaths(Act::Hide, Kernel::Usual, Whom::Hand));
}

pub(super) fn killed_while_ways_come_and_go() {
    host_scope::dying(&deaths(Act::Ways, Kernel::Usual, Whom::Hand));
}

pub(super) fn killed_on_an_errand() {
    on_an_errand(&deaths(Act::Errand, Kernel::Usual, Whom::Agent));
}

pub(super) fn killed_while_the_node_shuts_down() {
    shutting_down(&shutdowns());
}

/// An agent that dies lets the node go down, and dies once in a shutdown.
fn shutdowns() -> Vec<Vec<Death>> {
    let of = deaths(Act::ShutDown, Kernel::Usual, Whom::Hand).into_iter();
    let (hands, agents): (Vec<Death>, Vec<Death>) = of.partition(|(point, _)| point.place() == Place::Hand);
    let hands = hands.into_iter().map(|(point, _)| (point, Whom::Hand)).collect();
    std::iter::once(hands).chain(agents.into_iter().map(|death| vec![death])).collect()
}

/// Whoever dies when the mark of a fence is there has fenced: of these two a life has one.
fn while_stacking() -> Vec<Death> {
    let deaths = deaths(Act::Recover, Kernel::Usual, Whom::Agent);
    deaths.into_iter().filter(|(point, _)| *point != Point::FenceDone).collect()
}

/// And what was aborted twice is replaced by then, and not aborted again.
fn while_beneath() -> Vec<Death> {
    let deaths = deaths(Act::Recover, Kernel::Newer, Whom::Hand);
    deaths.into_iter().filter(|(point, _)| !matches!(point, Point::FenceMarked | Point::AbortDone)).collect()
}

/// Those of an act. Where a hand comes by, it dies alone or with the agent by turns, beginning with `first`.
fn deaths(of: Act, kernel: Kernel, first: Whom) -> Vec<Death> {
    let mut whom = first;
    let points = Point::ALL.iter().filter(|point| act(**point) == of && kernels(**point).contains(&kernel));
    let death = points.map(|point| {
        if point.place() == Place::Agent {
            return (*point, Whom::Agent);
        }
        let dies = whom;
        whom = if whom == Whom::Hand { Whom::Agent } else { Whom::Hand };
        (*point, dies)
    });
    death.collect()
}

fn starting(deaths: &[Death]) {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("data", 50_000));
    let objects = objects_of(&site);
    let agent = Agent::start_mortal(&node, &objects, deaths);
    let mut lab = Lab { node, site, agent };
    lab.agent.gets_ready();
    lab.agent.were_struck(deaths);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own: Vec<&str> = table.lines().filter(|line| line.contains(&format!(" {NODE} "))).collect();
    assert!(own.len() == 1 && own[0].contains(" unbindable "), "one mount, which no container gets: {own:?}");
    lab.cycle("pod", &[], &[], &[]);
}

fn configuring(deaths: &[Death]) {
    let mut lab = Lab::start();
    let before = mounts::of("self");
    lab.agent.strike_at(deaths);
    lab.agent
        .configure(&[objects_of(&lab.site), objects::share_of("late", "gw", "datasets", "ReadOnly")].join("---\n"));
    lab.agent.were_struck(deaths);
    let late = volume(&lab.node, "pod", "late", true);
    lab.publish(&late);
    assert!(late.target.join("sample").exists());
    lab.unpublish(&late);
    lab.agent.leaves_nothing(&before);
}

/// Kubelet says that two pods are to end, since what one death has done nobody does again; and says it again to an agent that
/// has died meanwhile.
fn hiding(deaths: &[Death]) {
    let mut lab = Lab::start();
    let before = mounts::of("self");
    let pods = ["one", "two"].map(|name| {
        let draft = Draft::new(name).with_share(&lab.node, &lab.agent, "datasets", true);
        let pod = draft.reading("/mnt/datasets/sample").start();
        pod.reads("data", seconds(30));
        pod
    });
    let volumes: Vec<Volume> = pods.iter().flat_map(Pod::volumes).cloned().collect();
    lab.agent.strike_at(deaths);
    lab.site.blackhole();
    for volume in &volumes {
        lab.agent.outlast("kubelet may look", seconds(60), |agent| {
            agent.may_hear_of_deletion(&volume.pod_uid, seconds(60))?;
            let there = mounts::at(&volume.target);
            if there.is_empty() { Ok(()) } else { Err(format!("{there:?}")) }
        });
    }
    lab.agent.were_struck(deaths);
    lab.agent.gets_ready();
    let volumes: Vec<Volume> = pods.into_iter().flat_map(|pod| pod.end(seconds(10))).collect();
    // Their superblock is ended for good once its server is known to be away. Whoever detaches it may be held by the kernel
    // until it is killed, or comes by here: what is left is a mark and a directory.
    lab.agent.tells("ServerAway", seconds(20));
    lab.agent.strike(Point::BaseDetached, Whom::Hand);
    volumes.iter().for_each(|volume| lab.unpublish(volume));
    lab.agent.leaves_nothing(&before);
    lab.site.heal();
    lab.agent.leaves_nothing(&before);
}

/// What it made is there once, and found so when it is asked for again; and what it put aside is.
fn on_an_errand(deaths: &[Death]) {
    let mut lab = Lab::start();
    let before = mounts::of("self");
    lab.agent.strike_at(deaths);
    let done = |lab: &mut Lab, task: Value| {
        let errand = json!({"id": "claim-1", "share": "checkpoints", "subDir": "team/claim", "task": task});
        let did = lab.agent.outlast("it is done", seconds(60), |agent| {
            match agent.may_answer("PUT", "/v1/errands", &errand) {
                Some((200, did)) => Ok(did["did"].as_str().unwrap_or_default().to_owned()),
                other => Err(other),
            }
        });
        lab.agent.were_struck(deaths);
        lab.agent.gets_ready();
        let names = lab.site.tree().names().into_iter();
        (did, names.filter_map(|name| Some(name.strip_prefix("checkpoints/team/")?.to_owned())).collect::<Vec<_>>())
    };
    let (did, names) = done(&mut lab, json!({"make": {"uid": 1000, "gid": 1000, "mode": 0o770}}));
    assert_eq!((did.as_str(), names), ("made team/claim", vec![".moorline-made-claim-1".into(), "claim".into()]));
    lab.agent.strike_at(deaths);
    let (did, names) = done(&mut lab, json!({"archive": {}}));
    let aside = "archived-claim-claim-1";
    assert_eq!((did, names), (format!("team/claim is {aside} now"), vec![aside.to_owned()]));
    lab.agent.leaves_nothing(&before);
}

/// Each time the node stays after all, and the agent that is there by then takes care of what is there.
fn shutting_down(shutdowns: &[Vec<Death>]) {
    // Enough for a flush in a guest that is short of time.
    let logind = Logind::start(25);
    let mut lab = Lab::start();
    let before = mounts::of("self");
    let draft = Draft::new("pod").with_share(&lab.node, &lab.agent, "datasets", true);
    let pod = draft
        .with_share(&lab.node, &lab.agent, "checkpoints", false)
        .reading("/mnt/datasets/sample")
        .writing("/mnt/checkpoints/log")
        .start();
    for (count, deaths) in (1..).zip(shutdowns) {
        pod.reads("data", seconds(30));
        pod.writes(seconds(30));
        logind.is_held_by_moorline();
        lab.agent.strike_at(deaths);
        logind.power_off();
        lab.agent.were_struck(deaths);
        logind.goes_down(count);
        lab.agent.gets_ready();
        lab.agent.outlast("its volumes are published again", seconds(60), |_| {
            let missing: Vec<_> = pod.targets().filter(|target| mounts::at(target).is_empty()).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
        });
    }
    pod.reads("data", seconds(30));
    pod.container().stop(seconds(10));
    pod.lost_nothing(&lab.site.read("checkpoints/log"));
    lab.agent.gets_ready();
    for volume in &pod.end(seconds(10)) {
        lab.unpublish(volume);
    }
    lab.agent.leaves_nothing(&before);
}

fn objects_of(site: &Site) -> String {
    let parts = [
        objects::usual(false, &[site]),
        objects::direct_gateway("lan", false, &[site]),
        objects::share_of("direct", "lan", "datasets", "ReadOnly"),
    ];
    parts.join("---\n")
}

/// A node, and an agent that may be dead at any time.
struct Lab {
    node: Node,
    site: Site,
    agent: Agent,
}

impl Lab {
    fn start() -> Self {
        let node = Node::new("node1");
        let site = Site::start(&node, "a");
        site.put("datasets/sample", &data::file("data", 50_000));
        let agent = Agent::start_mortal(&node, &objects_of(&site), &[]);
        let mut lab = Self { node, site, agent };
        lab.agent.gets_ready();
        lab
    }

    /// A pod comes, reads and writes, and goes.
    #[track_caller]
    fn cycle(&mut self, name: &str, publish: &[Death], serve: &[Death], unpublish: &[Death]) {
        let before = mounts::of("self");
        self.agent.strike_at(publish);
        let shares = [("datasets", true), ("checkpoints", false), ("direct", true)];
        for (share, read_only) in shares {
            self.publish(&volume(&self.node, name, share, read_only));
        }
        self.agent.were_struck(publish);
        self.agent.gets_ready();
        let log = format!("/mnt/checkpoints/{name}");
        let draft = shares.iter().fold(Draft::new(name), |draft, (share, read_only)| {
            draft.with_share(&self.node, &self.agent, share, *read_only)
        });
        let pod = draft.reading("/mnt/datasets/sample").reading("/mnt/direct/sample").writing(&log).start();
        self.agent.strike_at(serve);
        self.agent.were_struck(serve);
        // Who came by last may have been the agent.
        self.agent.gets_ready();
        for path in ["/mnt/datasets/sample", "/mnt/direct/sample"] {
            pod.reads_at(path, "data", seconds(30));
        }
        pod.writes(seconds(30));
        self.agent.gets_ready();

        pod.container().stop(seconds(10));
        pod.lost_nothing(&self.site.read(&format!("checkpoints/{name}")));
        pod.never_failed(Op::Read);
        pod.never_failed(Op::Write);
        let volumes = pod.end(seconds(10));
        self.agent.strike_at(unpublish);
        volumes.iter().for_each(|volume| self.unpublish(volume));
        self.agent.leaves_nothing(&before);
        self.agent.were_struck(unpublish);
    }

    fn publish(&mut self, volume: &Volume) {
        self.agent.insist(&format!("publish {}", volume.share), |csi| csi.publish(volume));
    }

    fn unpublish(&mut self, volume: &Volume) {
        self.agent.insist(&format!("unpublish {}", volume.share), |csi| csi.unpublish(&volume.target));
    }
}

/// A server dies; deaths follow it while the next one takes over, and `late` ones while the pods' volumes are given back. One
/// death may keep others from where they were to be: who was spared has another failover.
fn recovering(direct: bool, deaths: &[Death], late: &[Death]) {
    let node = Node::new("node1");
    let tree = Tree::new("shared");
    tree.put("datasets/sample", &data::file("data", 50_000));
    tree.folder("datasets/part");
    let gateway = if direct { objects::direct_gateway } else { objects::gateway };
    let objects = |sites: [&Site; 2]| {
        let parts = [
            gateway("gw", true, &sites),
            objects::share("datasets", "gw", "ReadOnly"),
            objects::share("checkpoints", "gw", "ReadWrite"),
        ];
        parts.join("---\n")
    };
    let [mut from, mut to] = ["a", "b"].map(|name| Site::serving(&node, name, tree.clone()));
    let mut agent = Agent::start_mortal(&node, &objects([&from, &to]), &[]);
    let (mut deaths, mut late) = (deaths.to_vec(), late.to_vec());
    for next in [Some("c"), Some("d"), None] {
        failing_over(&node, &mut agent, &mut from, &to, &deaths, &late);
        deaths.retain(|(point, _)| agent.pardon(*point));
        late.retain(|(point, _)| agent.pardon(*point));
        if deaths.is_empty() && late.is_empty() {
            return;
        }
        if let Some(next) = next {
            from = std::mem::replace(&mut to, Site::serving(&node, next, tree.clone()));
            agent.configure(&objects([&from, &to]));
            // With the objects as they now are: a Gateway that is in use takes no others.
            agent.restart();
        }
    }
    panic!("nobody came by in three failovers: {deaths:?} {late:?}");
}

fn failing_over(node: &Node, agent: &mut Agent, from: &mut Site, to: &Site, deaths: &[Death], late: &[Death]) {
    agent.gets_ready();
    let before = mounts::of("self");
    let pods = ["one", "two"].map(|name| {
        let name = format!("{name}-{}", from.name());
        Draft::new(&name)
            .with_share(node, agent, "datasets", true)
            .with_share(node, agent, "checkpoints", false)
            .with_sub_path("datasets", "part", "/mnt/part", true)
            .reading("/mnt/datasets/sample")
            .writing(&format!("/mnt/checkpoints/{name}"))
            .start()
    });
    for pod in &pods {
        pod.reads("data", seconds(30));
        pod.writes(seconds(30));
    }
    assert_eq!(agent.target("checkpoints"), from.name());

    agent.strike_at(deaths);
    from.die();
    let theirs = [to.server(), to.direct_server()].map(|server| format!("{server}:"));
    let is_theirs = |mount: &Mount| theirs.iter().any(|server| mount.source.starts_with(server));
    let died_at = pods.each_ref().map(Pod::acknowledged);
    agent.outlast("every pod reads and writes at the other", RECOVERY, |_| {
        for (pod, before) in pods.iter().zip(died_at) {
            for at in ["/mnt/datasets", "/mnt/checkpoints", "/mnt/part"] {
                let top = pod.mounts_at(at).pop();
                top.clone().filter(is_theirs).ok_or_else(|| format!("{at}: {top:?}"))?;
            }
            // One may have been on its way.
            let now = pod.acknowledged();
            if now < before + 2 {
                return Err(format!("{now} records acknowledged, and {before} before"));
            }
        }
        Ok(())
    });
    for pod in &pods {
        agent.reads(pod);
        assert!(pod.container().alive());
    }
    agent.gets_ready();
    agent.outlast("what kubelet has bound has one layer, which is theirs", seconds(15), |_| {
        let bound = pods.iter().flat_map(Pod::sub_paths).map(|place| mounts::at(place));
        let others: Vec<Vec<Mount>> = bound.filter(|at| at.len() != 1 || !at.iter().all(is_theirs)).collect();
        if others.is_empty() { Ok(()) } else { Err(others) }
    });
    if kernel_is_newer() {
        agent.outlast("one layer is left everywhere", seconds(15), |_| {
            let places = pods.iter().flat_map(|pod| ["/mnt/datasets", "/mnt/checkpoints"].map(|at| pod.mounts_at(at)));
            let hosts = pods.iter().flat_map(Pod::targets).map(|at| mounts::at(at));
            let more: Vec<Vec<Mount>> = places.chain(hosts).filter(|layers: &Vec<Mount>| layers.len() != 1).collect();
            if more.is_empty() { Ok(()) } else { Err(more) }
        });
    }

    for pod in &pods {
        agent.sees_the_end_of(pod);
        pod.lost_nothing(&to.read(&format!("checkpoints/{}", pod.name())));
    }
    let volumes: Vec<Volume> = pods.into_iter().flat_map(|pod| pod.end(seconds(10))).collect();
    agent.strike_at(late);
    for volume in &volumes {
        agent.insist(&format!("unpublish {}", volume.share), |csi| csi.unpublish(&volume.target));
    }
    agent.leaves_nothing(&before);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_test_run_has_each_point() {
        use Kernel::{Newer, Usual};
        let acts = [Act::Start, Act::Configure, Act::Publish, Act::Serve, Act::Unpublish];
        let lives = acts.into_iter().flat_map(|act| deaths(act, Usual, Whom::Hand));
        let lives = lives.chain(while_stacking()).chain(while_beneath());
        let lives = lives.chain(deaths(Act::RecoverDirect, Newer, Whom::Hand));
        let lives = lives.chain(deaths(Act::Hide, Usual, Whom::Hand)).chain(shutdowns().into_iter().flatten());
        let lives = lives.chain(deaths(Act::Errand, Usual, Whom::Agent)).chain(deaths(Act::Ways, Usual, Whom::Hand));
        let there: BTreeSet<Point> = lives.map(|(point, _)| point).collect();
        let missing: Vec<&Point> = Point::ALL.iter().filter(|point| !there.contains(point)).collect();
        assert!(missing.is_empty(), "no scenario `killed_*` comes by {missing:?}");
    }
}
