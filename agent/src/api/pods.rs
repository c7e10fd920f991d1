//! What the agent is told of pods where there is no API server to tell it.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;

use super::{Api, body};
use crate::http::{Body, json};
use crate::reconcile::{Denied, Event};

pub(super) const DELETION_SHOWN: &str = "/v1/pods/UID/deletion";

/// A pod was asked to end, and has so much grace.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Deletion {
    grace_seconds: u32,
}

/// The UID in /v1/pods/UID/deletion.
pub(super) fn of_deletion(path: &str) -> Option<&str> {
    let uid = path.strip_prefix("/v1/pods/")?.strip_suffix("/deletion")?;
    Some(uid).filter(|uid| !uid.is_empty() && !uid.contains('/'))
}

pub(super) async fn delete(api: &Api, uid: String, request: Request<Incoming>) -> Result<Response<Body>, Denied> {
    let Deletion { grace_seconds } = body(request, "{\"graceSeconds\": NUMBER}").await?;
    api.door.send(Event::Deleted { uid, grace: Duration::from_secs(grace_seconds.into()) }).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}
