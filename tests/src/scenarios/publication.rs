//! How a share reaches a pod.

use nix::errno::Errno;

use crate::agent::Agent;
use crate::data;
use crate::event::Op;
use crate::mounts;
use crate::node::Node;
use crate::objects;
use crate::pod::Draft;
use crate::site::Site;
use crate::wait::seconds;

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
