//! Node mounts: what people ask for, and who uses a place of the node's. Programs on the node itself, containers that were
//! given its directory, and those that see the directory above.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use moorline_shared::id::{PublicationId, SuperblockId, User};
use moorline_shared::name::Name;
use moorline_shared::observed::Occupants;
use moorline_shared::publication::Publication;
use moorline_shared::share::{Access, Share};
use moorline_shared::yaml::Object;
use moorline_sys::mountinfo::{Device, Mount};

use super::apps::Container;
use super::table::{Detached, MountTable};
use super::world::{World, overlay, paths};

/// How a process comes by a node mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It runs on the node, and has nothing of its own.
    Host,
    /// It was given the directory, or one in it, when the share was there; or has the directory above as it was then.
    Given,
    /// It sees the directory above, and what comes and goes in it.
    Sees,
}

/// What a process has of a node mount.
#[derive(Debug, Clone)]
pub(super) struct NodeUse {
    pub way: Way,
    /// What was given, and as which user of its share; none for who only sees it.
    pub given: Vec<(Name, User)>,
    pub since: Duration,
}

/// What people say of a Share, as one place of the node has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// It is to be there.
    Here,
    /// It is to be elsewhere, or not on the node.
    NotHere,
    /// There is no such Share.
    Nothing,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// What is published there.
    id: PublicationId,
    said: Said,
    /// When last something else was said: each of them, in the order above.
    until: [Option<Duration>; 3],
}

impl Asked {
    /// That is said, or was a moment ago.
    fn lately(&self, said: Said, now: Duration) -> bool {
        self.said == said || self.until[said as usize].is_some_and(|until| until + LATE >= now)
    }

    fn long_since(&self, now: Duration) -> bool {
        !self.lately(Said::NotHere, now) && !self.lately(Said::Nothing, now)
    }
}

/// By place and Share.
pub(super) type Places = BTreeMap<(PathBuf, Name), Asked>;

/// The copies that follow a mount of the host's, by that and by the container.
pub(super) type Followers = BTreeMap<(u64, u64), u64>;

/// What was planned before people changed their mind, or before a container was seen, may be done this much later: a hand
/// that hangs is given up.
const LATE: Duration = Duration::from_secs(12);

const TAKEN: &str = "a node mount is taken from nobody who uses it, and not before its Share says so";
const MIXED: &str = "a node mount and a pod's volume have nothing in common";

impl World {
    /// The Share that a place is for in the beginning.
    pub(super) fn share_at(&self, place: &Path) -> Option<&Share> {
        let at = |share: &&Share| share.node_mount.as_ref().is_some_and(|at| Path::new(at.as_str()) == place);
        self.scene.shares.iter().find(at)
    }

    pub(super) fn place_of(&self, id: PublicationId) -> Option<&Path> {
        self.asked.iter().find(|(_, asked)| asked.id == id).map(|((place, _), _)| place.as_path())
    }

    pub(super) fn is_place(&self, at: &Path) -> bool {
        self.asked.keys().any(|(place, _)| place == at)
    }

    /// Takes in what people say by now.
    pub(super) fn note_asked(&mut self) {
        let now = self.now();
        let mut gateways = BTreeSet::new();
        let mut said: BTreeMap<&Name, Option<&Path>> = BTreeMap::new();
        for located in &self.objects {
            match &located.object {
                Object::Gateway(gateway) => drop(gateways.insert(&gateway.name)),
                // Without its Gateway it is refused, as if it were gone.
                Object::Share(share) if !gateways.contains(&share.gateway) => {}
                Object::Share(share) => {
                    let place = share.node_mount.as_ref();
                    said.insert(&share.name, place.map(|place| Path::new(place.as_str())));
                }
            }
        }
        for (name, place) in said.iter().filter_map(|(name, place)| Some((*name, (*place)?))) {
            let id = || PublicationId::of(&place.to_string_lossy());
            let fresh = || Asked { id: id(), said: Said::Here, until: [None, Some(now), None] };
            self.asked.entry((place.to_owned(), name.clone())).or_insert_with(fresh);
        }
        for ((place, name), asked) in &mut self.asked {
            let is_said = match said.get(name) {
                Some(at) if *at == Some(place.as_path()) => Said::Here,
                Some(_) => Said::NotHere,
                None => Said::Nothing,
            };
            asked.until[asked.said as usize] = Some(now);
            asked.said = is_said;
        }
    }

