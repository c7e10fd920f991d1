//! What a publication shows, and what is below it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};
use tonic::Code;

use crate::agent::Agent;
use crate::command::sh;
use crate::container::{Bind, Container, Propagation, Spec};
use crate::csi::Stats;
use crate::data;
use crate::event::{Event, Op};
use crate::kit;
use crate::mounts::{self, Mount};
use crate::node::Node;
use crate::objects;
use crate::pod::{Draft, Pod};
use crate::site::{Site, Tree};
use crate::wait::{eventually, now, seconds, throughout};

/// From a server's death to a pod that reads the next one.
const RECOVERY: std::time::Duration = seconds(45);

/// A directory of a share is published, of one that lets nobody run programs. It stays that directory and so it stays when
/// another server takes over.
pub(super) fn a_part_stays_a_part() {
    let node = Node::new("node1");
    let tree_a = Tree::new("a");
    let tree_b = Tree::new("b").with_export_of("checkpoints", &tree_a);
    for (tree, tag) in [(&tree_a, "a"), (&tree_b, "b")] {
        tree.folder("datasets/deep/part");
        tree.put("datasets/sample", &data::file("whole", 50_000));
        tree.put("datasets/deep/part/sample", &data::file(tag, 50_000));
        tree.put("datasets/deep/part/tool", b"no program, and nobody shall find out");
        sh(&format!("chmod 755 /srv/{tag}/datasets/deep/part/tool"));
    }
    tree_a.folder("checkpoints/part");
    let mut a = Site::serving(&node, "a", tree_a.clone());
    let b = Site::serving(&node, "b", tree_b);
    let parts = [
        objects::gateway("gw", true, &[&a, &b]),
        objects::share_with("datasets", "gw", "datasets", "ReadOnly", "mountOptions: {noexec: true}"),
        objects::share("checkpoints", "gw", "ReadWrite"),
    ];
    let agent = Agent::start(&node, &parts.join("---\n"));
    let draft = |name: &str| Draft::new(name).with_part(&node, &agent, "datasets", "deep/part", false);
    let pod = draft("parts")
        .with_part(&node, &agent, "checkpoints", "part", false)
        .reading("/mnt/datasets/sample")
        .trespassing("/mnt/datasets/never")
        .writing("/mnt/checkpoints/log")
        .start();
    pod.reads("a", seconds(30));
    pod.writes(seconds(30));
    holds_parts_of(&pod, &a);
    let listed = agent.status()["publications"].to_string();
    assert!(listed.contains("\"subDir\":\"deep/part\""), "{listed}");

    a.die();
    pod.reads("b", RECOVERY);
    let before = pod.acknowledged();
    pod.next("writes to the other", RECOVERY, |event| {
        event.op == Op::Write && event.succeeded() && event.tag.parse().is_ok_and(|number: u64| number > before + 1)
    });
    holds_parts_of(&pod, &b);
    let late = draft("late").reading("/mnt/datasets/sample").start();
    late.reads("b", seconds(30));
    let refused = pod.next("tries to write", seconds(10), |event| event.op == Op::Trespass);
    assert_eq!(refused.errno, Errno::EROFS as i32, "read-only stays read-only: {refused:?}");
    let whole = pod.events_of(Op::Read).into_iter().find(|event| event.tag == "whole");
    assert_eq!(whole, None, "a part must not become the whole");
    pod.container().stop(seconds(10));
    pod.lost_nothing(&tree_a.read("checkpoints/part/log"));
    assert!(tree_a.try_read("checkpoints/log").is_none(), "what was written to a part is not in it");
    pod.delete(&agent, seconds(10));
    late.delete(&agent, seconds(10));
}

