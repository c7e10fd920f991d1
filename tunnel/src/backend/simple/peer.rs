//! One peer behind boringtun's `Tunn`: what to do with a packet, a datagram, and the passing of time.
//!
//! `Tunn` leaves gaps, which are closed here:
//! - it gives up after 90 s without an answer, and then waits to be asked again: any traffic asks, and a keepalive is
//!   traffic;
//! - it sends a handshake whenever it likes: at most one in five seconds leaves;
//! - its queue of packets that wait for a session drops the newest and counts nothing: ours drops the oldest;
//! - it checks no inner address.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use moorline_shared::key::PublicKey;

use crate::config::Config;
use crate::stats::{Counters, DropReason};

/// No two handshakes are begun closer together than this, whoever wants them.
const BETWEEN_INITIATIONS: Duration = Duration::from_secs(5);

/// How many packets wait for a session. Enough for a few connections to begin; what is more is stale when it arrives.
const WAITING: usize = 64;

/// The largest IP packet there is, and room for WireGuard's header and tag. `Tunn` panics on a buffer that is too small.
pub(super) const LARGEST_PACKET: usize = 65535;
pub(super) const LARGEST_DATAGRAM: usize = LARGEST_PACKET + 32;

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;

/// Where packets and datagrams go. Neither may block or fail: what can't be passed on is dropped and counted there.
pub(super) trait Wire {
    fn datagram(&mut self, bytes: &[u8]);
    fn packet(&mut self, bytes: &[u8]);
    /// Whether a datagram would be taken now.
    fn has_room(&self) -> bool;
}

pub(super) struct Peer {
    name: String,
    tunn: Tunn,
    endpoint: SocketAddr,
    keepalive: bool,
    allowed: Vec<IpAddr>,
    local: Vec<IpAddr>,
    /// `Tunn` has a session to send on.
    session: bool,
    /// `Tunn` has given up, and that was noticed.
    expired: bool,
    initiated: Option<Instant>,
    waiting: VecDeque<Vec<u8>>,
    out: Box<[u8]>,
    counters: Arc<Counters>,
}

