//! The life of a node: it boots, it loses pods unseen, it shuts down, and it is one of many.

use std::fs;
use std::path::Path;
use std::thread;

use moorline_shared::plan::Jitter;
use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};
use tonic::Code;

use crate::agent::Agent;
use crate::command::sh;
use crate::data;
use crate::event::Op;
use crate::logind::Logind;
use crate::mounts;
use crate::node::Node;
use crate::objects;
use crate::pod::{Draft, publish, volume};
use crate::site::Site;
use crate::wait::{eventually, now, seconds, throughout};

const NODE: &str = "/run/moorline/node";

/// The file systems that the agent has mounted for itself.
fn bases() -> Vec<String> {
    let below = format!("{NODE}/mounts/");
    mounts::of("self").into_iter().map(|mount| mount.point).filter(|point| point.starts_with(&below)).collect()
}

#[track_caller]
fn detach(point: &str) {
    let left = mounts::of("self").iter().filter(|mount| mount.point == point).count().saturating_sub(1);
    let path = point.to_owned();
    // The last mount of a server that is out of reach is gone at once, and the call goes on asking the server.
    thread::spawn(move || umount2(path.as_str(), MntFlags::MNT_DETACH));
    eventually(&format!("{point} is detached"), seconds(10), || {
        let now = mounts::of("self").iter().filter(|mount| mount.point == point).count();
        if now == left { Ok(()) } else { Err(now) }
    });
}