    /// People want it on the node, and have for a while, where no other is in its way.
    pub(super) fn is_asked(&self, share: &Name) -> bool {
        let now = self.now();
        let here = |name: &Name, asked: &Asked| name == share && asked.long_since(now) && self.is_free(asked, share);
        self.asked.iter().any(|((_, name), asked)| here(name, asked))
    }

    /// No other Share is in its way.
    fn is_free(&self, place: &Asked, share: &Name) -> bool {
        self.record_of(place.id).is_none_or(|there| there.share == *share)
    }

    fn record_of(&self, id: PublicationId) -> Option<Publication> {
        serde_json::from_slice(self.files.get(&paths().publication(id))?).ok()
    }

    /// People want it there, or did a moment ago.
    pub(super) fn was_asked(&self, place: &Path) -> bool {
        self.asked.iter().any(|((at, _), asked)| at == place && asked.lately(Said::Here, self.now()))
    }

    /// People want the Share at another place, now or a moment ago: there it is kept up for all who have it.
    fn is_asked_beside(&self, place: &Path, share: &Name) -> bool {
        let beside = |at: &Path, name: &Name| at != place && name == share;
        let lately = |asked: &Asked| asked.lately(Said::Here, self.now()) && self.is_free(asked, share);
        self.asked.iter().any(|((at, name), asked)| beside(at, name) && lately(asked))
    }

    /// Who uses node mounts, with what they have of it.
    fn users(&self) -> impl Iterator<Item = (u64, &Container, &NodeUse)> {
        self.containers.iter().filter_map(|(inode, container)| Some((*inode, container, container.node.as_ref()?)))
    }

    /// Somebody was given it.
    pub(super) fn was_given(&self, id: &SuperblockId) -> bool {
        self.users().any(|(_, _, mine)| mine.was_given(id))
    }

    /// Nobody asks for it, and whoever has it was killed: given it while it was on its way out, perhaps.
    pub(super) fn is_left_to_the_dead(&self, id: &SuperblockId) -> bool {
        let has_it = |user: &Container, mine: &NodeUse| mine.was_given(id) || self.has_kept(user, id);
        let mut users = self.users().filter(|(_, user, mine)| has_it(user, mine));
        matches!(id.user, User::Node(_))
            && !self.is_asked(&id.share)
            && users.all(|(_, user, _)| user.state == Occupants::Killed)
    }

    /// Somebody was given it, or has it though nobody gave it.
    fn is_had(&self, id: &SuperblockId) -> bool {
        self.was_given(id) || self.users().any(|(_, user, _)| self.has_kept(user, id))
    }

    /// What was put over a layer that followed the host's stays when that goes, under whatever the host has there next: it is a
    /// mount of the container's own.
    fn has_kept(&self, user: &Container, id: &SuperblockId) -> bool {
        let is_of_it = |mount: &&Mount| self.superblocks.get(&mount.device).is_some_and(|there| there.id == *id);
        let on_host = |copy: &Mount| self.host.stack(&copy.mount_point).iter().any(|host| host.device == copy.device);
        // Wherever it has it: a place may be newer than whoever sees the directory above.
        user.table.0.iter().filter(is_of_it).any(|copy| !copy.follows && !on_host(copy))
    }

