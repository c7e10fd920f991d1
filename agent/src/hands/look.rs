//! Does a server still know what we have mounted? A question that the kernel must pass on, and that may never return.

use std::thread;
use std::time::Duration;

use moorline_shared::id::SuperblockId;
use moorline_shared::usage::{Amount, Usage};
use rustix::fs::{AtFlags, StatVfs, StatxFlags, fstatvfs, statx};
use rustix::io::Errno;

use super::{Failure, doing, enter_host_mounts, open_path};
use crate::paths::Paths;

/// With the last superblock of a client that is ended for good the kernel ends that client, and one that was being mounted on
/// it meanwhile gets an error for ever. A single error may be another's abort.
const ATTEMPTS: u32 = 3;
const BETWEEN: Duration = Duration::from_millis(500);

/// A definite failure says that what is mounted is of no use any more, though the server answers: it does not know the root,
/// or the kernel does not ask it. What is of use says how full it is.
pub(super) fn look(paths: &Paths, superblock: &SuperblockId) -> Result<Usage, Failure> {
    enter_host_mounts()?;
    let base = paths.base(superblock);
    let root = open_path(&base).map_err(doing(format!("open {}", base.display())))?;
    for attempt in 1.. {
        match statx(&root, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS) {
            Ok(_) => break,
            Err(Errno::STALE) => return Err(Failure::definite(format!("{} is stale", base.display()))),
            Err(Errno::IO) if attempt == ATTEMPTS => {
                return Err(Failure::definite(format!("{} fails again and again", base.display())));
            }
            Err(Errno::IO) => thread::sleep(BETWEEN),
            Err(error) => return Err(doing(format!("look at {}", base.display()))(error.into())),
        }
    }
    let filled = fstatvfs(&root).map_err(|error| doing(format!("ask how full {} is", base.display()))(error.into()))?;
    Ok(usage(&filled))
}

fn usage(filled: &StatVfs) -> Usage {
    let bytes = |blocks: u64| blocks.saturating_mul(filled.f_frsize);
    let amount = |total: u64, free: u64, available: u64| Amount { total, used: total.saturating_sub(free), available };
    Usage {
        bytes: amount(bytes(filled.f_blocks), bytes(filled.f_bfree), bytes(filled.f_bavail)),
        files: amount(filled.f_files, filled.f_ffree, filled.f_favail),
    }
}
