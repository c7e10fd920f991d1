//! A process dies at a kill point: a hand alone, or the agent with its hands. Then the same call is made again, by kubelet's
//! habit, and all is as if nobody had died: the pod reads and writes, what was acknowledged is there, and at the end nothing
//! is left behind.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::time::Duration;

use moorline_agent::killpoint::{Chapter, Place, Point};
use tonic::Code;

use super::Kernel;
use super::direct::kernel_is_newer;
use crate::agent::{Agent, Whom, hands};
use crate::csi::{Csi, Volume};
use crate::data;
use crate::event::Op;
use crate::logind::Logind;
use crate::mounts::{self, Mount};
use crate::node::Node;
use crate::objects;
use crate::pod::{Draft, Pod, volume};
use crate::site::{Site, Tree};
use crate::wait::{poll, seconds};

/// A file system of the agent's own, and its state in it.
const NODE: &str = "/run/moorline/node";
/// From a server's death to a pod that reads the next one, and some deaths more in between.
const RECOVERY: Duration = seconds(90);

type Death = (Point, Whom);

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
        ReturningWritten | FlushUntold | FlushDone | DetachUntold | DetachDone => Act::ShutDown,
    }
}

/// Where anybody comes by: some ways through the kernel are newer kernels' alone, and some the others'.
pub(super) const fn kernels(point: Point) -> &'static [Kernel] {
    use Point::*;
    match point {
        MountedBeneath | Uncovered | WriterMarked | WriterEnded | ShutDownUntold | FenceUnmarked => &[Kernel::Newer],
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
    lab.ready();
    lab.struck(deaths);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own: Vec<&str> = table.lines().filter(|line| line.contains(&format!(" {NODE} "))).collect();
    assert!(own.len() == 1 && own[0].contains(" unbindable "), "one mount, which no container gets: {own:?}");
    lab.cycle("pod", &[], &[], &[]);
}

fn configuring(deaths: &[Death]) {
    let mut lab = Lab::start();
    let before = mounts::of("self");
    deaths.iter().for_each(|(point, whom)| lab.agent.strike(*point, *whom));
    lab.agent
        .configure(&[objects_of(&lab.site), objects::share_of("late", "gw", "datasets", "ReadOnly")].join("---\n"));
    lab.struck(deaths);
    let late = volume(&lab.node, "pod", "late", true);
    lab.publish(&late);
    assert!(late.target.join("sample").exists());
    lab.unpublish(&late);
    lab.nothing_is_left(&before);
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
    strike(&lab.agent, deaths);
    lab.site.blackhole();
    for volume in &volumes {
        outlast(&mut lab.agent, "kubelet may look", seconds(60), |agent| {
            agent.may_hear_of_deletion(&volume.pod_uid, seconds(60))?;
            let there = mounts::at(&volume.target);
            if there.is_empty() { Ok(()) } else { Err(format!("{there:?}")) }
        });
    }
    struck(&mut lab.agent, deaths);
    lab.ready();
    let volumes: Vec<Volume> = pods.into_iter().flat_map(|pod| pod.end(seconds(10))).collect();
    // Their superblock is ended for good once its server is known to be away. Whoever detaches it may be held by the kernel
    // until it is killed, or comes by here: what is left is a mark and a directory.
    lab.agent.tells("ServerAway", seconds(20));
    lab.agent.strike(Point::BaseDetached, Whom::Hand);
    volumes.iter().for_each(|volume| lab.unpublish(volume));
    lab.nothing_is_left(&before);
    lab.site.heal();
    lab.nothing_is_left(&before);
}

