//! Marks of superblocks that are ended for good: first that it was begun, then that it is done.

use std::fs::{self, File};
use std::io;

use moorline_shared::id::SuperblockId;

use super::{Failure, doing};
use crate::paths::Paths;

/// What a mark holds once nothing can be written through its superblock any more.
pub(crate) const ENDED: &[u8] = b"ended";

/// Whoever comes after a hand that was cut short from here on must not show it to anybody again. What an earlier one has
/// done stays done.
pub(super) fn begin(paths: &Paths, superblock: &SuperblockId) -> Result<(), Failure> {
    let mark = paths.mark_of_end(superblock);
    let made = File::options().create(true).append(true).open(&mark);
    made.map(drop).map_err(doing(format!("write {}", mark.display())))
}

pub(super) fn ended(paths: &Paths, superblock: &SuperblockId) -> Result<(), Failure> {
    let mark = paths.mark_of_end(superblock);
    fs::write(&mark, ENDED).map_err(doing(format!("write {}", mark.display())))
}

pub(super) fn remove(paths: &Paths, superblock: &SuperblockId) -> Result<(), Failure> {
    let mark = paths.mark_of_end(superblock);
    match fs::remove_file(&mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(doing(format!("remove {}", mark.display()))(error))
        }
        _ => Ok(()),
    }
}
