//! What is taken away, as `crate::hands::detach` does it.

use std::path::Path;

use moorline_shared::id::SuperblockId;
use moorline_shared::publication::Publication;
use moorline_sys::mountinfo::Device;

use super::super::world::{World, paths};
use super::{Hand, Piece, failed};
use crate::hands::is_seal;

impl Hand {
    /// What is of the publication's share goes, and the directory stays.
    pub(super) async fn hide(&mut self, publication: &Publication) -> Piece {
        let target = Path::new(&publication.target_path);
        loop {
            self.pace().await?;
            let mut world = self.world.lock();
            let its = |id: &SuperblockId| id.share == publication.share && id.user == publication.user();
            let top = world.host.top(target).cloned();
            let Some(top) = top.filter(|top| world.bases().any(|(id, device)| its(&id) && device == top.device)) else {
                return Ok(());
            };
            world.judge_hide(target);
            world.host.take_away(top.id);
            world.flow();
        }
    }

    /// All that is ours at a target goes; a node mount stays with whoever uses it.
    pub(super) async fn detach(&mut self, target: &Path, node: bool) -> Piece {
        if node {
            self.unmount_unused(target).await?;
        }
        loop {
            self.pace().await?;
            let mut world = self.world.lock();
            let Some(top) = world.host.top(target).cloned() else {
                return Ok(());
            };
            if !is_seal(&top) && !world.bases().any(|(_, device)| device == top.device) {
                return failed(true, format!("what is mounted at {} is not ours", target.display()));
            }
            world.judge_unpublish(target);
            world.judge_node_unpublish(target, &top);
            world.take_from_host(top.id);
            world.flow();
        }
    }

    /// The layers of a node mount, as `umount` does it; what a failover has left below is detached.
    async fn unmount_unused(&mut self, target: &Path) -> Piece {
        let mut below = false;
        loop {
            self.pace().await?;
            let mut world = self.world.lock();
            let Some(top) = world.host.top(target).cloned() else { return Ok(()) };
            let Some((id, _)) = world.bases().find(|(_, device)| *device == top.device) else { return Ok(()) };
            let left = below && world.is_superseded(&id);
            if !left && world.is_busy(target, top.device) {
                return failed(false, format!("{} is still used by a process", target.display()));
            }
            world.judge_node_unpublish(target, &top);
            world.take_from_host(top.id);
            world.flow();
            below = true;
        }
    }

    pub(super) async fn flush(&mut self, device: Device) -> Piece {
        {
            let mut world = self.world.lock();
            if let Some(superblock) = world.superblocks.get_mut(&device) {
                superblock.dirty.iter_mut().for_each(|write| write.sent = true);
            }
            world.flow();
        }
        let written =
            |world: &World| world.superblocks.get(&device).is_none_or(|superblock| superblock.dirty.is_empty());
        self.until(false, written).await
    }

    pub(super) async fn retire(&mut self, id: &SuperblockId, abort: bool) -> Piece {
        let mark = paths().mark_of_end(id);
        let base = self.world.lock().base(id).cloned();
        let Some(base) = base else {
            self.world.lock().files.remove(&mark);
            return Ok(());
        };
        if abort {
            self.abort(base.device).await?;
            self.world.lock().files.entry(mark.clone()).or_default();
            if self.world.lock().scene.shuts_down {
                self.pace().await?;
                self.world.lock().shut(base.device);
            }
        } else if id.user.writes() {
            self.flush(base.device).await?;
        }
        self.pace().await?;
        {
            let mut world = self.world.lock();
            world.judge_retire(id, base.device);
            let now = world.now();
            world.retired.insert(id.share.to_string(), (id.clone(), now));
            world.host.take_away(base.id);
            world.flow();
        }
        self.pace().await?;
        self.world.lock().files.remove(&mark);
        Ok(())
    }
}
