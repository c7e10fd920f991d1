//! A storage endpoint: its targets in the order of failover, and the tunnel that leads to them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::key::{PrivateKey, PublicKey};
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
}

/// The way to a gateway's targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Path {
    /// WireGuard, in a network namespace of its own for each target.
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
