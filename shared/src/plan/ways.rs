//! What gateways of scope host have on the node's own network.

use std::collections::BTreeMap;

use super::{Step, View};
use crate::gateway::Gateway;
use crate::id::TargetId;
use crate::mount_defaults;
use crate::way::Way;

impl<'a> View<'a> {
    /// Those whose servers are asked whether they are there, though no Share of theirs may be in use. None of a node that
    /// shuts down.
    pub(super) fn gateways_on_ways(&self) -> impl Iterator<Item = &'a Gateway> + use<'a> {
        let stays = self.desired.shutdown.is_none();
        self.desired.objects.gateways.values().filter(move |gateway| stays && gateway.ways().next().is_some())
    }

    /// A way stays as long as its Gateway is there, or anybody on the node has a mount from its server. A node that shuts down
    /// keeps those that it has.
    pub(super) fn keep_ways(&self, steps: &mut Vec<Step>) {
        let stays = self.desired.shutdown.is_none();
        let gateways = self.desired.objects.gateways.values();
        let wanted: BTreeMap<TargetId, Way> =
            gateways.flat_map(Gateway::ways).map(|way| (way.target.clone(), way)).collect();
        for (target, way) in &wanted {
            match self.observed.ways.get(target) {
                None if !stays => {}
                None => steps.push(Step::MakeWay(target.clone())),
                // Its Gateway was changed, which it is only when nobody uses it.
                Some(seen) if seen.way != *way => {
                    steps.push(Step::RemoveWay { target: target.clone(), unused: false });
                }
                Some(seen) if !seen.whole => steps.push(Step::MakeWay(target.clone())),
                Some(seen) if !seen.carried => steps.push(Step::CarryWay(target.clone())),
                Some(_) => {}
            }
        }
        for (target, seen) in &self.observed.ways {
            if stays && !wanted.contains_key(target) && !self.observed.is_used(seen) {
                steps.push(Step::RemoveWay { target: target.clone(), unused: true });
            }
        }
        if stays && self.observed.mount_defaults != mount_defaults::file(&self.desired.objects) {
            steps.push(Step::SetMountDefaults);
        }
    }
}
