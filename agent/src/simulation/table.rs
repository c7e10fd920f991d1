//! Mount tables as the kernel keeps them: one for the host, one for each container.

use std::path::{Path, PathBuf};

use moorline_sys::mountinfo::{self, Attributes, Device, Mount};

#[derive(Debug, Clone, Default)]
pub(super) struct MountTable(pub Vec<Mount>);

/// What is mounted, before it is anywhere.
#[derive(Debug, Clone)]
pub(super) struct Detached {
    pub device: Device,
    pub attributes: Attributes,
    pub source: PathBuf,
}

/// What lies below a node mount, as `hands` makes it.
pub(super) const SEAL: &str = "moorline-seal";

impl From<&Mount> for Detached {
    fn from(mount: &Mount) -> Self {
        Self { device: mount.device, attributes: mount.attributes, source: mount.source.clone() }
    }
}

impl MountTable {
    pub(super) fn top(&self, at: &Path) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.mount_point == at && mount.on_top(&self.0))
    }

    pub(super) fn find(&self, id: u64) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.id == id)
    }

    /// The mount in which a path lies.
    fn around(&self, path: &Path) -> u64 {
        let holders = self.0.iter().filter(|mount| path.starts_with(&mount.mount_point) && mount.on_top(&self.0));
        holders.max_by_key(|mount| mount.mount_point.as_os_str().len()).map_or(0, |mount| mount.id)
    }

    pub(super) fn put_over(&mut self, id: u64, at: &Path, what: Detached) {
        let parent = self.around(at);
        self.insert(id, parent, at, what);
    }

    /// Beneath the mount `over`, which stays on top.
    pub(super) fn put_beneath(&mut self, id: u64, over: u64, what: Detached) {
        let Some(top) = self.0.iter_mut().find(|mount| mount.id == over) else { return };
        let (parent, at) = (std::mem::replace(&mut top.parent, id), top.mount_point.clone());
        self.insert(id, parent, &at, what);
    }

    /// All that is mounted at a place, lowest first.
    pub(super) fn stack(&self, at: &Path) -> Vec<&Mount> {
        mountinfo::layers(self.0.iter().filter(|mount| mount.mount_point == at))
    }

    /// On this mount, below what lies there, as it is propagated. False if that mount is gone.
    pub(super) fn put_on(&mut self, id: u64, parent: u64, at: &Path, what: Detached) -> bool {
        if self.find(parent).is_none() {
            return false;
        }
        if let Some(over) = self.child(parent, at) {
            self.0[over].parent = id;
        }
        self.insert(id, parent, at, what);
        self.follow(id);
        true
    }

    /// What is mounted on this mount at a place goes, and what lies over it stays.
    pub(super) fn take_child(&mut self, parent: u64, at: &Path) {
        let Some(gone) = self.child(parent, at).map(|index| self.0.remove(index)) else { return };
        if let Some(over) = self.child(gone.id, at) {
            self.0[over].parent = parent;
        }
    }

    fn child(&self, parent: u64, at: &Path) -> Option<usize> {
        self.0.iter().position(|mount| mount.parent == parent && mount.mount_point == at && mount.id != parent)
    }

    pub(super) fn follow(&mut self, id: u64) {
        if let Some(mount) = self.0.iter_mut().find(|mount| mount.id == id) {
            mount.follows = true;
        }
    }

    fn insert(&mut self, id: u64, parent: u64, at: &Path, what: Detached) {
        let file_system = if what.source.as_os_str() == SEAL { "tmpfs" } else { "nfs4" };
        self.0.push(Mount {
            id,
            parent,
            device: what.device,
            root: "/".into(),
            mount_point: at.to_owned(),
            attributes: what.attributes,
            shared: false,
            follows: false,
            file_system: file_system.into(),
            source: what.source,
        });
    }

    pub(super) fn take_away(&mut self, id: u64) -> Option<Mount> {
        let index = self.0.iter().position(|mount| mount.id == id)?;
        Some(self.0.remove(index))
    }

    pub(super) fn shows(&self, device: Device) -> bool {
        self.0.iter().any(|mount| mount.device == device)
    }
}
