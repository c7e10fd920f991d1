//! The life of a claim, as the controller sees it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use moorline_shared::errand::{State, Task};
use serde_json::json;

use super::testing::{Cluster, share};
use super::*;

fn claimed(parameters: &Value) -> Cluster {
    let mut cluster = Cluster::new(parameters);
    cluster.claim("u1", "scratch");
    cluster.settle();
    cluster
}

fn told(cluster: &mut Cluster) -> (&'static str, String) {
    cluster.round();
    cluster.told.pop().unwrap()
}

#[test]
fn a_claim_gets_a_directory_and_then_a_volume() {
    let mut cluster = Cluster::new(&json!({"share": "data", "uid": "1000", "onDelete": "archive"}));
    cluster.claim("u1", "scratch");
    cluster.round();
    let [(node, errand)] = cluster.asked()[..] else { panic!("{:?}", cluster.asked()) };
    assert_eq!((node, errand.sub_dir.to_string()), ("a", "training/scratch-pvc-u1".to_owned()));
    assert_eq!(errand.task, Task::Make { uid: 1000, gid: 0, mode: 0o777 });
    assert!(cluster.volumes().is_empty(), "its directory is not there yet");
    cluster.settle();
    assert!(cluster.asked().is_empty() && cluster.told.is_empty(), "{:?}", cluster.told);
    let volume = serde_json::to_value(&*cluster.world.volumes[0]).unwrap();
    assert_eq!(volume["metadata"]["finalizers"], json!([FINALIZER]));
    assert_eq!(volume["metadata"]["annotations"][ON_DELETE], "archive");
    let spec = &volume["spec"];
    assert_eq!((&spec["claimRef"]["uid"], &spec["claimRef"]["namespace"]), (&json!("u1"), &json!("training")));
    assert_eq!(spec["csi"]["volumeHandle"], "pvc-u1");
    assert_eq!(spec["csi"]["volumeAttributes"], json!({"share": "data", "subDir": "training/scratch-pvc-u1"}));
    assert_eq!(
        (&spec["capacity"]["storage"], &spec["persistentVolumeReclaimPolicy"]),
        (&json!("4Gi"), &json!("Delete"))
    );
}

#[test]
fn a_controller_that_knows_nothing_more_goes_on_where_the_last_one_ended() {
    let mut cluster = Cluster::new(&json!({"share": "data", "onDelete": "delete"}));
    cluster.claim("u1", "scratch");
    for step in 0..12 {
        cluster.agents_do(State::Done, "so");
        cluster.round();
        cluster.memory = Memory::default();
        cluster.bind();
        if step == 6 {
            assert_eq!(cluster.volumes(), ["pvc-u1"]);
            cluster.delete_claim("u1");
        }
    }
    assert!(cluster.volumes().is_empty() && cluster.asked().is_empty());
}

#[test]
fn a_claim_that_waits_for_its_first_pod_is_done_for_that_pods_node() {
    let mut cluster = Cluster::new(&json!({"share": "data"}));
    std::sync::Arc::make_mut(cluster.world.classes.get_mut("shared").unwrap()).volume_binding_mode =
        Some("WaitForFirstConsumer".into());
    cluster.claim("u1", "scratch");
    assert_eq!(cluster.round(), []);
    let key = "volume.kubernetes.io/selected-node".to_owned();
    cluster.change_claim("u1", |claim| drop(claim.metadata.annotations.as_mut().unwrap().insert(key, "b".into())));
    cluster.round();
    assert_eq!(cluster.asked()[0].0, "b");
}

