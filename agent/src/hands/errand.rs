//! Directories of claims, in a share that is mounted: made, put aside, deleted. By descriptor, below the share's root, through
//! no symlink and into no other file system. Each may be cut short anywhere and is then done again.

mod place;
mod walk;

use std::ffi::OsStr;
use std::path::Path;

use moorline_shared::errand::{Errand, Task};
use moorline_shared::id::SuperblockId;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags, mkdirat, openat2, statx, unlinkat};
use rustix::io::Errno;

use super::{Failure, doing, enter_host_mounts, open_path};
use crate::paths::Paths;
use place::Place;

/// What was done, in words.
pub(super) fn errand(paths: &Paths, superblock: &SuperblockId, errand: &Errand) -> Result<String, Failure> {
    enter_host_mounts()?;
    let base = paths.base(superblock);
    let root = open_path(&base).map_err(doing(format!("open {}", base.display())))?;
    run(&root, errand)
}

fn run(root: &OwnedFd, errand: &Errand) -> Result<String, Failure> {
    let path = errand.sub_dir.as_path();
    let place = |parent| Place { parent, name: path.file_name().unwrap_or_default(), errand };
    let parent = path.parent().unwrap_or(Path::new(""));
    let parent = match &errand.task {
        Task::Make { .. } => Some(make_way(root, parent)?),
        _ => open_way(root, parent)?,
    };
    let Some(place) = parent.map(place) else { return Ok(not_there(errand)) };
    match &errand.task {
        Task::Make { uid, gid, mode } => place.make((*uid, *gid, *mode)),
        Task::Unmake {} => place.unmake(),
        Task::Archive {} => place.archive(),
        Task::Delete { dry_run: true } => place.would_delete(),
        Task::Delete { dry_run: false } => place.delete(),
        Task::Keep {} => Ok(format!("{} stays as it is", errand.sub_dir)),
    }
}

fn not_there(errand: &Errand) -> String {
    format!("{} is not there", errand.sub_dir)
}

fn enter(at: impl AsFd, way: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    openat2(at, way, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn explain(way: &Path, error: Errno) -> Failure {
    let what = format!("open {} of the share", way.display());
    match error {
        Errno::LOOP => Failure::definite(format!("{what}: a part of it is a symlink, and none is followed ({error})")),
        Errno::NOTDIR => Failure::definite(format!("{what}: a part of it is no directory ({error})")),
        Errno::XDEV => Failure::definite(format!("{what}: it lies on another file system of the server ({error})")),
        _ => refused(what, error),
    }
}

/// What the server has not let us do.
fn refused(what: String, error: Errno) -> Failure {
    let cure = match error {
        Errno::ACCESS | Errno::PERM => {
            "the server does not let this node's root do that: export with no_root_squash, or have the StorageClass say the uid and gid that the server takes it for"
        }
        Errno::ROFS => "the server exports it for readers only: export it with rw",
        _ => return doing(what)(error.into()),
    };
    Failure::definite(format!("{what}: {cure} ({error})"))
}

/// None if it does not lead anywhere.
fn open_way(root: &OwnedFd, way: &Path) -> Result<Option<OwnedFd>, Failure> {
    let way = if way.as_os_str().is_empty() { Path::new(".") } else { way };
    match enter(root, way, OFlags::RDONLY) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(explain(way, error)),
    }
}

fn make_way(root: &OwnedFd, way: &Path) -> Result<OwnedFd, Failure> {
    let mut at = enter(root, Path::new("."), OFlags::RDONLY).map_err(|error| explain(Path::new("."), error))?;
    for part in way {
        match mkdirat(&at, part, Mode::from(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(refused(format!("make {} in the share", way.display()), error)),
        }
        at = enter(&at, Path::new(part), OFlags::RDONLY).map_err(|error| explain(way, error))?;
    }
    Ok(at)
}

fn remove(directory: &OwnedFd, name: &OsStr, flags: AtFlags) -> Result<(), Failure> {
    match unlinkat(directory, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(refused(format!("delete {}", name.display()), error)),
    }
}

fn inode(directory: &OwnedFd) -> Result<u64, Failure> {
    Ok(seen(directory)?.stx_ino)
}

fn seen(file: &OwnedFd) -> Result<Statx, Failure> {
    statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .map_err(|error| doing("ask which directory this is, and whose")(error.into()))
}

#[cfg(test)]
mod tests;
