//! The mount engine: what a publication costs, what many cost, and how long a death is felt.

mod crowd;
mod read;
mod recovery;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::RUNS;
use super::figures::MOUNT;
use super::record::Samples;
use crate::agent::Agent;
use crate::command::sh;
use crate::kit;
use crate::node::Node;
use crate::objects;
use crate::site::Site;
use crate::wait::{eventually, seconds};

pub use recovery::copy;

pub(super) fn run() {
    let _log = LogNearby::new();
    let node = Node::new("node1");
    let (a, b) = (Site::start(&node, "a"), Site::start(&node, "b"));
    let mut samples = Samples::default();
    for run in 0..RUNS {
        println!("run {run}");
        crowd::measure(&node, &a, &b, &mut samples);
        read::measure(&node, &a, run, &mut samples);
        recovery::measure(&node, &a, &b, &mut samples);
    }
    samples.leave(MOUNT);
}

/// The agent's log, in memory until the end. Results lie outside the guest, where a line costs as much as half a publication;
/// on a node it goes into a pipe.
pub(super) struct LogNearby {
    place: PathBuf,
}

impl LogNearby {
    const NEARBY: &str = "/run/agent.log";

    #[track_caller]
    pub(super) fn new() -> Self {
        let place = kit::results().join("agent.log");
        symlink(Self::NEARBY, &place).unwrap_or_else(|error| panic!("make {}: {error}", place.display()));
        Self { place }
    }
}

impl Drop for LogNearby {
    fn drop(&mut self) {
        let moved = fs::remove_file(&self.place).and_then(|()| fs::copy(Self::NEARBY, &self.place));
        if let Err(error) = moved {
            eprintln!("keep {}: {error}", Self::NEARBY);
        }
    }
}

/// The usual two shares on direct gateways, of which the first site serves.
fn objects(sites: &[&Site]) -> String {
    let parts = [
        objects::direct_gateway("gw", false, sites),
        objects::share("datasets", "gw", "ReadOnly"),
        objects::share("checkpoints", "gw", "ReadWrite"),
    ];
    parts.join("---\n")
}

/// Ends an agent that has nothing published any more, so that the next one begins as on a node that has just been booted.
#[track_caller]
pub(super) fn end(mut agent: Agent) {
    eventually("the last mount is gone", seconds(180), || match agent.status()["mounts"].as_array() {
        Some(mounts) if mounts.is_empty() => Ok(()),
        mounts => Err(mounts.map(Vec::len)),
    });
    agent.kill9();
}

/// What somebody does who knows only mount(8).
#[track_caller]
pub(super) fn plain_mount(site: &Site, export: &str, at: &Path, options: &str) {
    let (server, shown) = (site.direct_server(), at.display());
    fs::create_dir_all(at).unwrap_or_else(|error| panic!("make {shown}: {error}"));
    let options = if options.is_empty() { String::new() } else { format!("-o {options}") };
    sh(&format!("mount -t nfs4 {options} {server}:/{export} {shown}"));
}

#[track_caller]
pub(super) fn plain_unmount(at: &Path) {
    sh(&format!("umount {0}; rmdir {0}", at.display()));
}
