//! Volumes for claims, each a directory of a share: what is to be done about them, from how things are. Nothing here asks the
//! API server for anything.

mod claims;
pub(crate) mod class;
pub(crate) mod desks;
mod growth;
pub(crate) mod quantity;
pub(crate) mod template;
pub(crate) mod territory;
mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::{Resource, ResourceExt};
use moorline_csi::DRIVER;
use moorline_shared::cluster::{SHARE, SUB_DIR};
use moorline_shared::errand::Errand;
use moorline_shared::name::Name;
use moorline_shared::selector::Labels;
use moorline_shared::share::Share;
use serde_json::Value;

use desks::{Desk, Desks, Memory, Moment, Progress};
use territory::{Server, Servers, Territory};

/// Held by what the directory is to be put in order for, before it goes.
pub(crate) const FINALIZER: &str = "moorline.io/directory";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const ON_DELETE: &str = "moorline.io/on-delete";
const DRY_RUN: &str = "moorline.io/dry-run";
/// Its directory was there before: it is taken away with no volume.
const FOUND: &str = "moorline.io/found";
/// Requests of the CSI service: claims are told by their UID.
pub(crate) const OF_CSI: &str = "csi-";

/// How things are.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) claims: Vec<Arc<PersistentVolumeClaim>>,
    pub(crate) volumes: Vec<Arc<PersistentVolume>>,
    pub(crate) classes: BTreeMap<String, Arc<StorageClass>>,
    pub(crate) shares: BTreeMap<Name, Share>,
    /// Shares that may not be used, and why.
    pub(crate) bad_shares: BTreeMap<String, String>,
    /// Of Gateways.
    pub(crate) servers: Servers,
    /// Labels of namespaces.
    pub(crate) namespaces: BTreeMap<String, Labels>,
    pub(crate) desks: BTreeMap<String, Desk>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Act {
    /// All that is asked of a node.
    Ask {
        node: String,
        version: String,
        requests: Vec<Errand>,
    },
    MakeVolume(Box<PersistentVolume>),
    /// The finalizers that stay; and it is deleted, unless somebody does that already.
    LetGo {
        volume: String,
        uid: String,
        version: String,
        finalizers: Vec<String>,
        delete: bool,
    },
    GrowVolume {
        volume: String,
        version: String,
        storage: String,
    },
    GrowClaim {
        namespace: String,
        claim: String,
        version: String,
        storage: String,
        conditions: Value,
    },
    Tell(Word),
}

/// What people are told of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Word {
    pub(crate) subject: ObjectReference,
    pub(crate) reason: &'static str,
    pub(crate) warns: bool,
    pub(crate) note: String,
}

impl Word {
    fn of<K: Resource<DynamicType = ()>>(object: &K, reason: &'static str, warns: bool, note: String) -> Act {
        Act::Tell(Self { subject: object.object_ref(&()), reason, warns, note })
    }
}

pub(crate) fn acts(world: &World, memory: &mut Memory, now: Moment) -> Vec<Act> {
    let mut desks = Desks::new(&world.desks, memory, now);
    let mut acts = claims::acts(world, &mut desks);
    acts.extend(volumes::acts(world, &mut desks));
    acts.extend(growth::acts(world));
    let is_made = |id: &Name| world.volumes.iter().any(|volume| volume.name_any() == volume_name(id.as_str()));
    desks.clear_up(|id| !id.as_str().starts_with(OF_CSI), is_made);
    // The last that is done: what they were asked for is seen to be no more needed by then.
    acts.extend(desks.changes().into_iter().map(|(node, Desk { version, requests, .. })| Act::Ask {
        node,
        version,
        requests,
    }));
    acts
}

fn volume_name(claim_uid: &str) -> String {
    format!("pvc-{claim_uid}")
}

