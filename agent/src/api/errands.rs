//! Directories of a share, made, put aside and deleted: what claims need, for whoever is not the controller.

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use moorline_shared::errand::Errand;
use serde_json::json as value;

use super::{Api, body};
use crate::http::{Body, json};
use crate::reconcile::Denied;

const EXPECTED: &str = "{\"id\": NAME, \"share\": NAME, \"subDir\": PATH, \"task\": {\"make\": {\"uid\": N, \"gid\": N, \"mode\": N}}}, or for the task {\"unmake\": {}}, {\"archive\": {}}, {\"keep\": {}} or {\"delete\": {\"dryRun\": BOOL}}";

pub(super) async fn run(api: &Api, request: Request<Incoming>) -> Result<Response<Body>, Denied> {
    let words = api.door.run_errand(body::<Errand>(request, EXPECTED).await?).await?;
    Ok(json(StatusCode::OK, &value!({ "did": words })))
}