/// Panics if it does not see the parts of that site's shares alone, or could run a program from the first.
#[track_caller]
fn holds_parts_of(pod: &Pod, site: &Site) {
    for (at, part) in [("/mnt/datasets", "datasets/deep/part"), ("/mnt/checkpoints", "checkpoints/part")] {
        let source = format!("{}:/{part}", site.server());
        let mount = pod.mounts_at(at).pop().unwrap_or_else(|| panic!("nothing is mounted at {at}"));
        assert_eq!(mount.source, source, "at {at}: {mount:?}");
        let flags = eventually("the host shows the same", seconds(15), || {
            let host: Vec<Mount> = pod.targets().flat_map(|target| mounts::at(target)).collect();
            host.iter().find(|mount| mount.source == source).map(|mount| mount.own.clone()).ok_or(host)
        });
        for flags in [flags, mount.own] {
            let no_exec = flags.split(',').filter(|flag| *flag == "noexec").count();
            assert_eq!(no_exec, usize::from(at == "/mnt/datasets"), "{part}: {flags}");
        }
    }
    let run = pod.container().exec(&["/mnt/datasets/tool"]);
    let said = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).to_lowercase();
    assert!(said.contains("permission denied"), "it may be run: {said}");
}

/// Directories for claims are made, put aside and deleted, each by its share's word, and nothing else is touched.
pub(super) fn errands_stay_in_their_share() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    let deletes = objects::share_with("scratch", "gw", "checkpoints", "ReadWrite", "allowDelete: true");
    let mut agent = Agent::start(&node, &format!("{}---\n{deletes}", objects::usual(false, &[&site])));
    let before = mounts::of("self");
    let of_claim = |agent: &Agent, id: &str, share: &str, path: &str, task: Value| {
        let errand = json!({"id": id, "share": share, "subDir": path, "task": task});
        let (status, told) = agent.api("PUT", "/v1/errands", Some(&errand));
        (status, told["did"].as_str().or(told["error"].as_str()).unwrap_or_default().to_owned())
    };
    let ask = |share: &str, path: &str, task: Value| of_claim(&agent, "c1", share, path, task);
    let make = json!({"make": {"uid": 1000, "gid": 1000, "mode": 0o750}});
    let delete = json!({"delete": {"dryRun": false}});
    assert_eq!(ask("scratch", "team/one", make.clone()), (200, "made team/one".into()));
    assert_eq!(
        ask("scratch", "team/one", make.clone()),
        (200, "made team/one".into()),
        "whoever asks again is told the same"
    );
    let made = fs::metadata("/srv/a/checkpoints/team/one").expect("it is on the server");
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1000, 1000, 0o750));

    let (status, said) = ask("datasets", "one", make.clone());
    assert!(status == 409 && said.contains("ReadOnly"), "{status}: {said}");
    let (status, said) = ask("checkpoints", "one", delete.clone());
    assert!(status == 422 && said.contains("spec.allowDelete"), "{status}: {said}");
    let (status, said) = ask("scratch", "../datasets", delete.clone());
    assert!(status == 400 && said.contains("no directory below"), "{status}: {said}");
    sh("ln -s /srv/a/datasets /srv/a/checkpoints/way; mkdir /srv/a/datasets/theirs");
    assert_eq!(ask("checkpoints", "mine", make.clone()), (200, "made mine".into()));
    let (status, said) = ask("scratch", "way/theirs", delete.clone());
    assert!(status == 422 && said.contains("symlink"), "{status}: {said}");

    sh("mkdir -p /srv/a/checkpoints/team/one/deep && touch /srv/a/checkpoints/team/one/deep/file");
    let dry = ask("scratch", "team/one", json!({"delete": {"dryRun": true}}));
    assert_eq!(dry, (200, "team/one would be deleted, with 1 files and 1 directories in it".into()));
    assert_eq!(
        ask("scratch", "team/one", delete.clone()),
        (200, "team/one is deleted, with 1 files and 1 directories in it".into())
    );
    assert_eq!(ask("checkpoints", "mine", json!({"archive": {}})), (200, "mine is archived-mine-c1 now".into()));
    let names = site.tree().names();
    assert!(names.contains("checkpoints/archived-mine-c1") && !names.contains("checkpoints/team/one"), "{names:?}");
    assert!(names.contains("checkpoints/team") && names.contains("datasets/theirs"), "{names:?}");

    // In a directory that all may write to anybody makes a mark.
    sh(
        "cd /srv/a/checkpoints && mkdir -p victim/deep && mkdir -m 700 .moorline-made-c2 && chown 1000:1000 .moorline-made-c2",
    );
    for task in [delete.clone(), json!({"archive": {}})] {
        let (status, said) = of_claim(&agent, "c2", "scratch", "victim", task);
        assert!(status == 422 && said.contains("was not made for this claim"), "{status}: {said}");
    }
    assert!(site.tree().names().contains("checkpoints/victim/deep"));

    // Nobody asks the next agent for it: it may have been thought better of.
    assert_eq!(of_claim(&agent, "c3", "scratch", "team/two", make.clone()), (200, "made team/two".into()));
    eventually("no call of it is on its way", seconds(20), || left_over(&before));
    site.blackhole();
    let (status, said) = of_claim(&agent, "c3", "scratch", "team/two", delete.clone());
    assert_eq!(status, 503, "{said}");
    agent.restart();
    site.heal();
    let made = eventually("the server is back", seconds(60), || {
        let (status, said) = of_claim(&agent, "c4", "scratch", "team/three", make.clone());
        if status == 200 { Ok(said) } else { Err(said) }
    });
    assert_eq!(made, "made team/three");
    throughout("what was to be deleted stays", seconds(3), || {
        let names = site.tree().names();
        if names.contains("checkpoints/team/two") { Ok(()) } else { Err(names) }
    });
    assert_eq!(
        of_claim(&agent, "c3", "scratch", "team/two", delete.clone()),
        (200, "team/two is deleted, with 0 files and 0 directories in it".into()),
        "asked for again it is done"
    );

    site.squash("checkpoints");
    let (status, said) = of_claim(&agent, "c5", "scratch", "squashed", make);
    assert!(status == 422 && said.contains("export with no_root_squash"), "{status}: {said}");
    let unmade = of_claim(&agent, "c5", "scratch", "squashed", json!({"unmake": {}}));
    assert_eq!(unmade, (200, "squashed is not there".into()));
    let nobody = json!({"make": {"uid": 65534, "gid": 65534, "mode": 0o750}});
    assert_eq!(of_claim(&agent, "c6", "scratch", "squashed", nobody), (200, "made squashed".into()));
    let (status, said) = of_claim(&agent, "c6", "scratch", "squashed", delete);
    assert_eq!((status, said.as_str()), (200, "squashed is deleted, with 0 files and 0 directories in it"));
    eventually("nothing is left mounted for it", seconds(20), || left_over(&before));
}

