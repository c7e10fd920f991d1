//! What hands do to the machine that is made up: the same effects in the same order as those in `crate::hands`, and time
//! between any two of them in which the world goes on.

mod detach;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moorline_shared::id::{NamespaceId, PublicationId, SuperblockId};
use moorline_shared::usage::Usage;
use moorline_sys::mountinfo::{Attributes, Device, Mount};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::storage::Superblock;
use super::table::{Detached, MountTable, SEAL};
use super::world::{HOST_NETWORK, Network, Shared, TMPFS, World, paths};
use crate::hands::{self, Done, ENDED, Failure, Publish, Replace, Work, is_seal};

/// The mount namespace of the host, and its first process.
pub(super) const HOST: u64 = 1;

/// How a piece of work is meant to end, drawn when it begins. The number says before which of its effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Well,
    Fails(u32),
    /// Nothing more is heard of it until it is killed.
    Hangs(u32),
    /// Its agent is killed.
    Orphaned(u32),
}

pub(super) struct Hand {
    pub world: Shared,
    pub life: u64,
    boot: u64,
    /// Its agent waits for it no more.
    pub killed: Arc<AtomicBool>,
    pub fate: Fate,
    effects: u32,
}

enum Cut {
    Killed,
    Failed(Failure),
}

type Piece<T = ()> = Result<T, Cut>;

fn failed<T>(definite: bool, message: impl Into<String>) -> Piece<T> {
    Err(Cut::Failed(Failure { definite, message: message.into() }))
}

impl World {
    /// How work for one share or namespace will go.
    pub(super) fn draw_fate(&mut self, work: &Work) -> Fate {
        if self.is_for_sheltered(work) {
            return Fate::Well;
        }
        let (failing, hanging, killing) = (self.scene.failing, self.scene.hanging, self.scene.killing);
        let at = self.rng.u32(1..=4);
        if self.mishap(failing) {
            Fate::Fails(at)
        } else if self.mishap(hanging) {
            Fate::Hangs(at)
        } else if self.mishap(killing) {
            Fate::Orphaned(at)
        } else {
            Fate::Well
        }
    }

    fn is_for_sheltered(&self, work: &Work) -> bool {
        let of = |id: &SuperblockId| self.scene.is_sheltered(&id.namespace.target.gateway);
        let publication = |target: &PathBuf| {
            let volume = self.volumes.get(&PublicationId::of(&target.to_string_lossy()));
            let share = volume.map(|volume| &self.scene.shares[self.scene.slots[volume.slot].share]);
            share.or_else(|| self.share_at(target)).is_some_and(|share| self.scene.is_sheltered(&share.gateway))
        };
        match work {
            Work::Prepare | Work::SetMountDefaults { .. } => false,
            Work::MakeWay(way) => self.scene.is_sheltered(&way.target.gateway),
            Work::RemoveWay { target, .. } => self.scene.is_sheltered(&target.gateway),
            Work::MakeNamespace(namespace) => self.scene.is_sheltered(&namespace.id.target.gateway),
            Work::NameHostNetwork { id, .. } | Work::ShutDown(id) | Work::RemoveNamespace(id) => {
                self.scene.is_sheltered(&id.target.gateway)
            }
            Work::Mount(mount) => of(&mount.superblock),
            Work::Publish(publish) => of(&publish.superblock),
            Work::Replace(replace) => of(&replace.new),
            Work::Abort { superblock }
            | Work::Look { superblock }
            | Work::Errand { superblock, .. }
            | Work::Flush { superblock }
            | Work::Retire { superblock, .. } => of(superblock),
            Work::Detach { target_path, .. } | Work::Unpublish { target_path, .. } => publication(target_path),
            Work::Hide { publication: hidden } => publication(&hidden.target_path.clone().into()),
        }
    }
}

impl Hand {
    pub(super) fn new(world: Shared, (life, boot): (u64, u64), killed: Arc<AtomicBool>, fate: Fate) -> Self {
        Self { world, life, boot, killed, fate, effects: 0 }
    }

