//! The host's mount table, parsed anew only when the kernel says that it has changed.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use moorline_sys::mountinfo::{self, Mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The table of the host's first process, and so of its mount namespace.
const TABLE: &str = "/proc/1/mountinfo";

pub(crate) struct Table {
    /// The open file knows what its reader has seen.
    read: Mutex<Option<(File, Arc<Vec<Mount>>)>>,
}

impl Table {
    pub(crate) const fn new() -> Self {
        Self { read: Mutex::new(None) }
    }

    pub(crate) fn mounts(&self) -> io::Result<Arc<Vec<Mount>>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *read {
            Some((file, mounts)) => {
                if has_changed(file)? {
                    *mounts = parse(file)?;
                }
                Ok(mounts.clone())
            }
            None => {
                let mut file = File::open(TABLE)?;
                // Asked before it is read: what changes while it is read is seen the next time.
                has_changed(&file)?;
                let mounts = parse(&mut file)?;
                Ok(read.insert((file, mounts)).1.clone())
            }
        }
    }
}

fn has_changed(file: &File) -> io::Result<bool> {
    let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
    poll(&mut polled, PollTimeout::ZERO)?;
    let events = polled[0].revents().unwrap_or(PollFlags::empty());
    Ok(events.intersects(PollFlags::POLLPRI | PollFlags::POLLERR))
}

fn parse(file: &mut File) -> io::Result<Arc<Vec<Mount>>> {
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    Ok(Arc::new(mountinfo::parse(&text)))
}
