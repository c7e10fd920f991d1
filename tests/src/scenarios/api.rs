//! The agent's own socket, and what can be seen of the agent from outside.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::command::sh;
use crate::csi::Volume;
use crate::data;
use crate::event::Op;
use crate::kit;
use crate::mounts;
use crate::node::{Key, Node};
use crate::objects;
use crate::openmetrics;
use crate::pod::{Draft, volume};
use crate::site::Site;
use crate::wait::{eventually, seconds, throughout};

/// What the API is given for a volume.
fn wanted(volume: &Volume) -> Value {
    json!({
        "share": volume.share,
        "targetPath": volume.target,
        "readOnly": volume.read_only,
        "pod": { "namespace": volume.pod_namespace, "name": volume.pod_name, "uid": volume.pod_uid },
    })
}

fn mounts_at(target: &Path) -> usize {
    mounts::at(target).len()
}

pub(super) fn published_by_the_api_over_a_crash() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let mut agent = Agent::start(&node, &objects::usual(false, &[&site]));
    let volume = volume(&node, "job", "datasets", true);
    let (wanted, target) = (wanted(&volume), volume.target.display().to_string());
    let put = |agent: &Agent| agent.api("PUT", "/v1/publications", Some(&wanted));

    // Asked for while its server is out of reach: on record, and not there.
    site.blackhole();
    thread::scope(|scope| {
        let asking = scope.spawn(|| put(&agent));
        eventually("it is being published", seconds(15), || {
            let listed = agent.api("GET", "/v1/publications", None).1;
            if listed["publications"][0]["state"] == "Publishing" { Ok(()) } else { Err(listed) }
        });
        let (status, answer) = asking.join().expect("an answer");
        assert_eq!(status, 503, "it can't be there: {answer}");
        let reason = answer["error"].as_str().unwrap_or_default();
        assert!(reason.contains("gw"), "the reason names the gateway: {answer}");
    });
    agent.kill9();
    site.heal();
    agent.restart();

    // It was on record: the new agent goes on with it, asked or not.
    eventually("it is published by the next agent", seconds(60), || {
        let listed = agent.api("GET", "/v1/publications", None).1;
        if listed["publications"][0]["state"] == "Published" { Ok(()) } else { Err(listed) }
    });
    // The same call resumes, and is idempotent.
    for _ in 0..2 {
        eventually("the same call after a crash succeeds", seconds(60), || match put(&agent) {
            (200, answer) if answer["id"].is_string() => Ok(()),
            (503, answer) => Err(answer),
            other => panic!("{other:?}"),
        });
        assert_eq!(mounts_at(&volume.target), 1);
    }
    let (status, listed) = agent.api("GET", "/v1/publications", None);
    assert_eq!((status, listed["publications"].as_array().map(Vec::len)), (200, Some(1)), "{listed}");
    assert_eq!(listed["publications"][0]["state"], "Published", "{listed}");
    assert_eq!(listed["publications"][0]["pod"], "job", "{listed}");

    // The same rules as kubelet's calls.
    let with = |field: &str, value: Value| {
        let mut changed = wanted.clone();
        changed[field] = value;
        changed
    };
    let elsewhere = json!({ "namespace": "default", "name": "x", "uid": "y" });
    let fresh = volume.target.with_file_name("fresh").display().to_string();
    let table: &[(&str, u16, Value, &str)] = &[
        ("another share at the same place", 409, with("share", "checkpoints".into()), "datasets"),
        ("an unknown share", 404, with("share", "nowhere".into()), "nowhere"),
        ("a target outside kubelet's folders", 400, with("targetPath", "/etc/target".into()), "/etc/target"),
        ("a target that climbs out", 400, with("targetPath", format!("{target}/../../x").into()), "normal"),
        ("a field nobody knows", 400, with("shrae", "x".into()), "shrae"),
        ("a pod without a name", 400, with("pod", json!({ "namespace": "training", "name": "", "uid": "y" })), "name"),
        ("no body", 400, Value::Null, "targetPath"),
        (
            "another namespace",
            403,
            json!({ "share": "datasets", "targetPath": fresh, "readOnly": true, "pod": elsewhere }),
            "default",
        ),
    ];
    for (what, status, body, named) in table {
        let answer = agent.api("PUT", "/v1/publications", Some(body));
        assert_eq!(answer.0, *status, "{what}: {answer:?}");
        assert!(answer.1["error"].as_str().is_some_and(|text| text.contains(named)), "{what}: {named:?} in {answer:?}");
    }
    for (method, path, status) in [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/publications", 405),
        ("DELETE", "/v1/publications", 400),
        ("DELETE", "/v1/publications?target=/x", 400),
        ("DELETE", "/v1/publications?targetPath=/etc/x", 400),
        ("GET", "/v1/events?follow=maybe", 400),
    ] {
        let answer = agent.api(method, path, None);
        assert_eq!(answer.0, status, "{method} {path}: {answer:?}");
        assert!(answer.1["error"].is_string(), "{method} {path}: {answer:?}");
    }
    assert_eq!(mounts_at(&volume.target), 1, "what is refused changes nothing");

    // Given back over a crash as well, and again.
    let path = format!("/v1/publications?targetPath={target}");
    agent.kill9();
    agent.restart();
    for _ in 0..2 {
        eventually("it is given back", seconds(30), || match agent.api("DELETE", &path, None) {
            (200, _) => Ok(()),
            (503, answer) => Err(answer),
            other => panic!("{other:?}"),
        });
        assert!(!mounts::is_mounted(&volume.target));
    }
    assert_eq!(agent.api("GET", "/v1/publications", None).1, json!({ "publications": [] }));
}

