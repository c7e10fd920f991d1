//! What the kernel can do.

use std::fs;
use std::path::PathBuf;

use crate::paths::from_agent;

/// Whether it can mount NFS, now or by loading a module when it is asked to.
pub(crate) fn has_nfs() -> bool {
    let loaded = fs::read_to_string("/proc/filesystems").is_ok_and(|known| knows(&known));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = from_agent(&PathBuf::from("/lib/modules").join(release.trim()));
    let listed = |list: &str| fs::read_to_string(modules.join(list)).is_ok_and(|list| list.contains("/nfsv4.ko"));
    loaded || listed("modules.dep") || listed("modules.builtin")
}

fn knows(filesystems: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().last() == Some("nfs4"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_known_by_its_whole_name() {
        assert!(knows("nodev\tsysfs\nnodev\tnfs\nnodev\tnfs4\n"));
        assert!(!knows("nodev\tnfs\nnodev\tnfsd\n\text4\n"));
    }
}
