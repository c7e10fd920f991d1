//! A plain client without an agent: wireguard-go and mount(8) on the node itself. It proves the sites.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::command::sh;
use crate::node::{INNER, Node};
use crate::site::Site;

#[derive(Debug)]
pub struct Client {
    site: String,
    server: String,
}

impl Client {
    /// A tunnel from the node to the site.
    #[track_caller]
    pub fn connect(node: &Node, site: &Site) -> Self {
        let (name, server) = (site.name().to_owned(), site.server());
        let (private, public, endpoint) = (&node.key().private, site.public_key(), site.endpoint());
        sh(&format!(
            "umask 077; echo {private} >/run/key-{name}
             wireguard-go wg-{name} 2>/run/wireguard-{name}.log
             wg set wg-{name} private-key /run/key-{name} \
                peer {public} allowed-ips {server}/32 endpoint {endpoint}
             ip addr add {INNER}/32 dev wg-{name}
             ip link set wg-{name} mtu 1420 up
             ip route add {server} dev wg-{name}"
        ));
        Self { site: name, server }
    }

    /// Mounts an export, hard, and returns where.
    #[track_caller]
    pub fn mount(&self, export: &str) -> PathBuf {
        let at = Path::new("/run/mounted").join(&self.site).join(export);
        let (server, at_text) = (&self.server, at.display());
        sh(&format!("mkdir -p {at_text}; mount -t nfs4 -o vers=4.1,hard,nosharecache {server}:/{export} {at_text}"));
        at
    }
}

/// A process that reads a file, and may block for as long as its server is away.
#[derive(Debug)]
pub struct Reader(Child);

impl Reader {
    /// Reads around the page cache, or there would be nothing to wait for.
    #[track_caller]
    pub fn start(path: &Path) -> Self {
        let child = Command::new("dd")
            .arg(format!("if={}", path.display()))
            .args(["of=/dev/null", "bs=4k", "count=1", "iflag=direct", "status=none"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("start dd: {error}"));
        Self(child)
    }

    /// Whether it waits in the kernel.
    pub fn blocked(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('D'))
    }

    /// How it ended, if it has.
    #[track_caller]
    pub fn ended(&mut self) -> Option<bool> {
        self.0.try_wait().unwrap_or_else(|error| panic!("wait for dd: {error}")).map(|status| status.success())
    }
}
