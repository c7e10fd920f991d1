//! Two tunnels over loopback, a socketpair standing for each TUN device. No privilege is needed.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use moorline_shared::key::{PrivateKey, PublicKey};
use moorline_tunnel::{Backend, Config, DropReason, Error, Simple, Stats, Tunnel};

const NODE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 3);

/// Longer than anything here may take on a busy machine; the protocol notices a silent peer after 15 s.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn packets_pass_both_ways() {
    let (node, server) = pair();
    for number in 0..200 {
        node.write(&packet(NODE, SERVER, number));
        assert_eq!(server.read(), packet(NODE, SERVER, number));
        server.write(&packet(SERVER, NODE, number));
        assert_eq!(node.read(), packet(SERVER, NODE, number));
    }
    let stats = node.stats();
    let bytes = 200 * packet(NODE, SERVER, 0).len() as u64;
    assert!(stats.running);
    assert_eq!((stats.sent_packets, stats.sent_bytes), (200, bytes));
    assert_eq!((stats.received_packets, stats.received_bytes), (200, bytes));
    assert_eq!((stats.handshakes, stats.unanswered), (1, 0));
    assert!(stats.handshake_age.is_some() && stats.heard_age.is_some() && stats.handshake_rtt.is_some());
    assert_eq!(stats.dropped.total(), 0, "{stats:?}");
}

#[test]
fn what_is_written_before_the_handshake_arrives_in_order() {
    let (node, server) = pair();
    for number in 0..50 {
        node.write(&packet(NODE, SERVER, number));
    }
    for number in 0..50 {
        assert_eq!(server.read(), packet(NODE, SERVER, number));
    }
}

#[test]
fn the_largest_packets_pass() {
    let (node, server) = pair();
    let large = sized(NODE, SERVER, 0, 65_000);
    node.write(&large);
    assert_eq!(server.read(), large);
}

