//! A node where SELinux enforces.

use nix::errno::Errno;

use crate::agent::Agent;
use crate::command::sh;
use crate::data;
use crate::event::{Event, Op};
use crate::mounts;
use crate::node::Node;
use crate::objects;
use crate::pod::{Draft, Pod, volume};
use crate::selinux;
use crate::site::{Site, Tree};
use crate::wait::{eventually, seconds};

const LABEL: &str = "context=system_u:object_r:container_file_t:s0";

/// Confined containers use shares, before and after a failover; the same one is refused what has no such label.
pub(super) fn confined_containers_use_shares() {
    selinux::enforce();
    let node = Node::new("node1");
    let tree = Tree::new("shared");
    let (mut a, mut b) = (Site::serving(&node, "a", tree.clone()), Site::serving(&node, "b", tree.clone()));
    tree.put("datasets/sample", &data::file("data", 50_000));
    let others = Site::start(&node, "others");
    others.put("datasets/sample", &data::file("others", 50_000));
    sh(&format!(
        "mkdir /mnt/plain; mount -t nfs4 -o vers=4.1,nosharecache {}:/datasets /mnt/plain",
        others.direct_server()
    ));
    let objects = objects::usual(true, &[&a, &b]);

    let mut agent = Agent::start_with(&node, &objects, &["--selinux-label", "system_u:object_r:no_such_t:s0"]);
    let early = volume(&node, "worker", "datasets", true);
    eventually("a label that the policy does not know is named, with the cure", seconds(30), || {
        let said = agent.csi().publish(&early).map_err(|status| status.message().to_owned()).err().unwrap_or_default();
        let named = ["no_such_t", "--selinux-label", "container-selinux"].iter().all(|word| said.contains(word));
        if named { Ok(()) } else { Err(said) }
    });
    agent.kill9();
    let (code, said) = agent.as_any_container();
    assert_eq!(code, Some(4), "an agent without its type ends: {said}");
    assert!(said.contains("spc_t"), "it names the type: {said}");

    let agent = Agent::start(&node, &objects);
    let worker = Draft::new("worker")
        .with_share(&node, &agent, "datasets", true)
        .with_share(&node, &agent, "checkpoints", false)
        .with_bind(crate::container::Bind::new("/mnt/plain", "/mnt/plain"))
        .reading("/mnt/datasets/sample")
        .writing("/mnt/checkpoints/log")
        .reading("/mnt/plain/sample")
        .trespassing("/mnt/plain/never")
        .start();
    let reader =
        Draft::new("reader").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    let uses_shares = |pod: &Pod| {
        pod.reads_at("/mnt/datasets/sample", "data", seconds(45));
    };
    uses_shares(&worker);
    uses_shares(&reader);
    worker.writes(seconds(30));
    let [one, other] = [&worker, &reader].map(|pod| selinux::of_process(&pod.container().pid().to_string()));
    assert!(one.contains(":container_t:s0:c") && other.contains(":container_t:s0:c"), "{one} and {other}");
    assert_ne!(one, other, "no container has what is another's alone");
    let refused = |event: &Event| event.path.starts_with("/mnt/plain") && event.errno == Errno::EACCES as i32;
    worker.next("may not read what is not for containers", seconds(10), |event| event.op == Op::Read && refused(event));
    worker.next("nor write there", seconds(10), |event| event.op == Op::Trespass && refused(event));
    all_are_labelled(2);

    if agent.target("checkpoints") == "a" {
        a.die()
    } else {
        b.die()
    }
    let before = worker.acknowledged();
    worker.next("writes to the other", seconds(45), |event| {
        event.op == Op::Write && event.succeeded() && event.tag.parse().is_ok_and(|number: u64| number > before + 1)
    });
    uses_shares(&worker);
    uses_shares(&reader);
    assert_eq!(agent.tells("FailedOver", seconds(10))["kind"], "FailedOver");
    all_are_labelled(2);

    // It is SELinux alone that refuses the rest.
    selinux::permit();
    worker.reads_at("/mnt/plain/sample", "others", seconds(10));
    // What is mounted now is to outlive the return of enforcing.
    let late = Draft::new("late").with_share(&node, &agent, "checkpoints", false).writing("/mnt/checkpoints/late");
    let late = late.start();
    late.writes(seconds(30));
    all_are_labelled(3);

    sh("umount -l /mnt/plain");
    for pod in [late, reader] {
        pod.delete(&agent, seconds(10));
    }
    worker.container().stop(seconds(10));
    worker.lost_nothing(&tree.read("checkpoints/log"));
}

/// Every mount of ours on the node, of so many superblocks at least.
#[track_caller]
fn all_are_labelled(least: usize) {
    let base = |mount: &mounts::Mount| mount.point.starts_with("/run/moorline/node/mounts/");
    let ours: Vec<_> = mounts::of("self").into_iter().filter(base).collect();
    assert!(ours.len() >= least, "{ours:?}");
    for mount in ours {
        assert!(mount.options.split(',').any(|option| option == LABEL), "{mount:?}");
    }
}
