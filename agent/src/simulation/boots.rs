//! The node's end, and its next beginning.

use std::path::Path;

use super::world::{HOST_NETWORK, Network, World};

impl World {
    /// Nothing is left but the disk, and what kubelet and the API server know.
    pub(super) fn boot(&mut self, why: &str) {
        self.kill_agent(why);
        self.boots += 1;
        let boots = self.boots;
        self.say(|| format!("{why}; boot {boots}"));
        self.containers.clear();
        self.superblocks.clear();
        self.networks.clear();
        self.networks.insert(HOST_NETWORK, Network::default());
        self.host.0.retain(|mount| mount.mount_point == Path::new("/"));
        if !self.scene.keeps_run {
            self.files.clear();
        }
        for volume in self.volumes.values_mut() {
            (volume.asked, volume.there) = (false, false);
            // Kubelet removes what is no mount any more.
            self.directories.remove(&volume.target);
        }
    }

    /// Who may have it is asked by kubelet for it, in each boot anew.
    pub(super) fn judge_asked(&mut self, target: &Path) {
        let asked = self.volumes.values().any(|volume| volume.target == target && volume.asked);
        if self.boots > 1 && !asked {
            let what = format!("{} is published, and nobody has asked for it since the node booted", target.display());
            self.breaks("after a boot nothing comes back unasked", what);
        }
    }
}
