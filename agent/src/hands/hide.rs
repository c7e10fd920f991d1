//! Of a pod that is leaving: nothing that kubelet looks at may wait for a server.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use moorline_shared::id::SuperblockId;
use moorline_shared::publication::Publication;
use moorline_sys::mountinfo::{self, Mount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::detach::{bases, detach_top};
use super::{Failure, enter_host_mounts, host_table};
use crate::host::containers::numbers;
use crate::paths::Paths;

/// Detaches what waits for this publication's server where kubelet looks: at its target, down to the seal, and at the
/// subPaths that kubelet has bound for the pod.
pub(super) fn hide(paths: &Paths, publication: &Publication) -> Result<(), Failure> {
    enter_host_mounts()?;
    let user = publication.user();
    let its = |id: &SuperblockId| id.share == publication.share && id.user == user;
    let take =
        |top: &Mount, table: &[Mount]| Ok(bases(paths, table).any(|(id, device)| its(&id) && device == top.device));
    let table = host_table()?;
    let sub_paths = paths.sub_paths(&publication.pod.uid);
    let bound = table.iter().map(|mount| &mount.mount_point).filter(|place| place.starts_with(&sub_paths)).cloned();
    let places: BTreeSet<PathBuf> =
        mountinfo::sightings(&table, Path::new(&publication.target_path)).into_iter().chain(bound).collect();
    let (mut taken, mut failed) = (BTreeSet::new(), Vec::new());
    // One that fails must not leave kubelet to wait for the others.
    for place in places {
        loop {
            match detach_top(&place, take) {
                Ok(true) => drop(taken.insert(place.clone())),
                Ok(false) => break,
                Err(failure) => {
                    failed.push(failure.message);
                    break;
                }
            }
        }
    }
    let_umounts_go(&taken);
    if failed.is_empty() { Ok(()) } else { Err(Failure { definite: false, message: failed.join("; ") }) }
}

/// An umount of kubelet's that began before still waits for the server, which it asks what kind of file system that is, and
/// kubelet waits for it. Ended it has failed, and the next one finds nothing to ask.
fn let_umounts_go(places: &BTreeSet<PathBuf>) {
    let waits = |pid: &Pid| umounts(*pid).is_ok_and(|place| place.is_some_and(|place| places.contains(&place)));
    for pid in numbers(Path::new("/proc")).filter_map(Pid::from_raw).filter(waits) {
        // Looked at again while it is held: its number is no other's by now.
        if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
            && waits(&pid)
        {
            // It may have ended by itself.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

/// What a process on the node itself is unmounting, if that is what it is about: no container's, whatever it calls itself.
fn umounts(pid: Pid) -> io::Result<Option<PathBuf>> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let command = fs::read(process.join("cmdline"))?;
    let Some(place) = umounted(&command) else { return Ok(None) };
    let on_the_node = fs::read_link(process.join("ns/mnt"))? == fs::read_link("/proc/self/ns/mnt")?;
    Ok(on_the_node.then_some(place))
}

/// The place in `umount [OPTION]... PLACE`.
fn umounted(command: &[u8]) -> Option<PathBuf> {
    let mut words = command.strip_suffix(b"\0")?.split(|byte| *byte == 0);
    let program = Path::new(OsStr::from_bytes(words.next()?));
    let place = PathBuf::from(OsStr::from_bytes(words.next_back()?));
    (program.file_name() == Some(OsStr::new("umount"))).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unmounted_is_the_last_word_of_an_umount() {
        assert_eq!(umounted(b"umount\0/a b\0"), Some("/a b".into()));
        assert_eq!(umounted(b"/usr/bin/umount\0-f\0/a\0"), Some("/a".into()));
        assert_eq!(umounted(b"cat\0/a\0"), None);
        assert_eq!(umounted(b"umount\0"), None);
        assert_eq!(umounted(b""), None, "a kernel thread");
    }
}
