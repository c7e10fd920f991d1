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

    pub fn publications(&self) -> PathBuf {
        self.node().join("publications")
    }

    pub fn publication(&self, id: PublicationId) -> PathBuf {
        self.publications().join(format!("{id}.json"))
    }

    /// The only directory that volumes are published in.
    pub fn pods(&self) -> PathBuf {
        self.kubelet.join("pods")
    }

    pub fn csi_socket(&self) -> PathBuf {
        self.kubelet.join("plugins/moorline.io/csi.sock")
    }

    /// The `@` is no whim. Kubelet's gRPC client takes the socket's path for the request's authority, each slash as %2F,
    /// and our HTTP/2 server refuses percent signs in an authority (PROTOCOL_ERROR), except in what stands before an `@`.
    pub fn registration_socket(&self) -> PathBuf {
        self.kubelet.join("plugins_registry/moorline.io@reg.sock")
    }

    pub fn api_socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    pub fn lock(&self) -> PathBuf {
        self.run.join("agent.lock")
    }
}

/// A path of the host's, seen from the agent's container: through the root of the host's first process. Used only
/// for files on `node`, never for what is mounted from a server.
pub fn from_agent(path: &Path) -> PathBuf {
    let mut seen = PathBuf::from("/proc/1/root");
    seen.extend(path.components().skip(1));
    seen
}

/// The host's mount namespace.
pub const HOST_MOUNTS: &str = "/proc/1/ns/mnt";
