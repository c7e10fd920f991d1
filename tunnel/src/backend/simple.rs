//! One plain thread for each tunnel, one packet at a time: the slowest way, and the one that works everywhere.

mod peer;

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::peer::{LARGEST_DATAGRAM, LARGEST_PACKET, Peer, Wire};
use crate::config::{Config, Error};
use crate::device::{Device, Interest};
use crate::stats::{Counters, DropReason, Stats};
use crate::{Backend, Tunnel};

/// The backend over boringtun's `Tunn`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Simple;

/// How often the protocol's timers are looked at. `Tunn` counts in seconds.
const TICK: Duration = Duration::from_millis(250);

/// How much one direction may do before the other has its turn, and the order to stop is seen.
const BATCH: usize = 64;

/// After so many failures in a row a descriptor is left alone until the next tick: a device that is gone has nothing
/// but errors to offer, at once and for ever.
const FAILURES: usize = 4;

impl Backend for Simple {
    fn start(&self, name: &str, config: Config, tun: OwnedFd, socket: UdpSocket) -> Result<Box<dyn Tunnel>, Error> {
        let refused = |what| Error::Refused { name: name.to_owned(), what };
        let failed = |action, source| Error::Failed { name: name.to_owned(), action, source };

        if name.is_empty() || name.contains('\0') {
            return Err(refused("it has no usable name: use one without NUL characters"));
        }
        let local = socket.local_addr().map_err(|error| failed("asking the UDP socket for its address", error))?;
        if let Some(what) = config.fault(local) {
            return Err(refused(what));
        }
        let counters = Arc::new(Counters::new(clock()));
        // The port is another one after each start, and one socket serves one peer: that is all an index must do.
        let peer = Peer::new(name, &config, local.port(), counters.clone()).map_err(refused)?;
        let device = Device::new(tun, socket, config.endpoint)
            .map_err(|error| failed("preparing the TUN and UDP descriptors", error))?;
        let device = Arc::new(device);
        let mut path = Path::new(peer, device.clone(), counters.clone());
        let (guarded, label) = (counters.clone(), name.to_owned());
        let thread = std::thread::Builder::new()
            .name(format!("tunnel-{name}"))
            .spawn(move || supervise(&label, &guarded, || path.run()))
            .map_err(|error| failed("starting its thread", error))?;
        tracing::info!(tunnel = name, endpoint = %config.endpoint, peer = %config.peer, "tunnel started");
        Ok(Box::new(Running { device, counters, thread: Some(thread) }))
    }
}

