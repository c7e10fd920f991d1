//! What the tests of volumes and claims have in common.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use moorline_shared::errand::{Errand, Outcome, State, Task};
use moorline_shared::share::Share;
use moorline_shared::yaml::{self, Object};
use serde_json::{Value, json};

use super::desks::{Desk, Memory, Moment};
use super::{Act, World, acts};

pub(crate) fn share(name: &str, export: &str) -> Share {
    let spec = json!({
        "gateway": "gw", "export": export, "access": "ReadWrite", "namespaces": ["training"], "allowDelete": true,
    });
    read(name, &spec)
}

/// For the namespaces that have these labels.
pub(crate) fn share_for(name: &str, labels: &Value) -> Share {
    let selector = json!({"matchLabels": labels});
    read(name, &json!({"gateway": "gw", "export": "/data", "access": "ReadWrite", "namespaceSelector": selector}))
}

fn read(name: &str, spec: &Value) -> Share {
    let object = json!({
        "apiVersion": "moorline.io/v1alpha1", "kind": "Share", "metadata": {"name": name}, "spec": spec,
    });
    match yaml::parse_object("a", &object.to_string()).unwrap().object {
        Object::Share(share) => share,
        Object::Gateway(_) => unreachable!(),
    }
}

pub(crate) fn desk() -> Desk {
    Desk { version: "1".into(), fit: true, ..Desk::default() }
}

pub(crate) fn errand(id: &str, task: Task) -> Errand {
    Errand { id: id.parse().unwrap(), share: "data".parse().unwrap(), sub_dir: "a".parse().unwrap(), task }
}

/// A cluster with a class, a share and two nodes, that is as the acts make it.
pub(crate) struct Cluster {
    pub(crate) world: World,
    pub(crate) memory: Memory,
    pub(crate) now: Moment,
    /// What people were told.
    pub(crate) told: Vec<(&'static str, String)>,
}

impl Cluster {
    pub(crate) fn new(parameters: &Value) -> Self {
        let mut world = World::default();
        let share = share("data", "/data");
        world.shares.insert(share.name.clone(), share);
        world.desks = ["a", "b"].map(|node| (node.to_owned(), desk())).into();
        let class = json!({"metadata": {"name": "shared"}, "provisioner": "moorline.io", "parameters": parameters});
        world.classes.insert("shared".into(), Arc::new(serde_json::from_value(class).unwrap()));
        Self { world, memory: Memory::default(), now: Moment::ZERO, told: Vec::new() }
    }