    /// What it has there nobody gave it, and nobody is on record for.
    fn is_left_over(&self, user: &Container, at: &Path) -> bool {
        let top = user.table.top(at).and_then(|top| self.superblocks.get(&top.device));
        let forsaken = |id: &SuperblockId| self.has_kept(user, id) && !self.was_given(id) && !self.is_asked(&id.share);
        top.is_some_and(|there| forsaken(&there.id))
    }

    /// A process has something open in it, which the kernel minds when it is unmounted as one does by hand.
    pub(super) fn is_busy(&self, place: &Path, device: Device) -> bool {
        let at_place = |user: &Container| user.places.iter().any(|(at, _)| at == place);
        self.users().any(|(_, user, mine)| mine.way != Way::Given && at_place(user) && user.holds(device))
    }

    fn all_places(&self) -> Vec<PathBuf> {
        let mut places: Vec<PathBuf> = self.asked.keys().map(|(place, _)| place.clone()).collect();
        places.dedup();
        places
    }

    /// What a place shows on the host, if that is a share.
    fn shown_at(&self, place: &Path) -> Option<(&Mount, &SuperblockId)> {
        let top = self.host.top(place)?;
        Some((top, &self.superblocks.get(&top.device)?.id))
    }

    /// Somebody comes who uses a node mount.
    pub(super) fn node_user_comes(&mut self) {
        if self.users().count() >= 4 {
            return;
        }
        let all = self.all_places();
        let Some(place) = self.rng.choice(&all).cloned() else { return };
        let (choice, in_part) = (self.rng.usize(..5), self.rng.u32(..3) == 0);
        let inode = self.number();
        let mut table = MountTable::default();
        table.put_over(self.number(), Path::new("/"), overlay());
        let (way, given, places) = match choice {
            0 => (Way::Host, Vec::new(), vec![(place.clone(), false)]),
            1 | 2 => {
                // The directory itself, which the runtime looks at; or one in it.
                let Some((top, id)) = self.shown_at(&place) else { return };
                if !self.answers(top.device) || self.is_stale(top.device) {
                    return;
                }
                let source = if in_part { top.source.join("sub") } else { top.source.clone() };
                let (what, given) = (Detached { source, ..top.into() }, (id.share.clone(), id.user));
                let read_only = top.attributes.read_only;
                table.put_over(self.number(), Path::new("/data"), what);
                (Way::Given, vec![given], vec![("/data".into(), read_only)])
            }
            3 => {
                self.copy_above(inode, &mut table, false);
                let tops = all.into_iter().filter_map(|place| Some((place.clone(), self.shown_at(&place)?)));
                let tops: Vec<_> = tops.map(|(at, (top, id))| ((at, top.attributes.read_only), id.clone())).collect();
                let (places, given): (Vec<_>, Vec<_>) = tops.into_iter().unzip();
                if places.is_empty() {
                    return;
                }
                (Way::Given, given.into_iter().map(|id| (id.share, id.user)).collect(), places)
            }
            _ => {
                self.copy_above(inode, &mut table, true);
                (Way::Sees, Vec::new(), all.into_iter().map(|place| (place, false)).collect())
            }
        };
        self.say(|| format!("{inode} comes, who uses {} of the node's: {way:?}, {given:?}", place.display()));
        let container = Container {
            uid: format!("node{inode}"),
            volume: PublicationId::of(&place.to_string_lossy()),
            node: Some(NodeUse { way, given, since: self.now() }),
            pid: i32::try_from(inode).unwrap_or(i32::MAX),
            table,
            places,
            state: Occupants::Living,
            leaving: false,
            call: None,
            held: Vec::new(),
        };
        self.containers.insert(inode, container);
    }

    /// The directory above all places, with what is mounted there.
    fn copy_above(&mut self, inode: u64, table: &mut MountTable, follows: bool) {
        let fresh = self.number();
        table.put_over(fresh, Path::new(ABOVE), overlay());
        if follows {
            self.followers.insert((ROOT, inode), fresh);
        }
        for place in self.all_places() {
            for layer in self.host.stack(&place).into_iter().cloned().collect::<Vec<_>>() {
                let fresh = self.number();
                table.put_over(fresh, &place, (&layer).into());
                if follows && layer.follows {
                    self.followers.insert((layer.id, inode), fresh);
                    table.follow(fresh);
                }
            }
        }
    }

