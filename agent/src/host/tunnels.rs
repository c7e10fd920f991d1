//! The data paths that run in this process, by namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moorline_shared::gateway::{Peer, TunnelSpec};
use moorline_shared::id::{NamespaceId, TargetId};
use moorline_shared::key::KeyError;
use moorline_tunnel::{Stats, Tunnel};

use super::machine::Machine;
use crate::paths::Paths;

#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("read the private key in {path} (privateKeyFile of the Gateway): {error}")]
    KeyFile { path: String, error: io::Error },
    #[error("{path} holds no private key: {error}")]
    Key { path: String, error: KeyError },
    #[error("open the TUN device of {0}")]
    Device(NamespaceId, #[source] io::Error),
    #[error("open {device}, the device of the node's way to {target}")]
    Way {
        target: TargetId,
        device: String,
        #[source]
        error: io::Error,
    },
    #[error("open a UDP socket for {0}")]
    Socket(String, #[source] io::Error),
    #[error("start the tunnel of {0}")]
    Start(String, #[source] moorline_tunnel::Error),
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
    machine: Arc<dyn Machine>,
    paths: Paths,
    running: Mutex<BTreeMap<NamespaceId, Running>>,
}

impl Tunnels {
    pub(super) fn new(machine: Arc<dyn Machine>, paths: Paths) -> Self {
        Self { machine, paths, running: Mutex::default() }
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
        self.begin(id, || {
            let tunnel = self.machine.start(id, spec, peer, server)?;
            Ok(Running::Tunnel { endpoint: peer.endpoint, tunnel })
        })
    }

    pub(super) fn attach_direct(&self, id: &NamespaceId) -> Result<(), TunnelError> {
        self.begin(id, || Ok(Running::Direct))
    }

    /// Under the lock from before the mark is looked for: a fence leaves its mark first and then, under the same lock, ends
    /// what runs. So nothing carries a packet after a fence, not even for the moment that it takes to start.
    fn begin(&self, id: &NamespaceId, start: impl FnOnce() -> Result<Running, TunnelError>) -> Result<(), TunnelError> {
        let mut running = self.running();
        if self.machine.read(&self.paths.fence(id)).is_ok() {
            return Err(TunnelError::Fenced(id.clone()));
        }
        // A data path that ended by itself holds the device until it is dropped.
        drop(running.remove(id));
        running.insert(id.clone(), start()?);
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
