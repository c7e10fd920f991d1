//! Every mount namespace on the node, by way of the processes in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use moorline_sys::mountinfo::{self, Device, Mount};

/// A mount namespace that holds mounts of interest.
#[derive(Debug)]
pub(crate) struct MountNamespace {
    /// Identifies it while a process is in it.
    pub(crate) inode: u64,
    /// A process in it.
    pub(crate) pid: i32,
    pub(crate) table: Vec<Mount>,
    /// Every process in it was killed, yet is still there: it waits in the kernel.
    pub(crate) killed: bool,
}

/// The namespaces that hold a mount of one of these devices, the host's among them.
pub(crate) fn holding(devices: &BTreeSet<Device>) -> Vec<MountNamespace> {
    let mut namespaces = BTreeMap::new();
    if devices.is_empty() {
        return Vec::new();
    }
    for task in tasks() {
        let Ok(inode) = fs::metadata(task.directory.join("ns/mnt")).map(|metadata| metadata.ino()) else { continue };
        let namespace = namespaces.entry(inode).or_insert_with(|| MountNamespace {
            inode,
            pid: task.pid,
            table: table(&task.directory),
            killed: true,
        });
        if namespace.table.is_empty() {
            // The process that was asked first had ended in between.
            (namespace.pid, namespace.table) = (task.pid, table(&task.directory));
        }
    }
    namespaces.retain(|_, namespace| namespace.table.iter().any(|mount| devices.contains(&mount.device)));
    for task in tasks() {
        let inode = fs::metadata(task.directory.join("ns/mnt")).map(|metadata| metadata.ino());
        if let Some(namespace) = inode.ok().and_then(|inode| namespaces.get_mut(&inode)) {
            namespace.killed &= was_killed(&task.directory);
        }
    }
    namespaces.into_values().collect()
}

struct Task {
    pid: i32,
    directory: PathBuf,
}

/// One task of each process: its first thread, or another where that has ended before the rest.
fn tasks() -> impl Iterator<Item = Task> {
    numbers(Path::new("/proc")).filter_map(|pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        if fs::metadata(process.join("ns/mnt")).is_ok() {
            return Some(Task { pid, directory: process });
        }
        let threads = process.join("task");
        numbers(&threads)
            .map(|thread| threads.join(thread.to_string()))
            .find(|thread| fs::metadata(thread.join("ns/mnt")).is_ok())
            .map(|directory| Task { pid, directory })
    })
}

fn numbers(directory: &Path) -> impl Iterator<Item = i32> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn table(task: &Path) -> Vec<Mount> {
    fs::read(task.join("mountinfo")).map(|table| mountinfo::parse(&table)).unwrap_or_default()
}

/// A SIGKILL is pending: sent to the process, or to the thread by the end of its group.
fn was_killed(task: &Path) -> bool {
    let Ok(status) = fs::read_to_string(task.join("status")) else { return true };
    killed_by_status(&status)
}

fn killed_by_status(status: &str) -> bool {
    const SIGKILL_BIT: u64 = 1 << (nix::libc::SIGKILL - 1);
    status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & SIGKILL_BIT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pending_sigkill_counts_as_killed() {
        assert!(killed_by_status("State:\tD\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(killed_by_status("SigPnd:\t0000000000000000\nShdPnd:\t0000000000004100\n"));
        assert!(!killed_by_status("SigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\n"));
    }

    #[test]
    fn this_process_is_found_by_the_device_of_its_root() {
        let table = table(Path::new("/proc/self"));
        let root = table.iter().find(|mount| mount.mount_point == Path::new("/")).unwrap();
        let found = holding(&BTreeSet::from([root.device]));
        let own = fs::metadata("/proc/self/ns/mnt").unwrap().ino();
        assert!(found.iter().any(|namespace| namespace.inode == own && !namespace.killed));
    }
}