    // Propagation.

    /// What was just mounted on the host is seen by who follows what it was mounted on.
    pub(super) fn spread(&mut self, id: u64) {
        let Some(mount) = self.host.find(id).cloned() else { return };
        for (inode, over) in self.followers_of(mount.parent) {
            let fresh = self.number();
            let Some(container) = self.containers.get_mut(&inode) else { continue };
            if container.table.put_on(fresh, over, &mount.mount_point, (&mount).into()) {
                self.followers.insert((id, inode), fresh);
            }
        }
    }

    /// A layer of the host's goes, with what follows it.
    pub(super) fn take_from_host(&mut self, id: u64) {
        let Some(mount) = self.host.take_away(id) else { return };
        for (inode, over) in self.followers_of(mount.parent) {
            if let Some(container) = self.containers.get_mut(&inode) {
                container.table.take_child(over, &mount.mount_point);
            }
        }
        self.followers.retain(|(host, _), _| *host != id);
    }

    fn followers_of(&self, parent: u64) -> Vec<(u64, u64)> {
        self.followers.range((parent, 0)..=(parent, u64::MAX)).map(|((_, inode), copy)| (*inode, *copy)).collect()
    }

    /// Nothing is propagated from or to it any more.
    pub(super) fn make_private(&mut self, id: u64) {
        self.followers.retain(|(host, _), copy| *host != id && *copy != id);
    }

    // What must hold.

    /// Something becomes visible at a place, or to who was given it. Whether it may be read only.
    pub(super) fn judge_shown_on_node(&mut self, shown: &SuperblockId, place: &Path) -> bool {
        let ever = self.asked.contains_key(&(place.to_owned(), shown.share.clone()));
        if !ever || !matches!(shown.user, User::Node(_)) {
            self.breaks(MIXED, format!("{shown} is shown at {}", place.display()));
        }
        let share = self.scene.shares.iter().find(|share| share.name == shown.share);
        let read_only = share.is_none_or(|share| share.access == Access::ReadOnly);
        if read_only && shown.user.writes() {
            self.breaks("read-only never becomes writable", format!("{shown} is of a Share that is ReadOnly"));
        }
        !shown.user.writes()
    }

    /// A layer is about to go from a place, though the node stays.
    pub(super) fn judge_node_unpublish(&mut self, place: &Path, top: &Mount) {
        let Some(id) = self.superblocks.get(&top.device).map(|there| there.id.clone()) else { return };
        if self.is_going_down() {
            return;
        }
        let now = self.now();
        let asked = self.asked.get(&(place.to_owned(), id.share.clone())).copied();
        let what = format!("{id} is detached from {}", place.display());
        if asked.is_some_and(|asked| asked.long_since(now)) {
            self.breaks(TAKEN, format!("{what}, where people want it"));
        }
        let for_good = asked.is_none_or(|asked| asked.lately(Said::NotHere, now));
        let keeps = |mine: &NodeUse| match mine.way {
            Way::Host => false,
            Way::Given => mine.was_given(&id) && !self.is_asked_beside(place, &id.share),
            Way::Sees => !for_good,
        };
        let sees = |user: &Container| user.places.iter().any(|(at, _)| user.sees(at, top.device));
        let held = self.users().find(|(_, user, mine)| keeps(mine) && mine.since + LATE < now && sees(user));
        if let Some((inode, _, mine)) = held {
            let what = format!("{what}, and {inode} has it: {:?}", mine.way);
            self.breaks(TAKEN, what);
        }
        if !self.is_superseded(&id) && self.is_busy(place, top.device) {
            self.breaks(TAKEN, format!("{what} while a process uses it"));
        }
    }

