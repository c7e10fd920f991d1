//! What the host stands on. The simulator puts a machine of its own here; everything above is the same for both.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moorline_shared::gateway::{KeySource, Peer, TunnelSpec};
use moorline_shared::id::{NamespaceId, SuperblockId, TargetId};
use moorline_shared::key::PrivateKey;
use moorline_shared::way::Way;
use moorline_sys::mountinfo::{Device, Mount};
use moorline_sys::{namespace, tun};
use moorline_tunnel::{Backend, Config, Simple, Tunnel};

use super::containers::{self, MountNamespace};
use super::listings::{self, Listings};
use super::network::{self, PROC_NET};
use super::tunnels::TunnelError;
use crate::hands::{Done, Hands, HandsError, Request};
use crate::killpoint::{self, Point};
use crate::paths::{HOST_NETWORK, Paths, TUN_NAME, from_agent};
use crate::probe::Question;
use crate::reconcile::Clock;
use crate::table::Table;

pub(crate) type Promise<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Paths are the host's.
pub(crate) trait Machine: Send + Sync {
    /// Does a piece of work in a process of its own, for `deadline` at most.
    fn hand(&self, request: Request, deadline: Duration) -> Promise<'_, Result<Done, HandsError>>;

    /// What pieces of work may still show that were given up, and that the kernel holds.
    fn lingering(&self) -> BTreeSet<SuperblockId>;

    /// Asks a server whether it is there, and says how long it took to answer.
    fn ask<'a>(&'a self, question: &'a Question, clock: &'a Clock) -> Promise<'a, io::Result<Duration>>;

    /// The mount table of the host.
    fn mounts(&self) -> io::Result<Arc<Vec<Mount>>>;

    /// The mount namespaces that hold a mount of one of these devices, the host's among them, and who is in those that
    /// hold one of `written`.
    fn holding(&self, devices: &BTreeSet<Device>, written: &BTreeSet<Device>) -> Vec<MountNamespace>;

    /// Whether a superblock in the host's network namespace has the switch that ends it.
    fn can_shut_down(&self) -> bool;

    /// Starts a data path, which ends when it is dropped.
    fn start(
        &self,
        id: &NamespaceId,
        spec: &TunnelSpec,
        peer: &Peer,
        server: IpAddr,
    ) -> Result<Box<dyn Tunnel>, TunnelError>;

    /// Ways of ours on the node's own network, and whether each is up and its server's route leads there.
    fn ways(&self) -> io::Result<BTreeMap<TargetId, (Way, bool)>>;

    /// Servers that anybody mounts from by the node's own network.
    fn used_servers(&self) -> io::Result<BTreeSet<IpAddr>>;

    /// Starts the data path of such a way, which ends when it is dropped.
    fn carry(&self, way: &Way, spec: &TunnelSpec, peer: &Peer) -> Result<Box<dyn Tunnel>, TunnelError>;

    /// The names of the files in a directory.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// The same for a directory that every round looks into.
    fn list_again(&self, directory: &Path) -> io::Result<Arc<Vec<String>>> {
        self.list(directory).map(Arc::new)
    }

    fn read(&self, file: &Path) -> io::Result<Vec<u8>>;

    /// Whole or not at all: a crash leaves the old file or the new one. `written` is the point between the two.
    fn write(&self, file: &Path, content: &[u8], written: Point) -> io::Result<()>;

    /// One that is not there is removed.
    fn remove(&self, file: &Path) -> io::Result<()>;

    fn exists(&self, path: &Path) -> bool;

    /// What tells one boot of the machine from another.
    fn boot(&self) -> io::Result<String>;

    /// Those of these pods, by UID, that have a process.
    fn with_processes(&self, uids: &BTreeSet<String>) -> BTreeSet<String>;
}

/// How the name of a file ends that is written and not yet in its place.
pub(crate) const UNFINISHED: &str = ".new";

/// The machine that this process runs on.
pub(crate) struct Linux {
    paths: Paths,
    table: Table,
    listings: Listings,
    /// With the mount table that it was found out for: only a new mount can make a difference.
    can_shut_down: Mutex<Option<(Arc<Vec<Mount>>, bool)>>,
    hands: Hands,
}

/// So that a middlebox keeps the way back open, and a standby's handshake is fresh when it is needed.
const KEEPALIVE: Duration = Duration::from_secs(25);

impl Linux {
    pub(crate) fn new(paths: Paths) -> Self {
        Self {
            paths,
            table: Table::new(),
            listings: Listings::default(),
            can_shut_down: Mutex::default(),
            hands: Hands::default(),
        }
    }
}

