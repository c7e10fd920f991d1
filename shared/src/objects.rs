//! All objects together: what the files say, less what contradicts itself, plus what running pods still need.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::gateway::Gateway;
use crate::name::Name;
use crate::share::Share;
use crate::yaml::{Located, Object, Problem};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objects {
    pub gateways: BTreeMap<Name, Gateway>,
    pub shares: BTreeMap<Name, Share>,
    /// Shares whose object, or whose gateway's, is gone while pods use them: served on, published no more.
    pub withdrawn: BTreeSet<Name>,
}

/// What must not change, since somebody rests on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InUse {
    pub shares: BTreeSet<Name>,
    /// Gateways of scope host from whose servers anybody on the node mounts, beside those of shares in use.
    pub gateways: BTreeSet<Name>,
}

impl InUse {
    pub fn is_subset(&self, other: &Self) -> bool {
        self.shares.is_subset(&other.shares) && self.gateways.is_subset(&other.gateways)
    }
}

impl Objects {
    /// The objects after the files were read anew. Nothing that is `in_use`, or that a share in use rests on, is changed or taken away, and
    /// nothing at all is taken away while a reading is incomplete: a file that can't be read now may have named it.
    pub fn revise(&self, files: &[Located], incomplete: bool, in_use: &InUse) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut next = Self::default();
        let gateways_in_use = self.gateways_in_use(in_use);

        for located in files {
            let Object::Gateway(gateway) = &located.object else { continue };
            let name = &gateway.name;
            let old = self.gateways.get(name).filter(|_| gateways_in_use.contains(name));
            if next.gateways.contains_key(name) {
                problems.push(located.problem(
                    "metadata.name",
                    format!("a Gateway {name} stands in an earlier file or document; remove one"),
                ));
            } else if let Some(old) = old.filter(|old| !gateway.extends(old)) {
                problems.push(located.problem("spec", format!("Gateway {name} is in use: targets may be added at the end of its list, and sharedData may become true, but nothing else changes under running pods; add a Gateway of another name")));
                next.gateways.insert(name.clone(), old.clone());
            } else if let Some((other, server)) = next
                .gateways
                .values()
                .chain(gateways_in_use.iter().filter_map(|other| self.gateways.get(*other)))
                .filter(|other| other.name != *name)
                .find_map(|other| Some((other, contested(gateway, other)?)))
            {
                let other = &other.name;
                problems.push(located.problem("spec.targets", format!("{server} is an address of Gateway {other}'s as well, and with scope: host the node's network can lead it one way only: give one of the servers another address inside its tunnel, or use scope: isolated")));
                next.gateways.extend(old.map(|old| (name.clone(), old.clone())));
            } else {
                next.gateways.insert(name.clone(), gateway.clone());
            }
        }
        for located in files {
            let Object::Share(share) = &located.object else { continue };
            let name = &share.name;
            let old = self.shares.get(name).filter(|_| in_use.shares.contains(name));
            if next.shares.contains_key(name) {
                problems.push(located.problem(
                    "metadata.name",
                    format!("a Share {name} stands in an earlier file or document; remove one"),
                ));
            } else if !next.gateways.contains_key(&share.gateway) {
                let known: Vec<&str> = next.gateways.keys().map(Name::as_str).collect();
                problems.push(located.problem(
                    "spec.gateway",
                    format!("there is no Gateway {}; there are: [{}]", share.gateway, known.join(", ")),
                ));
                if let Some(old) = old {
                    next.shares.insert(name.clone(), old.clone());
                    // A file that can't be read may hold it.
                    let withdrawn = !incomplete || self.withdrawn.contains(name);
                    next.withdrawn.extend(withdrawn.then(|| name.clone()));
                }
            } else if let Some(other) = next.shares.values().find(|other| overlap(other, share)) {
                let message = format!(
                    "is where Share {} is mounted on the node, or above or below that: choose another place",
                    other.name
                );
                problems.push(located.problem("spec.nodeMount", message));
                next.shares.extend(old.map(|old| (name.clone(), old.clone())));
            } else if let Some(old) = old.filter(|old| !same_mount(old, share)) {
                problems.push(located.problem("spec", format!("Share {name} is in use: its gateway, export, access, policy and mountOptions can't change under its users (after, who may use it and nodeMount can); add a Share of another name")));
                next.shares.insert(name.clone(), old.clone());
            } else {
                next.shares.insert(name.clone(), share.clone());
            }
        }
        if incomplete {
            self.fill(&mut next);
        }
        self.retain(in_use, &mut next);
        (next, problems)
    }

    fn gateways_in_use<'a>(&'a self, in_use: &'a InUse) -> BTreeSet<&'a Name> {
        let of_shares = self.shares.values().filter(|share| in_use.shares.contains(&share.name));
        of_shares.map(|share| &share.gateway).chain(&in_use.gateways).collect()
    }

    fn fill(&self, next: &mut Self) {
        for (name, gateway) in &self.gateways {
            next.gateways.entry(name.clone()).or_insert_with(|| gateway.clone());
        }
        for (name, share) in self.shares.iter().filter(|(name, _)| !self.withdrawn.contains(*name)) {
            next.shares.entry(name.clone()).or_insert_with(|| share.clone());
        }
    }

    /// A deleted or emptied object takes nothing from running pods.
    fn retain(&self, in_use: &InUse, next: &mut Self) {
        for share in self.shares.values().filter(|share| in_use.shares.contains(&share.name)) {
            if !next.shares.contains_key(&share.name) {
                next.shares.insert(share.name.clone(), share.clone());
                next.withdrawn.insert(share.name.clone());
            }
        }
        for name in self.gateways_in_use(in_use) {
            if let Some(gateway) = self.gateways.get(name) {
                next.gateways.entry(name.clone()).or_insert_with(|| gateway.clone());
            }
        }
    }
}

