//! Does a server still know what we have mounted? A question that the kernel must pass on, and that may never return.

use moorline_shared::id::SuperblockId;
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::{Failure, doing, enter_host_mounts, open_path};
use crate::paths::Paths;

/// A definite failure says that the server answers, and does not know the root.
pub(super) fn look(paths: &Paths, superblock: &SuperblockId) -> Result<(), Failure> {
    enter_host_mounts()?;
    let base = paths.base(superblock);
    let root = open_path(&base).map_err(doing(format!("open {}", base.display())))?;
    match statx(&root, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::STALE) => Err(Failure::definite(format!("{} is stale", base.display()))),
        Err(error) => Err(doing(format!("look at {}", base.display()))(error.into())),
    }
}
