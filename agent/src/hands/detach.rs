//! Taking away what is no longer wanted: mounts of ours, by checked identity, and empty directories.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::{fs, io, thread};

use moorline_shared::id::SuperblockId;
use moorline_sys::mount;
use moorline_sys::mountinfo::{self, Device, Mount};
use rustix::fs::{Mode, OFlags};

use super::{Failure, abort, doing, enter_host_mounts, host_table, is_mount, mark, seal};
use crate::killpoint::{self, Point};
use crate::paths::Paths;

/// How often a node mount is tried that is in use, and how long after each time: a second in all.
const MOMENTS: u32 = 50;
const BETWEEN: Duration = Duration::from_millis(20);

/// Detaches every layer of ours at the target, wherever the target is seen, and removes it. A node mount is left to
/// whoever uses it.
pub(super) fn unpublish(paths: &Paths, target: &Path, node: bool) -> Result<(), Failure> {
    detach(paths, target, node)?;
    // A directory of a node's that was there before is not of our making, and stays.
    if node && fs::symlink_metadata(target).is_ok_and(|target| target.mode() & 0o7777 != 0) {
        return Ok(());
    }
    killpoint::hit(Point::TargetBare);
    remove_empty(target)
}

/// All layers of ours. Somebody may look at it all the time, and be in it for moments alone.
fn unmount_in_idle_moments(paths: &Paths, target: &Path) -> Result<(), Failure> {
    let ours = |top: &Mount, table: &[Mount]| Ok(is_ours(paths, table, top));
    let left = |top: &Mount, table: &[Mount]| {
        let known: Vec<_> = bases(paths, table).collect();
        let top = known.iter().find(|(_, device)| *device == top.device);
        Ok(top.is_some_and(|(old, _)| known.iter().any(|(other, _)| other.succeeds(old))))
    };
    let mut moments = 0..MOMENTS;
    loop {
        match take_top(target, ours, mount::unmount_unused)? {
            // What a failover has left below has ended for those who are in it: that keeps nothing.
            Top::Taken => while detach_top(target, left)? {},
            Top::Stays => return Ok(()),
            Top::InUse if moments.next().is_some() => thread::sleep(BETWEEN),
            Top::InUse => return Err(in_use(target)),
        }
    }
}

fn in_use(place: &Path) -> Failure {
    let shown = place.display();
    let message = format!("{shown} is still used by a process (fuser -vm {shown} names it): it goes when that ends");
    Failure { definite: false, message }
}

/// Detaches every layer of ours at the target, and leaves the directory. A node mount is left to whoever uses it: nothing else
/// tells of a program of the node's that has a file of it open, and may write to it when the node does not go down after all.
pub(super) fn detach(paths: &Paths, target: &Path, node: bool) -> Result<(), Failure> {
    enter_host_mounts()?;
    if node {
        unmount_in_idle_moments(paths, target)?;
    }
    detach_layers(paths, target)
}

/// Wherever the target is seen, topmost first.
fn detach_layers(paths: &Paths, target: &Path) -> Result<(), Failure> {
    for place in mountinfo::sightings(&host_table()?, target) {
        let ours = |top: &Mount, table: &[Mount]| {
            if is_ours(paths, table, top) || seal::is_seal(top) {
                return Ok(true);
            }
            let shown = place.display();
            Err(Failure::definite(format!("what is mounted at {shown} is not ours: unmount it by hand")))
        };
        while detach_top(&place, ours)? {}
    }
    Ok(())
}

/// Detaches the topmost mount at a place, if there is one and it is to go; false if not.
pub(super) fn detach_top(
    place: &Path,
    wanted: impl Fn(&Mount, &[Mount]) -> Result<bool, Failure>,
) -> Result<bool, Failure> {
    match take_top(place, wanted, mount::detach)? {
        Top::Taken => Ok(true),
        Top::Stays => Ok(false),
        Top::InUse => Err(in_use(place)),
    }
}

/// What became of the topmost mount at a place.
#[derive(Debug)]
enum Top {
    Taken,
    /// There is none, or it is not to go.
    Stays,
    /// It would have been taken.
    InUse,
}

