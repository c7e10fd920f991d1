//! A pod is deleted while its server is away: it goes within its grace period, and kubelet is not left waiting.

use std::path::Path;
use std::process::{Command, Stdio};

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

/// A killed reader ends by itself. What holds its pod up then is kubelet, which looks at the volume and at the subPaths that
/// it has bound, before it gives the volume back: it must not meet the dead server there. A neighbour on the same share
/// goes on as if nothing had been.
pub(super) fn kubelet_meets_nothing_that_waits() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.tree().folder("datasets/part");
    site.tree().folder("checkpoints/part");
    for file in ["sample", "single", "part/sample"] {
        site.put(&format!("datasets/{file}"), &data::file("a", 50_000));
    }
    let shares = [
        objects::gateway("gw", false, &[&site]),
        // The attributes that the node knows are not believed for long: a look has to ask.
        objects::share_with("datasets", "gw", "datasets", "ReadOnly", "mountOptions: {actimeo: 1}"),
        objects::share("checkpoints", "gw", "ReadWrite"),
    ];
    let agent = Agent::start(&node, &shares.join("---\n"));
    let reader = |name: &str| {
        Draft::new(name)
            .with_share(&node, &agent, "datasets", true)
            .publishing(&node, &agent, "checkpoints", false)
            .with_sub_path("datasets", "part", "/mnt/part", true)
            .with_sub_path("datasets", "single", "/mnt/single", true)
            .with_sub_path("checkpoints", "part", "/mnt/checkpoints", false)
            .reading("/mnt/datasets/sample")
            .reading("/mnt/part/sample")
            .start()
    };
    let (pod, neighbour) = (reader("pod"), reader("neighbour"));
    let places = |pod: &Pod| pod.targets().chain(pod.sub_paths()).cloned().collect::<Vec<_>>();
    let (its, others) = (places(&pod), places(&neighbour));
    let untouched: Vec<_> = others.iter().map(|place| mounts::at(place)).collect();
    pod.reads("a", seconds(30));
    neighbour.reads("a", seconds(30));

    site.blackhole();
    pod.blocks(Op::Read, seconds(2));
    eventually("a look at the volume waits", seconds(30), || {
        // Newer kernels may hold a directory by a delegation, and need not ask.
        if its.iter().any(|at| !returns(at)) { Ok(()) } else { Err("all come back") }
    });
    // Kubelet was faster than the word that the pod is leaving.
    let bound = pod.sub_paths().next().expect("a subPath");
    let mut umount = Command::new("umount").arg(bound).spawn().unwrap_or_else(|error| panic!("start umount: {error}"));
    throughout("kubelet's umount waits", seconds(2), || match umount.try_wait() {
        Ok(None) => Ok(()),
        ended => Err(ended),
    });
    let grace = seconds(15);
    let began = now();
    pod.is_to_end(&agent, grace);
    eventually("kubelet's umount is let go", seconds(10), || match umount.try_wait() {
        Ok(Some(_)) => Ok(()),
        waits => Err(waits),
    });
    eventually("kubelet may look", seconds(15), || {
        let hold_up: Vec<_> = its.iter().filter(|place| !mounts::at(place).is_empty()).collect();
        if hold_up.is_empty() { Ok(()) } else { Err(hold_up.len()) }
    });
    let waiting: Vec<_> = its.iter().filter(|place| !returns(place)).collect();
    assert!(waiting.is_empty(), "kubelet would wait at {waiting:?}");
    assert!(pod.container().alive() || !pod.mounts_at("/mnt/datasets").is_empty(), "what it has is its own");
    pod.delete(&agent, grace);
    let took = now() - began;
    assert!(took < grace, "grace was {grace:?}, gone after {took:?}");

    let there: Vec<_> = others.iter().map(|place| mounts::at(place)).collect();
    assert_eq!(there, untouched, "its neighbour's volumes are none of this");
    neighbour.blocks(Op::Read, seconds(2));
    site.heal();
    neighbour.reads("a", seconds(60));
    neighbour.never_failed(Op::Read);
    neighbour.delete(&agent, seconds(10));
}

/// Whether a look at this path comes back at once.
fn returns(path: &Path) -> bool {
    let look = Command::new("timeout").args(["-s", "KILL", "2", "stat"]).arg(path).stdout(Stdio::null()).status();
    look.unwrap_or_else(|error| panic!("start stat: {error}")).success()
}

/// What a pod wrote and did not sync goes to the server when its processes end. With the server away they can't: nobody
/// can tell such a process that it was killed, and it goes at the end of its grace period all the same.
pub(super) fn with_unwritten_data() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    let agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let pod =
        Draft::new("dirty").with_share(&node, &agent, "checkpoints", false).dirtying("/mnt/checkpoints/late").start();
    // It does so once, and may have by now. It may be open by then, but nothing is written back for half a minute.
    pod.after(0, "writes", seconds(20), |event| event.op == Op::Dirty && event.succeeded());
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
    // It does so once, and may have by now.
    pod.after(0, "writes", seconds(20), |event| event.op == Op::Dirty && event.succeeded());
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
