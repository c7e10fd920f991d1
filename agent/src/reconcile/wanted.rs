//! What is wanted: what the files say, held against what is in use, and the node mounts that follow from it.

use std::collections::BTreeSet;
use std::sync::Arc;

use moorline_shared::happening::Happening;
use moorline_shared::id::NamespaceId;
use moorline_shared::objects::InUse;
use moorline_shared::observed::Observed;
use moorline_shared::plan::Step;
use moorline_shared::yaml::Problem;
use tracing::error;

use crate::config::Reading;

use super::{Reconciler, chain};

impl Reconciler {
    pub(super) fn take_files(&mut self, files: Reading) {
        self.files = files;
        match self.observe(false) {
            Ok(observed) => {
                self.revise(&observed);
                self.window.vitals.objects_read();
            }
            Err(error) => error!("look at the host: {error}; the objects are not read anew"),
        }
    }

    /// Holds the files against what is in use: that does not change, everything else follows them. Whether anything did: what
    /// was seen before is not how things are then.
    pub(super) fn revise(&mut self, observed: &Observed) -> bool {
        self.in_use = self.in_use(observed);
        let Reading { objects: files, problems: bad, incomplete } = &self.files;
        let (objects, contradictions) = self.desired.objects.revise(files, *incomplete, &self.in_use);
        let problems: Vec<Problem> = bad.iter().cloned().chain(contradictions).collect();
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            self.tell(&Happening::ObjectRefused { problem: problem.to_string() });
        }
        self.problems = problems;
        if objects == self.desired.objects {
            self.unrecorded = None;
            return false;
        }
        // Namespaces that lead where a changed Gateway led are given up; the next generation is made as it now says.
        let changed = |id: &&NamespaceId| {
            let gateway = &id.target.gateway;
            self.desired
                .objects
                .gateways
                .get(gateway)
                .is_some_and(|old| objects.gateways.get(gateway).is_some_and(|new| !new.extends(old)))
        };
        // Those that are only about to be made were asked for by the old Gateway as well.
        let about_to_be = self.busy.values().flatten().filter_map(|step| match step {
            Step::MakeNamespace(id) | Step::AttachTunnel(id) => Some(id),
            _ => None,
        });
        let led: BTreeSet<&NamespaceId> = observed.namespaces.keys().chain(about_to_be).collect();
        let fence = |id: &NamespaceId| {
            self.host.fence(id)?;
            self.tell(&Happening::Fenced { namespace: id.clone() });
            Ok(())
        };
        // A new agent begins with what is on record: what is published from other objects it would not know. The next round
        // tries again.
        let recorded =
            led.into_iter().filter(changed).try_for_each(fence).and_then(|()| self.host.keep_objects(&objects));
        if let Err(failure) = recorded {
            let said = chain(&failure);
            if self.unrecorded.as_ref() != Some(&said) {
                error!("{said}; the objects stay as they were until they can be recorded");
            }
            self.unrecorded = Some(said);
            return false;
        }
        self.unrecorded = None;
        self.tell(&Happening::ObjectsRead { gateways: objects.gateways.len(), shares: objects.shares.len() });
        Arc::make_mut(&mut self.desired).objects = objects;
        // What failed may have been cured.
        self.setbacks.clear();
        true
    }

    /// A share whose mount is there, was asked for or is to come back is in use until that is gone; a gateway of scope host as
    /// long as anybody on the node has a mount from its servers.
    pub(super) fn in_use(&self, observed: &Observed) -> InUse {
        let superblocks = observed.superblocks.iter().chain(&observed.beginning).chain(&observed.ending);
        let returning = self.desired.returning.iter().filter_map(|id| self.desired.publications.get(id));
        let shares = superblocks.map(|superblock| &superblock.share).chain(returning.map(|p| &p.share));
        let ways = observed.ways.iter().filter(|(_, way)| observed.is_used(way));
        InUse { shares: shares.cloned().collect(), gateways: ways.map(|(target, _)| target.gateway.clone()).collect() }
    }

    /// Asks for the node mounts that Shares ask for, and takes back the others, as if kubelet did. Whether there were any.
    pub(super) fn follow_node_mounts(&mut self) -> bool {
        let mut changed = false;
        for publication in self.desired.node_mount_changes() {
            if let Err(error) = self.host.record(&publication) {
                self.complain(chain(&error));
                // A new agent would not know that it is mounted. One that is to go is on record as what is to be there, which
                // its Share contradicts.
                if publication.wanted {
                    continue;
                }
            }
            changed = true;
            let id = publication.id();
            Arc::make_mut(&mut self.desired).publications.insert(id, publication.clone());
            self.forget_setbacks(id);
            if publication.wanted {
                self.tell_publishing(id);
            } else {
                self.tell(&Happening::Unpublishing(publication));
            }
        }
        changed
    }
}