impl Machine for Linux {
    fn hand(&self, request: Request, deadline: Duration) -> Promise<'_, Result<Done, HandsError>> {
        Box::pin(async move { self.hands.call(&request, deadline).await })
    }

    fn lingering(&self) -> BTreeSet<SuperblockId> {
        self.hands.lingering()
    }

    fn ask<'a>(&'a self, question: &'a Question, clock: &'a Clock) -> Promise<'a, io::Result<Duration>> {
        Box::pin(question.ask(clock))
    }

    fn mounts(&self) -> io::Result<Arc<Vec<Mount>>> {
        self.table.mounts()
    }

    fn holding(&self, devices: &BTreeSet<Device>, written: &BTreeSet<Device>) -> Vec<MountNamespace> {
        containers::holding(devices, written)
    }

    fn can_shut_down(&self) -> bool {
        let find_out = || {
            let superblocks = fs::read_dir(from_agent(Path::new("/sys/fs/nfs"))).into_iter().flatten().flatten();
            superblocks.map(|superblock| superblock.path().join("shutdown")).any(|switch| switch.exists())
        };
        let Ok(mounts) = self.mounts() else { return find_out() };
        let mut known = self.can_shut_down.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((of, can)) if Arc::ptr_eq(of, &mounts) => *can,
            _ => known.insert((mounts, find_out())).1,
        }
    }

    fn start(
        &self,
        id: &NamespaceId,
        spec: &TunnelSpec,
        peer: &Peer,
        server: IpAddr,
    ) -> Result<Box<dyn Tunnel>, TunnelError> {
        let path = from_agent(&self.paths.namespace(id));
        let device = namespace::in_network(&path, || {
            tun::ensure_device()?;
            tun::attach(TUN_NAME)
        })
        .map_err(|error| TunnelError::Device(id.clone(), error))?;
        start(&id.to_string(), device, spec, peer, server, Point::TunnelOpen)
    }

    fn ways(&self) -> io::Result<BTreeMap<TargetId, (Way, bool)>> {
        network::ways(&from_agent(Path::new("/sys/class/net")), Path::new(PROC_NET))
    }

    fn used_servers(&self) -> io::Result<BTreeSet<IpAddr>> {
        network::used_servers(Path::new(PROC_NET))
    }

    fn carry(&self, way: &Way, spec: &TunnelSpec, peer: &Peer) -> Result<Box<dyn Tunnel>, TunnelError> {
        let name = way.device();
        let refused = |error| TunnelError::Way { target: way.target.clone(), device: way.device(), error };
        // To attach to one that is not there is to make it: a device without address and route, and without a word whose it is.
        let ways = self.ways().map_err(refused)?;
        if ways.get(&way.target).is_none_or(|(there, _)| there != way) {
            return Err(refused(io::ErrorKind::NotFound.into()));
        }
        let device = namespace::in_network(Path::new(HOST_NETWORK), move || {
            tun::ensure_device()?;
            tun::attach(&name)
        });
        start(&way.target.to_string(), device.map_err(refused)?, spec, peer, way.server, Point::WayOpen)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        listings::list(&from_agent(directory))
    }

    fn list_again(&self, directory: &Path) -> io::Result<Arc<Vec<String>>> {
        self.listings.of(&from_agent(directory))
    }

    fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
        fs::read(from_agent(file))
    }

    /// They are root's alone.
    fn write(&self, file: &Path, content: &[u8], written: Point) -> io::Result<()> {
        let file = from_agent(file);
        let mut fresh = file.clone().into_os_string();
        fresh.push(UNFINISHED);
        let fresh = PathBuf::from(fresh);
        File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?.write_all(content)?;
        killpoint::hit(written);
        fs::rename(fresh, file)
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        match fs::remove_file(from_agent(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn exists(&self, path: &Path) -> bool {
        from_agent(path).exists()
    }

    fn boot(&self) -> io::Result<String> {
        fs::read_to_string(from_agent(Path::new("/proc/sys/kernel/random/boot_id")))
    }

    fn with_processes(&self, uids: &BTreeSet<String>) -> BTreeSet<String> {
        containers::with_processes(uids)
    }
}

/// A data path over a TUN device. Its datagrams leave by the host's network, where this process is.
fn start(
    name: &str,
    device: OwnedFd,
    spec: &TunnelSpec,
    peer: &Peer,
    server: IpAddr,
    open: Point,
) -> Result<Box<dyn Tunnel>, TunnelError> {
    let any: SocketAddr =
        if peer.endpoint.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).map_err(|error| TunnelError::Socket(name.to_owned(), error))?;
    killpoint::hit(open);
    let config = Config {
        private_key: private_key(&spec.private_key)?,
        peer: peer.public_key,
        endpoint: peer.endpoint,
        keepalive: Some(KEEPALIVE),
        allowed: vec![server],
        local: vec![spec.address],
    };
    Simple.start(name, config, device, socket).map_err(|error| TunnelError::Start(name.to_owned(), error))
}

fn private_key(source: &KeySource) -> Result<PrivateKey, TunnelError> {
    match source {
        KeySource::Inline(key) => Ok(key.clone()),
        KeySource::File(path) => {
            let shown = || path.display().to_string();
            let text = fs::read_to_string(path).map_err(|error| TunnelError::KeyFile { path: shown(), error })?;
            text.parse().map_err(|error| TunnelError::Key { path: shown(), error })
        }
    }
}
