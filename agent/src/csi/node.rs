//! CSI's Node service.

use moorline_shared::usage::Amount;
use tonic::{Request, Response, Status};

use super::{proto, volume};
use crate::door::Door;
use crate::reconcile::{Denied, VolumeState};
use proto::node_service_capability::{Rpc, Type, rpc};
use proto::volume_usage::Unit;

pub(crate) struct Node {
    pub(crate) node: String,
    pub(crate) door: Door,
}

const CAPABILITIES: [rpc::Type; 3] =
    [rpc::Type::GetVolumeStats, rpc::Type::VolumeCondition, rpc::Type::SingleNodeMultiWriter];

fn stats(state: &VolumeState) -> proto::NodeGetVolumeStatsResponse {
    let count = |count: u64| count.try_into().unwrap_or(i64::MAX);
    let usage = |unit: Unit, amount: &Amount| proto::VolumeUsage {
        unit: unit.into(),
        total: count(amount.total),
        used: count(amount.used),
        available: count(amount.available),
    };
    let seen = state.usage.map(|(_, age)| format!("its server was last asked {} s ago", age.as_secs()));
    let seen = seen.unwrap_or_else(|| "its server was not asked yet".to_owned());
    let message = match &state.trouble {
        Some(trouble) => format!("{trouble} ({seen})"),
        None => seen,
    };
    proto::NodeGetVolumeStatsResponse {
        usage: state
            .usage
            .iter()
            .flat_map(|(it, _)| [usage(Unit::Bytes, &it.bytes), usage(Unit::Inodes, &it.files)])
            .collect(),
        volume_condition: Some(proto::VolumeCondition { abnormal: state.trouble.is_some(), message }),
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

#[tonic::async_trait]
impl proto::node_server::Node for Node {
    async fn node_publish_volume(
        &self,
        request: Request<proto::NodePublishVolumeRequest>,
    ) -> Result<Response<proto::NodePublishVolumeResponse>, Status> {
        let (publication, wishes) = volume::publication(request.into_inner())?;
        self.door.publish(publication, wishes).await.map_err(status)?;
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
        let capabilities = CAPABILITIES.map(|capability| proto::NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: capability.into() })),
        });
        Ok(Response::new(proto::NodeGetCapabilitiesResponse { capabilities: capabilities.into() }))
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
        request: Request<proto::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<proto::NodeGetVolumeStatsResponse>, Status> {
        let proto::NodeGetVolumeStatsRequest { volume_id, volume_path, .. } = request.into_inner();
        for (value, name) in [(&volume_id, "volume_id"), (&volume_path, "volume_path")] {
            if value.is_empty() {
                return Err(Status::invalid_argument(format!("{name} is missing")));
            }
        }
        let state = self.door.volume(volume_path).await.map_err(status)?;
        Ok(Response::new(stats(&state)))
    }

    async fn node_expand_volume(
        &self,
        _: Request<proto::NodeExpandVolumeRequest>,
    ) -> Result<Response<proto::NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("expansion is not offered"))
    }
}
