//! A clone of a base mount at the place where kubelet wants a volume.

use std::path::{Path, PathBuf};

use moorline_shared::sub_dir::SubDir;
use moorline_sys::mount;
use moorline_sys::mountinfo::Attributes;
use rustix::fd::OwnedFd;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use super::{Failure, Publish, doing, enter_host_mounts, host_table, open_path, seal};
use crate::killpoint::{self, Point};
use crate::paths::Paths;

pub(super) fn publish(paths: &Paths, wanted: &Publish) -> Result<(), Failure> {
    enter_host_mounts()?;
    let clone = clone_of_share(paths, wanted)?;
    let attributes = Attributes { read_only: wanted.read_only, no_suid: true, no_dev: true, no_exec: false };
    // Shared from the start: a container that asks for HostToContainer follows what is mounted here later.
    mount::restrict_and_share(&clone, attributes).map_err(doing("restrict and share the volume's mount"))?;
    killpoint::hit(Point::TargetCloned);
    let seal = match open_target(paths, wanted)? {
        Target::Bare(directory) => seal::put_over(paths, &directory, &wanted.target_path)?,
        Target::Sealed(seal) => seal,
    };
    killpoint::hit(Point::TargetSealed);
    mount::attach_over(&clone, &seal).map_err(doing(format!("mount {}", wanted.target_path.display())))
}

/// Of the share's root, or of a directory below it.
fn clone_of_share(paths: &Paths, wanted: &Publish) -> Result<OwnedFd, Failure> {
    let base = paths.base(&wanted.superblock);
    let Some(sub_dir) = &wanted.sub_dir else {
        return mount::clone(&base).map_err(doing(format!("clone {}", base.display())));
    };
    let root = open_path(&base).map_err(doing(format!("open {}", base.display())))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // What lies on the server is others' to make: it must not lead elsewhere.
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let directory = openat2(&root, sub_dir.as_path(), flags, Mode::empty(), resolve)
        .map_err(|error| explain(wanted, sub_dir, error))?;
    mount::clone_at(&directory, Path::new("")).map_err(doing(format!("clone {sub_dir} of {}", base.display())))
}

fn explain(wanted: &Publish, sub_dir: &SubDir, error: Errno) -> Failure {
    let (share, target) = (&wanted.superblock.share, &wanted.superblock.namespace.target);
    let what = format!("open {sub_dir} of Share {share}, the volume's subDir, on the server at {target}");
    let cure = match error {
        Errno::NOENT => "there is no such directory: make it there, or correct the subDir",
        Errno::NOTDIR => "that is no directory: name one that is",
        Errno::LOOP => "a part of it is a symlink, and none is followed: name the directory that it stands for",
        Errno::XDEV => "it lies on another file system of the server: export that, and make it a Share",
        Errno::ACCESS | Errno::PERM => {
            "the server does not let this node's root pass: give others the right to search it, or export with no_root_squash"
        }
        _ => return doing(what)(error.into()),
    };
    Failure::definite(format!("{what}: {cure} ({error})"))
}

/// The place of a publication, empty and open.
enum Target {
    /// A directory on the node's disk.
    Bare(OwnedFd),
    /// What an earlier attempt laid there, or what is left where somebody has detached a share.
    Sealed(OwnedFd),
}

/// Opens the target, made if it is not there: below kubelet's pods, or anywhere for a node mount; through no symlink, empty
/// and nobody's mount.
fn open_target(paths: &Paths, wanted: &Publish) -> Result<Target, Failure> {
    let (target, shown) = (&wanted.target_path, wanted.target_path.display());
    let top = if wanted.node { PathBuf::from("/") } else { paths.pods() };
    let outside = || Failure::definite(format!("target path {shown} is outside {}", top.display()));
    let inside = target.strip_prefix(&top).map_err(|_| outside())?;
    let (parent, name) = (inside.parent().ok_or_else(outside)?, inside.file_name().ok_or_else(outside)?);
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Some(theirs) = [&paths.kubelet, &paths.run].into_iter().find(|theirs| overlap(target, theirs))
        && wanted.node
    {
        let message = format!("node mount {shown} is in the way of {}: choose another place", theirs.display());
        return Err(Failure::definite(message));
    }
    let mut at = open_path(&top).map_err(doing(format!("open {}", top.display())))?;
    let open = |at: &OwnedFd, way: &Path| {
        openat2(at, way, flags, Mode::empty(), beneath).map_err(|error| explain_way(target, error))
    };
    let parent = if wanted.node {
        for part in parent {
            make(&at, Path::new(part), Mode::from(0o755), target)?;
            at = open(&at, Path::new(part))?;
        }
        at
    } else {
        // Kubelet makes the directories of its own.
        open(&at, parent)?
    };
    // Nobody's to write to but root's, as long as nothing is mounted there: after a reboot, say.
    make(&parent, Path::new(name), Mode::empty(), target)?;
    killpoint::hit(Point::TargetMade);
    let target = open(&parent, Path::new(name))?;
    let mount_of = |directory: &OwnedFd| mount::mount_id(directory).map_err(doing("read a mount's id"));
    let top = mount_of(&target)?;
    if top != mount_of(&parent)? {
        return if host_table()?.iter().any(|mount| mount.id == top && seal::is_seal(mount)) {
            Ok(Target::Sealed(target))
        } else {
            Err(Failure::definite(format!("something else is mounted at target path {shown}: unmount it first")))
        };
    }
    let readable = openat2(&parent, name, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), beneath)
        .map_err(|error| doing(format!("read {shown}"))(error.into()))?;
    let entries = Dir::read_from(readable).map_err(|error| doing(format!("read {shown}"))(error.into()))?;
    let occupied = entries.flatten().any(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."));
    if occupied {
        Err(Failure::definite(format!("target path {shown} is not empty: remove what is in it")))
    } else {
        Ok(Target::Bare(target))
    }
}

/// One lies in the other.
fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

fn make(parent: &OwnedFd, name: &Path, mode: Mode, target: &Path) -> Result<(), Failure> {
    match mkdirat(parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(doing(format!("make {} for target path {}", name.display(), target.display()))(error.into())),
    }
}

/// What is found on the way to a target does not change by itself.
fn explain_way(target: &Path, error: Errno) -> Failure {
    let what = format!("open target path {}", target.display());
    match error {
        Errno::LOOP => Failure::definite(format!(
            "{what}: no part of it may be a symlink: name the directory that it leads to ({error})"
        )),
        Errno::NOTDIR => Failure::definite(format!("{what}: every part of it must be a directory ({error})")),
        _ => doing(what)(error.into()),
    }
}
