//! `/healthz`, `/readyz` and `/metrics` over HTTP. On a thread of its own: whatever the agent's other threads hang on,
//! this one answers, and says so.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

use crate::door::Door;
use crate::hands;
use crate::http::{Body, serve, text};
use crate::window::Window;

/// How long the loop may take to give its report to a scrape.
const PATIENCE: Duration = Duration::from_secs(5);
/// From one try to listen to the next.
const RETRY: Duration = Duration::from_secs(5);
/// A probe and some scrapers need a few. With more the oldest is ended: somebody who opens many and says nothing can
/// neither use up the agent's descriptors nor keep kubelet's probe out.
const CONNECTIONS: usize = 32;

const PLAIN: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Begins to answer at `address`.
pub(crate) fn start(address: SocketAddr, window: Arc<Window>, door: Door) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work = move || runtime.block_on(accept(address, window, door));
    thread::Builder::new().name("telemetry".into()).spawn(work).map(drop)
}

async fn accept(address: SocketAddr, window: Arc<Window>, door: Door) {
    let listener = listen(address).await;
    info!("health and metrics are at http://{address}");
    let mut connections = VecDeque::<AbortHandle>::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("accept a connection at {address}: {error}");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= CONNECTIONS {
            connections.pop_front().iter().for_each(AbortHandle::abort);
        }
        let (window, door) = (window.clone(), door.clone());
        let connection = tokio::spawn(async move {
            if let Err(error) = serve(stream, |request| answer(request, &window, &door)).await {
                debug!("a connection to {address} ended: {error}");
            }
        });
        connections.push_back(connection.abort_handle());
    }
}

/// An address that is taken is no reason to leave the mounts alone: the log says it, and probes fail.
async fn listen(address: SocketAddr) -> TcpListener {
    let mut said = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if said => debug!("listen at {address}: {error}"),
            Err(error) => error!(
                "listen at {address}: {error}; does something else on the node use it? --health-address names another; trying on"
            ),
        }
        said = true;
        tokio::time::sleep(RETRY).await;
    }
}

async fn answer(request: Request<Incoming>, window: &Window, door: &Door) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n");
    }
    match request.uri().path() {
        "/healthz" => verdict(window.vitals.illness().into_iter().collect()),
        "/readyz" => verdict(window.vitals.missing().into_iter().map(str::to_owned).collect()),
        "/metrics" => {
            // A stuck loop has no report, and what is known without it is told all the same.
            let report = timeout(PATIENCE, door.report()).await.ok().and_then(Result::ok);
            let page = window.metrics.text(report.as_ref(), window.vitals.since_round(), hands::left_behind());
            text(StatusCode::OK, OPEN_METRICS, page)
        }
        _ => text(StatusCode::NOT_FOUND, PLAIN, "there are /healthz, /readyz and /metrics\n"),
    }
}

fn verdict(faults: Vec<String>) -> Response<Body> {
    match faults.as_slice() {
        [] => text(StatusCode::OK, PLAIN, "ok\n"),
        faults => text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{}\n", faults.join("\n"))),
    }
}
