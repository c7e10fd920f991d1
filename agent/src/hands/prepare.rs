//! The file system below which everything of ours is mounted.

use std::fs;
use std::path::Path;

use moorline_sys::mount::{self, Setting};
use moorline_sys::mountinfo::{self, Attributes};

use super::{Failure, doing, enter_host_mounts};
use crate::paths::Paths;

pub(super) fn prepare(paths: &Paths) -> Result<(), Failure> {
    enter_host_mounts()?;
    let node = paths.node();
    fs::create_dir_all(&node).map_err(doing(format!("make {}", node.display())))?;
    if !is_mount(&node)? {
        let attributes = Attributes { no_suid: true, no_dev: true, no_exec: true, ..Attributes::default() };
        let fresh =
            mount::create("tmpfs", &[Setting::Value("mode", "0700"), Setting::Value("size", "16m")], attributes)
                .map_err(|refusal| Failure {
                    definite: false,
                    message: format!("make a tmpfs for {}: {refusal}", node.display()),
                })?;
        mount::attach(&fresh, &node).map_err(doing(format!("mount {}", node.display())))?;
    }
    mount::make_unbindable(&node).map_err(doing(format!("make {} unbindable", node.display())))?;
    for directory in [paths.mounts(), paths.namespaces(), paths.fenced(), paths.publications()] {
        fs::create_dir_all(&directory).map_err(doing(format!("make {}", directory.display())))?;
    }
    Ok(())
}

fn is_mount(path: &Path) -> Result<bool, Failure> {
    let table = fs::read("/proc/self/mountinfo").map_err(doing("read the host's mount table"))?;
    Ok(mountinfo::parse(&table).iter().any(|mount| mount.mount_point == path))
}
