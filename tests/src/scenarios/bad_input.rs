//! What is wrong is refused, with its name and the cure; what was running goes on.

use std::path::PathBuf;

use crate::agent::Agent;
use crate::csi::Volume;
use crate::data;
use crate::event::Op;
use crate::node::Node;
use crate::objects;
use crate::pod::{Draft, volume};
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
        ("nothing at all", String::new(), ""),
    ];
    for (what, objects, named) in table {
        agent.configure(objects);
        eventually(&format!("{what} is told"), seconds(15), || {
            let problems = agent.status()["problems"].to_string();
            if problems.contains(named) { Ok(()) } else { Err(problems) }
        });
        pod.reads("a", seconds(10));
    }
    agent.configure(&good);
    eventually("the cured objects leave no problem", seconds(15), || {
        let problems = agent.status()["problems"].clone();
        if problems.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(problems) }
    });
    pod.never_failed(Op::Read);
    pod.delete(&agent, seconds(10));
}
