//! The directories that each round looks into, listed anew only when the kernel says that they have changed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

#[derive(Default)]
pub(super) struct Listings {
    watched: Mutex<Option<Watched>>,
}

struct Watched {
    inotify: Inotify,
    known: HashMap<PathBuf, Listing>,
}

struct Listing {
    watch: WatchDescriptor,
    /// None since something has changed there.
    names: Option<Arc<Vec<String>>>,
}

impl Listings {
    /// The names of the files in a directory.
    pub(super) fn of(&self, directory: &Path) -> io::Result<Arc<Vec<String>>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.is_none() {
            *watched = Inotify::init().ok().map(|inotify| Watched { inotify, known: HashMap::new() });
        }
        match &mut *watched {
            Some(watched) => watched.list(directory),
            // A node on which others have taken all there is of it.
            None => list(directory).map(Arc::new),
        }
    }
}

impl Watched {
    fn list(&mut self, directory: &Path) -> io::Result<Arc<Vec<String>>> {
        if self.note_changes().is_err() {
            self.known.clear();
        }
        if let Some(Listing { names: Some(names), .. }) = self.known.get(directory) {
            return Ok(names.clone());
        }
        // Watched before it is read: what changes while it is read is seen the next time.
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let watch = self.inotify.watches().add(directory, mask);
        let names = Arc::new(list(directory)?);
        if let Ok(watch) = watch {
            self.known.insert(directory.to_owned(), Listing { watch, names: Some(names.clone()) });
        }
        Ok(names)
    }

    fn note_changes(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let events = match self.inotify.read_events(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                events => events?,
            };
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    return Err(io::Error::other("changes were lost"));
                }
                // The kernel gives a directory that is made again another watch.
                if event.mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF) {
                    self.known.retain(|_, listing| listing.watch != event.wd);
                }
                for listing in self.known.values_mut().filter(|listing| listing.watch == event.wd) {
                    listing.names = None;
                }
            }
        }
    }
}

pub(super) fn list(directory: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(directory)?;
    entries.filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_by_the_next_look() {
        let directory = std::env::temp_dir().join(format!("moorline-listings-{}", std::process::id()));
        let listings = Listings::default();
        assert!(listings.of(&directory).is_err(), "not there yet");
        for _ in 0..2 {
            fs::create_dir(&directory).unwrap();
            assert!(listings.of(&directory).unwrap().is_empty());
            fs::write(directory.join("one.new"), "").unwrap();
            assert_eq!(*listings.of(&directory).unwrap(), ["one.new"]);
            fs::rename(directory.join("one.new"), directory.join("one")).unwrap();
            assert_eq!(*listings.of(&directory).unwrap(), ["one"]);
            assert_eq!(*listings.of(&directory).unwrap(), ["one"], "as it was");
            fs::remove_file(directory.join("one")).unwrap();
            assert!(listings.of(&directory).unwrap().is_empty());
            fs::remove_dir(&directory).unwrap();
            assert!(listings.of(&directory).is_err(), "gone, and then made again");
        }
    }
}
