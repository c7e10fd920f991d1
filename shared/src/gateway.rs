//! A storage endpoint: its targets in the order of failover, and the tunnel that leads to them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::key::{PrivateKey, PublicKey};
use crate::mount_defaults::MountDefaults;
use crate::name::Name;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    pub name: Name,
    /// The targets hold the same data: a ReadWrite share may move between them.
    pub shared_data: bool,
    pub path: Path,
    /// How long a server may be silent before it counts as away.
    pub away_after: Duration,
    /// Never empty; the first is preferred.
    pub targets: Vec<Target>,
    /// For those who mount from its servers by the node's own network, where its scope is the host.
    #[serde(default)]
    pub mount_defaults: MountDefaults,
}

/// The way to a gateway's targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Path {
    /// WireGuard, in a network namespace of its own for each target, or on the node's own network.
    Tunnel(TunnelSpec),
    /// The node's own network.
    Direct,
}

impl Gateway {
    /// Whether it takes nothing away from `old` and changes nothing of it: further targets may be named after those that
    /// were, and what was said of none may now be said of all, that they hold the same data.
    pub fn extends(&self, old: &Self) -> bool {
        self.path == old.path && self.targets.starts_with(&old.targets) && self.shared_data >= old.shared_data
    }

    pub fn tunnel(&self) -> Option<&TunnelSpec> {
        match &self.path {
            Path::Tunnel(tunnel) => Some(tunnel),
            Path::Direct => None,
        }
    }

    /// The tunnel, where each target has it in a network namespace of its own.
    pub fn isolated_tunnel(&self) -> Option<&TunnelSpec> {
        self.tunnel().filter(|tunnel| !tunnel.on_host)
    }

    /// Shares are mounted in the node's own network namespace, where others have mounts as well.
    pub fn is_on_host(&self) -> bool {
        self.isolated_tunnel().is_none()
    }

    pub fn target(&self, name: &Name) -> Option<&Target> {
        self.targets.iter().find(|target| target.name == *name)
    }
}

/// This node's end of the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelSpec {
    pub address: IpAddr,
    pub private_key: KeySource,
    pub mtu: u32,
    /// `scope: host`: device and route are in the node's own network, and lead there whoever mounts from a target's server.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_host: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeySource {
    Inline(#[serde(with = "crate::key::stored")] PrivateKey),
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub name: Name,
    /// The NFS server's address, inside the tunnel where there is one.
    pub server: IpAddr,
    /// There for a gateway whose path is a tunnel, and for no other.
    pub peer: Option<Peer>,
}

/// The other end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Where WireGuard's datagrams go.
    pub endpoint: SocketAddr,
    pub public_key: PublicKey,
}
