//! The agent's own API: HTTP and JSON on a unix socket that only root may open.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use moorline_shared::report::Report;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use crate::reconcile::Event;

const STATUS: &str = "/v1/status";
const PODS: &str = "/v1/pods/";
const DELETION: &str = "/deletion";
const LONGEST_BODY: usize = 4096;

/// Serves until the listener fails.
pub(crate) async fn serve(listener: UnixListener, events: mpsc::Sender<Event>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("accept a connection to the agent's socket: {error}");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let events = events.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, events.clone()));
            if let Err(error) =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
            {
                debug!("a connection to the agent's socket ended: {error}");
            }
        });
    }
}

async fn answer(request: Request<Incoming>, events: mpsc::Sender<Event>) -> Result<Response<Full<Bytes>>, Infallible> {
    if let Some(uid) = pod_of(request.uri().path()).map(str::to_owned) {
        return Ok(delete(uid, request, &events).await);
    }
    if request.uri().path() != STATUS {
        return Ok(error(StatusCode::NOT_FOUND, &format!("there is no {}; there is {STATUS}", request.uri().path())));
    }
    if request.method() != Method::GET {
        return Ok(error(StatusCode::METHOD_NOT_ALLOWED, &format!("{STATUS} is read with GET")));
    }
    let (reply, report) = oneshot::channel();
    let sent = events.send(Event::Report(reply)).await.is_ok();
    match report.await {
        Ok(report) if sent => Ok(json(StatusCode::OK, &report)),
        _ => Ok(error(StatusCode::SERVICE_UNAVAILABLE, "the agent could not look at its host; its log says why")),
    }
}

/// Where there is no API server to tell of it: a pod was asked to end, and has so much grace.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Deletion {
    grace_seconds: u32,
}

/// The UID in /v1/pods/UID/deletion.
fn pod_of(path: &str) -> Option<&str> {
    path.strip_prefix(PODS)?.strip_suffix(DELETION).filter(|uid| !uid.is_empty() && !uid.contains('/'))
}

async fn delete(uid: String, request: Request<Incoming>, events: &mpsc::Sender<Event>) -> Response<Full<Bytes>> {
    if request.method() != Method::PUT {
        return error(StatusCode::METHOD_NOT_ALLOWED, &format!("{PODS}UID{DELETION} is written with PUT"));
    }
    let body = match Limited::new(request.into_body(), LONGEST_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(problem) => return error(StatusCode::BAD_REQUEST, &format!("read the request: {problem}")),
    };
    match serde_json::from_slice::<Deletion>(&body) {
        Ok(Deletion { grace_seconds }) => {
            let grace = Duration::from_secs(grace_seconds.into());
            match events.send(Event::Deleted { uid, grace }).await {
                Ok(()) => json(StatusCode::OK, &serde_json::json!({})),
                Err(_) => error(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping"),
            }
        }
        Err(problem) => error(StatusCode::BAD_REQUEST, &format!("expected {{\"graceSeconds\": NUMBER}}: {problem}")),
    }
}

fn error(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    json(status, &serde_json::json!({ "error": message }))
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec_pretty(value).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no agent listens at {path}: is it running on this node, and are you root?")]
    Connect { path: String, source: io::Error },
    #[error("ask the agent")]
    Http(#[from] hyper::Error),
    #[error("the agent answers {status}: {body}")]
    Refused { status: StatusCode, body: String },
    #[error("the agent's answer can't be read: is it of another version?")]
    Json(#[from] serde_json::Error),
}

/// Asks an agent for its report.
pub async fn status(socket: &Path) -> Result<Report, AskError> {
    let connected = UnixStream::connect(socket).await;
    let stream = connected.map_err(|source| AskError::Connect { path: socket.display().to_string(), source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = hyper::Uri::from_static(STATUS);
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("moorline"));
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if status.is_success() {
        Ok(serde_json::from_slice(&body)?)
    } else {
        Err(AskError::Refused { status, body: String::from_utf8_lossy(&body).into_owned() })
    }
}
