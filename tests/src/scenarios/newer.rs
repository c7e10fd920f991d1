//! What only newer kernels do, or would do if they were not told otherwise.

use std::fs;

use nix::errno::Errno;

use crate::agent::Agent;
use crate::command::sh;
use crate::container::{Bind, Container, Propagation, Spec};
use crate::data;
use crate::event::Op;
use crate::kit;
use crate::mounts::{self, Mount};
use crate::node::{INNER, Node};
use crate::objects;
use crate::pod::Draft;
use crate::site::Site;
use crate::wait::{eventually, seconds, throughout};

/// From a server's death to a pod that reads the next one.
const RECOVERY: std::time::Duration = seconds(45);

/// Where the agent keeps its network namespaces.
const NAMESPACES: &str = "/run/moorline/node/netns";

/// The kernel does so by itself to one that is being mounted while the last other superblock of its client is ended for good.
pub(super) fn what_the_kernel_has_ended_is_mounted_anew() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let pod = Draft::new("reader").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads("a", seconds(30));

    let device = &pod.mounts_at("/mnt/datasets").pop().expect("a mount").device;
    sh(&format!(
        "nsenter --net={NAMESPACES}/gw.a.1 unshare --mount sh -ec '
            mount -t sysfs sysfs /mnt
            echo 1 >/mnt/fs/nfs/{device}/shutdown'"
    ));
    let failed = pod.next("fails", seconds(10), |event| event.op == Op::Read && !event.succeeded());
    assert_eq!(failed.errno, Errno::EIO as i32);
    pod.reads("a", seconds(40));
    pod.delete(&agent, seconds(10));
}