/// One's node mount would hide the other's.
fn overlap(one: &Share, other: &Share) -> bool {
    one.node_mount.as_ref().zip(other.node_mount.as_ref()).is_some_and(|(one, other)| one.overlaps(other))
}

/// An address that one of them leads elsewhere on the node's own network than the other needs it to lead.
fn contested(one: &Gateway, other: &Gateway) -> Option<IpAddr> {
    let led = |gateway: &Gateway| gateway.ways().map(|way| way.server).collect::<BTreeSet<IpAddr>>();
    let needed = |gateway: &Gateway| {
        let endpoints = gateway.targets.iter().filter_map(|target| Some(target.peer.as_ref()?.endpoint.ip()));
        endpoints.chain(gateway.ways().map(|way| way.server)).collect::<BTreeSet<IpAddr>>()
    };
    let clash = |one: &Gateway, other: &Gateway| led(one).intersection(&needed(other)).next().copied();
    clash(one, other).or_else(|| clash(other, one))
}

/// Nothing that a mount is made with differs. How long a bounded one may wait is the agent's to know, and may change.
fn same_mount(old: &Share, new: &Share) -> bool {
    (&old.gateway, &old.export, old.access, old.options) == (&new.gateway, &new.export, new.access, new.options)
        && std::mem::discriminant(&old.policy) == std::mem::discriminant(&new.policy)
}

