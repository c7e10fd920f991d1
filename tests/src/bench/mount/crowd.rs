//! One agent and more and more volumes: 10, 100, 1,000, of which every tenth is read-write.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::super::bare::{self, read_only_bases};
use super::super::figures::PEER;
use super::super::record::{Samples, Whose, percentile};
use super::{end, objects, plain_mount, plain_unmount};
use crate::agent::Agent;
use crate::command::checked;
use crate::csi::{Csi, Volume};
use crate::node::Node;
use crate::openmetrics;
use crate::pod::{insist, volume};
use crate::site::Site;
use crate::wait::{now, seconds};

/// How often one publication is repeated for one sample.
const REPEATS: usize = 100;
/// So that nobody pays for what is left of the one before.
const PACE: Duration = Duration::from_millis(10);
/// How long an idle agent is watched.
const WATCHED: Duration = seconds(5);
const LOOKS: u32 = 20;
const CGROUP: &str = "/sys/fs/cgroup/pods/agent";

pub(super) fn measure(node: &Node, a: &Site, b: &Site, samples: &mut Samples) {
    let agent = Agent::start(node, &objects(&[a, b]));
    let mut crowd = Crowd { node, agent: &agent, csi: agent.csi(), volumes: Vec::new() };

    crowd.grow(10);
    samples.add("reconcile_idle_us_10", Whose::Ours, idle(&agent).round_us);

    crowd.grow(99);
    samples.add("publish_ro_p99_ms", Whose::Ours, crowd.publish_one_more("hundredth"));
    samples.add("publish_ro_p99_ms", Whose::Peer(PEER), plain_publish(a));
    samples.add("publish_ro_p99_ms", Whose::Floor, bare_publish());
    crowd.grow(100);
    samples.add("reconcile_idle_us_100", Whose::Ours, idle(&agent).round_us);
    samples.add("publish_rw_rpcs", Whose::Ours, crowd.calls_of_a_writer());
    samples.add("publish_rw_rpcs", Whose::Peer(PEER), plain_calls(a));

    crowd.grow(999);
    samples.add("publish_1000_p99_ms", Whose::Ours, crowd.publish_one_more("thousandth"));
    samples.add("publish_1000_p99_ms", Whose::Floor, bare_publish());
    crowd.grow(1000);
    let idle = idle(&agent);
    samples.add("reconcile_idle_us_1000", Whose::Ours, idle.round_us);
    samples.add("agent_working_set_mb_1000", Whose::Ours, idle.working_set_mb);

    crowd.leave();
    end(agent);
}

struct Crowd<'a> {
    node: &'a Node,
    agent: &'a Agent,
    csi: Csi,
    volumes: Vec<Volume>,
}

impl Crowd<'_> {
    /// Up to so many volumes, each tenth of them read-write.
    #[track_caller]
    fn grow(&mut self, to: usize) {
        for number in self.volumes.len()..to {
            let name = format!("pod-{number}");
            let volume = match number % 10 {
                0 => volume(self.node, &name, "checkpoints", false),
                _ => volume(self.node, &name, "datasets", true),
            };
            self.publish(&volume);
            self.volumes.push(volume);
        }
    }

    /// The 99th percentile of how long one more read-only volume takes, in milliseconds.
    #[track_caller]
    fn publish_one_more(&self, name: &str) -> f64 {
        let volume = volume(self.node, name, "datasets", true);
        let took = (0..REPEATS).map(|_| {
            thread::sleep(PACE);
            let took = timed(|| self.publish(&volume));
            self.unpublish(&volume);
            took
        });
        percentile(&took.collect::<Vec<_>>(), 99.0)
    }

    /// How many calls to the server one more read-write volume costs.
    #[track_caller]
    fn calls_of_a_writer(&self) -> f64 {
        let volume = volume(self.node, "writer", "checkpoints", false);
        let before = calls();
        self.publish(&volume);
        let after = calls();
        self.unpublish(&volume);
        after - before
    }

    #[track_caller]
    fn leave(&self) {
        self.volumes.iter().for_each(|volume| self.unpublish(volume));
    }

    #[track_caller]
    fn publish(&self, volume: &Volume) {
        insist(self.agent, "publish", || self.csi.publish(volume));
    }

    #[track_caller]
    fn unpublish(&self, volume: &Volume) {
        insist(self.agent, "unpublish", || self.csi.unpublish(&volume.target));
    }
}

