//! The data paths that run in this process, by namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moorline_shared::gateway::{KeySource, Peer, TunnelSpec};
use moorline_shared::id::NamespaceId;
use moorline_shared::key::{KeyError, PrivateKey};
use moorline_sys::{namespace, tun};
use moorline_tunnel::{Backend, Config, Simple, Stats, Tunnel};

use crate::paths::{Paths, TUN_NAME, from_agent};

/// So that a middlebox keeps the way back open, and a standby's handshake is fresh when it is needed.
const KEEPALIVE: Duration = Duration::from_secs(25);

#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("read the private key in {path} (privateKeyFile of the Gateway): {error}")]
    KeyFile { path: String, error: io::Error },
    #[error("{path} holds no private key: {error}")]
    Key { path: String, error: KeyError },
    #[error("open the TUN device of {0}")]
    Device(NamespaceId, #[source] io::Error),
    #[error("open a UDP socket for {0}")]
    Socket(NamespaceId, #[source] io::Error),
    #[error("start the tunnel of {0}")]
    Start(NamespaceId, #[source] moorline_tunnel::Error),
    #[error("{0} is fenced: it leads nowhere, for good")]
    Fenced(NamespaceId),
}

/// A tunnel as it is shown.
#[derive(Debug)]
pub struct TunnelView {
    pub endpoint: SocketAddr,
    pub stats: Stats,
}

enum Running {
    Tunnel {
        endpoint: SocketAddr,
        tunnel: Box<dyn Tunnel>,
    },
    /// The node's own network: nothing has to run.
    Direct,
}

pub(super) struct Tunnels {
    paths: Paths,
    running: Mutex<BTreeMap<NamespaceId, Running>>,
}

impl Tunnels {
    pub(super) fn new(paths: Paths) -> Self {
        Self { paths, running: Mutex::default() }
    }

    pub(super) fn carries(&self, id: &NamespaceId) -> bool {
        self.running().get(id).is_some_and(|running| match running {
            Running::Tunnel { tunnel, .. } => tunnel.stats().running,
            Running::Direct => true,
        })
    }

    /// A data path is there, or has not ended yet.
    pub(super) fn has(&self, id: &NamespaceId) -> bool {
        self.running().contains_key(id)
    }

    pub(super) fn view(&self, id: &NamespaceId) -> Option<TunnelView> {
        match self.running().get(id)? {
            Running::Tunnel { endpoint, tunnel } => Some(TunnelView { endpoint: *endpoint, stats: tunnel.stats() }),
            Running::Direct => None,
        }
    }

    pub(super) fn attach(
        &self,
        id: &NamespaceId,
        spec: &TunnelSpec,
        peer: &Peer,
        server: IpAddr,
    ) -> Result<(), TunnelError> {
        // A data path that ended by itself holds the device until it is dropped.
        self.detach(id);
        let path = from_agent(&self.paths.namespace(id));
        let device = namespace::in_network(&path, || {
            tun::ensure_device()?;
            tun::attach(TUN_NAME)
        })
        .map_err(|error| TunnelError::Device(id.clone(), error))?;
        // The datagrams leave by the host's network, where this process is.
        let any: SocketAddr =
            if peer.endpoint.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
        let socket = UdpSocket::bind(any).map_err(|error| TunnelError::Socket(id.clone(), error))?;
        let config = Config {
            private_key: private_key(&spec.private_key)?,
            peer: peer.public_key,
            endpoint: peer.endpoint,
            keepalive: Some(KEEPALIVE),
            allowed: vec![server],
            local: vec![spec.address],
        };
        let tunnel = Simple
            .start(&id.to_string(), config, device, socket)
            .map_err(|error| TunnelError::Start(id.clone(), error))?;
        self.keep(id, Running::Tunnel { endpoint: peer.endpoint, tunnel })
    }

    pub(super) fn attach_direct(&self, id: &NamespaceId) -> Result<(), TunnelError> {
        self.keep(id, Running::Direct)
    }

    fn keep(&self, id: &NamespaceId, what: Running) -> Result<(), TunnelError> {
        // Under the lock: a fence writes its mark first and then ends what runs, under the same lock.
        let mut running = self.running();
        if from_agent(&self.paths.fence(id)).exists() {
            return Err(TunnelError::Fenced(id.clone()));
        }
        running.insert(id.clone(), what);
        Ok(())
    }

    /// Returns when no packet can leave any more.
    pub(super) fn detach(&self, id: &NamespaceId) {
        // Under the lock, so that nobody takes it for ended before it has.
        let mut running = self.running();
        drop(running.remove(id));
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<NamespaceId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn private_key(source: &KeySource) -> Result<PrivateKey, TunnelError> {
    match source {
        KeySource::Inline(key) => Ok(key.clone()),
        KeySource::File(path) => {
            let shown = || path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|error| TunnelError::KeyFile { path: shown(), error })?;
            text.parse().map_err(|error| TunnelError::Key { path: shown(), error })
        }
    }
}