/// Each time the node stays after all, and the agent that is there by then takes care of what is there.
fn shutting_down(shutdowns: &[Vec<Death>]) {
    let logind = Logind::start(20);
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
        strike(&lab.agent, deaths);
        logind.power_off();
        struck(&mut lab.agent, deaths);
        logind.goes_down(count);
        lab.ready();
        outlast(&mut lab.agent, "its volumes are published again", seconds(60), |_| {
            let missing: Vec<_> = pod.targets().filter(|target| mounts::at(target).is_empty()).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
        });
    }
    pod.reads("data", seconds(30));
    pod.container().stop(seconds(10));
    pod.lost_nothing(&lab.site.read("checkpoints/log"));
    lab.ready();
    for volume in &pod.end(seconds(10)) {
        lab.unpublish(volume);
    }
    lab.nothing_is_left(&before);
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
        lab.ready();
        lab
    }

    /// A pod comes, reads and writes, and goes.
    #[track_caller]
    fn cycle(&mut self, name: &str, publish: &[Death], serve: &[Death], unpublish: &[Death]) {
        let before = mounts::of("self");
        strike(&self.agent, publish);
        let shares = [("datasets", true), ("checkpoints", false), ("direct", true)];
        for (share, read_only) in shares {
            self.publish(&volume(&self.node, name, share, read_only));
        }
        self.struck(publish);
        self.ready();
        let log = format!("/mnt/checkpoints/{name}");
        let draft = shares.iter().fold(Draft::new(name), |draft, (share, read_only)| {
            draft.with_share(&self.node, &self.agent, share, *read_only)
        });
        let pod = draft.reading("/mnt/datasets/sample").reading("/mnt/direct/sample").writing(&log).start();
        strike(&self.agent, serve);
        self.struck(serve);
        // Who came by last may have been the agent.
        self.ready();
        for path in ["/mnt/datasets/sample", "/mnt/direct/sample"] {
            pod.reads_at(path, "data", seconds(30));
        }
        pod.writes(seconds(30));
        self.ready();

        pod.container().stop(seconds(10));
        pod.lost_nothing(&self.site.read(&format!("checkpoints/{name}")));
        pod.never_failed(Op::Read);
        pod.never_failed(Op::Write);
        let volumes = pod.end(seconds(10));
        strike(&self.agent, unpublish);
        volumes.iter().for_each(|volume| self.unpublish(volume));
        self.nothing_is_left(&before);
        self.struck(unpublish);
    }

    fn publish(&mut self, volume: &Volume) {
        insist(&mut self.agent, &format!("publish {}", volume.share), |csi| csi.publish(volume));
    }

    fn unpublish(&mut self, volume: &Volume) {
        insist(&mut self.agent, &format!("unpublish {}", volume.share), |csi| csi.unpublish(&volume.target));
    }

    fn ready(&mut self) {
        ready(&mut self.agent);
    }

    fn struck(&mut self, deaths: &[Death]) {
        struck(&mut self.agent, deaths);
    }

    fn nothing_is_left(&mut self, before: &[Mount]) {
        nothing_is_left(&mut self.agent, before);
    }
}

