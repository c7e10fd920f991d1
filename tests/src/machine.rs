//! The scenario's own machine: pid 1 of fresh pid, mount, network, UTS, IPC and cgroup namespaces.
//!
//! ```text
//!  runner ── unshare(1) ── pid 1: this file. Builds the root, reaps orphans, writes the verdict, clears up
//!                            └─ the scenario: sites, agent, pods, all in here
//! ```
//! Its root is an overlay over the real one, so that whatever is written is gone afterwards. Its mount namespace is
//! "the host's" for the agent under test, which reaches it as /proc/1/ns/mnt, as on a real node.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, pivot_root};

use crate::command::sh;
use crate::kit;
use crate::mounts;
use crate::wait::{poll, seconds};

/// Written into the results folder when the scenario itself has ended: "passed", or what the process ended with.
pub const VERDICT: &str = "verdict";

/// The life of pid 1: build the machine, run `lab body NAME` in it, say how it ended, clear up.
pub fn run(scenario: &str, kit: &Path, results: &Path, cgroup: &Path) -> ExitCode {
    // By itself: its parent stays outside, or the group would hold a process and could hand nothing down.
    must(&format!("enter {}", cgroup.display()), fs::write(cgroup.join("cgroup.procs"), "0"));
    must("make a cgroup namespace", unshare(CloneFlags::CLONE_NEWCGROUP));
    build(kit, results);
    let body = Command::new(kit::executable("lab")).args(["body", scenario]).spawn();
    let verdict = match body {
        Ok(child) => reap_until(Pid::from_raw(child.id().cast_signed())),
        Err(error) => format!("start the scenario: {error}"),
    };
    let written = fs::write(kit::results().join(VERDICT), &verdict);
    clear();
    if verdict == "passed" && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// pid 1 inherits every orphan (detached containers, daemons), and nobody else will reap them.
fn reap_until(body: Pid) -> String {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, 0)) if pid == body => return "passed".into(),
            Ok(WaitStatus::Exited(pid, status)) if pid == body => return format!("failed with status {status}"),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == body => return format!("ended by {signal}"),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return format!("wait for the scenario: {error}"),
        }
    }
}

/// Unmounts what is left of NFS by force. Left to the end of the namespace, an unmount asks a server whose tunnel is
/// gone, for minutes. In a thread, since even this may block; the runner does not wait for it for long.
fn clear() {
    let done = thread::spawn(|| {
        for point in mounts::nfs_mounts() {
            let _ = umount2(point.as_str(), MntFlags::MNT_FORCE);
            let _ = umount2(point.as_str(), MntFlags::MNT_DETACH);
        }
    });
    poll(seconds(2), || done.is_finished().then_some(()));
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
}

fn build(kit: &Path, results: &Path) {
    let scratch = Path::new("/mnt");
    none("tmpfs", scratch, "size=2g");
    let [upper, work, root] = ["upper", "work", "root"].map(|name| scratch.join(name));
    for folder in [&upper, &work, &root] {
        make(folder);
    }
    let layers = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    none("overlay", &root, &layers);

    bind(Path::new("/dev"), &root.join("dev"));
    none("proc", &root.join("proc"), "");
    none("sysfs", &root.join("sys"), "");
    none("cgroup2", &root.join("sys/fs/cgroup"), "");
    // Plain file systems where sockets, exported trees and kubelet's folders lie: an overlay is none of a node's.
    for point in ["run", "tmp", "srv", "var/lib/kubelet", "var/lib/nfs"] {
        make(&root.join(point));
        none("tmpfs", &root.join(point), "mode=755");
    }
    for (from, name) in [(kit, "kit"), (results, "results")] {
        let to = root.join(kit::INSIDE.trim_start_matches('/')).join(name);
        make(&to);
        bind(from, &to);
    }

    let old = root.join("old-root");
    make(&old);
    must("enter the new root", pivot_root(&root, &old));
    must("go to the new root", nix::unistd::chdir("/"));
    must("leave the old root", umount2("/old-root", MntFlags::MNT_DETACH));
    // As systemd leaves a node's root, and kubelet needs it.
    must("share the root", mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>));
    make(Path::new("/var/lib/kubelet/pods"));
    make(Path::new("/var/lib/kubelet/plugins_registry"));
    delegate_cgroups();
    sh("ip link set lo up");
}

/// Processes go to a leaf, or the group could not hand its controllers down to the containers' groups.
fn delegate_cgroups() {
    let top = Path::new("/sys/fs/cgroup");
    make(&top.join("init"));
    must("move into a cgroup of its own", fs::write(top.join("init/cgroup.procs"), "1"));
    for controller in fs::read_to_string(top.join("cgroup.controllers")).unwrap_or_default().split_whitespace() {
        // Some cannot be delegated everywhere; runc does with those that are there.
        let _ = fs::write(top.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn make(folder: &Path) {
    must(&format!("make {}", folder.display()), fs::create_dir_all(folder));
}

fn none(kind: &str, at: &Path, options: &str) {
    let action = format!("mount {kind} at {}", at.display());
    must(&action, mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options)));
}

fn bind(from: &Path, to: &Path) {
    let action = format!("bind {} to {}", from.display(), to.display());
    must(&action, mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>));
}

#[track_caller]
fn must<T, E: std::fmt::Display>(action: &str, result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{action}: {error}; the lab needs root and fresh namespaces"))
}
