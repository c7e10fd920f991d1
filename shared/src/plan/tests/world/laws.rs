//! What may be done to a node, and what it must come to.

use super::*;

impl World {
    pub(super) fn may_be_hidden(&self, id: PublicationId) {
        let publication = &self.desired.publications[&id];
        let told = self.observed.pods.known.contains_key(&publication.pod.uid);
        assert!(told && !publication.node, "{publication:?} stays");
    }

    /// Of a newer one that is mounted and shown to nobody yet nothing is written.
    pub(super) fn writers_elsewhere(&self, superblock: &SuperblockId) -> Option<&SuperblockId> {
        self.observed.superblocks.iter().find(|other| {
            other.share == superblock.share
                && other.epoch < superblock.epoch
                && other.user.writes()
                && other.namespace != superblock.namespace
                && self.observed.namespaces.get(&other.namespace) != Some(&Tunnel::Fenced)
        })
    }

    pub(super) fn may_be_written(&self, id: &SuperblockId) {
        if id.user.writes() {
            assert_eq!(self.writers_elsewhere(id), None, "{id} would be written beside an unfenced superblock");
        }
    }

    /// Each state of health says what may be done to a mount, but at the node's end, when all of them go.
    pub(super) fn may_be_done_as_it_is(&self, step: &Step) {
        if self.desired.shutdown.is_some() {
            return;
        }
        let health = |id| health(&self.desired, &self.observed, self.now, id);
        match step {
            Step::Abort(id) | Step::Retire { superblock: id, abort: true } => {
                let begun = self.observed.given_up.contains(id);
                assert!(begun || health(id) != Health::Healthy, "{id} is healthy: {step}");
            }
            Step::Publish(_, id) => {
                assert!(matches!(health(id), Health::Healthy | Health::Stale), "{id} is {:?}: {step}", health(id));
            }
            Step::Replace { old, new } => {
                assert!(
                    matches!(health(old), Health::FailingOver | Health::Fenced),
                    "{old} is {:?}: {step}",
                    health(old)
                );
                assert_ne!(health(new), Health::Unmounting, "{step}");
            }
            _ => {}
        }
    }

    /// When the faults stop, everything that is wanted is served, and nothing else is left.
    pub(in super::super) fn settle(&mut self) {
        self.alive = [true; 2];
        if self.desired.publications.contains_key(&Self::publication(NODE).id()) {
            self.ask_for_node_mount(Some("/mnt/node"));
        }
        self.apply(&Op::GoOn);
        for _ in 0..40 {
            self.second(0, 0);
        }
        for (id, publication) in &self.desired.publications {
            assert!(publication.wanted, "{publication:?} is still being unpublished");
            let serves = |top: &SuperblockId| {
                self.is_alive(&top.namespace) && self.observed.superblocks.contains(top) && !self.stale.contains(top)
            };
            let top = self.observed.published.get(id).and_then(|layers| layers.last());
            if self.observed.pods.is_leaving(&publication.pod.uid) && !publication.node {
                assert_eq!(top, None, "{publication:?} is in its kubelet's way");
                for container in self.containers.get(id).into_iter().flatten() {
                    assert!(
                        container.layers.last().is_some_and(serves),
                        "a container that is ending has {container:?}"
                    );
                }
                continue;
            }
            let Some(Layer::Ours(top)) = top else {
                panic!("{publication:?} is not published");
            };
            assert!(serves(top), "{publication:?} is on {top}");
            for container in self.containers.get(id).into_iter().flatten() {
                assert_eq!(container.layers.last(), Some(top), "a container sees something else than its publication");
            }
        }
        self.containers.clear();
        self.ask_for_node_mount(None);
        for publication in self.desired.publications.values_mut() {
            publication.wanted = false;
        }
        for _ in 0..5 {
            self.second(0, 0);
        }
        for way in self.desired.objects.gateways.values().flat_map(Gateway::ways) {
            let seen = self.observed.ways.get(&way.target);
            assert_eq!(seen, Some(&WaySeen { way, whole: true, carried: true }), "whoever mounts there is led there");
        }
        // What stays as long as its Gateway, and as long as it is used.
        if !self.observed.ways.is_empty() {
            self.desired.objects.gateways.clear();
        }
        for used in [true, false] {
            let servers = self.observed.ways.values().map(|way| way.way.server);
            self.observed.used_servers = servers.filter(|_| used).collect();
            (0..2).for_each(|_| self.second(0, 0));
            assert!(used || self.observed.ways.is_empty() && self.observed.mount_defaults.is_none());
        }
        assert_eq!(plan(&self.desired, &self.observed, self.now), []);
        let Observed { superblocks, husks, given_up, namespaces, .. } = &self.observed;
        assert!(
            superblocks.is_empty() && husks.is_empty() && given_up.is_empty() && namespaces.is_empty(),
            "something is left behind"
        );
    }
}