/// Nodes that lose one server go to the other one after the other.
pub(super) fn waits_its_turn() {
    let spread = seconds(12);
    let turn = |machine: u32| Jitter::new(format!("node1/{machine}"), spread);
    let server = "gw.a.1".parse().expect("a namespace");
    let late = |machine: &u32| (seconds(6)..seconds(8)).contains(&turn(*machine).before_leaving(&server));
    let machine = (0..).find(late).expect("a machine whose turn is late");
    fs::write("/etc/machine-id", format!("{machine}\n")).expect("name the machine");
    let node = Node::new("node1");
    let (mut a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    a.put("datasets/sample", &data::file("a", 50_000));
    b.put("datasets/sample", &data::file("b", 50_000));
    let agent = Agent::start_with(&node, &objects::usual(true, &[&a, &b]), &["--recovery-jitter", "12s"]);
    let pod = Draft::new("reader").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads("a", seconds(30));

    a.die();
    agent.tells("ServerAway", seconds(30));
    let away = now();
    eventually("it says what it waits for", seconds(10), || {
        let events = agent.events();
        let waits = |event: &Value| event["message"].as_str().is_some_and(|text| text.contains("one after the other"));
        if events.iter().any(waits) { Ok(()) } else { Err(events) }
    });
    agent.tells("FailedOver", seconds(30));
    let waited = now() - away;
    // It counts from when the server was given up, which is seen a little later.
    assert!(waited > seconds(4), "it moved after {waited:?}");
    pod.reads("b", seconds(10));
    pod.delete(&agent, seconds(10));
}

/// The node has booted, and what was written down before lies where it lay: on a disk, say, that somebody mounted there.
pub(super) fn boots_and_forgets() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let mut agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let (bound, gone) = (volume(&node, "bound", "datasets", true), volume(&node, "gone", "checkpoints", false));
    publish(&agent, &bound);
    publish(&agent, &gone);
    agent.kill9();
    // A crash is none: what is on record comes back.
    detach(&gone.target.display().to_string());
    agent.restart();
    eventually("it is published again", seconds(30), || {
        // The seal is there all the while.
        if mounts::at(&gone.target).is_empty() { Err("not there") } else { Ok(()) }
    });
    agent.kill9();

    // Of one of them the seal is left.
    for target in [&bound.target, &bound.target, &gone.target] {
        detach(&target.display().to_string());
    }
    let of_the_boot = |point: &str| {
        let part = point.strip_prefix(NODE).unwrap_or_default();
        part.starts_with("/mounts/") || part.starts_with("/netns/")
    };
    mounts::of("self").into_iter().filter(|mount| of_the_boot(&mount.point)).for_each(|mount| detach(&mount.point));
    fs::write(format!("{NODE}/fenced/gw.a.1"), "").expect("leave a mark");
    sh("echo 11111111-2222-4333-8444-555555555555 >/run/boot_id
        mount --bind /run/boot_id /proc/sys/kernel/random/boot_id");
    agent.restart();
    let told = agent.tells("EarlierBoot", seconds(10));
    assert!(told["message"].as_str().is_some_and(|text| text.contains("2 publications")), "{told}");
    throughout("nothing comes back unasked", seconds(3), || {
        let listed = agent.api("GET", "/v1/publications", None).1;
        if listed == json!({ "publications": [] }) && bases().is_empty() { Ok(()) } else { Err((listed, bases())) }
    });
    // Kubelet asks for what is still bound, and gives the other back.
    let pod = Draft::new("bound").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads("a", seconds(30));
    agent.csi().unpublish(&gone.target).expect("what is not there is given back");
    assert!(!mounts::is_mounted(&gone.target));

    // The same boot is told once.
    agent.restart();
    let told = agent.events();
    assert!(!told.iter().any(|event| event["kind"] == "EarlierBoot"), "{told:?}");
    pod.reads("a", seconds(30));
    pod.never_failed(Op::Read);
    pod.delete(&agent, seconds(10));
}

/// Of a pod that is gone the agent keeps nothing; of all else it takes nothing.
pub(super) fn keeps_nothing_of_pods_that_are_gone() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let mut agent = Agent::start_with(&node, &objects::usual(false, &[&site]), &["--orphan-patience", "3s"]);
    let pod = Draft::new("stays")
        .with_share(&node, &agent, "datasets", true)
        .with_share(&node, &agent, "checkpoints", false)
        .reading("/mnt/datasets/sample")
        .writing("/mnt/checkpoints/log")
        .start();
    pod.reads("a", seconds(30));
    let (gone, strange, lost) = (
        volume(&node, "gone", "checkpoints", false),
        volume(&node, "strange", "datasets", true),
        volume(&node, "lost", "checkpoints", false),
    );
    for volume in [&gone, &lost] {
        publish(&agent, volume);
    }
    let strange = strange.target.with_file_name("of-somebody-else");
    sh(&format!("mkdir -p {0}; mount -t tmpfs other {0}; echo kept >{0}/file", strange.display()));
    assert_eq!(bases().len(), 4);

    // One whose record is lost, and whose pod's directory is there: nobody says that it is gone.
    agent.kill9();
    let records = fs::read_dir(format!("{NODE}/publications")).expect("records").flatten();
    let of_lost = records
        .map(|record| record.path())
        .find(|record| fs::read_to_string(record).is_ok_and(|text| text.contains("uid-of-lost")));
    fs::remove_file(of_lost.expect("its record")).expect("lose it");
    agent.restart();
    // One whose pod's directory was cleared away by somebody, while kubelet was not there.
    detach(&gone.target.display().to_string());
    let pods = Path::new("/var/lib/kubelet/pods");
    let mut directory = gone.target.as_path();
    while directory != pods {
        // The agent may have taken the first one away by itself already, or put it there once more.
        let _ = umount2(directory, MntFlags::MNT_DETACH);
        match fs::remove_dir(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("remove {directory:?}: {error}"),
            _ => directory = directory.parent().expect("below the pods"),
        }
    }
    let told = agent.tells("Orphaned", seconds(30));
    assert_eq!(told["pod"]["uid"], "uid-of-gone", "{told}");
    eventually("nothing of it is left", seconds(20), || {
        let listed = agent.api("GET", "/v1/publications", None).1.to_string();
        if bases().len() == 3 && !listed.contains("\"gone\"") { Ok(()) } else { Err((bases(), listed)) }
    });
    throughout("nothing else goes", seconds(8), || {
        let told: Vec<Value> = agent.events().into_iter().filter(|event| event["kind"] == "Orphaned").collect();
        let there = mounts::is_mounted(&lost.target)
            && mounts::is_mounted(&strange)
            && pod.targets().all(|target| mounts::is_mounted(target));
        if there && told.len() == 1 && bases().len() == 3 { Ok(()) } else { Err((told, bases())) }
    });
    assert_eq!(sh(&format!("cat {}/file", strange.display())).trim(), "kept");
    pod.writes(seconds(10));
    pod.never_failed(Op::Read);
    pod.never_failed(Op::Write);
    pod.delete(&agent, seconds(10));
}

