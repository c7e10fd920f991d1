//! A pod is deleted while its server is away: it goes within its grace period, and kubelet is not left waiting.

use crate::agent::Agent;
use crate::container::{Bind, Container, Propagation, Spec};
use crate::data;
use crate::event::Op;
use crate::kit;
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

pub(super) fn writer_stuck_in_fsync() {
    stuck_in_fsync_goes(|| ());
}

pub(super) fn writer_stuck_in_fsync_seen_by_a_stranger() {
    // As a node-exporter has it: a process of nobody's pod, not about to end, sees every volume of the node.
    stuck_in_fsync_goes(|| {
        let kubelet =
            Bind { propagation: Propagation::HostToContainer, ..Bind::new("/var/lib/kubelet", "/mnt/kubelet") };
        let app = Bind::new(kit::executable("app"), "/app").read_only();
        let spec = Spec { args: vec!["/app".into()], binds: vec![app, kubelet.read_only()], ..Spec::default() };
        Container::start("stranger", &spec)
    });
}

fn stuck_in_fsync_goes<T>(beside: impl FnOnce() -> T) {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    let agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let _beside = beside();
    let writer = |name: &str| {
        let log = format!("/mnt/checkpoints/{name}");
        Draft::new(name).with_share(&node, &agent, "checkpoints", false).holding(&log).start()
    };
    let (pod, neighbour) = (writer("pod"), writer("neighbour"));
    pod.writes(seconds(30));
    neighbour.writes(seconds(30));

    site.blackhole();
    pod.blocks_in_fsync(seconds(2));
    neighbour.blocks_in_fsync(seconds(2));
    let grace = seconds(15);
    let began = now();
    pod.delete(&agent, grace);
    let took = now() - began;
    assert!(took < grace, "grace was {grace:?}, gone after {took:?}");

    // The neighbour's fsync was none of this: it waits on, and ends well.
    neighbour.blocks_in_fsync(seconds(2));
    site.heal();
    neighbour.writes(seconds(60));
    neighbour.never_failed(Op::Write);
    neighbour.lost_nothing(&site.read("checkpoints/neighbour"));
    neighbour.delete(&agent, seconds(10));
}
