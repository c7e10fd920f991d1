//! CSI's Node service.

use std::collections::HashMap;

use moorline_shared::name::Name;
use moorline_shared::publication::{Pod, Publication};
use moorline_shared::sub_dir::SubDir;
use tonic::{Request, Response, Status};

use super::proto;
use crate::door::Door;
use crate::reconcile::Denied;

pub(crate) struct Node {
    pub(crate) node: String,
    pub(crate) door: Door,
}

/// What a volume may say of itself. Everything else is refused by name.
const SHARE: &str = "share";
const SUB_DIR: &str = "subDir";
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
/// Set by kubelet and the provisioner; nothing follows from them here.
const IGNORED: [&str; 3] = [
    "csi.storage.k8s.io/serviceAccount.name",
    "csi.storage.k8s.io/ephemeral",
    "storage.kubernetes.io/csiProvisionerIdentity",
];

impl Node {
    fn publication(request: proto::NodePublishVolumeRequest) -> Result<Publication, Status> {
        if request.volume_id.is_empty() {
            return Err(Status::invalid_argument("volume_id is missing"));
        }
        let capability = request.volume_capability.and_then(|capability| capability.access_type);
        match capability {
            Some(proto::volume_capability::AccessType::Mount(mount)) if !mount.mount_flags.is_empty() => {
                return Err(Status::invalid_argument(format!(
                    "mount options {:?} are not known: a Share's options are moorline's own",
                    mount.mount_flags
                )));
            }
            Some(proto::volume_capability::AccessType::Mount(mount))
                if !matches!(mount.fs_type.as_str(), "" | "nfs" | "nfs4") =>
            {
                return Err(Status::invalid_argument(format!(
                    "fsType {:?} is not what a Share is: leave it out",
                    mount.fs_type
                )));
            }
            Some(proto::volume_capability::AccessType::Mount(_)) => {}
            Some(proto::volume_capability::AccessType::Block(_)) => {
                return Err(Status::invalid_argument("a Share is no block device: use volumeMode Filesystem"));
            }
            None => return Err(Status::invalid_argument("volume_capability is missing")),
        }
        let attributes = Attributes::read(request.volume_context)?;
        Ok(Publication {
            volume_id: request.volume_id,
            target_path: request.target_path,
            share: attributes.share,
            sub_dir: attributes.sub_dir,
            read_only: request.readonly,
            pod: attributes.pod,
            node: false,
            wanted: true,
        })
    }
}

fn status(denied: Denied) -> Status {
    let message = denied.to_string();
    match denied {
        Denied::Invalid(_) => Status::invalid_argument(message),
        Denied::NotFound(_) => Status::not_found(message),
        Denied::Forbidden(_) => Status::permission_denied(message),
        Denied::Conflict(_) => Status::already_exists(message),
        Denied::Unavailable(_) => Status::unavailable(message),
        Denied::Failed(_) => Status::failed_precondition(message),
    }
}

struct Attributes {
    share: Name,
    sub_dir: Option<SubDir>,
    pod: Pod,
}

impl Attributes {
    fn read(mut context: HashMap<String, String>) -> Result<Self, Status> {
        let share = context
            .remove(SHARE)
            .ok_or_else(|| Status::invalid_argument("volumeAttributes lack `share`, the name of a Share"))?;
        let share =
            share.parse().map_err(|error| Status::invalid_argument(format!("volumeAttributes.share: {error}")))?;
        // An empty one is what a template leaves that was given none.
        let sub_dir = context.remove(SUB_DIR).filter(|path| !path.is_empty());
        let sub_dir = sub_dir
            .map(|path| path.parse::<SubDir>().map_err(|error| format!("volumeAttributes.subDir: {error}")))
            .transpose()
            .map_err(Status::invalid_argument)?;
        let mut pod = |key: &str, meaning: &str| {
            context.remove(key).filter(|value| !value.is_empty()).ok_or_else(|| {
                Status::invalid_argument(format!(
                    "the volume context lacks {key} ({meaning}): the CSIDriver object must say podInfoOnMount: true"
                ))
            })
        };
        let pod = Pod {
            namespace: pod(POD_NAMESPACE, "who may use a Share depends on it")?,
            name: pod(POD_NAME, "events and logs name it")?,
            uid: pod(POD_UID, "it tells pods of one name apart")?,
        };
        let mut unknown: Vec<&String> = context.keys().filter(|key| !IGNORED.contains(&key.as_str())).collect();
        unknown.sort();
        if unknown.is_empty() {
            Ok(Self { share, sub_dir, pod })
        } else {
            Err(Status::invalid_argument(format!(
                "volumeAttributes {unknown:?} are not known; known are `share` and `subDir`"
            )))
        }
    }
}

#[tonic::async_trait]
impl proto::node_server::Node for Node {
    async fn node_publish_volume(
        &self,
        request: Request<proto::NodePublishVolumeRequest>,
    ) -> Result<Response<proto::NodePublishVolumeResponse>, Status> {
        let publication = Self::publication(request.into_inner())?;
        self.door.publish(publication).await.map_err(status)?;
        Ok(Response::new(proto::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<proto::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<proto::NodeUnpublishVolumeResponse>, Status> {
        let proto::NodeUnpublishVolumeRequest { volume_id, target_path } = request.into_inner();
        if volume_id.is_empty() {
            return Err(Status::invalid_argument("volume_id is missing"));
        }
        self.door.unpublish(target_path).await.map_err(status)?;
        Ok(Response::new(proto::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<proto::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<proto::NodeGetCapabilitiesResponse>, Status> {
        Ok(Response::new(proto::NodeGetCapabilitiesResponse::default()))
    }

    async fn node_get_info(
        &self,
        _: Request<proto::NodeGetInfoRequest>,
    ) -> Result<Response<proto::NodeGetInfoResponse>, Status> {
        Ok(Response::new(proto::NodeGetInfoResponse { node_id: self.node.clone(), ..Default::default() }))
    }

    async fn node_stage_volume(
        &self,
        _: Request<proto::NodeStageVolumeRequest>,
    ) -> Result<Response<proto::NodeStageVolumeResponse>, Status> {
        Err(Status::unimplemented("volumes are published without staging"))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<proto::NodeUnstageVolumeRequest>,
    ) -> Result<Response<proto::NodeUnstageVolumeResponse>, Status> {
        Err(Status::unimplemented("volumes are published without staging"))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<proto::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<proto::NodeGetVolumeStatsResponse>, Status> {
        Err(Status::unimplemented("volume statistics are not offered"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<proto::NodeExpandVolumeRequest>,
    ) -> Result<Response<proto::NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("expansion is not offered"))
    }
}
