//! Where things lie on the host.

use std::path::{Path, PathBuf};

use moorline_shared::id::{NamespaceId, PublicationId, SuperblockId};
use serde::{Deserialize, Serialize};

/// Paths as the host sees them. The agent's own process reaches them through `from_agent`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Paths {
    /// Sockets and the lock; a hostPath of the agent's container.
    pub run: PathBuf,
    /// Kubelet's directory.
    pub kubelet: PathBuf,
}

impl Paths {
    /// A file system of our own, made unbindable: what is mounted below it enters no container by a recursive bind.
    /// All state is in it, so state and mounts end together, at the latest with the node's boot.
    pub fn node(&self) -> PathBuf {
        self.run.join("node")
    }

    pub fn mounts(&self) -> PathBuf {
        self.node().join("mounts")
    }

    pub fn base(&self, id: &SuperblockId) -> PathBuf {
        self.mounts().join(id.to_string())
    }

    /// The empty file system that lies below every publication.
    pub fn seal(&self) -> PathBuf {
        self.node().join("seal")
    }

    /// Marks of superblocks that are ended for good, as far as that has come.
    pub fn given_up(&self) -> PathBuf {
        self.node().join("given-up")
    }

    pub fn mark_of_end(&self, id: &SuperblockId) -> PathBuf {
        self.given_up().join(id.to_string())
    }

    pub fn namespaces(&self) -> PathBuf {
        self.node().join("netns")
    }

    pub fn namespace(&self, id: &NamespaceId) -> PathBuf {
        self.namespaces().join(id.to_string())
    }

    /// Marks of namespaces that lead nowhere for good.
    pub fn fenced(&self) -> PathBuf {
        self.node().join("fenced")
    }

    pub fn fence(&self, id: &NamespaceId) -> PathBuf {
        self.fenced().join(id.to_string())
    }

    pub fn publications(&self) -> PathBuf {
        self.node().join("publications")
    }

    pub fn publication(&self, id: PublicationId) -> PathBuf {
        self.publications().join(format!("{id}.json"))
    }

    /// The objects in force; it may hold private keys, in memory that only root reads.
    pub fn objects(&self) -> PathBuf {
        self.node().join("objects.json")
    }

    /// What is to be published again should the node not shut down after all.
    pub fn returning(&self) -> PathBuf {
        self.node().join("returning.json")
    }

    /// The boot of the node in which all this was written down.
    pub fn boot(&self) -> PathBuf {
        self.node().join("boot")
    }

    /// The only directory that pods' volumes are published in.
    pub fn pods(&self) -> PathBuf {
        self.kubelet.join("pods")
    }

    /// Where kubelet binds the subPaths of a pod's volumes.
    pub fn sub_paths(&self, uid: &str) -> PathBuf {
        self.pods().join(uid).join("volume-subpaths")
    }

    // Kubelet's gRPC client sends a socket's path, percent-encoded, as the authority of its requests, and our HTTP/2
    // library refuses an authority that holds a '%', unless in its user part. So the names of the sockets that kubelet
    // calls have an '@': what is before it, the whole directory, is then the user part.

    pub fn csi_socket(&self) -> PathBuf {
        self.kubelet.join("plugins/moorline.io/csi@moorline.io.sock")
    }

    pub fn registration_socket(&self) -> PathBuf {
        self.kubelet.join("plugins_registry/reg@moorline.io.sock")
    }

    pub fn api_socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// On the node's disk: it outlives a boot, as what servers keep for the node does.
    pub fn client_id(&self) -> PathBuf {
        "/var/lib/moorline/client-id".into()
    }

    /// What `mount -t nfs` reads on the node. Reached by its root, and no mount of the agent's pod: a node on which nobody can
    /// write there has its agent all the same.
    pub fn mount_defaults(&self) -> PathBuf {
        "/etc/nfsmount.conf.d/moorline.conf".into()
    }

    pub fn lock(&self) -> PathBuf {
        self.run.join("agent.lock")
    }
}

/// A path of the host's, seen from the agent's container: through the root of the host's first process. Used only
/// for files on `node`, never for what is mounted from a server.
pub(crate) fn from_agent(path: &Path) -> PathBuf {
    let mut seen = PathBuf::from("/proc/1/root");
    seen.extend(path.components().skip(1));
    seen
}

/// The name of the TUN device, in each network namespace.
pub(crate) const TUN_NAME: &str = "moorline0";

/// The host's network namespace.
pub(crate) const HOST_NETWORK: &str = "/proc/1/ns/net";

/// The host's mount namespace.
pub(crate) const HOST_MOUNTS: &str = "/proc/1/ns/mnt";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_that_kubelet_makes_of_a_socket_path_is_accepted() {
        let paths = Paths { run: "/run/moorline".into(), kubelet: "/var/lib/kubelet".into() };
        for socket in [paths.csi_socket(), paths.registration_socket()] {
            let authority = socket.display().to_string().replace('/', "%2F");
            assert!(authority.parse::<hyper::http::uri::Authority>().is_ok(), "{authority}");
        }
        assert!("%2Fvar%2Fcsi.sock".parse::<hyper::http::uri::Authority>().is_err(), "the '@' is needed no more");
    }
}
