//! A new server under running containers: in one mount namespace, a clone of the new superblock over each copy of
//! the old one, with the copy's own root and flags.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use moorline_sys::mount::{self, Propagation};
use moorline_sys::mountinfo::{self, Mount};
use moorline_sys::namespace;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::publish::open_fdinfo;
use super::{Failure, Replace, doing, enter_host_mounts, open_path};
use crate::paths::Paths;

pub(super) fn replace(paths: &Paths, wanted: &Replace) -> Result<(), Failure> {
    let place = Place::open(wanted)?;
    let host = fs::read("/proc/1/mountinfo")
        .map(|table| mountinfo::parse(&table))
        .map_err(doing("read the host's mount table"))?;
    let (old, new) = (paths.base(&wanted.old), paths.base(&wanted.new));
    let old = host
        .iter()
        .find(|mount| mount.mount_point == old)
        .ok_or_else(|| Failure::definite(format!("{} is not mounted", old.display())))?;
    let own = |mount: &Mount| mount.mount_point.starts_with(paths.node());
    let copies: Vec<&Mount> = place
        .table
        .iter()
        .filter(|mount| mount.device == old.device && mount.on_top(&place.table) && !(place.is_host && own(mount)))
        .collect();

    enter_host_mounts()?;
    let new = open_path(&new).map_err(doing(format!("open {}", new.display())))?;
    let clones: Vec<OwnedFd> =
        copies.iter().map(|copy| clone_for(copy, old, &new, place.is_host)).collect::<Result<_, _>>()?;
    if !place.is_host {
        namespace::enter_mounts(&place.namespace)
            .map_err(doing(format!("enter the mount namespace of process {}", wanted.pid)))?;
    }
    // One copy that can't be replaced must not keep the others on the dead server.
    let failures: Vec<String> = copies
        .iter()
        .zip(&clones)
        .filter_map(|(copy, clone)| place.put(copy, clone).err())
        .map(|failure| failure.message)
        .collect();
    if failures.is_empty() { Ok(()) } else { Err(Failure { definite: false, message: failures.join("; ") }) }
}

/// A clone of the new superblock's mount that has the copy's directory as root, and its flags before anybody sees it.
fn clone_for(copy: &Mount, old: &Mount, new: &OwnedFd, on_host: bool) -> Result<OwnedFd, Failure> {
    let shown = copy.mount_point.display();
    let below = copy.root.strip_prefix(&old.root).unwrap_or(Path::new(""));
    let clone = if below.as_os_str().is_empty() {
        mount::clone_at(new, Path::new(""))
    } else {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let directory = openat2(new, below, flags, Mode::empty(), beneath)
            .map_err(|error| doing(format!("open {} on the new server, for {shown}", below.display()))(error.into()))?;
        mount::clone_at(directory, Path::new(""))
    }
    .map_err(doing(format!("clone the new mount for {shown}")))?;
    mount::restrict(&clone, copy.attributes).map_err(doing(format!("give the new mount the flags of {shown}")))?;
    if on_host {
        mount::set_propagation(&clone, Propagation::Shared).map_err(doing("share the new mount"))?;
    }
    Ok(clone)
}

/// The mount namespace that is worked in, with its table as it was before it was entered.
struct Place {
    namespace: OwnedFd,
    table: Vec<Mount>,
    is_host: bool,
    fdinfo: OwnedFd,
}

impl Place {
    fn open(wanted: &Replace) -> Result<Self, Failure> {
        let process = PathBuf::from(format!("/proc/{}", wanted.pid));
        let namespace = File::open(process.join("ns/mnt"))
            .map_err(doing(format!("open the mount namespace of process {}", wanted.pid)))?;
        let inode =
            |file: &File| file.metadata().map(|metadata| metadata.ino()).map_err(doing("look at a mount namespace"));
        if inode(&namespace)? != wanted.namespace_inode {
            return Err(Failure {
                definite: false,
                message: format!("process {} is in another mount namespace by now", wanted.pid),
            });
        }
        let host = fs::metadata("/proc/1/ns/mnt").map_err(doing("look at the host's mount namespace"))?;
        let table = fs::read(process.join("mountinfo"))
            .map_err(doing(format!("read the mount table of process {}", wanted.pid)))?;
        Ok(Self {
            namespace: namespace.into(),
            table: mountinfo::parse(&table),
            is_host: host.ino() == wanted.namespace_inode,
            fdinfo: open_fdinfo()?,
        })
    }

    fn put(&self, copy: &Mount, clone: &OwnedFd) -> Result<(), Failure> {
        let shown = copy.mount_point.display();
        let target = open_path(&copy.mount_point).map_err(doing(format!("open {shown}")))?;
        let id = mount::mount_id(&self.fdinfo, &target).map_err(doing(format!("identify the mount at {shown}")))?;
        if id != copy.id {
            return Err(Failure { definite: false, message: format!("{shown} is another mount by now") });
        }
        // Nothing may follow the new mount to where this one is propagated: a container's read-only bind would
        // get a layer with the flags of this one. Each place is given its own.
        mount::set_propagation(&target, Propagation::Private).map_err(doing(format!("make {shown} private")))?;
        mount::attach_over(clone, &target).map_err(doing(format!("mount over {shown}")))
    }
}
