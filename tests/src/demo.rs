//! The product in under a minute, told as it happens: a pod, two shares, a tunnel, a death.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::agent::Agent;
use crate::command::checked;
use crate::data;
use crate::event::Op;
use crate::kit;
use crate::node::Node;
use crate::objects;
use crate::pod::Draft;
use crate::site::{Site, Tree};
use crate::wait::{eventually, now, seconds};

/// Says what happens, with the time that has passed.
struct Teller {
    colour: bool,
    began: Instant,
}

impl Teller {
    fn act(&self, text: &str) {
        println!("\n{}", self.paint("1;36", &format!("{:5.1} s  {text}", self.passed())));
    }

    fn note(&self, text: &str) {
        println!("         {}", self.paint("2", text));
    }

    fn well(&self, text: &str) {
        println!("         {} {text}", self.paint("1;32", "✓"));
    }

    fn bad(&self, text: &str) {
        println!("         {} {text}", self.paint("1;31", "✗"));
    }

    fn passed(&self) -> f64 {
        (now() - self.began).as_secs_f64()
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

/// Panics where the product does not do what is told of it: a demo that fails must not look like one that works.
pub fn run(colour: bool) {
    let tell = Teller { colour, began: now() };

    tell.act("Two storage sites, a and b: the kernel's NFS server behind WireGuard, one data set.");
    let node = Node::new("node1");
    let tree = Tree::new("data");
    let (a, b) = (Site::serving(&node, "a", tree.clone()), Site::serving(&node, "b", tree.clone()));
    tree.put("datasets/sample", &data::file("dataset-1", 500_000));
    for site in [&a, &b] {
        tell.note(&format!("site {}: {} inside, {} outside", site.name(), site.server(), site.endpoint()));
    }

    tell.act("The agent, in a container with named capabilities and not one privilege more.");
    let objects = [
        objects::usual(true, &[&a, &b]),
        objects::gateway("solo", false, &[&a, &b]),
        objects::share_of("journal", "solo", "checkpoints", "ReadWrite"),
    ];
    let mut agent = Agent::start(&node, &objects.join("---\n"));
    tell.note(&agent.capabilities().join(" "));

    tell.act("A pod with no privilege at all asks for `datasets`, read-only, and `checkpoints`.");
    let pod = Draft::new("training")
        .with_share(&node, &agent, "datasets", true)
        .with_share(&node, &agent, "checkpoints", false)
        .reading("/mnt/datasets/sample")
        .writing("/mnt/checkpoints/log")
        .trespassing("/mnt/datasets/never")
        .start();
    let process = pod.container().pid();
    let read = pod.reads("dataset-1", seconds(30));
    tell.well(&format!("reads {} KB, checksum right, in {:.0} ms", read.bytes / 1000, read.took * 1000.0));
    let record = pod.writes(seconds(30)).tag;
    tell.well(&format!("writes: record {record} acknowledged by fsync"));
    tell.note("And one that writes `journal`, whose Gateway does not say that its sites share their data.");
    let keeper =
        Draft::new("keeper").with_share(&node, &agent, "journal", false).writing("/mnt/journal/journal").start();
    keeper.writes(seconds(30));
    print!("{}", indented(&checked(Command::new(kit::executable("moorline")).arg("status"), None)));

    let first = agent.target("datasets");
    let (mut dying, other) = if first == a.name() { (a, b) } else { (b, a) };
    tell.act(&format!("Site {} dies, for good: server, tunnel, everything.", dying.name()));
    let died = now();
    dying.die();
    tell.bad(&format!("site {} is dead; the pod's reads and writes block", dying.name()));
    let known = pod.events().len();
    pod.after(known, "reads on", seconds(45), |event| event.op == Op::Read && event.took > 1.0);
    pod.reads("dataset-1", seconds(45));
    tell.well(&format!("the pod reads from site {}, {:.1} s after the death", other.name(), since(died)));
    pod.writes(seconds(45));
    match failures(&pod) {
        0 => tell.well("and saw no error: what was under way went on"),
        count => {
            tell.note(&format!("{count} of its calls, under way at the death, ended with an error; the next went well"))
        }
    }
    tell.well("and writes: its Gateway says that both sites hold the same data");
    assert_eq!(agent.target("datasets"), other.name());
    assert!(pod.container().alive() && pod.container().pid() == process);
    tell.well(&format!("the same container, never restarted: process {process}"));
    let refused = pod.next("tries to write", seconds(10), |event| event.op == Op::Trespass);
    assert_eq!(refused.errno, Errno::EROFS as i32, "{refused:?}");
    tell.well("its read-only volume is still read-only");
    let written = data::records(&tree.read("checkpoints/log"));
    assert!((1..=pod.acknowledged()).all(|number| written.contains(&number)), "an acknowledged record is lost");
    tell.well(&format!("all {} acknowledged records are there", pod.acknowledged()));

    keeper.blocks(Op::Write, seconds(1));
    keeper.never_failed(Op::Write);
    assert_eq!(agent.target("journal"), dying.name());
    tell.bad("`journal` waits for its own site, as hard promises; `moorline status` says so:");
    tell.note(&waiting(&agent, "journal"));

    tell.act("The agent is killed with -9, and comes back.");
    let failures = failures(&pod);
    agent.kill9();
    agent.restart();
    pod.reads("dataset-1", seconds(30));
    pod.writes(seconds(30));
    assert_eq!(self::failures(&pod), failures, "the pod saw an error");
    tell.well("the pod saw no error");

    tell.act(&format!("Site {} falls into a black hole, and the pods are deleted.", other.name()));
    other.blackhole();
    pod.blocks(Op::Write, seconds(1));
    tell.bad("the pod waits for a server that does not answer");
    let grace = seconds(5);
    let deleted = now();
    thread::scope(|scope| {
        for pod in [pod, keeper] {
            scope.spawn(|| pod.delete(&agent, grace));
        }
    });
    assert!(since(deleted) < grace.as_secs_f64(), "gone after {:.1} s", since(deleted));
    tell.well(&format!("gone after {:.1} s, with a grace period of {} s", since(deleted), grace.as_secs()));
    let nothing = eventually("nothing is published", seconds(10), || {
        let publications = agent.status()["publications"].clone();
        if publications.as_array().is_some_and(Vec::is_empty) { Ok(true) } else { Err(publications) }
    });
    assert!(nothing);
    println!("\n{}\n", tell.paint("1", &format!("One pod, one tunnel, one death: told in {:.0} s.", tell.passed())));
}

fn waiting(agent: &Agent, share: &str) -> String {
    eventually("the status says what is waited for", seconds(10), || {
        let status = agent.status();
        let shares = status["shares"].as_array().cloned().unwrap_or_default();
        let share = shares.into_iter().find(|known| known["name"] == share).ok_or(status)?;
        share["waiting"].as_str().map(str::to_owned).ok_or(share)
    })
}

fn failures(pod: &crate::pod::Pod) -> usize {
    let failed = |op| pod.events_of(op).iter().filter(|event| !event.succeeded()).count();
    failed(Op::Read) + failed(Op::Write)
}

fn since(moment: Instant) -> f64 {
    let passed: Duration = now() - moment;
    passed.as_secs_f64()
}

fn indented(text: &str) -> String {
    text.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("         {line}\n")).collect()
}