    /// The life of the process.
    pub(super) async fn work(mut self, work: Work, reply: oneshot::Sender<Result<Done, Failure>>) {
        let number = work.shows().map(|shown| {
            let mut world = self.world.lock();
            let number = world.number();
            world.at_work.insert(number, (self.life, shown.clone()));
            number
        });
        let outcome = self.perform(&work).await;
        number.map(|number| self.world.lock().at_work.remove(&number));
        let outcome = match outcome {
            Ok(done) => Ok(done),
            Err(Cut::Killed) => return,
            Err(Cut::Failed(failure)) => Err(failure),
        };
        let shown = format!("{outcome:?}");
        self.world.lock().say(|| format!("hand: {}: {shown}", describe(&work)));
        // Nobody may wait any more.
        let _ = reply.send(outcome);
    }

    /// By who gave it up, or with its agent: the kernel ends a hand whose agent is no more.
    fn is_killed(&self) -> bool {
        let world = self.world.lock();
        self.killed.load(Ordering::Relaxed) || !world.lives(self.life) || self.is_of_the_past(&world)
    }

    /// The node has booted since, and no process has outlived that.
    fn is_of_the_past(&self, world: &World) -> bool {
        world.boots != self.boot
    }

    /// Some time passes, and fate strikes.
    async fn pace(&mut self) -> Piece {
        let pause = self.world.lock().pause(0, 12);
        sleep(pause).await;
        self.effects += 1;
        if self.is_killed() {
            return Err(Cut::Killed);
        }
        match self.fate {
            Fate::Fails(at) if at == self.effects => failed(false, "it just failed"),
            Fate::Orphaned(at) if at == self.effects => {
                let mut world = self.world.lock();
                if world.lives(self.life) {
                    world.kill_agent("while a hand works");
                }
                Err(Cut::Killed)
            }
            Fate::Hangs(at) if at == self.effects => self.until(true, |_| false).await,
            _ => Ok(()),
        }
    }

    /// Waits in the kernel, which lets go of a process that was killed, or does not.
    async fn until(&self, lets_go: bool, condition: impl Fn(&World) -> bool) -> Piece {
        loop {
            let wait = {
                let world = self.world.lock();
                let killed = self.killed.load(Ordering::Relaxed) || !world.lives(self.life);
                if world.over || self.is_of_the_past(&world) || lets_go && killed {
                    return Err(Cut::Killed);
                }
                if condition(&world) {
                    return Ok(());
                }
                Duration::from_millis(200)
            };
            sleep(wait).await;
        }
    }

    async fn perform(&mut self, work: &Work) -> Piece<Done> {
        self.pace().await?;
        match work {
            Work::Prepare => self.world.lock().mount_node(),
            Work::MakeNamespace(wanted) => {
                let mut world = self.world.lock();
                let network = world.number();
                world.networks.insert(network, Network::default());
                world.name_network(&wanted.id, network);
            }
            Work::NameHostNetwork { id, .. } => self.world.lock().name_network(id, HOST_NETWORK),
            Work::MakeWay(way) => self.world.lock().make_way(way),
            Work::RemoveWay { target, unused } => {
                if !self.world.lock().remove_way(target, *unused) {
                    return failed(false, "somebody mounts from it by now");
                }
            }
            Work::SetMountDefaults { text } => {
                let mut world = self.world.lock();
                match text {
                    Some(text) => drop(world.files.insert(paths().mount_defaults(), text.clone().into_bytes())),
                    None => drop(world.files.remove(&paths().mount_defaults())),
                }
            }
            Work::RemoveNamespace(id) => self.remove_namespace(id).await?,
            Work::ShutDown(id) => self.shut_down(id).await?,
            Work::Mount(wanted) => self.mount(wanted).await?,
            Work::Publish(wanted) => self.publish(wanted).await?,
            Work::Replace(wanted) => {
                let done = self.replace(wanted).await?;
                self.pace().await?;
                return Ok(done);
            }
            Work::Abort { superblock } => {
                let device = self.base(superblock)?.device;
                self.abort(device).await?;
            }
            Work::Look { superblock } => {
                let device = self.base(superblock)?.device;
                self.until(true, |world| world.answers(device)).await?;
                let mut world = self.world.lock();
                if world.is_stale(device) {
                    let now = world.now();
                    world.excused.insert(superblock.share.to_string(), now);
                    return failed(true, "it is stale");
                }
                return Ok(Done { usage: Some(Usage::default()), ..Done::default() });
            }
            // Nobody asks for any.
            Work::Errand { .. } => return failed(true, "there are no errands here"),
            Work::Hide { publication } => self.hide(publication).await?,
            Work::Flush { superblock } => {
                let device = self.base(superblock)?.device;
                self.flush(device).await?;
            }
            Work::Detach { target_path, node } => self.detach(target_path, *node).await?,
            Work::Unpublish { target_path, node } => {
                self.detach(target_path, *node).await?;
                self.world.lock().directories.remove(target_path);
            }
            Work::Retire { superblock, abort } => self.retire(superblock, *abort).await?,
        }
        self.pace().await?;
        Ok(Done::default())
    }

