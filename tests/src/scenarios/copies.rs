//! A share's server dies, and containers hold of it what they were given: a part, a file, a share with something on it.

use nix::errno::Errno;

use crate::agent::Agent;
use crate::container::Bind;
use crate::data;
use crate::event::Op;
use crate::mounts::{self, Mount};
use crate::node::Node;
use crate::objects;
use crate::pod::{Draft, Pod};
use crate::site::{Site, Tree};
use crate::wait::{eventually, now, seconds};

/// From a server's death to a pod that reads the next one.
const RECOVERY: std::time::Duration = seconds(45);

pub(super) fn sub_path_stays_what_it_was() {
    let node = Node::new("node1");
    let tree_a = Tree::new("a");
    let tree_b = Tree::new("b").with_export_of("checkpoints", &tree_a);
    for (tree, tag) in [(&tree_a, "a"), (&tree_b, "b")] {
        tree.folder("datasets/part");
        tree.put("datasets/sample", &data::file("whole", 50_000));
        tree.put("datasets/part/sample", &data::file(tag, 50_000));
        tree.put("datasets/single", &data::file(tag, 50_000));
    }
    tree_a.folder("checkpoints/part");
    let mut a = Site::serving(&node, "a", tree_a.clone());
    let b = Site::serving(&node, "b", tree_b);
    let agent = Agent::start(&node, &objects::usual(true, &[&a, &b]));
    let pod = Draft::new("parts")
        .publishing(&node, &agent, "datasets", true)
        .publishing(&node, &agent, "checkpoints", false)
        .with_sub_path("datasets", "part", "/mnt/datasets", true)
        .with_sub_path("datasets", "single", "/mnt/single", true)
        .with_sub_path("checkpoints", "part", "/mnt/checkpoints", false)
        .with_sub_path("checkpoints", "part", "/mnt/view", true)
        .reading("/mnt/datasets/sample")
        .reading("/mnt/single")
        .writing("/mnt/checkpoints/log")
        .trespassing("/mnt/datasets/never")
        .trespassing("/mnt/view/never")
        .start();
    pod.reads_at("/mnt/datasets/sample", "a", seconds(30));
    pod.reads_at("/mnt/single", "a", seconds(30));
    pod.writes(seconds(30));
    let before = holds_parts_of(&pod, &a);

    a.die();
    pod.reads_at("/mnt/datasets/sample", "b", RECOVERY);
    pod.reads_at("/mnt/single", "b", RECOVERY);
    let number_before = pod.acknowledged();
    pod.next("writes to the other", RECOVERY, |event| {
        event.op == Op::Write
            && event.succeeded()
            && event.tag.parse().is_ok_and(|number: u64| number > number_before + 1)
    });
    // A flag more is welcome: a runtime that makes a bind read-only drops nosuid and nodev, and the new mount has them.
    for (now, before) in holds_parts_of(&pod, &b).iter().zip(before) {
        let lost = before.split(',').find(|flag| !now.split(',').any(|kept| kept == *flag));
        assert_eq!(lost, None, "the flags were {before:?} and are {now:?}");
    }
    // Kubelet takes one layer away, and would wait for the dead server at a second one below.
    eventually("kubelet's own binds are of the other alone", seconds(15), || {
        let layers: Vec<_> = pod.sub_paths().map(|place| mounts::at(place)).collect();
        let is_moved = |layers: &Vec<Mount>| matches!(&layers[..], [only] if only.source.starts_with(&b.server()));
        if layers.iter().all(is_moved) { Ok(()) } else { Err(layers) }
    });
    for path in ["/mnt/datasets/never", "/mnt/view/never"] {
        let refused = pod.next("tries to write", seconds(10), |event| event.path == path);
        assert_eq!(refused.errno, Errno::EROFS as i32, "read-only stays read-only: {refused:?}");
    }
    let whole = pod.events_of(Op::Read).into_iter().find(|event| event.tag == "whole");
    assert_eq!(whole, None, "a part must not become the whole");
    pod.container().stop(seconds(10));
    pod.lost_nothing(&tree_a.read("checkpoints/part/log"));
    assert!(tree_a.try_read("checkpoints/log").is_none(), "what was written to a part is not in it");
    pod.delete(&agent, seconds(10));
}

