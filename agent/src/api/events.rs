//! What happened, and what happens.

use std::sync::Arc;

use futures_util::stream;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};

use super::{Api, query};
use crate::http::{Body, line, lines};
use crate::reconcile::Denied;

/// Those that are kept, and then, unless `?follow=false` says otherwise, each that comes. A reader that is too slow
/// misses some, and sees it by their numbers.
pub(super) fn stream(api: &Api, request: &Request<Incoming>) -> Result<Response<Body>, Denied> {
    let follow = match query(request, &["follow"])?.remove("follow").as_deref() {
        None | Some("true") => true,
        Some("false") => false,
        Some(other) => return Err(Denied::Invalid(format!("follow={other} is neither true nor false"))),
    };
    let window = Arc::clone(&api.window);
    let news = window.chronicle.news();
    Ok(lines(stream::unfold((window, news, 0), move |(window, mut news, mut last)| async move {
        loop {
            // Marked as seen before they are looked at: what comes in between wakes us again.
            news.mark_unchanged();
            let records = window.chronicle.after(last);
            if let Some(latest) = records.last() {
                last = latest.sequence;
                let text: Vec<u8> = records.iter().flat_map(|record| line(&**record)).collect();
                return Some((Bytes::from(text), (window, news, last)));
            }
            if !follow {
                return None;
            }
            news.changed().await.ok()?;
        }
    })))
}
