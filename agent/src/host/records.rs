//! Publications as files, written before their first mount and removed after their last detach.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use moorline_shared::id::PublicationId;
use moorline_shared::objects::Objects;
use moorline_shared::publication::Publication;
use tracing::{error, warn};
use zeroize::Zeroizing;

use super::machine::{Machine, UNFINISHED};
use crate::killpoint::Point;
use crate::paths::Paths;

pub(super) fn read_all(machine: &dyn Machine, paths: &Paths) -> io::Result<BTreeMap<PublicationId, Publication>> {
    let directory = paths.publications();
    let mut publications = BTreeMap::new();
    for directory in [&directory, &paths.fenced(), &paths.node()] {
        for name in machine.list(directory)?.iter().filter(|name| name.ends_with(UNFINISHED)) {
            // Of an agent that was killed before it gave it its name: who asked for it asks again.
            machine.remove(&directory.join(name))?;
        }
    }
    for name in machine.list(&directory)?.iter().filter(|name| name.ends_with(".json")) {
        let path = directory.join(name);
        match serde_json::from_slice::<Publication>(&machine.read(&path)?) {
            Ok(publication) => drop(publications.insert(publication.id(), publication)),
            // One that another version wrote must not keep all others from being served.
            Err(error) => error!("{} can't be read, so its volume is left as it is: {error}", path.display()),
        }
    }
    Ok(publications)
}

/// Forgets what was written down in an earlier boot of the node, whose mounts and namespaces ended with it. How many
/// publications that were, if the node has booted since. Ours is a file system that ends with the boot, unless somebody
/// put one of his own in its place.
pub(super) fn forget_earlier_boot(machine: &dyn Machine, paths: &Paths) -> io::Result<Option<usize>> {
    let boot = machine.boot()?;
    let kept = paths.boot();
    let note = || machine.write(&kept, boot.as_bytes(), Point::BootWritten);
    match machine.read(&kept) {
        Ok(known) if known == boot.as_bytes() => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return note().map(|()| None),
        Err(error) => return Err(error),
    }
    let publications = remove_files(machine, &paths.publications())?;
    remove_files(machine, &paths.fenced())?;
    remove_files(machine, &paths.namespaces())?;
    remove_files(machine, &paths.given_up())?;
    machine.remove(&paths.objects())?;
    machine.remove(&paths.returning())?;
    // Last: were the agent to die before, its successor does all this again.
    note().map(|()| Some(publications))
}

/// What is mounted is refused by the kernel, and stays. Whatever else stayed would be taken for this boot's.
fn remove_files(machine: &dyn Machine, directory: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for name in machine.list(directory)? {
        let path = directory.join(name);
        match machine.remove(&path) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                warn!("{} is from an earlier boot and stays: {error}", path.display());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

pub(super) fn write(machine: &dyn Machine, paths: &Paths, publication: &Publication) -> io::Result<()> {
    let text = serde_json::to_vec(publication)?;
    machine.write(&paths.publication(publication.id()), &text, Point::RecordWritten)
}

/// The objects in force, so that a restart is none for them: whatever their files say by then, what pods use stays.
pub(super) fn write_objects(machine: &dyn Machine, paths: &Paths, objects: &Objects) -> io::Result<()> {
    machine.write(&paths.objects(), &Zeroizing::new(serde_json::to_vec(objects)?), Point::ObjectsWritten)
}

/// What can't be read, as what a later version wrote, counts as nothing: the files are read next, and an agent must
/// start and take care of the mounts that are there.
pub(super) fn read_objects(machine: &dyn Machine, paths: &Paths) -> Objects {
    let path = paths.objects();
    let read = machine.read(&path).map(Zeroizing::new);
    match read.and_then(|text| Ok(serde_json::from_slice(&text)?)) {
        Ok(objects) => objects,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Objects::default(),
        Err(error) => {
            let path = path.display();
            error!("{path} can't be read ({error}): only what the files say is known of the objects that pods use");
            Objects::default()
        }
    }
}

/// Whoever is to be published again after a shutdown that does not come is not asked anew for its right to: an agent that
/// starts in between must know of it.
pub(super) fn write_returning(
    machine: &dyn Machine,
    paths: &Paths,
    returning: &BTreeSet<PublicationId>,
) -> io::Result<()> {
    let path = paths.returning();
    if returning.is_empty() {
        return machine.remove(&path);
    }
    machine.write(&path, &serde_json::to_vec(returning)?, Point::ReturningWritten)
}

/// `None` if it can't be read.
pub(super) fn read_returning(machine: &dyn Machine, paths: &Paths) -> Option<BTreeSet<PublicationId>> {
    let path = paths.returning();
    match machine.read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
        Ok(returning) => Some(returning),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(BTreeSet::new()),
        Err(error) => {
            let path = path.display();
            error!(
                "{path} can't be read ({error}): volumes that a shutdown took away are asked anew for their right to come"
            );
            None
        }
    }
}
