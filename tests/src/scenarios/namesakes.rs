//! Two nodes of one name, made of one image: two clusters that use one server.
//!
//! ```text
//!   this machine, node1 ── up-a ──┐
//!                                 site a
//!   another,      node1 ── up-a2 ─┘
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::agent::Agent;
use crate::command::sh;
use crate::event::{Event, Op};
use crate::kit;
use crate::machine::VERDICT;
use crate::node::{INNER, Node};
use crate::objects;
use crate::pod::Draft;
use crate::site::Site;
use crate::wait::{eventually, seconds, throughout};

const NAME: &str = "node1";
/// What the second machine runs.
pub(super) const SECOND: &str = "the_second_of_one_name";
/// Its address inside the tunnel.
const SECOND_INNER: &str = "10.90.0.4";

pub(super) fn two_nodes_of_one_name_keep_their_locks() {
    let node = Node::new(NAME);
    let site = Site::start(&node, "a");
    let yaml = |site: &Site| {
        let parts = [objects::gateway("gw", false, &[site]), objects::share("checkpoints", "gw", "ReadWrite")];
        parts.join("---\n")
    };
    let second = Second::boot();
    let key = second.told("public-key");
    let endpoint = site.admit(&node, second.machine.id(), &key, SECOND_INNER);
    second.tell("objects.yaml", &yaml(&site).replace(INNER, SECOND_INNER).replace(&site.endpoint(), &endpoint));
    let agent = Agent::start(&node, &yaml(&site));
    let pod = Draft::new("pod").with_share(&node, &agent, "checkpoints", false).holding("/mnt/checkpoints/one").start();
    pod.writes(seconds(30));
    eventually("the other writes", seconds(60), || second.acknowledged().filter(|count| *count > 0).ok_or("not yet"));

    let names = site.client_names();
    let mine: Vec<&String> = names.iter().filter(|name| name.contains("moorline/")).collect();
    assert!(mine.len() == 2 && mine[0] != mine[1], "each is a client of its own to the server: {names:?}");
    // A lease of ten seconds, twice: whoever steals the other's does it at the latest when it is renewed.
    throughout("both keep their locks", seconds(20), || {
        let locked = ["checkpoints/one", "checkpoints/two"].map(|file| site.is_locked(file));
        if locked == [true; 2] { Ok(()) } else { Err(locked) }
    });
    let (before, theirs) = (pod.acknowledged() + 1, second.acknowledged());
    pod.next("writes on", seconds(10), |event| {
        event.op == Op::Write && event.tag.parse().is_ok_and(|n: u64| n > before)
    });
    eventually("the other writes on", seconds(10), || {
        let count = second.acknowledged();
        if count > theirs { Ok(()) } else { Err(count) }
    });
    pod.never_failed(Op::Write);
    pod.container().stop(seconds(10));
    pod.lost_nothing(&site.read("checkpoints/one"));
    pod.delete(&agent, seconds(10));
    second.tell("end", "");
    let verdict = second.told(VERDICT);
    assert_eq!(verdict, "passed", "the second machine; its output is in results/{SECOND}");
}

/// On the second machine.
pub(super) fn second() {
    // An image is made without it.
    let _ = fs::remove_file("/var/lib/moorline/client-id");
    let node = Node::new(NAME);
    let results = kit::results();
    put(&results.join("public-key"), &node.key().public);
    let text = |name: &str| fs::read_to_string(results.join(name)).map_err(|error| error.to_string());
    let objects = eventually("the first machine says what to mount", seconds(60), || text("objects.yaml"));
    let agent = Agent::start(&node, &objects);
    let pod = Draft::new("pod").with_share(&node, &agent, "checkpoints", false).holding("/mnt/checkpoints/two").start();
    eventually("the first machine has seen enough", seconds(150), || text("end"));
    pod.never_failed(Op::Write);
    pod.delete(&agent, seconds(10));
}

struct Second {
    machine: Child,
    results: PathBuf,
}

impl Second {
    /// As the runner starts a scenario's machine.
    #[track_caller]
    fn boot() -> Self {
        let results = kit::results().join(SECOND);
        sh(&format!("mkdir -p {} /sys/fs/cgroup/{SECOND}", results.display()));
        let output = fs::File::create(results.join("output.log"));
        let output = output.unwrap_or_else(|error| panic!("make the second machine's log: {error}"));
        let twin = output.try_clone().unwrap_or_else(|error| panic!("share the second machine's log: {error}"));
        let machine = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount", "--propagation", "private", "--net", "--uts", "--ipc"])
            .arg(kit::executable("lab"))
            .args(["scenario", SECOND, "--kit"])
            .args([&kit::executable(""), Path::new("--results"), &results])
            .arg("--cgroup")
            .arg(Path::new("/sys/fs/cgroup").join(SECOND))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(twin)
            .spawn()
            .unwrap_or_else(|error| panic!("start the second machine: {error}"));
        Self { machine, results }
    }

    #[track_caller]
    fn tell(&self, name: &str, text: &str) {
        put(&self.results.join(name), text);
    }

    #[track_caller]
    fn told(&self, name: &str) -> String {
        eventually(&format!("the second machine says {name}"), seconds(90), || {
            let said = fs::read_to_string(self.results.join(name)).map_err(|error| error.to_string())?;
            if said.is_empty() { Err("nothing yet".to_owned()) } else { Ok(said) }
        })
    }

    /// How many records its pod has written.
    fn acknowledged(&self) -> Option<usize> {
        let log = fs::read_to_string(self.results.join("pod-pod.log")).ok()?;
        let events = log.lines().filter_map(|line| serde_json::from_str::<Event>(line).ok());
        Some(events.filter(|event| event.op == Op::Write && event.succeeded()).count())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        // With its first process, all of its machine ends; an error means that it has ended already.
        let _ = self.machine.kill();
        let _ = self.machine.wait();
    }
}

/// In one step: the other machine reads it as soon as it is there.
#[track_caller]
fn put(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    let put = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, path));
    put.unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}