struct Idle {
    round_us: f64,
    working_set_mb: f64,
}

/// Watches an agent that has nothing to do.
#[track_caller]
fn idle(agent: &Agent) -> Idle {
    let rounds = || {
        let page = openmetrics::parse(&agent.http("/metrics").1);
        let value = |name: &str| page.value(name, &[]).unwrap_or_else(|| panic!("{name} is not answered"));
        (value("moorline_loop_rounds_total"), value("moorline_loop_busy_seconds_total"))
    };
    // What the last publication left to do.
    thread::sleep(seconds(2));
    let before = rounds();
    let mut working_set = 0.0_f64;
    for _ in 0..LOOKS {
        thread::sleep(WATCHED / LOOKS);
        working_set = working_set.max(working_set_mb());
    }
    let after = rounds();
    assert!(after.0 > before.0, "no round in {WATCHED:?}");
    Idle { round_us: (after.1 - before.1) * 1e6 / (after.0 - before.0), working_set_mb: working_set }
}

/// As kubelet's cAdvisor reckons it.
#[track_caller]
fn working_set_mb() -> f64 {
    let read = |name: &str| {
        let path = Path::new(CGROUP).join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
    };
    let current: u64 = read("memory.current").trim().parse().expect("a number of bytes");
    let stat = read("memory.stat");
    let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")).expect("inactive_file");
    let inactive: u64 = inactive.parse().expect("a number of bytes");
    current.saturating_sub(inactive) as f64 / 1e6
}

/// What this network namespace's NFS clients have called so far.
#[track_caller]
fn calls() -> f64 {
    let text = fs::read_to_string("/proc/net/rpc/nfs").unwrap_or_else(|error| panic!("/proc/net/rpc/nfs: {error}"));
    let calls = text.lines().find_map(|line| line.strip_prefix("rpc ")?.split(' ').next()?.parse().ok());
    calls.unwrap_or_else(|| panic!("/proc/net/rpc/nfs counts no calls: {text}"))
}

#[track_caller]
fn plain_calls(site: &Site) -> f64 {
    let at = Path::new("/srv/plain");
    let before = calls();
    plain_mount(site, "checkpoints", at, "");
    let after = calls();
    plain_unmount(at);
    after - before
}

/// mount(8), once for each pod.
#[track_caller]
fn plain_publish(site: &Site) -> f64 {
    let first = Path::new("/srv/plain-first");
    plain_mount(site, "datasets", first, "ro");
    let source = format!("{}:/datasets", site.direct_server());
    let took = (0..REPEATS).map(|_| {
        let at = Path::new("/srv/plain");
        thread::sleep(PACE);
        let took = timed(|| {
            fs::create_dir(at).unwrap_or_else(|error| panic!("make {}: {error}", at.display()));
            checked(Command::new("mount").args(["-t", "nfs4", "-o", "ro", &source]).arg(at), None);
        });
        plain_unmount(at);
        took
    });
    let took = percentile(&took.collect::<Vec<_>>(), 99.0);
    plain_unmount(first);
    took
}

/// What the kernel takes, and nothing else.
#[track_caller]
fn bare_publish() -> f64 {
    let base = read_only_bases().swap_remove(0);
    let at = Path::new("/srv/bare");
    let took = (0..REPEATS).map(|_| {
        thread::sleep(PACE);
        let took = timed(|| bare::publish(&base, at));
        bare::take_back(at);
        took
    });
    percentile(&took.collect::<Vec<_>>(), 99.0)
}

/// In milliseconds.
fn timed(work: impl FnOnce()) -> f64 {
    let began = now();
    work();
    began.elapsed().as_secs_f64() * 1e3
}
