//! What two of these do at one moment, with the API server's ConfigMaps between them.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::record::Record;
use super::service::Controller;
use super::wish::Wish;
use super::*;
use crate::provision::World;

type Maps = Arc<Mutex<BTreeMap<String, Value>>>;

fn answered(method: &Method, name: &str, body: &Value, maps: &mut BTreeMap<String, Value>) -> (u16, Value) {
    let refused = |code: u16, reason: &str| {
        (code, json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code}))
    };
    match (method.as_str(), name, maps.contains_key(name)) {
        ("GET", "", _) => {
            let items: Vec<&Value> = maps.values().collect();
            (200, json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {}, "items": items}))
        }
        ("POST", ..) => {
            let mut made = body.clone();
            let name = made["metadata"]["name"].as_str().unwrap().to_owned();
            if maps.contains_key(&name) {
                return refused(409, "AlreadyExists");
            }
            made["metadata"]["uid"] = format!("uid-of-{name}").into();
            maps.insert(name, made.clone());
            (201, made)
        }
        (_, _, false) => refused(404, "NotFound"),
        ("DELETE", ..) => (200, maps.remove(name).unwrap()),
        ("PATCH", ..) => {
            let there = maps.get_mut(name).unwrap();
            for (key, value) in body["data"].as_object().unwrap() {
                there["data"][key] = value.clone();
            }
            (200, there.clone())
        }
        _ => (200, maps[name].clone()),
    }
}

fn controller(maps: &Maps) -> Controller<impl Fn() -> Moment> {
    let maps = maps.clone();
    let api_server = tower::service_fn(move |asked: Request<Body>| {
        let maps = maps.clone();
        async move {
            let (method, path) = (asked.method().clone(), asked.uri().path().to_owned());
            let name =
                path.rsplit_once("/configmaps").map(|(_, name)| name.trim_start_matches('/')).unwrap_or_default();
            let body = asked.into_body().collect().await.unwrap().to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let (code, answer) = answered(&method, name, &body, &mut maps.lock().unwrap());
            Ok::<_, Infallible>(
                Response::builder().status(code).body(Full::new(Bytes::from(answer.to_string()))).unwrap(),
            )
        }
    });
    let client = Client::new(api_server, "moorline-system");
    let (sight, _changes) = Sight::watch(&client);
    Controller::new(client, sight, watch::channel(()).1, || Moment::ZERO)
}

fn wanted(name: &str) -> Record {
    let parameters = [("share", "data"), ("subDir", "common")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    Wish::read(name, HashMap::from(parameters), 1).unwrap().record
}

#[tokio::test]
async fn of_two_that_want_one_directory_at_one_moment_not_both_get_it() {
    let maps = Maps::default();
    let [a, b] = [controller(&maps), controller(&maps)];
    let world = World::default();
    let both = tokio::join!(a.recorded(wanted("a"), &world, 0), b.recorded(wanted("b"), &world, 0));
    let got = [both.0.is_ok(), both.1.is_ok()].iter().filter(|got| **got).count();
    assert!(got <= 1, "{both:?}");
    assert_eq!(maps.lock().unwrap().len(), got, "of one that was refused no record stays");
    // Called again one after the other.
    let again = [a.recorded(wanted("a"), &world, 0).await, b.recorded(wanted("b"), &world, 0).await];
    assert_eq!(again.iter().filter(|record| record.is_ok()).count(), 1, "{again:?}");
    let request = again.into_iter().find_map(Result::ok).and_then(|record| record.request).unwrap();
    assert!(request.as_str().starts_with("csi-uid-of-"), "{request}");
}
