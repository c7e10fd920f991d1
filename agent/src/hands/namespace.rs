//! Network namespaces with nothing in them but a TUN device, an address, and a route to one server.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use futures_util::TryStreamExt;
use moorline_shared::id::NamespaceId;
use moorline_sys::mount::{self, Setting};
use moorline_sys::mountinfo::Attributes;
use moorline_sys::{namespace, tun};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use sys_mount::{MountFlags, UnmountFlags};

use super::{Failure, Namespace, doing, enter_host_mounts};
use crate::killpoint::{self, Point};
use crate::paths::{Paths, TUN_NAME};

/// Makes the namespace whole before it gets its name: a hand that is cut short leaves nothing behind.
pub(super) fn make(paths: &Paths, wanted: &Namespace) -> Result<(), Failure> {
    tun::ensure_device().map_err(doing("make /dev/net/tun (does the agent's pod have MKNOD?)"))?;
    namespace::new_network().map_err(doing("make a network namespace"))?;
    killpoint::hit(Point::NamespaceEmpty);
    let device = tun::attach(TUN_NAME).map_err(doing(
        "make a TUN device (does the agent's pod have NET_ADMIN, and its runtime allow character device 10:200?)",
    ))?;
    tun::persist(&device).map_err(doing("make the TUN device persistent"))?;
    killpoint::hit(Point::DeviceMade);
    configure(wanted)?;
    killpoint::hit(Point::NamespaceConfigured);
    name_client(&wanted.client_identifier)?;
    enter_host_mounts()?;
    killpoint::hit(Point::ClientNamed);
    bind("/proc/self/ns/net", &paths.namespace(&wanted.id))
}

/// Under a name like any other's, so that whoever goes there need not know the difference. An NFS client that was given a
/// name keeps it: it is not ours alone. One that was not has the host's name, which others may have as well; mounts that
/// are there keep that.
pub(super) fn name_host_network(paths: &Paths, id: &NamespaceId, client_identifier: &str) -> Result<(), Failure> {
    enter_host_mounts()?;
    load_client();
    let named = fs::read_to_string(CLIENT).map_err(doing(no_client("read")))?;
    if matches!(named.trim(), "" | "(null)") {
        fs::write(CLIENT, client_identifier).map_err(doing(no_client("write")))?;
    }
    bind("/proc/1/ns/net", &paths.namespace(id))
}

fn bind(namespace: &str, path: &Path) -> Result<(), Failure> {
    fs::write(path, b"").map_err(doing(format!("make {}", path.display())))?;
    killpoint::hit(Point::NamespaceFileMade);
    sys_mount::Mount::builder()
        .flags(MountFlags::BIND)
        .mount(namespace, path)
        .map(drop)
        .map_err(doing(format!("bind the network namespace to {}", path.display())))
}

pub(super) fn remove(paths: &Paths, id: &NamespaceId) -> Result<(), Failure> {
    enter_host_mounts()?;
    let path = paths.namespace(id);
    match sys_mount::unmount(&path, UnmountFlags::DETACH) {
        Ok(()) => {}
        // Not a mount point, or gone: what a `make` or a removal that was cut short has left.
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::ENOENT)) => {}
        Err(error) => return Err(doing(format!("unmount {}", path.display()))(error)),
    }
    killpoint::hit(Point::NamespaceUnbound);
    remove_file(&paths.fence(id))?;
    killpoint::hit(Point::MarkRemoved);
    // Last: as long as it is there, somebody comes back for what was left.
    remove_file(&path)
}

fn remove_file(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(doing(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Addresses, links and routes of the namespace that this process is in.
fn configure(wanted: &Namespace) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(doing("start a runtime"))?;
    runtime.block_on(configure_links(wanted)).map_err(|error| Failure {
        definite: false,
        message: format!("configure the network namespace of {}: {error}", wanted.id),
    })
}

async fn configure_links(wanted: &Namespace) -> Result<(), rtnetlink::Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|_| rtnetlink::Error::RequestFailed)?;
    let connection = tokio::spawn(connection);
    let loopback = link_index(&handle, "lo").await?;
    handle.link().set(LinkUnspec::new_with_index(loopback).up().build()).execute().await?;
    let device = link_index(&handle, TUN_NAME).await?;
    handle.link().set(LinkUnspec::new_with_index(device).mtu(wanted.mtu).up().build()).execute().await?;
    handle.address().add(device, wanted.address, if wanted.address.is_ipv6() { 128 } else { 32 }).execute().await?;
    match wanted.server {
        IpAddr::V4(server) => {
            let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(server, 32)
                .output_interface(device)
                .build();
            handle.route().add(route).execute().await?;
        }
        IpAddr::V6(server) => {
            let route = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(server, 128)
                .output_interface(device)
                .build();
            handle.route().add(route).execute().await?;
        }
    }
    connection.abort();
    Ok(())
}

async fn link_index(handle: &rtnetlink::Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let link = handle.link().get().match_name(name.to_owned()).execute().try_next().await?;
    link.map(|link| link.header.index).ok_or(rtnetlink::Error::RequestFailed)
}

/// Two clients of one name steal each other's leases and locks, so the name is set before the first mount. The file
/// is the namespace's own only through a sysfs mounted in it.
fn name_client(identifier: &str) -> Result<(), Failure> {
    namespace::private_mounts().map_err(doing("make a private mount namespace"))?;
    load_client();
    let sysfs = mount::create("sysfs", &[] as &[Setting<'_>], Attributes::default()).map_err(|refusal| Failure {
        definite: false,
        message: format!("make a sysfs for the network namespace: {refusal}"),
    })?;
    mount::attach(&sysfs, Path::new("/sys")).map_err(doing("mount a sysfs"))?;
    fs::write(CLIENT, identifier).map_err(doing(no_client("write")))
}

/// The name of a network namespace's NFS client.
const CLIENT: &str = "/sys/fs/nfs/net/nfs_client/identifier";

/// Asking for the file system loads its module, where it is one; only a mount would need its options.
fn load_client() {
    drop(mount::create("nfs4", &[], Attributes::default()));
}

fn no_client(action: &str) -> String {
    format!("{action} {CLIENT} (has this kernel an NFS client? try `modprobe nfs` on the host)")
}
