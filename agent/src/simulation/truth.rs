//! What must hold whatever happens, and what must come true when nothing happens any more.

use std::path::Path;
use std::time::Duration;

use moorline_shared::id::{NamespaceId, PublicationId, SuperblockId, User};
use moorline_shared::objects::Objects;
use moorline_shared::observed::Occupants;
use moorline_shared::share::{Access, Policy, Share};
use moorline_sys::mountinfo::Device;

use super::apps::{Container, Outcome};
use super::storage::Superblock;
use super::table::Detached;
use super::world::{HOST_NETWORK, World, paths};
use crate::hands::Work;

/// What an agent has heard of the server behind a namespace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    since: Duration,
    last: Option<Duration>,
    /// The end of a silence for which it could be given up, and how long that was.
    silent_until: Option<(Duration, Duration)>,
}

const GIVEN_UP: Duration = Duration::from_millis(3950);
/// A step that was planned may begin this much later: it waits for its turn, and for the one before to be given up.
const LATE: Duration = Duration::from_secs(2);
const VERY_LATE: Duration = Duration::from_secs(120);

/// From an outage until it is known, and from one abort to the next.
const NOTICED: Duration = Duration::from_secs(14);
/// A pod's own superblock is aborted before its grace is over; those that it shares may be a while later.
const GONE: Duration = Duration::from_secs(12);

/// An agent whose first work hangs is given up, and another has begun.
const SETTLED_IN: Duration = Duration::from_secs(20);

const DETACHED: &str = "what was healthy is never detached";
const FENCED: &str = "nothing is served from another target before the old one is fenced";
const OTHERS: &str = "no pod's fault reaches another";
const CONVERGES: &str = "when the faults stop everything converges";

impl World {
    pub(super) fn hear(&mut self, id: &NamespaceId, answered: bool) {
        let now = self.now();
        let heard = self.heard.entry(id.clone()).or_insert(Heard { since: now, last: None, silent_until: None });
        if answered {
            let silent = now.saturating_sub(heard.last.unwrap_or(heard.since));
            if silent >= GIVEN_UP {
                heard.silent_until = Some((now, silent));
            }
            heard.last = Some(now);
        }
    }

    /// For how long the agent had nothing from there: now, or up to a moment ago.
    fn silence(&self, id: &NamespaceId, late: Duration) -> Duration {
        let now = self.now();
        self.heard.get(id).map_or(Duration::ZERO, |heard| {
            let lately = heard.silent_until.filter(|(until, _)| *until + late >= now).map(|(_, silent)| silent);
            now.saturating_sub(heard.last.unwrap_or(heard.since)).max(lately.unwrap_or_default())
        })
    }

    fn was_away(&self, id: &NamespaceId, late: Duration) -> bool {
        self.is_marked(id) || self.network_of(id).is_none() || self.silence(id, late) >= GIVEN_UP
    }

    pub(super) fn is_superseded(&self, id: &SuperblockId) -> bool {
        self.bases().any(|(other, _)| other.succeeds(id))
    }

    /// A pod that kubelet wants to have it rests on it.
    fn is_needed(&self, id: &SuperblockId) -> bool {
        if let User::Node(_) = id.user {
            return self.is_asked(&id.share) || self.was_given(id);
        }
        self.volumes.iter().any(|(volume, truth)| {
            let share = &self.scene.shares[self.scene.slots[truth.slot].share].name;
            let mine = match id.user {
                User::ReadOnly => truth.read_only,
                User::ReadWrite(of) => of == *volume,
                User::Node(_) => false,
            };
            // Of a pod that is deleted and whose containers are gone kubelet has only to give the volume back.
            let deleted = self.pods.get(&truth.uid).is_none_or(|pod| pod.deleted.is_some());
            let runs = self.containers.values().any(|container| container.volume == *volume);
            truth.wanted && truth.there && *share == id.share && mine && (runs || !deleted)
        })
    }

    /// It waits for something that somebody is on record for.
    pub(super) fn must_answer(&self, container: &Container) -> bool {
        let waits_for = container.call.as_ref().and_then(|call| self.superblocks.get(&call.device));
        waits_for.is_some_and(|there| self.is_needed(&there.id))
    }

