//! All that is in a directory: counted, or deleted, the deepest first.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, OFlags, StatxFlags, renameat, statx};
use rustix::io::Errno;

use super::super::{Failure, doing};
use super::{enter, inode, refused, remove};

/// How deep one goes: each level holds two descriptors, and users make trees of thousands.
const DEEPEST: usize = 64;
/// How much is counted: a dry run is to end while somebody waits for it.
const COUNTED: u64 = 10_000;

#[derive(Default)]
pub(super) struct Tally {
    files: u64,
    directories: u64,
    /// There is more that was not counted.
    more: bool,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_least = if self.more { "at least " } else { "" };
        write!(f, "{at_least}{} files and {} directories in it", self.files, self.directories)
    }
}

pub(super) fn count(top: &OwnedFd) -> Result<Tally, Failure> {
    let mut walk = Walk { top, mount: mount_of(top)?, removes: false, tally: Tally::default(), moved: false };
    walk.go(top, 0)?;
    Ok(walk.tally)
}

pub(super) fn empty(top: &OwnedFd) -> Result<Tally, Failure> {
    let mut walk = Walk { top, mount: mount_of(top)?, removes: true, tally: Tally::default(), moved: false };
    loop {
        walk.go(top, 0)?;
        if !std::mem::take(&mut walk.moved) {
            return Ok(walk.tally);
        }
    }
}

fn mount_of(directory: &OwnedFd) -> Result<u64, Failure> {
    let seen = statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .map_err(|error| doing("ask which mount a directory is of")(error.into()))?;
    Ok(seen.stx_mnt_id)
}

struct Walk<'a> {
    top: &'a OwnedFd,
    mount: u64,
    removes: bool,
    tally: Tally,
    /// What lay too deep is at the top now.
    moved: bool,
}

impl Walk<'_> {
    fn go(&mut self, directory: &OwnedFd, depth: usize) -> Result<(), Failure> {
        if mount_of(directory)? != self.mount {
            return Err(Failure::definite("something is mounted in it: nothing more is deleted until that is gone"));
        }
        let failed = |error| refused("list a directory that is to be deleted".to_owned(), error);
        for entry in Dir::read_from(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if !self.removes && self.tally.files + self.tally.directories >= COUNTED {
                self.tally.more = true;
                return Ok(());
            }
            // Whatever the server says that it is: a directory is what can be entered as one.
            match enter(directory, Path::new(name), OFlags::RDONLY) {
                Ok(child) if depth == DEEPEST => self.lies_too_deep(directory, name, &child)?,
                Ok(child) => {
                    self.go(&child, depth + 1)?;
                    drop(child);
                    self.tally.directories += 1;
                    self.remove(directory, name, AtFlags::REMOVEDIR)?;
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    self.tally.files += 1;
                    self.remove(directory, name, AtFlags::empty())?;
                }
                Err(Errno::NOENT) => {}
                Err(Errno::XDEV) => {
                    let message = format!("{} is another file system: nothing more is deleted", name.display());
                    return Err(Failure::definite(message));
                }
                Err(error) => return Err(refused(format!("open {}", name.display()), error)),
            }
        }
        Ok(())
    }

    /// Its turn comes once more, from the top.
    fn lies_too_deep(&mut self, directory: &OwnedFd, name: &OsStr, child: &OwnedFd) -> Result<(), Failure> {
        if !self.removes {
            self.tally.directories += 1;
            self.tally.more = true;
            return Ok(());
        }
        let up = format!(".moorline-deep-{}", inode(child)?);
        renameat(directory, name, self.top, &up).map_err(|error| refused(format!("move {}", name.display()), error))?;
        self.moved = true;
        Ok(())
    }

    fn remove(&self, directory: &OwnedFd, name: &OsStr, flags: AtFlags) -> Result<(), Failure> {
        if self.removes { remove(directory, name, flags) } else { Ok(()) }
    }
}
