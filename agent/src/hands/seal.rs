//! What lies below every publication: an empty read-only directory of our own, so that nothing is written to the node's
//! disk where a share should be. Whoever takes a share away, by hand or by mistake, uncovers it.

use std::path::Path;

use moorline_sys::mount::{self, Setting};
use moorline_sys::mountinfo::{Attributes, Mount};
use rustix::fd::OwnedFd;

use super::{Failure, doing};
use crate::paths::Paths;

/// What mount tables show as its source.
const SOURCE: &str = "moorline-seal";

/// The file system that all seals are clones of. It is read-only itself, and not only its mounts: no remount of one makes
/// it writable. Its mode keeps those without privilege from taking it for an empty share; so does SELinux, by the label that
/// its policy has for a tmpfs.
pub(super) fn make(paths: &Paths) -> Result<(), Failure> {
    let settings = [Setting::Value("source", SOURCE), Setting::Value("mode", "0"), Setting::Flag("ro")];
    let attributes = Attributes { read_only: true, no_suid: true, no_dev: true, no_exec: true };
    let made = mount::create("tmpfs", &settings, attributes)
        .map_err(|refusal| Failure { definite: false, message: format!("make an empty file system: {refusal}") })?;
    let place = paths.seal();
    mount::attach(&made, &place).map_err(doing(format!("mount {}", place.display())))
}

pub(crate) fn is_seal(mount: &Mount) -> bool {
    mount.file_system == "tmpfs" && mount.source.as_os_str() == SOURCE
}

/// Seals an open directory, and returns what lies there now.
pub(super) fn put_over(paths: &Paths, bare: &OwnedFd, shown: &Path) -> Result<OwnedFd, Failure> {
    let place = paths.seal();
    let seal = mount::clone(&place).map_err(doing(format!("clone {}", place.display())))?;
    mount::attach_over(&seal, bare).map_err(doing(format!("seal the directory {}", shown.display())))?;
    Ok(seal)
}
