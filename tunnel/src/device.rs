//! The descriptors of a tunnel: a TUN device, a UDP socket, and an eventfd that ends the data path. Nothing blocks
//! but [`Device::wait`].

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};

/// A server answers a read of a megabyte with some 700 datagrams at once; the kernel's default holds fewer than 200.
const RECEIVE_BUFFER: usize = 4 << 20;

pub(crate) struct Device {
    tun: OwnedFd,
    socket: UdpSocket,
    endpoint: SocketAddr,
    stop: OwnedFd,
}

/// What is worth waking up for, besides the order to stop. A descriptor that is left out is not looked at: poll
/// reports errors unasked, and one that has nothing but errors to offer would keep the loop spinning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interest {
    pub(crate) tun: bool,
    pub(crate) udp: bool,
    pub(crate) udp_room: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) tun: bool,
    pub(crate) udp: bool,
    pub(crate) udp_room: bool,
    pub(crate) stop: bool,
}

impl Device {
    pub(crate) fn new(tun: OwnedFd, socket: UdpSocket, endpoint: SocketAddr) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&tun, true)?;
        socket.set_nonblocking(true)?;
        // Best effort: the first way needs CAP_NET_ADMIN, the second ends at net.core.rmem_max.
        if set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            let _ = set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER);
        }
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { tun, socket, endpoint, stop })
    }

    /// Ends the wait, now and for ever.
    pub(crate) fn stop(&self) {
        // This can only fail by overflow, and then the descriptor is readable already.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }

    pub(crate) fn wait(&self, interest: Interest, timeout: Option<Duration>) -> io::Result<Ready> {
        let timeout =
            timeout.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
        let mut udp_events = PollFlags::empty();
        udp_events.set(PollFlags::IN, interest.udp);
        udp_events.set(PollFlags::OUT, interest.udp_room);
        let udp_at = 1;
        let tun_at = udp_at + usize::from(!udp_events.is_empty());
        let used = tun_at + usize::from(interest.tun);

        let order = PollFd::new(&self.stop, PollFlags::IN);
        let mut fds = [order.clone(), order.clone(), order];
        if !udp_events.is_empty() {
            fds[udp_at] = PollFd::new(&self.socket, udp_events);
        }
        if interest.tun {
            fds[tun_at] = PollFd::new(&self.tun, PollFlags::IN);
        }
        match poll(&mut fds[..used], timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let stop = !fds[0].revents().is_empty();
        let udp = if udp_events.is_empty() { PollFlags::empty() } else { fds[udp_at].revents() };
        let tun = interest.tun && !fds[tun_at].revents().is_empty();
        // An error is collected by the next read.
        Ok(Ready {
            tun,
            udp: interest.udp && udp.intersects(!PollFlags::OUT),
            udp_room: interest.udp_room && !udp.is_empty(),
            stop,
        })
    }

    pub(crate) fn read_packet(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.tun, buffer)?)
    }

    pub(crate) fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.tun, packet)?;
        Ok(())
    }

    /// A datagram's length, and whether it came from the endpoint.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        let (length, from) = self.socket.recv_from(buffer)?;
        // Neither a flow label nor an IPv4 address in IPv6 clothes makes it another place.
        let same = from.port() == self.endpoint.port() && from.ip().to_canonical() == self.endpoint.ip().to_canonical();
        Ok((length, same))
    }

    pub(crate) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send_to(datagram, self.endpoint)?;
        Ok(())
    }
}
