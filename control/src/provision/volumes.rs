//! Volumes whose claims are gone: what becomes of the directory is done first, then the PersistentVolume goes.

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use moorline_shared::cluster::{SHARE, SUB_DIR};
use moorline_shared::errand::{Errand, Task};
use moorline_shared::share::{Access, Share};

use super::class::OnDelete;
use super::desks::{Desks, Progress};
use super::{
    Act, DRY_RUN, FINALIZER, FOUND, OF_CSI, ON_DELETE, Word, World, directory, explain, is_provisioned, volume_name,
};

const LET_GO: &str = "To give up the volume and keep the directory, set persistentVolumeReclaimPolicy: Retain and delete the PersistentVolume";

pub(super) fn acts(world: &World, desks: &mut Desks) -> Vec<Act> {
    let ours = world
        .volumes
        .iter()
        .filter(|volume| is_provisioned(volume) && directory(volume).is_some() && !is_of_csi(volume));
    ours.flat_map(|volume| match release(volume, world, desks) {
        Ok(act) if act.is_some() && is_nobodys(volume) => {
            let note = "it is deleted, and no claim has let go of it: its directory stays, whatever its class said";
            vec![Word::of(&**volume, "VolumeKeepsDirectory", false, note.to_owned())].into_iter().chain(act).collect()
        }
        Ok(act) => Vec::from_iter(act),
        Err(note) => vec![Word::of(&**volume, "VolumeFailedDelete", true, note)],
    })
    .collect()
}

fn release(volume: &PersistentVolume, world: &World, desks: &mut Desks) -> Result<Option<Act>, String> {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let is_leaving = volume.metadata.deletion_timestamp.is_some();
    if policy != Some("Delete") || is_nobodys(volume) {
        // An admin keeps the directory.
        let held = volume.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
        return if is_leaving && held { give_up(volume, desks) } else { Ok(None) };
    }
    if !matches!(phase, Some("Released" | "Failed")) {
        return Ok(None);
    }
    let annotation = |key: &str| volume.annotations().get(key).map(String::as_str);
    let on_delete = annotation(ON_DELETE).map_or(Some(OnDelete::Retain), OnDelete::read);
    let dry_run = annotation(DRY_RUN) == Some("true");
    let task = match on_delete {
        None => {
            return Err(format!("its annotation {ON_DELETE} is none of retain, archive and delete: write one of them"));
        }
        Some(OnDelete::Retain) => return give_up(volume, desks),
        Some(OnDelete::Archive) => Task::Archive {},
        Some(OnDelete::Delete) => Task::Delete { dry_run },
    };
    let (errand, share) = errand(volume, task, world)?;
    if annotation(FOUND).is_some() {
        return Err(errand.is_not_ours());
    }
    match desks.pursue(&errand, share, None) {
        Progress::Done(words) if dry_run => Ok(Some(Word::of(
            volume,
            "VolumeDeleteDryRun",
            false,
            format!("{words}. It is not: remove the annotation {DRY_RUN} and it will be. {LET_GO}"),
        ))),
        Progress::Done(_) => Ok(Some(let_go(volume))),
        progress => explain(&progress).map_or(Ok(None), Err),
    }
}

/// Its claim was taken from it by an admin, and no other has come: it is being deleted all the same.
fn is_nobodys(volume: &PersistentVolume) -> bool {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    volume.metadata.deletion_timestamp.is_some() && matches!(phase, None | Some("Pending" | "Available"))
}

/// Its directory stays: nobody who was asked to take it away may do that when it is gone.
fn give_up(volume: &PersistentVolume, desks: &mut Desks) -> Result<Option<Act>, String> {
    let id = volume.name_any().strip_prefix(volume_name("").as_str()).and_then(|uid| uid.parse().ok());
    match id.and_then(|id| desks.take_back(&id)) {
        None => Ok(Some(let_go(volume))),
        Some(Progress::Waits { node, late: true, .. }) => Err(format!(
            "the agent of node {node} was asked to take its directory away, and has not said yet that it does not: the volume goes when it has. Should that node be gone for good, delete its Node object"
        )),
        Some(_) => Ok(None),
    }
}

/// What is to be done with its directory, and where; refused unless it is the very one that was made for its claim.
fn errand<'a>(volume: &PersistentVolume, task: Task, world: &'a World) -> Result<(Errand, &'a Share), String> {
    let name = volume.name_any();
    let spec = volume.spec.as_ref();
    let uid = spec.and_then(|spec| spec.claim_ref.as_ref()?.uid.clone()).unwrap_or_default();
    let handle = spec.and_then(|spec| Some(spec.csi.as_ref()?.volume_handle.as_str()));
    let (share, sub_dir) = directory(volume).unwrap_or_default();
    if uid.is_empty() || name != volume_name(&uid) || handle != Some(&name) {
        return Err(format!(
            "it is not as it was made: its name, its volumeHandle and its claimRef's uid are of different claims. {LET_GO}"
        ));
    }
    let readable = |what: &str, error: String| {
        format!("its volumeAttributes are not as they were made: {what}: {error}. {LET_GO}")
    };
    let id = uid.parse().map_err(|_| format!("its claimRef's uid is of no use. {LET_GO}"))?;
    let sub_dir =
        sub_dir.parse().map_err(|error: moorline_shared::sub_dir::SubDirError| readable(SUB_DIR, error.to_string()))?;
    let share_name =
        share.parse().map_err(|error: moorline_shared::name::NameError| readable(SHARE, error.to_string()))?;
    let errand = Errand { id, share: share_name, sub_dir, task };
    let mine = world.territory(share, &errand.sub_dir.to_string());
    if let Some(other) = world.other_owner(&mine, |other| other.name_any() == name) {
        return Err(format!(
            "{} of Share {share} is PersistentVolume {other}'s as well, and so it stays: delete that one first. {LET_GO}",
            errand.sub_dir
        ));
    }
    // One that is being deleted will do for its volumes' end.
    let Some(share) = world.shares.get(&errand.share) else {
        return Err(format!("there is no Share {share} any more: make it again. {LET_GO}"));
    };
    if share.access == Access::ReadOnly {
        return Err(format!("Share {} is ReadOnly: say access: ReadWrite. {LET_GO}", share.name));
    }
    if matches!(errand.task, Task::Delete { dry_run: false }) && !share.allow_delete {
        return Err(format!("Share {} does not allow it: say allowDelete: true there. {LET_GO}", share.name));
    }
    Ok((errand, share))
}

/// Made by whoever calls the CSI service, who deletes it as well.
fn is_of_csi(volume: &PersistentVolume) -> bool {
    let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    csi.is_some_and(|csi| csi.volume_handle.starts_with(OF_CSI))
}

fn let_go(volume: &PersistentVolume) -> Act {
    Act::LetGo {
        volume: volume.name_any(),
        uid: volume.uid().unwrap_or_default(),
        version: volume.resource_version().unwrap_or_default(),
        finalizers: volume.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect(),
        delete: volume.metadata.deletion_timestamp.is_none(),
    }
}
