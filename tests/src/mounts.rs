//! The mount table of a process, as /proc/PID/mountinfo tells it.

use std::fs;
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub point: String,
    pub kind: String,
    pub source: String,
    /// The mount's own options.
    pub own: String,
    /// The mount's own options, then the superblock's.
    pub options: String,
    /// major:minor of the superblock.
    pub device: String,
}

impl Mount {
    /// What the agent lays below every publication.
    pub fn is_seal(&self) -> bool {
        self.kind == "tmpfs" && self.source == "moorline-seal"
    }
}

/// Whether anything is mounted there, a seal included.
pub fn is_mounted(point: &Path) -> bool {
    of("self").iter().any(|mount| Path::new(&mount.point) == point)
}

/// What is mounted at a place of the node's, lowest first, without the seal below it.
pub fn at(point: &Path) -> Vec<Mount> {
    of("self").into_iter().filter(|mount| Path::new(&mount.point) == point && !mount.is_seal()).collect()
}

/// All mounts that process `pid` ("self" for one's own) sees, lowest first.
pub fn of(pid: &str) -> Vec<Mount> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    table.lines().filter_map(parse).collect()
}

/// Where NFS is mounted, topmost first.
pub fn nfs_mounts() -> Vec<String> {
    let all = of("self").into_iter().filter(|mount| mount.kind.starts_with("nfs") && mount.kind != "nfsd");
    all.map(|mount| mount.point).rev().collect()
}

fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<_> = left.split(' ').collect();
    let right: Vec<_> = right.split(' ').collect();
    Some(Mount {
        point: left.get(4)?.replace("\\040", " "),
        device: (*left.get(2)?).into(),
        kind: (*right.first()?).into(),
        source: (*right.get(1)?).into(),
        own: (*left.get(5)?).into(),
        options: format!("{},{}", left.get(5)?, right.get(2)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = "36 35 98:0 /sub /mnt\\040a ro,noatime master:1 - nfs4 10.90.0.1:/datasets rw,vers=4.1";
        let mount = parse(line).unwrap();
        assert_eq!((mount.point.as_str(), mount.kind.as_str(), mount.device.as_str()), ("/mnt a", "nfs4", "98:0"));
        assert_eq!(mount.own, "ro,noatime");
        assert_eq!(mount.options, "ro,noatime,rw,vers=4.1");
        assert_eq!(mount.source, "10.90.0.1:/datasets");
    }
}
