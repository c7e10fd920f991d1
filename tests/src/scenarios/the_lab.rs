//! The lab proves itself: without an agent, what the other scenarios build on.

use std::fs;
use std::time::Duration;

use nix::errno::Errno;

use crate::client::{Client, Reader};
use crate::container::Bind;
use crate::data;
use crate::event::Op;
use crate::node::Node;
use crate::pod::Draft;
use crate::site::{Site, Tree};
use crate::wait::{eventually, now, seconds};

pub(super) fn site_serves_through_wireguard() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 100_000));

    let client = Client::connect(&node, &site);
    let (datasets, checkpoints) = (client.mount("datasets"), client.mount("checkpoints"));

    let seen = fs::read(datasets.join("sample")).expect("read through the tunnel");
    assert_eq!(data::verify(&seen), Ok("a".into()));
    fs::write(checkpoints.join("note"), "written").expect("write through the tunnel");
    assert_eq!(site.read("checkpoints/note"), b"written");
}

pub(super) fn blackhole_blocks_a_hard_read() {
    let node = Node::new("node1");
    let mut site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 4096));
    let datasets = Client::connect(&node, &site).mount("datasets");
    let sample = datasets.join("sample");
    fs::read(&sample).expect("read while all is well");

    site.blackhole();
    let mut reader = Reader::start(&sample);
    eventually("a read blocks", seconds(10), || if reader.blocked() { Ok(()) } else { Err("it does not") });
    crate::wait::throughout("a hard read does not fail", seconds(3), || reader.ended().map_or(Ok(()), Err));

    site.heal();
    let well = eventually("the read goes on", seconds(60), || reader.ended().ok_or("still blocked"));
    assert!(well, "the read went on and failed");

    site.die();
    let reader = Reader::start(&sample);
    eventually("a dead site blocks", seconds(10), || if reader.blocked() { Ok(()) } else { Err("it does not") });
}

pub(super) fn sites_may_share_a_tree() {
    let node = Node::new("node1");
    let tree = Tree::new("shared");
    let a = Site::serving(&node, "a", tree.clone());
    let b = Site::serving(&node, "b", tree);
    let through_a = Client::connect(&node, &a).mount("checkpoints");
    let through_b = Client::connect(&node, &b).mount("checkpoints");

    fs::write(through_a.join("note"), "one for all").expect("write through a");
    assert_eq!(fs::read(through_b.join("note")).expect("read through b"), b"one for all");
}

pub(super) fn delay_is_felt() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 4096));
    let sample = Client::connect(&node, &site).mount("datasets").join("sample");
    fs::read(&sample).expect("read at full speed");

    site.delay(Duration::from_millis(300));
    let (began, mut reader) = (now(), Reader::start(&sample));
    eventually("a read ends", seconds(20), || reader.ended().ok_or("not yet"));
    let took = now() - began;
    assert!(took >= Duration::from_millis(600), "a round trip of 600 ms took {took:?}");
}

pub(super) fn pod_has_no_privilege() {
    let source = Tree::new("local");
    source.put("datasets/sample", &data::file("local", 10_000));
    let pod = Draft::new("reader")
        .with_bind(Bind::new("/srv/local/datasets", "/mnt/datasets").read_only())
        .with_bind(Bind::new("/srv/local/checkpoints", "/mnt/checkpoints"))
        .reading("/mnt/datasets/sample")
        .writing("/mnt/checkpoints/log")
        .trespassing("/mnt/datasets/never")
        .start();

    pod.reads("local", seconds(10));
    pod.writes(seconds(10));
    let refused = pod.next("tries to write", seconds(10), |event| event.op == Op::Trespass);
    assert_eq!(refused.errno, Errno::EROFS as i32, "{refused:?}");

    let status = fs::read_to_string(format!("/proc/{}/status", pod.container().pid())).expect("the app's status");
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Uid:\t1000"] {
        assert!(status.contains(line), "no {line:?} in\n{status}");
    }
    assert!(pod.container().stop(seconds(5)), "SIGTERM ends it");
    let acknowledged = pod.acknowledged();
    assert!(data::records(&source.read("checkpoints/log")).contains(&acknowledged));
}
