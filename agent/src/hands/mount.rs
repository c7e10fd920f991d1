//! New superblocks of the kernel's NFS client.

use std::fs::{self, File};
use std::net::IpAddr;

use moorline_sys::mount::{self, Setting};
use moorline_sys::mountinfo::Attributes;
use moorline_sys::namespace;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::{Failure, Label, Mount, doing, enter_host_mounts, mark};
use crate::killpoint::{self, Point};
use crate::paths::{Paths, from_agent};

pub(super) fn mount(paths: &Paths, wanted: &Mount) -> Result<(), Failure> {
    let network = from_agent(&paths.namespace(&wanted.superblock.namespace));
    let network = File::open(&network).map_err(doing(format!("open {}", network.display())))?;
    // The client's sockets stay in the network namespace that this process is in when it makes the superblock.
    namespace::enter_network(network).map_err(doing("enter the network namespace"))?;
    enter_host_mounts()?;
    // Of an earlier one of the same name, which is gone.
    mark::remove(paths, &wanted.superblock)?;

    let what = format!("mount {}:{} for Share {}", wanted.server, wanted.export, wanted.superblock.share);
    let label = wanted.label.where_it_counts().map_err(|failure| failure.of(&what))?;
    let server = wanted.server.to_string();
    let source = match wanted.server {
        IpAddr::V4(_) => format!("{server}:{}", wanted.export),
        IpAddr::V6(_) => format!("[{server}]:{}", wanted.export),
    };
    let read_only = !wanted.superblock.user.writes();
    let options = &wanted.options;
    let numbers = [
        ("timeo", options.timeo.or(Some(600))),
        ("retrans", options.retrans.or(Some(2))),
        ("nconnect", Some(wanted.tuning.nconnect)),
        ("rsize", options.rsize),
        ("wsize", options.wsize),
        ("actimeo", options.actimeo),
    ];
    let numbers: Vec<(&str, String)> =
        numbers.into_iter().filter_map(|(name, number)| Some((name, number?.to_string()))).collect();
    let mut settings = vec![
        Setting::Value("source", &source),
        Setting::Value("addr", &server),
        Setting::Value("clientaddr", if wanted.server.is_ipv6() { "::" } else { "0.0.0.0" }),
        Setting::Value("vers", "4.1"),
        Setting::Value("proto", if wanted.server.is_ipv6() { "tcp6" } else { "tcp" }),
        Setting::Value("sec", "sys"),
        Setting::Flag(if wanted.soft { "soft" } else { "hard" }),
        // The kernel aborts by superblock: what is done for one user of a share must not reach another.
        Setting::Flag("nosharecache"),
        // Newer kernels give up a hard mount outside the first network namespace when its network is down.
        Setting::IfKnown("fatal_neterrors", "none"),
        Setting::Flag(if read_only { "ro" } else { "rw" }),
    ];
    settings.extend(numbers.iter().map(|(name, number)| Setting::Value(name, number)));
    // One for all, and no pod's own: a superblock has one label for good, and who may use a share is said elsewhere.
    settings.extend(label.map(|label| Setting::Value("context", label.as_str())));
    let attributes = Attributes { read_only, no_suid: true, no_dev: true, no_exec: options.no_exec };
    let mounted =
        mount::create("nfs4", &settings, attributes).map_err(|refusal| explain(&what, wanted, label, &refusal))?;
    killpoint::hit(Point::SuperblockMade);
    read_ahead(&mounted, wanted.tuning.readahead)?;
    let base = paths.base(&wanted.superblock);
    match fs::create_dir(&base) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(doing(format!("make {}", base.display()))(error));
        }
        _ => {}
    }
    killpoint::hit(Point::BaseMade);
    mount::attach(&mounted, &base).map_err(doing(format!("mount {}", base.display())))
}

/// Readahead belongs to the superblock's backing device, and is no mount option. Set before the mount has a place: what is
/// found mounted is taken for whole.
fn read_ahead(mounted: &OwnedFd, kib: u32) -> Result<(), Failure> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let root =
        statx(mounted, "", flags, StatxFlags::empty()).map_err(|error| doing("look at the mount")(error.into()))?;
    let file = format!("/sys/class/bdi/{}:{}/read_ahead_kb", root.stx_dev_major, root.stx_dev_minor);
    fs::write(&file, kib.to_string()).map_err(doing(format!("write {file}")))
}

fn explain(what: &str, wanted: &Mount, label: Option<&Label>, refusal: &mount::Refusal) -> Failure {
    let Mount { superblock, export, .. } = wanted;
    match refusal.error.raw_os_error() {
        Some(nix::libc::ENOENT) => Failure::definite(format!(
            "{what}: the server at {} has no export {export}, or nothing at that path: correct the Share's spec.export or export it there: {refusal}",
            superblock.namespace.target
        )),
        Some(nix::libc::EACCES | nix::libc::EPERM) => Failure::definite(format!(
            "{what}: the server at {} refuses this client: does it export {export} to this node's tunnel address?{} {refusal}",
            superblock.namespace.target,
            label
                .map(|label| format!(" Or SELinux refuses the agent to give it the label {label}: is its type spc_t?"))
                .unwrap_or_default()
        )),
        _ => Failure { definite: false, message: format!("{what}: {refusal}") },
    }
}
