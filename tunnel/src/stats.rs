//! What a tunnel can say of itself: counters that one thread writes and anybody reads.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A tunnel's state and what it did since it was started. Bytes and packets are the inner ones: what the share moved,
/// without WireGuard's own overhead.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// The data path is alive. False means that it panicked: nothing passes until the tunnel is started again.
    pub running: bool,
    /// How long ago a handshake was completed. `None`: never. The peer answered then, whatever it does now.
    pub handshake_age: Option<Duration>,
    /// How long ago anything authentic came from the peer. This is the freshest sign of its life.
    pub heard_age: Option<Duration>,
    /// Handshakes completed. Two a minute and more mean that somebody else uses the same key.
    pub handshakes: u64,
    /// Handshakes asked for since one was last completed. The peer is silent when this grows.
    pub unanswered: u32,
    pub sent_packets: u64,
    pub sent_bytes: u64,
    pub received_packets: u64,
    pub received_bytes: u64,
    /// The round trip of the last handshake that this end began, in whole milliseconds.
    pub handshake_rtt: Option<Duration>,
    /// The share of the peer's packets that never came, over the last few sessions: 0.0 to 1.0.
    pub loss: f32,
    pub dropped: Dropped,
}

/// Why a packet was not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum DropReason {
    /// The TUN gave something that is no IP packet.
    OutboundNotIp,
    /// The destination is not one of the peer's addresses. The kernel's own multicast chatter on a new link ends here.
    OutboundNotAllowed,
    /// There was no session, and too many newer packets were waiting for one; or the peer was given up.
    OutboundNoSession,
    /// The UDP socket refused a datagram: no route, a firewall, no buffers.
    UdpSend,
    /// The UDP socket could not be read.
    UdpReceive,
    /// A datagram from somewhere else than the endpoint.
    InboundForeign,
    /// A datagram that is not authentic: another key, a replay, a session that is gone, noise.
    InboundNotAuthentic,
    /// The peer sent from an inner address that is not its own, or to one that is not this end's.
    InboundNotAllowed,
    /// The TUN refused a packet: the device is down or gone.
    TunWrite,
    /// The TUN could not be read: the device is gone.
    TunRead,
}

impl DropReason {
    pub const ALL: [DropReason; 10] = [
        DropReason::OutboundNotIp,
        DropReason::OutboundNotAllowed,
        DropReason::OutboundNoSession,
        DropReason::UdpSend,
        DropReason::UdpReceive,
        DropReason::InboundForeign,
        DropReason::InboundNotAuthentic,
        DropReason::InboundNotAllowed,
        DropReason::TunWrite,
        DropReason::TunRead,
    ];

    /// As metrics and reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::OutboundNotIp => "outbound_not_ip",
            DropReason::OutboundNotAllowed => "outbound_not_allowed",
            DropReason::OutboundNoSession => "outbound_no_session",
            DropReason::UdpSend => "udp_send",
            DropReason::UdpReceive => "udp_receive",
            DropReason::InboundForeign => "inbound_foreign",
            DropReason::InboundNotAuthentic => "inbound_not_authentic",
            DropReason::InboundNotAllowed => "inbound_not_allowed",
            DropReason::TunWrite => "tun_write",
            DropReason::TunRead => "tun_read",
        }
    }
}

/// How often each [`DropReason`] was met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped([u64; DropReason::ALL.len()]);

impl Dropped {
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().map(|reason| (reason, self.of(reason)))
    }
}

/// The live counters behind [`Stats`]. Only the data path writes.
#[derive(Debug)]
pub(crate) struct Counters {
    started: Instant,
    running: AtomicBool,
    handshake: Moment,
    heard: Moment,
    handshakes: AtomicU64,
    unanswered: AtomicU32,
    sent_packets: AtomicU64,
    sent_bytes: AtomicU64,
    received_packets: AtomicU64,
    received_bytes: AtomicU64,
    rtt_millis: AtomicU32,
    loss: AtomicU32,
    dropped: [AtomicU64; DropReason::ALL.len()],
}

/// No round trip was measured yet.
const NO_RTT: u32 = u32::MAX;

impl Counters {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            running: AtomicBool::new(true),
            handshake: Moment::default(),
            heard: Moment::default(),
            handshakes: AtomicU64::default(),
            unanswered: AtomicU32::default(),
            sent_packets: AtomicU64::default(),
            sent_bytes: AtomicU64::default(),
            received_packets: AtomicU64::default(),
            received_bytes: AtomicU64::default(),
            rtt_millis: AtomicU32::new(NO_RTT),
            loss: AtomicU32::default(),
            dropped: Default::default(),
        }
    }

    pub(crate) fn ended(&self) {
        self.running.store(false, Ordering::Release);
    }

    pub(crate) fn asked(&self) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
    }

    /// A handshake was completed. Answers how many had been asked for in vain.
    pub(crate) fn shook_hands(&self, now: Instant) -> u32 {
        self.handshake.set(now.saturating_duration_since(self.started));
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        self.unanswered.swap(0, Ordering::Relaxed)
    }

    pub(crate) fn unanswered(&self) -> u32 {
        self.unanswered.load(Ordering::Relaxed)
    }

    pub(crate) fn heard(&self, now: Instant) {
        self.heard.set(now.saturating_duration_since(self.started));
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.sent_packets.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received_packets.fetch_add(1, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn quality(&self, rtt_millis: Option<u32>, loss: f32) {
        self.rtt_millis.store(rtt_millis.unwrap_or(NO_RTT), Ordering::Relaxed);
        self.loss.store(loss.to_bits(), Ordering::Relaxed);
    }

    pub(crate) fn drop_one(&self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    pub(crate) fn drop_many(&self, reason: DropReason, count: usize) {
        self.dropped[reason as usize].fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self, now: Instant) -> Stats {
        let age = now.saturating_duration_since(self.started);
        let rtt = self.rtt_millis.load(Ordering::Relaxed);
        Stats {
            running: self.running.load(Ordering::Acquire),
            handshake_age: self.handshake.age(age),
            heard_age: self.heard.age(age),
            handshakes: self.handshakes.load(Ordering::Relaxed),
            unanswered: self.unanswered(),
            sent_packets: self.sent_packets.load(Ordering::Relaxed),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            received_packets: self.received_packets.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
            handshake_rtt: (rtt != NO_RTT).then(|| Duration::from_millis(rtt.into())),
            loss: f32::from_bits(self.loss.load(Ordering::Relaxed)),
            dropped: Dropped(std::array::from_fn(|i| self.dropped[i].load(Ordering::Relaxed))),
        }
    }
}

/// A time in milliseconds since the tunnel's start, plus one; zero is "never".
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    fn set(&self, since_start: Duration) {
        self.0.store(since_start.as_millis() as u64 + 1, Ordering::Relaxed);
    }

    fn age(&self, now: Duration) -> Option<Duration> {
        let then = Duration::from_millis(self.0.load(Ordering::Relaxed).checked_sub(1)?);
        Some(now.saturating_sub(then))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.name());
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test is wiring")]
    fn never_is_not_just_now() {
        let start = Instant::now();
        let counters = Counters::new(start);
        assert_eq!(counters.stats(start).handshake_age, None);
        counters.shook_hands(start);
        assert_eq!(counters.stats(start + Duration::from_secs(3)).handshake_age, Some(Duration::from_secs(3)));
    }
}
