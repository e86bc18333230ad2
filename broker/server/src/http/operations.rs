//! Health, metrics, who this broker is, and the description of this surface.

use anabranch_protocol::error::Code;
use anabranch_protocol::http::{Health, JSON};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde_json::json as object;

use super::answer::json;
use super::query::Query;
use super::refusal::Refusal;
use super::{Answer, App};
use crate::node::{Failure, Phase};

/// This surface as an `OpenAPI` 3.1 document.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// `GET /`: what this is, and where to go from here.
pub(super) async fn index(State(surface): App, request: Request) -> Answer {
    Query::read(request.uri(), &[])?;
    let info = surface.node.info();
    let body = object!({
        "name": "anabranch",
        "version": env!("CARGO_PKG_VERSION"),
        "cluster": info.cluster_name,
        "region": info.region.as_str(),
        "links": {
            "openapi": "/openapi.json",
            "streams": "/v1/streams",
            "websocket": anabranch_protocol::ws::PATH,
            "regions": "/v1/regions",
            "ready": "/readyz",
            "metrics": "/metrics",
        },
    });
    Ok(json(StatusCode::OK, &body))
}

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Response {
    let content_type = (CONTENT_TYPE, HeaderValue::from_static(JSON));
    ([content_type], Body::from(OPENAPI)).into_response()
}

/// `GET /livez`: whether there is any use in keeping this process.
pub(super) async fn livez(State(surface): App) -> Answer {
    let status = match &*surface.node.phase().borrow() {
        Phase::Failed(failure) => return Err(stopped(failure)),
        Phase::Starting(_) => "starting",
        Phase::Ready => "ok",
        Phase::Stopping => "stopping",
    };
    Ok(health(status))
}

/// `GET /readyz`: whether this broker takes reads and writes now.
pub(super) async fn readyz(State(surface): App) -> Answer {
    if let Phase::Failed(failure) = &*surface.node.phase().borrow() {
        return Err(stopped(failure));
    }
    surface.running()?.check_writable()?;
    Ok(health("ok"))
}

fn stopped(failure: &Failure) -> Refusal {
    Refusal::new(Code::Stopped, format!("the broker has stopped: {failure}"))
}

fn health(status: &str) -> Response {
    let body = Health {
        status: status.to_owned(),
        progress: None,
        reason: None,
    };
    let mut response = json(StatusCode::OK, &body);
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
    response
}

/// `GET /metrics`, in the text format of Prometheus.
pub(super) async fn metrics(State(surface): App) -> Response {
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let body = surface.prometheus.render();
    ([(CONTENT_TYPE, content_type)], Body::from(body)).into_response()
}
