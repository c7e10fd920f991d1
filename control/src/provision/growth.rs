//! Claims that ask for more: a share has no limit of its own, so there is nothing to do but to say so, first in the volume and
//! then in the claim's status.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use moorline_csi::DRIVER;
use serde_json::json;

use super::quantity::bytes;
use super::{Act, World};

/// What others say of a claim as long as it grows.
const GROWING: [&str; 4] = ["Resizing", "FileSystemResizePending", "ControllerResizeError", "NodeResizeError"];
const STORAGE: &str = "storage";

pub(super) fn acts(world: &World) -> Vec<Act> {
    world.claims.iter().filter_map(|claim| grow(claim, world)).collect()
}

fn grow(claim: &PersistentVolumeClaim, world: &World) -> Option<Act> {
    let (spec, status) = (claim.spec.as_ref()?, claim.status.as_ref()?);
    if status.phase.as_deref() != Some("Bound") || claim.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let wanted = spec.resources.as_ref()?.requests.as_ref()?.get(STORAGE)?;
    let has = status.capacity.as_ref()?.get(STORAGE)?;
    if bytes(&wanted.0)? <= bytes(&has.0)? {
        return None;
    }
    let name = spec.volume_name.as_ref()?;
    let volume = world.volumes.iter().find(|volume| volume.name_any() == *name && is_of(volume, claim))?;
    let size = volume.spec.as_ref()?.capacity.as_ref()?.get(STORAGE)?;
    if bytes(&size.0)? < bytes(&wanted.0)? {
        let version = volume.resource_version().unwrap_or_default();
        return Some(Act::GrowVolume { volume: name.clone(), version, storage: wanted.0.clone() });
    }
    let conditions = status.conditions.iter().flatten().filter(|it| !GROWING.contains(&it.type_.as_str()));
    Some(Act::GrowClaim {
        namespace: claim.namespace()?,
        claim: claim.name_any(),
        version: claim.resource_version().unwrap_or_default(),
        storage: wanted.0.clone(),
        conditions: json!(conditions.collect::<Vec<_>>()),
    })
}

fn is_of(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(spec) = &volume.spec else { return false };
    spec.csi.as_ref().is_some_and(|csi| csi.driver == DRIVER)
        && spec.claim_ref.as_ref().is_some_and(|claim_ref| claim_ref.uid == claim.metadata.uid)
}
