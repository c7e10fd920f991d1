//! What a tunnel must be told, and what is wrong with it when it can't start.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use moorline_shared::key::{PrivateKey, PublicKey};

/// One end of a tunnel to one peer.
#[derive(Debug, Clone)]
pub struct Config {
    pub private_key: PrivateKey,
    pub peer: PublicKey,
    /// Where the peer is reached, and the only place that it is heard from. WireGuard would follow a peer that
    /// authenticates from another address. This end does not: which server is talked to is the failover policy's
    /// decision, and a server that was fenced, or the other half of a pair with the same key, must not pull the tunnel
    /// towards itself by sending a packet. A datagram from elsewhere is dropped before any cryptography, and counted.
    pub endpoint: SocketAddr,
    /// Send something this often, so that NAT mappings stay open and a dead peer is noticed without traffic. A tunnel
    /// with a keepalive asks for a handshake at once and never gives up; one without is silent until there is traffic.
    pub keepalive: Option<Duration>,
    /// The inner addresses that are the peer's: it may send from these, and only what is for these is sent to it.
    pub allowed: Vec<IpAddr>,
    /// The inner addresses of this end: what the peer sends must be for one of them. On a node that forwards packets
    /// this is what keeps a peer from reaching whatever the node can route to.
    pub local: Vec<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("tunnel {name:?} can't start: {what}")]
    Refused { name: String, what: &'static str },
    #[error("tunnel {name:?} can't start: {action} failed")]
    Failed {
        name: String,
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

/// The longest keepalive that a peer's configuration can hold.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(u16::MAX as u64);

impl Config {
    /// What makes this configuration unable to carry a single packet, if anything does.
    pub(crate) fn fault(&self, local: SocketAddr) -> Option<&'static str> {
        if self.endpoint.port() == 0 || self.endpoint.ip().is_unspecified() {
            return Some("its endpoint is no place to send to: give the peer's address and UDP port");
        }
        if self.endpoint.is_ipv4() != local.is_ipv4() {
            return Some("its socket and its endpoint are of different address families: bind one of the endpoint's");
        }
        if self.allowed.is_empty() {
            return Some("no inner address is the peer's, so nothing could pass: name the server's address");
        }
        if self.local.is_empty() {
            return Some("no inner address is this end's, so nothing could pass: name the node's tunnel address");
        }
        if self.keepalive.is_some_and(|every| every.is_zero() || every > LONGEST_KEEPALIVE) {
            return Some("its keepalive is out of range: use 1 to 65535 seconds, or none");
        }
        if self.peer.bytes() == &[0; 32] {
            return Some("its peer's public key is all zeros: use what `wg pubkey` prints on the server");
        }
        None
    }

    /// In whole seconds, as the protocol's timers want it; a fraction counts as one more.
    pub(crate) fn keepalive_seconds(&self) -> Option<u16> {
        let every = self.keepalive?;
        let seconds = every.as_secs() + u64::from(every.subsec_nanos() > 0);
        Some(u16::try_from(seconds).unwrap_or(u16::MAX))
    }
}
