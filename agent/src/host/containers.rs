//! Every mount namespace on the node, by way of the processes in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use moorline_shared::observed::Occupants;
use moorline_sys::mountinfo::{self, Device, Mount};

/// A mount namespace that holds mounts of interest.
#[derive(Debug)]
pub(crate) struct MountNamespace {
    /// Identifies it while a process is in it.
    pub(crate) inode: u64,
    /// A process in it.
    pub(crate) pid: i32,
    pub(crate) table: Vec<Mount>,
    /// Who is in it, if that was asked; None also when all have ended since it was found.
    pub(crate) occupants: Option<Occupants>,
}

/// The namespaces that hold a mount of one of these devices, the host's among them. Who is in those that hold one of
/// `written` is looked at as well.
pub(crate) fn holding(devices: &BTreeSet<Device>, written: &BTreeSet<Device>) -> Vec<MountNamespace> {
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
            occupants: None,
        });
        if namespace.table.is_empty() {
            // The process that was asked first had ended in between.
            (namespace.pid, namespace.table) = (task.pid, table(&task.directory));
        }
    }
    let holds = |namespace: &MountNamespace, devices: &BTreeSet<Device>| {
        namespace.table.iter().any(|mount| devices.contains(&mount.device))
    };
    namespaces.retain(|_, namespace| holds(namespace, devices));
    let judged: BTreeSet<u64> =
        namespaces.values().filter(|namespace| holds(namespace, written)).map(|namespace| namespace.inode).collect();
    if judged.is_empty() {
        return namespaces.into_values().collect();
    }
    for task in tasks() {
        let inode = fs::metadata(task.directory.join("ns/mnt")).map(|metadata| metadata.ino());
        let inode = inode.ok().filter(|inode| judged.contains(inode));
        if let Some(namespace) = inode.and_then(|inode| namespaces.get_mut(&inode)) {
            namespace.occupants = namespace.occupants.max(occupant(task.pid));
        }
    }
    namespaces.into_values().collect()
}

/// Those of these pods that have a process on the node. Its cgroup names the pod, whoever drives cgroups: by the UID, or
/// with underscores for its dashes.
pub(crate) fn with_processes(uids: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for pid in numbers(Path::new("/proc")) {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        found.extend(uids.iter().filter(|uid| names_pod(&cgroup, uid)).cloned());
    }
    found
}

fn names_pod(cgroup: &str, uid: &str) -> bool {
    !uid.is_empty() && (cgroup.contains(uid) || cgroup.contains(&uid.replace('-', "_")))
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

/// The numbers that are names in a directory: processes, or threads.
pub(crate) fn numbers(directory: &Path) -> impl Iterator<Item = i32> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn table(task: &Path) -> Vec<Mount> {
    fs::read(task.join("mountinfo")).map(|table| mountinfo::parse(&table)).unwrap_or_default()
}

/// What a process is about; None when it is a zombie or gone, which holds nothing.
fn occupant(pid: i32) -> Option<Occupants> {
    let threads = PathBuf::from(format!("/proc/{pid}/task"));
    numbers(&threads).filter_map(|thread| thread_of(&threads.join(thread.to_string()))).max()
}

fn thread_of(task: &Path) -> Option<Occupants> {
    let read = |name: &str| fs::read_to_string(task.join(name)).ok();
    judge(&read("stat")?, &read("status")?)
}

fn judge(stat: &str, status: &str) -> Option<Occupants> {
    /// The kernel's PF_EXITING, which is part of what user space sees.
    const EXITING: u64 = 0x4;
    const SIGKILL_BIT: u64 = 1 << (nix::libc::SIGKILL - 1);
    // The name in brackets may hold anything, brackets and spaces included; state is the first field after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    let flags: u64 = fields.get(6)?.parse().ok()?;
    let pending = |line: &str| {
        let mask = status.lines().find_map(|text| text.strip_prefix(line))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    // A SIGKILL from outside stays in the process's own mask until it is gone. One in a thread's mask may be from a
    // thread beside it that called exit: that process ended by itself, and may have ended well.
    Some(if pending("ShdPnd:")? & SIGKILL_BIT != 0 {
        Occupants::Killed
    } else if flags & EXITING != 0 || pending("SigPnd:")? & SIGKILL_BIT != 0 {
        Occupants::Ending
    } else {
        Occupants::Living
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKED: &str = "7 (a) b) D 1 7 7 0 -1 4194560 0 0";

    #[test]
    fn killed_is_who_got_a_sigkill_and_not_who_leaves_by_itself() {
        let masks = |own: &str, shared: &str| format!("SigPnd:\t{own}\nShdPnd:\t{shared}\n");
        let none = masks("0000000000000000", "0000000000000000");
        assert_eq!(judge(BLOCKED, &none), Some(Occupants::Living));
        assert_eq!(judge(BLOCKED, &masks("0000000000000000", "0000000000004000")), Some(Occupants::Living), "SIGTERM");
        assert_eq!(judge(BLOCKED, &masks("0000000000000100", "0000000000000100")), Some(Occupants::Killed));
        assert_eq!(judge(BLOCKED, &masks("0000000000000100", "0000000000000000")), Some(Occupants::Ending));
        assert_eq!(judge(&BLOCKED.replace("4194560", "4194564"), &none), Some(Occupants::Ending), "PF_EXITING");
        assert_eq!(judge(&BLOCKED.replace(" D ", " Z "), &none), None);
    }

    #[test]
    fn a_pod_is_found_by_its_cgroup_whoever_drives_them() {
        let uid = "0a1b2c3d-0000-4000-8000-00000000000f";
        assert!(names_pod("0::/kubepods/burstable/pod0a1b2c3d-0000-4000-8000-00000000000f/9c7e\n", uid));
        let systemd = "0::/kubepods.slice/kubepods-pod0a1b2c3d_0000_4000_8000_00000000000f.slice/cri-9c7e.scope\n";
        assert!(names_pod(systemd, uid));
        assert!(!names_pod("0::/system.slice/kubelet.service\n", uid) && !names_pod(systemd, ""));
    }

    #[test]
    fn this_process_is_found_by_the_device_of_its_root() {
        let table = table(Path::new("/proc/self"));
        let root = table.iter().find(|mount| mount.mount_point == Path::new("/")).unwrap();
        let devices = BTreeSet::from([root.device]);
        let found = holding(&devices, &devices);
        let own = fs::metadata("/proc/self/ns/mnt").unwrap().ino();
        assert!(found.iter().any(|namespace| namespace.inode == own && namespace.occupants == Some(Occupants::Living)));
    }
}
