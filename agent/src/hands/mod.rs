//! What must happen in other namespaces, or may block on a dead server: done in a re-exec of this binary, with one
//! thread, which may be killed or left behind. The request comes as JSON on stdin, the reply goes as JSON to stdout.

mod abort;
mod call;
mod detach;
mod look;
mod mount;
mod namespace;
mod prepare;
mod publish;
mod replace;
mod shut_down;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use moorline_shared::id::{NamespaceId, SuperblockId};
use moorline_shared::plan::Tuning;
use moorline_shared::share::MountOptions;
use moorline_sys::namespace as sys_namespace;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

pub(crate) use call::left_behind;
pub use call::{HandsError, call};

use crate::paths::{HOST_MOUNTS, Paths};

/// The name that makes our binary do a request instead of anything else.
pub const SUBCOMMAND: &str = "hands";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    pub paths: Paths,
    pub work: Work,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Work {
    /// Make the file system that holds our mounts and state.
    Prepare,
    MakeNamespace(Namespace),
    /// Give the node's own network namespace this name.
    NameHostNetwork(NamespaceId),
    /// End the read-write superblocks of a namespace for good, where the kernel can.
    ShutDown(NamespaceId),
    RemoveNamespace(NamespaceId),
    Mount(Mount),
    Publish(Publish),
    Replace(Replace),
    Abort {
        superblock: SuperblockId,
    },
    Look {
        superblock: SuperblockId,
    },
    Unpublish {
        target_path: PathBuf,
    },
    Retire {
        superblock: SuperblockId,
        abort: bool,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Namespace {
    pub id: NamespaceId,
    pub address: IpAddr,
    pub server: IpAddr,
    pub mtu: u32,
    /// How the kernel's NFS client names itself to servers from this namespace.
    pub client_identifier: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mount {
    pub superblock: SuperblockId,
    pub server: IpAddr,
    pub export: String,
    /// Calls are given up after the kernel's major timeout.
    pub soft: bool,
    pub options: MountOptions,
    pub tuning: Tuning,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Publish {
    pub superblock: SuperblockId,
    pub target_path: PathBuf,
    pub read_only: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Replace {
    pub old: SuperblockId,
    pub new: SuperblockId,
    /// A process in the mount namespace, and the namespace's inode: the process may have ended since.
    pub pid: i32,
    pub namespace_inode: u64,
}

/// What was done, where there is more to say than that it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Mounts that were put in the place of others.
    pub replaced: u64,
    /// Those that could not be, and why.
    pub left: Vec<String>,
}

/// A failure, as it goes back through the pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Trying again won't help until somebody changes something.
    pub definite: bool,
    pub message: String,
}

impl Failure {
    fn definite(message: impl Into<String>) -> Self {
        Self { definite: true, message: message.into() }
    }
}

/// An I/O error with the action that met it.
fn doing(action: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let action = action.into();
    move |error| Failure { definite: false, message: format!("{action}: {error}") }
}

/// The whole life of a hand: one request, one reply.
pub fn main() -> ExitCode {
    // Its standard error is the agent's log, which holds whole lines of its own format and nothing else.
    panic::set_hook(Box::new(|bug| {
        let reply: Result<Done, Failure> = Err(Failure { definite: false, message: format!("a bug: {bug}") });
        // Nobody is left who could be told if this fails.
        let _ = io::stdout().write_all(&serde_json::to_vec(&reply).unwrap_or_default());
    }));
    let mut text = Vec::new();
    let reply = match io::stdin().read_to_end(&mut text).map(|_| serde_json::from_slice::<Request>(&text)) {
        Ok(Ok(request)) => perform(&request),
        Ok(Err(error)) => Err(Failure::definite(format!("read the request: {error}"))),
        Err(error) => Err(doing("read the request")(error)),
    };
    let sent = serde_json::to_vec(&reply).map_err(io::Error::from).and_then(|text| io::stdout().write_all(&text));
    if sent.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn perform(request: &Request) -> Result<Done, Failure> {
    let paths = &request.paths;
    let done = match &request.work {
        Work::Prepare => prepare::prepare(paths),
        Work::MakeNamespace(wanted) => namespace::make(paths, wanted),
        Work::NameHostNetwork(id) => namespace::name_host_network(paths, id),
        Work::ShutDown(id) => shut_down::shut_down(paths, id),
        Work::RemoveNamespace(id) => namespace::remove(paths, id),
        Work::Mount(wanted) => mount::mount(paths, wanted),
        Work::Publish(wanted) => publish::publish(paths, wanted),
        Work::Replace(wanted) => return replace::replace(paths, wanted),
        Work::Abort { superblock } => abort::abort(paths, superblock),
        Work::Look { superblock } => look::look(paths, superblock),
        Work::Unpublish { target_path } => detach::unpublish(paths, target_path),
        Work::Retire { superblock, abort } => detach::retire(paths, superblock, *abort),
    };
    done.map(|()| Done::default())
}

fn enter_host_mounts() -> Result<(), Failure> {
    File::open(HOST_MOUNTS).and_then(sys_namespace::enter_mounts).map_err(doing(
        "enter the host's mount namespace (does the agent's pod have hostPID, SYS_ADMIN, SYS_CHROOT and SYS_PTRACE?)",
    ))
}

/// A descriptor that names a directory and touches nothing on it.
fn open_path(path: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
