//! A share as one pod sees it: what kubelet asked for and has not taken back.

use serde::{Deserialize, Serialize};

use crate::id::{PublicationId, User};
use crate::name::Name;

/// Kept as a file in the run directory from before the first mount until after the last detach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Publication {
    pub volume_id: String,
    pub target_path: String,
    pub share: Name,
    pub read_only: bool,
    pub pod: Pod,
    /// False once kubelet took it back, or its first mount failed: what is there is to be detached, then forgotten.
    pub wanted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Publication {
    pub fn id(&self) -> PublicationId {
        PublicationId::of(&self.target_path)
    }

    pub fn user(&self) -> User {
        if self.read_only { User::ReadOnly } else { User::ReadWrite(self.id()) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetPathError {
    #[error("target path {0:?} is not absolute and normal: no empty part, '.' or '..' may be in it")]
    NotNormal(String),
    #[error("target path {path:?} is outside {allowed:?}, the only directory volumes are published in")]
    Outside { path: String, allowed: String },
}

/// Checks the text of a target path; what lies on the disk there is checked again when it is opened.
pub fn check_target_path(path: &str, allowed: &str) -> Result<(), TargetPathError> {
    let normal = path.starts_with('/') && path[1..].split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !normal || path.contains('\0') {
        return Err(TargetPathError::NotNormal(path.to_owned()));
    }
    match path.strip_prefix(allowed) {
        Some(rest) if rest.starts_with('/') => Ok(()),
        _ => Err(TargetPathError::Outside { path: path.to_owned(), allowed: allowed.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_normal_paths_below_the_allowed_directory_pass() {
        let pods = "/var/lib/kubelet/pods";
        assert_eq!(check_target_path("/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mount", pods), Ok(()));
        for bad in ["", "x", "/etc", "/var/lib/kubelet/pods", "/var/lib/kubelet/pods/", "/var/lib/kubelet/podsx/a"] {
            assert!(check_target_path(bad, pods).is_err(), "{bad:?}");
        }
        for bad in ["/var/lib/kubelet/pods/../x", "/var/lib/kubelet/pods/./x", "/var/lib/kubelet/pods//x"] {
            assert!(matches!(check_target_path(bad, pods), Err(TargetPathError::NotNormal(_))), "{bad:?}");
        }
    }
}
