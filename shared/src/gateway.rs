//! A storage endpoint: its targets in the order of failover, and the tunnel that leads to them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::key::{PrivateKey, PublicKey};
use crate::name::Name;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    pub name: Name,
    /// The targets hold the same data: a ReadWrite share may move between them.
    pub shared_data: bool,
    pub tunnel: TunnelSpec,
    /// Never empty; the first is preferred.
    pub targets: Vec<Target>,
}

impl Gateway {
    /// Whether it takes nothing away from `old` and changes nothing of it: further targets may be named after those that
    /// were, and what was said of none may now be said of all, that they hold the same data.
    pub fn extends(&self, old: &Self) -> bool {
        self.tunnel == old.tunnel && self.targets.starts_with(&old.targets) && self.shared_data >= old.shared_data
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
    /// Where WireGuard's datagrams go.
    pub endpoint: SocketAddr,
    pub public_key: PublicKey,
    /// The NFS server's address inside the tunnel.
    pub server: IpAddr,
}
