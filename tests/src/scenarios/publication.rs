//! How a share reaches a pod.

use std::thread;

use nix::errno::Errno;
use tonic::Code;

use crate::agent::Agent;
use crate::data;
use crate::event::Op;
use crate::mounts;
use crate::node::Node;
use crate::objects;
use crate::pod::{Draft, volume};
use crate::site::Site;
use crate::wait::{eventually, seconds};

pub(super) fn read_only_whatever_the_pod_asks() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let agent = Agent::start(&node, &objects::usual(false, &[&site]));

    let pod = Draft::new("greedy")
        .with_share(&node, &agent, "datasets", false)
        .reading("/mnt/datasets/sample")
        .trespassing("/mnt/datasets/never")
        .start();
    pod.reads("a", seconds(30));
    let refused = pod.next("tries to write", seconds(10), |event| event.op == Op::Trespass);
    assert_eq!(refused.errno, Errno::EROFS as i32, "{refused:?}");

    let target = pod.targets().next().expect("one target").display().to_string();
    let mount = mounts::of("self").into_iter().rfind(|mount| mount.point == target).expect("a mount at the target");
    for option in ["ro", "nosuid", "nodev"] {
        assert!(mount.options.split(',').any(|given| given == option), "no {option} in {mount:?}");
    }
    pod.delete(&agent, seconds(10));
}

pub(super) fn rights_are_judged_when_a_volume_comes() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let open = objects::usual(false, &[&site]);
    let closed = open.replace("namespaces: [training]", "namespaces: [elsewhere]");
    let agent = Agent::start(&node, &open);
    let pod = Draft::new("reader").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads("a", seconds(30));

    // One that waits for its server when the right is taken away does not come when the server is back.
    site.blackhole();
    eventually("the server is away", seconds(20), || {
        let tunnels = agent.status()["tunnels"].clone();
        if tunnels.to_string().contains("Away") { Ok(()) } else { Err(tunnels) }
    });
    let late = volume(&node, "late", "checkpoints", false);
    let refused = thread::scope(|scope| {
        let asking = scope.spawn(|| agent.csi().publish(&late));
        eventually("it waits", seconds(15), || {
            let publications = agent.status()["publications"].clone();
            if publications.to_string().contains("checkpoints") { Ok(()) } else { Err(publications) }
        });
        agent.configure(&closed);
        asking.join().expect("an answer").expect_err("namespace training may not use it any more")
    });
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    site.heal();

    // What is there stays, and kubelet may ask for it again, as it does when it was restarted itself.
    pod.reads("a", seconds(60));
    let there = volume(&node, "reader", "datasets", true);
    agent.csi().publish(&there).expect("what is published is published");
    let next = agent.csi().publish(&volume(&node, "next", "datasets", true)).expect_err("a new pod may not");
    assert_eq!(next.code(), Code::PermissionDenied, "{next}");
    pod.never_failed(Op::Read);
    pod.delete(&agent, seconds(10));
}
