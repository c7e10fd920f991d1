//! Gateways without a tunnel: the node's own network leads to the servers.

use std::fs;

use crate::agent::Agent;
use crate::data;
use crate::event::Op;
use crate::node::Node;
use crate::objects;
use crate::pod::Draft;
use crate::site::{Site, Tree};
use crate::wait::{eventually, seconds};

fn objects_of(sites: &[&Site]) -> String {
    let parts = [
        objects::direct_gateway("gw", true, sites),
        objects::share("datasets", "gw", "ReadOnly"),
        objects::share("checkpoints", "gw", "ReadWrite"),
    ];
    parts.join("---\n")
}

/// Readers move as with a tunnel. Writers move where the kernel can keep what is unwritten from the old server, and wait
/// elsewhere, and the status says for what.
pub(super) fn a_direct_gateway_fails_over() {
    let node = Node::new("node1");
    let tree = Tree::new("shared");
    tree.put("datasets/sample", &data::file("data", 50_000));
    let (mut a, b) = (Site::serving(&node, "a", tree.clone()), Site::serving(&node, "b", tree.clone()));
    let agent = Agent::start(&node, &objects_of(&[&a, &b]));
    let pod = Draft::new("both")
        .with_share(&node, &agent, "datasets", true)
        .with_share(&node, &agent, "checkpoints", false)
        .reading("/mnt/datasets/sample")
        .writing("/mnt/checkpoints/log")
        .start();
    pod.reads("data", seconds(30));
    pod.writes(seconds(30));
    assert_eq!(agent.target("datasets"), "a");

    a.die();
    eventually("readers move", seconds(45), || match agent.target("datasets").as_str() {
        "b" => Ok(()),
        other => Err(other.to_owned()),
    });
    pod.reads("data", seconds(45));
    if kernel_is_newer() {
        let before = pod.acknowledged();
        pod.next("writes to the other", seconds(45), |event| {
            event.op == Op::Write && event.succeeded() && event.tag.parse().is_ok_and(|number: u64| number > before)
        });
        assert_eq!(agent.target("checkpoints"), "b");
    } else {
        pod.blocks(Op::Write, seconds(5));
        pod.never_failed(Op::Write);
        assert_eq!(agent.target("checkpoints"), "a");
        eventually("the status says what is missing", seconds(10), || {
            let shares = agent.status()["shares"].to_string();
            if shares.contains("Linux 6.4") { Ok(()) } else { Err(shares) }
        });
    }
    pod.lost_nothing(&tree.read("checkpoints/log"));
    pod.delete(&agent, seconds(15));
}

/// /sys/fs/nfs/*/shutdown came with Linux 6.4, MOVE_MOUNT_BENEATH with 6.5; of the lab's kernels one has both. The first is
/// seen only when something is mounted.
pub(super) fn kernel_is_newer() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 5)
}