    /// Holds a piece of work against what is known when it is begun.
    pub(super) fn judge_begin(&mut self, work: &Work) {
        match work {
            Work::Mount(mount) => self.judge_mount(&mount.superblock),
            Work::Abort { superblock } | Work::Retire { superblock, abort: true } => {
                let id = superblock;
                let excused = self.is_superseded(id)
                    // Somebody has begun to end it, and had a reason.
                    || self.files.contains_key(&paths().mark_of_end(id))
                    || self.was_away(&id.namespace, LATE) && (!self.is_needed(id) || self.may_lose(id))
                    || self.past_deadline(id)
                    || self.may_let_go_of(self.base(id).map(|base| base.device));
                if !excused {
                    self.breaks(
                        DETACHED,
                        format!("{id} is aborted; silent for {:?}", self.silence(&id.namespace, LATE)),
                    );
                }
            }
            Work::Publish(publish) => {
                self.judge_record(&publish.superblock);
                self.judge_asked(&publish.target_path);
            }
            Work::ShutDown(id) => self.judge_fence(id),
            Work::Replace(replace) => {
                let (old, new) = (&replace.old, &replace.new);
                if (&old.share, old.user) != (&new.share, new.user) || old.epoch >= new.epoch {
                    self.breaks(OTHERS, format!("{new} takes the place of {old}"));
                }
            }
            _ => {}
        }
    }

    /// The next agent begins with what is on record, and with nothing that the files may not say any more.
    fn judge_record(&mut self, id: &SuperblockId) {
        let record = self.files.get(&paths().objects());
        let known = record.and_then(|record| serde_json::from_slice::<Objects>(record).ok());
        if !known.is_some_and(|known| known.shares.contains_key(&id.share)) {
            self.breaks("what is published is on record", format!("{id} is published, and its Share is not kept"));
        }
    }

    fn judge_mount(&mut self, id: &SuperblockId) {
        let homes: Vec<SuperblockId> =
            self.bases().map(|(other, _)| other).filter(|other| other.share == id.share).collect();
        if let Some(current) = homes.iter().max_by_key(|other| other.epoch) {
            // One of an earlier epoch, which was planned before the share moved, is shown to nobody.
            if id.epoch == current.epoch && id.namespace != current.namespace {
                self.breaks(FENCED, format!("{id} is mounted beside {current}"));
            }
            let stale = self.excused.get(current.share.as_str()).is_some_and(|at| *at + VERY_LATE >= self.now());
            let shut = homes
                .iter()
                .any(|home| home.epoch == current.epoch && self.files.contains_key(&paths().mark_of_end(home)));
            // The share had moved before: what it had moved to has gone since the look that this was planned by.
            let follows = self.retired.get(id.share.as_str()).is_some_and(|(home, at)| {
                home.epoch == id.epoch && home.namespace == id.namespace && *at + LATE >= self.now()
            });
            let excused = stale || shut || follows || self.was_away(&current.namespace, VERY_LATE);
            if id.epoch > current.epoch && !excused {
                self.breaks(DETACHED, format!("{current} is left for {id}"));
            }
        }
        let Some(gateway) = self.scene.gateway_of(&id.share) else { return };
        let first = &self.scene.gateways[gateway].targets[0].name;
        let writable =
            self.scene.shares.iter().any(|share| share.name == id.share && share.access == Access::ReadWrite);
        if writable && !self.scene.one_store[gateway] && id.namespace.target.target != *first {
            self.breaks("nothing acknowledged is lost", format!("{id}: the targets do not share their data"));
        }
    }

    /// A mark is made, or writers are shut down: only where nobody is well.
    pub(super) fn judge_fence(&mut self, id: &NamespaceId) {
        let inside: Vec<SuperblockId> =
            self.bases().map(|(other, _)| other).filter(|other| other.namespace == *id).collect();
        let newest = |share| self.bases().filter(|(other, _)| other.share == share).map(|(other, _)| other.epoch).max();
        let well = |other: &&SuperblockId| self.is_needed(other) && newest(other.share.clone()) <= Some(other.epoch);
        // Fencing for one share takes the others of that server along, which can't be well either.
        let moved = |other: &SuperblockId| newest(other.share.clone()) > Some(other.epoch);
        if let Some(other) = inside.iter().find(well).cloned()
            && !inside.iter().any(moved)
            && !self.was_away(id, VERY_LATE)
        {
            self.breaks(DETACHED, format!("{id} is fenced under {other}"));
        }
    }

