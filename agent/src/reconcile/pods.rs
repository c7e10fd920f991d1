//! Which pods the node has, and which of them were asked to end.

use std::collections::BTreeSet;
use std::time::Duration;

use moorline_shared::observed::{Deletion, Pods};
use moorline_shared::plan::Step;

use super::Reconciler;

impl Reconciler {
    pub(super) fn note_pods(&mut self, pods: Pods) {
        if pods.complete {
            self.gone.extend(self.pods.known.keys().cloned());
        }
        let mine: BTreeSet<&String> = self.desired.publications.values().map(|p| &p.pod.uid).collect();
        self.gone.retain(|uid| mine.contains(uid) && !pods.known.contains_key(uid));
        if pods.known.keys().any(|uid| pods.is_leaving(uid) && !self.pods.is_leaving(uid)) {
            self.hurry();
        }
        self.pods = pods;
    }

    pub(super) fn note_deletion(&mut self, uid: String, grace: Duration) {
        let asked = (self.clock)();
        // Told of for as long as it has volumes here.
        let mine = |uid: &String| self.desired.publications.values().any(|p| p.pod.uid == *uid);
        self.pods.known.retain(|uid, _| mine(uid));
        self.pods.known.insert(uid, Some(Deletion { asked, ends: asked + grace }));
        self.hurry();
    }

    /// A pod has less time than pauses may have grown to.
    fn hurry(&mut self) {
        self.setbacks.retain(|step| !matches!(step, Step::Abort(_)));
    }
}