struct Running {
    /// Held here too, so that the TUN outlives a data path that panicked: mounts suffer when their network vanishes.
    device: Arc<Device>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl Tunnel for Running {
    fn stats(&self) -> Stats {
        self.counters.stats(clock())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.device.stop();
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// The thread's life. A panic ends this tunnel alone, and is seen in its stats.
fn supervise(name: &str, counters: &Counters, life: impl FnOnce()) {
    let end = catch_unwind(AssertUnwindSafe(life));
    counters.ended();
    if end.is_err() {
        tracing::error!(tunnel = name, "the data path panicked: nothing passes until the tunnel is started again");
    }
}

struct Path {
    peer: Peer,
    ports: Ports,
    counters: Arc<Counters>,
    buffer: Box<[u8]>,
    tun: Health,
    udp: Health,
}

impl Path {
    fn new(peer: Peer, device: Arc<Device>, counters: Arc<Counters>) -> Self {
        Self {
            peer,
            ports: Ports { device, counters: counters.clone(), blocked: Vec::with_capacity(LARGEST_DATAGRAM) },
            counters,
            buffer: vec![0; LARGEST_DATAGRAM].into(),
            tun: Health::Usable,
            udp: Health::Usable,
        }
    }

    fn run(&mut self) {
        let mut next_tick = clock();
        loop {
            let interest = Interest {
                // While a datagram waits for room the TUN waits too: its queue pushes back on the sender.
                tun: self.tun == Health::Usable && self.ports.has_room(),
                udp: self.udp == Health::Usable,
                udp_room: !self.ports.has_room(),
            };
            let ready = match self.ports.device.wait(interest, self.patience(next_tick, clock())) {
                Ok(ready) => ready,
                // Only a lack of memory is left. It passes, and the tunnel may be what frees it.
                Err(_) => continue,
            };
            if ready.stop {
                return;
            }
            let now = clock();
            if now >= next_tick {
                // First of all: after a long sleep the protocol must know the time before it sees a packet.
                next_tick = now + TICK;
                (self.tun, self.udp) = (Health::Usable, Health::Usable);
                self.peer.tick(now, &mut self.ports);
            }
            if ready.udp_room {
                self.ports.retry();
            }
            if ready.udp {
                self.udp = self.drain_udp(now);
            }
            if ready.tun {
                self.tun = self.drain_tun(now);
            }
        }
    }

    /// How long to wait. A peer that was given up costs nothing until somebody wants it again.
    fn patience(&self, next_tick: Instant, now: Instant) -> Option<Duration> {
        let idle = self.peer.is_dormant() && self.tun == Health::Usable && self.udp == Health::Usable;
        (!idle).then(|| next_tick.saturating_duration_since(now))
    }

    fn drain_udp(&mut self, now: Instant) -> Health {
        let mut failures = 0;
        for _ in 0..BATCH {
            match self.ports.device.receive(&mut self.buffer) {
                Ok((length, true)) => self.peer.inbound(&self.buffer[..length], now, &mut self.ports),
                Ok((_, false)) => self.counters.drop_one(DropReason::InboundForeign),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Health::Usable,
                Err(_) => {
                    self.counters.drop_one(DropReason::UdpReceive);
                    failures += 1;
                    if failures == FAILURES {
                        return Health::Resting;
                    }
                }
            }
        }
        Health::Usable
    }

    fn drain_tun(&mut self, now: Instant) -> Health {
        let mut failures = 0;
        for _ in 0..BATCH {
            if !self.ports.has_room() {
                return Health::Usable;
            }
            match self.ports.device.read_packet(&mut self.buffer[..LARGEST_PACKET]) {
                Ok(length) => self.peer.outbound(&self.buffer[..length], now, &mut self.ports),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Health::Usable,
                Err(_) => {
                    self.counters.drop_one(DropReason::TunRead);
                    failures += 1;
                    if failures == FAILURES {
                        return Health::Resting;
                    }
                }
            }
        }
        Health::Usable
    }
}

/// Whether a descriptor is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// Polled and read.
    Usable,
    /// It failed again and again: neither polled nor read until the next tick.
    Resting,
}

/// The two ways out, with what they refuse counted, and one datagram that waits for room.
struct Ports {
    device: Arc<Device>,
    counters: Arc<Counters>,
    blocked: Vec<u8>,
}

impl Ports {
    fn retry(&mut self) {
        let result = self.device.send(&self.blocked);
        if !is_blocked(&result) {
            self.blocked.clear();
            self.count(result, DropReason::UdpSend);
        }
    }

    fn count(&self, result: io::Result<()>, reason: DropReason) {
        if result.is_err() {
            self.counters.drop_one(reason);
        }
    }
}

impl Wire for Ports {
    fn datagram(&mut self, bytes: &[u8]) {
        let result = self.device.send(bytes);
        if is_blocked(&result) && self.has_room() {
            self.blocked.extend_from_slice(bytes);
        } else {
            self.count(result, DropReason::UdpSend);
        }
    }

    fn packet(&mut self, bytes: &[u8]) {
        self.count(self.device.write_packet(bytes), DropReason::TunWrite);
    }

    fn has_room(&self) -> bool {
        self.blocked.is_empty()
    }
}

fn is_blocked(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[allow(clippy::disallowed_methods, reason = "the thread's loop is the wiring that hands time to the rest")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_stays_in_its_tunnel_and_is_seen() {
        let counters = Counters::new(clock());
        assert!(counters.stats(clock()).running);
        supervise("test", &counters, || panic!("this panic is part of a test"));
        assert!(!counters.stats(clock()).running);
    }
}
