//! Two peers that hand each other datagrams in memory.

use super::*;

const US: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 1));
const THEM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 2));

#[derive(Default)]
struct Memory {
    datagrams: Vec<Vec<u8>>,
    packets: Vec<Vec<u8>>,
    full: bool,
}

impl Wire for Memory {
    fn datagram(&mut self, bytes: &[u8]) {
        self.datagrams.push(bytes.to_vec());
    }

    fn packet(&mut self, bytes: &[u8]) {
        self.packets.push(bytes.to_vec());
    }

    fn has_room(&self) -> bool {
        !self.full
    }
}

#[test]
fn the_newest_packets_wait_for_the_session() {
    let (mut us, mut them, now) = peers();
    let (mut here, mut there) = (Memory::default(), Memory::default());
    for number in 0..100 {
        us.outbound(&packet(number), now, &mut here);
    }
    assert_eq!(here.datagrams.len(), 1, "one initiation, whatever the traffic");
    assert_eq!(us.counters.stats(now).dropped.of(DropReason::OutboundNoSession), 100 - WAITING as u64);
    exchange(&mut us, &mut here, &mut them, &mut there, now);
    let arrived: Vec<u8> = there.packets.iter().map(|packet| packet[5]).collect();
    assert_eq!(arrived, (100 - WAITING as u8..100).collect::<Vec<_>>());
}

#[test]
fn what_waits_leaves_when_there_is_room() {
    let (mut us, mut them, now) = peers();
    let (mut here, mut there) = (Memory { full: true, ..Memory::default() }, Memory::default());
    us.outbound(&packet(1), now, &mut here);
    exchange(&mut us, &mut here, &mut them, &mut there, now);
    assert!(us.session && there.packets.is_empty());
    here.full = false;
    us.tick(now, &mut here);
    exchange(&mut us, &mut here, &mut them, &mut there, now);
    assert_eq!(there.packets, [packet(1)]);
}

#[test]
fn a_repeated_datagram_passes_once() {
    let (mut us, mut them, now) = peers();
    let (mut here, mut there) = (Memory::default(), Memory::default());
    us.outbound(&packet(1), now, &mut here);
    exchange(&mut us, &mut here, &mut them, &mut there, now);
    us.outbound(&packet(2), now, &mut here);
    for _ in 0..2 {
        them.inbound(&here.datagrams[0], now, &mut there);
    }
    assert_eq!(there.packets, [packet(1), packet(2)]);
    assert_eq!(them.counters.stats(now).dropped.of(DropReason::InboundNotAuthentic), 1);
}

#[test]
fn a_peer_that_was_given_up_is_asked_again_by_the_next_packet() {
    let (mut us, mut them, now) = peers();
    let (mut here, mut there) = (Memory::default(), Memory::default());
    us.outbound(&packet(1), now, &mut here);
    here.datagrams.clear();
    us.give_up();
    assert!(us.is_dormant());
    // `Tunn` itself can't be hurried, so a new one stands for the one that has expired.
    us.tunn = fresh(1, 2).tunn;
    let soon = now + BETWEEN_INITIATIONS / 2;
    us.outbound(&packet(2), soon, &mut here);
    us.tick(soon, &mut here);
    assert!(here.datagrams.is_empty() && !us.is_dormant(), "too early, but not forgotten");
    let later = now + BETWEEN_INITIATIONS;
    us.tick(later, &mut here);
    exchange(&mut us, &mut here, &mut them, &mut there, later);
    assert_eq!(there.packets, [packet(2)]);
}

/// Passes datagrams until neither has any.
fn exchange(us: &mut Peer, here: &mut Memory, them: &mut Peer, there: &mut Memory, now: Instant) {
    while !(here.datagrams.is_empty() && there.datagrams.is_empty()) {
        for datagram in std::mem::take(&mut here.datagrams) {
            them.inbound(&datagram, now, there);
        }
        for datagram in std::mem::take(&mut there.datagrams) {
            us.inbound(&datagram, now, here);
        }
    }
}

fn peers() -> (Peer, Peer, Instant) {
    let us = fresh(1, 2);
    let mut them = fresh(2, 1);
    (them.allowed, them.local) = (vec![US], vec![THEM]);
    (us, them, clock())
}

fn fresh(own: u8, other: u8) -> Peer {
    let public = x25519::PublicKey::from(&x25519::StaticSecret::from([other; 32]));
    let config = Config {
        private_key: [own; 32].into(),
        peer: public.to_bytes().into(),
        endpoint: SocketAddr::from(([127, 0, 0, 1], 51820)),
        keepalive: None,
        allowed: vec![THEM],
        local: vec![US],
    };
    Peer::new("test", &config, 7, Arc::new(Counters::new(clock()))).unwrap()
}

fn packet(number: u8) -> Vec<u8> {
    vec![0x45, 0, 0, 20, 0, number, 0, 0, 64, 253, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]
}

#[allow(clippy::disallowed_methods, reason = "a test is wiring")]
fn clock() -> Instant {
    Instant::now()
}
