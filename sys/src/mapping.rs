//! A file in memory. Where the kernel can't bring one of its pages, or can't take it back, it sends SIGBUS: here that is
//! an error like any other, and nobody dies of it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What the signal's handler needs to know of a mapping.
struct Slot {
    taken: AtomicBool,
    /// 0 where nothing is mapped.
    start: AtomicUsize,
    length: AtomicUsize,
    /// A page could not be had, and memory that holds nothing is in the place of all.
    lost: AtomicBool,
}

impl Slot {
    const fn empty() -> Self {
        Self {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        }
    }
}

static SLOTS: [Slot; 8] = [const { Slot::empty() }; 8];

/// A file's first bytes, mapped shared. For one thread at a time.
pub struct Mapping {
    file: File,
    writable: bool,
    start: *mut u8,
    length: usize,
    /// The file must be mapped anew before it is touched again.
    broken: bool,
    slot: &'static Slot,
}

impl Mapping {
    /// The file must be `length` bytes long or longer.
    pub fn new(file: File, length: usize, writable: bool) -> io::Result<Self> {
        handle_lost_pages()?;
        let free = |slot: &&Slot| !slot.taken.swap(true, Ordering::SeqCst);
        let slot = SLOTS.iter().find(free).ok_or_else(|| io::Error::other("too many files are mapped"))?;
        let mut mapping = Self { file, writable, start: ptr::null_mut(), length, broken: false, slot };
        mapping.map()?;
        Ok(mapping)
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Copies out of it, which asks the server for what is not in memory.
    pub fn read(&mut self, offset: usize, buffer: &mut [u8]) -> io::Result<()> {
        self.touch(offset, buffer.len(), |at| {
            // SAFETY: `touch` has checked that so many bytes at `at` are mapped, and nobody else knows of the mapping.
            unsafe { ptr::copy_nonoverlapping(at, buffer.as_mut_ptr(), buffer.len()) }
        })
    }

    /// Copies into it; the server gets it with [`Self::sync`], or when the kernel likes.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        if !self.writable {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the file is mapped read-only"));
        }
        self.touch(offset, bytes.len(), |at| {
            // SAFETY: as in `read`, and it is mapped writable.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) }
        })
    }

    /// Waits until what was written is with the server.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping's own.
        done(unsafe { libc::msync(self.start.cast(), self.length, libc::MS_SYNC) })
    }

    /// Has the next touch ask the kernel for its pages again.
    pub fn forget(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping's own; of a shared mapping of a file nothing is lost.
        done(unsafe { libc::madvise(self.start.cast(), self.length, libc::MADV_DONTNEED) })
    }

    fn touch(&mut self, offset: usize, length: usize, copy: impl FnOnce(*mut u8)) -> io::Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the mapping"));
        }
        if self.broken {
            self.map()?;
        }
        // SAFETY: within the mapping.
        copy(unsafe { self.start.add(offset) });
        self.broken = self.slot.lost.swap(false, Ordering::SeqCst);
        if self.broken { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    /// At a new place, and what was mapped before goes: over it, a file that can't be mapped would leave a hole.
    fn map(&mut self) -> io::Result<()> {
        let protection = libc::PROT_READ | if self.writable { libc::PROT_WRITE } else { 0 };
        let file = self.file.as_raw_fd();
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), self.length, protection, libc::MAP_SHARED, file, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.unmap();
        self.start = start.cast();
        self.broken = false;
        self.slot.length.store(self.length, Ordering::SeqCst);
        self.slot.start.store(start as usize, Ordering::SeqCst);
        Ok(())
    }

    fn unmap(&mut self) {
        self.slot.start.store(0, Ordering::SeqCst);
        if !self.start.is_null() {
            // SAFETY: the range is this mapping's own, and nothing refers to it after this.
            unsafe { libc::munmap(self.start.cast(), self.length) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.unmap();
        self.slot.taken.store(false, Ordering::SeqCst);
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn handle_lost_pages() -> io::Result<()> {
    static HANDLED: Once = Once::new();
    let mut outcome = Ok(());
    HANDLED.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = page_is_lost as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler does nothing but what is safe in one.
        outcome = done(unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) });
    });
    outcome
}

/// Puts empty memory where a page can't be had, so that whoever wanted it goes on, and hears of it from [`Mapping::touch`]. In
/// the place of the whole file: each further page might be as long in not coming.
extern "C" fn page_is_lost(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo, and for SIGBUS its address is set.
    let at = unsafe { (*info).si_addr() } as usize;
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
    for slot in &SLOTS {
        let (start, length) = (slot.start.load(Ordering::SeqCst), slot.length.load(Ordering::SeqCst));
        if start != 0 && (start..start + length).contains(&at) {
            // SAFETY: mmap is a bare system call, and the range is a mapping of ours.
            let put = unsafe { libc::mmap(start as *mut libc::c_void, length, protection, flags, -1, 0) };
            if put != libc::MAP_FAILED {
                slot.lost.store(true, Ordering::SeqCst);
                return;
            }
        }
    }
    // Somebody else's: it ends as it would have without us.
    // SAFETY: signal is a bare system call.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn file(name: &str, bytes: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!("moorline-mapping-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    #[test]
    fn what_is_written_is_in_the_file() {
        let mut opened = file("written", &[0; 8192]);
        let mut mapping = Mapping::new(opened.try_clone().unwrap(), 8192, true).unwrap();
        mapping.write(4090, b"over the edge").unwrap();
        mapping.sync().unwrap();
        let mut seen = Vec::new();
        opened.rewind().unwrap();
        opened.read_to_end(&mut seen).unwrap();
        assert_eq!(&seen[4090..4103], b"over the edge");
        assert!(mapping.write(8190, b"beyond").is_err());
    }

    #[test]
    fn a_page_that_is_not_there_is_an_error_and_the_mapping_lives_on() {
        let opened = file("lost", &[7; 8192]);
        let mut mapping = Mapping::new(opened.try_clone().unwrap(), 8192, false).unwrap();
        let mut bytes = [0; 2];
        opened.set_len(4096).unwrap();
        assert_eq!(mapping.read(8000, &mut bytes).unwrap_err().raw_os_error(), Some(libc::EIO));
        mapping.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 7]);
        opened.set_len(8192).unwrap();
        mapping.read(8000, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0], "what is there again is read again");
    }
}
