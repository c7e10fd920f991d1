//! How kubelet's plugin watcher gets to know the driver: by a socket in its plugins_registry.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use tracing::{error, info};

use super::{DRIVER, registration_proto as proto};
use crate::window::Window;

pub(crate) struct Registration {
    /// Where kubelet finds the CSI services, as the host sees it.
    pub(crate) endpoint: String,
    pub(crate) window: Arc<Window>,
}

#[tonic::async_trait]
impl proto::registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<proto::InfoRequest>) -> Result<Response<proto::PluginInfo>, Status> {
        Ok(Response::new(proto::PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<proto::RegistrationStatus>,
    ) -> Result<Response<proto::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.window.vitals.registered(status.plugin_registered);
        if status.plugin_registered {
            info!("kubelet has registered the driver");
        } else {
            error!("kubelet refuses the driver: {}", status.error);
        }
        Ok(Response::new(proto::RegistrationStatusResponse {}))
    }
}