    fn may_lose(&self, id: &SuperblockId) -> bool {
        let User::ReadWrite(volume) = id.user else { return self.is_left_to_the_dead(id) };
        let mine = |container: &&Container| container.volume == volume;
        let most = self.containers.values().filter(mine).map(|container| container.state).max();
        let Some(truth) = self.volumes.get(&volume) else { return true };
        let now = self.now();
        if most.is_none_or(|most| most == Occupants::Killed) {
            return true;
        }
        let ends = self.pods.get(&truth.uid).map(|pod| pod.deleted);
        match ends {
            None => true,
            Some(Some((asked, ends))) => now + Duration::from_secs(10).min((ends - asked) / 2) + LATE >= ends,
            Some(None) => false,
        }
    }

    fn past_deadline(&self, id: &SuperblockId) -> bool {
        let patience = self.share(id.share.as_str()).and_then(Share::patience);
        patience.is_some_and(|patience| self.silence(&id.namespace, LATE) >= patience)
    }

    /// How a call of a living process ended.
    pub(super) fn judge_end(&mut self, volume: PublicationId, id: &SuperblockId, outcome: &Outcome, took: Duration) {
        if let Some(patience) = self.share(id.share.as_str()).and_then(Share::patience)
            && self.scene.calm
            && took > patience + NOTICED
        {
            self.breaks("what may fail does", format!("a call on {id} took {took:?}, and its bound is {patience:?}"));
        }
        let sheltered = self.scene.gateway_of(&id.share).is_some_and(|index| self.scene.sheltered == Some(index));
        let deleted = self
            .volumes
            .get(&volume)
            .is_none_or(|truth| !truth.wanted || self.pods.get(&truth.uid).is_none_or(|pod| pod.deleted.is_some()))
            && self.place_of(volume).is_none();
        let newer = |other: &Superblock| other.id.share == id.share && other.id.epoch > id.epoch;
        // Writers are shut down with the server that another share of theirs has left.
        let superseded = self.superblocks.values().any(newer)
            || self.is_marked(&id.namespace)
            || self.superblocks.values().any(|superblock| superblock.id == *id && superblock.shut);
        if *outcome == Outcome::Done || deleted || self.is_going_down() {
            return;
        }
        if sheltered && !self.may_fail_softly(id) {
            self.breaks(OTHERS, format!("a pod on {id}, which is well, gets {outcome:?}"));
        }
        if *outcome == Outcome::Failed && self.policy(id.share.as_str()) == Policy::Hard && !superseded {
            self.breaks(OTHERS, format!("a call on {id} fails, and its policy is hard"));
        }
    }

    /// A soft share's way is cut for as long as there is no agent to hold it open.
    fn may_fail_softly(&self, id: &SuperblockId) -> bool {
        let now = self.now();
        let is_new = self.agent.as_ref().is_none_or(|agent| agent.origin + SETTLED_IN >= now);
        self.policy(id.share.as_str()) == Policy::Soft && is_new
    }

    /// A pod's last container has ended, so much after its grace was over.
    pub(super) fn judge_pod_end(&mut self, uid: &str, late: Duration) {
        if self.scene.calm && late > GONE {
            self.breaks("a pod goes when it must", format!("{uid} ended {late:?} after its grace"));
        }
    }

    /// Something of a superblock becomes visible to a pod.
    pub(super) fn judge_shown(&mut self, clone: &Detached, to: PublicationId) {
        let Detached { device, attributes, source } = clone;
        let Some(shown) = self.superblocks.get_mut(device) else { return };
        shown.shown = true;
        let shown = shown.clone();
        let place = self.place_of(to).map(Path::to_owned);
        // None for one that kubelet has forgotten.
        let read_only = self.volumes.get(&to).is_some_and(|volume| volume.read_only);
        let read_only = place.map_or(read_only, |place| self.judge_shown_on_node(&shown.id, &place));
        match shown.id.user {
            User::Node(_) if self.volumes.contains_key(&to) => {
                self.breaks(OTHERS, format!("{} is shown to {to}", shown.id));
            }
            User::ReadWrite(of) if of != to => self.breaks(OTHERS, format!("{} is shown to {to}", shown.id)),
            User::ReadWrite(_) if read_only => {
                self.breaks("read-only never becomes writable", format!("{} is shown to {to}", shown.id));
            }
            _ => {}
        }
        if read_only && !attributes.read_only || !attributes.no_suid || !attributes.no_dev {
            self.breaks("read-only never becomes writable", format!("{to} gets {attributes:?}"));
        }
        let part = self.volumes.get(&to).and_then(|volume| self.scene.slots[volume.slot].part);
        let whole = self.base(&shown.id).map(|base| base.source.clone());
        if let (Some(part), Some(whole)) = (part, whole)
            && !source.starts_with(whole.join(part))
        {
            self.breaks("a part shows no more than itself", format!("{to} gets {}, and not {part}", source.display()));
        }
        let writes = Self::is_writers(&shown);
        let elsewhere: Vec<SuperblockId> = self
            .superblocks
            .values()
            .filter(|old| old.id.share == shown.id.share && old.id.namespace != shown.id.namespace)
            .filter(|old| Self::is_writers(old) && old.shown && !self.is_cut_off(old))
            .filter(|old| old.id.epoch < shown.id.epoch || !old.dirty.is_empty())
            .map(|old| old.id.clone())
            .collect();
        if writes && let Some(old) = elsewhere.first() {
            self.breaks(FENCED, format!("{} is shown to {to}, and {old} may still write", shown.id));
        }
    }