/// The new mount goes beneath the old one, which goes away: nobody sees two, though the directory is locked by a call
/// that waits for the dead server. What is still open on the old one fails, and waits for nobody.
pub(super) fn one_layer_is_left() {
    let node = Node::new("node1");
    let (mut a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    for site in [&a, &b] {
        site.tree().folder("datasets/part");
        site.put("datasets/part/sample", &data::file(site.name(), 50_000));
        site.put("datasets/sample", &data::file(site.name(), 50_000));
    }
    let agent = Agent::start(&node, &objects::usual(false, &[&a, &b]));
    let early = stranger("early");
    let pod = Draft::new("searcher")
        .with_share(&node, &agent, "datasets", true)
        .with_sub_path("datasets", "part", "/mnt/part", true)
        .reading("/mnt/datasets/sample")
        .reading("/mnt/part/sample")
        .searching("/mnt/datasets/nothing")
        .keeping("/mnt/datasets/sample")
        .trespassing("/mnt/datasets/never")
        .start();
    let follower = Draft::new("follower")
        .publishing(&node, &agent, "datasets", true)
        .following("datasets")
        .reading("/mnt/datasets/sample")
        .start();
    let late = stranger("late");
    pod.reads_at("/mnt/part/sample", "a", seconds(30));
    follower.reads("a", seconds(30));
    pod.next("searches", seconds(30), |event| event.op == Op::Search && event.succeeded());
    pod.next("keeps a descriptor", seconds(30), |event| event.op == Op::Keep && event.succeeded());

    a.die();
    pod.reads_at("/mnt/datasets/sample", "b", RECOVERY);
    pod.reads_at("/mnt/part/sample", "b", RECOVERY);
    follower.reads("b", RECOVERY);
    pod.next("searches on", seconds(10), |event| event.op == Op::Search && event.succeeded());
    let searches = pod.events_of(Op::Search);
    assert!(searches.iter().any(|event| event.took > 1.0), "a search must have waited for the dead server");

    let targets: Vec<String> = pod.targets().chain(follower.targets()).map(|path| path.display().to_string()).collect();
    let expected = format!("{}:/datasets", b.server());
    eventually("one layer is left everywhere, and nothing of the old server", seconds(15), || {
        let pod_pid = pod.container().pid().to_string();
        let mut places =
            vec![pod.mounts_at("/mnt/datasets"), pod.mounts_at("/mnt/part"), follower.mounts_at("/mnt/datasets")];
        places.extend(targets.iter().map(|target| at("self", target)));
        let all = ["self", &pod_pid, &early.pid().to_string(), &late.pid().to_string()].map(mounts::of).concat();
        let old: Vec<Mount> = all.into_iter().filter(|mount| mount.source.starts_with(&a.server())).collect();
        let clean = places.iter().all(|layers| layers.len() == 1 && layers[0].source.starts_with(&expected));
        if clean && old.is_empty() { Ok(()) } else { Err((places, old)) }
    });
    for stranger in [&early, &late] {
        let seen = mounts::of(&stranger.pid().to_string());
        for target in &targets {
            let layers: Vec<&Mount> =
                seen.iter().filter(|mount| mount.point.ends_with(target) && !mount.is_seal()).collect();
            assert_eq!(layers.len(), 1, "a stranger sees {target} as the node has it: {layers:?}");
        }
    }
    let refused = pod.next("tries to write", seconds(10), |event| event.op == Op::Trespass);
    assert_eq!(refused.errno, Errno::EROFS as i32, "read-only stays read-only: {refused:?}");
    // The old superblock has no mount by which it could be aborted now: it must fail by itself, again and again.
    for _ in 0..3 {
        let failed = pod.next("reads its old descriptor", seconds(5), |event| event.op == Op::Keep);
        assert_eq!(failed.errno, Errno::EIO as i32, "{failed:?}");
    }
    assert!(pod.container().alive());
    pod.delete(&agent, seconds(10));
    follower.delete(&agent, seconds(10));
}

/// Somebody who has the node's kubelet directory, as a node-exporter has it.
fn stranger(name: &str) -> Container {
    let shown =
        Bind { propagation: Propagation::HostToContainer, ..Bind::new("/var/lib/kubelet", "/mnt/var/lib/kubelet") };
    let app = Bind::new(kit::executable("app"), "/app").read_only();
    Container::start(name, &Spec { args: vec!["/app".into()], binds: vec![app, shown.read_only()], ..Spec::default() })
}

fn at(pid: &str, point: &str) -> Vec<Mount> {
    mounts::of(pid).into_iter().filter(|mount| mount.point == point && !mount.is_seal()).collect()
}

/// Newer kernels end a hard mount for ever that was made outside the first network namespace, when its network says that
/// it is down. Ours must wait, as hard promises.
pub(super) fn hard_mount_outlives_its_network() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let pod = Draft::new("patient")
        .with_share(&node, &agent, "datasets", true)
        .with_share(&node, &agent, "checkpoints", false)
        .reading("/mnt/datasets/sample")
        .holding("/mnt/checkpoints/log")
        .start();
    pod.reads("a", seconds(30));
    pod.writes(seconds(30));

    take_network_away(&site);
    pod.blocks(Op::Read, seconds(2));
    pod.blocks_in_fsync(seconds(1));
    let known = pod.events().len();
    throughout("nothing fails, and nothing succeeds", seconds(60), || {
        pod.events().into_iter().nth(known).map_or(Ok(()), Err)
    });

    give_network_back(&site);
    pod.reads("a", seconds(60));
    pod.writes(seconds(60));
    pod.never_failed(Op::Read);
    pod.never_failed(Op::Write);
    pod.lost_nothing(&site.read("checkpoints/log"));
    pod.delete(&agent, seconds(10));
}

#[track_caller]
fn take_network_away(site: &Site) {
    in_namespace(&format!(
        "ip route del {server} dev moorline0; ip addr del {INNER}/32 dev moorline0; ip link set moorline0 down
         ! ip route get {server}",
        server = site.server()
    ));
}

#[track_caller]
fn give_network_back(site: &Site) {
    in_namespace(&format!(
        "ip link set moorline0 up; ip addr add {INNER}/32 dev moorline0; ip route add {} dev moorline0",
        site.server()
    ));
}

/// In the one namespace that the agent made.
#[track_caller]
fn in_namespace(script: &str) {
    let names = fs::read_dir(NAMESPACES).unwrap_or_else(|error| panic!("read {NAMESPACES}: {error}"));
    let paths: Vec<_> = names.flatten().map(|entry| entry.path()).collect();
    let [path] = &paths[..] else { panic!("{NAMESPACES} holds {paths:?}, and not one namespace") };
    sh(&format!("nsenter --net={} sh -ec '{script}'", path.display()));
}