#[test]
fn ipv6_passes_inside_and_outside() {
    let (near, far): (IpAddr, IpAddr) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
    let (a, b) = (UdpSocket::bind("[::1]:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
    let (to_a, to_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
    let node = End::start(config(1, 2, to_b, near, far), a);
    let server = End::start(config(2, 1, to_a, far, near), b);
    let mut packet = vec![0x60, 0, 0, 0, 0, 4, 59, 64];
    for address in [near, far] {
        if let IpAddr::V6(address) = address {
            packet.extend_from_slice(&address.octets());
        }
    }
    packet.extend_from_slice(b"four");
    node.write(&packet);
    assert_eq!(server.read(), packet);
}

#[test]
fn a_keepalive_shakes_hands_without_traffic() {
    let (a, b) = (udp(), udp());
    let (to_a, to_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
    let _server = End::start(config(2, 1, to_a, SERVER, NODE), b);
    let node = End::start(Config { keepalive: Some(Duration::from_secs(25)), ..config(1, 2, to_b, NODE, SERVER) }, a);
    node.until("a handshake", |stats| stats.handshakes == 1);
}

#[test]
fn an_address_that_is_not_the_peers_is_dropped() {
    let (node, server) = pair();
    // Three ways of being wrong, and a good packet behind them that shows when they are through.
    node.write(&packet(STRANGER, SERVER, 1));
    node.write(&packet(NODE, STRANGER, 2));
    node.write(b"no IP packet at all");
    node.write(&packet(NODE, SERVER, 3));
    assert_eq!(server.read(), packet(NODE, SERVER, 3));
    assert_eq!(server.stats().dropped.of(DropReason::InboundNotAllowed), 1);
    assert_eq!(node.stats().dropped.of(DropReason::OutboundNotAllowed), 1);
    assert_eq!(node.stats().dropped.of(DropReason::OutboundNotIp), 1);
}

#[test]
fn a_destination_that_is_not_ours_is_dropped() {
    let (a, b) = (udp(), udp());
    let (to_a, to_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
    let mut wide = config(1, 2, to_b, NODE, SERVER);
    wide.allowed.push(STRANGER.into());
    let node = End::start(wide, a);
    let server = End::start(config(2, 1, to_a, SERVER, NODE), b);
    node.write(&packet(NODE, STRANGER, 1));
    node.write(&packet(NODE, SERVER, 2));
    assert_eq!(server.read(), packet(NODE, SERVER, 2));
    assert_eq!(server.stats().dropped.of(DropReason::InboundNotAllowed), 1);
}

#[test]
fn a_datagram_from_elsewhere_is_dropped() {
    let (node, server) = pair();
    node.write(&packet(NODE, SERVER, 1));
    server.read();
    udp().send_to(&[4; 64], server.address).unwrap();
    udp().send_to(&[], server.address).unwrap();
    server.until("two foreign datagrams", |stats| stats.dropped.of(DropReason::InboundForeign) == 2);
    node.write(&packet(NODE, SERVER, 2));
    assert_eq!(server.read(), packet(NODE, SERVER, 2));
}

#[test]
fn noise_from_the_endpoint_is_dropped() {
    let (raw, socket) = (udp(), udp());
    let node = End::start(config(1, 2, raw.local_addr().unwrap(), NODE, SERVER), socket);
    let mut sent = 0;
    for length in [0, 1, 3, 4, 31, 32, 64, 92, 148, 1500, 65_000] {
        for kind in [0, 1, 2, 3, 4, 255] {
            let mut noise = vec![0; length];
            if let Some(first) = noise.first_mut() {
                *first = kind;
            }
            raw.send_to(&noise, node.address).unwrap();
            sent += 1;
            node.until("noise to be counted", |stats| stats.dropped.of(DropReason::InboundNotAuthentic) == sent);
        }
    }
    assert!(node.stats().running);
    assert_eq!(node.stats().heard_age, None);
}

#[test]
fn another_key_never_passes() {
    let (a, b) = (udp(), udp());
    let (to_a, to_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
    let node = End::start(config(1, 2, to_b, NODE, SERVER), a);
    // The server knows a peer, but not this one.
    let server = End::start(config(2, 3, to_a, SERVER, NODE), b);
    node.write(&packet(NODE, SERVER, 1));
    server.until("a refused handshake", |stats| stats.dropped.of(DropReason::InboundNotAuthentic) > 0);
    server.write(&packet(SERVER, NODE, 1));
    server.until("a handshake of its own", |stats| stats.unanswered > 0);
    assert_eq!((server.stats().handshakes, node.stats().handshakes), (0, 0));
    server.socket().set_nonblocking(true).unwrap();
    node.socket().set_nonblocking(true).unwrap();
    assert_eq!(server.try_read().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(node.try_read().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_dropped_tunnel_sends_nothing_more() {
    let (raw, socket) = (udp(), udp());
    let mut node = End::start(config(1, 2, raw.local_addr().unwrap(), NODE, SERVER), socket);
    node.write(&packet(NODE, SERVER, 1));
    let mut buffer = [0; 2048];
    raw.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(raw.recv(&mut buffer).unwrap(), 148, "an initiation");

    node.tunnel = None;
    raw.set_nonblocking(true).unwrap();
    while raw.recv(&mut buffer).is_ok() {}
    node.write(&packet(NODE, SERVER, 2));
    assert_eq!(raw.recv(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    // Nobody took it.
    node.other.set_nonblocking(true).unwrap();
    assert_eq!(node.other.recv(&mut buffer).unwrap(), packet(NODE, SERVER, 2).len());
}

#[test]
fn a_restarted_peer_that_speaks_first_recovers_at_once() {
    let (node, mut server) = pair();
    node.write(&packet(NODE, SERVER, 1));
    server.read();
    server.restart();
    let begun = clock();
    server.write(&packet(SERVER, NODE, 2));
    assert_eq!(node.read(), packet(SERVER, NODE, 2));
    node.write(&packet(NODE, SERVER, 3));
    assert_eq!(server.read(), packet(NODE, SERVER, 3));
    assert!(begun.elapsed() < Duration::from_secs(10), "the protocol's own repair was not needed");
}

#[test]
fn a_restarted_peer_that_waits_recovers_by_our_traffic() {
    let (node, mut server) = pair();
    node.write(&packet(NODE, SERVER, 1));
    server.read();
    server.restart();
    // The application goes on trying, as TCP does; the old session's packets go nowhere until it is noticed.
    let passed = eventually(|| {
        node.write(&packet(NODE, SERVER, 2));
        server.socket().set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        server.try_read().is_ok()
    });
    assert!(passed, "{:?}", node.stats());
    assert_eq!(node.stats().handshakes, 2);
}

#[test]
fn a_peer_that_comes_late_is_found() {
    let (a, b) = (udp(), udp());
    let (to_a, to_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
    let node = End::start(config(1, 2, to_b, NODE, SERVER), a);
    node.write(&packet(NODE, SERVER, 1));
    assert_eq!(b.recv(&mut [0; 2048]).unwrap(), 148, "an initiation that nobody answers");
    let server = End::start(config(2, 1, to_a, SERVER, NODE), b);
    // Not one more packet is needed: the first one still waits.
    assert_eq!(server.read(), packet(NODE, SERVER, 1));
}

#[test]
fn handshakes_are_five_seconds_apart_whatever_the_traffic() {
    let (raw, socket) = (udp(), udp());
    let node = End::start(config(1, 2, raw.local_addr().unwrap(), NODE, SERVER), socket);
    raw.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let (begun, mut seen) = (clock(), Vec::new());
    while begun.elapsed() < Duration::from_secs(7) {
        node.write(&packet(NODE, SERVER, 1));
        if raw.recv(&mut [0; 2048]).is_ok() {
            seen.push(begun.elapsed());
        }
    }
    assert!(matches!(seen[..], [_, second] if second > Duration::from_millis(4900)), "{seen:?}");
    assert!(node.stats().dropped.of(DropReason::OutboundNoSession) > 0, "only so many packets wait");
}

#[test]
fn errors_of_the_descriptors_do_not_end_the_tunnel() {
    // Broadcasting without having asked for it: EACCES.
    let to_all = SocketAddr::from((Ipv4Addr::BROADCAST, 51820));
    let unsendable = End::start(config(1, 2, to_all, NODE, SERVER), udp());
    unsendable.write(&packet(NODE, SERVER, 1));
    unsendable.until("a refused datagram", |stats| stats.dropped.of(DropReason::UdpSend) > 0);
    assert!(unsendable.stats().running);

    let (mut node, server) = pair();
    node.write(&packet(NODE, SERVER, 1));
    server.read();
    node.inner = None;
    server.write(&packet(SERVER, NODE, 2));
    node.until("a refused packet", |stats| stats.dropped.of(DropReason::TunWrite) > 0);
    assert!(node.stats().running);
}

#[test]
fn a_tun_that_is_gone_is_tried_now_and_then() {
    // Always ready, and every read fails, as of a device that was deleted.
    let gone = OwnedFd::from(OpenOptions::new().write(true).open("/dev/null").unwrap());
    let (raw, socket) = (udp(), udp());
    let config = config(1, 2, raw.local_addr().unwrap(), NODE, SERVER);
    let tunnel = Simple.start("test", config, gone, socket).unwrap();
    let failed = || tunnel.stats().dropped.of(DropReason::TunRead);
    assert!(eventually(|| failed() > 0));
    let (before, begun) = (failed(), clock());
    assert!(eventually(|| failed() > before + 20), "it is never given up");
    assert!(begun.elapsed() > Duration::from_millis(700), "and costs next to nothing");
    assert!(tunnel.stats().running);
}

#[test]
fn what_cannot_work_is_refused() {
    let good = || config(1, 2, SocketAddr::from(([127, 0, 0, 1], 9)), NODE, SERVER);
    let cases = [
        ("place to send to", Config { endpoint: SocketAddr::from(([127, 0, 0, 1], 0)), ..good() }),
        ("address families", Config { endpoint: "[::1]:9".parse().unwrap(), ..good() }),
        ("is the peer's", Config { allowed: vec![], ..good() }),
        ("is this end's", Config { local: vec![], ..good() }),
        ("keepalive", Config { keepalive: Some(Duration::ZERO), ..good() }),
        ("all zeros", Config { peer: PublicKey::from([0; 32]), ..good() }),
        ("this end's own", Config { peer: public(1), ..good() }),
    ];
    for (what, config) in cases {
        match Simple.start("gw", config, descriptor(), udp()) {
            Err(error @ Error::Refused { .. }) => assert!(error.to_string().contains(what), "{error}"),
            Err(error) => panic!("{what}: {error}"),
            Ok(_) => panic!("{what}: started"),
        }
    }
    assert!(Simple.start("g\0w", good(), descriptor(), udp()).is_err());
}

/// One end: a tunnel, and the application's side of its TUN.
struct End {
    tunnel: Option<Box<dyn Tunnel>>,
    config: Config,
    address: SocketAddr,
    /// Keeps the port while the tunnel is away.
    outer: UdpSocket,
    inner: Option<UnixDatagram>,
    /// The tunnel's side of the TUN, kept as the agent keeps the device.
    other: UnixDatagram,
}

impl End {
    fn start(config: Config, socket: UdpSocket) -> Self {
        let (inner, other) = UnixDatagram::pair().unwrap();
        let address = socket.local_addr().unwrap();
        let outer = socket.try_clone().unwrap();
        let tunnel = launch(&config, &other, socket);
        inner.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { tunnel: Some(tunnel), config, address, outer, inner: Some(inner), other }
    }

    fn restart(&mut self) {
        self.tunnel = None;
        self.tunnel = Some(launch(&self.config, &self.other, self.outer.try_clone().unwrap()));
    }

    fn socket(&self) -> &UnixDatagram {
        self.inner.as_ref().unwrap()
    }

    fn write(&self, packet: &[u8]) {
        self.socket().send(packet).unwrap();
    }

    fn try_read(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        let length = self.socket().recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    }

    fn read(&self) -> Vec<u8> {
        self.try_read().unwrap_or_else(|error| panic!("no packet: {error}; {:?}", self.stats()))
    }

    fn stats(&self) -> Stats {
        self.tunnel.as_ref().unwrap().stats()
    }

    fn until(&self, what: &str, condition: impl Fn(&Stats) -> bool) {
        assert!(eventually(|| condition(&self.stats())), "waited for {what}: {:?}", self.stats());
    }
}

fn launch(config: &Config, tun: &UnixDatagram, socket: UdpSocket) -> Box<dyn Tunnel> {
    let tun = tun.as_fd().try_clone_to_owned().unwrap();
    Simple.start("test", config.clone(), tun, socket).unwrap()
}

fn pair() -> (End, End) {
    let (a, b) = (udp(), udp());
    let (to_a, to_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
    let node = End::start(config(1, 2, to_b, NODE, SERVER), a);
    let server = End::start(config(2, 1, to_a, SERVER, NODE), b);
    (node, server)
}

fn config(own: u8, peer: u8, endpoint: SocketAddr, local: impl Into<IpAddr>, allowed: impl Into<IpAddr>) -> Config {
    Config {
        private_key: PrivateKey::from([own; 32]),
        peer: public(peer),
        endpoint,
        keepalive: None,
        allowed: vec![allowed.into()],
        local: vec![local.into()],
    }
}

fn public(private: u8) -> PublicKey {
    let secret = boringtun::x25519::StaticSecret::from([private; 32]);
    PublicKey::from(boringtun::x25519::PublicKey::from(&secret).to_bytes())
}

fn udp() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

fn descriptor() -> OwnedFd {
    UnixDatagram::pair().unwrap().0.into()
}

fn packet(from: Ipv4Addr, to: Ipv4Addr, number: u16) -> Vec<u8> {
    sized(from, to, number, 60)
}

fn sized(from: Ipv4Addr, to: Ipv4Addr, number: u16, length: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&number.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 64, 253, 0, 0]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.resize(length.into(), 7);
    packet
}

fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = clock() + PATIENCE;
    while clock() < deadline {
        if condition() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[allow(clippy::disallowed_methods, reason = "a test is wiring")]
fn clock() -> Instant {
    Instant::now()
}
