//! A server that is alive and out of reach: what each share promises holds, whatever its neighbours promise.

use crate::agent::Agent;
use crate::data;
use crate::event::Op;
use crate::node::Node;
use crate::objects;
use crate::pod::Draft;
use crate::site::{Site, Tree};
use crate::wait::{eventually, monotonic, seconds, throughout};

/// Two shares of one export. What is done for the one whose deadline has passed is not done to the one that waits.
pub(super) fn a_deadline_is_its_own_shares_alone() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    let objects = [
        objects::gateway("gw", false, &[&site]),
        objects::share_of("patient", "gw", "checkpoints", "ReadWrite"),
        objects::share_with("brisk", "gw", "checkpoints", "ReadWrite", "policy: bounded, after: 10s"),
    ];
    let agent = Agent::start(&node, &objects.join("---\n"));
    let pod = |share: &str| {
        let draft = Draft::new(share).with_share(&node, &agent, share, false);
        draft.holding(&format!("/mnt/{share}/{share}")).start()
    };
    let (patient, brisk) = (pod("patient"), pod("brisk"));
    patient.writes(seconds(30));
    brisk.writes(seconds(30));

    let since = monotonic();
    site.blackhole();
    let failed = brisk.next("its deadline passes", seconds(40), |event| !event.succeeded());
    assert!(failed.at >= since + 10.0, "the outage began at {since}: {failed:?}");
    patient.blocks_in_fsync(seconds(12));
    patient.never_failed(Op::Write);

    site.heal();
    patient.writes(seconds(100));
    brisk.writes(seconds(100));
    patient.never_failed(Op::Write);
    patient.container().stop(seconds(10));
    patient.lost_nothing(&site.read("checkpoints/patient"));
    patient.delete(&agent, seconds(10));
    brisk.delete(&agent, seconds(10));
}

/// Write A, partition, fail over, write B, heal, read: B. One A was acknowledged, one was still on its way.
pub(super) fn old_data_never_overwrites_new() {
    const FILES: [&str; 2] = ["synced", "late"];
    let node = Node::new("node1");
    let tree = Tree::new("shared");
    let (a, b) = (Site::serving(&node, "a", tree.clone()), Site::serving(&node, "b", tree.clone()));
    let agent = Agent::start(&node, &objects::usual(true, &[&a, &b]));
    let draft = |name: &str| Draft::new(name).with_share(&node, &agent, "checkpoints", false);
    let first = draft("first").putting("/mnt/checkpoints/synced", "A").leaving("/mnt/checkpoints/late", "A").start();
    for op in [Op::Dirty, Op::Write] {
        first.after(0, "has written", seconds(30), |event| event.op == op && event.succeeded());
    }
    assert_eq!(agent.target("checkpoints"), "a");
    assert_eq!(tree.read("checkpoints/late"), b"", "it is on its way, and for half a minute nothing sends it");

    a.blackhole();
    eventually("it fails over", seconds(45), || match agent.target("checkpoints").as_str() {
        "b" => Ok(()),
        other => Err(other.to_owned()),
    });
    let mut second = draft("second");
    for file in FILES {
        second = second.putting(&format!("/mnt/checkpoints/{file}"), "B");
    }
    let second = second.reading("/mnt/checkpoints/synced").reading("/mnt/checkpoints/late").start();
    let is_new = || {
        let of = |file: &str| data::verify(&tree.read(&format!("checkpoints/{file}")));
        let seen = FILES.map(of);
        if seen.iter().all(|tag| tag.as_deref() == Ok("B")) { Ok(()) } else { Err(seen) }
    };
    eventually("B is written", seconds(45), is_new);

    a.heal();
    // Longer than the kernel keeps what is not written, and than the old server's lease.
    throughout("B stays", seconds(45), is_new);
    for file in FILES {
        second.reads_at(&format!("/mnt/checkpoints/{file}"), "B", seconds(10));
    }
    first.delete(&agent, seconds(10));
    throughout("what the first still held goes nowhere", seconds(3), is_new);
    second.delete(&agent, seconds(10));
}