fn left_over(before: &[Mount]) -> Result<(), Vec<Mount>> {
    let left: Vec<Mount> = mounts::of("self").into_iter().filter(|mount| !before.contains(mount)).collect();
    if left.is_empty() { Ok(()) } else { Err(left) }
}

/// What kubelet asks of a volume is answered from what was seen last: how full it is, and what is wrong while its server is
/// away. No question waits for a server.
pub(super) fn what_is_asked_of_a_volume_waits_for_no_server() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let mut agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let pod = Draft::new("reader")
        .with_share(&node, &agent, "datasets", true)
        .with_share(&node, &agent, "checkpoints", false)
        .reading("/mnt/datasets/sample")
        .start();
    pod.reads("a", seconds(30));
    let targets: Vec<_> = pod.targets().cloned().collect();
    let server = statvfs("/srv/a").expect("the server's own file system");
    let size = i64::try_from(server.blocks() * server.fragment_size()).expect("no larger than that");
    let files = i64::try_from(server.files()).expect("no more than that");
    // The client counts in blocks of its own.
    let is_whole = |stats: &Stats| stats.bytes.is_some_and(|bytes| bytes.abs_diff(size) < 1 << 20);
    let csi = agent.csi();
    for target in &targets {
        let stats = csi.stats(target).expect("how the volume is");
        assert!(is_whole(&stats), "{stats:?}, of {size}");
        assert_eq!((stats.files, stats.abnormal), (Some(files), false), "{stats:?}");
    }
    let elsewhere = csi.stats(&targets[0].join("elsewhere")).expect_err("no volume is there");
    assert_eq!(elsewhere.code(), Code::NotFound, "{elsewhere:?}");

    site.blackhole();
    for target in &targets {
        let stats = eventually("it is told that its server is away", seconds(30), || {
            let asked = now();
            let stats = csi.stats(target).expect("how the volume is");
            let waited = now().duration_since(asked);
            assert!(waited < seconds(2), "it waited for {waited:?}");
            if stats.abnormal { Ok(stats) } else { Err(stats) }
        });
        assert!(is_whole(&stats), "{stats:?}, of {size}");
        assert!(stats.message.contains("its server is away") && stats.message.contains(" s ago"), "{stats:?}");
    }
    site.heal();
    let healthy = |agent: &Agent| {
        let csi = agent.csi();
        let stats: Vec<_> = targets.iter().map(|target| csi.stats(target)).collect();
        let well = |stats: &Result<Stats, _>| stats.as_ref().is_ok_and(|it| !it.abnormal && is_whole(it));
        if stats.iter().all(well) { Ok(()) } else { Err(stats) }
    };
    eventually("both are well again", seconds(45), || healthy(&agent));
    agent.restart();
    eventually("the next agent knows it as well", seconds(45), || healthy(&agent));
    pod.delete(&agent, seconds(10));
}

