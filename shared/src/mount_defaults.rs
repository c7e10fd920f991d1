//! What `mount -t nfs` on the node takes for granted of servers behind gateways of scope host: pods that mount them by
//! kubelet's own `nfs:` often can't say it themselves.

use serde::{Deserialize, Serialize};

use crate::objects::Objects;

/// Of a gateway's servers. Without any of it they are hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountDefaults {
    /// Calls are given up after the kernel's major timeout.
    pub soft: bool,
    /// Tenths of a second until a call is sent again.
    pub timeo: u32,
    /// How often it is sent again until the major timeout.
    pub retrans: u32,
}

impl Default for MountDefaults {
    fn default() -> Self {
        Self { soft: false, timeo: 600, retrans: 2 }
    }
}

/// By its first line the file is known to be ours.
pub const OURS: &str = "# moorline keeps this file";

/// nfsmount.conf(5) for all gateways of scope host; None where there is none.
pub fn file(objects: &Objects) -> Option<String> {
    let mut text = format!("{OURS}: it follows the Gateways of scope host, and goes with the last of them.\n");
    let before = text.len();
    for gateway in objects.gateways.values() {
        let MountDefaults { soft, timeo, retrans } = gateway.mount_defaults;
        for way in gateway.ways() {
            // Hard is what the kernel does by itself. Written down it would stand over a mount's own `soft`: mount.nfs holds no
            // two options for each other's opposite, and the file's comes last.
            let policy = if soft { "Soft=True\n" } else { "" };
            text += &format!(
                "\n# Gateway {}, target {}\n[ Server \"{}\" ]\nvers=4.1\n{policy}timeo={timeo}\nretrans={retrans}\n",
                way.target.gateway, way.target.target, way.server
            );
        }
    }
    (text.len() > before).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::InUse;
    use crate::yaml::parse;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn each_server_of_a_gateway_of_scope_host_has_a_section() {
        let text = format!(
            "apiVersion: moorline.io/v1alpha1\nkind: Gateway\nmetadata: {{name: gw}}\nspec:\n  scope: host\n  mountDefaults: {{policy: soft, acceptLostWrites: true, timeo: 100}}\n  tunnel: {{address: 10.0.0.2, privateKey: {KEY}}}\n  targets:\n  - {{name: a, endpoint: '192.0.2.1:1', publicKey: {KEY}, server: 10.90.0.1}}\n  - {{name: b, endpoint: '192.0.2.2:1', publicKey: {KEY}, server: 'fd00::1'}}\n"
        );
        let objects = |text: &str| {
            let (objects, problems) = Objects::default().revise(&parse("f", text).unwrap(), false, &InUse::default());
            assert!(problems.is_empty(), "{problems:?}");
            objects
        };
        let written = file(&objects(&text)).unwrap();
        assert!(written.starts_with(OURS), "{written}");
        for server in ["10.90.0.1", "fd00::1"] {
            let section = format!("[ Server \"{server}\" ]\nvers=4.1\nSoft=True\ntimeo=100\nretrans=2\n");
            assert!(written.contains(&section), "{written}");
        }
        let hard = text.replace("policy: soft, acceptLostWrites: true, ", "");
        assert!(file(&objects(&hard)).is_some_and(|text| !text.contains("ft=") && !text.contains("Hard")));
        let isolated = text.replace("  scope: host\n", "").replace("  mountDefaults", "  # mountDefaults");
        assert_eq!(file(&objects(&isolated)), None);
    }
}
