//! What the API server says. While it is away what it said last stands, and the agent goes on.

pub(crate) mod errands;
pub(crate) mod events;
pub(crate) mod leases;
pub(crate) mod namespaces;
pub(crate) mod node;
pub(crate) mod objects;
pub(crate) mod pods;
pub(crate) mod report;

use std::env;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use kube::config::InClusterError;
use kube::core::Status;
use kube::runtime::watcher;
use kube::{Client, Config};
use moorline_shared::cluster::{SILENCE, WATCH};

use crate::reconcile::chain;

/// Reads the time of day, for nothing but to hold it against the API server's.
pub(crate) type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("read the service account's files: is its token mounted whole?")]
    ServiceAccount(#[source] InClusterError),
    #[error("prepare a connection to the API server")]
    Client(#[source] kube::Error),
}

/// Whether this process runs in a pod, and that pod was given a token.
pub(crate) fn in_cluster() -> bool {
    env::var_os("KUBERNETES_SERVICE_HOST").is_some() && Path::new(TOKEN).exists()
}

pub(crate) fn connect() -> Result<Client, ConnectError> {
    let mut config = Config::incluster_env().map_err(ConnectError::ServiceAccount)?;
    config.read_timeout = Some(SILENCE);
    // Counted from the request, not from when its connection was last used.
    config.reset_reader_on_write = true;
    Client::try_from(config).map_err(ConnectError::Client)
}

/// What the API server answered, if it answered at all.
fn answer(error: &watcher::Error) -> Option<&Status> {
    use watcher::Error;
    match error {
        Error::WatchError(status)
        | Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        _ => None,
    }
}

/// The version that was watched from is no longer kept: ordinary, the next list follows at once.
fn is_outdated(error: &watcher::Error) -> bool {
    answer(error).is_some_and(|status| status.code == 410)
}

/// What is wrong, and the likely cure.
fn explain(error: &watcher::Error, kind: &str) -> String {
    match answer(error) {
        Some(Status { code: 401 | 403, message, .. }) => {
            format!("{message}: may the agent's ServiceAccount list and watch {kind}? Its roles must be bound")
        }
        Some(Status { code, message, .. }) => format!("the API server answers {code}: {message}"),
        None => format!("{}: is the API server away?", chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_look_at() {
        let status = |code| Box::new(Status { code, message: "pods is forbidden".to_owned(), ..Status::default() });
        let explained = |code| explain(&watcher::Error::InitialListFailed(kube::Error::Api(status(code))), "pods");
        assert!(explained(403).starts_with("pods is forbidden: may the agent's ServiceAccount"), "{}", explained(403));
        assert_eq!(explained(500), "the API server answers 500: pods is forbidden");
        assert!(explain(&watcher::Error::NoResourceVersion, "pods").ends_with("is the API server away?"));
        assert!(is_outdated(&watcher::Error::WatchError(status(410))));
    }
}
