//! What must happen in other namespaces, or may block on a dead server: done in a re-exec of this binary, with one
//! thread, which may be killed or left behind. Requests come as lines of JSON on stdin, replies go so to stdout.

mod abort;
mod call;
mod detach;
mod errand;
mod hide;
mod label;
mod look;
mod mark;
mod mount;
mod mount_defaults;
mod namespace;
mod prepare;
mod publish;
mod replace;
mod seal;
mod shut_down;
mod way;

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::net::IpAddr;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use moorline_shared::errand::Errand;
use moorline_shared::id::{NamespaceId, SuperblockId, TargetId};
use moorline_shared::plan::Tuning;
use moorline_shared::publication::Publication;
use moorline_shared::share::MountOptions;
use moorline_shared::sub_dir::SubDir;
use moorline_shared::usage::Usage;
use moorline_shared::way::Way;
use moorline_sys::mountinfo::Mount as Mounted;
use moorline_sys::namespace as sys_namespace;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, getppid};
use serde::{Deserialize, Serialize};

pub(crate) use call::left_behind;
pub use call::{Hands, HandsError};
pub use label::{Label, LabelError};
pub(crate) use mark::ENDED;
pub(crate) use seal::is_seal;

use crate::killpoint;
use crate::paths::{HOST_MOUNTS, Paths};
use crate::table::Table;

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
    /// Give the node's own network namespace this name, and its NFS client one if it has none.
    NameHostNetwork {
        id: NamespaceId,
        client_identifier: String,
    },
    /// End the read-write superblocks of a namespace for good, where the kernel can.
    ShutDown(NamespaceId),
    RemoveNamespace(NamespaceId),
    /// Make what leads to a server on the node's own network, or what is missing of it.
    MakeWay(Way),
    RemoveWay {
        target: TargetId,
        /// Not if anybody has a mount from its server.
        unused: bool,
    },
    /// Have this file there, or none.
    SetMountDefaults {
        text: Option<String>,
    },
    Mount(Mount),
    Publish(Publish),
    Replace(Replace),
    Flush {
        superblock: SuperblockId,
    },
    Abort {
        superblock: SuperblockId,
    },
    Look {
        superblock: SuperblockId,
    },
    /// Do something with a directory of the share.
    Errand {
        superblock: SuperblockId,
        errand: Errand,
    },
    /// Detach what is ours at the target, whoever uses it, unless that is a program of the node's.
    Detach {
        target_path: PathBuf,
        node: bool,
    },
    Unpublish {
        target_path: PathBuf,
        /// A node mount, which is taken from nobody.
        node: bool,
    },
    /// Leave nothing of it on the host that kubelet would meet.
    Hide {
        publication: Publication,
    },
    Retire {
        superblock: SuperblockId,
        abort: bool,
    },
}

impl Work {
    /// Whether a process that has done it, and is back in the host's mount namespace, is as it was: what enters a network
    /// namespace is not. And nothing that waits for a server, unless it is asked of one that answers.
    fn leaves_no_trace(&self) -> bool {
        // A node mount that is in use is waited for.
        matches!(
            self,
            Self::Publish(_)
                | Self::Unpublish { node: false, .. }
                | Self::Detach { .. }
                | Self::Hide { .. }
                | Self::Replace(_)
                | Self::Look { .. }
                | Self::Errand { .. }
        )
    }
}

