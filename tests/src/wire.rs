//! What lies between the node and its sites: a bridge for each, in a namespace of its own, where packets are delayed by
//! netem and lost by nftables.
//!
//! Both happen on the way and not at an end: a sender whose own packet is dropped by a filter is told so, which no real
//! network does. The bridge family of nftables is there in kernels that know it for nothing else.

use std::time::Duration;

use crate::command::{checked, sh};
use crate::namespace::Namespace;

#[derive(Debug)]
pub struct Wire {
    inside: Namespace,
}

impl Wire {
    #[track_caller]
    pub fn new() -> Self {
        let wire = Self { inside: Namespace::new("wire") };
        wire.nft(
            "table bridge faults {
               set silenced { type ifname; }
               chain forward {
                 type filter hook forward priority filter; policy accept;
                 iifname @silenced drop
               }
             }",
        );
        wire
    }

    /// Joins the node, by a link `up-NAME` with the first address, to a site, by its `eth0` with the second.
    #[track_caller]
    pub fn join(&self, name: &str, site: &Namespace, ours: &str, theirs: &str) {
        let (wire, site_pid) = (self.inside.pid(), site.pid());
        sh(&format!(
            "ip link add up-{name} type veth peer name n-{name} netns {wire}
             ip addr add {ours}/30 dev up-{name}
             ip link set up-{name} up"
        ));
        self.inside.sh(&format!(
            "ip link add s-{name} type veth peer name eth0 netns {site_pid}
             ip link add br-{name} type bridge
             for end in n-{name} s-{name}; do ip link set $end master br-{name} up; done
             ip link set br-{name} up"
        ));
        site.sh(&format!("ip addr add {theirs}/30 dev eth0; ip link set eth0 up; ip route add default via {ours}"));
        // Neighbours are pinned: in a blackhole ARP would give up, and senders would be told what a real network hides.
        let our_mac = mac_of_uplink(name);
        let their_mac = mac(&site.sh("ip -br link show eth0"));
        sh(&format!("ip neigh replace {theirs} lladdr {their_mac} dev up-{name} nud permanent"));
        site.sh(&format!("ip neigh replace {ours} lladdr {our_mac} dev eth0 nud permanent"));
    }

    /// A second machine at a site's place, with no address yet.
    #[track_caller]
    pub fn join_standby(&self, name: &str, standby: &Namespace) {
        let pid = standby.pid();
        self.inside.sh(&format!(
            "ip link add t-{name} type veth peer name eth0 netns {pid}
             ip link set t-{name} master br-{name} up"
        ));
    }

    /// The site's address, that of its link as well, moves to the standby. The machine that had it is off the wire.
    #[track_caller]
    pub fn move_address(&self, name: &str, from: &Namespace, to: &Namespace, ours: &str, theirs: &str) {
        let mac = mac(&from.sh("ip -br link show eth0"));
        let our_mac = mac_of_uplink(name);
        self.inside.sh(&format!(
            "ip link set s-{name} down; ip link set s-{name} name o-{name}
             ip link set t-{name} down; ip link set t-{name} name s-{name}; ip link set s-{name} up"
        ));
        to.sh(&format!(
            "ip link set eth0 address {mac}; ip addr add {theirs}/30 dev eth0; ip link set eth0 up
             ip route add default via {ours}; ip neigh replace {ours} lladdr {our_mac} dev eth0 nud permanent"
        ));
    }

    /// Nothing passes to or from these sites any more: all of them at one moment.
    #[track_caller]
    pub fn silence(&self, sites: &[&str]) {
        let ends: Vec<String> = sites.iter().flat_map(|site| ends(site)).collect();
        self.nft(&format!("add element bridge faults silenced {{ {} }}", ends.join(", ")));
    }

    #[track_caller]
    pub fn delay(&self, site: &str, time: Duration) {
        self.netem(site, &format!("delay {}ms limit 100000", time.as_millis()));
    }

    /// The site's wire is as it was at first.
    #[track_caller]
    pub fn restore(&self, site: &str) {
        self.netem(site, "delay 0ms");
        // Added first, since what is not there can't be taken away.
        let ends = ends(site).join(", ");
        self.nft(&format!(
            "add element bridge faults silenced {{ {ends} }}
             delete element bridge faults silenced {{ {ends} }}"
        ));
    }

    /// The node's own link, address and route to a site are gone, or are back.
    #[track_caller]
    pub fn unplug(&self, site: &str) {
        sh(&format!("ip addr flush dev up-{site}; ip link set up-{site} down"));
    }

    #[track_caller]
    pub fn plug_in(&self, site: &str, ours: &str, theirs: &str, their_mac: &str) {
        sh(&format!(
            "ip addr add {ours}/30 dev up-{site}; ip link set up-{site} up
             ip neigh replace {theirs} lladdr {their_mac} dev up-{site} nud permanent"
        ));
    }

    #[track_caller]
    fn netem(&self, site: &str, what: &str) {
        for end in ends(site) {
            self.inside.sh(&format!("tc qdisc replace dev {end} root netem {what}"));
        }
    }

    /// One transaction.
    #[track_caller]
    fn nft(&self, rules: &str) {
        checked(&mut self.inside.command("nft", &["-f", "-"]), Some(rules));
    }
}

impl Default for Wire {
    fn default() -> Self {
        Self::new()
    }
}

#[track_caller]
fn mac_of_uplink(site: &str) -> String {
    mac(&sh(&format!("ip -br link show up-{site}")))
}

/// The address in what `ip -br link show` says.
fn mac(shown: &str) -> String {
    shown.split_whitespace().nth(2).map(str::to_owned).unwrap_or_default()
}

/// The wire's ends of a site's links: the node's, then its own.
fn ends(site: &str) -> [String; 2] {
    [format!("n-{site}"), format!("s-{site}")]
}
