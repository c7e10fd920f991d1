//! Servers, what they hold, and the kernel's clients of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use moorline_shared::id::{NamespaceId, SuperblockId};
use moorline_sys::mountinfo::Device;

use super::apps::{Call, Outcome};
use super::world::{HOST_NETWORK, World};

/// A machine that serves NFS, at the far end of a tunnel or not.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub address: IpAddr,
    /// WireGuard's, where there is a tunnel.
    pub endpoint: Option<std::net::SocketAddr>,
    pub gateway: usize,
    pub up: bool,
    /// The way to it, which is its own.
    pub link: bool,
    pub store: usize,
    /// The root of each export; none that was removed. A new root is not the old one.
    pub exports: BTreeMap<String, Option<u64>>,
}

/// What is on disk, by share and file: the number of the last write, and the way that it came.
#[derive(Debug, Clone, Default)]
pub(super) struct Store(BTreeMap<(String, u8), (u64, NamespaceId)>);

#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub id: SuperblockId,
    /// The network namespace that its client speaks in.
    pub network: u64,
    pub server: usize,
    pub export: String,
    pub root: u64,
    pub soft: bool,
    /// It was ended for good.
    pub shut: bool,
    /// Somebody may have written to it.
    pub shown: bool,
    pub dirty: Vec<Write>,
}

/// Data that the application has written, and the server has not got.
#[derive(Debug, Clone)]
pub(super) struct Write {
    pub file: u8,
    pub number: u64,
    pub container: u64,
    /// It is under way, and what is aborted.
    pub sent: bool,
}

/// How long a soft call takes to fail: timeo 50, retrans 2.
const MAJOR_TIMEOUT: Duration = Duration::from_secs(15);

impl World {
    pub(super) fn build_servers(&mut self) {
        for (index, gateway) in self.scene.gateways.clone().into_iter().enumerate() {
            for (number, target) in gateway.targets.iter().enumerate() {
                if number == 0 || !self.scene.one_store[index] {
                    self.stores.push(Store::default());
                }
                let exports = (0..2).map(|export| (format!("/export{export}"), Some(self.number()))).collect();
                self.servers.push(Server {
                    address: target.server,
                    endpoint: target.peer.as_ref().map(|peer| peer.endpoint),
                    gateway: index,
                    up: true,
                    link: true,
                    store: self.stores.len() - 1,
                    exports,
                });
            }
        }
    }

    /// Whether packets from a network namespace reach a server and come back.
    pub(super) fn reaches(&self, network: u64, server: usize) -> bool {
        let there = &self.servers[server];
        let way = match self.networks.get(&network) {
            Some(_) if network == HOST_NETWORK => there.endpoint.is_none() || self.leads(there.address),
            Some(network) => network.path.as_ref().is_some_and(|path| path.running && path.server == server),
            None => false,
        };
        way && self.uplink && there.link
    }

    /// Whether the server that a superblock is from answers it.
    pub(super) fn answers(&self, device: Device) -> bool {
        self.superblocks.get(&device).is_some_and(|superblock| {
            !superblock.shut
                && self.servers[superblock.server].up
                && self.reaches(superblock.network, superblock.server)
        })
    }

    pub(super) fn is_stale(&self, device: Device) -> bool {
        self.superblocks.get(&device).is_some_and(|superblock| {
            self.servers[superblock.server].exports.get(&superblock.export).copied().flatten() != Some(superblock.root)
        })
    }

    pub(super) fn server_at(&self, address: IpAddr) -> Option<usize> {
        self.servers.iter().position(|server| server.address == address)
    }

    /// What a file holds, as seen through a superblock.
    pub(super) fn content(&self, device: Device, file: u8) -> u64 {
        let Some(superblock) = self.superblocks.get(&device) else { return 0 };
        let own = superblock.dirty.iter().filter(|write| write.file == file).map(|write| write.number).max();
        let store = &self.stores[self.servers[superblock.server].store];
        let there = store.0.get(&(superblock.id.share.to_string(), file)).map(|(number, _)| *number);
        own.max(there).unwrap_or(0)
    }

