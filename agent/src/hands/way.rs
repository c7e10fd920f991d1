//! Ways on the node's own network: a TUN device that is known to be ours by its name and alias, and a route to one server.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use futures_util::TryStreamExt;
use moorline_shared::id::TargetId;
use moorline_shared::way::{Network, NodeNetwork, Way, device};
use moorline_sys::{namespace, tun};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::{Failure, doing};
use crate::host::network::{self as node_network, PROC_NET};
use crate::killpoint::{self, Point};
use crate::paths::HOST_NETWORK;

/// Whole before it stays by itself: a device goes with the hand that was making it.
pub(super) fn make(wanted: &Way) -> Result<(), Failure> {
    enter_host_network()?;
    tun::ensure_device().map_err(doing("make /dev/net/tun (does the agent's pod have MKNOD?)"))?;
    run(async |handle| {
        let links = links(handle).await?;
        let network = network(handle, &links).await?;
        if let Some(shadowed) = network.shadowed_by(wanted) {
            return Err(Failure::definite(shadowed));
        }
        let name = wanted.device();
        let fresh = match links.iter().find(|link| link.name == name) {
            Some(link) if link.way.as_ref() == Some(wanted) => None,
            Some(_) => {
                let message = format!("a device {name} is there that is not the one of this name that moorline makes: `ip link show {name}` says what it is; remove it");
                return Err(Failure::definite(message));
            }
            None => Some(tun::attach(&name).map_err(doing(
                "make a TUN device (does the agent's pod have NET_ADMIN, and its runtime allow character device 10:200?)",
            ))?),
        };
        configure(handle, wanted).await?;
        killpoint::hit(Point::WayConfigured);
        match fresh {
            Some(device) => tun::persist(&device).map_err(doing("make the TUN device persistent")),
            None => Ok(()),
        }
    })
}

/// Nothing is taken away but a device that says that it is ours.
pub(super) fn remove(target: &TargetId, unused: bool) -> Result<(), Failure> {
    enter_host_network()?;
    run(async |handle| {
        let links = links(handle).await?;
        let name = device(target);
        let Some(link) = links.iter().find(|link| link.name == name) else { return Ok(()) };
        let Some(way) = link.way.as_ref().filter(|way| way.target == *target) else {
            return Err(Failure::definite(format!("{name} is not the device that moorline made: it stays")));
        };
        let used = node_network::used_servers(Path::new(PROC_NET)).map_err(doing("list the node's NFS clients"))?;
        if unused && used.contains(&way.server) {
            return Err(Failure { definite: false, message: format!("somebody mounts from {} by now", way.server) });
        }
        handle.link().del(link.index).execute().await.map_err(netlink(format!("remove {name}")))
    })
}

fn enter_host_network() -> Result<(), Failure> {
    let network = File::open(HOST_NETWORK).map_err(doing(format!("open {HOST_NETWORK}")))?;
    namespace::enter_network(network).map_err(doing("enter the host's network namespace"))
}

fn run<T>(work: impl AsyncFnOnce(&Handle) -> Result<T, Failure>) -> Result<T, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(doing("start a runtime"))?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(doing("open a netlink socket"))?;
        let connection = tokio::spawn(connection);
        let outcome = work(&handle).await;
        connection.abort();
        outcome
    })
}

fn netlink(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Failure {
    let action = action.into();
    move |error| Failure { definite: false, message: format!("{action}: {error}") }
}

struct Link {
    index: u32,
    name: String,
    /// What it says of itself, if it is ours.
    way: Option<Way>,
}

async fn links(handle: &Handle) -> Result<Vec<Link>, Failure> {
    let mut dump = handle.link().get().execute();
    let mut links = Vec::new();
    while let Some(message) = dump.try_next().await.map_err(netlink("list the node's network devices"))? {
        let mut link = Link { index: message.header.index, name: String::new(), way: None };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.way = alias.parse().ok(),
                _ => {}
            }
        }
        link.way = link.way.filter(|way: &Way| way.device() == link.name);
        links.push(link);
    }
    Ok(links)
}

/// What the node's network has beside what is ours.
async fn network(handle: &Handle, links: &[Link]) -> Result<NodeNetwork, Failure> {
    let others = |index: u32| links.iter().find(|link| link.index == index && link.way.is_none());
    let mut network = NodeNetwork::default();
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.map_err(netlink("list the node's addresses"))? {
        let Some(link) = others(message.header.index) else { continue };
        for attribute in message.attributes {
            if let AddressAttribute::Address(address) | AddressAttribute::Local(address) = attribute {
                network.addresses.push((address, link.name.clone()));
            }
        }
    }
    for dump in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
        let mut routes = handle.route().get(dump).execute();
        while let Some(message) = routes.try_next().await.map_err(netlink("list the node's routes"))? {
            note_route(&message, links, &mut network);
        }
    }
    Ok(network)
}

fn note_route(route: &RouteMessage, links: &[Link], network: &mut NodeNetwork) {
    let RouteHeader { destination_prefix_length: length, table, kind, .. } = route.header;
    if table != RouteHeader::RT_TABLE_MAIN || kind == RouteType::Local || kind == RouteType::Broadcast {
        return;
    }
    let (mut prefix, mut by, mut index) = (None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => prefix = ip(address),
            RouteAttribute::Gateway(address) => by = ip(address),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            _ => {}
        }
    }
    let link = index.and_then(|index| links.iter().find(|link| link.index == index));
    if link.is_some_and(|link| link.way.is_some()) {
        return;
    }
    network.gateways.extend(by);
    // One that leads on to a router leaves room for single addresses below it, unless it is for a single one itself. Pod networks
    // name a router that is none: the node's own address there, or one that no network says is there.
    let is_own = by.is_none_or(|by| network.addresses.iter().any(|(address, _)| *address == by));
    let is_local = is_own || route.header.flags.contains(RouteFlags::Onlink);
    let whole = prefix.is_some_and(|prefix| length == if prefix.is_ipv4() { 32 } else { 128 });
    if let Some(prefix) = prefix
        && (is_local || whole)
    {
        let device = link.map_or_else(|| "a route of its own".to_owned(), |link| link.name.clone());
        network.networks.push(Network { prefix, length, device });
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// Once more is no harm: what is there stays.
async fn configure(handle: &Handle, wanted: &Way) -> Result<(), Failure> {
    let name = wanted.device();
    let found = handle.link().get().match_name(name.clone()).execute().try_next().await;
    let found = found.map_err(netlink(format!("find {name}")))?;
    let index = found
        .map(|link| link.header.index)
        .ok_or_else(|| Failure { definite: false, message: format!("{name} is gone by now") })?;
    let link = LinkUnspec::new_with_index(index)
        .append_extra_attribute(LinkAttribute::IfAlias(wanted.to_string()))
        .mtu(wanted.mtu)
        .up()
        .build();
    handle.link().set(link).execute().await.map_err(netlink(format!("set {name} up")))?;
    let length = |address: IpAddr| if address.is_ipv6() { 128 } else { 32 };
    let address = handle.address().add(index, wanted.address, length(wanted.address)).replace().execute().await;
    address.map_err(netlink(format!("give {name} the address {}", wanted.address)))?;
    let route = match wanted.server {
        IpAddr::V4(server) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(server, 32).output_interface(index).build()
        }
        IpAddr::V6(server) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(server, 128).output_interface(index).build()
        }
    };
    let route = handle.route().add(route).replace().execute().await;
    route.map_err(netlink(format!("lead {} through {name}", wanted.server)))
}
