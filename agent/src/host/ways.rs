//! The data paths of ways on the node's own network that run in this process, by target.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moorline_shared::gateway::{Gateway, Peer, TunnelSpec};
use moorline_shared::id::TargetId;
use moorline_shared::way::Way;
use moorline_tunnel::Tunnel;

use super::machine::Machine;
use super::tunnels::{TunnelError, TunnelView};

struct Running {
    spec: TunnelSpec,
    peer: Peer,
    tunnel: Box<dyn Tunnel>,
}

pub(super) struct Ways {
    machine: Arc<dyn Machine>,
    running: Mutex<BTreeMap<TargetId, Running>>,
}

impl Ways {
    pub(super) fn new(machine: Arc<dyn Machine>) -> Self {
        Self { machine, running: Mutex::default() }
    }

    /// A data path runs, as its Gateway says by now, if that is there.
    pub(super) fn carries(&self, target: &TargetId, gateway: Option<&Gateway>) -> bool {
        let as_it_says = |running: &Running| {
            let peer = |gateway: &Gateway| Some(gateway.target(&target.target)?.peer.as_ref()? == &running.peer);
            gateway.is_none_or(|gateway| gateway.tunnel() == Some(&running.spec) && peer(gateway) == Some(true))
        };
        self.running().get(target).is_some_and(|running| running.tunnel.stats().running && as_it_says(running))
    }

    pub(super) fn view(&self, target: &TargetId) -> Option<TunnelView> {
        let running = self.running();
        let Running { peer, tunnel, .. } = running.get(target)?;
        Some(TunnelView { endpoint: peer.endpoint, stats: tunnel.stats() })
    }

    pub(super) fn carry(&self, way: &Way, spec: &TunnelSpec, peer: &Peer) -> Result<(), TunnelError> {
        let mut running = self.running();
        // One that ended by itself, or leads where its Gateway led before, holds the device until it is dropped.
        drop(running.remove(&way.target));
        let tunnel = self.machine.carry(way, spec, peer)?;
        running.insert(way.target.clone(), Running { spec: spec.clone(), peer: peer.clone(), tunnel });
        Ok(())
    }

    /// Returns when no packet can leave any more.
    pub(super) fn let_go(&self, target: &TargetId) {
        let mut running = self.running();
        drop(running.remove(target));
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<TargetId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