    /// A layer goes from a publication's target.
    pub(super) fn judge_unpublish(&mut self, target: &Path) {
        let lost = self.volumes.values().find(|volume| volume.target == target && volume.wanted && volume.there);
        if let Some(volume) = lost
            && !self.is_going_down()
        {
            let what = format!("the volume of {}, which was not given back, is detached", volume.uid);
            self.breaks(DETACHED, what);
        }
    }

    /// A layer goes from where kubelet looks, and stays with the pod.
    pub(super) fn judge_hide(&mut self, target: &Path) {
        let volume = self.volumes.values().find(|volume| volume.target == target);
        let ends = volume.is_none_or(|volume| self.pods.get(&volume.uid).is_none_or(|pod| pod.deleted.is_some()));
        if !ends {
            self.breaks(DETACHED, format!("{} is hidden, and its pod stays", target.display()));
        }
    }

    /// A base mount goes.
    pub(super) fn judge_retire(&mut self, id: &SuperblockId, device: Device) {
        let run = paths().node();
        let host =
            self.host.0.iter().any(|mount| {
                mount.device == device && !mount.mount_point.starts_with(&run) && mount.on_top(&self.host.0)
            });
        let shows = |container: &super::apps::Container| {
            container.places.iter().any(|(at, _)| container.table.top(at).is_some_and(|top| top.device == device))
        };
        if host || self.containers.values().any(shows) {
            self.breaks(DETACHED, format!("{id} is retired while a pod sees it"));
        }
    }

    /// What has not come true yet.
    pub(super) fn unsettled(&mut self) -> Vec<String> {
        let mut open = self.unsettled_on_node();
        for (id, volume) in &self.volumes {
            let uid = &volume.uid;
            if volume.wanted && !volume.there {
                open.push(format!("kubelet was not told that {uid} has its volume"));
            }
            if !volume.wanted {
                open.push(format!("kubelet was not told that the volume of {uid} is gone"));
            } else if volume.there
                && let Err(why) = self.is_served(*id, self.host.top(&volume.target).map(|top| top.device))
            {
                open.push(format!("{uid} on the host {why}"));
            }
        }
        for (inode, container) in self.containers.iter().filter(|(_, container)| container.node.is_none()) {
            if container.call.is_some() {
                open.push(format!("container {inode} is in {:?}", container.call));
            }
            for (at, _) in &container.places {
                if let Err(why) = self.is_served(container.volume, container.table.top(at).map(|top| top.device)) {
                    open.push(format!("container {inode} at {} {why}", at.display()));
                }
            }
        }
        open.extend(self.unsettled_ways());
        // Where the kernel can't mount beneath, the old layer stays as long as the pod.
        let covered: Vec<(SuperblockId, bool)> = self
            .bases()
            .map(|(id, device)| (id.clone(), self.is_shown(device) || self.may_be_written_unseen(&id)))
            .collect();
        for (id, covered) in &covered {
            if !covered && (!self.is_needed(id) || self.is_superseded(id)) {
                open.push(format!("{id} is still mounted"));
            }
        }
        let kept = |id: &NamespaceId| covered.iter().any(|(base, covered)| *covered && base.namespace == *id);
        for mount in &self.host.0 {
            let name = mount.mount_point.strip_prefix(paths().namespaces()).ok().and_then(|name| name.to_str());
            if let Some(id) = name.and_then(|name| name.parse::<NamespaceId>().ok()) {
                let gateway = &id.target.gateway;
                let used = self
                    .volumes
                    .values()
                    .any(|volume| self.scene.shares[self.scene.slots[volume.slot].share].gateway == *gateway);
                let on_ways =
                    self.scene.gateways.iter().any(|known| known.name == *gateway && known.ways().next().is_some());
                let used = used || on_ways || self.is_used_on_node(gateway);
                if (!used || self.is_marked(&id)) && !kept(&id) {
                    open.push(format!("the network namespace {id} is still there"));
                }
            }
        }
        for mark in self.files.keys().filter(|file| file.starts_with(paths().fenced())) {
            let id = mark.file_name().and_then(|name| name.to_str()?.parse().ok());
            if !id.is_some_and(|id| kept(&id)) {
                open.push(format!("{} is still there", mark.display()));
            }
        }
        open
    }

