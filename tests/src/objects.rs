//! The objects a scenario gives to its agent, written as people write them: YAML in a folder.

use std::fmt::Write;

use crate::node::{INNER, SOLO_INNER};
use crate::site::Site;

/// Where the agent finds the gateways' private keys.
pub const KEYS: &str = "/etc/moorline-keys";

/// A Gateway over these sites, the failover order. The node has a key and an address for two: `gw` and `solo`.
pub fn gateway(name: &str, shared_data: bool, sites: &[&Site]) -> String {
    let inner = if name == "solo" { SOLO_INNER } else { INNER };
    let mut yaml = head(name, "tunnel", shared_data);
    yaml += &format!("  tunnel: {{address: {inner}, privateKeyFile: {KEYS}/{name}.key, mtu: 1420}}\n  targets:\n");
    for site in sites {
        let (name, endpoint, key, server) = (site.name(), site.endpoint(), site.public_key(), site.server());
        // Writing to a String cannot fail.
        let _ =
            writeln!(yaml, "  - {{name: {name}, endpoint: \"{endpoint}\", publicKey: \"{key}\", server: {server}}}");
    }
    yaml
}

/// The same without a tunnel: the node's own network leads to the sites.
pub fn direct_gateway(name: &str, shared_data: bool, sites: &[&Site]) -> String {
    let mut yaml = head(name, "direct", shared_data) + "  targets:\n";
    for site in sites {
        // Writing to a String cannot fail.
        let _ = writeln!(yaml, "  - {{name: {}, server: {}}}", site.name(), site.direct_server());
    }
    yaml
}

/// A Gateway as far as the way to its targets makes no difference.
fn head(name: &str, path: &str, shared_data: bool) -> String {
    format!(
        "apiVersion: moorline.io/v1alpha1
kind: Gateway
metadata: {{name: {name}}}
spec:
  path: {path}
  sharedData: {shared_data}
"
    )
}

/// A Share that pods of the namespace `training` may use.
pub fn share(name: &str, gateway: &str, access: &str) -> String {
    share_of(name, gateway, name, access)
}

/// A Share of an export of another name.
pub fn share_of(name: &str, gateway: &str, export: &str, access: &str) -> String {
    format!(
        "apiVersion: moorline.io/v1alpha1
kind: Share
metadata: {{name: {name}}}
spec: {{gateway: {gateway}, export: /{export}, access: {access}, namespaces: [training]}}
"
    )
}

/// The same with further lines in its spec, as `policy: soft`.
pub fn share_with(name: &str, gateway: &str, export: &str, access: &str, more: &str) -> String {
    let share = share_of(name, gateway, export, access);
    if more.is_empty() { share } else { share.replace("namespaces:", &format!("{more}, namespaces:")) }
}

/// The usual pair: `datasets`, read-only, and `checkpoints`, read-write, on one gateway `gw`.
pub fn usual(shared_data: bool, sites: &[&Site]) -> String {
    let parts = [
        gateway("gw", shared_data, sites),
        share("datasets", "gw", "ReadOnly"),
        share("checkpoints", "gw", "ReadWrite"),
    ];
    parts.join("---\n")
}
