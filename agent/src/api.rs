//! The agent's own API: HTTP and JSON on a unix socket that only root may open. docs/API.md describes it.

mod client;
mod errands;
mod events;
mod pods;
mod publications;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tracing::{debug, warn};

use crate::door::Door;
use crate::http::{self, Body, json};
use crate::reconcile::Denied;
use crate::window::Window;

pub use client::{AskError, Lines, events, status, watch};

/// Longer than a request with the longest path there can be.
const LONGEST_BODY: usize = 16 * 1024;

const STATUS: &str = "/v1/status";
const PUBLICATIONS: &str = "/v1/publications";
const WATCH: &str = "/v1/watch";
const EVENTS: &str = "/v1/events";
const ERRANDS: &str = "/v1/errands";

/// What requests are answered with.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) door: Door,
    pub(crate) window: Arc<Window>,
}

/// Serves as long as the process lives.
pub(crate) async fn serve(listener: UnixListener, api: Api) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("accept a connection to the agent's socket: {error}");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let api = api.clone();
        tokio::spawn(async move {
            let answer = |request| api.answer(request);
            if let Err(error) = http::serve(stream, answer).await {
                debug!("a connection to the agent's socket ended: {error}");
            }
        });
    }
}

impl Api {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (path, method) = (request.uri().path().to_owned(), request.method().clone());
        let answer = match (path.as_str(), &method) {
            (STATUS, &Method::GET) => self.door.report().await.map(|report| json(StatusCode::OK, &report)),
            (PUBLICATIONS, &Method::GET) => publications::list(self).await,
            (PUBLICATIONS, &Method::PUT) => publications::publish(self, request).await,
            (PUBLICATIONS, &Method::DELETE) => publications::unpublish(self, &request).await,
            (ERRANDS, &Method::PUT) => errands::run(self, request).await,
            (WATCH, &Method::GET) => watch::watch(self).await,
            (EVENTS, &Method::GET) => events::stream(self, &request),
            (STATUS | WATCH | EVENTS, _) => return wrong_method(&path, "GET"),
            (PUBLICATIONS, _) => return wrong_method(&path, "GET, PUT, DELETE"),
            (ERRANDS, _) => return wrong_method(&path, "PUT"),
            _ => match (pods::of_deletion(&path), &method) {
                (Some(uid), &Method::PUT) => pods::delete(self, uid.to_owned(), request).await,
                (Some(_), _) => return wrong_method(&path, "PUT"),
                (None, _) => Err(Denied::NotFound(format!(
                    "there is no {path}; there are {STATUS}, {PUBLICATIONS}, {WATCH}, {EVENTS}, {ERRANDS} and {}",
                    pods::DELETION_SHOWN
                ))),
            },
        };
        answer.unwrap_or_else(|denied| error(code(&denied), &denied.to_string()))
    }
}

/// What a refusal is in HTTP.
fn code(denied: &Denied) -> StatusCode {
    match denied {
        Denied::Invalid(_) => StatusCode::BAD_REQUEST,
        Denied::Forbidden(_) => StatusCode::FORBIDDEN,
        Denied::NotFound(_) => StatusCode::NOT_FOUND,
        Denied::Conflict(_) => StatusCode::CONFLICT,
        Denied::Failed(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Denied::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn error(status: StatusCode, message: &str) -> Response<Body> {
    json(status, &serde_json::json!({ "error": message }))
}

fn wrong_method(path: &str, allowed: &'static str) -> Response<Body> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} takes {allowed}"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// A request's body; `expected` shows what it should look like.
async fn body<T: DeserializeOwned>(request: Request<Incoming>, expected: &str) -> Result<T, Denied> {
    let body = Limited::new(request.into_body(), LONGEST_BODY).collect().await;
    let body = body.map_err(|error| Denied::Invalid(format!("read the request: {error}")))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| Denied::Invalid(format!("expected {expected}: {error}")))
}

/// A request's query. A parameter that is not known, or given twice, is refused by name.
fn query(request: &Request<Incoming>, known: &[&str]) -> Result<BTreeMap<String, String>, Denied> {
    parse_query(request.uri().query().unwrap_or_default(), known)
}

fn parse_query(query: &str, known: &[&str]) -> Result<BTreeMap<String, String>, Denied> {
    let mut parameters = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !known.contains(&name.as_ref()) {
            return Err(Denied::Invalid(format!(
                "query parameter {name:?} is not known; known is {}",
                known.join(", ")
            )));
        }
        if parameters.insert(name.to_string(), value.into_owned()).is_some() {
            return Err(Denied::Invalid(format!("query parameter {name:?} is given twice")));
        }
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_and_what_is_not_known_is_refused() {
        let known = ["targetPath"];
        let read = |text: &str| parse_query(text, &known).map(|mut query| query.remove("targetPath"));
        assert_eq!(read("targetPath=/a/b~c%20d"), Ok(Some("/a/b~c d".into())));
        assert_eq!(read(""), Ok(None));
        assert!(read("targetpath=/a").is_err_and(|denied| denied.to_string().contains("targetpath")));
        assert!(read("targetPath=/a&targetPath=/b").is_err());
    }

    #[test]
    fn each_refusal_has_a_status_of_its_own() {
        let all = [Denied::Invalid, Denied::Forbidden, Denied::NotFound, Denied::Conflict, Denied::Failed]
            .map(|denied| code(&denied(String::new())).as_u16());
        assert_eq!(all, [400, 403, 404, 409, 422]);
    }
}
