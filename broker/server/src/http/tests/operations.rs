use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::http::operations::OPENAPI;
use crate::node::Phase;

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_broker_through_its_life() {
    let config = Config::default();
    let node = new_node(&config);
    let router = crate::http::router(&node, PrometheusBuilder::new().build_recorder().handle());
    let live = Reply::of(send(&router, "GET", "/livez", &[], "").await).await;
    assert_eq!(
        (live.status, live.text()),
        (StatusCode::OK, r#"{"status":"starting"}"#)
    );
    for path in [
        "/readyz",
        "/v1/regions",
        "/v1/streams",
        "/v1/tables/a/rows/b",
    ] {
        let early = Reply::of(send(&router, "GET", path, &[], "").await).await;
        assert!(
            early.problem().starts_with("AB6001 the broker is starting"),
            "{}",
            early.text()
        );
        assert_eq!(early.header("retry-after"), "1");
    }

    let mut broker = Broker::start();
    assert_eq!(broker.get("/livez").await.text(), r#"{"status":"ok"}"#);
    assert_eq!(broker.get("/readyz").await.text(), r#"{"status":"ok"}"#);
    broker.stop();
    assert_eq!(
        broker.get("/livez").await.text(),
        r#"{"status":"stopping"}"#
    );
    assert!(broker.get("/readyz").await.problem().starts_with("AB6002 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_panics_is_shown_and_nothing_is_taken_any_more() {
    let broker = Broker::with_streams().await;
    broker.node.running().unwrap().break_upkeep();
    let mut phase = broker.node.phase();
    let failed = phase.wait_for(|phase| matches!(phase, Phase::Failed(_)));
    let failed = tokio::time::timeout(Duration::from_secs(30), failed).await;
    drop(failed.expect("it has failed").unwrap());
    let said = "AB6003 the broker has stopped: its upkeep panicked";
    for path in ["/readyz", "/livez"] {
        let health = broker.get(path).await;
        assert!(health.problem().starts_with(said), "{}", health.text());
    }
    let path = "/v1/streams/events/records";
    let publish = broker.call("POST", path, &[JSON], "[1]").await;
    assert!(publish.problem().starts_with(said), "{}", publish.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_says_who_it_is() {
    let broker = Broker::with_streams().await;
    let index = broker.get("/").await.json();
    assert_eq!(index["name"], "anabranch");
    let regions = broker.get("/v1/regions").await.json();
    assert_eq!(regions["region"], "local");
    let origin = regions["origin"].as_str().unwrap();
    assert_eq!(regions["vector"][origin], 2, "two streams were made");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_paths_and_methods_are_problems_too() {
    let broker = Broker::start();
    for path in [
        "/v2/streams",
        "/v1/streams/",
        "/v1/streams/a/b",
        "/v1/tables/a/rows/",
        "/../etc/passwd",
    ] {
        let reply = broker.get(path).await;
        assert!(
            reply.problem().starts_with("AB1506 there is nothing at"),
            "{path}"
        );
    }
    let reply = broker.call("PUT", "/v1/streams", &[], "").await;
    assert!(reply.problem().starts_with("AB1507 PUT is not possible"));
    assert_eq!(reply.header("allow"), "GET,HEAD,POST");
}

#[test]
fn requests_are_counted_by_route_method_and_class() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _installed = metrics::set_default_local_recorder(&recorder);
    // On one thread, which is the one that the recorder is set for.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let node = new_node(&Config::default());
        let router = crate::http::router(&node, handle);
        send(&router, "GET", "/v1/streams/a", &[], "").await;
        send(&router, "PUT", "/v1/streams/a", &[], "").await;
        let metrics = Reply::of(send(&router, "GET", "/metrics", &[], "").await).await;
        for line in [
            r#"anabranch_http_requests_total{route="/v1/streams/{stream}",method="GET",status="5xx"} 1"#,
            r#"anabranch_http_requests_total{route="/v1/streams/{stream}",method="PUT",status="4xx"} 1"#,
        ] {
            assert!(metrics.text().contains(line), "{}", metrics.text());
        }
    });
}

/// Methods and paths of the document, each path with its variables filled in.
fn documented() -> Vec<(String, BTreeSet<String>)> {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let methods = |item: &Value| {
        let names = item.as_object().unwrap().keys();
        let mut methods: BTreeSet<_> = names
            .filter(|name| *name != "parameters")
            .map(|name| name.to_uppercase())
            .collect();
        if methods.contains("GET") {
            methods.insert("HEAD".to_owned());
        }
        methods
    };
    let path = |path: &String| path.replace("{stream}", "planes").replace("{key}", "a");
    paths
        .iter()
        .map(|(p, item)| (path(p), methods(item)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_lists_the_routes_and_methods_that_there_are() {
    let broker = Broker::with_streams().await;
    let routes: BTreeSet<_> = crate::http::routes()
        .into_iter()
        .map(|(path, _)| path.to_owned())
        .collect();
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let listed: BTreeSet<_> = document["paths"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(routes, listed);
    for (path, methods) in documented() {
        let refused = broker.call("TRACE", &path, &[], "").await;
        assert!(refused.problem().starts_with("AB1507 "), "{path}");
        let allowed: BTreeSet<String> = refused
            .header("allow")
            .split(',')
            .map(str::to_owned)
            .collect();
        assert_eq!(allowed, methods, "{path}");
    }
}

#[test]
fn references_within_the_document_lead_somewhere() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let mut unseen = vec![&document];
    while let Some(value) = unseen.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    let target = document.pointer(reference.trim_start_matches('#'));
                    assert!(target.is_some(), "{reference}");
                }
                unseen.extend(fields.values());
            }
            Value::Array(items) => unseen.extend(items),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_served() {
    let broker = Broker::start();
    let served = broker.get("/openapi.json").await;
    assert_eq!(served.json()["openapi"], "3.1.0");
}
