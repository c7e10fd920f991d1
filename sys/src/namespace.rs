//! Entering namespaces. Only ever on a thread made for it or in a process of a single thread: a runtime's worker
//! would carry the namespace to whatever it runs next.

use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

/// Moves this thread to a network namespace.
pub fn enter_network(namespace: impl AsFd) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// Moves this process, which must have one thread, to a mount namespace.
pub fn enter_mounts(namespace: impl AsFd) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNS)?)
}

/// Gives this thread an empty network namespace of its own.
pub fn new_network() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWNET)?)
}

/// Gives this process, which must have one thread, a copy of its mounts. What is mounted in it is mounted where it came from as
/// well, except on what is private there.
pub fn copy_mounts() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWNS)?)
}

/// Gives this process, which must have one thread, a private copy of its mounts.
pub fn private_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", private)?)
}

/// Runs `work` inside a network namespace, on a thread that lives no longer than that.
pub fn in_network<T: Send + 'static>(
    namespace: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = File::open(namespace)?;
    let thread = thread::Builder::new().name("namespace".into()).spawn(move || {
        enter_network(namespace)?;
        work()
    })?;
    thread.join().map_err(|_| io::Error::other("the thread in the network namespace panicked"))?
}

/// An unconnected TCP socket that belongs to a network namespace, wherever it is used.
pub fn tcp_socket(namespace: &Path, ipv6: bool) -> io::Result<TcpStream> {
    let family = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd =
        in_network(namespace, move || Ok(socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?))?;
    Ok(socket.into())
}
