//! Taking away what is no longer wanted: mounts of ours, by checked identity, and empty directories.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io};

use moorline_shared::id::{SuperblockId, User};
use moorline_sys::mount;
use moorline_sys::mountinfo::{self, Device, Mount};
use rustix::fs::{Mode, OFlags};

use super::publish::open_fdinfo;
use super::{Failure, abort, doing, enter_host_mounts, open_path};
use crate::paths::Paths;

/// Detaches every layer of ours at the target, wherever the target is seen, and removes it.
pub(super) fn unpublish(paths: &Paths, target: &Path) -> Result<(), Failure> {
    enter_host_mounts()?;
    for place in mountinfo::sightings(&table()?, target) {
        detach_layers(paths, &place)?;
    }
    remove_empty(target)
}

/// Topmost first.
fn detach_layers(paths: &Paths, place: &Path) -> Result<(), Failure> {
    let fdinfo = open_fdinfo()?;
    let shown = place.display();
    loop {
        let table = table()?;
        let ours: BTreeSet<Device> = table
            .iter()
            .filter(|mount| mount.mount_point.parent() == Some(&paths.mounts()))
            .map(|mount| mount.device)
            .collect();
        let layers = table.iter().filter(|mount| mount.mount_point == place);
        let Some(top) = layers.into_iter().find(|mount| mount.on_top(&table)) else { return Ok(()) };
        if !ours.contains(&top.device) {
            return Err(Failure::definite(format!("what is mounted at {shown} is not ours: unmount it by hand")));
        }
        let opened = open_path(place).map_err(doing(format!("open {shown}")))?;
        let id = mount::mount_id(&fdinfo, &opened).map_err(doing(format!("identify the mount at {shown}")))?;
        drop(opened);
        if id != top.id {
            return Err(Failure { definite: false, message: format!("{shown} is another mount by now") });
        }
        mount::detach(place).map_err(doing(format!("detach {shown}")))?;
    }
}

fn table() -> Result<Vec<Mount>, Failure> {
    fs::read("/proc/self/mountinfo").map(|table| mountinfo::parse(&table)).map_err(doing("read the mount table"))
}

/// Detaches the base mount. What pods left unwritten is written first, while the mount is still there to be seen: were
/// the server to go away meanwhile, the mount could still be aborted, and nobody takes its tunnel down.
pub(super) fn retire(paths: &Paths, superblock: &SuperblockId, abort: bool) -> Result<(), Failure> {
    enter_host_mounts()?;
    let base = paths.base(superblock);
    let failed = match superblock.user {
        _ if abort => {
            abort::rounds(paths, superblock)?;
            abort::for_good(paths, superblock).err()
        }
        User::ReadOnly => None,
        User::ReadWrite(_) => flush(&base)
            .err()
            .map(doing(format!("write what the pods of {superblock} left unwritten: some of it is lost"))),
    };
    mount::detach(&base).map_err(doing(format!("detach {}", base.display())))?;
    remove_empty(&base)?;
    failed.map_or(Ok(()), Err)
}

fn flush(base: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(base, flags, Mode::empty())?;
    Ok(rustix::fs::syncfs(root)?)
}

/// `rmdir`, which takes neither a mount point nor a directory that holds something.
fn remove_empty(directory: &Path) -> Result<(), Failure> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(doing(format!("remove the empty directory {}", directory.display()))(error))
        }
        _ => Ok(()),
    }
}