#[test]
fn what_can_not_be_claimed_is_said_with_the_cure() {
    for (parameters, said) in [
        (json!({}), "StorageClass shared: parameter share is missing"),
        (json!({"share": "data", "server": "x"}), "parameters [\"server\"] are not known"),
        (json!({"share": "other"}), "there is no Share other in the cluster"),
        (json!({"share": "data", "subDir": "${x}"}), "${x} is not known"),
    ] {
        let mut cluster = Cluster::new(&parameters);
        cluster.claim("u1", "scratch");
        let (reason, note) = told(&mut cluster);
        assert!(reason == "ProvisioningFailed" && note.contains(said), "{note}");
        assert!(cluster.asked().is_empty());
    }
    let mut cluster = Cluster::new(&json!({"share": "data"}));
    cluster.claim("u1", "scratch");
    cluster.change_claim("u1", |claim| claim.metadata.namespace = Some("elsewhere".into()));
    assert!(told(&mut cluster).1.contains("not for namespace elsewhere: add it"));
    let mut labelled = Cluster::new(&json!({"share": "team"}));
    labelled.claim("u1", "scratch");
    let labels = |team: &str| [("training".to_owned(), [("team".to_owned(), team.to_owned())].into())].into();
    labelled.world.namespaces = labels("web");
    let team = testing::share_for("team", &json!({"team": "ml"}));
    labelled.world.shares.insert(team.name.clone(), team);
    assert!(told(&mut labelled).1.contains("not for namespace training"));
    labelled.world.namespaces = labels("ml");
    labelled.round();
    assert_eq!(labelled.asked().len(), 1);
    std::sync::Arc::make_mut(cluster.world.classes.get_mut("shared").unwrap()).mount_options =
        Some(vec!["hard".into(), "timeo=50".into()]);
    cluster.change_claim("u1", |claim| claim.metadata.namespace = Some("training".into()));
    assert!(told(&mut cluster).1.contains("say spec.mountOptions.timeo: 50 there"));
    std::sync::Arc::make_mut(cluster.world.classes.get_mut("shared").unwrap()).mount_options =
        Some(vec!["hard".into(), "vers=4.1".into()]);
    cluster.change_claim("u1", |claim| claim.spec.as_mut().unwrap().volume_mode = Some("Block".into()));
    assert!(told(&mut cluster).1.contains("no block device"));
    cluster.world.desks.clear();
    cluster.change_claim("u1", |claim| {
        claim.metadata.namespace = Some("training".into());
        claim.spec.as_mut().unwrap().volume_mode = None;
    });
    assert!(told(&mut cluster).1.contains("moorline-agent Running"));
}

#[test]
fn no_two_claims_get_the_same_directory() {
    let mut cluster = Cluster::new(&json!({"share": "data", "subDir": "${pvc.metadata.name}", "onDelete": "delete"}));
    cluster.claim("u1", "scratch");
    cluster.claim("u2", "scratch");
    assert!(told(&mut cluster).1.contains("about to be another claim's (u1)"));
    cluster.settle();
    assert_eq!(cluster.volumes(), ["pvc-u1"]);
    assert!(cluster.told.pop().unwrap().1.contains("is PersistentVolume pvc-u1's"));
    // Not before the first one's is gone.
    cluster.delete_claim("u1");
    cluster.round();
    assert!(cluster.asked().iter().all(|(_, errand)| errand.id.as_str() == "u1"));
    cluster.settle();
    assert_eq!(cluster.volumes(), ["pvc-u2"]);
}

#[test]
fn a_claim_that_is_gone_before_its_volume_leaves_nothing() {
    let mut cluster = Cluster::new(&json!({"share": "data"}));
    cluster.claim("u1", "scratch");
    cluster.round();
    cluster.delete_claim("u1");
    cluster.round();
    assert_eq!(cluster.asked()[0].1.task, Task::Unmake {});
    cluster.settle();
    assert!(cluster.asked().is_empty() && cluster.volumes().is_empty());
}

#[test]
fn a_directory_stays_is_put_aside_or_deleted_as_its_class_said() {
    for (on_delete, task) in
        [("retain", None), ("archive", Some(Task::Archive {})), ("delete", Some(Task::Delete { dry_run: false }))]
    {
        let mut cluster = claimed(&json!({"share": "data", "onDelete": on_delete}));
        cluster.delete_claim("u1");
        cluster.round();
        assert_eq!(cluster.asked().pop().map(|(_, errand)| errand.task.clone()), task);
        assert_eq!(cluster.volumes().len(), usize::from(task.is_some()), "it stays until that is done");
        cluster.settle();
        assert!(cluster.volumes().is_empty() && cluster.asked().is_empty() && cluster.told.is_empty());
    }
}

#[test]
fn a_directory_that_was_there_is_taken_away_with_no_volume() {
    for on_delete in ["archive", "delete"] {
        let mut cluster = Cluster::new(&json!({"share": "data", "subDir": "theirs", "onDelete": on_delete}));
        cluster.claim("u1", "scratch");
        cluster.round();
        cluster.agents_do(State::Done, "theirs was there");
        cluster.round();
        cluster.bind();
        cluster.delete_claim("u1");
        let (reason, note) = told(&mut cluster);
        assert!(reason == "VolumeFailedDelete" && note.starts_with("theirs was not made for this claim"), "{note}");
        cluster.round();
        assert!(cluster.asked().iter().all(|(_, errand)| !errand.task.takes_away()), "{:?}", cluster.asked());
        assert_eq!(cluster.world.volumes[0].finalizers(), [""; 0], "nothing holds it when an admin deletes it");
    }
}

