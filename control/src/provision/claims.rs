//! Claims that wait for a volume: a directory is made for each, and then a PersistentVolume.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use moorline_csi::DRIVER;
use moorline_shared::errand::{Errand, Task};
use moorline_shared::wishes::Wishes;

use super::class::{Class, OnDelete};
use super::desks::{Desks, Progress};
use super::template::Names;
use super::{
    Act, DRY_RUN, FINALIZER, FOUND, ON_DELETE, PROVISIONED_BY, SHARE, SUB_DIR, Word, World, explain, volume_name,
};

/// Whose a claim is, as Kubernetes says since 1.23 and said before.
const PROVISIONER: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// The node of the first pod that uses it, where the class waits for that.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const WAITS: &str = "WaitForFirstConsumer";
/// What a claim has if it asks for none.
const NO_SIZE: &str = "0";

pub(super) fn acts(world: &World, desks: &mut Desks) -> Vec<Act> {
    let mut claims: Vec<&PersistentVolumeClaim> = world.claims.iter().map(AsRef::as_ref).collect();
    // Of two that want one directory it is the first one's.
    claims.sort_by_key(|claim| (claim.metadata.creation_timestamp.clone(), claim.metadata.uid.clone()));
    let due = claims.into_iter().filter_map(|claim| Some((claim, class_of(claim, world)?)));
    due.filter_map(|(claim, class)| match provide(claim, class, world, desks) {
        Ok(act) => act,
        Err(note) => Some(Word::of(claim, "ProvisioningFailed", true, note)),
    })
    .collect()
}

/// The class by which a volume is to be made now.
fn class_of<'a>(claim: &PersistentVolumeClaim, world: &'a World) -> Option<&'a StorageClass> {
    let spec = claim.spec.as_ref()?;
    let annotations = claim.annotations();
    let bound = spec.volume_name.as_ref().is_some_and(|volume| !volume.is_empty());
    let ours = PROVISIONER.iter().any(|key| annotations.get(*key).is_some_and(|by| by == DRIVER));
    if bound || !ours || claim.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let name = annotations.get(OLD_CLASS).or(spec.storage_class_name.as_ref())?;
    let class = world.classes.get(name).filter(|class| class.provisioner == DRIVER)?;
    let waits = class.volume_binding_mode.as_deref() == Some(WAITS) && !annotations.contains_key(SELECTED_NODE);
    (!waits).then_some(class)
}

/// What is to be done for it, if anything is but to wait; or why it can't be.
fn provide(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    world: &World,
    desks: &mut Desks,
) -> Result<Option<Act>, String> {
    let uid = claim.uid().unwrap_or_default();
    let volume = volume_name(&uid);
    if world.volumes.iter().any(|there| there.name_any() == volume) {
        return Ok(None);
    }
    possible(claim)?;
    let said = Class::of_claims(class.parameters.as_ref())
        .map_err(|why| format!("StorageClass {}: {why}", class.name_any()))?;
    let share = world.writable(&said.share)?;
    let namespace = claim.namespace().unwrap_or_default();
    world.allow(share, &namespace)?;
    let options = class.mount_options.iter().flatten().map(String::as_str);
    Wishes::read(options)
        .and_then(|wishes| wishes.suit(share))
        .map_err(|why| format!("StorageClass {}: {why}", class.name_any()))?;
    let name = claim.name_any();
    let names = Names { claim: Some(&name), namespace: Some(&namespace), volume: &volume };
    let sub_dir = said.sub_dir.fill(&names).map_err(|error| error.to_string())?;
    let id = uid.parse().map_err(|error| format!("the claim's UID is of no use: {error}"))?;
    let task = Task::Make { uid: said.uid, gid: said.gid, mode: said.mode };
    let errand = Errand { id, share: said.share.clone(), sub_dir, task };
    alone(&errand, &volume, world, desks)?;
    let near = claim.annotations().get(SELECTED_NODE).map(String::as_str);
    match desks.pursue(&errand, share, near) {
        Progress::Done(words) => {
            let found = words == errand.was_there();
            Ok(Some(Act::MakeVolume(Box::new(volume_of(claim, class, &said, &errand, found)))))
        }
        progress => explain(&progress).map_or(Ok(None), Err),
    }
}

fn possible(claim: &PersistentVolumeClaim) -> Result<(), String> {
    let spec = claim.spec.as_ref();
    if spec.and_then(|spec| spec.volume_mode.as_deref()).is_some_and(|mode| mode != "Filesystem") {
        return Err("a directory of a Share is no block device: use volumeMode Filesystem".to_owned());
    }
    if spec.is_some_and(|spec| spec.data_source.is_some() || spec.data_source_ref.is_some()) {
        return Err(
            "a volume can't begin as a copy: leave dataSource out, and copy what is to be in it by a Job".to_owned()
        );
    }
    Ok(())
}

/// Whether nobody else has the directory, nor one in it.
fn alone(errand: &Errand, volume: &str, world: &World, desks: &Desks) -> Result<(), String> {
    let mine = world.territory(errand.share.as_str(), &errand.sub_dir.to_string());
    let cure = "let the StorageClass's subDir hold ${pv.metadata.name}, or the claim have another name";
    if let Some(other) = world.other_owner(&mine, |other| other.name_any() == volume) {
        return Err(format!("{} of Share {} is PersistentVolume {other}'s: {cure}", errand.sub_dir, errand.share));
    }
    let coming = desks.making(&errand.id).find(|other| {
        let theirs = world.territory(other.share.as_str(), &other.sub_dir.to_string());
        mine.contains(&theirs) || theirs.contains(&mine)
    });
    match coming {
        // Who was asked for already is first.
        Some(other) if !desks.is_asked(errand) => Err(format!(
            "{} of Share {} is about to be another claim's ({}): {cure}",
            other.sub_dir, other.share, other.id
        )),
        _ => Ok(()),
    }
}

fn volume_of(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    said: &Class,
    errand: &Errand,
    found: bool,
) -> PersistentVolume {
    let name = volume_name(errand.id.as_str());
    let spec = claim.spec.clone().unwrap_or_default();
    let requested = spec.resources.and_then(|resources| resources.requests).and_then(|mut it| it.remove("storage"));
    let size = requested.unwrap_or_else(|| k8s_openapi::apimachinery::pkg::api::resource::Quantity(NO_SIZE.to_owned()));
    let mut annotations = BTreeMap::from([(PROVISIONED_BY.to_owned(), DRIVER.to_owned())]);
    annotations.insert(ON_DELETE.to_owned(), said.on_delete.as_str().to_owned());
    if said.dry_run {
        annotations.insert(DRY_RUN.to_owned(), "true".to_owned());
    }
    if found {
        annotations.insert(FOUND.to_owned(), "true".to_owned());
    }
    let attributes = [(SHARE, errand.share.to_string()), (SUB_DIR, errand.sub_dir.to_string())];
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some(annotations),
            finalizers: (said.on_delete != OnDelete::Retain && !found).then(|| vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some(BTreeMap::from([("storage".to_owned(), size)])),
            claim_ref: Some(claim.object_ref(&())),
            csi: Some(CSIPersistentVolumeSource {
                driver: DRIVER.to_owned(),
                volume_handle: name,
                volume_attributes: Some(attributes.map(|(key, value)| (key.to_owned(), value)).into()),
                ..CSIPersistentVolumeSource::default()
            }),
            mount_options: class.mount_options.clone(),
            persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned())),
            storage_class_name: Some(class.name_any()),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    }
}