/// A server dies; deaths follow it while the next one takes over, and `late` ones while the pods' volumes are given back. One
/// death may keep others from where they were to be: who was spared has another failover.
fn recovering(direct: bool, deaths: &[Death], late: &[Death]) {
    let node = Node::new("node1");
    let tree = Tree::new("shared");
    tree.put("datasets/sample", &data::file("data", 50_000));
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
    ready(agent);
    let before = mounts::of("self");
    let pods = ["one", "two"].map(|name| {
        let name = format!("{name}-{}", from.name());
        Draft::new(&name)
            .with_share(node, agent, "datasets", true)
            .with_share(node, agent, "checkpoints", false)
            .reading("/mnt/datasets/sample")
            .writing(&format!("/mnt/checkpoints/{name}"))
            .start()
    });
    for pod in &pods {
        pod.reads("data", seconds(30));
        pod.writes(seconds(30));
    }
    assert_eq!(agent.target("checkpoints"), from.name());

    strike(agent, deaths);
    from.die();
    let theirs = [to.server(), to.direct_server()].map(|server| format!("{server}:"));
    let is_theirs = |mount: &Mount| theirs.iter().any(|server| mount.source.starts_with(server));
    let died_at = pods.each_ref().map(Pod::acknowledged);
    outlast(agent, "every pod reads and writes at the other", RECOVERY, |_| {
        for (pod, before) in pods.iter().zip(died_at) {
            for at in ["/mnt/datasets", "/mnt/checkpoints"] {
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
        reads(agent, pod);
        assert!(pod.container().alive());
    }
    ready(agent);
    if kernel_is_newer() {
        outlast(agent, "one layer is left everywhere", seconds(15), |_| {
            let places = pods.iter().flat_map(|pod| ["/mnt/datasets", "/mnt/checkpoints"].map(|at| pod.mounts_at(at)));
            let hosts = pods.iter().flat_map(Pod::targets).map(|at| mounts::at(at));
            let more: Vec<Vec<Mount>> = places.chain(hosts).filter(|layers: &Vec<Mount>| layers.len() != 1).collect();
            if more.is_empty() { Ok(()) } else { Err(more) }
        });
    }

    for pod in &pods {
        pod.container().stop(seconds(10));
        pod.lost_nothing(&to.read(&format!("checkpoints/{}", pod.name())));
    }
    let volumes: Vec<Volume> = pods.into_iter().flat_map(|pod| pod.end(seconds(10))).collect();
    strike(agent, late);
    for volume in &volumes {
        insist(agent, &format!("unpublish {}", volume.share), |csi| csi.unpublish(&volume.target));
    }
    nothing_is_left(agent, &before);
}

#[track_caller]
fn strike(agent: &Agent, deaths: &[Death]) {
    deaths.iter().for_each(|(point, whom)| agent.strike(*point, *whom));
}

/// Waits, while the agent dies and comes again, until `look` answers `Ok`. Each that comes has the whole of the deadline: how
/// long it takes to come is the machine's.
#[track_caller]
fn outlast<T, E: Debug>(
    agent: &mut Agent,
    what: &str,
    deadline: Duration,
    mut look: impl FnMut(&Agent) -> Result<T, E>,
) -> T {
    let mut last = None;
    loop {
        agent.revive();
        let answer = poll(deadline, || match look(agent) {
            Ok(answer) => Some(Some(answer)),
            Err(seen) => {
                last = Some(seen);
                (!agent.alive()).then_some(None)
            }
        });
        match answer {
            Some(Some(answer)) => return answer,
            Some(None) => {}
            None => panic!("{what}: not within {deadline:?}; last seen: {last:?}"),
        }
    }
}

/// The pod reads once more, on a node whose agent may die yet.
#[track_caller]
fn reads(agent: &mut Agent, pod: &Pod) {
    let so_far = || pod.events_of(Op::Read).iter().filter(|event| event.succeeded() && event.tag == "data").count();
    let before = so_far();
    outlast(agent, &format!("pod {} reads", pod.name()), seconds(30), |_| {
        if so_far() > before { Ok(()) } else { Err(pod.events_of(Op::Read).last().cloned()) }
    });
}

/// Somebody came by each of these points.
#[track_caller]
fn struck(agent: &mut Agent, deaths: &[Death]) {
    outlast(agent, "somebody comes by", seconds(20), |agent| {
        let spared: Vec<Point> = deaths.iter().map(|(point, _)| *point).filter(|point| agent.spared(*point)).collect();
        if spared.is_empty() { Ok(()) } else { Err(spared) }
    });
}

#[track_caller]
fn ready(agent: &mut Agent) {
    insist(agent, "ask whether it is ready", |csi| match csi.probe()? {
        true => Ok(()),
        false => Err(tonic::Status::unavailable("not yet")),
    });
}

/// As kubelet does, on a node whose agent dies: what has got no answer is asked again.
#[track_caller]
fn insist(agent: &mut Agent, what: &str, call: impl Fn(&Csi) -> Result<(), tonic::Status>) {
    outlast(agent, what, seconds(60), |agent| {
        let csi = Csi::connect()?;
        match call(&csi) {
            Ok(()) => Ok(()),
            // The last three are a connection that broke.
            Err(status)
                if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal) =>
            {
                Err(status.to_string())
            }
            Err(status) => panic!("{what}: {status}\n{}", agent.logs()),
        }
    });
}

/// No mount, namespace, record, mark, target or process: the node is as before.
#[track_caller]
fn nothing_is_left(agent: &mut Agent, before: &[Mount]) {
    outlast(agent, "nothing is left behind", seconds(40), |_| {
        let mut left: Vec<String> = Vec::new();
        let now = mounts::of("self");
        left.extend(now.iter().filter(|mount| !before.contains(mount)).map(|mount| format!("{mount:?}")));
        left.extend(before.iter().filter(|mount| !now.contains(mount)).map(|mount| format!("gone: {mount:?}")));
        if now.len() != before.len() {
            left.push(format!("{} mounts, and {} before", now.len(), before.len()));
        }
        for directory in ["mounts", "netns", "fenced", "publications", "given-up"] {
            left.extend(entries(&Path::new(NODE).join(directory)));
        }
        let unfinished = |name: &String| name.contains(".new") || name.ends_with("returning.json");
        left.extend(entries(Path::new(NODE)).into_iter().filter(unfinished));
        for pod in entries(Path::new("/var/lib/kubelet/pods")) {
            let volumes = entries(&Path::new(&pod).join("volumes/kubernetes.io~csi"));
            left.extend(volumes.iter().flat_map(|volume| entries(Path::new(volume))));
        }
        // One may wait for the next request.
        left.extend(hands().iter().skip(1).map(|pid| {
            let [stat, stack] = ["stat", "stack"].map(|file| fs::read_to_string(format!("/proc/{pid}/{file}")));
            format!("process {pid}: {stat:?} {stack:?}")
        }));
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
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
        let there: BTreeSet<Point> = lives.map(|(point, _)| point).collect();
        let missing: Vec<&Point> = Point::ALL.iter().filter(|point| !there.contains(point)).collect();
        assert!(missing.is_empty(), "no scenario `killed_*` comes by {missing:?}");
    }
}
