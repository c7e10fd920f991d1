//! The agent dies and comes back: a non-event for the pods.

use crate::agent::Agent;
use crate::data;
use crate::event::Op;
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
