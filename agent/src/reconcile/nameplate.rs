//! What the node's own object is to say: which Shares are mounted on the node, and which servers it reaches.

use std::collections::{BTreeMap, BTreeSet};

use moorline_shared::id::TargetId;
use moorline_shared::name::Name;
use moorline_shared::observed::{Liveness, Moment, Observed, Tunnel};
use tokio::sync::watch;

use super::Reconciler;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Nameplate {
    /// Shares whose nodeMount is there.
    pub(crate) mounted: BTreeSet<Name>,
    /// Whether each server answers that a way leads to.
    pub(crate) servers: BTreeMap<TargetId, bool>,
}

impl Reconciler {
    pub(crate) fn nameplate(&self) -> watch::Receiver<Nameplate> {
        self.nameplate.subscribe()
    }

    pub(super) fn show_nameplate(&self, observed: &Observed, now: Moment) {
        let there =
            self.desired.publications.iter().filter(|(id, it)| it.node && it.wanted && observed.is_published(**id));
        let open = observed.namespaces.iter().filter(|(_, tunnel)| **tunnel == Tunnel::Attached);
        let known = open.map(|(id, _)| (id, observed.liveness(id, now))).filter(|(_, it)| *it != Liveness::Unknown);
        let nameplate = Nameplate {
            mounted: there.map(|(_, publication)| publication.share.clone()).collect(),
            servers: known.map(|(id, it)| (id.target.clone(), it == Liveness::Alive)).collect(),
        };
        self.nameplate.send_if_modified(|shown| {
            let changed = *shown != nameplate;
            *shown = nameplate;
            changed
        });
    }
}
