//! Volumes that one node may have at a time: which of them this node needs.

use std::collections::{BTreeMap, BTreeSet};

use moorline_shared::id::{PublicationId, User};
use moorline_shared::observed::Observed;
use tokio::sync::watch;

use super::Reconciler;

/// What this node needs, for who takes Leases and gives them back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) volumes: BTreeSet<String>,
    /// Something is mounted, and it is not known of which volume: nothing may be given back.
    pub(crate) unsure: bool,
    /// The number of the last word on Leases that this is said, and done, with in mind.
    pub(crate) heard: u64,
}

#[derive(Default)]
pub(super) struct Claiming {
    pub(super) told: watch::Sender<Claims>,
    /// Who has, or had, a mount to write through, and the volume if that is one node's alone. What a pod wrote may
    /// still be on its way when its publication is gone.
    owners: BTreeMap<PublicationId, Option<String>>,
    pub(super) heard: u64,
}

impl Reconciler {
    /// What this node needs, as it changes.
    pub(crate) fn claims(&self) -> watch::Receiver<Claims> {
        self.claims.told.subscribe()
    }

    pub(super) fn claim(&mut self, observed: &Observed) {
        let publications = &self.desired.publications;
        let owners = &mut self.claims.owners;
        for (id, publication) in publications {
            owners.insert(*id, publication.sole.map(|_| publication.volume_id.clone()));
        }
        let mounted = observed.superblocks.iter().chain(&observed.beginning).chain(&observed.ending);
        let writers: BTreeSet<PublicationId> = mounted
            .filter_map(|superblock| match superblock.user {
                User::ReadWrite(id) => Some(id),
                User::ReadOnly | User::Node(_) => None,
            })
            .collect();
        owners.retain(|id, _| publications.contains_key(id) || writers.contains(id));
        let claims = Claims {
            volumes: owners.values().flatten().cloned().collect(),
            unsure: writers.iter().any(|id| !owners.contains_key(id)),
            heard: self.claims.heard,
        };
        self.claims.told.send_if_modified(|told| {
            let changed = *told != claims;
            *told = claims;
            changed
        });
    }
}