    /// The base mount of a node mount that its share has left behind may stay.
    fn may_be_written_unseen(&self, id: &SuperblockId) -> bool {
        id.user == User::Node(Access::ReadWrite)
            && !self.is_marked(&id.namespace)
            && self.bases().any(|(other, _)| other.share == id.share && other.epoch > id.epoch)
    }

    /// In a layer, whether anybody sees that or not.
    pub(super) fn is_shown(&self, device: Device) -> bool {
        let host =
            self.host.0.iter().any(|mount| mount.device == device && !mount.mount_point.starts_with(paths().node()));
        host || self.containers.values().any(|container| container.table.shows(device))
    }

    fn is_served(&self, id: PublicationId, device: Option<Device>) -> Result<(), String> {
        let name = self.is_in_force(device)?;
        match name.user {
            User::ReadWrite(of) if of != id => Err(format!("sees {name}, which is another's")),
            User::Node(_) => Err(format!("sees {name}, which is the node's")),
            _ => Ok(()),
        }
    }

    /// What is seen there, if it is what should be by now.
    pub(super) fn is_in_force(&self, device: Option<Device>) -> Result<&SuperblockId, String> {
        let Some(device) = device else { return Err("has no mount".into()) };
        let Some(superblock) = self.superblocks.get(&device) else { return Err("has a foreign mount".into()) };
        let name = &superblock.id;
        if self.is_superseded(name) || self.base(name).is_none_or(|base| base.device != device) {
            Err(format!("sees {name}, which is not in force"))
        } else if !self.answers(device) || self.is_stale(device) {
            Err(format!("sees {name}, which does not answer"))
        } else {
            Ok(name)
        }
    }

    /// What is left when every pod has gone.
    pub(super) fn leftovers(&self) -> Vec<String> {
        if self.containers.keys().any(|inode| self.never_ends(*inode)) {
            return Vec::new();
        }
        let host = self
            .host
            .0
            .iter()
            .filter(|mount| mount.mount_point != Path::new("/") && mount.mount_point != paths().node())
            // Gateways of scope host lead there whoever comes.
            .filter(|mount| !self.scene.has_ways() || mount.mount_point.parent() != Some(&paths().namespaces()));
        let mut left: Vec<String> = host.map(|mount| format!("{} is mounted", mount.mount_point.display())).collect();
        let files = self
            .files
            .keys()
            .filter(|file| ![paths().objects(), paths().boot(), paths().mount_defaults()].contains(file));
        left.extend(files.map(|file| format!("{} is there", file.display())));
        // What was aborted and still not all lost, the kernel keeps for a server that never comes.
        let held = self
            .superblocks
            .iter()
            .filter(|(device, superblock)| self.answers(**device) || superblock.shut || !self.is_cut_off(superblock));
        left.extend(held.map(|(_, superblock)| format!("the kernel holds {}", superblock.id)));
        let used = |inode: &u64| self.superblocks.values().any(|superblock| superblock.network == *inode);
        left.extend(
            self.networks
                .keys()
                .filter(|inode| **inode != HOST_NETWORK && !used(inode))
                .map(|inode| format!("network namespace {inode} is there")),
        );
        left.extend(
            self.volumes
                .values()
                .map(|volume| format!("kubelet was not told that the volume of {} is gone", volume.uid)),
        );
        left
    }

    /// A process that ends waits for what it has not written. Before Linux 6.4 nobody can end that once the base mount is gone.
    fn never_ends(&self, inode: u64) -> bool {
        let unwritten = |superblock: &Superblock| superblock.dirty.iter().any(|write| write.container == inode);
        let held = |(device, superblock): (&Device, &Superblock)| {
            unwritten(superblock) && !self.answers(*device) && !self.bases().any(|(_, base)| base == *device)
        };
        !self.scene.shuts_down && self.superblocks.iter().any(held)
    }

    pub(super) fn does_not_converge(&mut self, open: &[String]) {
        self.breaks(CONVERGES, open.join("; "));
    }
}
