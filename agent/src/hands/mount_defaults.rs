//! What mounts of the node take for granted: a file that mount.nfs reads.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;

use moorline_shared::mount_defaults::OURS;

use super::{Failure, doing, enter_host_mounts};
use crate::killpoint::{self, Point};
use crate::paths::Paths;

/// Whole or not at all. Only a file that is known to be ours by its first line is replaced or removed.
pub(super) fn set(paths: &Paths, text: Option<&str>) -> Result<(), Failure> {
    enter_host_mounts()?;
    let file = paths.mount_defaults();
    let shown = file.display();
    let there = match fs::read_to_string(&file) {
        Ok(there) => Some(there),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(doing(format!("read {shown}"))(error)),
    };
    if there.is_some_and(|there| !there.starts_with(OURS)) {
        return Err(Failure::definite(format!("{shown} is not moorline's: give that file another name")));
    }
    let Some(text) = text else {
        return match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(doing(format!("remove {shown}"))(error)),
            _ => Ok(()),
        };
    };
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).map_err(doing(format!("make {}", directory.display())))?;
    }
    // mount.nfs reads names that end with .conf.
    let fresh = file.with_extension("new");
    let mut open = File::options();
    let mut unfinished = open
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&fresh)
        .map_err(doing(format!("make {} (is the node's /etc read-only?)", fresh.display())))?;
    unfinished
        .write_all(text.as_bytes())
        .and_then(|()| unfinished.sync_all())
        .map_err(doing(format!("write {}", fresh.display())))?;
    killpoint::hit(Point::DefaultsWritten);
    fs::rename(&fresh, &file).map_err(doing(format!("put {} in its place", fresh.display())))
}
