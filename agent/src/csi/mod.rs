//! What kubelet asks: CSI's Identity and Node services, and its plugin registration. No decisions here: requests
//! become desired state, and the loop answers.

mod node;
mod registration;
mod volume;

use tonic::{Request, Response, Status};

pub(crate) use node::Node;
pub(crate) use registration::Registration;

/// Generated from the published definitions.
#[allow(clippy::all, unreachable_pub, reason = "generated code")]
pub(crate) mod proto {
    tonic::include_proto!("csi.v1");
}

#[allow(clippy::all, unreachable_pub, reason = "generated code")]
pub(crate) mod registration_proto {
    tonic::include_proto!("pluginregistration");
}

pub(crate) const DRIVER: &str = "moorline.io";

pub(crate) struct Identity;

#[tonic::async_trait]
impl proto::identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<proto::GetPluginInfoRequest>,
    ) -> Result<Response<proto::GetPluginInfoResponse>, Status> {
        Ok(Response::new(proto::GetPluginInfoResponse {
            name: DRIVER.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<proto::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<proto::GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(proto::GetPluginCapabilitiesResponse::default()))
    }

    async fn probe(&self, _: Request<proto::ProbeRequest>) -> Result<Response<proto::ProbeResponse>, Status> {
        Ok(Response::new(proto::ProbeResponse { ready: Some(true) }))
    }
}
