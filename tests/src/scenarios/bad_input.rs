//! What is wrong is refused, with its name and the cure; what was running goes on.

use std::path::PathBuf;
use std::thread;

use tonic::{Code, Status};

use crate::agent::Agent;
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
    let absent = objects::share("absent", "gw", "ReadOnly");
    let agent = Agent::start(&node, &format!("{}---\n{absent}", objects::usual(false, &[&site])));
    let pod = Draft::new("well").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads("a", seconds(30));

    let good = || volume(&node, "bad", "datasets", true);
    let table: &[(&str, Volume, &str)] = &[
        ("an unknown share", Volume { share: "nowhere".into(), ..good() }, "nowhere"),
        (
            "a target outside kubelet's folders",
            Volume { target: PathBuf::from("/etc/target"), ..good() },
            "/etc/target",
        ),
        ("a target that climbs out", Volume { target: good().target.join("../../../../../../x"), ..good() }, "target"),
        ("an unknown attribute", Volume { attributes: vec![("shrae".into(), "x".into())], ..good() }, "shrae"),
        ("another namespace", Volume { pod_namespace: "default".into(), ..good() }, "default"),
        ("an export that does not exist", Volume { share: "absent".into(), ..good() }, "absent"),
    ];
    for (what, volume, named) in table {
        let status = agent.csi().publish(volume).expect_err(what);
        assert!(status.message().contains(named), "{what}: {named:?} is not in {:?}", status.message());
    }

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
            "an unknown gateway",
            good.replace("{gateway: gw, export: /datasets", "{gateway: gone, export: /datasets"),
            "gone",
        ),
    ];
    for (what, objects, named) in table {
        agent.configure(objects);
        eventually(&format!("{what} is told"), seconds(15), || {
            let problems = agent.status()["problems"].to_string();
            if problems.contains(named) { Ok(()) } else { Err(problems) }
        });
        pod.reads("a", seconds(10));
    }
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