/// Takes away the topmost mount at a place, if there is one and it is to go.
fn take_top(
    place: &Path,
    wanted: impl Fn(&Mount, &[Mount]) -> Result<bool, Failure>,
    how: fn(&Path) -> io::Result<()>,
) -> Result<Top, Failure> {
    let shown = place.display();
    let table = host_table()?;
    let mut layers = table.iter().filter(|mount| mount.mount_point == place);
    let Some(top) = layers.find(|mount| mount.on_top(&table)) else { return Ok(Top::Stays) };
    if !wanted(top, &table)? {
        return Ok(Top::Stays);
    }
    // A directory or a file. The name could mean another mount by now.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened =
        rustix::fs::open(place, flags, Mode::empty()).map_err(|error| doing(format!("open {shown}"))(error.into()))?;
    let id = mount::mount_id(&opened).map_err(doing(format!("identify the mount at {shown}")))?;
    drop(opened);
    if id != top.id {
        return Err(Failure { definite: false, message: format!("{shown} is another mount by now") });
    }
    match how(place) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(Top::InUse),
        done => {
            done.map_err(doing(format!("detach {shown}")))?;
            killpoint::hit(Point::LayerDetached);
            Ok(Top::Taken)
        }
    }
}

/// It shows a superblock that a base mount of ours holds.
fn is_ours(paths: &Paths, table: &[Mount], mount: &Mount) -> bool {
    bases(paths, table).any(|(_, device)| device == mount.device)
}

pub(super) fn bases(paths: &Paths, table: &[Mount]) -> impl Iterator<Item = (SuperblockId, Device)> {
    let mounts = paths.mounts();
    let here = table.iter().filter(move |mount| mount.mount_point.parent() == Some(&mounts));
    here.filter_map(|mount| Some((mount.mount_point.file_name()?.to_str()?.parse().ok()?, mount.device)))
}

/// Detaches the base mount. What pods left unwritten is written first, while the mount is still there to be seen: were
/// the server to go away meanwhile, the mount could still be aborted, and nobody takes its tunnel down.
pub(super) fn retire(paths: &Paths, superblock: &SuperblockId, abort: bool) -> Result<(), Failure> {
    enter_host_mounts()?;
    let base = paths.base(superblock);
    if !is_mount(&base)? {
        // What a hand left that was cut short.
        remove_empty(&base)?;
        return mark::remove(paths, superblock);
    }
    let failed = match superblock.user {
        _ if abort => {
            abort::rounds(paths, superblock)?;
            killpoint::hit(Point::RetireAborted);
            // Whoever comes after a hand that was cut short from here on must not show it to anybody again.
            mark::begin(paths, superblock)?;
            killpoint::hit(Point::RetireMarked);
            let ended = abort::for_good(paths, superblock);
            killpoint::hit(Point::RetireShutDown);
            ended.err()
        }
        user if !user.writes() => None,
        _ => {
            let flushed = flush(&base);
            killpoint::hit(Point::Flushed);
            flushed.err().map(doing(format!("write what the pods of {superblock} left unwritten: some of it is lost")))
        }
    };
    mount::detach(&base).map_err(doing(format!("detach {}", base.display())))?;
    killpoint::hit(Point::BaseDetached);
    remove_empty(&base)?;
    mark::remove(paths, superblock)?;
    failed.map_or(Ok(()), Err)
}

/// Writes what pods left unwritten, and takes nothing away.
pub(super) fn flush_alone(paths: &Paths, superblock: &SuperblockId) -> Result<(), Failure> {
    enter_host_mounts()?;
    flush(&paths.base(superblock)).map_err(doing(format!("write what the pods of {superblock} left unwritten")))
}

fn flush(base: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(base, flags, Mode::empty())?;
    Ok(rustix::fs::syncfs(root)?)
}

/// `rmdir`, which takes neither a mount point nor a directory that holds something. What holds something holds nothing of
/// ours, and stays.
fn remove_empty(directory: &Path) -> Result<(), Failure> {
    match fs::remove_dir(directory) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory
            ) =>
        {
            Err(doing(format!("remove the empty directory {}", directory.display()))(error))
        }
        _ => Ok(()),
    }
}