    fn base(&self, id: &SuperblockId) -> Piece<Mount> {
        let world = self.world.lock();
        world.base(id).cloned().map_or_else(|| failed(false, format!("{id} is not mounted")), Ok)
    }

    async fn remove_namespace(&mut self, id: &NamespaceId) -> Piece {
        {
            let mut world = self.world.lock();
            if let Some(mount) = world.host.top(&paths().namespace(id)).map(|top| top.id) {
                world.host.take_away(mount);
            }
            world.let_go();
        }
        self.pace().await?;
        self.world.lock().files.remove(&paths().fence(id));
        Ok(())
    }

    async fn shut_down(&mut self, id: &NamespaceId) -> Piece {
        let writers: Vec<(SuperblockId, Device)> =
            self.world.lock().bases().filter(|(other, _)| other.namespace == *id && other.user.writes()).collect();
        for (superblock, device) in writers {
            if !self.world.lock().scene.shuts_down {
                return failed(true, format!("end {superblock} for good: this kernel can't"));
            }
            let mark = paths().mark_of_end(&superblock);
            self.world.lock().files.entry(mark.clone()).or_default();
            self.pace().await?;
            self.world.lock().shut(device);
            self.pace().await?;
            self.world.lock().files.insert(mark, ENDED.to_vec());
            self.pace().await?;
        }
        Ok(())
    }

    async fn mount(&mut self, wanted: &hands::Mount) -> Piece {
        let id = &wanted.superblock;
        self.world.lock().files.remove(&paths().mark_of_end(id));
        let (network, server) = {
            let world = self.world.lock();
            match (world.network_of(&id.namespace), world.server_at(wanted.server)) {
                (Some(network), Some(server)) => (network, server),
                _ => return failed(false, format!("there is no way to {}", wanted.server)),
            }
        };
        self.until(true, |world| world.servers[server].up && world.reaches(network, server)).await?;
        let mut world = self.world.lock();
        let Some(root) = world.servers[server].exports.get(&wanted.export).copied().flatten() else {
            return failed(true, format!("there is no export {}", wanted.export));
        };
        let device = Device { major: 0, minor: u32::try_from(world.number()).unwrap_or_default() };
        world.superblocks.insert(
            device,
            Superblock {
                id: id.clone(),
                network,
                server,
                export: wanted.export.clone(),
                root,
                soft: wanted.soft,
                shut: false,
                shown: false,
                dirty: Vec::new(),
            },
        );
        let read_only = !id.user.writes();
        let attributes = Attributes { read_only, no_suid: true, no_dev: true, no_exec: false };
        let source = format!("{}:{}", wanted.server, wanted.export).into();
        let mount = world.number();
        world.host.put_over(mount, &paths().base(id), Detached { device, attributes, source });
        Ok(())
    }