impl Work {
    /// What somebody may see when it is done.
    pub(crate) fn shows(&self) -> Option<&SuperblockId> {
        match self {
            Self::Mount(Mount { superblock, .. }) | Self::Publish(Publish { superblock, .. }) => Some(superblock),
            Self::Replace(replace) => Some(&replace.new),
            _ => None,
        }
    }
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
    /// What containers see its files with, where SELinux has a say.
    pub label: Label,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Publish {
    pub superblock: SuperblockId,
    pub target_path: PathBuf,
    pub sub_dir: Option<SubDir>,
    pub read_only: bool,
    pub node: bool,
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
    /// What a look has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What an errand did, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<String>,
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

    /// The same, with what it is that failed.
    fn of(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }
}

/// An I/O error with the action that met it.
fn doing(action: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let action = action.into();
    move |error| Failure { definite: false, message: format!("{action}: {error}") }
}

/// The whole life of a hand: a reply to each request, until nobody is left who could ask. `agent` is the process whose hand it
/// is.
pub fn main(agent: Option<i32>) -> ExitCode {
    // The agent's death is its hands' as well: the next agent finds no work of the last one under way. Where the kernel
    // does not let it end, it ends when it is let go.
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        let failure: Result<Done, Failure> = Err(doing("ask to end with the agent")(error.into()));
        let _ = reply(&failure);
        return ExitCode::FAILURE;
    }
    // An agent that died before this was asked for has left its request in the pipe all the same.
    if agent.is_none() || getppid().map(Pid::as_raw_pid) != agent {
        return ExitCode::FAILURE;
    }
    // Its standard error is the agent's log, which holds whole lines of its own format and nothing else.
    panic::set_hook(Box::new(|bug| {
        // Nobody is left who could be told if this fails.
        let _ = reply(&Err(Failure { definite: false, message: format!("a bug: {bug}") }));
    }));
    let (mut requests, mut line) = (io::stdin().lock(), Vec::new());
    loop {
        line.clear();
        match requests.read_until(b'\n', &mut line) {
            Ok(0) => return ExitCode::SUCCESS,
            Ok(_) => {}
            Err(_) => return ExitCode::FAILURE,
        }
        let request = serde_json::from_slice::<Request>(&line);
        let result = match &request {
            Ok(request) => perform(request).inspect(|_| killpoint::hit(killpoint::untold(&request.work))),
            Err(error) => Err(Failure { definite: false, message: format!("read the request: {error}") }),
        };
        // Before it says that it is done: a container's mounts are not to be held by who waits for the next request.
        let at_home = request.is_ok_and(|request| request.work.leaves_no_trace() && enter_host_mounts().is_ok());
        if reply(&result).is_err() {
            return ExitCode::FAILURE;
        }
        if !at_home {
            return ExitCode::SUCCESS;
        }
    }
}

fn reply(result: &Result<Done, Failure>) -> io::Result<()> {
    let mut text = serde_json::to_vec(result)?;
    text.push(b'\n');
    io::stdout().write_all(&text)
}

fn perform(request: &Request) -> Result<Done, Failure> {
    let paths = &request.paths;
    let done = match &request.work {
        Work::Prepare => prepare::prepare(paths),
        Work::MakeNamespace(wanted) => namespace::make(paths, wanted),
        Work::NameHostNetwork { id, client_identifier } => namespace::name_host_network(paths, id, client_identifier),
        Work::ShutDown(id) => shut_down::shut_down(paths, id),
        Work::RemoveNamespace(id) => namespace::remove(paths, id),
        Work::MakeWay(wanted) => way::make(wanted),
        Work::RemoveWay { target, unused } => way::remove(target, *unused),
        Work::SetMountDefaults { text } => mount_defaults::set(paths, text.as_deref()),
        Work::Mount(wanted) => mount::mount(paths, wanted),
        Work::Publish(wanted) => publish::publish(paths, wanted),
        Work::Replace(wanted) => return replace::replace(paths, wanted),
        Work::Flush { superblock } => detach::flush_alone(paths, superblock),
        Work::Abort { superblock } => abort::abort(paths, superblock),
        Work::Look { superblock } => {
            return look::look(paths, superblock).map(|usage| Done { usage: Some(usage), ..Done::default() });
        }
        Work::Errand { superblock, errand } => {
            return errand::errand(paths, superblock, errand)
                .map(|words| Done { words: Some(words), ..Done::default() });
        }
        Work::Detach { target_path, node } => detach::detach(paths, target_path, *node),
        Work::Unpublish { target_path, node } => detach::unpublish(paths, target_path, *node),
        Work::Hide { publication } => hide::hide(paths, publication),
        Work::Retire { superblock, abort } => detach::retire(paths, superblock, *abort),
    };
    done.map(|()| Done::default())
}

fn enter_host_mounts() -> Result<(), Failure> {
    /// Opened once: a container's namespace, from which a hand comes back, need not have a /proc, and not the host's.
    static HOST: OnceLock<File> = OnceLock::new();
    let entered = match HOST.get() {
        Some(host) => sys_namespace::enter_mounts(host),
        None => File::open(HOST_MOUNTS).and_then(|host| sys_namespace::enter_mounts(HOST.get_or_init(|| host))),
    };
    entered.map_err(doing(
        "enter the host's mount namespace (does the agent's pod have hostPID, SYS_ADMIN, SYS_CHROOT and SYS_PTRACE, and where SELinux enforces the type spc_t?)",
    ))
}

/// The host's mount table, which many a request of one hand finds as the last one left it.
fn host_table() -> Result<Arc<Vec<Mounted>>, Failure> {
    static TABLE: Table = Table::new();
    TABLE.mounts().map_err(doing("read the host's mount table"))
}

/// Whether something is mounted there on the host.
fn is_mount(path: &Path) -> Result<bool, Failure> {
    Ok(host_table()?.iter().any(|mount| mount.mount_point == path))
}

/// A descriptor that names a directory and touches nothing on it.
fn open_path(path: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