    /// What has not come true yet of node mounts.
    pub(super) fn unsettled_on_node(&self) -> Vec<String> {
        let mut open = Vec::new();
        for place in &self.all_places() {
            let shown = place.display();
            let top = self.host.top(place);
            let there = self.shown_at(place).map(|(_, id)| id.clone());
            let wanted = self.asked.iter().find(|((at, _), asked)| at == place && asked.said == Said::Here);
            let wanted = wanted.map(|((_, name), _)| name);
            let kept = |id: &SuperblockId| {
                self.is_had(id) && !self.is_asked_beside(place, &id.share)
                    || top.is_some_and(|top| self.is_busy(place, top.device))
            };
            match (wanted, there) {
                (_, Some(id)) if Some(&id.share) == wanted || kept(&id) => {
                    if let Err(why) = self.is_served_on_node(&id.share, top.map(|top| top.device)) {
                        open.push(format!("{shown} {why}"));
                    }
                }
                // What is not there any more, and was given to somebody, is on record until that ends.
                (_, None) if self.is_on_record_for(place, wanted) => {}
                (Some(name), None) => open.push(format!("Share {name} is not at {shown}")),
                (_, Some(id)) => open.push(format!("{id} is at {shown}, and nobody wants it")),
                (None, None) if top.is_some() => open.push(format!("a seal is left at {shown}")),
                (None, None) => {}
            }
        }
        for (inode, user, mine) in self.users() {
            if user.call.is_some() {
                open.push(format!("{inode} is in {:?}", user.call));
            }
            for (at, _) in user.places.iter().filter(|_| mine.way != Way::Host) {
                let seen = self.is_in_force(user.table.top(at).map(|top| top.device));
                let problem = match (mine.way, seen) {
                    (Way::Given, Ok(id)) if !mine.was_given(id) => format!("sees {id}, which was not given to it"),
                    (Way::Sees, Ok(id)) if self.has_kept(user, id) => continue,
                    (Way::Sees, Ok(id)) if self.shown_at(at).is_some_and(|(_, on_host)| on_host != id) => {
                        format!("sees {id}, and the host does not")
                    }
                    (Way::Sees, _) if self.shown_at(at).is_none() || self.is_left_over(user, at) => continue,
                    (_, Ok(_)) => continue,
                    (_, Err(why)) => why,
                };
                open.push(format!("{inode}, who has {} of the node's, {problem}", at.display()));
            }
        }
        open
    }

    fn is_served_on_node(&self, share: &Name, device: Option<Device>) -> Result<(), String> {
        let name = self.is_in_force(device)?;
        match name.user {
            User::Node(_) if name.share == *share => Ok(()),
            _ => Err(format!("sees {name}, which is another's")),
        }
    }

    /// A gateway whose shares are used by way of the node.
    pub(super) fn is_used_on_node(&self, gateway: &Name) -> bool {
        let of_it =
            |name: &Name| self.scene.shares.iter().any(|share| share.name == *name && share.gateway == *gateway);
        self.asked.iter().any(|((_, name), asked)| asked.said == Said::Here && of_it(name))
            || self
                .bases()
                .any(|(id, device)| matches!(id.user, User::Node(_)) && of_it(&id.share) && self.is_shown(device))
    }

    /// For somebody who was given it or keeps it, and not for the Share that is wanted there.
    fn is_on_record_for(&self, place: &Path, wanted: Option<&Name>) -> bool {
        let id = self.asked.iter().find(|((at, _), _)| at == place).map(|(_, asked)| asked.id);
        let record = id.and_then(|id| self.record_of(id));
        let given = |mine: &NodeUse, other: &Publication| {
            mine.given.iter().any(|(share, user)| *share == other.share && *user == other.user())
        };
        let kept = |user: &Container, other: &Publication| {
            let mut of_it = self.superblocks.values().map(|superblock| &superblock.id);
            of_it.any(|id| id.share == other.share && id.user == other.user() && self.has_kept(user, id))
        };
        let held = |other: &Publication| self.users().any(|(_, user, mine)| given(mine, other) || kept(user, other));
        record.is_some_and(|other| wanted != Some(&other.share) && held(&other))
    }

