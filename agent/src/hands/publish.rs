//! A clone of a base mount at the place where kubelet wants a volume.

use std::fs::File;
use std::path::Path;

use moorline_sys::mount::{self, Propagation};
use moorline_sys::mountinfo::Attributes;
use rustix::fd::OwnedFd;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, mkdirat, openat2};

use super::{Failure, Publish, doing, enter_host_mounts, open_path};
use crate::paths::Paths;

pub(super) fn publish(paths: &Paths, wanted: &Publish) -> Result<(), Failure> {
    enter_host_mounts()?;
    let target = open_target(&paths.pods(), &wanted.target_path)?;
    let base = paths.base(&wanted.superblock);
    let clone = mount::clone(&base).map_err(doing(format!("clone {}", base.display())))?;
    let attributes = Attributes { read_only: wanted.read_only, no_suid: true, no_dev: true, no_exec: false };
    mount::restrict(&clone, attributes)
        .map_err(doing("restrict the volume's mount (mount_setattr wants Linux 5.12 or newer)"))?;
    // Shared from the start: a container that asks for HostToContainer follows what is mounted here later.
    mount::set_propagation(&clone, Propagation::Shared).map_err(doing("share the volume's mount"))?;
    mount::attach_over(&clone, &target).map_err(doing(format!("mount {}", wanted.target_path.display())))
}

/// Opens the target, made if it is not there: below kubelet's pods, through no symlink, empty and not a mount.
fn open_target(pods: &Path, target: &Path) -> Result<OwnedFd, Failure> {
    let shown = target.display();
    let outside = || Failure::definite(format!("target path {shown} is outside {}", pods.display()));
    let inside = target.strip_prefix(pods).map_err(|_| outside())?;
    let (parent, name) = (inside.parent().ok_or_else(outside)?, inside.file_name().ok_or_else(outside)?);
    let pods = open_path(pods).map_err(doing(format!("open {}", pods.display())))?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let parent = openat2(&pods, parent, flags, Mode::empty(), beneath).map_err(|error| {
        doing(format!("open the directory of target path {shown} (no part of it may be a symlink)"))(error.into())
    })?;
    match mkdirat(&parent, name, Mode::from(0o750)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(doing(format!("make {shown}"))(error.into())),
    }
    let target = openat2(&parent, name, flags, Mode::empty(), beneath).map_err(|error| {
        doing(format!("open target path {shown} (it must be a directory and no symlink)"))(error.into())
    })?;
    let fdinfo = open_fdinfo()?;
    let mount_of = |directory: &OwnedFd| mount::mount_id(&fdinfo, directory).map_err(doing("read a mount's id"));
    if mount_of(&target)? != mount_of(&parent)? {
        return Err(Failure::definite(format!("something else is mounted at target path {shown}: unmount it first")));
    }
    let readable = openat2(&parent, name, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), beneath)
        .map_err(|error| doing(format!("read {shown}"))(error.into()))?;
    let entries = Dir::read_from(readable).map_err(|error| doing(format!("read {shown}"))(error.into()))?;
    let occupied = entries.flatten().any(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."));
    if occupied {
        Err(Failure::definite(format!("target path {shown} is not empty: remove what is in it")))
    } else {
        Ok(target)
    }
}

pub(super) fn open_fdinfo() -> Result<OwnedFd, Failure> {
    File::open("/proc/self/fdinfo").map(OwnedFd::from).map_err(doing("open /proc/self/fdinfo"))
}