/// Whatever takes a share away from its place, nobody writes to the node's disk there: not root on the node, and not a
/// container that is root and may do what it likes.
pub(super) fn nothing_lands_on_the_nodes_disk() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let mut agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let pod = Draft::new("reader")
        .with_share(&node, &agent, "datasets", true)
        .with_share(&node, &agent, "checkpoints", false)
        .reading("/mnt/datasets/sample")
        .writing("/mnt/checkpoints/log")
        .start();
    pod.reads("a", seconds(30));
    pod.writes(seconds(30));
    let targets: Vec<_> = pod.targets().cloned().collect();
    let capabilities = agent.capabilities().to_vec();

    // With nobody there to put the shares back.
    agent.kill9();
    for target in &targets {
        detach(target);
        assert_eq!(mounts::at(target), [], "the share is gone from its place");
        nobody_writes_to(target);
    }
    let stray = root_in_a_container("stray", &targets[1], &capabilities);
    assert_eq!(stray.errno, Errno::EROFS as i32, "{stray:?}");
    // Without even that, only a root that means to can.
    detach(&targets[0]);
    let mode = fs::metadata(&targets[0]).map(|bare| bare.permissions().mode() & 0o7777);
    assert_eq!(mode.ok(), Some(0), "the bare directory is nobody's");

    pod.never_failed(Op::Read);
    pod.never_failed(Op::Write);
    agent.restart();
    eventually("the shares are back in their places", seconds(30), || {
        let there: Vec<Vec<Mount>> = targets.iter().map(|target| mounts::at(target)).collect();
        let back = there.iter().all(|layers| layers.len() == 1 && layers[0].kind == "nfs4");
        if back { Ok(()) } else { Err(there) }
    });
    pod.reads("a", seconds(30));
    pod.delete(&agent, seconds(10));
    for target in &targets {
        assert!(!target.exists(), "{} is left", target.display());
    }
}

#[track_caller]
fn detach(target: &Path) {
    umount2(target, MntFlags::MNT_DETACH).unwrap_or_else(|error| panic!("detach {}: {error}", target.display()));
}

