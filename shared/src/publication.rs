//! A share as one pod sees it, what kubelet asked for and has not taken back; or as a node does, by its Share's nodeMount.

use serde::{Deserialize, Serialize};

use crate::errand::{Errand, Task};
use crate::id::{PublicationId, User};
use crate::name::Name;
use crate::share::{Access, Share};
use crate::sub_dir::SubDir;

/// Kept as a file in the run directory from before the first mount until after the last detach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Publication {
    pub volume_id: String,
    pub target_path: String,
    pub share: Name,
    /// The directory of the share that is shown; none is the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_dir: Option<SubDir>,
    pub read_only: bool,
    /// Nobody's, for a node mount.
    pub pod: Pod,
    /// Who may not have its volume as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sole: Option<Sole>,
    /// A pod's own, and no PersistentVolume.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inline: bool,
    /// A node mount: asked for by its Share, for whoever uses the node's own file system.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node: bool,
    /// Nobody sees it: its share is mounted for this to be done there, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errand: Option<Task>,
    /// False once kubelet took it back, its first mount failed, or its Share asks for it no more: what is there is to be
    /// detached, then forgotten. A node mount goes only when nobody uses it, and is served until then.
    pub wanted: bool,
}

/// Whose a volume is alone, as long as it is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sole {
    /// One node's: ReadWriteOnce.
    Node,
    /// One pod's: ReadWriteOncePod.
    Pod,
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
        match (self.node, self.read_only) {
            (false, true) => User::ReadOnly,
            (false, false) => User::ReadWrite(self.id()),
            (true, true) => User::Node(Access::ReadOnly),
            (true, false) => User::Node(Access::ReadWrite),
        }
    }

    /// What a Share asks for by its nodeMount.
    pub fn of_node(share: &Share) -> Option<Self> {
        Some(Self {
            volume_id: String::new(),
            target_path: share.node_mount.as_ref()?.to_string(),
            share: share.name.clone(),
            sub_dir: None,
            read_only: share.access == Access::ReadOnly,
            pod: Pod::default(),
            sole: None,
            inline: false,
            errand: None,
            node: true,
            wanted: true,
        })
    }

    pub fn of_errand(errand: Errand) -> Self {
        Self {
            volume_id: errand.id.to_string(),
            target_path: Self::errand_path(&errand.id),
            share: errand.share,
            sub_dir: Some(errand.sub_dir),
            read_only: false,
            pod: Pod::default(),
            sole: None,
            inline: false,
            node: false,
            errand: Some(errand.task),
            wanted: true,
        }
    }

    /// No path: nothing is ever mounted there.
    pub fn errand_path(id: &Name) -> String {
        format!("errand:{id}")
    }

    pub fn as_errand(&self) -> Option<Errand> {
        Some(Errand {
            id: self.volume_id.parse().ok()?,
            share: self.share.clone(),
            sub_dir: self.sub_dir.clone()?,
            task: self.errand.clone()?,
        })
    }

    /// Whether the next agent goes on with it of its own accord. What takes something away it is asked for anew: that may have
    /// been thought better of while nobody was there to hear it.
    pub fn outlives_its_agent(&self) -> bool {
        !self.errand.as_ref().is_some_and(Task::takes_away)
    }

    /// A volume of a pod's: kubelet, or somebody in its place, asks for it and gives it back.
    pub fn is_pods(&self) -> bool {
        !self.node && self.errand.is_none()
    }

    /// Whether a mount of its Share is kept up for it.
    pub fn is_served(&self) -> bool {
        self.wanted || self.node
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
    fn what_takes_something_away_is_done_by_no_agent_that_was_not_asked_for_it() {
        let outlives = |task| {
            let (id, share, sub_dir) = ("u".parse().unwrap(), "data".parse().unwrap(), "a".parse().unwrap());
            Publication::of_errand(Errand { id, share, sub_dir, task }).outlives_its_agent()
        };
        assert!(outlives(Task::Make { uid: 0, gid: 0, mode: 0 }) && outlives(Task::Delete { dry_run: true }));
        assert!(![Task::Unmake {}, Task::Archive {}, Task::Delete { dry_run: false }].into_iter().any(outlives));
    }

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
