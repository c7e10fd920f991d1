//! Reading the host: what is there, whoever made it and whenever.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::str::FromStr;

use moorline_shared::id::{NamespaceId, PublicationId, SuperblockId, User};
use moorline_shared::name::Name;
use moorline_shared::observed::{Copies, Layer, Occupants};
use moorline_shared::publication::{Pod, Publication};
use moorline_sys::mountinfo::{self, Device, Mount};

use super::containers::MountNamespace;
use super::machine::Machine;
use crate::hands::{ENDED, is_seal};
use crate::paths::Paths;

/// The part of an observation that the kernel's tables hold.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub namespaces: BTreeSet<NamespaceId>,
    pub fenced: BTreeSet<NamespaceId>,
    pub superblocks: BTreeSet<SuperblockId>,
    pub husks: BTreeSet<SuperblockId>,
    pub given_up: BTreeSet<SuperblockId>,
    pub ended: BTreeSet<SuperblockId>,
    pub published: BTreeMap<PublicationId, Vec<Layer>>,
    pub shown: BTreeSet<PublicationId>,
    pub strays: BTreeMap<PublicationId, Publication>,
    pub copies: BTreeMap<SuperblockId, Copies>,
    pub occupants: BTreeMap<PublicationId, Occupants>,
    pub can_shut_down: bool,
}

/// A mount namespace in which copies of a superblock are to be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) pid: i32,
    pub(crate) inode: u64,
}

/// Publications by where they are.
type Targets<'a> = HashMap<&'a OsStr, PublicationId>;

/// Without `containers` their copies and who is in them are left out.
pub(crate) fn observe(
    machine: &dyn Machine,
    paths: &Paths,
    publications: &BTreeMap<PublicationId, Publication>,
    containers: bool,
) -> io::Result<Seen> {
    let host = machine.mounts()?;
    let devices = bases(paths, &host);
    // Whole texts and their hashes, since comparing paths part by part would be most of a round's work.
    let targets: Targets =
        publications.iter().map(|(id, publication)| (OsStr::new(&publication.target_path), *id)).collect();
    let published = published(&host, &devices, &targets);
    let namespaces = paths.namespaces();
    let bound: BTreeSet<NamespaceId> = host.iter().filter_map(|mount| child(&namespaces, &mount.mount_point)).collect();
    // A file that no namespace is bound to is what is left of one, or never was one: it leads nowhere, and is cleared away.
    let named: BTreeSet<NamespaceId> = names(machine, &namespaces)?;
    let given_up: BTreeSet<SuperblockId> = names(machine, &paths.given_up())?;
    let is_ended = |id: &&SuperblockId| machine.read(&paths.mark_of_end(id)).is_ok_and(|text| text == ENDED);
    let ended = given_up.iter().filter(is_ended).cloned().collect();
    let superblocks: BTreeSet<SuperblockId> = devices.values().cloned().collect();
    let mut seen = Seen {
        fenced: names(machine, &paths.fenced())?.into_iter().chain(named.difference(&bound).cloned()).collect(),
        namespaces: named.into_iter().chain(bound).collect(),
        husks: names(machine, &paths.mounts())?
            .into_iter()
            .chain(given_up.iter().cloned())
            .filter(|name| !superblocks.contains(name))
            .collect(),
        given_up,
        ended,
        superblocks,
        shown: shown(paths, &host, &devices, publications, &published),
        published,
        strays: strays(paths, &host, &devices, &targets),
        can_shut_down: machine.can_shut_down(),
        ..Seen::default()
    };
    if !containers {
        return Ok(seen);
    }
    let written = devices.iter().filter(|(_, id)| id.user.writes());
    let written = written.map(|(device, _)| *device).collect();
    let node = paths.node();
    for namespace in &machine.holding(&devices.keys().copied().collect(), &written) {
        for mount in &namespace.table {
            let Some(superblock) = devices.get(&mount.device) else { continue };
            // The base mounts and the publications themselves are no copies.
            if mount.mount_point.starts_with(&node)
                || is_host(namespace) && targets.contains_key(mount.mount_point.as_os_str())
            {
                continue;
            }
            let copies = seen.copies.entry(superblock.clone()).or_default();
            copies.all += 1;
            copies.on_top += u32::from(mount.on_top(&namespace.table));
            copies.bound += u32::from(!is_host(namespace) && !comes_and_goes(mount, &namespace.table));
            let occupants = if is_host(namespace) { Some(Occupants::Living) } else { namespace.occupants };
            copies.occupants = copies.occupants.max(occupants);
            if let User::ReadWrite(id) = superblock.user
                && !is_host(namespace)
                && let Some(occupants) = namespace.occupants
                && publications
                    .get(&id)
                    .or_else(|| seen.strays.get(&id))
                    .is_none_or(|publication| !shown_by_kubelet(paths, publication, mount))
            {
                seen.occupants.entry(id).and_modify(|most| *most = occupants.max(*most)).or_insert(occupants);
            }
        }
    }
    Ok(seen)
}

