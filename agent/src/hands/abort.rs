//! Ending what is outstanding on a superblock.

use std::thread;
use std::time::Duration;

use moorline_shared::id::SuperblockId;
use moorline_sys::mount;
use rustix::fd::AsFd;

use super::{Failure, doing, enter_host_mounts, open_path};
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
        thread::sleep(BETWEEN);
    }
    Ok(())
}