#[track_caller]
fn nobody_writes_to(target: &Path) {
    // One who remounts what he finds is none the better.
    let writable = MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(None::<&str>, target, None::<&str>, writable, None::<&str>)
        .unwrap_or_else(|error| panic!("remount {}: {error}", target.display()));
    let stray = target.join("stray");
    for attempt in [fs::write(&stray, b"lost"), fs::create_dir(&stray)] {
        let errno = attempt.err().and_then(|error| error.raw_os_error());
        assert_eq!(errno, Some(Errno::EROFS as i32), "{} takes what is written to it", target.display());
    }
}

/// What becomes of a root's attempt to write to a directory of the node's that it was given.
#[track_caller]
fn root_in_a_container(name: &str, target: &Path, capabilities: &[String]) -> Event {
    let binds = vec![Bind::new(kit::executable("app"), "/app").read_only(), Bind::new(target, "/mnt/given")];
    let args = vec!["/app".into(), "trespass:/mnt/given/stray".into()];
    let spec = Spec { args, binds, capabilities: capabilities.to_vec(), ..Spec::default() };
    let container = Container::start(name, &spec);
    let event = eventually("it tries to write", seconds(20), || {
        let output = container.output();
        let first = output.lines().find_map(|line| serde_json::from_str::<Event>(line).ok());
        first.ok_or(output)
    });
    container.stop(seconds(10));
    container.delete();
    event
}

const PLACE: &str = "/mnt/datasets";
const WRITTEN: &str = "/mnt/checkpoints";