    // What people do.

    /// Somebody edits what Shares say of the node.
    pub(super) fn node_mounts_change(&mut self) {
        let exposed = |world: &Self, name: &Name| {
            let of = world.scene.shares.iter().find(|share| share.name == *name);
            of.is_some_and(|share| !world.scene.is_sheltered(&share.gateway))
        };
        let on_node = self.scene.shares.iter().filter(|share| share.node_mount.is_some());
        let names: Vec<Name> = on_node.map(|share| share.name.clone()).collect();
        let names: Vec<Name> = names.into_iter().filter(|name| exposed(self, name)).collect();
        let choice = self.rng.u32(..8);
        let Some(name) = self.rng.choice(&names).cloned() else { return };
        let place =
            self.scene.shares.iter().find(|share| share.name == name).and_then(|share| share.node_mount.clone());
        match choice {
            0..2 => self.objects = self.scene.files(),
            2..4 => self.edit_share(&name, |share| share.node_mount = None),
            4 => self.objects.retain(|located| !matches!(&located.object, Object::Share(share) if share.name == name)),
            // An empty file; of what is under shelter there is another.
            5 => {
                let scene = self.scene.clone();
                self.objects.retain(|located| match &located.object {
                    Object::Gateway(gateway) => scene.is_sheltered(&gateway.name),
                    Object::Share(share) => scene.is_sheltered(&share.gateway),
                });
            }
            6 => {
                let elsewhere = place.and_then(|place| format!("{place}-too").parse().ok());
                self.edit_share(&name, |share| share.node_mount = elsewhere.clone());
            }
            // Another takes its place.
            _ => {
                let other = self.rng.choice(&names).cloned();
                for name in self.scene.shares.iter().map(|share| share.name.clone()).collect::<Vec<_>>() {
                    self.edit_share(&name, |share| drop(share.node_mount.take_if(|at| Some(&*at) == place.as_ref())));
                }
                if let Some(other) = other {
                    self.edit_share(&other, |share| share.node_mount = place.clone());
                }
            }
        }
        self.say(|| "what is to be on the node is edited".into());
        self.tell_of_objects();
    }

    fn edit_share(&mut self, name: &Name, edit: impl Fn(&mut Share)) {
        for located in &mut self.objects {
            if let Object::Share(share) = &mut located.object
                && share.name == *name
            {
                edit(share);
            }
        }
    }

    /// With the last fault some Shares are asked for on the node no more, and stay with who was given them.
    pub(super) fn withdraw_some(&mut self) {
        for share in self.scene.shares.clone() {
            if share.node_mount.is_some() && self.rng.u32(..3) == 0 {
                self.edit_share(&share.name, |share| share.node_mount = None);
            }
        }
    }

    /// All that is on the node is to go, and its users go first.
    pub(super) fn clear_node(&mut self) {
        let users: Vec<u64> = self.users().map(|(inode, ..)| inode).collect();
        for inode in users {
            self.kill_container(inode);
        }
        for share in self.scene.shares.clone() {
            self.edit_share(&share.name, |share| share.node_mount = None);
        }
        self.tell_of_objects();
    }
}

/// The host's mount that all places lie on, and the directory that they are in.
const ROOT: u64 = 1;
const ABOVE: &str = "/srv";

impl NodeUse {
    fn was_given(&self, id: &SuperblockId) -> bool {
        self.given.iter().any(|(share, user)| *share == id.share && *user == id.user)
    }
}

impl Container {
    fn sees(&self, at: &Path, device: Device) -> bool {
        self.table.top(at).is_some_and(|top| top.device == device)
    }
}