#[test]
fn a_dry_run_says_what_would_go_until_it_is_taken_out() {
    let mut cluster = claimed(&json!({"share": "data", "onDelete": "delete", "dryRun": "true"}));
    cluster.delete_claim("u1");
    cluster.round();
    cluster.agents_do(State::Done, "training/scratch would be deleted");
    let (reason, note) = told(&mut cluster);
    assert!(
        reason == "VolumeDeleteDryRun" && note.starts_with("training/scratch would be deleted. It is not"),
        "{note}"
    );
    cluster.change_volume("pvc-u1", |volume| drop(volume.metadata.annotations.as_mut().unwrap().remove(DRY_RUN)));
    cluster.round();
    assert_eq!(cluster.asked()[0].1.task, Task::Delete { dry_run: false });
    cluster.settle();
    assert!(cluster.volumes().is_empty());
}

#[test]
fn nothing_is_deleted_that_may_be_somebody_elses() {
    let refused = |change: &dyn Fn(&mut Cluster), said: &str| {
        let mut cluster = claimed(&json!({"share": "data", "onDelete": "delete"}));
        cluster.delete_claim("u1");
        change(&mut cluster);
        let (reason, note) = told(&mut cluster);
        assert!(reason == "VolumeFailedDelete" && note.contains(said), "{note}");
        assert!(cluster.asked().is_empty() && cluster.volumes().contains(&"pvc-u1"));
    };
    refused(
        &|it| it.world.shares.values_mut().for_each(|share| share.allow_delete = false),
        "say allowDelete: true there",
    );
    refused(&|it| it.world.shares.clear(), "there is no Share data any more");
    refused(
        &|it| {
            it.change_volume("pvc-u1", |volume| {
                volume.spec.as_mut().unwrap().csi.as_mut().unwrap().volume_handle = "x".into()
            })
        },
        "not as it was made",
    );
    refused(
        &|it| {
            it.change_volume("pvc-u1", |volume| {
                volume
                    .spec
                    .as_mut()
                    .unwrap()
                    .csi
                    .as_mut()
                    .unwrap()
                    .volume_attributes
                    .as_mut()
                    .unwrap()
                    .insert("subDir".into(), "..".into());
            })
        },
        "not as they were made: subDir",
    );
    let another = |share: &str, sub_dir: &str| {
        let csi = json!({"driver": "moorline.io", "volumeHandle": "x", "volumeAttributes": {"share": share, "subDir": sub_dir}});
        let volume =
            json!({"metadata": {"name": "static"}, "spec": {"csi": csi, "persistentVolumeReclaimPolicy": "Retain"}});
        std::sync::Arc::new(serde_json::from_value(volume).unwrap())
    };
    refused(
        &|it| it.world.volumes.push(another("data", "training/scratch-pvc-u1/deep")),
        "PersistentVolume static's as well",
    );
    refused(
        &|it| {
            let other = share("team", "/data/training");
            it.world.shares.insert(other.name.clone(), other);
            it.world.volumes.push(another("team", "scratch-pvc-u1"));
        },
        "PersistentVolume static's as well",
    );
    // The same by kubelet's own NFS.
    refused(
        &|it| {
            let server = territory::Server::OnNode("10.0.0.7".parse().unwrap());
            it.world.servers = [("gw".parse().unwrap(), [server].into())].into();
            let nfs = json!({"server": "10.0.0.7", "path": "/data/training/scratch-pvc-u1/deep"});
            let volume = json!({"metadata": {"name": "plain"}, "spec": {"nfs": nfs}});
            it.world.volumes.push(std::sync::Arc::new(serde_json::from_value(volume).unwrap()));
        },
        "PersistentVolume plain's as well",
    );
    // A view of the whole share is nobody's own.
    let mut cluster = claimed(&json!({"share": "data", "onDelete": "delete"}));
    cluster.world.volumes.push(another("data", ""));
    cluster.world.claims.clear();
    cluster.change_volume("pvc-u1", |volume| volume.status.get_or_insert_default().phase = Some("Released".into()));
    cluster.round();
    assert_eq!(cluster.asked().len(), 1);
}

#[test]
fn an_admin_may_keep_the_directory_after_all() {
    let mut cluster = claimed(&json!({"share": "data", "onDelete": "delete"}));
    cluster.delete_claim("u1");
    cluster.change_volume("pvc-u1", |volume| {
        volume.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Retain".into());
    });
    assert_eq!(cluster.round(), []);
    cluster.change_volume("pvc-u1", |volume| volume.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH)));
    let acts = acts(&cluster.world, &mut cluster.memory, cluster.now);
    assert!(matches!(&acts[..], [Act::LetGo { delete: false, finalizers, .. }] if finalizers.is_empty()), "{acts:?}");
}

