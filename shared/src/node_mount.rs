//! A place on every node where a Share is mounted, for whoever uses the node's own file system.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeMount(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeMountError {
    #[error("{0:?} is not absolute and normal: no empty part, '.' or '..' may be in it")]
    NotNormal(String),
    #[error("{path:?} belongs to the system, as all of {system} does: use a place like /mnt/datasets")]
    System { path: String, system: &'static str },
    #[error("{0:?} is where others mount theirs: use a place below it, as {0}/datasets")]
    Crowded(String),
}

/// Programs, devices, what others clean up by themselves, and what runtimes and kubelet keep: neither these nor what is
/// below them.
const SYSTEM: [&str; 21] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/tmp",
    "/usr",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/run",
    "/var/tmp",
];
/// Not these, but what is below them.
const CROWDED: [&str; 8] = ["/home", "/media", "/mnt", "/opt", "/root", "/srv", "/var", "/var/lib"];

impl NodeMount {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// One of the two would hide the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (one, other) = (Path::new(&self.0), Path::new(&other.0));
        one.starts_with(other) || other.starts_with(one)
    }
}

impl FromStr for NodeMount {
    type Err = NodeMountError;

    fn from_str(text: &str) -> Result<Self, NodeMountError> {
        let path = text.to_owned();
        let normal = text.starts_with('/') && text[1..].split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !normal || text.contains('\0') {
            return Err(NodeMountError::NotNormal(path));
        }
        if let Some(system) = SYSTEM.into_iter().find(|system| Path::new(text).starts_with(system)) {
            return Err(NodeMountError::System { path, system });
        }
        if CROWDED.contains(&text) { Err(NodeMountError::Crowded(path)) } else { Ok(Self(path)) }
    }
}

impl TryFrom<String> for NodeMount {
    type Error = NodeMountError;

    fn try_from(text: String) -> Result<Self, NodeMountError> {
        text.parse()
    }
}

impl From<NodeMount> for String {
    fn from(place: NodeMount) -> Self {
        place.0
    }
}

impl fmt::Display for NodeMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_mounted_where_it_hides_nothing() {
        for good in ["/mnt/datasets", "/data", "/srv/a/b", "/home/shared", "/var/lib/moorline/data", "/etcetera"] {
            assert_eq!(good.parse::<NodeMount>().unwrap().as_str(), good);
        }
        for bad in ["", "/", "mnt/a", "/mnt/a/", "/mnt//a", "/mnt/../etc", "/mnt/./a", "/a\0b"] {
            assert!(matches!(bad.parse::<NodeMount>(), Err(NodeMountError::NotNormal(_))), "{bad:?}");
        }
        for bad in ["/etc", "/etc/data", "/var/lib/kubelet/pods/x", "/run/moorline", "/usr/share/data", "/tmp/data"] {
            assert!(matches!(bad.parse::<NodeMount>(), Err(NodeMountError::System { .. })), "{bad:?}");
        }
        assert!(matches!("/mnt".parse::<NodeMount>(), Err(NodeMountError::Crowded(_))));
    }

    #[test]
    fn what_lies_in_one_another_overlaps() {
        let place = |text: &str| text.parse::<NodeMount>().unwrap();
        assert!(place("/mnt/a").overlaps(&place("/mnt/a")) && place("/mnt/a").overlaps(&place("/mnt/a/b")));
        assert!(place("/mnt/a/b").overlaps(&place("/mnt/a")) && !place("/mnt/a").overlaps(&place("/mnt/ab")));
    }
}