/// Lines that a command prints, as they come. It is ended with the value.
struct Following {
    child: Child,
    output: std::path::PathBuf,
}

impl Following {
    #[track_caller]
    fn start(name: &str, program: &Path, args: &[&str]) -> Self {
        let output = kit::results().join(name);
        let file = std::fs::File::create(&output).unwrap_or_else(|error| panic!("make {}: {error}", output.display()));
        let child = Command::new(program).args(args).stdin(Stdio::null()).stdout(file).spawn();
        Self { child: child.unwrap_or_else(|error| panic!("start {program:?}: {error}")), output }
    }

    /// Whole lines, each of which must be JSON.
    #[track_caller]
    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.output).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    #[track_caller]
    fn interrupt(mut self) -> std::process::ExitStatus {
        sh(&format!("kill -INT {}", self.child.id()));
        eventually("it ends", seconds(5), || self.child.try_wait().ok().flatten().ok_or("it runs on"))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn a_failover_is_told_as_it_happens() {
    let node = Node::new("node1");
    let (a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    a.put("datasets/sample", &data::file("a", 50_000));
    b.put("datasets/sample", &data::file("b", 50_000));
    let mut agent = Agent::start(&node, &objects::usual(false, &[&a, &b]));
    let moorline = kit::executable("moorline");
    let watch = Following::start("watch.jsonl", &moorline, &["status", "--watch", "--json"]);
    let events = Following::start("events.jsonl", &moorline, &["events", "--follow", "--json"]);
    // One that asks and never reads: nobody may wait for it.
    let deaf = Following::start(
        "deaf.out",
        Path::new("sh"),
        &["-c", "curl -sN --unix-socket /run/moorline/agent.sock http://moorline/v1/watch | sleep 3600"],
    );
    eventually("the first report comes at once", seconds(5), || match watch.lines().first() {
        Some(report) if report["node"] == "node1" => Ok(()),
        other => Err(other.cloned()),
    });

    let pod = Draft::new("reader").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    let first = pod.next("reads", seconds(30), |event| event.op == Op::Read && event.succeeded()).tag;
    let (mut serving, other) = if first == "a" { (a, b) } else { (b, a) };
    serving.die();
    pod.reads(other.name(), seconds(60));

    let kinds = || -> Vec<String> {
        events.lines().iter().map(|event| event["kind"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let story =
        ["Adopted", "ObjectsRead", "Publishing", "ServerAlive", "Mounted", "Published", "ServerAway", "FailedOver"];
    eventually("the events tell the story, in its order", seconds(15), || {
        let kinds = kinds();
        let mut rest = kinds.iter();
        // The publication is asked for before its server answers, or after: no matter.
        let told = story.iter().filter(|kind| **kind != "ServerAlive").all(|kind| rest.any(|told| told == kind));
        if told && kinds.iter().any(|kind| kind == "ServerAlive") { Ok(()) } else { Err(kinds) }
    });
    let told = events.lines();
    for (index, event) in told.iter().enumerate() {
        assert_eq!(event["sequence"], index as u64 + 1, "none is missing: {event}");
        assert!(event["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{event}");
        assert!(event["message"].as_str().is_some_and(|message| !message.is_empty()), "{event}");
    }
    let of = |kind: &str| told.iter().find(|event| event["kind"] == kind).cloned().unwrap_or_default();
    assert_eq!(of("Published")["pod"]["name"], "reader", "{told:?}");
    assert_eq!(of("FailedOver")["share"], "datasets", "{told:?}");
    assert!(
        of("ServerAway")["namespace"].as_str().is_some_and(|id| id.starts_with(&format!("gw.{first}."))),
        "{told:?}"
    );

    // What is watched: the server away, then the share at its new target.
    eventually("the watch shows the new target", seconds(15), || {
        let reports = watch.lines();
        let away = reports.iter().any(|report| report["tunnels"].to_string().contains("Away"));
        let moved = reports
            .last()
            .is_some_and(|report| report["shares"].to_string().contains(&format!("\"target\":\"{}\"", other.name())));
        if away && moved { Ok(()) } else { Err(reports.last().cloned()) }
    });
    let reports = watch.lines();
    assert!(reports.windows(2).all(|pair| pair[0] != pair[1]), "a line for a change, and none for nothing");
    assert!(reports.len() < 100, "{} lines for a handful of changes", reports.len());

    // Asked afterwards, without following: the same.
    let replayed = sh(&format!("{} events --json", moorline.display()));
    assert_eq!(replayed.lines().next().and_then(|line| serde_json::from_str(line).ok()), told.first().cloned());
    let plain = sh(&format!("{} events", moorline.display()));
    assert!(plain.contains("FailedOver") && plain.contains("failed over: datasets.2@"), "{plain}");

    // Who follows finds the next agent by itself.
    let before = events.lines().len();
    agent.kill9();
    agent.restart();
    eventually("the next agent is followed", seconds(20), || {
        let lines = events.lines();
        let adopted = lines.iter().skip(before).any(|event| event["kind"] == "Adopted");
        if adopted { Ok(()) } else { Err(lines.last().cloned()) }
    });
    pod.delete(&agent, seconds(10));
    drop(deaf);
    assert!(watch.interrupt().success(), "Ctrl-C is a good end");
    assert!(events.interrupt().success(), "Ctrl-C is a good end");
}

pub(super) fn health_is_what_the_loop_does() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let agent = Agent::start(&node, &objects::usual(false, &[&site]));
    eventually("it is ready", seconds(15), || match agent.http("/readyz") {
        (200, _) => Ok(()),
        other => Err(other),
    });
    assert_eq!(agent.http("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(agent.http("/nothing").0, 404);
    let pod = Draft::new("reader").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads("a", seconds(30));
    let page = openmetrics::parse(&agent.http("/metrics").1);
    let up = page.value("moorline_server_up", &[("gateway", "gw"), ("target", "a")]);
    assert_eq!(up, Some(1.0), "{page:?}");
    let published = [("share", "datasets"), ("mode", "read-only"), ("state", "Published")];
    assert_eq!(page.value("moorline_publications", &published), Some(1.0), "{page:?}");
    assert_eq!(page.value("moorline_publish_duration_seconds_count", &[]), Some(1.0), "{page:?}");
    assert_eq!(page.value("moorline_superblocks", &[("share", "datasets"), ("health", "Healthy")]), Some(1.0));
    assert!(page.value("moorline_server_probe_seconds", &[("gateway", "gw"), ("target", "a")]) > Some(0.0), "{page:?}");
    let received = |page: &openmetrics::Page| {
        page.value("moorline_tunnel_received_bytes_total", &[("gateway", "gw"), ("target", "a")])
    };
    assert!(received(&page) > Some(50_000.0), "{page:?}");

    // The loop hangs for real: it opens a fifo to write the next publication's record, and nobody reads.
    let next = volume(&node, "next", "datasets", true);
    let (status, answer) = agent.api("PUT", "/v1/publications", Some(&wanted(&next)));
    assert_eq!(status, 200, "{answer}");
    let id = answer["id"].as_str().expect("an id").to_owned();
    let given_back = agent.api("DELETE", &format!("/v1/publications?targetPath={}", next.target.display()), None);
    assert_eq!(given_back.0, 200, "{given_back:?}");
    let fifo = format!("/run/moorline/node/publications/{id}.json.new");
    sh(&format!("mkfifo {fifo}"));
    thread::scope(|scope| {
        let asking = scope.spawn(|| agent.api("PUT", "/v1/publications", Some(&wanted(&next))));
        let stuck = eventually("health says that the loop is stuck", seconds(40), || match agent.http("/healthz") {
            (503, text) => Ok(text),
            other => Err(other),
        });
        assert!(stuck.contains("no round"), "{stuck}");
        // What does not need the loop is answered all the same.
        let page = openmetrics::parse(&agent.http("/metrics").1);
        assert!(page.value("moorline_loop_round_age_seconds", &[]) > Some(15.0), "{page:?}");
        assert_eq!(page.value("moorline_server_up", &[("gateway", "gw"), ("target", "a")]), None, "nothing stale");
        throughout("pods read on", seconds(1), || pod.reads("a", seconds(10)).problem.map_or(Ok(()), Err));
        // Somebody reads.
        sh(&format!("cat {fifo} >/dev/null"));
        eventually("health follows", seconds(10), || match agent.http("/healthz") {
            (200, _) => Ok(()),
            other => Err(other),
        });
        let (status, answer) = asking.join().expect("an answer");
        assert!(matches!(status, 200 | 503), "{answer}");
    });
    pod.never_failed(Op::Read);
    eventually("it is given back", seconds(30), || {
        match agent.api("DELETE", &format!("/v1/publications?targetPath={}", next.target.display()), None) {
            (200, _) => Ok(()),
            other => Err(other),
        }
    });
    pod.delete(&agent, seconds(10));
}

/// The log for machines: each line is JSON, and none holds a key, wherever somebody has put one.
pub(super) fn a_json_log_is_json_and_holds_no_key() {
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    site.put("datasets/sample", &data::file("a", 50_000));
    let secret = node.key().private.clone();
    let inline = objects::usual(false, &[&site])
        .replace(&format!("privateKeyFile: {}/gw.key", objects::KEYS), &format!("privateKey: {secret}"));
    assert!(inline.contains(&secret));
    let mut agent = Agent::start_with(&node, &inline, &["--log-format", "json"]);
    let pod = Draft::new("reader").with_share(&node, &agent, "datasets", true).reading("/mnt/datasets/sample").start();
    pod.reads("a", seconds(30));

    let other = Key::new().private;
    let table = [
        ("a key where a file's name belongs", inline.replace("privateKey: ", "privateKeyFile: ")),
        ("a key where an address belongs", inline.replace("address: 10.90.0.2", &format!("address: {other}"))),
        ("a key cut short", inline.replace(&secret, &secret[..40])),
        ("a field of that name", inline.replace("mtu: 1420", &format!("{other}: 1420"))),
        ("malformed beside a key", inline.replace("mtu: 1420}", "mtu: 1420")),
        ("another key, in use", inline.replace(&secret, &other)),
    ];
    for (what, objects) in &table {
        assert_ne!(objects, &inline, "{what}");
        agent.configure(objects);
        eventually(&format!("{what} is told"), seconds(15), || {
            let problems = agent.status()["problems"].clone();
            if problems.as_array().is_some_and(|some| !some.is_empty()) { Ok(()) } else { Err(problems) }
        });
        agent.configure(&inline);
        eventually("the cured objects leave no problem", seconds(15), || {
            let problems = agent.status()["problems"].clone();
            if problems.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(problems) }
        });
    }
    site.blackhole();
    eventually("the server is away", seconds(20), || {
        let tunnels = agent.status()["tunnels"].to_string();
        if tunnels.contains("Away") { Ok(()) } else { Err(tunnels) }
    });
    site.heal();
    pod.reads("a", seconds(60));
    agent.kill9();
    agent.restart();
    pod.reads("a", seconds(30));
    let said = [
        agent.http("/metrics").1,
        agent.status().to_string(),
        agent.api("GET", "/v1/events?follow=false", None).1.to_string(),
    ];
    pod.delete(&agent, seconds(10));

    let log = agent.logs();
    assert!(log.lines().count() > 20, "{log}");
    for line in log.lines() {
        let parsed: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(parsed["timestamp"].is_string() && parsed["level"].is_string(), "{line}");
        assert!(parsed["fields"]["message"].is_string(), "{line}");
    }
    assert!(log.contains("\"kind\":\"ServerAway\"") && log.contains("\"kind\":\"ObjectRefused\""), "{log}");
    for text in said.iter().chain([&log]) {
        for key in [&secret, &other] {
            assert!(!text.contains(&key[..40]), "a private key is in: {text}");
        }
    }
}
