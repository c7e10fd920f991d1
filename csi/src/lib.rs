//! What kubelet and a cluster's provisioners say to a driver, as it is published: CSI, and kubelet's plugin registration.

pub mod capability;

/// The driver's name.
pub const DRIVER: &str = "moorline.io";

/// Generated from the published definition.
#[allow(clippy::all, clippy::pedantic, unreachable_pub, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("csi.v1");
}

/// Generated from the published definition.
#[allow(clippy::all, clippy::pedantic, unreachable_pub, reason = "generated code")]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// The Identity service, which every socket of the driver serves.
pub struct Identity;

#[tonic::async_trait]
impl v1::identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: tonic::Request<v1::GetPluginInfoRequest>,
    ) -> Result<tonic::Response<v1::GetPluginInfoResponse>, tonic::Status> {
        Ok(tonic::Response::new(v1::GetPluginInfoResponse {
            name: DRIVER.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: tonic::Request<v1::GetPluginCapabilitiesRequest>,
    ) -> Result<tonic::Response<v1::GetPluginCapabilitiesResponse>, tonic::Status> {
        use v1::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
        let service = Type::Service(Service { r#type: service::Type::ControllerService.into() });
        let expansion = Type::VolumeExpansion(VolumeExpansion { r#type: volume_expansion::Type::Online.into() });
        let capabilities = [service, expansion].map(|it| v1::PluginCapability { r#type: Some(it) });
        Ok(tonic::Response::new(v1::GetPluginCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn probe(
        &self,
        _: tonic::Request<v1::ProbeRequest>,
    ) -> Result<tonic::Response<v1::ProbeResponse>, tonic::Status> {
        Ok(tonic::Response::new(v1::ProbeResponse { ready: Some(true) }))
    }
}
