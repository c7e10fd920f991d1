//! Keeping what writers left unwritten from a server that no tunnel leads to.

use std::fs;

use moorline_shared::id::{NamespaceId, SuperblockId};

use super::{Failure, abort, doing, enter_host_mounts, mark};
use crate::killpoint::{self, Point};
use crate::paths::Paths;

/// Ends those superblocks of the namespace that writers use, for good. Readers leave nothing unwritten.
pub(super) fn shut_down(paths: &Paths, id: &NamespaceId) -> Result<(), Failure> {
    enter_host_mounts()?;
    let entries = fs::read_dir(paths.mounts()).map_err(doing(format!("list {}", paths.mounts().display())))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<SuperblockId>().ok());
    for superblock in names.filter(|name| name.namespace == *id && name.user.writes()) {
        // Were the agent to die before all this is on record as a fence, its successor knows what can't be used any more.
        mark::begin(paths, &superblock)?;
        killpoint::hit(Point::WriterMarked);
        if !abort::for_good(paths, &superblock)? {
            mark::remove(paths, &superblock)?;
            return Err(Failure::definite(format!("end {superblock} for good: this kernel can't (Linux 6.4 can)")));
        }
        killpoint::hit(Point::WriterEnded);
        mark::ended(paths, &superblock)?;
    }
    Ok(())
}
