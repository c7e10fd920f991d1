//! Volumes that nobody gives back, because their pod is gone and kubelet does not know of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use moorline_shared::happening::Happening;
use moorline_shared::id::PublicationId;
use moorline_shared::observed::{Moment, Observed};
use moorline_shared::plan::{Traces, evidence_of_its_end};
use moorline_shared::publication::Publication;

use super::Reconciler;

/// From one look for them to the next, at most: it costs a question for each pod's directory.
const BETWEEN: Duration = Duration::from_secs(10);

/// What is known of volumes whose pod seems to be gone.
#[derive(Default)]
pub(super) struct Orphans {
    looked: Moment,
    /// Since when nothing speaks for its pod.
    since: BTreeMap<PublicationId, Moment>,
}

impl Reconciler {
    /// Takes back the volumes of pods for which nothing has spoken for long enough: kubelet has its time to do so itself.
    pub(super) fn take_back_orphans(&mut self, observed: &Observed, now: Moment) {
        let patience = self.habits.orphan_patience;
        if now < self.orphans.looked + BETWEEN.min(patience / 4) {
            return;
        }
        self.orphans.looked = now;
        let recorded =
            self.desired.publications.iter().filter(|(_, publication)| publication.wanted && publication.is_pods());
        let volumes = recorded.chain(&observed.strays);
        let suspects: Vec<(PublicationId, Publication, Traces)> = volumes
            .filter_map(|(id, publication)| {
                let traces = Traces { directory: self.host.has_directory(publication), processes: false };
                evidence_of_its_end(&publication.pod.uid, &self.pods, traces)?;
                Some((*id, publication.clone(), traces))
            })
            .collect();
        let uids: BTreeSet<String> = suspects.iter().map(|(_, publication, _)| publication.pod.uid.clone()).collect();
        let alive = if uids.is_empty() { BTreeSet::new() } else { self.host.with_processes(&uids) };
        let mut since = BTreeMap::new();
        for (id, publication, traces) in suspects {
            let traces = Traces { processes: alive.contains(&publication.pod.uid), ..traces };
            let Some(evidence) = evidence_of_its_end(&publication.pod.uid, &self.pods, traces) else { continue };
            let first = self.orphans.since.get(&id).copied().unwrap_or(now);
            if now < first + patience {
                since.insert(id, first);
                continue;
            }
            self.tell(&Happening::Orphaned { publication: publication.clone(), evidence: evidence.to_owned() });
            // What was on no record is from here on, so that it goes the way of all others.
            Arc::make_mut(&mut self.desired).publications.entry(id).or_insert(publication);
            // What could not be put on record is found again.
            let _ = self.withdraw(id);
        }
        self.orphans.since = since;
    }
}