#[test]
fn a_volume_that_was_made_available_again_goes_without_its_directory() {
    let mut cluster = claimed(&json!({"share": "data", "onDelete": "delete"}));
    cluster.delete_claim("u1");
    cluster.change_volume("pvc-u1", |volume| {
        volume.spec.as_mut().unwrap().claim_ref = None;
        volume.status.as_mut().unwrap().phase = Some("Available".into());
    });
    assert_eq!(cluster.round(), [], "another claim may have it");
    cluster.change_volume("pvc-u1", |volume| volume.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH)));
    let acts = acts(&cluster.world, &mut cluster.memory, cluster.now);
    let [Act::Tell(word), Act::LetGo { delete: false, finalizers, .. }] = &acts[..] else { panic!("{acts:?}") };
    assert!(word.reason == "VolumeKeepsDirectory" && finalizers.is_empty(), "{word:?}");
    cluster.change_volume("pvc-u1", |volume| volume.status.as_mut().unwrap().phase = Some("Bound".into()));
    assert_eq!(cluster.round(), [], "its claim has it yet");
}

#[test]
fn who_was_asked_to_delete_a_directory_says_that_it_does_not_before_its_volume_goes() {
    let leaves = |cluster: &mut Cluster| {
        cluster
            .change_volume("pvc-u1", |volume| volume.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH)));
    };
    let lets_go = |cluster: &mut Cluster| {
        let acts = acts(&cluster.world, &mut cluster.memory, cluster.now);
        acts.iter().any(|act| matches!(act, Act::LetGo { .. }))
    };
    for looked_at_between in [false, true] {
        let mut cluster = claimed(&json!({"share": "data", "onDelete": "delete"}));
        cluster.delete_claim("u1");
        cluster.round();
        assert_eq!(cluster.asked()[0].1.task, Task::Delete { dry_run: false });
        cluster.change_volume("pvc-u1", |volume| {
            volume.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Retain".into());
        });
        if looked_at_between {
            cluster.round();
        }
        leaves(&mut cluster);
        assert!(!lets_go(&mut cluster), "its agent may be about to delete it");
        cluster.round();
        assert_eq!(cluster.asked()[0].1.task, Task::Keep {});
        cluster.now += 2 * desks::PATIENCE;
        let (reason, note) = told(&mut cluster);
        assert!(
            reason == "VolumeFailedDelete" && note.contains("node a was asked to take its directory away"),
            "{note}"
        );
        let mut without = cluster.world.desks.clone();
        std::mem::swap(&mut cluster.world.desks, &mut without);
        cluster.world.desks.remove("a");
        assert!(lets_go(&mut cluster), "the node is gone for good");
        cluster.world.desks = without;
        cluster.agents_do(State::Done, "it stays");
        assert!(lets_go(&mut cluster));
    }
}

#[test]
fn what_an_agent_refuses_is_said_and_the_next_one_asked() {
    let mut cluster = Cluster::new(&json!({"share": "data"}));
    cluster.claim("u1", "scratch");
    cluster.round();
    cluster.agents_do(State::Failed, "a part of it is a symlink");
    assert_eq!(told(&mut cluster).1, "a part of it is a symlink (the agent of node a says so)");
    cluster.now += 2 * desks::PATIENCE;
    cluster.round();
    assert_eq!(cluster.asked()[0].0, "b");
}

#[test]
fn a_claim_grows_with_its_volume_and_nothing_is_asked_of_anybody() {
    let mut cluster = claimed(&json!({"share": "data"}));
    cluster.change_claim("u1", |claim| {
        let storage = claim.spec.as_mut().unwrap().resources.as_mut().unwrap().requests.as_mut().unwrap();
        storage.get_mut("storage").unwrap().0 = "8Gi".into();
        claim.status.as_mut().unwrap().conditions =
            serde_json::from_value(json!([{"type": "Resizing", "status": "True"}])).unwrap();
    });
    assert!(matches!(&cluster.round()[..], [Act::GrowVolume { storage, .. }] if storage == "8Gi"));
    assert!(matches!(&cluster.round()[..], [Act::GrowClaim { .. }]));
    assert_eq!(cluster.round(), []);
    let status = serde_json::to_value(&cluster.world.claims[0].status).unwrap();
    assert_eq!((&status["capacity"]["storage"], &status["conditions"]), (&json!("8Gi"), &json!([])));
}
