//! Ways on the node's own network, and the mounts of others that go by them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use moorline_shared::id::TargetId;
use moorline_shared::way::Way;

use super::world::{DataPath, HOST_NETWORK, World, paths};

/// As the kernel has it.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub way: Way,
    /// Somebody may take its route away.
    pub whole: bool,
    pub path: Option<DataPath>,
}

impl World {
    /// One way or another, a path of the node's own network leads to a server.
    pub(super) fn leads(&self, address: IpAddr) -> bool {
        let server = self.server_at(address);
        let leads = |device: &Device| {
            let path = device.path.as_ref().filter(|path| path.running);
            device.whole && device.way.server == address && path.is_some_and(|path| Some(path.server) == server)
        };
        self.ways.values().any(leads)
    }

    /// Of all that is mounted by the node's own network.
    pub(super) fn used_servers(&self) -> BTreeSet<IpAddr> {
        let ours = self.superblocks.values().filter(|superblock| superblock.network == HOST_NETWORK);
        ours.map(|superblock| self.servers[superblock.server].address).chain(self.guests.values().copied()).collect()
    }

    pub(super) fn seen_ways(&self) -> BTreeMap<TargetId, (Way, bool)> {
        let seen = |(target, device): (&TargetId, &Device)| (target.clone(), (device.way.clone(), device.whole));
        self.ways.iter().map(seen).collect()
    }

    /// Somebody mounts from a server by kubelet's own `nfs:`, or is done with it.
    pub(super) fn guests_change(&mut self) {
        let guests: Vec<u64> = self.guests.keys().copied().collect();
        if let Some(guest) = self.rng.choice(&guests).copied().filter(|_| guests.len() > 2) {
            self.guests.remove(&guest);
            self.say(|| format!("guest {guest} has unmounted"));
            return;
        }
        let ways: Vec<Way> = self.ways.values().map(|device| device.way.clone()).collect();
        let Some(way) = self.rng.choice(&ways).cloned() else { return };
        let up = self.server_at(way.server).is_some_and(|server| self.servers[server].up);
        if up && self.leads(way.server) {
            let guest = self.number();
            self.guests.insert(guest, way.server);
            self.say(|| format!("guest {guest} mounts from {}", way.server));
        }
    }

    /// A daemon of the node's network sets it up anew, and forgets what it does not know.
    pub(super) fn route_goes(&mut self) {
        let targets: Vec<TargetId> =
            self.ways.keys().filter(|target| !self.scene.is_sheltered(&target.gateway)).cloned().collect();
        if let Some(target) = self.rng.choice(&targets).cloned()
            && let Some(device) = self.ways.get_mut(&target)
        {
            device.whole = false;
            self.say(|| format!("the route to {target} is gone"));
            self.flow();
        }
    }

    pub(super) fn make_way(&mut self, wanted: &Way) {
        let device = Device { way: wanted.clone(), whole: true, path: None };
        self.ways.entry(wanted.target.clone()).or_insert(device).whole = true;
        self.flow();
    }

    /// Refused where somebody has come meanwhile.
    pub(super) fn remove_way(&mut self, target: &TargetId, unused: bool) -> bool {
        let used = self.used_servers();
        let Some(device) = self.ways.get(target) else { return true };
        let is_used = used.contains(&device.way.server);
        if is_used && unused {
            return false;
        }
        if is_used {
            self.breaks("a way that somebody uses stays", format!("that to {target} is removed"));
        }
        self.ways.remove(target);
        self.flow();
        true
    }

    /// What is still to come when nothing happens any more.
    pub(super) fn unsettled_ways(&self) -> Vec<String> {
        let mut open = Vec::new();
        for way in self.scene.gateways.iter().flat_map(|gateway| gateway.ways()) {
            let device = self.ways.get(&way.target);
            if device.is_none_or(|device| !device.whole || !device.path.as_ref().is_some_and(|path| path.running)) {
                open.push(format!("the node's way to {} leads nowhere: {device:?}", way.target));
            }
        }
        if self.scene.has_ways() != self.files.contains_key(&paths().mount_defaults()) {
            open.push("the node's mount defaults are not as they should be".into());
        }
        open
    }
}
