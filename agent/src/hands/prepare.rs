//! The file system below which everything of ours is mounted.

use std::fs;

use moorline_sys::mount::{self, Setting};
use moorline_sys::mountinfo::Attributes;

use super::{Failure, doing, enter_host_mounts, is_mount, seal};
use crate::killpoint::{self, Point};
use crate::paths::Paths;

pub(super) fn prepare(paths: &Paths) -> Result<(), Failure> {
    mount::can_change_attributes().map_err(|error| {
        Failure::definite(format!(
            "ask for mount_setattr: {error}: Linux 5.12 or newer is needed; is this node's kernel older, or does the seccomp profile of the agent's pod leave it out?"
        ))
    })?;
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
        killpoint::hit(Point::NodeMounted);
    }
    mount::make_unbindable(&node).map_err(doing(format!("make {} unbindable", node.display())))?;
    killpoint::hit(Point::NodeUnbindable);
    for directory in
        [paths.mounts(), paths.namespaces(), paths.fenced(), paths.publications(), paths.given_up(), paths.seal()]
    {
        fs::create_dir_all(&directory).map_err(doing(format!("make {}", directory.display())))?;
    }
    if !is_mount(&paths.seal())? {
        seal::make(paths)?;
    }
    Ok(())
}