/// logind says that the node goes down, and waits for us: what a pod wrote and never synced is on its server.
pub(super) fn shuts_down_in_order() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let logind = Logind::start(30);
    let agent = Agent::start(&node, &objects::usual(false, &[&site]));
    logind.is_held_by_moorline();
    let pod = Draft::new("careless")
        .with_share(&node, &agent, "datasets", true)
        .with_share(&node, &agent, "checkpoints", false)
        .reading("/mnt/datasets/sample")
        .dirtying("/mnt/checkpoints/unsynced")
        .start();
    pod.reads("a", seconds(30));
    pod.after(0, "has written", seconds(30), |event| event.op == Op::Dirty && event.succeeded());
    let targets: Vec<_> = pod.targets().cloned().collect();
    let unsynced = || site.tree().try_read("checkpoints/unsynced").unwrap_or_default();
    assert!(data::records(&unsynced()).is_empty(), "the kernel has it, and has not sent it");

    logind.power_off();
    let began = now();
    let told = agent.tells("ShuttingDown", seconds(10));
    // At once, while the pod lives and its volumes are there; the kernel by itself would take half a minute.
    eventually("what it wrote is on the server", seconds(10), || {
        let there = data::records(&unsynced());
        if there.is_empty() { Err(there) } else { Ok(()) }
    });
    assert!(targets.iter().all(|target| mounts::is_mounted(target)), "a pod has half of the time");
    let refused = agent.csi().publish(&volume(&node, "late", "datasets", true));
    let refused = refused.expect_err("nothing is published any more");
    assert_eq!(refused.code(), Code::Unavailable, "{told}: {refused}");
    assert!(refused.message().contains("shutting down"), "{refused}");
    let down = logind.goes_down(1) - began;
    // Its container did not end: it was given half of the time, and no more than all of it.
    assert!((seconds(15)..seconds(30)).contains(&down), "the node was held up for {down:?}");
    let told = agent.tells("LetGo", seconds(5));
    assert_eq!(told["gravity"], "Warning", "the container still holds its mounts: {told}");

    // It is called off: all is as before, in the same container.
    agent.tells("GoesOn", seconds(10));
    eventually("its volumes are published again", seconds(30), || {
        let missing: Vec<_> = targets.iter().filter(|target| !mounts::is_mounted(target)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    });
    pod.reads("a", seconds(30));
    logind.is_held_by_moorline();
    pod.delete(&agent, seconds(10));

    // Once more, with nobody there: the node is not held up.
    let idle = Draft::new("idle").publishing(&node, &agent, "checkpoints", false);
    logind.power_off();
    let began = now();
    let down = logind.goes_down(2) - began;
    assert!(down < seconds(15), "nobody was there, and the node was held up for {down:?}");
    let gravities =
        || agent.events().into_iter().filter(|event| event["kind"] == "LetGo").map(|event| event["gravity"].clone());
    eventually("all is let go of", seconds(5), || {
        gravities().any(|gravity| gravity == "Info").then_some(()).ok_or("not yet")
    });
    drop(idle);
}

/// A server that is away does not hold up a node that goes down, and what can't be flushed is ended.
pub(super) fn shuts_down_without_its_server() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    let logind = Logind::start(60);
    let mut agent = Agent::start(&node, &objects::usual(false, &[&site]));
    logind.is_held_by_moorline();
    let pod =
        Draft::new("stuck").with_share(&node, &agent, "checkpoints", false).holding("/mnt/checkpoints/log").start();
    pod.writes(seconds(30));
    site.blackhole();
    pod.blocks_in_fsync(seconds(1));
    agent.tells("ServerAway", seconds(30));

    logind.power_off();
    let began = now();
    agent.tells("ShuttingDown", seconds(10));
    // Kubelet ends the agent among the last: the pods had their time. It ends when it has done what can be done.
    let known = pod.events().len();
    agent.stop(seconds(20));
    let down = logind.goes_down(1) - began;
    assert!(down < seconds(20), "the node was held up for {down:?}");
    pod.after(known, "its fsync ends", seconds(10), |event| event.op == Op::Write && !event.succeeded());
    assert!(pod.targets().all(|target| !mounts::is_mounted(target)));
    pod.container().stop(seconds(5));
}

/// Without logind the agent says so once, and does all the rest.
pub(super) fn without_logind() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    let agent = Agent::start(&node, &objects::usual(false, &[&site]));
    eventually("it is said", seconds(15), || {
        let logs = agent.logs();
        if logs.contains("a shutdown of the node is not recognised") { Ok(()) } else { Err(logs) }
    });
    // It appears later, as on a node whose bus is restarted.
    let logind = Logind::start(5);
    logind.is_held_by_moorline();
    let count = agent.logs().matches("not recognised").count();
    assert_eq!(count, 1, "{}", agent.logs());
}
