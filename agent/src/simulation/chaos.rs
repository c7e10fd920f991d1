//! What goes wrong, and the end of it.

use std::time::Duration;

use moorline_shared::share::{Access, Namespaces, Share};
use moorline_shared::yaml::{Located, Object};
use tokio::time::sleep;

use super::world::{Shared, World};
use super::{boots, kubelet, life};
use crate::reconcile::Event;

/// After the last fault: a step that hung is given up after a minute at most, is tried again half a minute later, and a
/// target that refused a mount is preferred again after a minute.
const SETTLED: Duration = Duration::from_secs(200);

/// Everything that happens.
pub(super) async fn unfold(world: &Shared) {
    tokio::spawn(supervise(world.clone()));
    tokio::spawn(boots::follow(world.clone()));
    world.lock().trouble = true;
    let end = {
        let world = world.lock();
        world.now() + world.scene.chaos
    };
    loop {
        let (pause, pod) = {
            let mut world = world.lock();
            if world.is_broken() || world.now() >= end {
                break;
            }
            (world.pause(10, 700), world.something())
        };
        if let Some((slot, uid)) = pod {
            tokio::spawn(kubelet::pod(world.clone(), slot, uid));
        }
        sleep(pause).await;
        world.lock().flow();
    }
    world.lock().heal();
    if !settle(world, |world| world.unsettled()).await {
        return;
    }
    world.lock().use_everything();
    sleep(Duration::from_secs(1)).await;
    {
        let mut world = world.lock();
        let stuck = world.containers.iter().filter(|(_, container)| world.must_answer(container));
        let stuck: Vec<String> =
            stuck.map(|(inode, container)| format!("container {inode} is still in {:?}", container.call)).collect();
        if !stuck.is_empty() {
            world.does_not_converge(&stuck);
        }
        for uid in world.pods.keys().cloned().collect::<Vec<_>>() {
            world.delete_pod(&uid, Duration::from_secs(5));
        }
        world.clear_node();
    }
    settle(world, |world| world.leftovers()).await;
}

