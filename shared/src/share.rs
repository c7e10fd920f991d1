//! Something to mount.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::node_mount::NodeMount;
use crate::selector::{Labels, Selector};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub name: Name,
    pub gateway: Name,
    /// Absolute, without `..`: the path that the server exports.
    pub export: String,
    pub access: Access,
    pub policy: Policy,
    pub options: MountOptions,
    pub namespaces: Namespaces,
    /// Where it is mounted on every node as well, beside what pods ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_mount: Option<NodeMount>,
    /// On which nodes, if not on all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<Selector>,
    /// Directories of claims may be deleted with them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_delete: bool,
    /// It is for PersistentVolumes, and no pod has a volume of it by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_inline: bool,
}

impl Share {
    /// How long its server may be away until calls are ended; None is for ever.
    pub fn patience(&self) -> Option<Duration> {
        match self.policy {
            Policy::Hard => None,
            // An open may take two by itself.
            Policy::Soft => Some(2 * self.options.major_timeout()),
            Policy::Bounded { after } => Some(after),
        }
    }
}

/// What becomes of I/O while the server is away, and nothing may take its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Policy {
    /// It blocks, and goes on when a server is back. Nothing acknowledged is lost.
    #[default]
    Hard,
    /// The kernel gives calls up after their major timeout, and some not; what is on its way to a server that was away for two
    /// of them is aborted as under `Bounded`.
    Soft,
    /// It blocks until the server was away for so long; then what is pending is aborted, and what comes fails fast, until
    /// a server is back.
    Bounded { after: Duration },
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hard => f.write_str("hard"),
            Self::Soft => f.write_str("soft"),
            Self::Bounded { after } => write!(f, "bounded, {}", humantime::format_duration(*after)),
        }
    }
}

/// Options of the kernel's NFS client that a Share may choose. None is the default, which is the kernel's unless said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountOptions {
    /// Tenths of a second until a call is sent again; 600 by default.
    pub timeo: Option<u32>,
    /// How often it is sent again until the major timeout; 2 by default.
    pub retrans: Option<u32>,
    /// TCP connections to the server.
    pub nconnect: Option<u32>,
    /// How far the kernel reads ahead, in KiB. By default it is chosen by the measured round trip.
    pub readahead: Option<u32>,
    /// Bytes in one READ, and in one WRITE.
    pub rsize: Option<u32>,
    pub wsize: Option<u32>,
    /// Seconds for which attributes are believed without asking.
    pub actimeo: Option<u32>,
    /// No program is run from it.
    pub no_exec: bool,
}

/// The kernel's own limit, by TCP.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);

impl MountOptions {
    /// When the kernel gives a call up that may fail.
    pub fn major_timeout(&self) -> Duration {
        let (timeo, retrans) = (self.timeo.unwrap_or(600), self.retrans.unwrap_or(2));
        (Duration::from_millis(100) * timeo * (1 + retrans)).min(LONGEST_TIMEOUT)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => "ReadOnly",
            Self::ReadWrite => "ReadWrite",
        })
    }
}

/// The Kubernetes namespaces whose pods may use a share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespaces {
    All,
    Only(BTreeSet<Name>),
    /// Those that are named, and those that are labelled so.
    Labelled {
        names: BTreeSet<Name>,
        selector: Selector,
    },
}

impl Namespaces {
    /// None if its labels would tell, and are not known.
    pub fn allow(&self, namespace: &str, labels: Option<&Labels>) -> Option<bool> {
        let named = |names: &BTreeSet<Name>| names.iter().any(|name| name.as_str() == namespace);
        match self {
            Self::All => Some(true),
            Self::Only(names) => Some(named(names)),
            Self::Labelled { names, .. } if named(names) => Some(true),
            Self::Labelled { selector, .. } => labels.map(|labels| selector.takes(labels)),
        }
    }
}

/// Options that people know from mount.nfs and that would break what moorline promises.
pub(crate) fn why_not(option: &str) -> Option<&'static str> {
    Some(match option {
        "hard" | "soft" | "softerr" | "softreval" => "it is the Share's policy: hard, soft or bounded",
        "ro" | "rw" => "it is the Share's access",
        "sharecache" | "nosharecache" => "a superblock that others share would be aborted for one of them",
        "suid" | "nosuid" | "dev" | "nodev" => "volumes are always nosuid and nodev",
        "vers" | "nfsvers" | "minorversion" => "recovery rests on NFSv4.1",
        "proto" | "port" | "addr" | "clientaddr" | "mountaddr" => "it follows from the Gateway",
        "sec" => "only sec=sys is spoken; the tunnel encrypts",
        "nolock" | "local_lock" => "locks that the server does not know protect nobody on another node",
        "nocto" | "noac" | "lookupcache" => "what others wrote would be seen late, or every call would be asked twice",
        "intr" | "nointr" => "the kernel has ignored it for many years",
        "bg" | "fg" | "retry" => "the agent tries again by itself",
        "fatal_neterrors" => "a mount must outlive its network",
        _ => return None,
    })
}
