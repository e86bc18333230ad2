//! The surface against a real broker in a temporary directory.

mod operations;
mod records;
mod rows;
mod streams;
mod total;
mod trimming;

use std::sync::Arc;

use anabranch_core::id::ClusterId;
use anabranch_protocol::error::Problem;
use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;

use crate::config::Config;
use crate::node::{self, Node, NodeInfo, Stopper};

const JSON: (&str, &str) = ("content-type", "application/json");
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const BATCH: (&str, &str) = ("content-type", "application/vnd.anabranch.batch");
const EVENTS: (&str, &str) = ("accept", "text/event-stream");

/// A running broker with this surface.
struct Broker {
    node: Arc<Node>,
    router: Router,
    stopper: Option<Stopper>,
    _dir: TempDir,
}

impl Broker {
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.data.dir = dir.path().join("data");
        config.log.segment_bytes = crate::config::ByteSize::new(4 << 20);
        change(&mut config);
        let node = new_node(&config);
        let stopper = node::start(&node, &config).unwrap();
        Self {
            router: super::router(&node, PrometheusBuilder::new().build_recorder().handle()),
            node,
            stopper: Some(stopper),
            _dir: dir,
        }
    }

    /// With an empty stream `events` (append, 2 partitions) and an empty stream `planes` (lww).
    async fn with_streams() -> Self {
        let broker = Self::start();
        for body in [
            r#"{"name":"events","partitions":2}"#,
            r#"{"name":"planes","merge":"lww"}"#,
        ] {
            let made = broker.call("POST", "/v1/streams", &[JSON], body).await;
            assert_eq!(made.status, StatusCode::CREATED);
        }
        broker
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> axum::response::Response {
        send(&self.router, method, path, headers, body).await
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        Reply::of(self.send(method, path, headers, body).await).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], "").await
    }

    /// Publishes, which must succeed.
    async fn publish(&self, stream: &str, records: &str) -> Value {
        let path = format!("/v1/streams/{stream}/records");
        let reply = self.call("POST", &path, &[JSON], records.to_owned()).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        reply.json()
    }

    async fn follow(&self, path: &str, headers: &[(&str, &str)]) -> Events {
        let headers: Vec<_> = headers.iter().copied().chain([EVENTS]).collect();
        let response = self.send("GET", path, &headers, "").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events {
            body: response.into_body().into_data_stream(),
            held: String::new(),
        }
    }

    fn stop(&mut self) {
        if let Some(stopper) = self.stopper.take() {
            stopper.stop();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop();
    }
}

fn new_node(config: &Config) -> Arc<Node> {
    let info = NodeInfo {
        cluster_name: "test".to_owned(),
        cluster: ClusterId::of("test"),
        region: config.broker.region.clone(),
    };
    Arc::new(Node::new(info, config.limits.clone()))
}

async fn send(
    router: &Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> axum::response::Response {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body.into()).unwrap();
    router.clone().oneshot(request).await.unwrap()
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    async fn of(response: axum::response::Response) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// The code and the words of a problem, whose status must fit.
    fn problem(&self) -> String {
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{}",
            self.text()
        );
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.code.http_status(), self.status.as_u16());
        problem.to_string()
    }
}

/// Server-sent events, one at a time.
struct Events {
    body: BodyDataStream,
    held: String,
}

impl Events {
    /// The next event as its lines, joined with a bar; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        while !self.held.contains("\n\n") {
            let chunk = self.body.next().await?.unwrap();
            self.held.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        let (event, rest) = self.held.split_once("\n\n").unwrap();
        let event = event.replace('\n', "|");
        self.held = rest.to_owned();
        Some(event)
    }

    /// The next event, which must be there, without what differs from run to run.
    async fn shape(&mut self) -> String {
        let event = self.next().await.expect("the stream has not ended");
        let mut lines: Vec<String> = Vec::new();
        for line in event.split('|') {
            lines.push(match line.split_once(": ") {
                Some(("id", _)) => "id".to_owned(),
                Some(("data", data)) => shape_of(&serde_json::from_str(data).unwrap()),
                _ => line.to_owned(),
            });
        }
        lines.join("|")
    }

    /// The id of the next event that has one.
    async fn next_id(&mut self) -> String {
        loop {
            let event = self.next().await.expect("the stream has not ended");
            if let Some(id) = event.split('|').find_map(|line| line.strip_prefix("id: ")) {
                return id.to_owned();
            }
        }
    }
}

/// What a delivered record or a row says, in short.
fn shape_of(record: &Value) -> String {
    let field = |name: &str| match &record[name] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if record["cursor"].is_string() {
        return "cursor".to_owned();
    }
    format!("{}@{}={}", field("key"), field("offset"), field("value"))
}

/// All records of a page in short, and its cursor.
fn page_of(reply: &Reply) -> (Vec<String>, String) {
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let page = reply.json();
    let records = page["records"].as_array().unwrap();
    let cursor = page["cursor"].as_str().unwrap().to_owned();
    (records.iter().map(shape_of).collect(), cursor)
}