/// Waits until nothing is open, but not for ever.
async fn settle(world: &Shared, open: impl Fn(&mut World) -> Vec<String>) -> bool {
    let end = world.lock().now() + SETTLED;
    loop {
        {
            let mut world = world.lock();
            world.flow();
            if world.is_broken() {
                return false;
            }
            let open = open(&mut world);
            if open.is_empty() {
                return true;
            }
            if world.now() >= end {
                world.does_not_converge(&open);
                return false;
            }
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Keeps an agent on the node.
async fn supervise(world: Shared) {
    while !world.lock().over {
        if world.lock().agent.is_none() {
            let pause = {
                let mut world = world.lock();
                let most = if world.trouble { 6000 } else { 1000 };
                world.pause(200, most)
            };
            sleep(pause).await;
            life::begin(&world);
        }
        sleep(Duration::from_millis(250)).await;
    }
}

impl World {
    pub(super) fn is_broken(&self) -> bool {
        !self.broken.is_empty() || super::has_panicked()
    }

    /// One thing happens. A pod that comes is the caller's to start.
    fn something(&mut self) -> Option<(usize, String)> {
        match self.rng.u32(..100) {
            0..14 => return self.pod_comes(),
            14..18 => self.pod_goes(),
            18..21 => self.container_ends(),
            21..60 => self.container_acts(),
            60..69 => self.server_changes(),
            69..72 => self.way_changes(),
            72..74 => self.export_changes(),
            74..77 => self.objects_change(),
            77..78 if !self.scene.calm => self.data_path_panics(),
            78..80 if self.rng.u32(..60) < self.scene.killing => self.kill_agent("by somebody"),
            80..82 => self.somebody_asks(),
            82..88 => self.write_back(),
            88..89 if !self.scene.calm && self.rng.u32(..8) == 0 => self.boot("the node crashes"),
            89..90 if !self.scene.calm && self.rng.u32(..4) == 0 => self.ask_to_shut_down(),
            90..95 if !self.asked.is_empty() => self.node_user_comes(),
            95..97 if !self.asked.is_empty() => self.node_mounts_change(),
            97..99 if !self.ways.is_empty() => self.guests_change(),
            99 if !self.ways.is_empty() && !self.scene.calm => self.route_goes(),
            _ => {}
        }
        None
    }

    fn pod_comes(&mut self) -> Option<(usize, String)> {
        let slot = self.rng.usize(..self.scene.slots.len());
        if self.volumes.values().any(|volume| volume.slot == slot) {
            return None;
        }
        let uid = format!("uid{slot}-{}", self.number());
        Some((slot, uid))
    }

    fn pod_goes(&mut self) {
        let uids: Vec<String> = self.pods.keys().cloned().collect();
        let Some(uid) = self.rng.choice(&uids).cloned() else { return };
        let grace = Duration::from_secs(self.rng.u64(0..20));
        self.delete_pod(&uid, grace);
    }

    fn any_container(&mut self) -> Option<u64> {
        let inodes: Vec<u64> = self.containers.keys().copied().collect();
        self.rng.choice(&inodes).copied()
    }

    fn container_ends(&mut self) {
        let Some(inode) = self.any_container() else { return };
        if self.rng.bool() { self.ask_to_leave(inode) } else { self.kill_container(inode) }
    }

    fn container_acts(&mut self) {
        if let Some(inode) = self.any_container() {
            self.act(inode);
        }
    }

    /// A server that no shelter is over.
    fn any_server(&mut self) -> Option<usize> {
        let sheltered = self.scene.sheltered;
        let exposed: Vec<usize> =
            (0..self.servers.len()).filter(|index| Some(self.servers[*index].gateway) != sheltered).collect();
        self.rng.choice(&exposed).copied()
    }

    fn server_changes(&mut self) {
        let Some(index) = self.any_server() else { return };
        let both = self.rng.u32(..3);
        let server = &mut self.servers[index];
        match both {
            0 => server.link = !server.link,
            _ => server.up = !server.up,
        }
        let server = server.clone();
        self.say(|| format!("server {}: up {}, link {}", server.address, server.up, server.link));
        self.flow();
    }

    fn way_changes(&mut self) {
        if self.scene.sheltered.is_none() {
            self.uplink = !self.uplink;
            let uplink = self.uplink;
            self.say(|| format!("the node's uplink: {uplink}"));
            self.flow();
        }
    }

    fn export_changes(&mut self) {
        let Some(index) = self.any_server() else { return };
        let (remove, number) = (self.rng.u32(..3) == 0, self.number());
        let export = format!("/export{}", self.rng.u32(..2));
        self.servers[index].exports.insert(export.clone(), (!remove).then_some(number));
        let address = self.servers[index].address;
        self.say(|| format!("{export} of {address} is {}", if remove { "removed" } else { "replaced" }));
        self.flow();
    }

    fn data_path_panics(&mut self) {
        let networks: Vec<u64> = self.networks.keys().copied().collect();
        let exposed = |world: &Self, network: u64| {
            let path = world.networks[&network].path.as_ref();
            path.is_some_and(|path| Some(world.servers[path.server].gateway) != world.scene.sheltered)
        };
        let Some(network) = self.rng.choice(&networks).copied().filter(|network| exposed(self, *network)) else {
            return;
        };
        if let Some(path) = self.networks.get_mut(&network).and_then(|network| network.path.as_mut()) {
            path.running = false;
            self.say(|| format!("the data path of network {network} panics"));
        }
    }

    /// Somebody edits the files. Nothing that a running pod uses may follow from it.
    fn objects_change(&mut self) {
        let whole = self.scene.files();
        match self.rng.u32(..6) {
            // Back to what they were.
            0 | 1 => self.objects = whole,
            2 => {
                let index = self.rng.usize(..whole.len());
                let name = match &whole[index].object {
                    Object::Gateway(gateway) => gateway.name.clone(),
                    Object::Share(share) => share.gateway.clone(),
                };
                if !self.scene.is_sheltered(&name) {
                    self.objects = whole;
                    self.objects.remove(index);
                }
            }
            // What can't change under its users is refused as a whole: each edit begins with what people wrote first.
            3 => {
                self.objects = whole;
                for share in self.objects.iter_mut().filter_map(share_of) {
                    if !self.scene.is_sheltered(&share.gateway) {
                        share.namespaces = Namespaces::Only([super::scene::name("a")].into());
                    }
                }
            }
            4 => {
                self.objects = whole;
                for share in self.objects.iter_mut().filter_map(share_of) {
                    // Whose targets hold different data would show another's from then on, and rightly.
                    let one_store = self.scene.gateway_of(&share.name).is_some_and(|index| self.scene.one_store[index]);
                    // Who is refused a change is refused all of it, what the Share says of the node included.
                    let on_node = share.node_mount.is_some();
                    if one_store && !on_node && !self.scene.is_sheltered(&share.gateway) {
                        (share.access, share.namespaces) = (Access::ReadOnly, Namespaces::All);
                    }
                }
            }
            _ => {
                let one_store = self.scene.one_store.clone();
                let gateways = self.scene.gateways.clone();
                for located in &mut self.objects {
                    if let Object::Gateway(gateway) = &mut located.object {
                        let index = gateways.iter().position(|known| known.name == gateway.name);
                        gateway.shared_data = index.is_some_and(|index| one_store[index]);
                    }
                }
            }
        }
        self.say(|| "the objects are edited".into());
        self.tell_of_objects();
    }

    pub(super) fn tell_of_objects(&mut self) {
        self.note_asked();
        let reading = self.reading();
        if let Some(door) = self.door() {
            tokio::spawn(async move { door.send(Event::Objects(reading)).await });
        }
    }

    fn somebody_asks(&mut self) {
        if let Some(door) = self.door() {
            tokio::spawn(async move { door.report().await.map(drop) });
        }
    }

    /// The kernel writes what is old.
    fn write_back(&mut self) {
        for superblock in self.superblocks.values_mut() {
            superblock.dirty.iter_mut().for_each(|write| write.sent = true);
        }
        self.flow();
    }

    /// The faults stop. Of servers that may take each other's place one may never come back.
    fn heal(&mut self) {
        self.say(|| "the faults stop".into());
        self.trouble = false;
        self.uplink = true;
        for index in 0..self.servers.len() {
            let number = self.number();
            let server = &mut self.servers[index];
            (server.up, server.link) = (true, true);
            for root in server.exports.values_mut() {
                root.get_or_insert(number);
            }
        }
        for (index, gateway) in self.scene.gateways.clone().iter().enumerate() {
            let of_it: Vec<usize> =
                (0..self.servers.len()).filter(|server| self.servers[*server].gateway == index).collect();
            let may_miss_one = gateway.shared_data && !gateway.is_on_host() && of_it.len() > 1;
            if may_miss_one
                && self.scene.sheltered != Some(index)
                && self.rng.u32(..3) == 0
                && let Some(server) = self.rng.choice(&of_it).copied()
            {
                self.servers[server].up = false;
                let address = self.servers[server].address;
                self.say(|| format!("server {address} never comes back"));
            }
        }
        self.objects = self.scene.files();
        self.objects.iter_mut().filter_map(share_of).for_each(|share| share.namespaces = Namespaces::All);
        self.withdraw_some();
        self.write_back();
        self.tell_of_objects();
        self.tell_of_pods();
    }

    /// Every container reads and writes once.
    fn use_everything(&mut self) {
        for inode in self.containers.keys().copied().collect::<Vec<_>>() {
            for _ in 0..6 {
                self.act(inode);
            }
        }
    }
}

fn share_of(located: &mut Located) -> Option<&mut Share> {
    if let Object::Share(share) = &mut located.object { Some(share) } else { None }
}