impl Located {
    fn problem(&self, field: &str, message: String) -> Problem {
        Problem { file: self.file.clone(), line: self.line, field: field.to_owned(), message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn gateway(server: &str) -> String {
        format!(
            "apiVersion: moorline.io/v1alpha1\nkind: Gateway\nmetadata: {{name: gw}}\nspec:\n  tunnel: {{address: 10.0.0.2, privateKey: {KEY}}}\n  targets: [{{name: a, endpoint: '192.0.2.1:1', publicKey: {KEY}, server: {server}}}]\n"
        )
    }

    fn share(export: &str, namespaces: &str) -> String {
        format!(
            "---\napiVersion: moorline.io/v1alpha1\nkind: Share\nmetadata: {{name: data}}\nspec: {{gateway: gw, export: {export}, access: ReadOnly, namespaces: {namespaces}}}\n"
        )
    }

    fn data_in_use() -> InUse {
        InUse { shares: BTreeSet::from(["data".parse().unwrap()]), ..InUse::default() }
    }

    fn revise(old: &Objects, text: &str, in_use: bool) -> (Objects, Vec<String>) {
        let in_use =
            InUse { shares: in_use.then(|| "data".parse().unwrap()).into_iter().collect(), ..InUse::default() };
        let (next, problems) = old.revise(&parse("f.yaml", text).unwrap(), false, &in_use);
        (next, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_share_without_its_gateway_is_refused_by_name() {
        let (next, problems) = revise(&Objects::default(), &share("/data", "[a]"), false);
        assert!(next.shares.is_empty());
        assert_eq!(problems, ["f.yaml:2: spec.gateway: there is no Gateway gw; there are: []"]);
    }

    #[test]
    fn what_running_pods_use_survives_an_emptied_directory_and_is_published_no_more() {
        let (old, problems) = revise(&Objects::default(), &(gateway("10.0.0.1") + &share("/data", "[a]")), false);
        assert_eq!(problems, [""; 0]);
        let (kept, _) = revise(&old, "", true);
        assert_eq!((&kept.gateways, &kept.shares, kept.withdrawn.len()), (&old.gateways, &old.shares, 1));
        let (gone, _) = revise(&old, "", false);
        assert_eq!(gone, Objects::default());
    }

    #[test]
    fn a_share_whose_gateway_is_gone_is_kept_for_those_that_use_it_and_published_no_more() {
        let (old, _) = revise(&Objects::default(), &(gateway("10.0.0.1") + &share("/data", "[a]")), false);
        let (kept, problems) = revise(&old, share("/data", "[a]").trim_start_matches("---\n"), true);
        assert_eq!((&kept.gateways, &kept.shares, kept.withdrawn.len()), (&old.gateways, &old.shares, 1));
        assert_eq!(problems, ["f.yaml:1: spec.gateway: there is no Gateway gw; there are: []"]);
        let text = parse("f.yaml", share("/data", "[a]").trim_start_matches("---\n")).unwrap();
        let (still, _) = kept.revise(&text, true, &data_in_use());
        assert_eq!(still, kept, "a file that can't be read brings nothing back");
        let (back, _) = revise(&kept, &(gateway("10.0.0.1") + &share("/data", "[a]")), true);
        assert_eq!(back, old);
    }

    #[test]
    fn an_incomplete_reading_takes_nothing_away() {
        let (old, _) = revise(&Objects::default(), &(gateway("10.0.0.1") + &share("/data", "[a]")), false);
        let (next, problems) = old.revise(&[], true, &InUse::default());
        assert_eq!((&next, problems.len()), (&old, 0));
        let incomplete = parse("f.yaml", share("/data", "[a]").trim_start_matches("---\n")).unwrap();
        let (next, _) = old.revise(&incomplete, true, &data_in_use());
        assert_eq!(next, old, "the file that can't be read may hold its Gateway");
    }

    #[test]
    fn of_a_gateway_in_use_targets_are_added_and_shared_data_comes_true() {
        let (old, _) = revise(&Objects::default(), &(gateway("10.0.0.1") + &share("/data", "[a]")), false);
        let more = gateway("10.0.0.1").replace("spec:\n", "spec:\n  sharedData: true\n").replace(
            "targets: [",
            &format!("targets: [{{name: b, endpoint: '192.0.2.5:1', publicKey: {KEY}, server: 10.0.1.1}}, "),
        );
        let (next, problems) = revise(&old, &(more.clone() + &share("/data", "[a]")), true);
        assert_eq!((&next, problems.len()), (&old, 1), "a target was put before the one in use");
        let (a, b) = (more.find("{name: b").unwrap(), more.find("{name: a").unwrap());
        let appended = format!(
            "{}{}, {}]\n",
            &more[..a],
            more[b..].trim_end().trim_end_matches(']'),
            more[a..b].trim_end_matches(", ")
        );
        let (next, problems) = revise(&old, &(appended + &share("/data", "[a]")), true);
        assert_eq!(problems, [""; 0]);
        assert!(next.gateways.values().all(|gateway| gateway.shared_data && gateway.targets.len() == 2));
    }

    #[test]
    fn storage_in_use_does_not_change_but_who_may_use_it_does() {
        let text = gateway("10.0.0.1") + &share("/data", "[a]");
        let (old, _) = revise(&Objects::default(), &text, false);
        let (next, problems) = revise(&old, &(gateway("10.0.0.9") + &share("/other", "[b]")), true);
        assert_eq!((&next.gateways, &next.shares, problems.len()), (&old.gateways, &old.shares, 2));
        let (next, problems) = revise(&old, &(gateway("10.0.0.1") + &share("/data", "[b]")), true);
        assert!(
            problems.is_empty() && next.shares.values().all(|share| share.namespaces.allow("b", None) == Some(true))
        );
        let (next, problems) = revise(&old, &(gateway("10.0.0.9") + &share("/other", "[b]")), false);
        assert!(problems.is_empty() && next != old);
    }

    #[test]
    fn objects_survive_a_restart_with_their_keys() {
        let (objects, _) = revise(&Objects::default(), &(gateway("10.0.0.1") + &share("/data", "['*']")), false);
        let text = serde_json::to_string(&objects).unwrap();
        assert_eq!(serde_json::from_str::<Objects>(&text).unwrap(), objects);
    }

    #[test]
    fn of_two_node_mounts_at_one_place_the_second_is_refused() {
        let with = |name: &str, place: &str| {
            share("/data", "[a]")
                .replace("name: data", &format!("name: {name}"))
                .replace("access:", &format!("nodeMount: {place}, access:"))
        };
        let text = gateway("10.0.0.1") + &with("data", "/mnt/a");
        let (next, problems) = revise(&Objects::default(), &(text.clone() + &with("more", "/mnt/a/b")), false);
        assert_eq!((next.shares.len(), problems.len()), (1, 1), "{problems:?}");
        assert!(problems[0].contains("spec.nodeMount: is where Share data is mounted"), "{problems:?}");
        let (next, problems) = revise(&Objects::default(), &(text + &with("more", "/mnt/ab")), false);
        assert_eq!((next.shares.len(), problems.len()), (2, 0), "{problems:?}");
        // In use, and moved to another place.
        let (moved, problems) = revise(&next, &(gateway("10.0.0.1") + &with("data", "/mnt/b")), true);
        assert_eq!(problems, [""; 0]);
        assert_eq!(moved.shares.values().next().unwrap().node_mount, "/mnt/b".parse().ok());
    }

    fn on_host(name: &str, server: &str) -> String {
        gateway(server)
            .replace("name: gw", &format!("name: {name}"))
            .replace("spec:\n", "spec:\n  scope: host\n")
            .replace("'192.0.2.1:1'", if name == "gw" { "'192.0.2.1:1'" } else { "'192.0.2.9:1'" })
    }

    #[test]
    fn of_two_gateways_that_lead_one_address_the_nodes_network_has_one() {
        for other in [on_host("other", "10.0.0.1"), on_host("other", "192.0.2.1")] {
            let text = on_host("gw", "10.0.0.1") + "---\n" + &other;
            let (next, problems) = revise(&Objects::default(), &text, false);
            assert_eq!((next.gateways.len(), problems.len()), (1, 1), "{problems:?}");
            assert!(problems[0].contains("is an address of Gateway gw's as well"), "{problems:?}");
        }
        // One is led elsewhere by itself, and one is led there as well.
        let isolated = gateway("10.0.0.1").replace("name: gw", "name: other");
        let direct = "---\napiVersion: moorline.io/v1alpha1\nkind: Gateway\nmetadata: {name: lan}\nspec: {path: direct, targets: [{name: a, server: 10.0.0.1}]}\n";
        let (next, problems) =
            revise(&Objects::default(), &(on_host("gw", "10.0.0.1") + "---\n" + &isolated + direct), false);
        assert_eq!((next.gateways.len(), problems.len()), (3, 0), "{problems:?}");
    }

    #[test]
    fn a_way_that_anybody_uses_outlives_its_gateway_and_gives_its_address_to_no_other() {
        let (old, _) = revise(&Objects::default(), &on_host("gw", "10.0.0.1"), false);
        let in_use = InUse { gateways: BTreeSet::from(["gw".parse().unwrap()]), ..InUse::default() };
        let revised = |text: &str, in_use: &InUse| old.revise(&parse("f.yaml", text).unwrap(), false, in_use);
        assert_eq!(revised("", &in_use), (old.clone(), vec![]));
        assert_eq!(revised("", &InUse::default()).0, Objects::default());
        let (next, problems) = revised(&on_host("other", "10.0.0.1"), &in_use);
        assert_eq!((next, problems.len()), (old.clone(), 1));
        let (next, problems) = revised(&on_host("gw", "10.0.0.9"), &in_use);
        assert_eq!((next, problems.len()), (old.clone(), 1), "it does not change either");
        let defaults = on_host("gw", "10.0.0.1").replace("scope: host", "scope: host\n  mountDefaults: {timeo: 100}");
        let (next, problems) = revised(&defaults, &in_use);
        assert!(problems.is_empty() && next != old, "but its defaults do: {problems:?}");
    }

    #[test]
    fn of_two_objects_with_one_name_the_second_is_refused() {
        let (_, problems) = revise(&Objects::default(), &(gateway("10.0.0.1") + "---\n" + &gateway("10.0.0.2")), false);
        assert_eq!(problems.len(), 1, "{problems:?}");
    }
}