    async fn publish(&mut self, wanted: &Publish) -> Piece {
        let target = &wanted.target_path;
        let base = self.base(&wanted.superblock)?;
        let is_sealed = {
            let mut world = self.world.lock();
            if !wanted.node && target.parent().is_none_or(|parent| !world.directories.contains(parent)) {
                return failed(false, format!("open the directory of {}", target.display()));
            }
            let is_sealed = world.host.top(target).map(is_seal);
            if is_sealed == Some(false) {
                return failed(true, format!("something else is mounted at {}", target.display()));
            }
            world.directories.insert(target.clone());
            is_sealed.is_some()
        };
        // Below a pod's volume nobody is looked for who could see the difference.
        if wanted.node && !is_sealed {
            self.pace().await?;
            let mut world = self.world.lock();
            let seal = world.number();
            world.host.put_over(seal, target, sealing());
            world.host.follow(seal);
            world.spread(seal);
        }
        self.pace().await?;
        let mut world = self.world.lock();
        let attributes = Attributes { read_only: wanted.read_only, no_suid: true, no_dev: true, no_exec: false };
        let id = PublicationId::of(&target.to_string_lossy());
        let source = wanted.sub_dir.as_ref().map_or(base.source.clone(), |part| base.source.join(part.as_path()));
        let clone = Detached { device: base.device, attributes, source };
        world.judge_shown(&clone, id);
        let mount = world.number();
        world.host.put_over(mount, target, clone);
        if wanted.node {
            world.host.follow(mount);
            world.spread(mount);
        }
        Ok(())
    }

    async fn abort(&mut self, device: Device) -> Piece {
        for _ in 0..10 {
            self.world.lock().abort(device);
            sleep(Duration::from_millis(100)).await;
            if self.is_killed() {
                return Err(Cut::Killed);
            }
        }
        Ok(())
    }

    /// The copies in one mount namespace, one after the other.
    async fn replace(&mut self, wanted: &Replace) -> Piece<Done> {
        let (old, new) = (self.base(&wanted.old)?, self.base(&wanted.new)?);
        let inode = wanted.namespace_inode;
        let run = paths().node();
        let copies: Vec<Mount> = {
            let mut world = self.world.lock();
            let Some(table) = table(&mut world, inode) else {
                return failed(false, format!("process {} is gone", wanted.pid));
            };
            let ours = |mount: &&Mount| mount.device == old.device && mount.on_top(&table.0);
            table
                .0
                .iter()
                .filter(ours)
                .filter(|mount| inode != HOST || !mount.mount_point.starts_with(&run))
                .cloned()
                .collect()
        };
        let mut left = Vec::new();
        for copy in &copies {
            match self.put(inode, copy, &old, &new).await {
                Err(Cut::Failed(failure)) => left.push(failure.message),
                Err(Cut::Killed) => return Err(Cut::Killed),
                Ok(()) => {}
            }
        }
        Ok(Done { replaced: (copies.len() - left.len()) as u64, left, ..Done::default() })
    }

    async fn put(&mut self, inode: u64, copy: &Mount, old: &Mount, new: &Mount) -> Piece {
        self.pace().await?;
        let below = copy.source.strip_prefix(&old.source).unwrap_or(&copy.source);
        let source = if below.as_os_str().is_empty() { new.source.clone() } else { new.source.join(below) };
        let clone = Detached { device: new.device, attributes: copy.attributes, source };
        let beneath = {
            let mut world = self.world.lock();
            let (beneath, fresh) = (world.scene.beneath, world.number());
            let Some(table) = table(&mut world, inode) else { return failed(false, "the container is gone") };
            // What lies on a directory of the host's can be reached from beside.
            let on_layer = table.find(copy.parent).is_some_and(|below| below.mount_point == copy.mount_point);
            let beneath = beneath || inode == HOST && !on_layer;
            let follows = inode == HOST && copy.follows;
            match is_on_top(table, copy) {
                None => return Ok(()),
                Some(false) => return failed(false, "it is covered by another mount by now"),
                Some(true) => {}
            }
            let there = table.0.iter().any(|mount| mount.id == copy.parent && mount.device == new.device);
            if beneath && !there {
                table.put_beneath(fresh, copy.id, clone.clone());
                if follows {
                    table.follow(fresh);
                    world.spread(fresh);
                }
            }
            beneath
        };
        if beneath {
            self.pace().await?;
            let mut world = self.world.lock();
            show(&mut world, inode, copy, &clone);
            let Some(table) = table(&mut world, inode) else { return Ok(()) };
            if is_on_top(table, copy) == Some(true) {
                if inode == HOST {
                    world.take_from_host(copy.id);
                } else {
                    table.take_away(copy.id);
                }
            }
            world.flow();
            return Ok(());
        }
        // The directory is locked as long as anybody looks something up in it, and the kernel lets nobody go who waits.
        self.until(false, |world| !world.containers.values().any(|container| container.call_on(old.device).is_some()))
            .await?;
        let mut world = self.world.lock();
        let fresh = world.number();
        world.make_private(copy.id);
        // Upon what is on top by now; and nowhere, if what was opened is no more.
        match table(&mut world, inode) {
            Some(table) if table.find(copy.id).is_some() => table.put_over(fresh, &copy.mount_point, clone.clone()),
            _ => return failed(false, "the copy is gone"),
        }
        show(&mut world, inode, copy, &clone);
        world.flow();
        Ok(())
    }
}

