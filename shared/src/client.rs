//! How the node's NFS clients name themselves to servers. Two clients of one name steal each other's lease and locks.

use crate::id::{TargetId, fingerprint};

/// The kernel takes that much of a name, and no more.
pub const LONGEST: usize = 63;

/// What all clients of a node have in common, over upgrades and reboots, and no other node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    pub node: String,
    /// The machine's own id. Machines made of one image may have the same.
    pub machine: String,
    /// What the hardware, or whoever plays it, says of itself; often nothing.
    pub hardware: String,
    /// Made at random when an agent first ran here.
    pub kept: String,
}

impl ClientIdentity {
    /// The client in the network namespace of a target, or in the node's own: a target's address may be another's as well.
    /// A digest, since the names of nodes are long; the node's name before it is for people.
    pub fn identifier(&self, target: Option<&TargetId>) -> String {
        let Self { node, machine, hardware, kept } = self;
        let target = target.map(ToString::to_string).unwrap_or_default();
        // None of them has a line break.
        let digest = fingerprint(&[node, machine, hardware, kept, &target].map(String::as_str).join("\n"));
        let shown: String =
            node.chars().filter(char::is_ascii).take(LONGEST - digest.len() - "moorline//".len()).collect();
        format!("moorline/{shown}/{digest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> ClientIdentity {
        let [node, machine, hardware, kept] = ["n", "m", "h", "k"].map(str::to_owned);
        ClientIdentity { node, machine, hardware, kept }
    }

    fn target(name: &str) -> TargetId {
        TargetId { gateway: "gw".parse().unwrap(), target: name.parse().unwrap() }
    }

    #[test]
    fn whatever_differs_makes_another_name() {
        let same = identity().identifier(Some(&target("a")));
        assert_eq!(same, identity().identifier(Some(&target("a"))), "it is stable");
        let other = "other".to_owned();
        let others = [
            identity().identifier(Some(&target("b"))),
            identity().identifier(None),
            ClientIdentity { node: other.clone(), ..identity() }.identifier(Some(&target("a"))),
            ClientIdentity { machine: other.clone(), ..identity() }.identifier(Some(&target("a"))),
            ClientIdentity { hardware: other.clone(), ..identity() }.identifier(Some(&target("a"))),
            ClientIdentity { kept: other, ..identity() }.identifier(Some(&target("a"))),
        ];
        assert!(others.iter().all(|name| *name != same), "{same} {others:?}");
    }

    #[test]
    fn what_tells_clients_apart_is_in_what_the_kernel_takes() {
        let node = "ip-10-0-12-34.eu-central-1.compute.internal".repeat(5);
        let long = ClientIdentity { node, ..identity() };
        let (a, b) = (long.identifier(Some(&target("a"))), long.identifier(Some(&target("b"))));
        assert!(a.len() <= LONGEST && b.len() <= LONGEST, "{a} {b}");
        assert_ne!(a, b);
    }
}