/// Shares that are mounted on the node itself: for its own processes, and for containers that have a directory of its. They
/// follow their shares as volumes do, and are taken from nobody.
pub(super) fn a_node_mount_is_for_everybody() {
    let node = Node::new("node1");
    let tree_a = Tree::new("a");
    let tree_b = Tree::new("b").with_export_of("checkpoints", &tree_a);
    for (tree, tag) in [(&tree_a, "a"), (&tree_b, "b")] {
        tree.put("datasets/sample", &data::file(tag, 50_000));
    }
    sh("mkdir /mnt/full /mnt/real; touch /mnt/full/something; ln -s real /mnt/link");
    let (mut a, b) = (Site::serving(&node, "a", tree_a.clone()), Site::serving(&node, "b", tree_b));
    let gateway = objects::gateway("gw", true, &[&a, &b]);
    let on_node = |name: &str, export: &str, access: &str, place: &str| {
        objects::share_with(name, "gw", export, access, &format!("nodeMount: {place}"))
    };
    let mounted = [
        gateway.clone(),
        on_node("datasets", "datasets", "ReadOnly", PLACE),
        on_node("checkpoints", "checkpoints", "ReadWrite", WRITTEN),
        on_node("full", "datasets", "ReadOnly", "/mnt/full"),
        on_node("linked", "datasets", "ReadOnly", "/mnt/link/datasets"),
    ];
    let agent = Agent::start(&node, &mounted.join("---\n"));
    eventually("the shares are mounted on the node", seconds(30), || is_served_by(&a));
    assert_eq!(data::verify(&fs::read(format!("{PLACE}/sample")).expect("the node reads")).as_deref(), Ok("a"));
    eventually("what can't be mounted is told with its cure", seconds(20), || {
        let problems = agent.status()["problems"].to_string();
        let told = ["/mnt/full is not empty: remove", "/mnt/link/datasets: no part of it may be a symlink"];
        if told.iter().all(|words| problems.contains(words)) { Ok(()) } else { Err(problems) }
    });
    assert!(!Path::new("/mnt/real/datasets").exists(), "a symlink is not followed");
    let reader = |name: &str, bind: Bind| {
        let file =
            format!("{}/sample", if bind.source == Path::new("/mnt") { "/mnt/all/datasets" } else { "/mnt/data" });
        Draft::new(name).with_bind(bind.read_only()).reading(&file)
    };
    let all = Bind { propagation: Propagation::HostToContainer, ..Bind::new("/mnt", "/mnt/all") };
    let follower = reader("follower", all).start();
    let given = reader("given", Bind::new(PLACE, "/mnt/data"))
        .with_bind(Bind::new(WRITTEN, "/mnt/checkpoints"))
        .writing("/mnt/checkpoints/log")
        .trespassing("/mnt/data/never")
        .start();
    for pod in [&follower, &given] {
        pod.reads("a", seconds(30));
    }
    given.writes(seconds(30));
    let superblocks: Vec<String> = mounts_of(&agent, "datasets");
    assert_eq!(superblocks, ["datasets.1@gw.a.1@node-ro"], "one for all");

    a.die();
    for pod in [&follower, &given] {
        pod.reads("b", RECOVERY);
    }
    let before = given.acknowledged();
    given.next("writes to the other", RECOVERY, |event| {
        event.op == Op::Write && event.succeeded() && event.tag.parse().is_ok_and(|number: u64| number > before + 1)
    });
    eventually("the node has moved", seconds(15), || is_served_by(&b));
    let refused = given.next("tries to write", seconds(10), |event| event.op == Op::Trespass);
    assert_eq!(refused.errno, Errno::EROFS as i32, "{refused:?}");
    let events = agent.events();
    assert!(events.iter().any(|event| event["kind"] == "Fenced"), "what was written must not come late: {events:?}");

    // A mishap with the objects takes nothing from anybody.
    agent.configure("");
    eventually("nothing is asked for any more", seconds(15), || {
        let publications = agent.status()["publications"].clone();
        let all = publications.as_array().cloned().unwrap_or_default();
        let unwanted = |at: &str| all.iter().any(|one| one["targetPath"] == at && one["state"] == "Unpublishing");
        if unwanted(PLACE) && unwanted(WRITTEN) { Ok(()) } else { Err(publications) }
    });
    throughout("they stay", seconds(3), || is_served_by(&b));
    // Meant, it takes nothing from who was given it; who merely sees the node's directory sees what is there.
    let plain =
        [gateway, objects::share("datasets", "gw", "ReadOnly"), objects::share("checkpoints", "gw", "ReadWrite")];
    agent.configure(&plain.join("---\n"));
    throughout("they stay", seconds(3), || is_served_by(&b));
    given.reads("b", seconds(10));
    follower.reads("b", seconds(10));
    given.container().stop(seconds(10));
    given.lost_nothing(&tree_a.read("checkpoints/log"));
    given.delete(&agent, seconds(10));
    eventually("they go with the last who was given them", seconds(40), || {
        let left: Vec<&str> = [PLACE, WRITTEN].into_iter().filter(|place| Path::new(place).exists()).collect();
        if left.is_empty() { Ok(()) } else { Err((left, agent.status()["problems"].clone())) }
    });
    follower.next("sees them no more", seconds(10), |event| event.errno == Errno::ENOENT as i32);
    eventually("nothing is left of them", seconds(20), || {
        let left = mounts_of(&agent, "");
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    follower.delete(&agent, seconds(10));
}

/// Both node mounts show what that site has.
fn is_served_by(site: &Site) -> Result<(), Vec<Vec<Mount>>> {
    let there: Vec<Vec<Mount>> = [PLACE, WRITTEN].iter().map(|place| mounts::at(Path::new(place))).collect();
    let server = format!("{}:", site.server());
    let served = there.iter().all(|layers| layers.iter().any(|mount| mount.source.starts_with(&server)));
    if served { Ok(()) } else { Err(there) }
}

/// The superblocks of a share, as the status names them; of all with no name.
#[track_caller]
fn mounts_of(agent: &Agent, share: &str) -> Vec<String> {
    let mounts = agent.status()["mounts"].as_array().cloned().unwrap_or_default();
    let of_it = mounts.iter().filter(|mount| share.is_empty() || mount["share"] == share);
    of_it.filter_map(|mount| mount["superblock"].as_str().map(str::to_owned)).collect()
}
