//! Publications as files, written before their first mount and removed after their last detach.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};

use moorline_shared::id::PublicationId;
use moorline_shared::publication::Publication;

use crate::paths::{Paths, from_agent};

pub(super) fn read_all(paths: &Paths) -> io::Result<BTreeMap<PublicationId, Publication>> {
    let mut publications = BTreeMap::new();
    for entry in fs::read_dir(from_agent(&paths.publications()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let publication: Publication = serde_json::from_slice(&fs::read(&path)?).map_err(|error| {
                io::Error::other(format!(
                    "{} can't be read ({error}): it was written by another version, or by hand",
                    path.display()
                ))
            })?;
            publications.insert(publication.id(), publication);
        }
    }
    Ok(publications)
}

/// Whole or not at all: a crash leaves the old record or the new one.
pub(super) fn write(paths: &Paths, publication: &Publication) -> io::Result<()> {
    let path = from_agent(&paths.publication(publication.id()));
    let fresh = path.with_extension("new");
    File::create(&fresh)?.write_all(&serde_json::to_vec(publication)?)?;
    fs::rename(fresh, path)
}

pub(super) fn remove(paths: &Paths, id: PublicationId) -> io::Result<()> {
    match fs::remove_file(from_agent(&paths.publication(id))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
