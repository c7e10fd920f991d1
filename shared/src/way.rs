//! A way on the node's own network: a device that leads to one server, for whoever on the node mounts from it.
//!
//! All that is known of it stands in the device's name and alias: an agent that was started anew finds it there.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::gateway::Gateway;
use crate::id::{IdError, TargetId, fingerprint, serde_as_text};

/// How the names of our devices begin in the node's own network.
pub const DEVICES: &str = "moorline";
/// The longest name that the kernel gives a device.
const LONGEST: usize = 15;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Way {
    pub target: TargetId,
    pub server: IpAddr,
    /// The node's own, inside the tunnel.
    pub address: IpAddr,
    pub mtu: u32,
}

/// A way that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaySeen {
    pub way: Way,
    /// It is up, and the server's route leads there: others may have taken that away.
    pub whole: bool,
    /// A data path runs.
    pub carried: bool,
}

impl Way {
    /// Its device.
    pub fn device(&self) -> String {
        device(&self.target)
    }
}

/// The name of the device that leads to a target.
pub fn device(target: &TargetId) -> String {
    format!("{DEVICES}{}", &fingerprint(&target.to_string())[..LONGEST - DEVICES.len()])
}

impl Gateway {
    /// The ways that it is to have on the node's own network: none, unless its scope is the host.
    pub fn ways(&self) -> impl Iterator<Item = Way> {
        self.tunnel().filter(|tunnel| tunnel.on_host).into_iter().flat_map(|tunnel| {
            self.targets.iter().map(|target| Way {
                target: TargetId { gateway: self.name.clone(), target: target.name.clone() },
                server: target.server,
                address: tunnel.address,
                mtu: tunnel.mtu,
            })
        })
    }
}

/// The device's alias, which says whose it is and where it leads.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, server, address, mtu } = self;
        write!(f, "moorline {target} to {server} from {address} mtu {mtu}")
    }
}

impl FromStr for Way {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parse = || {
            let ["moorline", target, "to", server, "from", address, "mtu", mtu] =
                text.split_whitespace().collect::<Vec<_>>()[..]
            else {
                return None;
            };
            Some(Self {
                target: target.parse().ok()?,
                server: server.parse().ok()?,
                address: address.parse().ok()?,
                mtu: mtu.parse().ok()?,
            })
        };
        parse().ok_or_else(|| IdError::new(text, "a way (moorline GATEWAY.TARGET to SERVER from ADDRESS mtu MTU)"))
    }
}

serde_as_text!(Way);

/// What the node's own network has that a route to a server would take away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeNetwork {
    /// Without our own devices'.
    pub addresses: Vec<(IpAddr, String)>,
    /// Through which it reaches others.
    pub gateways: Vec<IpAddr>,
    /// Networks that it reaches by itself, pods' among them, and single addresses that have a route of their own.
    pub networks: Vec<Network>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub prefix: IpAddr,
    pub length: u8,
    pub device: String,
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        let same = |one: u128, other: u128, width: u8| {
            let rest = u32::from(width.saturating_sub(self.length));
            one.checked_shr(rest).unwrap_or(0) == other.checked_shr(rest).unwrap_or(0)
        };
        match (self.prefix, address) {
            (IpAddr::V4(one), IpAddr::V4(other)) => same(one.to_bits().into(), other.to_bits().into(), 32),
            (IpAddr::V6(one), IpAddr::V6(other)) => same(one.to_bits(), other.to_bits(), 128),
            _ => false,
        }
    }
}

impl NodeNetwork {
    /// What a way would shadow, with the cure.
    pub fn shadowed_by(&self, way: &Way) -> Option<String> {
        let Way { target, server, .. } = way;
        let what = if let Some((_, device)) = self.addresses.iter().find(|(address, _)| address == server) {
            format!("is this node's own ({device})")
        } else if self.gateways.contains(server) {
            "is the gateway of this node's own network".to_owned()
        } else {
            let Network { prefix, length, device } = self.networks.iter().find(|network| network.contains(*server))?;
            format!("lies in {prefix}/{length}, which this node reaches through {device}")
        };
        Some(format!(
            "the server's address {server} (target {target}, scope: host) {what}: give the server an address inside the tunnel that nothing else on the node's network has, or use scope: isolated"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(server: &str) -> Way {
        Way {
            target: "gw-2.a".parse().unwrap(),
            server: server.parse().unwrap(),
            address: "10.90.0.2".parse().unwrap(),
            mtu: 1420,
        }
    }

    #[test]
    fn a_way_is_known_again_by_its_devices_alias() {
        for server in ["10.90.0.1", "fd00::1"] {
            let way = way(server);
            assert_eq!(way.to_string().parse(), Ok(way.clone()));
            assert_eq!(way.device().len(), LONGEST);
        }
        for text in ["", "moorline", "moorline gw.a", "wireguard gw.a to 10.0.0.1 from 10.0.0.2 mtu 1420"] {
            assert!(text.parse::<Way>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_would_shadow_the_nodes_own_network_is_refused() {
        let network = |prefix: &str, length, device: &str| Network {
            prefix: prefix.parse().unwrap(),
            length,
            device: device.into(),
        };
        let node = NodeNetwork {
            addresses: vec![("192.168.1.5".parse().unwrap(), "eth0".into())],
            gateways: vec!["172.16.0.1".parse().unwrap()],
            networks: vec![
                network("192.168.1.0", 24, "eth0"),
                network("10.244.0.0", 24, "cni0"),
                network("10.9.9.9", 32, "eth1"),
                network("fd00:1::", 64, "eth0"),
            ],
        };
        for (server, said) in [
            ("192.168.1.5", "is this node's own (eth0)"),
            ("172.16.0.1", "is the gateway"),
            ("192.168.1.77", "lies in 192.168.1.0/24, which this node reaches through eth0"),
            ("10.244.0.9", "through cni0"),
            ("10.9.9.9", "lies in 10.9.9.9/32"),
            ("fd00:1::9", "lies in fd00:1::/64"),
        ] {
            let problem = node.shadowed_by(&way(server)).unwrap_or_default();
            assert!(problem.contains(said) && problem.contains("gw-2.a"), "{server}: {problem:?}");
        }
        for server in ["10.90.0.1", "10.9.9.8", "10.244.1.1", "fd00:2::9"] {
            assert_eq!(node.shadowed_by(&way(server)), None);
        }
    }
}
