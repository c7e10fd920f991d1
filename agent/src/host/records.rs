//! Publications as files, written before their first mount and removed after their last detach.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use moorline_shared::id::PublicationId;
use moorline_shared::objects::Objects;
use moorline_shared::publication::Publication;
use tracing::error;
use zeroize::Zeroizing;

use crate::paths::{Paths, from_agent};

pub(super) fn read_all(paths: &Paths) -> io::Result<BTreeMap<PublicationId, Publication>> {
    let mut publications = BTreeMap::new();
    for entry in fs::read_dir(from_agent(&paths.publications()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            match serde_json::from_slice::<Publication>(&fs::read(&path)?) {
                Ok(publication) => drop(publications.insert(publication.id(), publication)),
                // One that another version wrote must not keep all others from being served.
                Err(error) => error!("{} can't be read, so its volume is left as it is: {error}", path.display()),
            }
        }
    }
    Ok(publications)
}

pub(super) fn write(paths: &Paths, publication: &Publication) -> io::Result<()> {
    replace(&from_agent(&paths.publication(publication.id())), &serde_json::to_vec(publication)?)
}

/// The objects in force, so that a restart is none for them: whatever their files say by then, what pods use stays.
pub(super) fn write_objects(paths: &Paths, objects: &Objects) -> io::Result<()> {
    replace(&from_agent(&paths.objects()), &Zeroizing::new(serde_json::to_vec(objects)?))
}

/// What can't be read, as what a later version wrote, counts as nothing: the files are read next, and an agent must
/// start and take care of the mounts that are there.
pub(super) fn read_objects(paths: &Paths) -> Objects {
    let path = paths.objects();
    let read = fs::read(from_agent(&path)).map(Zeroizing::new);
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

/// Whole or not at all: a crash leaves the old file or the new one. They are root's alone.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?.write_all(content)?;
    fs::rename(fresh, path)
}

pub(super) fn remove(paths: &Paths, id: PublicationId) -> io::Result<()> {
    match fs::remove_file(from_agent(&paths.publication(id))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
