//! Reading the host: what is there, whoever made it and whenever.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::{fs, str::FromStr};

use moorline_shared::id::{NamespaceId, PublicationId, SuperblockId, User};
use moorline_shared::observed::{Copies, Layer, Occupants};
use moorline_shared::publication::Publication;
use moorline_sys::mountinfo::{self, Device, Mount};

use super::containers::{self, MountNamespace};
use crate::paths::{Paths, from_agent};

/// The part of an observation that the kernel's tables hold.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub namespaces: BTreeSet<NamespaceId>,
    pub fenced: BTreeSet<NamespaceId>,
    pub superblocks: BTreeSet<SuperblockId>,
    pub published: BTreeMap<PublicationId, Vec<Layer>>,
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

/// Without `containers` their copies and who is in them are left out.
pub(crate) fn observe(
    paths: &Paths,
    host: &[Mount],
    publications: &BTreeMap<PublicationId, Publication>,
    containers: bool,
) -> io::Result<Seen> {
    let devices = bases(paths, host);
    let mut seen = Seen {
        namespaces: host.iter().filter_map(|mount| child(&paths.namespaces(), &mount.mount_point)).collect(),
        fenced: names(&paths.fenced())?,
        superblocks: devices.values().cloned().collect(),
        published: published(host, &devices, publications),
        can_shut_down: can_shut_down(),
        ..Seen::default()
    };
    if !containers {
        return Ok(seen);
    }
    let namespaces = containers::holding(&devices.keys().copied().collect());
    let targets: BTreeSet<&Path> =
        publications.values().map(|publication| Path::new(&publication.target_path)).collect();
    for namespace in &namespaces {
        for mount in &namespace.table {
            let Some(superblock) = devices.get(&mount.device) else { continue };
            // The base mounts and the publications themselves are no copies.
            if mount.mount_point.starts_with(paths.node())
                || is_host(namespace) && targets.contains(mount.mount_point.as_path())
            {
                continue;
            }
            let copies = seen.copies.entry(superblock.clone()).or_default();
            copies.all += 1;
            copies.on_top += u32::from(mount.on_top(&namespace.table));
            if let User::ReadWrite(id) = superblock.user
                && !is_host(namespace)
                && let Some(occupants) = namespace.occupants
                && publications.get(&id).is_none_or(|publication| !shown_by_kubelet(paths, publication, mount))
            {
                seen.occupants.entry(id).and_modify(|most| *most = occupants.max(*most)).or_insert(occupants);
            }
        }
    }
    Ok(seen)
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
pub(crate) fn places(paths: &Paths, host: &[Mount], superblock: &SuperblockId) -> Vec<Place> {
    let devices: BTreeSet<Device> =
        bases(paths, host).into_iter().filter(|(_, id)| id == superblock).map(|(device, _)| device).collect();
    let wanted = |mount: &Mount, table: &[Mount]| {
        devices.contains(&mount.device) && !mount.mount_point.starts_with(paths.node()) && mount.on_top(table)
    };
    let namespaces = containers::holding(&devices).into_iter();
    namespaces
        .filter(|namespace| namespace.table.iter().any(|mount| wanted(mount, &namespace.table)))
        .map(|namespace| Place { pid: namespace.pid, inode: namespace.inode })
        .collect()
}

/// Whether a superblock in the host's network namespace has the switch that ends it.
fn can_shut_down() -> bool {
    let superblocks = fs::read_dir(from_agent(Path::new("/sys/fs/nfs"))).into_iter().flatten().flatten();
    superblocks.map(|superblock| superblock.path().join("shutdown")).any(|switch| switch.exists())
}

fn bases(paths: &Paths, host: &[Mount]) -> BTreeMap<Device, SuperblockId> {
    host.iter().filter_map(|mount| Some((mount.device, child(&paths.mounts(), &mount.mount_point)?))).collect()
}

fn published(
    host: &[Mount],
    devices: &BTreeMap<Device, SuperblockId>,
    publications: &BTreeMap<PublicationId, Publication>,
) -> BTreeMap<PublicationId, Vec<Layer>> {
    let ids: BTreeMap<&Path, PublicationId> =
        publications.iter().map(|(id, publication)| (Path::new(&publication.target_path), *id)).collect();
    let mut mounts: BTreeMap<PublicationId, Vec<&Mount>> = BTreeMap::new();
    for mount in host {
        if let Some(id) = ids.get(mount.mount_point.as_path()) {
            mounts.entry(*id).or_default().push(mount);
        }
    }
    let layer = |mount: &Mount| match devices.get(&mount.device) {
        Some(superblock) => Layer::Ours(superblock.clone()),
        None => Layer::Foreign,
    };
    mounts.into_iter().map(|(id, mounts)| (id, mountinfo::layers(mounts).into_iter().map(layer).collect())).collect()
}

fn is_host(namespace: &MountNamespace) -> bool {
    namespace.pid == 1
}

/// The id that a path right below `directory` is the name of.
fn child<T: FromStr>(directory: &Path, path: &Path) -> Option<T> {
    if path.parent() != Some(directory) {
        return None;
    }
    path.file_name()?.to_str()?.parse().ok()
}

fn names<T: FromStr + Ord>(directory: &Path) -> io::Result<BTreeSet<T>> {
    let entries = fs::read_dir(from_agent(directory))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}
