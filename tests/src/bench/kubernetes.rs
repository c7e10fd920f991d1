//! What kubelet meets: as many calls at once as a node has pods, here; and in a cluster, see `cluster.rs`, pods whose server
//! falls silent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::Instant;

use super::RUNS;
use super::bare;
use super::figures::{HERE, IN_TREE};
use super::mount::{LogNearby, end, plain_mount, plain_unmount};
use super::record::{Samples, Whose, percentile};
use crate::agent::Agent;
use crate::command::checked;
use crate::csi::Volume;
use crate::node::Node;
use crate::objects;
use crate::pod::{insist, publish, volume};
use crate::site::Site;
use crate::wait::now;

const PODS: usize = 110;
/// How often they all come for one sample.
const ROUNDS: usize = 2;
/// By the export that each is of.
const SHARES: [(&str, &str); 4] =
    [("datasets", "datasets"), ("models", "checkpoints"), ("images", "datasets"), ("archive", "checkpoints")];
const FIGURE: &str = "publish_110_p99_ms";

pub(super) fn run() {
    let _log = LogNearby::new();
    let node = Node::new("node1");
    let site = Site::start(&node, "a");
    let mut samples = Samples::default();
    for run in 0..RUNS {
        println!("run {run}");
        measure(&node, &site, &mut samples);
    }
    samples.leave(HERE);
}

fn measure(node: &Node, site: &Site, samples: &mut Samples) {
    let shares = SHARES.map(|(name, export)| objects::share_of(name, "gw", export, "ReadOnly"));
    let agent =
        Agent::start(node, &[&[objects::direct_gateway("gw", false, &[site])], &shares[..]].concat().join("---\n"));
    let first = SHARES.map(|(share, _)| volume(node, "first", share, true));
    first.iter().for_each(|volume| publish(&agent, volume));
    let volumes: Vec<_> =
        (0..PODS).map(|number| volume(node, &format!("pod-{number}"), SHARES[number % SHARES.len()].0, true)).collect();

    samples.add(FIGURE, Whose::Ours, p99(|| ours(&agent, &volumes)));
    samples.add(FIGURE, Whose::Floor, p99(bare_publications));
    samples.add(FIGURE, Whose::Peer(IN_TREE), p99_of_plain(site));

    give_back(&agent, &first);
    end(agent);
}

/// The 99th percentile, in milliseconds, of several rounds.
fn p99(round: impl FnMut() -> Vec<f64>) -> f64 {
    let took: Vec<f64> = std::iter::repeat_with(round).take(ROUNDS).flatten().collect();
    percentile(&took, 99.0)
}

#[track_caller]
fn ours(agent: &Agent, volumes: &[Volume]) -> Vec<f64> {
    let answers = agent.csi().publish_at_once(volumes).unwrap_or_else(|error| panic!("publish: {error}"));
    for answer in &answers {
        answer.said.as_ref().unwrap_or_else(|status| panic!("publish: {status}"));
    }
    give_back(agent, volumes);
    answers.iter().map(|answer| answer.after.as_secs_f64() * 1e3).collect()
}

#[track_caller]
fn give_back(agent: &Agent, volumes: &[Volume]) {
    let csi = agent.csi();
    volumes.iter().for_each(|volume| insist(agent, "unpublish", || csi.unpublish(&volume.target)));
}

/// As many threads as there are pods, each with the system calls of one publication.
fn bare_publications() -> Vec<f64> {
    let bases = bare::read_only_bases();
    let took = at_once(|number, at| bare::publish(&bases[number % bases.len()], at));
    places().iter().for_each(|at| bare::take_back(at));
    took
}

/// What kubelet runs for a volume of its own, once for each pod.
#[track_caller]
fn p99_of_plain(site: &Site) -> f64 {
    let exports = ["datasets", "checkpoints"];
    let kept = exports.map(|export| PathBuf::from(format!("/srv/plain-{export}")));
    exports.iter().zip(&kept).for_each(|(export, at)| plain_mount(site, export, at, "ro"));
    let sources = exports.map(|export| format!("{}:/{export}", site.direct_server()));
    let took = p99(|| {
        let took = at_once(|number, at| {
            fs::create_dir(at).unwrap_or_else(|error| panic!("make {}: {error}", at.display()));
            let source = &sources[number % sources.len()];
            checked(Command::new("mount").args(["-t", "nfs", "-o", "ro", source]).arg(at), None);
        });
        places().iter().for_each(|at| bare::take_back(at));
        took
    });
    kept.iter().for_each(|at| plain_unmount(at));
    took
}

fn places() -> Vec<PathBuf> {
    (0..PODS).map(|number| PathBuf::from(format!("/srv/pod-{number}"))).collect()
}

/// Does this for each place at one moment, and says how long after that moment each was done, in milliseconds.
fn at_once(work: impl Fn(usize, &Path) + Sync) -> Vec<f64> {
    let gate: RwLock<Option<Instant>> = RwLock::new(None);
    let places = places();
    thread::scope(|scope| {
        // Whoever comes by waits until the clock runs. There is nothing behind the lock that a panic could leave half done.
        let mut opening = gate.write().unwrap_or_else(PoisonError::into_inner);
        let (work, gate) = (&work, &gate);
        let all: Vec<_> = places
            .iter()
            .enumerate()
            .map(|(number, at)| {
                scope.spawn(move || {
                    let began = *gate.read().unwrap_or_else(PoisonError::into_inner);
                    work(number, at);
                    began.map_or(f64::NAN, |began| began.elapsed().as_secs_f64() * 1e3)
                })
            })
            .collect();
        *opening = Some(now());
        drop(opening);
        all.into_iter().map(|one| one.join().unwrap_or_else(|_| panic!("one of them failed; see above"))).collect()
    })
}