fn sealing() -> Detached {
    let attributes = Attributes { read_only: true, no_suid: true, no_dev: true, no_exec: true };
    Detached { device: TMPFS, attributes, source: SEAL.into() }
}

fn table(world: &mut World, inode: u64) -> Option<&mut MountTable> {
    match inode {
        HOST => Some(&mut world.host),
        _ => world.containers.get_mut(&inode).map(|container| &mut container.table),
    }
}

/// None when it is gone.
fn is_on_top(table: &MountTable, copy: &Mount) -> Option<bool> {
    table.find(copy.id).map(|found| found.on_top(&table.0))
}

fn show(world: &mut World, inode: u64, copy: &Mount, clone: &Detached) {
    let to = match inode {
        HOST => {
            let at = &copy.mount_point;
            world
                .volumes
                .iter()
                .find(|(_, volume)| volume.target == *at || volume.target.parent() == at.parent())
                .map(|(id, _)| *id)
                .or_else(|| world.is_place(at).then(|| PublicationId::of(&at.to_string_lossy())))
        }
        // Who has the directory above has several.
        _ if world.is_place(&copy.mount_point) => Some(PublicationId::of(&copy.mount_point.to_string_lossy())),
        _ => world.containers.get(&inode).map(|container| container.volume),
    };
    if let Some(to) = to {
        world.judge_shown(clone, to);
    }
}

fn describe(work: &Work) -> String {
    match work {
        Work::Prepare => "prepare".into(),
        Work::MakeNamespace(namespace) => format!("make {}", namespace.id),
        Work::NameHostNetwork { id, .. } => format!("name the host's network {id}"),
        Work::ShutDown(id) => format!("shut down the writers of {id}"),
        Work::RemoveNamespace(id) => format!("remove {id}"),
        Work::MakeWay(way) => format!("make the node's way to {}", way.target),
        Work::RemoveWay { target, .. } => format!("remove the node's way to {target}"),
        Work::SetMountDefaults { .. } => "set the node's mount defaults".into(),
        Work::Mount(mount) => format!("mount {}", mount.superblock),
        Work::Publish(publish) => format!("publish {} at {}", publish.superblock, publish.target_path.display()),
        Work::Replace(replace) => {
            format!("put {} in the place of {} in {}", replace.new, replace.old, replace.namespace_inode)
        }
        Work::Abort { superblock } => format!("abort {superblock}"),
        Work::Look { superblock } => format!("look at {superblock}"),
        Work::Errand { superblock, .. } => format!("an errand in {superblock}"),
        Work::Hide { publication } => format!("hide {}", publication.target_path),
        Work::Flush { superblock } => format!("flush {superblock}"),
        Work::Detach { target_path, .. } => format!("detach {}", target_path.display()),
        Work::Unpublish { target_path, .. } => format!("unpublish {}", target_path.display()),
        Work::Retire { superblock, abort } => {
            format!("retire {superblock}{}", if *abort { ", aborting it" } else { "" })
        }
    }
}
