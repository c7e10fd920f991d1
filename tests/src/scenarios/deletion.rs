//! A pod is deleted while its server is away: it goes within its grace period, and kubelet is not left waiting.

use nix::sys::signal::Signal;

use crate::agent::Agent;
use crate::container::{Bind, Container, Propagation, Spec};
use crate::data;
use crate::event::Op;
use crate::kit;
use crate::mounts;
use crate::node::Node;
use crate::objects;
use crate::pod::{Draft, Pod};
use crate::site::Site;
use crate::wait::{eventually, now, seconds, throughout};

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
    stuck_in_fsync_goes(
        || (),
        |node, agent, name| {
            let log = format!("/mnt/checkpoints/{name}");
            Draft::new(name).with_share(node, agent, "checkpoints", false).holding(&log).start()
        },
    );
}

/// Processes of nobody's pod, not about to end, see every volume and every sub path of the node: one has kubelet's
/// directory, as a node-exporter has it, one the pods' alone at a place of its own, as a backup's agent has it.
pub(super) fn writer_stuck_in_fsync_seen_by_strangers() {
    let stranger = |name: &str, shown: &str, at: &str| {
        let shown = Bind { propagation: Propagation::HostToContainer, ..Bind::new(shown, at) };
        let app = Bind::new(kit::executable("app"), "/app").read_only();
        let spec = Spec { args: vec!["/app".into()], binds: vec![app, shown.read_only()], ..Spec::default() };
        Container::start(name, &spec)
    };
    let strangers = || {
        [
            stranger("exporter", "/var/lib/kubelet", "/mnt/kubelet"),
            stranger("backup", "/var/lib/kubelet/pods", "/host_pods"),
        ]
    };
    stuck_in_fsync_goes(strangers, |node, agent, name| {
        Draft::new(name)
            .with_share(node, agent, "checkpoints", false)
            .with_sub_path("checkpoints", "part", "/mnt/part", false)
            .holding(&format!("/mnt/part/{name}"))
            .start()
    });
}

fn stuck_in_fsync_goes<T>(beside: impl FnOnce() -> T, draft: fn(&Node, &Agent, &str) -> Pod) {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.tree().folder("checkpoints/part");
    let agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let _beside = beside();
    let writer = |name: &str| draft(&node, &agent, name);
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
    let log =
        ["checkpoints/neighbour", "checkpoints/part/neighbour"].iter().find_map(|path| site.tree().try_read(path));
    neighbour.lost_nothing(&log.expect("the neighbour's log"));
    neighbour.delete(&agent, seconds(10));
}

/// What a pod wrote and did not sync goes to the server when its processes end. With the server away they can't: nobody
/// can tell such a process that it was killed, and it goes at the end of its grace period all the same.
pub(super) fn with_unwritten_data() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    let agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let pod =
        Draft::new("dirty").with_share(&node, &agent, "checkpoints", false).dirtying("/mnt/checkpoints/late").start();
    // It may be open by then, but nothing is written back for half a minute.
    pod.next("writes", seconds(20), |event| event.op == Op::Dirty && event.succeeded());
    site.blackhole();
    let grace = seconds(15);
    let began = now();
    pod.delete(&agent, grace);
    let took = now() - began;
    assert!(took < grace, "grace was {grace:?}, gone after {took:?}");
}

/// A job that ends by itself while its server is away has done nothing wrong: nobody deletes its pod, and what it wrote
/// waits for the server, as hard promises.
pub(super) fn a_job_that_ends_in_an_outage() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    let agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let pod =
        Draft::new("job").with_share(&node, &agent, "checkpoints", false).dirtying("/mnt/checkpoints/result").start();
    pod.next("writes", seconds(20), |event| event.op == Op::Dirty && event.succeeded());
    site.blackhole();
    pod.container().kill(Signal::SIGTERM);
    throughout("it waits for its server", seconds(12), || {
        if pod.container().alive() { Ok(()) } else { Err("it has ended, and what it wrote is lost") }
    });
    site.heal();
    eventually("it ends", seconds(60), || if pod.container().alive() { Err("still there") } else { Ok(()) });
    assert_eq!(data::records(&site.read("checkpoints/result")), [1], "what it wrote is on the server");
    pod.delete(&agent, seconds(10));
}
