//! Ending what is outstanding on a superblock.

use std::fs::File;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use moorline_shared::id::SuperblockId;
use moorline_sys::mount::{self, Setting};
use moorline_sys::mountinfo::Attributes;
use moorline_sys::namespace;
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};

use super::{Failure, doing, enter_host_mounts, host_table, open_path};
use crate::killpoint::{self, Point};
use crate::paths::Paths;

const ROUNDS: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(100);

pub(super) fn abort(paths: &Paths, superblock: &SuperblockId) -> Result<(), Failure> {
    enter_host_mounts()?;
    rounds(paths, superblock)
}

/// Aborts for a second. Once is not enough: a writer that gets an error for one page sends the next.
pub(super) fn rounds(paths: &Paths, superblock: &SuperblockId) -> Result<(), Failure> {
    let base = paths.base(superblock);
    let pin = open_path(&base).map_err(doing(format!("open {}", base.display())))?;
    for _ in 0..ROUNDS {
        mount::abort(&base, pin.as_fd()).map_err(doing(format!("abort {}", base.display())))?;
        killpoint::hit(Point::AbortedOnce);
        thread::sleep(BETWEEN);
    }
    Ok(())
}

/// Ends the superblock of a base mount for good, where the kernel knows how to (Linux 6.4): whatever is still asked of it,
/// now and later, fails at once. False where the kernel does not.
///
/// For one whose last mount is about to go: nothing is left then to abort it through, and descriptors that are still on it
/// would wait for a dead server. And for writers that no tunnel's end can keep from their old server.
pub(super) fn for_good(paths: &Paths, superblock: &SuperblockId) -> Result<bool, Failure> {
    let base = paths.base(superblock);
    let table = host_table()?;
    let Some(mount) = table.iter().find(|mount| mount.mount_point == base) else {
        return Ok(true);
    };
    let network = paths.namespace(&superblock.namespace);
    let network = File::open(&network).map_err(doing(format!("open {}", network.display())))?;
    // The kernel shows a client to a sysfs of its own network namespace only.
    namespace::enter_network(network).map_err(doing("enter the network namespace"))?;
    let sysfs = mount::create("sysfs", &[] as &[Setting<'_>], Attributes::default()).map_err(|refusal| Failure {
        definite: false,
        message: format!("make a sysfs for the network namespace: {refusal}"),
    })?;
    let switch = format!("fs/nfs/{}/shutdown", mount.device);
    match rustix::fs::openat(&sysfs, &switch, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => Ok(false),
        opened => opened
            .map_err(io::Error::from)
            .and_then(|switch| File::from(switch).write_all(b"1"))
            .map(|()| true)
            .map_err(doing(format!("write to {switch} of the network namespace's sysfs"))),
    }
}
