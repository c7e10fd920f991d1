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
use tracing::{debug, warn};

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

/// Takes in what a watch brings. That it brings nothing is said in the log once, until it does again.
struct Ear {
    /// As the API server names them.
    kind: &'static str,
    /// As people do.
    what: &'static str,
    is_deaf: bool,
}

impl Ear {
    fn of(kind: &'static str, what: &'static str) -> Self {
        Self { kind, what, is_deaf: false }
    }

    fn hear<K>(&mut self, event: Result<watcher::Event<K>, watcher::Error>) -> Option<watcher::Event<K>> {
        match event {
            Ok(event) => {
                self.is_deaf = false;
                return Some(event);
            }
            Err(error) if is_outdated(&error) => debug!("listing {} anew: {error}", self.kind),
            Err(error) => {
                if !std::mem::replace(&mut self.is_deaf, true) {
                    let why = explain(&error, self.kind);
                    warn!("watch {}: {why}; trying on, what was said last stands", self.what);
                }
            }
        }
        None
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

    #[test]
    fn an_ear_is_deaf_from_an_error_to_the_next_event() {
        let mut ear = Ear::of("pods", "the pods");
        let mut hear = |event: Result<watcher::Event<()>, _>| (ear.hear(event).is_some(), ear.is_deaf);
        let status = |code| Box::new(Status { code, ..Status::default() });
        assert_eq!(hear(Err(watcher::Error::WatchError(status(410)))), (false, false), "that is ordinary");
        assert_eq!(hear(Err(watcher::Error::WatchError(status(500)))), (false, true));
        assert_eq!(hear(Ok(watcher::Event::Init)), (true, false));
    }
}
