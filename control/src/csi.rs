//! CSI's Controller service, for whoever makes volumes without claims: the same directories, made by the same agents. What is
//! known of each volume is kept in a ConfigMap.

mod record;
mod service;
mod wish;

use std::fs;
use std::io;
use std::path::Path;

use kube::Client;
use moorline_csi::{Identity, v1};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::provision::desks::Moment;
use crate::sight::Sight;

#[derive(Debug, thiserror::Error)]
pub enum CsiError {
    #[error("listen at {0}: is its directory there, and may it be written to?")]
    Listen(String, #[source] io::Error),
    #[error("serve the CSI Controller service")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves until the process ends.
pub(crate) async fn serve(
    client: Client,
    socket: &Path,
    clock: impl Fn() -> Moment + Send + Sync + 'static,
) -> Result<(), CsiError> {
    let listener = listen(socket).map_err(|error| CsiError::Listen(socket.display().to_string(), error))?;
    let (sight, mut changes) = Sight::watch(&client);
    let (tick, ticks) = watch::channel(());
    tokio::spawn(async move {
        use futures_util::StreamExt;
        while changes.next().await.is_some() && tick.send(()).is_ok() {}
    });
    let service = service::Controller::new(client, sight, ticks, clock);
    Server::builder()
        .add_service(v1::identity_server::IdentityServer::new(Identity))
        .add_service(v1::controller_server::ControllerServer::new(service))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await?;
    Ok(())
}

/// In the place of what an earlier one left.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(socket)
}

#[cfg(test)]
mod tests;
