//! The other end: how `moorline` asks an agent.

use std::io;
use std::marker::PhantomData;
use std::path::Path;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use moorline_shared::happening::Record;
use moorline_shared::report::Report;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{STATUS, WATCH};

const EVENTS_KEPT: &str = "/v1/events?follow=false";
const EVENTS_FOLLOWED: &str = "/v1/events?follow=true";

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no agent listens at {path}: is it running on this node, and are you root?")]
    Connect { path: String, source: io::Error },
    #[error("the agent has ended meanwhile: it was stopped, or is being upgraded")]
    Ended(#[source] hyper::Error),
    #[error("ask the agent")]
    Http(#[from] hyper::Error),
    #[error("the agent answers {status}: {message}")]
    Refused { status: StatusCode, message: String },
    #[error("the agent's answer can't be read: is it of another version?")]
    Json(#[from] serde_json::Error),
}

/// Asks an agent for its report.
pub async fn status(socket: &Path) -> Result<Report, AskError> {
    let body = ask(socket, STATUS).await?.into_body().collect().await?.to_bytes();
    Ok(serde_json::from_slice(&body)?)
}

/// Its report, and again whenever it has changed.
pub async fn watch(socket: &Path) -> Result<Lines<Report>, AskError> {
    ask(socket, WATCH).await.map(Lines::new)
}

/// What happened lately, and with `follow` what happens from now on.
pub async fn events(socket: &Path, follow: bool) -> Result<Lines<Record>, AskError> {
    ask(socket, if follow { EVENTS_FOLLOWED } else { EVENTS_KEPT }).await.map(Lines::new)
}

async fn ask(socket: &Path, what: &'static str) -> Result<Response<Incoming>, AskError> {
    let connected = UnixStream::connect(socket).await;
    let stream = connected.map_err(|source| AskError::Connect { path: socket.display().to_string(), source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Its error is the answer's as well.
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = Uri::from_static(what);
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("moorline"));
    let response = sender.send_request(request).await?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.into_body().collect().await?.to_bytes();
    Err(AskError::Refused { status, message: message(&body) })
}

fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let refusal = serde_json::from_slice::<Refusal>(body).map(|refusal| refusal.error);
    refusal.unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned())
}

/// JSON lines as they come in.
#[derive(Debug)]
pub struct Lines<T> {
    body: Incoming,
    /// What has come and was not given out.
    read: Vec<u8>,
    kind: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    fn new(response: Response<Incoming>) -> Self {
        Self { body: response.into_body(), read: Vec::new(), kind: PhantomData }
    }

    /// The next one; None when there are no more. Cancel-safe: what was read is kept.
    pub async fn next(&mut self) -> Result<Option<T>, AskError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(end + 1);
                let line = std::mem::replace(&mut self.read, rest);
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.read.extend(frame.into_data().unwrap_or_default()),
                // A stream that does not end by itself was cut.
                Some(Err(error)) => return Err(AskError::Ended(error)),
                None => return Ok(None),
            }
        }
    }
}
