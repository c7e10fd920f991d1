//! The floor of a publication: what the kernel takes for it, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};

use moorline_sys::mount;
use moorline_sys::mountinfo::Attributes;

const BASES: &str = "/run/moorline/node/mounts";

/// The mounts of the agent's that its read-only volumes are clones of.
#[track_caller]
pub(super) fn read_only_bases() -> Vec<PathBuf> {
    let bases = fs::read_dir(BASES).unwrap_or_else(|error| panic!("read {BASES}: {error}"));
    let bases = bases.flatten().map(|base| base.path()).filter(|base| base.to_string_lossy().ends_with("@ro"));
    let bases: Vec<_> = bases.collect();
    assert!(!bases.is_empty(), "no read-only mount in {BASES}");
    bases
}

#[track_caller]
pub(super) fn publish(base: &Path, at: &Path) {
    let publish = || {
        fs::create_dir(at)?;
        let clone = mount::clone(base)?;
        let attributes = Attributes { read_only: true, no_suid: true, no_dev: true, no_exec: false };
        mount::restrict_and_share(&clone, attributes)?;
        mount::attach(&clone, at)
    };
    publish().unwrap_or_else(|error| panic!("publish {} by hand: {error}", at.display()));
}

#[track_caller]
pub(super) fn take_back(at: &Path) {
    let taken_back = mount::detach(at).and_then(|()| fs::remove_dir(at));
    taken_back.unwrap_or_else(|error| panic!("take back {}: {error}", at.display()));
}