/// Panics if a part is not that part of the site's share, and returns the flags of each.
#[track_caller]
fn holds_parts_of(pod: &Pod, site: &Site) -> Vec<String> {
    let parts = [
        ("/mnt/datasets", "datasets/part"),
        ("/mnt/single", "datasets/single"),
        ("/mnt/checkpoints", "checkpoints/part"),
        ("/mnt/view", "checkpoints/part"),
    ];
    let flags = parts.iter().map(|(at, part)| {
        let mount = pod.mounts_at(at).pop().unwrap_or_else(|| panic!("nothing is mounted at {at}"));
        assert_eq!(mount.source, format!("{}:/{part}", site.server()), "at {at}: {mount:?}");
        mount.own
    });
    flags.collect()
}

pub(super) fn sub_path_that_is_missing_is_left_alone() {
    let node = Node::new("node1");
    let (mut a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    a.tree().folder("datasets/only-there");
    a.put("datasets/only-there/sample", &data::file("part", 50_000));
    a.put("datasets/sample", &data::file("a", 50_000));
    b.put("datasets/sample", &data::file("b", 50_000));
    let agent = Agent::start(&node, &objects::usual(false, &[&a, &b]));
    let pod = Draft::new("part")
        .with_share(&node, &agent, "datasets", true)
        .with_sub_path("datasets", "only-there", "/mnt/part", true)
        .reading("/mnt/datasets/sample")
        .reading("/mnt/part/sample")
        .start();
    let other = Draft::new("whole").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads_at("/mnt/part/sample", "part", seconds(30));
    pod.reads_at("/mnt/datasets/sample", "a", seconds(30));
    other.reads("a", seconds(30));
    let there = pod.mounts_at("/mnt/part");

    a.die();
    other.reads("b", RECOVERY);
    pod.reads_at("/mnt/datasets/sample", "b", RECOVERY);
    agent_says(&agent, &["only-there"]);
    let told = agent.events();
    assert!(told.iter().any(|event| event["kind"] == "FailedOver"), "all others moved: {told:?}");
    assert_eq!(pod.mounts_at("/mnt/part"), there, "what has no successor keeps its place");
    let wrong = pod.events().into_iter().find(|event| event.path == "/mnt/part/sample" && event.tag == "b");
    assert_eq!(wrong, None, "a part must not become the whole");
    goes_in_time(pod, &agent);
    other.delete(&agent, seconds(10));
}

pub(super) fn what_is_mounted_below_is_not_hidden() {
    let node = Node::new("node1");
    let (mut a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    for site in [&a, &b] {
        site.tree().folder("datasets/cache");
        site.put("datasets/cache/sample", &data::file("hidden", 50_000));
        site.put("datasets/sample", &data::file(site.name(), 50_000));
    }
    let local = Tree::new("local");
    local.put("datasets/sample", &data::file("local", 50_000));
    let agent = Agent::start(&node, &objects::usual(false, &[&a, &b]));
    let pod = Draft::new("covered")
        .with_share(&node, &agent, "datasets", true)
        .with_bind(Bind::new("/srv/local/datasets", "/mnt/datasets/cache"))
        .reading("/mnt/datasets/cache/sample")
        .start();
    let other = Draft::new("plain").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads("local", seconds(30));
    other.reads("a", seconds(30));
    let there = pod.mounts_at("/mnt/datasets");

    a.die();
    other.reads("b", RECOVERY);
    agent_says(&agent, &["/mnt/datasets/cache"]);
    assert_eq!(pod.mounts_at("/mnt/datasets"), there, "what is mounted below would be covered");
    let wrong = pod.events().into_iter().find(|event| event.tag == "hidden");
    assert_eq!(wrong, None, "the application sees the share where it has mounted something else");
    goes_in_time(pod, &agent);
    other.delete(&agent, seconds(10));
}

/// One line of its log, a warning or worse, has all these words.
#[track_caller]
fn agent_says(agent: &Agent, words: &[&str]) {
    eventually(&format!("the agent's log names {words:?}"), seconds(15), || {
        let log = agent.logs();
        let grave = |line: &&str| line.contains("WARN") || line.contains("ERROR");
        let found = log.lines().filter(grave).any(|line| words.iter().all(|word| line.contains(word)));
        if found { Ok(()) } else { Err(log.lines().last().map(str::to_owned)) }
    });
}

#[track_caller]
fn goes_in_time(pod: Pod, agent: &Agent) {
    let (grace, began) = (seconds(15), now());
    pod.delete(agent, grace);
    let took = now() - began;
    assert!(took < grace, "grace was {grace:?}, gone after {took:?}");
}
