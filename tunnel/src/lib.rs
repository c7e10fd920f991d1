//! WireGuard in user space: one peer, one TUN device, one UDP socket.
//!
//! The caller makes the descriptors (they live in different network namespaces) and chooses a [`Backend`]; a
//! [`Tunnel`] carries packets until it is dropped.
//!
//! ```no_run
//! use moorline_tunnel::{Backend, Config, Simple, Tunnel};
//! # fn of(config: Config, tun: std::os::fd::OwnedFd, socket: std::net::UdpSocket) -> Result<(), moorline_tunnel::Error> {
//! let tunnel = Simple.start("gw-a", config, tun, socket)?;
//! assert!(tunnel.stats().running);
//! drop(tunnel); // returns when no packet can leave any more
//! # Ok(())
//! # }
//! ```

mod backend;
mod config;
mod device;
mod stats;

use std::net::UdpSocket;
use std::os::fd::OwnedFd;

pub use backend::simple::Simple;
pub use config::{Config, Error};
pub use stats::{DropReason, Dropped, Stats};

/// A way of carrying packets. All of them speak the same WireGuard.
pub trait Backend: Send + Sync {
    /// Starts a tunnel that carries packets until it is dropped.
    ///
    /// `name` appears in logs and as the thread's name. `tun` is attached to its device (IFF_TUN | IFF_NO_PI). `socket`
    /// is bound, not connected, and of the endpoint's address family. Both are made non-blocking. They stay open as
    /// long as the tunnel exists, also when its data path has ended: the caller who wants the device to outlive the
    /// tunnel keeps a duplicate.
    fn start(&self, name: &str, config: Config, tun: OwnedFd, socket: UdpSocket) -> Result<Box<dyn Tunnel>, Error>;
}

/// A running tunnel. Dropping it ends the data path, and returns only when no packet can leave any more.
pub trait Tunnel: Send + Sync {
    fn stats(&self) -> Stats;
}