/// It is seen at the place of a publication by whoever sees the directory above it, and goes when the publication does.
fn comes_and_goes(mount: &Mount, table: &[Mount]) -> bool {
    let below = |above: &Mount| table.iter().find(|other| other.id == above.parent && other.id != above.id);
    let mut lowest = mount;
    while let Some(next) = below(lowest).filter(|next| next.mount_point == mount.mount_point) {
        lowest = next;
    }
    is_seal(lowest) && lowest.follows
}

/// Whoever sees kubelet's directory, wherever it is bound, sees a pod's volumes and sub paths there: that is nobody who
/// uses them.
fn shown_by_kubelet(paths: &Paths, publication: &Publication, mount: &Mount) -> bool {
    let below = Path::new(&publication.target_path).strip_prefix(paths.pods()).ok();
    let Some(uid) = below.and_then(|below| below.components().next()) else { return false };
    let names: Vec<_> = mount.mount_point.components().collect();
    names
        .windows(2)
        .any(|pair| pair[0] == uid && matches!(pair[1].as_os_str().to_str(), Some("volumes" | "volume-subpaths")))
}

/// Where copies of a superblock lie on top, and so are what applications see.
pub(crate) fn places(machine: &dyn Machine, paths: &Paths, superblock: &SuperblockId) -> io::Result<Vec<Place>> {
    let devices: BTreeSet<Device> = bases(paths, &machine.mounts()?)
        .into_iter()
        .filter(|(_, id)| id == superblock)
        .map(|(device, _)| device)
        .collect();
    let node = paths.node();
    let wanted = |mount: &Mount, table: &[Mount]| {
        devices.contains(&mount.device) && !mount.mount_point.starts_with(&node) && mount.on_top(table)
    };
    let namespaces = machine.holding(&devices, &BTreeSet::new()).into_iter();
    let places = namespaces
        .filter(|namespace| namespace.table.iter().any(|mount| wanted(mount, &namespace.table)))
        .map(|namespace| Place { pid: namespace.pid, inode: namespace.inode })
        .collect();
    Ok(places)
}

fn bases(paths: &Paths, host: &[Mount]) -> BTreeMap<Device, SuperblockId> {
    let mounts = paths.mounts();
    host.iter().filter_map(|mount| Some((mount.device, child(&mounts, &mount.mount_point)?))).collect()
}

fn published(
    host: &[Mount],
    devices: &BTreeMap<Device, SuperblockId>,
    targets: &Targets,
) -> BTreeMap<PublicationId, Vec<Layer>> {
    let mut mounts: BTreeMap<PublicationId, Vec<&Mount>> = BTreeMap::new();
    for mount in host.iter().filter(|mount| !is_seal(mount)) {
        if let Some(id) = targets.get(mount.mount_point.as_os_str()) {
            mounts.entry(*id).or_default().push(mount);
        }
    }
    let layer = |mount: &Mount| match devices.get(&mount.device) {
        Some(superblock) => Layer::Ours(superblock.clone()),
        None => Layer::Foreign,
    };
    mounts.into_iter().map(|(id, mounts)| (id, mountinfo::layers(mounts).into_iter().map(layer).collect())).collect()
}

