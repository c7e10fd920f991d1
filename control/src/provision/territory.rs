//! Which part of a server's file system a volume is, so that no two claims get the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use moorline_shared::gateway::Gateway;
use moorline_shared::name::Name;
use moorline_shared::share::Share;

/// A server, as far as it can be told from others by what Gateways say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    /// An address of the node's own network is one server's.
    OnNode(IpAddr),
    /// One inside a tunnel is one server's of that peer.
    Behind { peer: String, address: IpAddr },
}

impl Server {
    pub(crate) fn all_of(gateway: &Gateway) -> BTreeSet<Self> {
        let of_target = gateway.targets.iter().flat_map(|target| {
            let address = target.server;
            let behind = target.peer.as_ref().map(|peer| Self::Behind { peer: peer.public_key.to_string(), address });
            [gateway.is_on_host().then_some(Self::OnNode(address)), behind].into_iter().flatten()
        });
        of_target.collect()
    }

    pub(crate) fn address(&self) -> IpAddr {
        match self {
            Self::OnNode(address) | Self::Behind { address, .. } => *address,
        }
    }
}

pub(crate) type Servers = BTreeMap<Name, BTreeSet<Server>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Territory {
    root: Root,
    servers: BTreeSet<Server>,
    parts: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Root {
    /// By the paths that its servers export.
    Gateway(Name),
    /// One that is not known any more.
    Share(String),
}

impl Territory {
    pub(crate) fn of(shares: &BTreeMap<Name, Share>, servers: &Servers, share: &str, sub_dir: &str) -> Self {
        let known = share.parse::<Name>().ok().and_then(|name| shares.get(&name));
        match known {
            Some(share) => Self::at(&share.gateway, servers, &[&share.export, sub_dir].join("/")),
            None => Self { root: Root::Share(share.to_owned()), servers: BTreeSet::new(), parts: parts(sub_dir) },
        }
    }

    /// As a server of a Gateway exports it.
    pub(crate) fn at(gateway: &Name, servers: &Servers, path: &str) -> Self {
        let servers = servers.get(gateway).cloned().unwrap_or_default();
        Self { root: Root::Gateway(gateway.clone()), servers, parts: parts(path) }
    }

    /// The same directory, or one in it.
    pub(crate) fn contains(&self, other: &Self) -> bool {
        let same_server = self.root == other.root || !self.servers.is_disjoint(&other.servers);
        same_server && other.parts.starts_with(&self.parts)
    }
}

fn parts(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use moorline_shared::yaml::{self, Object};

    use super::*;
    use crate::provision::testing::share;

    #[test]
    fn a_directory_is_the_same_by_whichever_share_it_is_reached() {
        let shares: BTreeMap<Name, Share> =
            [share("wide", "/data"), share("narrow", "/data/team"), share("other", "/data-2")]
                .map(|it| (it.name.clone(), it))
                .into();
        let at = |share, sub_dir| Territory::of(&shares, &Servers::new(), share, sub_dir);
        assert!(at("wide", "team/a").contains(&at("narrow", "a")));
        assert!(at("narrow", "a").contains(&at("wide", "team/a/b")));
        assert!(at("wide", "").contains(&at("narrow", "a")));
        assert!(!at("wide", "team/a").contains(&at("wide", "team/ab")));
        assert!(!at("wide", "a").contains(&at("other", "a")));
        assert!(at("gone", "a").contains(&at("gone", "a/b")) && !at("gone", "a").contains(&at("wide", "a")));
    }

    #[test]
    fn two_gateways_that_lead_to_one_server_have_one_file_system() {
        const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        const OTHER: &str = "AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let tunnel = |name: &str, scope: &str, key: &str| {
            format!(
                "apiVersion: moorline.io/v1alpha1\nkind: Gateway\nmetadata: {{name: {name}}}\nspec:\n  scope: {scope}\n  tunnel: {{address: 10.0.0.2, privateKey: {KEY}}}\n  targets: [{{name: a, endpoint: '192.0.2.1:1', publicKey: {key}, server: 10.0.0.1}}]\n"
            )
        };
        let direct = "apiVersion: moorline.io/v1alpha1\nkind: Gateway\nmetadata: {name: lan}\nspec: {path: direct, targets: [{name: a, server: 10.0.0.1}]}\n";
        let text = [
            tunnel("isolated", "isolated", KEY),
            tunnel("on-host", "host", KEY),
            tunnel("elsewhere", "isolated", OTHER),
            direct.to_owned(),
        ];
        let gateways = yaml::parse("f.yaml", &text.join("---\n")).unwrap().into_iter().map(|it| match it.object {
            Object::Gateway(gateway) => gateway,
            Object::Share(_) => unreachable!(),
        });
        let servers: Servers = gateways.map(|gateway| (gateway.name.clone(), Server::all_of(&gateway))).collect();
        let meet = |one: &str, other: &str| {
            let at = |gateway: &str, path| Territory::at(&gateway.parse().unwrap(), &servers, path);
            at(one, "/data").contains(&at(other, "/data/a"))
        };
        assert!(meet("isolated", "on-host") && meet("on-host", "isolated"), "one peer's");
        assert!(meet("on-host", "lan") && meet("lan", "on-host"), "one address of the node's network");
        assert!(!meet("isolated", "lan") && !meet("elsewhere", "isolated"), "one address of two networks");
    }
}
