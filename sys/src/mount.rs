//! Mounts by descriptors: made detached, changed while nobody sees them, then moved to their place.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};

use crate::mountinfo::Attributes;

/// A mount that failed, with the reason that the kernel gives for it beside the error number.
#[derive(Debug)]
pub struct Refusal {
    pub error: io::Error,
    pub kernel: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kernel.as_str() {
            "" => write!(f, "{}", self.error),
            kernel => write!(f, "{} (the kernel says: {kernel})", self.error),
        }
    }
}

impl std::error::Error for Refusal {}

/// An option of a file system: a flag, a value, or a value that older kernels don't know and may ignore.
pub enum Setting<'a> {
    Flag(&'a str),
    Value(&'a str, &'a str),
    IfKnown(&'a str, &'a str),
}

/// A detached mount of a new superblock.
pub fn create(file_system: &str, settings: &[Setting<'_>], attributes: Attributes) -> Result<OwnedFd, Refusal> {
    let context = fsopen(file_system, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| Refusal { error: error.into(), kernel: String::new() })?;
    let refusal = |error: rustix::io::Errno| Refusal { error: error.into(), kernel: kernel_reason(&context) };
    for setting in settings {
        match setting {
            Setting::Flag(key) => fsconfig_set_flag(context.as_fd(), *key),
            Setting::Value(key, value) => fsconfig_set_string(context.as_fd(), *key, *value),
            Setting::IfKnown(key, value) => match fsconfig_set_string(context.as_fd(), *key, *value) {
                Err(rustix::io::Errno::INVAL) => {
                    kernel_reason(&context); // so that it is not read as the reason of a later failure
                    Ok(())
                }
                result => result,
            },
        }
        .map_err(refusal)?;
    }
    fsconfig_create(context.as_fd()).map_err(refusal)?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags(attributes)).map_err(refusal)
}

/// A detached clone of the mount at `path` below `directory`, which may be `CWD`'s: no other mount below it comes along.
pub fn clone_at(directory: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(directory, path, flags)?)
}

/// A detached clone of the mount at an absolute path.
pub fn clone(path: &Path) -> io::Result<OwnedFd> {
    clone_at(CWD, path)
}

/// Moves a detached mount to a path, or to a directory that is open.
pub fn attach(mount: &OwnedFd, path: &Path) -> io::Result<()> {
    Ok(move_mount(mount.as_fd(), "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Moves a detached mount over an open directory. On the root of a mount this takes that directory's lock,
/// which a call blocked in it may hold: only in a process that may be left behind.
pub fn attach_over(mount: &OwnedFd, directory: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount.as_fd(), "", directory.as_fd(), "", flags)?)
}

/// Moves a detached mount beneath the mount whose root is open, which stays on top until it is detached. Takes no lock of
/// that root, so it works while calls are blocked there. Linux 6.5 and newer, and not everywhere: see move_mount(2).
pub fn attach_beneath(mount: &OwnedFd, top: &OwnedFd) -> io::Result<()> {
    let empty_paths = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let flags = empty_paths | MoveMountFlags::MOVE_MOUNT_BENEATH;
    Ok(move_mount(mount.as_fd(), "", top.as_fd(), "", flags)?)
}

/// Whether the kernel knows [`attach_beneath`], found out by a call that can't succeed: a flag that it doesn't know is
/// refused before the path that isn't there.
pub fn knows_beneath() -> bool {
    let asked = move_mount(CWD, "", CWD, "", MoveMountFlags::MOVE_MOUNT_BENEATH);
    asked == Err(rustix::io::Errno::NOENT)
}

/// How events of mounting and unmounting spread from a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Shared,
    Private,
}

/// Whether the flags of a mount can be changed while nobody sees it: asked by a call that can't succeed, and that tells an
/// older kernel, or a filter that does not know the call, by its error.
pub fn can_change_attributes() -> io::Result<()> {
    // SAFETY: the path is a NUL-terminated string, and a size of 0 makes the kernel refuse before it reads the attributes.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), libc::AT_EMPTY_PATH, std::ptr::null::<u8>(), 0usize)
    };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM) if result < 0 => Err(error),
        _ => Ok(()),
    }
}

/// Adds flags to the mount behind a descriptor, detached or not. Flags that it has stay.
pub fn restrict(mount: &OwnedFd, attributes: Attributes) -> io::Result<()> {
    set_attributes(mount.as_fd(), attributes, None)
}

pub fn set_propagation(mount: &OwnedFd, propagation: Propagation) -> io::Result<()> {
    set_attributes(mount.as_fd(), Attributes::default(), Some(propagation))
}

/// Both at once.
pub fn restrict_and_share(mount: &OwnedFd, attributes: Attributes) -> io::Result<()> {
    set_attributes(mount.as_fd(), attributes, Some(Propagation::Shared))
}

/// Keeps the mount at `path`, with all below it, out of every recursive bind: a container that binds /run
/// shall not pin what is mounted there.
pub fn make_unbindable(path: &Path) -> io::Result<()> {
    Ok(mount_change(path, MountPropagationFlags::UNBINDABLE)?)
}

/// Detaches the topmost mount at `path` from the tree. It lives on where it is still in use.
pub fn detach(path: &Path) -> io::Result<()> {
    Ok(unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// Takes the topmost mount at `path` away, unless a process uses it there or where it is seen through propagation: that is
/// the error EBUSY.
pub fn unmount_unused(path: &Path) -> io::Result<()> {
    Ok(unmount(path, UnmountFlags::NOFOLLOW)?)
}

/// Ends with an error what is outstanding on the superblock of the mount at `path`. `pin` is a descriptor on that
/// mount: while it is open the mount is busy, and the same call can't unmount it.
pub fn abort(path: &Path, _pin: BorrowedFd<'_>) -> io::Result<()> {
    match unmount(path, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Err(io::Error::other("the mount was not busy, and is gone")),
    }
}

/// The id by which mountinfo knows the mount that a descriptor is on. It is the kernel's own to say: no file system is asked.
pub fn mount_id(descriptor: &OwnedFd) -> io::Result<u64> {
    let as_it_is_known = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(rustix::fs::statx(descriptor, "", as_it_is_known, StatxFlags::MNT_ID)?.stx_mnt_id)
}

fn flags(attributes: Attributes) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, attributes.read_only);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, attributes.no_suid);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, attributes.no_dev);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, attributes.no_exec);
    flags
}

fn set_attributes(mount: BorrowedFd<'_>, added: Attributes, propagation: Option<Propagation>) -> io::Result<()> {
    let propagation = match propagation {
        None => 0,
        Some(Propagation::Shared) => libc::MS_SHARED,
        Some(Propagation::Private) => libc::MS_PRIVATE,
    };
    let attr_set = flags(added).bits().into();
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation, userns_fd: 0 };
    // SAFETY: the path is a NUL-terminated empty string, `attributes` is a mount_attr of the size that is given,
    // and both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &attributes,
            mem::size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the kernel wrote to the context about a failure: lines like "e NFS4: Couldn't follow remote path".
fn kernel_reason(context: &OwnedFd) -> String {
    let mut reasons = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..length]);
        reasons.push(line.trim().trim_start_matches("e ").to_owned());
    }
    reasons.join("; ")
}