/// Publications that kubelet meets on the host: at their target, or where a subPath of them is bound.
fn shown(
    paths: &Paths,
    host: &[Mount],
    devices: &BTreeMap<Device, SuperblockId>,
    publications: &BTreeMap<PublicationId, Publication>,
    published: &BTreeMap<PublicationId, Vec<Layer>>,
) -> BTreeSet<PublicationId> {
    let pods = paths.pods();
    let bound: BTreeSet<(&str, &Name, User)> = host
        .iter()
        .filter_map(|mount| {
            let uid = pod_of_sub_path(&pods, &mount.mount_point)?;
            let superblock = devices.get(&mount.device)?;
            Some((uid, &superblock.share, superblock.user))
        })
        .collect();
    let is_bound = |publication: &Publication| {
        bound.contains(&(publication.pod.uid.as_str(), &publication.share, publication.user()))
    };
    let at_target = published.iter().filter(|(_, layers)| layers.iter().any(|layer| matches!(layer, Layer::Ours(_))));
    let by_sub_path = publications.iter().filter(|(_, publication)| !bound.is_empty() && is_bound(publication));
    at_target.map(|(id, _)| *id).chain(by_sub_path.map(|(id, _)| *id)).collect()
}

/// Mounts of ours in kubelet's directories of pods, without the publications on record.
fn strays(
    paths: &Paths,
    host: &[Mount],
    devices: &BTreeMap<Device, SuperblockId>,
    targets: &Targets,
) -> BTreeMap<PublicationId, Publication> {
    let stray = |mount: &Mount| {
        let superblock = devices.get(&mount.device);
        let is_ours = superblock.is_some() || is_seal(mount);
        if !is_ours || targets.contains_key(mount.mount_point.as_os_str()) {
            return None;
        }
        let uid = pod_of(paths, &mount.mount_point)?;
        let publication = Publication {
            volume_id: String::new(),
            target_path: mount.mount_point.to_str()?.to_owned(),
            share: superblock.map_or_else(Name::unknown, |superblock| superblock.share.clone()),
            sub_dir: None,
            read_only: superblock.is_none_or(|superblock| !superblock.user.writes()),
            pod: Pod { namespace: String::new(), name: uid.clone(), uid },
            sole: None,
            inline: false,
            errand: None,
            node: false,
            wanted: true,
        };
        Some((publication.id(), publication))
    };
    // What lies over a seal comes after it in the table, and says more.
    host.iter().filter_map(stray).collect()
}

/// The UID of the pod in whose directory of kubelet's a path lies.
pub(super) fn pod_of(paths: &Paths, path: &Path) -> Option<String> {
    let first = path.strip_prefix(paths.pods()).ok()?.components().next()?;
    first.as_os_str().to_str().map(str::to_owned)
}

fn is_host(namespace: &MountNamespace) -> bool {
    namespace.pid == 1
}

/// The id that a path right below `directory` is the name of.
fn child<T: FromStr>(directory: &Path, path: &Path) -> Option<T> {
    let name = below(directory, path)?;
    if name.contains('/') { None } else { name.parse().ok() }
}

/// The pod, if it is where kubelet binds the subPaths of its volumes.
fn pod_of_sub_path<'a>(pods: &Path, path: &'a Path) -> Option<&'a str> {
    let mut parts = below(pods, path)?.split('/');
    let (uid, kind) = (parts.next()?, parts.next()?);
    (kind == "volume-subpaths").then_some(uid)
}

/// Of the kernel's mount points, which are normal, the texts tell, and are quicker to compare than paths.
fn below<'a>(directory: &Path, path: &'a Path) -> Option<&'a str> {
    path.to_str()?.strip_prefix(directory.to_str()?)?.strip_prefix('/')
}

fn names<T: FromStr + Ord>(machine: &dyn Machine, directory: &Path) -> io::Result<BTreeSet<T>> {
    Ok(machine.list_again(directory)?.iter().filter_map(|name| name.parse().ok()).collect())
}