impl World {
    /// A Share that directories may be made in, or why not.
    pub(crate) fn writable(&self, name: &Name) -> Result<&Share, String> {
        use moorline_shared::share::Access;
        match (self.shares.get(name), self.bad_shares.get(name.as_str())) {
            (_, Some(why)) => Err(format!("Share {name} can't be used: {why}")),
            (None, None) => {
                let known: Vec<&str> = self.shares.keys().map(Name::as_str).collect();
                Err(format!(
                    "there is no Share {name} in the cluster (one in a file of the agents' is not known here); there are: [{}]",
                    known.join(", ")
                ))
            }
            (Some(share), None) if share.access == Access::ReadOnly => Err(format!(
                "Share {name} is ReadOnly, and no directory can be made in it: say access: ReadWrite, or name another in the StorageClass"
            )),
            (Some(share), None) => Ok(share),
        }
    }

    /// Whether a namespace's pods may use it, and so its claims.
    pub(crate) fn allow(&self, share: &Share, namespace: &str) -> Result<(), String> {
        if share.namespaces.allow(namespace, self.namespaces.get(namespace)) == Some(true) {
            return Ok(());
        }
        Err(format!(
            "Share {} is not for namespace {namespace}: add it to the Share's namespaces, or use another StorageClass",
            share.name
        ))
    }

    /// Another volume, of this driver or of kubelet's own NFS, that has the directory, has one in it, or was provisioned and has
    /// it in its own; by name.
    pub(crate) fn other_owner(&self, mine: &Territory, is_mine: impl Fn(&PersistentVolume) -> bool) -> Option<String> {
        let found = self.volumes.iter().find(|volume| {
            let has = |theirs: &Territory| mine.contains(theirs) || is_provisioned(volume) && theirs.contains(mine);
            !is_mine(volume) && self.territories(volume).iter().any(has)
        });
        found.map(|volume| volume.name_any())
    }

    fn territories(&self, volume: &PersistentVolume) -> Vec<Territory> {
        if let Some((share, sub_dir)) = directory(volume) {
            return vec![self.territory(share, sub_dir)];
        }
        let Some(nfs) = volume.spec.as_ref().and_then(|spec| spec.nfs.as_ref()) else { return Vec::new() };
        let is_theirs = |server: &Server| server.address().to_string() == nfs.server;
        let gateways = self.servers.iter().filter(|(_, servers)| servers.iter().any(is_theirs));
        gateways.map(|(gateway, _)| Territory::at(gateway, &self.servers, &nfs.path)).collect()
    }

    /// A directory of a Share.
    pub(crate) fn territory(&self, share: &str, sub_dir: &str) -> Territory {
        Territory::of(&self.shares, &self.servers, share, sub_dir)
    }
}

/// The share of a volume of this driver, and its directory there.
pub(crate) fn directory(volume: &PersistentVolume) -> Option<(&str, &str)> {
    let csi = volume.spec.as_ref()?.csi.as_ref().filter(|csi| csi.driver == DRIVER)?;
    let attributes = csi.volume_attributes.as_ref()?;
    Some((attributes.get(SHARE)?, attributes.get(SUB_DIR).map_or("", String::as_str)))
}

fn is_provisioned(volume: &PersistentVolume) -> bool {
    volume.annotations().get(PROVISIONED_BY).is_some_and(|by| by == DRIVER)
}

/// What is said of a request that is not done yet: nothing, as long as there is hope.
pub(crate) fn explain(progress: &Progress) -> Option<String> {
    match progress {
        Progress::Done(_) | Progress::Waits { late: false, .. } => None,
        Progress::Failed { node, why } => Some(format!("{why} (the agent of node {node} says so)")),
        Progress::Waits { node, why: Some(why), .. } => Some(format!("still waiting for node {node}: {why}")),
        Progress::Waits { node, why: None, .. } => Some(format!(
            "the agent of node {node} has not answered: is it there? Another is asked, where there is one"
        )),
        Progress::Nobody => Some(
            "no node has an agent that could do it: are the pods of DaemonSet moorline-agent Running, and their nodes Ready?".to_owned(),
        ),
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
