//! One tunnel in the foreground, and a line of its stats each second.
//!
//! Standard input is the TUN descriptor: it may be of another network namespace than the one this runs in, which is
//! where the UDP socket is made. `interop.sh` beside this file shows how.
//!
//! ```text
//! carry PRIVATE_KEY_FILE PEER_KEY ENDPOINT LOCAL_ADDRESS PEER_ADDRESS [KEEPALIVE_SECONDS] < TUN
//! ```

use std::error::Error;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use moorline_tunnel::{Backend, Config, Simple, Tunnel};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [key_file, peer, endpoint, local, allowed, rest @ ..] = &arguments[..] else {
        return Err("usage: carry PRIVATE_KEY_FILE PEER_KEY ENDPOINT LOCAL PEER [KEEPALIVE_SECONDS] < TUN".into());
    };
    let endpoint: SocketAddr = endpoint.parse()?;
    let keepalive = rest.first().map(|seconds| seconds.parse()).transpose()?.map(Duration::from_secs);
    let config = Config {
        private_key: std::fs::read_to_string(key_file)?.parse()?,
        peer: peer.parse()?,
        endpoint,
        keepalive,
        allowed: vec![allowed.parse()?],
        local: vec![local.parse()?],
    };
    let tun = std::io::stdin().as_fd().try_clone_to_owned()?;
    let socket = match endpoint {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    let tunnel = Simple.start("carry", config, tun, socket)?;
    while tunnel.stats().running {
        report(&*tunnel);
        std::thread::park_timeout(Duration::from_secs(1));
    }
    Err("the data path ended".into())
}

fn report(tunnel: &dyn Tunnel) {
    let stats = tunnel.stats();
    let dropped: Vec<String> = stats
        .dropped
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| format!("{}={count}", reason.name()))
        .collect();
    println!(
        "handshakes {} (last {:.1?} ago, rtt {:?}), unanswered {}, heard {:.1?} ago, sent {}, received {}, loss {:.4}, dropped [{}]",
        stats.handshakes,
        stats.handshake_age,
        stats.handshake_rtt,
        stats.unanswered,
        stats.heard_age,
        stats.sent_bytes,
        stats.received_bytes,
        stats.loss,
        dropped.join(" "),
    );
}
