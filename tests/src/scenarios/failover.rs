//! A server dies for good, and the pods go on.

use nix::errno::Errno;

use crate::agent::Agent;
use crate::data;
use crate::event::{Event, Op};
use crate::node::Node;
use crate::objects;
use crate::openmetrics;
use crate::pod::{Draft, Pod};
use crate::site::{Site, Tree};
use crate::wait::{DAY, eventually, monotonic, seconds, throughout, time_in, time_of_day};

/// From a server's death to a pod that reads the next one.
const RECOVERY: std::time::Duration = seconds(45);

pub(super) fn read_only() {
    let node = Node::new("node1");
    let (a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    a.put("datasets/sample", &data::file("a", 200_000));
    b.put("datasets/sample", &data::file("b", 200_000));
    let agent = Agent::start(&node, &objects::usual(false, &[&a, &b]));
    let pod = reader(&node, &agent);
    let process = pod.container().pid();
    let (mut serving, other) = if reads_from(&pod) == "a" { (a, b) } else { (b, a) };

    serving.die();
    pod.reads(other.name(), RECOVERY);

    assert!(pod.container().alive(), "the same container reads on");
    assert_eq!(pod.container().pid(), process);
    let refused = pod.next("tries to write", seconds(10), |event| event.op == Op::Trespass);
    assert_eq!(refused.errno, Errno::EROFS as i32, "read-only stays read-only: {refused:?}");
    pod.delete(&agent, seconds(10));
}

/// From the agent's word that a server is away to an open that another one serves.
const SERVED: std::time::Duration = seconds(2);

/// What a machine that is busy with much else may make of a promise.
const LATE: u32 = 5;

pub(super) fn new_opens_are_served_in_time() {
    let node = Node::new("node1");
    let tree = Tree::new("shared");
    tree.put("datasets/sample", &data::file("data", 10_000));
    let (mut a, mut b) = (Site::serving(&node, "a", tree.clone()), Site::serving(&node, "b", tree.clone()));
    let agent = Agent::start(&node, &objects::usual(true, &[&a, &b]));
    let pods = [reader(&node, &agent), writer(&node, &agent)];
    let wanted = |event: &Event| matches!(event.op, Op::Read | Op::Write) && event.succeeded();
    for pod in &pods {
        pod.next("uses its share", seconds(30), wanted);
    }

    let (target, died) = (agent.target("checkpoints"), monotonic());
    assert_eq!(agent.target("datasets"), target, "both have the first one that answered");
    if target == "a" {
        a.die()
    } else {
        b.die()
    }
    let away = eventually("it is known to be away", seconds(30), || {
        let events = agent.events();
        let times =
            events.iter().filter(|event| event["kind"] == "ServerAway").filter_map(|event| event["at"].as_str());
        let ago = times.filter_map(time_in).map(|at| (time_of_day() - at).rem_euclid(DAY));
        ago.map(|ago| monotonic() - ago).find(|at| *at > died).ok_or(events)
    });
    let limit = (SERVED * LATE).as_secs_f64();
    for pod in pods {
        // What was on its way when the server died may be acknowledged by the next.
        let opened = |event: &Event| wanted(event) && event.at - event.took > away;
        let served = pod.after(0, "opens it anew", RECOVERY, opened);
        let took = served.at - away;
        println!("{}: served {took:.1} s after the server was known to be away", pod.name());
        assert!(took < limit, "{}: {SERVED:?} are promised, and it took {took:.1} s: {served:?}", pod.name());
        pod.delete(&agent, seconds(10));
    }
}

pub(super) fn read_write_shared_data() {
    let node = Node::new("node1");
    let tree = Tree::new("shared");
    let mut a = Site::serving(&node, "a", tree.clone());
    let mut b = Site::serving(&node, "b", tree.clone());
    let agent = Agent::start(&node, &objects::usual(true, &[&a, &b]));
    let pod = writer(&node, &agent);
    pod.writes(seconds(30));

    if agent.target("checkpoints") == "a" {
        a.die()
    } else {
        b.die()
    }
    // In flight when the server died: it is aborted, or acknowledged by the next server. Then come new ones.
    let before = pod.acknowledged();
    pod.next("writes to the other", RECOVERY, |event| {
        event.op == Op::Write && event.succeeded() && event.tag.parse().is_ok_and(|number: u64| number > before + 1)
    });
    assert!(pod.container().alive());
    let events = agent.events();
    let told = |kind: &str| events.iter().find(|event| event["kind"] == kind).cloned().unwrap_or_default();
    let (fenced, aborting) = (told("Fenced"), told("Aborting"));
    assert_eq!(fenced["gravity"], "Warning", "{events:?}");
    assert_eq!(aborting["pod"]["name"], "writer", "who may have lost something is named: {events:?}");
    assert!(aborting["message"].as_str().is_some_and(|message| message.contains("lost")), "{events:?}");
    assert_eq!(told("FailedOver")["share"], "checkpoints", "{events:?}");
    let page = openmetrics::parse(&agent.http("/metrics").1);
    let of_share = |name: &str| page.value(name, &[("share", "checkpoints")]);
    assert_eq!(of_share("moorline_failovers_total"), Some(1.0), "{page:?}");
    assert_eq!(of_share("moorline_copies_replaced_total"), Some(2.0), "the host's and the container's: {page:?}");
    let aborts = |mode: &str| page.value("moorline_aborts_total", &[("share", "checkpoints"), ("mode", mode)]);
    assert_eq!((aborts("read-write"), aborts("read-only")), (Some(1.0), Some(0.0)), "{page:?}");
    let fences = |target: &str| page.value("moorline_fences_total", &[("gateway", "gw"), ("target", target)]);
    assert_eq!(fences("a").zip(fences("b")).map(|(a, b)| a + b), Some(1.0), "{page:?}");
    pod.container().stop(seconds(10));
    pod.lost_nothing(&tree.read("checkpoints/log"));
    pod.delete(&agent, seconds(10));
}

pub(super) fn read_write_waits_without_shared_data() {
    let node = Node::new("node1");
    let (a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    let agent = Agent::start(&node, &objects::usual(false, &[&a, &b]));
    let pod = writer(&node, &agent);
    pod.writes(seconds(30));
    let (mut serving, other) = if agent.target("checkpoints") == "a" { (a, b) } else { (b, a) };

    serving.die();
    // From the death on nothing is acknowledged, and nothing fails: it waits. Ten seconds are several probes.
    pod.blocks(Op::Write, seconds(10));
    pod.never_failed(Op::Write);
    assert!(other.tree().try_read("checkpoints/log").is_none(), "nothing may be written to a server with other data");
    let waiting = eventually("the status says what is waited for", seconds(10), || {
        let status = agent.status();
        let shares = status["shares"].as_array().cloned().unwrap_or_default();
        let share = shares.into_iter().find(|share| share["name"] == "checkpoints").ok_or(status)?;
        share["waiting"].as_str().map(str::to_owned).ok_or(share)
    });
    assert!(waiting.contains("sharedData"), "the reason names the cure: {waiting}");
}

pub(super) fn first_target_is_preferred() {
    let node = Node::new("node1");
    let (a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    a.put("datasets/sample", &data::file("a", 50_000));
    b.put("datasets/sample", &data::file("b", 50_000));
    // Named in the other order than started, and the first one answers later: the list is the order all the same.
    b.delay(std::time::Duration::from_millis(100));
    let agent = Agent::start(&node, &objects::usual(false, &[&b, &a]));
    let pod = reader(&node, &agent);
    assert_eq!(reads_from(&pod), "b");
    pod.delete(&agent, seconds(10));
}

/// It is the node that has no network: every server is away, and none of them has died.
pub(super) fn a_lost_uplink_fences_nobody() {
    let node = Node::new("node1");
    let tree = Tree::new("shared");
    let (a, b) = (Site::serving(&node, "a", tree.clone()), Site::serving(&node, "b", tree.clone()));
    let agent = Agent::start(&node, &objects::usual(true, &[&a, &b]));
    let pod =
        Draft::new("writer").with_share(&node, &agent, "checkpoints", false).holding("/mnt/checkpoints/log").start();
    pod.writes(seconds(30));
    let first = agent.target("checkpoints");
    let (serving, other) = if first == a.name() { (a, b) } else { (b, a) };
    let stays = || {
        let status = agent.status();
        let namespaces = status["tunnels"].as_array().cloned().unwrap_or_default();
        let fenced = namespaces.iter().any(|tunnel| tunnel["state"] == "Fenced");
        let target = agent.target("checkpoints");
        if target == first && !fenced { Ok(()) } else { Err(status) }
    };

    Site::cut_uplink(&[&serving, &other]);
    throughout("nobody is fenced while all are away", seconds(12), stays);
    pod.blocks_in_fsync(seconds(1));
    // The other is the first to be back, as it is where its tunnel's next handshake comes first.
    other.heal();
    serving.heal();

    // For as long as one tunnel may be back before the other: a handshake is tried every five seconds.
    throughout("nobody is fenced when all are back", seconds(8), stays);
    pod.writes(seconds(30));
    pod.never_failed(Op::Write);
    pod.lost_nothing(&tree.read("checkpoints/log"));
    pod.delete(&agent, seconds(10));
}

fn reads_from(pod: &Pod) -> String {
    pod.next("reads", seconds(30), |event| event.op == Op::Read && event.succeeded()).tag
}

fn reader(node: &Node, agent: &Agent) -> Pod {
    Draft::new("reader")
        .with_share(node, agent, "datasets", true)
        .reading("/mnt/datasets/sample")
        .trespassing("/mnt/datasets/never")
        .start()
}

fn writer(node: &Node, agent: &Agent) -> Pod {
    Draft::new("writer").with_share(node, agent, "checkpoints", false).writing("/mnt/checkpoints/log").start()
}