impl Peer {
    /// `index` distinguishes this tunnel's sessions from those of its earlier lives.
    pub(super) fn new(name: &str, config: &Config, index: u16, counters: Arc<Counters>) -> Result<Self, &'static str> {
        let private = x25519::StaticSecret::from(*config.private_key.bytes());
        if PublicKey::from(x25519::PublicKey::from(&private).to_bytes()) == config.peer {
            return Err("its peer's public key is this end's own: use what `wg pubkey` prints on the server");
        }
        let peer = x25519::PublicKey::from(*config.peer.bytes());
        Ok(Self {
            name: name.to_owned(),
            tunn: Tunn::new(private, peer, None, config.keepalive_seconds(), index.into(), None),
            endpoint: config.endpoint,
            keepalive: config.keepalive.is_some(),
            allowed: config.allowed.clone(),
            local: config.local.clone(),
            session: false,
            expired: false,
            initiated: None,
            waiting: VecDeque::with_capacity(WAITING),
            out: vec![0; LARGEST_DATAGRAM].into(),
            counters,
        })
    }

    /// Nothing will happen until something arrives: no timer needs to run.
    pub(super) fn is_dormant(&self) -> bool {
        self.expired && self.waiting.is_empty() && !self.keepalive
    }

    /// To be called several times a second, and before anything else after a longer pause: `Tunn` reads its clock here
    /// alone.
    pub(super) fn tick(&mut self, now: Instant, wire: &mut impl Wire) {
        match self.tunn.update_timers(&mut self.out) {
            TunnResult::WriteToNetwork(datagram) => {
                let initiation = datagram[0] == INITIATION;
                if initiation && may_initiate(self.initiated, now) {
                    self.initiated = Some(now);
                    self.counters.asked();
                    wire.datagram(datagram);
                } else if !initiation {
                    wire.datagram(datagram);
                }
                // A handshake that may not leave yet is repeated by `Tunn` itself, five seconds later.
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) if !self.expired => self.give_up(),
            _ => {}
        }
        self.session = has_session(&self.tunn);
        if self.session {
            self.flush(wire);
        } else if self.keepalive || !self.waiting.is_empty() {
            self.initiate(now, wire);
        }
        self.note_quality();
    }

    /// A packet from the TUN.
    pub(super) fn outbound(&mut self, packet: &[u8], now: Instant, wire: &mut impl Wire) {
        let Some(destination) = Tunn::dst_address(packet) else {
            return self.counters.drop_one(DropReason::OutboundNotIp);
        };
        if !self.allowed.contains(&destination) {
            return self.counters.drop_one(DropReason::OutboundNotAllowed);
        }
        if self.session {
            return self.seal(packet, wire);
        }
        if self.waiting.len() == WAITING {
            self.waiting.pop_front();
            self.counters.drop_one(DropReason::OutboundNoSession);
        }
        self.waiting.push_back(packet.to_vec());
        self.initiate(now, wire);
    }

    /// A datagram from the endpoint.
    pub(super) fn inbound(&mut self, datagram: &[u8], now: Instant, wire: &mut impl Wire) {
        let Some(&kind) = datagram.first() else {
            // An empty datagram would be taken for the request to flush a queue.
            return self.counters.drop_one(DropReason::InboundNotAuthentic);
        };
        let mut shook_hands = false;
        match self.tunn.decapsulate(Some(self.endpoint.ip()), datagram, &mut self.out) {
            TunnResult::Done => self.counters.heard(now),
            TunnResult::Err(_) => return self.counters.drop_one(DropReason::InboundNotAuthentic),
            TunnResult::WriteToNetwork(answer) => {
                // An initiation is answered by a response, or by a cookie when there are too many of them.
                shook_hands = kind == RESPONSE || answer[0] == RESPONSE;
                wire.datagram(answer);
            }
            TunnResult::WriteToTunnelV4(packet, source) => {
                self.counters.heard(now);
                deliver(packet, source.into(), &self.allowed, &self.local, &self.counters, wire);
            }
            TunnResult::WriteToTunnelV6(packet, source) => {
                self.counters.heard(now);
                deliver(packet, source.into(), &self.allowed, &self.local, &self.counters, wire);
            }
        }
        if shook_hands {
            self.expired = false;
            self.counters.heard(now);
            self.note_quality();
            if self.counters.shook_hands(now) > 1 {
                tracing::info!(tunnel = self.name, endpoint = %self.endpoint, "the peer answers again");
            }
        }
        // Only the clock takes a session away, so it is asked for only while there is none.
        if !self.session || shook_hands {
            self.session = has_session(&self.tunn);
            if self.session {
                self.flush_tunn(wire);
                self.flush(wire);
            }
        }
    }

    fn note_quality(&self) {
        let (_, _, _, loss, rtt) = self.tunn.stats();
        self.counters.quality(rtt, loss);
    }

    fn seal(&mut self, packet: &[u8], wire: &mut impl Wire) {
        match self.tunn.encapsulate(packet, &mut self.out) {
            TunnResult::WriteToNetwork(datagram) => {
                self.counters.sent(packet.len());
                wire.datagram(datagram);
            }
            _ => self.counters.drop_one(DropReason::OutboundNoSession),
        }
    }

    /// Sends what waited for the session, as far as there is room; the next tick goes on.
    fn flush(&mut self, wire: &mut impl Wire) {
        while wire.has_room() {
            let Some(packet) = self.waiting.pop_front() else { return };
            self.seal(&packet, wire);
        }
    }

    /// `Tunn` has a queue of its own. Nothing but keepalives gets there, but it must be emptied.
    fn flush_tunn(&mut self, wire: &mut impl Wire) {
        while let TunnResult::WriteToNetwork(datagram) = self.tunn.decapsulate(None, &[], &mut self.out) {
            wire.datagram(datagram);
        }
    }

    /// Begins a handshake, unless one is under way or was begun a moment ago. `Tunn` repeats it every five seconds.
    fn initiate(&mut self, now: Instant, wire: &mut impl Wire) {
        if !may_initiate(self.initiated, now) {
            return;
        }
        if let TunnResult::WriteToNetwork(datagram) = self.tunn.format_handshake_initiation(&mut self.out, false) {
            self.initiated = Some(now);
            self.expired = false;
            self.counters.asked();
            wire.datagram(datagram);
        }
    }

    /// `Tunn` has forgotten its sessions. What waited is stale, and would keep an idle tunnel asking for ever.
    fn give_up(&mut self) {
        self.expired = true;
        self.counters.drop_many(DropReason::OutboundNoSession, self.waiting.len());
        self.waiting.clear();
        // An idle tunnel expires as well: that is no news.
        if self.counters.unanswered() > 0 {
            tracing::warn!(
                tunnel = self.name,
                endpoint = %self.endpoint,
                unanswered = self.counters.unanswered(),
                "no handshake: is the server up, is its UDP port open, and does it know this node's public key? \
                 The next packet asks again"
            );
        }
    }
}

fn may_initiate(last: Option<Instant>, now: Instant) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= BETWEEN_INITIATIONS)
}

fn has_session(tunn: &Tunn) -> bool {
    tunn.time_since_last_handshake().is_some()
}

fn deliver(
    packet: &[u8],
    source: IpAddr,
    allowed: &[IpAddr],
    local: &[IpAddr],
    counters: &Counters,
    wire: &mut impl Wire,
) {
    let for_us = Tunn::dst_address(packet).is_some_and(|destination| local.contains(&destination));
    if !for_us || !allowed.contains(&source) {
        return counters.drop_one(DropReason::InboundNotAllowed);
    }
    counters.received(packet.len());
    wire.packet(packet);
}

#[cfg(test)]
mod tests;
