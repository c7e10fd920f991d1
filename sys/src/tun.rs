//! TUN devices.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

const DEVICE: &str = "/dev/net/tun";

/// Makes /dev/net/tun where a container's /dev lacks it.
pub fn ensure_device() -> io::Result<()> {
    if Path::new(DEVICE).exists() {
        return Ok(());
    }
    std::fs::create_dir_all("/dev/net")?;
    match mknodat(CWD, DEVICE, FileType::CharacterDevice, Mode::from(0o600), makedev(10, 200)) {
        Err(rustix::io::Errno::EXIST) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Attaches to the TUN device of this name in the calling thread's network namespace, or makes it. Reads and
/// writes are whole IP packets and never block.
pub fn attach(name: &str) -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(DEVICE)?;
    let name = CString::new(name)?;
    // SAFETY: an all-zero ifreq is a valid value: it is plain data.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let bytes = name.as_bytes();
    if bytes.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of a network device has at most 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is, and the descriptor is open.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

/// Lets the device outlive the descriptor: address and route stay while no process serves it.
pub fn persist(device: &OwnedFd) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes an integer, and the descriptor is open.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
