//! What is wrong is refused, with its name and the cure; what was running goes on.

use std::fs;
use std::path::PathBuf;
use std::thread;

use tonic::{Code, Status};

use crate::agent::Agent;
use crate::command::sh;
use crate::csi::Volume;
use crate::data;
use crate::event::Op;
use crate::node::{Key, Node};
use crate::objects;
use crate::pod::{Draft, publish, volume};
use crate::site::Site;
use crate::wait::{eventually, seconds};

pub(super) fn bad_volumes_are_refused() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    sh("mkdir /srv/a/datasets/real; ln -s /etc /srv/a/datasets/escape; ln -s real /srv/a/datasets/alias");
    let absent = objects::share("absent", "gw", "ReadOnly");
    let agent = Agent::start(&node, &format!("{}---\n{absent}", objects::usual(false, &[&site])));
    let pod = Draft::new("well").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads("a", seconds(30));

    let good = || volume(&node, "bad", "datasets", true);
    let part = |path: &str| Volume { attributes: vec![("subDir".into(), path.into())], ..good() };
    let full = volume(&node, "full", "datasets", true);
    let kept = full.target.join("kept");
    fs::create_dir_all(&full.target).and_then(|()| fs::write(&kept, b"somebody's")).expect("a file at a target");
    let table: &[(&str, Volume, Code, &str)] = &[
        ("an unknown share", Volume { share: "nowhere".into(), ..good() }, Code::NotFound, "nowhere"),
        (
            "a target outside kubelet's folders",
            Volume { target: PathBuf::from("/etc/target"), ..good() },
            Code::InvalidArgument,
            "/etc/target",
        ),
        (
            "a target that climbs out",
            Volume { target: good().target.join("../../../../../../x"), ..good() },
            Code::InvalidArgument,
            "target",
        ),
        ("a target that is not empty", full, Code::FailedPrecondition, "is not empty: remove"),
        (
            "an unknown attribute",
            Volume { attributes: vec![("shrae".into(), "x".into())], ..good() },
            Code::InvalidArgument,
            "shrae",
        ),
        ("another namespace", Volume { pod_namespace: "default".into(), ..good() }, Code::PermissionDenied, "default"),
        (
            "an export that does not exist",
            Volume { share: "absent".into(), ..good() },
            Code::FailedPrecondition,
            "absent",
        ),
        ("a part that climbs out", part("../a"), Code::InvalidArgument, "\"../a\" is no directory below"),
        ("a part that climbs within", part("real/../real"), Code::InvalidArgument, "without '.', '..'"),
        ("an absolute part", part("/etc"), Code::InvalidArgument, "write it relative"),
        ("a part that is not there", part("real/gone"), Code::FailedPrecondition, "real/gone of Share datasets"),
        ("a part that is a symlink out of the export", part("escape"), Code::FailedPrecondition, "symlink"),
        ("a part below a symlink", part("escape/ssl"), Code::FailedPrecondition, "symlink"),
        ("a part that is a symlink within", part("alias"), Code::FailedPrecondition, "name the directory"),
        ("a part that is a file", part("sample"), Code::FailedPrecondition, "is no directory: name"),
    ];
    for (what, volume, code, named) in table {
        let answer = || match agent.csi().publish(volume) {
            // What was given up a moment ago may not be quite gone.
            Err(status) if status.message().contains("still being unpublished") => Err(status),
            other => Ok(other),
        };
        let status = eventually("an answer", seconds(15), answer).expect_err(what);
        assert_eq!(status.code(), *code, "{what}: {status}");
        assert!(status.message().contains(named), "{what}: {named:?} is not in {:?}", status.message());
    }
    assert!(kept.exists(), "what was at a target is somebody's");
    publish(&agent, &part("real"));
    let whole = agent.csi().publish(&good()).expect_err("another part is there");
    assert_eq!(whole.code(), Code::AlreadyExists, "{whole}");
    agent.csi().unpublish(&good().target).expect("given back");

    pod.reads("a", seconds(10));
    pod.never_failed(Op::Read);
    pod.delete(&agent, seconds(10));
}

