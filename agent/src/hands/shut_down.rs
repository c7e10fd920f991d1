//! Ending superblocks for good, by the kernel's own switch: there is no way back, and nothing they hold is ever sent.

use std::fs;
use std::path::Path;

use moorline_shared::id::{NamespaceId, SuperblockId, User};
use moorline_sys::mountinfo;

use super::{Failure, doing, enter_host_mounts};
use crate::paths::Paths;

/// Those of the namespace that writers use. Readers leave nothing unwritten.
pub(super) fn shut_down(paths: &Paths, id: &NamespaceId) -> Result<(), Failure> {
    enter_host_mounts()?;
    let table = fs::read("/proc/self/mountinfo").map_err(doing("read the mount table"))?;
    for mount in mountinfo::parse(&table) {
        if mount.mount_point.parent() != Some(&paths.mounts()) {
            continue;
        }
        let name = mount.mount_point.file_name().and_then(|name| name.to_str()?.parse::<SuperblockId>().ok());
        if name.is_some_and(|name| name.namespace == *id && matches!(name.user, User::ReadWrite(_))) {
            // Seen in the sysfs of the network namespace that it was mounted in: the host's.
            let switch = Path::new("/sys/fs/nfs").join(mount.device.to_string()).join("shutdown");
            fs::write(&switch, "1").map_err(doing(format!("write {}", switch.display())))?;
        }
    }
    Ok(())
}
