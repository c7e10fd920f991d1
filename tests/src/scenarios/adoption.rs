//! The agent dies and comes back: a non-event for the pods.

use crate::agent::Agent;
use crate::data;
use crate::event::Op;
use crate::mounts;
use crate::node::Node;
use crate::objects;
use crate::pod::Draft;
use crate::site::Site;
use crate::wait::{eventually, seconds};

pub(super) fn agent_killed_while_pod_reads() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let mut agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let pod = Draft::new("both")
        .with_share(&node, &agent, "datasets", true)
        .with_share(&node, &agent, "checkpoints", false)
        .reading("/mnt/datasets/sample")
        .writing("/mnt/checkpoints/log")
        .start();
    pod.reads("a", seconds(30));
    pod.writes(seconds(30));

    agent.kill9();
    agent.restart();
    pod.reads("a", seconds(30));
    pod.writes(seconds(30));
    pod.never_failed(Op::Read);
    pod.never_failed(Op::Write);

    // What the new agent did not make, it takes down all the same.
    pod.delete(&agent, seconds(10));
}

/// An upgrade, in the middle of an outage for one of two shares: nothing is taken away, and the hung mount is found again.
pub(super) fn agent_upgraded_while_a_mount_hangs() {
    let node = Node::new("node1");
    let (a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    let objects = [
        objects::gateway("gw", false, &[&a]),
        objects::gateway("solo", false, &[&b]),
        objects::share("checkpoints", "gw", "ReadWrite"),
        objects::share_of("journal", "solo", "checkpoints", "ReadWrite"),
    ];
    let mut agent = Agent::start(&node, &objects.join("---\n"));
    let hung =
        Draft::new("hung").with_share(&node, &agent, "checkpoints", false).holding("/mnt/checkpoints/log").start();
    let well = Draft::new("well").with_share(&node, &agent, "journal", false).writing("/mnt/journal/log").start();
    hung.writes(seconds(30));
    well.writes(seconds(30));
    a.blackhole();
    hung.blocks_in_fsync(seconds(1));

    let targets: Vec<_> = hung.targets().chain(well.targets()).map(|target| target.display().to_string()).collect();
    agent.stop(seconds(10));
    for target in &targets {
        assert!(mounts::of("self").iter().any(|mount| mount.point == *target), "{target} went with the agent");
    }
    agent.restart();
    well.writes(seconds(30));
    hung.blocks_in_fsync(seconds(1));
    a.heal();
    hung.writes(seconds(60));
    hung.never_failed(Op::Write);
    well.never_failed(Op::Write);
    for pod in [hung, well] {
        pod.delete(&agent, seconds(10));
    }
}

pub(super) fn agent_restarted_while_server_is_dead() {
    let node = Node::new("node1");
    let (a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    a.put("datasets/sample", &data::file("a", 50_000));
    b.put("datasets/sample", &data::file("b", 50_000));
    let mut agent = Agent::start(&node, &objects::usual(false, &[&a, &b]));
    let pod = Draft::new("reader").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    let first = pod.next("reads", seconds(30), |event| event.op == Op::Read && event.succeeded()).tag;
    let (mut serving, other) = if first == "a" { (a, b) } else { (b, a) };

    agent.kill9();
    serving.die();
    pod.blocks(Op::Read, seconds(3));
    agent.restart();
    pod.reads(other.name(), seconds(60));
    pod.delete(&agent, seconds(10));
}

/// Somebody's slip in the objects and an agent's crash, one upon the other: what was running runs, and is still cared for.
pub(super) fn broken_objects_and_a_restart() {
    let node = Node::new("node1");
    let (a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    a.put("datasets/sample", &data::file("a", 50_000));
    b.put("datasets/sample", &data::file("b", 50_000));
    let good = objects::usual(false, &[&a, &b]);
    let mut agent = Agent::start(&node, &good);
    let pod = Draft::new("reader").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    let first = pod.next("reads", seconds(30), |event| event.op == Op::Read && event.succeeded()).tag;
    let (mut serving, other) = if first == "a" { (a, b) } else { (b, a) };

    agent.configure(&format!("{good}---\n{{"));
    eventually("the malformed objects are told", seconds(15), || {
        let problems = agent.status()["problems"].to_string();
        if problems.contains("objects.yaml") { Ok(()) } else { Err(problems) }
    });
    agent.kill9();
    agent.restart();
    let problems = agent.status()["problems"].to_string();
    assert!(problems.contains("objects.yaml"), "the new agent tells them as well: {problems}");
    pod.reads(&first, seconds(30));
    pod.never_failed(Op::Read);
    // Of the file that is bad now the new agent has read nothing: a share that no pod used is known all the same.
    let next =
        Draft::new("writer").with_share(&node, &agent, "checkpoints", false).writing("/mnt/checkpoints/log").start();
    next.writes(seconds(30));
    next.delete(&agent, seconds(10));

    serving.die();
    pod.reads(other.name(), seconds(60));
    pod.delete(&agent, seconds(10));
}