    pub(crate) fn claim(&mut self, uid: &str, name: &str) {
        self.add_claim(json!({
            "metadata": {
                "name": name, "namespace": "training", "uid": uid, "resourceVersion": "1",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"volume.kubernetes.io/storage-provisioner": "moorline.io"},
            },
            "spec": {
                "storageClassName": "shared", "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": "4Gi"}},
            },
            "status": {"phase": "Pending"},
        }));
    }

    pub(crate) fn add_claim(&mut self, claim: Value) {
        self.world.claims.push(Arc::new(serde_json::from_value(claim).unwrap()));
    }

    pub(crate) fn change_claim(&mut self, uid: &str, change: impl FnOnce(&mut PersistentVolumeClaim)) {
        let claim = self.world.claims.iter_mut().find(|claim| claim.metadata.uid.as_deref() == Some(uid)).unwrap();
        change(Arc::make_mut(claim));
    }

    pub(crate) fn change_volume(&mut self, name: &str, change: impl FnOnce(&mut PersistentVolume)) {
        let volume = self.world.volumes.iter_mut().find(|it| it.metadata.name.as_deref() == Some(name)).unwrap();
        change(Arc::make_mut(volume));
    }

    /// As the volume controller binds them, and lets go of those whose claim is gone.
    pub(crate) fn bind(&mut self) {
        for volume in &mut self.world.volumes {
            let uid = volume.spec.as_ref().unwrap().claim_ref.as_ref().unwrap().uid.clone();
            let name = volume.metadata.name.clone();
            let claim = self.world.claims.iter_mut().find(|claim| claim.metadata.uid == uid);
            let phase = if let Some(claim) = claim {
                let claim = Arc::make_mut(claim);
                let spec = claim.spec.as_mut().unwrap();
                spec.volume_name = name;
                let status = claim.status.get_or_insert_default();
                status.phase = Some("Bound".into());
                if status.capacity.is_none() {
                    status.capacity = spec.resources.clone().unwrap().requests;
                }
                "Bound"
            } else {
                "Released"
            };
            Arc::make_mut(volume).status.get_or_insert_default().phase = Some(phase.into());
        }
    }

    pub(crate) fn delete_claim(&mut self, uid: &str) {
        self.world.claims.retain(|claim| claim.metadata.uid.as_deref() != Some(uid));
        self.bind();
    }

    /// One round, done as it says.
    pub(crate) fn round(&mut self) -> Vec<Act> {
        let acts = acts(&self.world, &mut self.memory, self.now);
        for act in acts.clone() {
            match act {
                Act::Ask { node, requests, .. } => {
                    let desk = self.world.desks.get_mut(&node).unwrap();
                    desk.status.outcomes.retain(|outcome| requests.contains(&outcome.request));
                    desk.requests = requests;
                }
                Act::MakeVolume(volume) => self.world.volumes.push(Arc::new(*volume)),
                Act::LetGo { volume, finalizers, delete, .. } => {
                    self.change_volume(&volume, |it| it.metadata.finalizers = Some(finalizers.clone()));
                    assert!(finalizers.is_empty() && delete);
                    self.world.volumes.retain(|it| it.metadata.name.as_ref() != Some(&volume));
                }
                Act::GrowVolume { volume, storage, .. } => self.change_volume(&volume, |it| {
                    let capacity = it.spec.as_mut().unwrap().capacity.as_mut().unwrap();
                    capacity.get_mut("storage").unwrap().0 = storage;
                }),
                Act::GrowClaim { claim, storage, conditions, .. } => {
                    let uid = self.world.claims.iter().find(|it| it.metadata.name.as_ref() == Some(&claim)).unwrap();
                    let uid = uid.metadata.uid.clone().unwrap();
                    self.change_claim(&uid, |claim| {
                        let status = claim.status.as_mut().unwrap();
                        status.capacity.as_mut().unwrap().get_mut("storage").unwrap().0 = storage;
                        status.conditions = serde_json::from_value(conditions).unwrap();
                    });
                }
                Act::Tell(word) => self.told.push((word.reason, word.note)),
            }
        }
        acts
    }

    /// What all nodes are asked for, with the node.
    pub(crate) fn asked(&self) -> Vec<(&str, &Errand)> {
        self.world
            .desks
            .iter()
            .flat_map(|(node, desk)| desk.requests.iter().map(move |it| (node.as_str(), it)))
            .collect()
    }

    /// Every agent has done what it was asked for.
    pub(crate) fn agents_do(&mut self, state: State, words: &str) {
        for desk in self.world.desks.values_mut() {
            let outcome = |request: &Errand| Outcome { request: request.clone(), state, message: words.into() };
            desk.status.outcomes = desk.requests.iter().map(outcome).collect();
        }
    }

    pub(crate) fn volumes(&self) -> Vec<&str> {
        self.world.volumes.iter().filter_map(|volume| volume.metadata.name.as_deref()).collect()
    }

    /// Until nothing is to be done any more.
    pub(crate) fn settle(&mut self) {
        for _ in 0..20 {
            self.agents_do(State::Done, "so");
            if self.round().iter().all(|act| matches!(act, Act::Tell(_))) {
                return;
            }
            self.bind();
        }
        panic!("it does not settle: {:?}", self.world);
    }
}