pub(super) fn bad_objects_change_nothing() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let good = objects::usual(false, &[&site]);
    let agent = Agent::start(&node, &good);
    let pod = Draft::new("well").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads("a", seconds(30));

    let table: &[(&str, String, &str)] = &[
        ("malformed YAML", format!("{good}---\n{{"), "objects.yaml"),
        ("an unknown field", good.replace("mtu:", "mut:"), "mut"),
        (
            "two of one name",
            format!("{good}---\n{}", objects::share("datasets", "gw", "ReadOnly")),
            "a Share datasets stands in an earlier file or document",
        ),
        (
            "a policy that contradicts the access",
            good.replace("access: ReadWrite", "access: ReadWrite, policy: soft"),
            "acceptLostWrites",
        ),
        ("an export with '..'", good.replace("export: /datasets", "export: /a/../datasets"), "/a/../datasets"),
        ("an unknown gateway", good.replace("{gateway: gw, export: ", "{gateway: gone, export: "), "gone"),
    ];
    for (what, objects, named) in table {
        agent.configure(objects);
        eventually(&format!("{what} is told"), seconds(15), || {
            let problems = agent.status()["problems"].to_string();
            if problems.contains(named) { Ok(()) } else { Err(problems) }
        });
        pod.reads("a", seconds(10));
    }
    // The last of them is in force: whoever asks is told what is wrong with the object.
    let refused = agent.csi().publish(&volume(&node, "early", "checkpoints", false)).expect_err("it leads nowhere");
    let cure = refused.message().contains("there is no Gateway gone; there are: [gw]");
    assert!(refused.code() == Code::NotFound && cure, "{refused}");

    // Nothing at all is no error: the share is kept for the pod that uses it, and for nobody else.
    agent.configure("");
    let late = volume(&node, "late", "datasets", true);
    let refused = eventually("no new pod gets it", seconds(15), || match agent.csi().publish(&late) {
        Err(status) if status.code() == Code::NotFound => Ok(status),
        Err(status) => Err(status),
        Ok(()) => Err(agent.csi().unpublish(&late.target).err().unwrap_or_else(|| Status::ok("not yet refused"))),
    });
    assert!(refused.message().contains("datasets"), "{refused}");
    pod.reads("a", seconds(10));
    agent.configure(&good);
    eventually("the cured objects leave no problem", seconds(15), || {
        let problems = agent.status()["problems"].clone();
        if problems.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(problems) }
    });
    pod.never_failed(Op::Read);
    pod.delete(&agent, seconds(10));
}

/// Nothing is begun that could not be finished: the agent says what it lacks, and ends.
pub(super) fn a_kernel_too_old_is_named() {
    const HOST: i32 = 4;
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let mut agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let pod = Draft::new("well").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads("a", seconds(30));

    agent.kill9();
    let (code, said) = agent.on_a_kernel_without("mount_setattr");
    assert_eq!(code, Some(HOST), "{said}");
    assert!(said.contains("mount_setattr") && said.contains("Linux 5.12"), "{said}");
    agent.restart();
    pod.reads("a", seconds(60));
    pod.never_failed(Op::Read);
    pod.delete(&agent, seconds(10));
}

/// A slip in a Gateway that nothing rests on yet, corrected while kubelet asks again and again for a pod's volume.
pub(super) fn a_wrong_gateway_is_corrected() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let good = objects::usual(false, &[&site]);
    let agent = Agent::start(&node, &good.replace(site.public_key(), &Key::new().public));
    let wanted = volume(&node, "reader", "datasets", true);
    let refused = agent.csi().publish(&wanted).expect_err("no server has this key");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("keys"), "the reason names the likely cause: {refused}");

    thread::scope(|scope| {
        let asking = scope.spawn(|| publish(&agent, &wanted));
        eventually("it is being published", seconds(15), || {
            let publications = agent.status()["publications"].clone();
            if publications.as_array().is_some_and(|some| !some.is_empty()) { Ok(()) } else { Err(publications) }
        });
        agent.configure(&good);
        asking.join().expect("the volume comes");
    });
    let pod = Draft::new("reader").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads("a", seconds(10));
    pod.delete(&agent, seconds(10));
}