    /// Lets everything go on that can: after each change of the network, of servers and of superblocks.
    pub(super) fn flow(&mut self) {
        for device in self.superblocks.keys().copied().collect::<Vec<_>>() {
            if self.superblocks[&device].shut {
                self.lose(device, true);
                self.end_calls(device, &Outcome::Failed);
            } else if self.answers(device) {
                if self.is_stale(device) {
                    self.lose(device, true);
                    self.end_calls(device, &Outcome::Stale);
                } else {
                    self.deliver(device);
                    self.end_calls(device, &Outcome::Done);
                }
            } else if self.superblocks[&device].soft {
                let now = self.now();
                // Every other one waits until the kernel has its state again, and that knows no timeout.
                let waits = |call: &Call| call.since.as_secs().is_multiple_of(2);
                let late = |call: &Call| now >= call.since + MAJOR_TIMEOUT && !waits(call);
                if self.containers.values().any(|container| container.call_on(device).is_some_and(late)) {
                    self.lose(device, false);
                    self.end_calls(device, &Outcome::Failed);
                }
            }
        }
        self.reap();
        self.let_go();
    }

    /// What is under way arrives.
    fn deliver(&mut self, device: Device) {
        let Some(superblock) = self.superblocks.get_mut(&device) else { return };
        let (id, server) = (superblock.id.clone(), superblock.server);
        let (sent, rest): (Vec<Write>, Vec<Write>) =
            std::mem::take(&mut superblock.dirty).into_iter().partition(|write| write.sent);
        superblock.dirty = rest;
        let store = self.servers[server].store;
        for write in sent {
            let key = (id.share.to_string(), write.file);
            let there = self.stores[store].0.get(&key).cloned();
            if let Some((number, way)) = there
                && number > write.number
            {
                // Writers of one server come in whatever order.
                if way != id.namespace {
                    let what =
                        format!("{id} writes {} to file {}, which holds {number} by {way}", write.number, write.file);
                    self.breaks("no old data over new", what);
                }
                continue;
            }
            self.stores[store].0.insert(key, (write.number, id.namespace.clone()));
        }
    }

    /// What is unwritten is lost: all of it, or only what is under way.
    fn lose(&mut self, device: Device, all: bool) {
        if let Some(superblock) = self.superblocks.get_mut(&device) {
            superblock.dirty.retain(|write| !all && !write.sent);
        }
    }

    /// One round of an abort: what is outstanding ends with an error. What was not sent yet is sent by somebody, and meets
    /// the next round.
    pub(super) fn abort(&mut self, device: Device) {
        self.lose(device, false);
        self.end_calls(device, &Outcome::Failed);
        let again = self.rng.bool();
        if let Some(superblock) = self.superblocks.get_mut(&device).filter(|_| again) {
            superblock.dirty.iter_mut().for_each(|write| write.sent = true);
        }
        self.flow();
    }

    /// Ends a superblock for good.
    pub(super) fn shut(&mut self, device: Device) {
        if let Some(superblock) = self.superblocks.get_mut(&device) {
            superblock.shut = true;
            let id = superblock.id.clone();
            self.say(|| format!("{id} is shut down"));
        }
        self.flow();
    }

    fn end_calls(&mut self, device: Device, outcome: &Outcome) {
        let callers: Vec<u64> =
            self.containers.iter().filter(|(_, c)| c.call_on(device).is_some()).map(|(inode, _)| *inode).collect();
        for inode in callers {
            self.end_call(inode, outcome);
        }
    }

    /// Whether a superblock can't write any more, whatever comes back.
    pub(super) fn is_cut_off(&self, superblock: &Superblock) -> bool {
        let network = self.networks.get(&superblock.network);
        let no_way = superblock.network != HOST_NETWORK && network.is_none_or(|network| network.path.is_none());
        // By name alone a data path may be attached again.
        let named = self.network_of(&superblock.id.namespace) == Some(superblock.network);
        superblock.shut || no_way && (!named || self.is_marked(&superblock.id.namespace))
    }

    pub(super) fn is_writers(superblock: &Superblock) -> bool {
        superblock.id.user.writes()
    }
}
