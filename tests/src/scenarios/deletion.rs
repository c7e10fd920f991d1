//! A pod is deleted while its server is away: it goes within its grace period, and kubelet is not left waiting.

use crate::agent::Agent;
use crate::data;
use crate::event::Op;
use crate::mounts;
use crate::node::Node;
use crate::objects;
use crate::pod::Draft;
use crate::site::Site;
use crate::wait::{eventually, now, seconds};

pub(super) fn while_blackholed() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let pod = Draft::new("both")
        .with_share(&node, &agent, "datasets", true)
        .with_share(&node, &agent, "checkpoints", false)
        .reading("/mnt/datasets/sample")
        .writing("/mnt/checkpoints/log")
        .start();
    pod.reads("a", seconds(30));
    pod.writes(seconds(30));
    let targets: Vec<_> = pod.targets().map(|target| target.display().to_string()).collect();

    site.blackhole();
    pod.blocks(Op::Write, seconds(3));
    let grace = seconds(15);
    let began = now();
    pod.delete(&agent, grace);
    let took = now() - began;
    assert!(took < grace, "grace was {grace:?}, gone after {took:?}");

    eventually("nothing is left at its targets", seconds(10), || {
        let left: Vec<_> = mounts::of("self").into_iter().filter(|mount| targets.contains(&mount.point)).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });

    // And the node is whole: when the server is back, the next pod reads.
    site.heal();
    let next = Draft::new("next").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    next.reads("a", seconds(60));
    next.delete(&agent, seconds(5));
}
