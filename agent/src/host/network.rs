//! The node's own network, as the kernel's files show it: ways of ours, and the servers that are mounted from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use moorline_shared::id::TargetId;
use moorline_shared::way::{DEVICES, Way};

/// The files of the host's first process, whose network namespace is the node's.
pub(crate) const PROC_NET: &str = "/proc/1/net";

/// Ways of ours, and whether each is whole. A device is ours if its name and its alias say the same.
pub(super) fn ways(devices: &Path, net: &Path) -> io::Result<BTreeMap<TargetId, (Way, bool)>> {
    let mut ways = BTreeMap::new();
    for entry in fs::read_dir(devices)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(DEVICES)) else { continue };
        // One that is gone by now, or somebody else's.
        let alias = fs::read_to_string(devices.join(name).join("ifalias")).unwrap_or_default();
        if let Ok(way) = alias.parse::<Way>()
            && way.device() == name
        {
            ways.insert(way.target.clone(), (way, false));
        }
    }
    if ways.is_empty() {
        return Ok(ways);
    }
    let mut routes = routes(&fs::read_to_string(net.join("route"))?);
    // A kernel without IPv6 has none of these.
    routes.extend(routes_of_ipv6(&fs::read_to_string(net.join("ipv6_route")).unwrap_or_default()));
    for (way, whole) in ways.values_mut() {
        *whole = routes.contains(&(way.server, way.device()));
    }
    Ok(ways)
}

/// Servers that NFS clients of a network namespace speak to. They are there for as long as anything holds a superblock: a
/// mount in whatever namespace, a descriptor of one that is mounted no more.
pub(crate) fn used_servers(net: &Path) -> io::Result<BTreeSet<IpAddr>> {
    match fs::read_to_string(net.join("nfsfs/servers")) {
        Ok(text) => Ok(servers(&text)),
        // The client's module is not loaded.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// Lines such as `v4 0a5a0001  801   2 10.90.0.1`, below a heading.
fn servers(text: &str) -> BTreeSet<IpAddr> {
    let address = |line: &str| {
        let digits = line.split_whitespace().nth(1)?;
        match digits.len() {
            8 => u32::from_str_radix(digits, 16).ok().map(|bits| Ipv4Addr::from_bits(bits).into()),
            32 => u128::from_str_radix(digits, 16).ok().map(|bits| Ipv6Addr::from_bits(bits).into()),
            _ => None,
        }
    };
    text.lines().filter_map(address).collect()
}

/// Single addresses, and the device that each is led to: lines such as `eth0 0100000A 00000000 0005 0 0 0 FFFFFFFF 0 0 0`,
/// the bytes of an address in the machine's order.
fn routes(text: &str) -> BTreeSet<(IpAddr, String)> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [device, destination, _, _, _, _, _, "FFFFFFFF", ..] = fields[..] else { return None };
        let bytes = u32::from_str_radix(destination, 16).ok()?.to_ne_bytes();
        Some((Ipv4Addr::from(bytes).into(), device.to_owned()))
    };
    text.lines().filter_map(route).collect()
}

/// Lines of which the first field is the destination, the second its prefix length (80 in hexadecimal) and the last the
/// device.
fn routes_of_ipv6(text: &str) -> BTreeSet<(IpAddr, String)> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, "80", .., device] = fields[..] else { return None };
        let bits = u128::from_str_radix(destination, 16).ok()?;
        Some((Ipv6Addr::from_bits(bits).into(), device.to_owned()))
    };
    text.lines().filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
        items.into_iter().collect()
    }

    #[test]
    fn servers_are_read_in_both_families() {
        let text = "NV SERVER   PORT USE HOSTNAME\nv4 0a5a0001  801   2 10.90.0.1\nv4 fd000000000000000000000000000001  801   1 fd00::1\n";
        assert_eq!(servers(text), set(["10.90.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]));
    }

    #[test]
    fn a_way_is_whole_when_its_servers_route_leads_to_it() {
        let folder = std::env::temp_dir().join(format!("moorline-ways-{}", std::process::id()));
        let way: Way = "moorline gw.a to 10.90.0.1 from 10.90.0.2 mtu 1420".parse().unwrap();
        let (devices, net) = (folder.join("devices"), folder.join("net"));
        fs::create_dir_all(&net).unwrap();
        for (name, alias) in [(way.device(), way.to_string()), ("moorlineother".into(), way.to_string())] {
            fs::create_dir_all(devices.join(&name)).unwrap();
            fs::write(devices.join(&name).join("ifalias"), format!("{alias}\n")).unwrap();
        }
        let route = |device: &str| {
            let bits = u32::from_ne_bytes([10, 90, 0, 1]);
            let lines = format!(
                "Iface Destination Gateway\n{device}\t{bits:08X}\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n"
            );
            fs::write(net.join("route"), lines).unwrap();
            ways(&devices, &net).unwrap()
        };
        assert_eq!(route("eth0"), BTreeMap::from([(way.target.clone(), (way.clone(), false))]));
        assert_eq!(route(&way.device()), BTreeMap::from([(way.target.clone(), (way.clone(), true))]));
        for name in [way.device().as_str(), "moorlineother"] {
            fs::remove_file(devices.join(name).join("ifalias")).unwrap();
            fs::remove_dir(devices.join(name)).unwrap();
        }
        fs::remove_file(net.join("route")).unwrap();
        [net, devices, folder].iter().for_each(|left| fs::remove_dir(left).unwrap());
    }

    #[test]
    fn a_route_of_ipv6_is_read() {
        let line = "fd000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000400 00000001 00000000 00000001 moorline1234567\n";
        assert_eq!(routes_of_ipv6(line), set([("fd00::1".parse().unwrap(), "moorline1234567".to_owned())]));
    }
}
