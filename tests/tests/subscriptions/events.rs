//! Over HTTP: pages, waiting, server-sent events.

use std::time::Duration;

use anabranch_tests::broker::Broker;
use anabranch_tests::condition::soon;
use anabranch_tests::home::Home;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::numbers::{STREAM, publish_to, those};

async fn broker(home: &Home) -> Broker {
    let broker = Broker::start(home).await;
    broker
        .create(json!({"name": STREAM, "partitions": 3}))
        .await;
    broker
}

fn values(records: &Value) -> Vec<u32> {
    let records = records.as_array().unwrap().iter();
    let mut values: Vec<u32> = records
        .map(|record| u32::try_from(record["value"].as_u64().unwrap()).unwrap())
        .collect();
    values.sort_unstable();
    values
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_overlap() {
    let home = Home::new();
    let broker = broker(&home).await;
    publish_to(&broker, 0..100).await;
    let http = broker.http();
    for limit in [1, 2, 7, 100] {
        let (mut all, mut from) = (Vec::new(), "earliest".to_owned());
        loop {
            let path = format!("/v1/streams/{STREAM}/records?from={from}&limit={limit}");
            let page = http.json(&path).await;
            let records = values(&page["records"]);
            from = page["cursor"].as_str().unwrap().to_owned();
            if records.is_empty() {
                break;
            }
            assert!(records.len() <= limit);
            all.extend(records);
        }
        all.sort_unstable();
        assert_eq!(all, those(0..100, |_| true), "limit {limit}");
    }
}

#[tokio::test]
async fn a_waiting_read_is_answered_when_something_comes() {
    let home = Home::new();
    let broker = broker(&home).await;
    let path = format!("/v1/streams/{STREAM}/records?from=earliest&wait=30");
    let http = broker.http();
    let waiting = tokio::spawn(async move { http.json(&path).await });
    publish_to(&broker, 0..1).await;
    let page = waiting.await.unwrap();
    assert_eq!(values(&page["records"]), [0]);
    let nothing = format!("/v1/streams/{STREAM}/records?from=latest&wait=0.05");
    let page = broker.http().json(&nothing).await;
    assert_eq!(page["records"], json!([]));
}

/// Server-sent events, one by one.
struct Events {
    body: Incoming,
    text: String,
}

#[derive(Debug, Default)]
struct Event {
    name: Option<String>,
    id: Option<String>,
    data: Option<Value>,
}

impl Events {
    async fn open(broker: &Broker, query: &str, last_id: Option<&str>) -> Self {
        let mut headers = vec![("accept", "text/event-stream")];
        headers.extend(last_id.map(|id| ("last-event-id", id)));
        let path = format!("/v1/streams/{query}");
        let opened = broker
            .http()
            .open("GET", &path, &headers, "")
            .await
            .unwrap();
        assert_eq!(opened.status(), 200);
        let kind = opened.headers()["content-type"].to_str().unwrap();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        Self {
            body: opened.into_body(),
            text: String::new(),
        }
    }

    /// The next event that has data.
    async fn next(&mut self) -> Event {
        loop {
            let event = self.next_of_any_kind().await;
            if event.data.is_some() {
                return event;
            }
        }
    }

    async fn next_of_any_kind(&mut self) -> Event {
        while !self.text.contains("\n\n") {
            let frame = soon("an event", self.body.frame()).await;
            let frame = frame.unwrap().unwrap();
            let bytes = frame.into_data().unwrap();
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        let (event, rest) = self.text.split_once("\n\n").unwrap();
        let mut read = Event::default();
        for line in event.lines() {
            match line.split_once(": ") {
                Some(("event", name)) => read.name = Some(name.to_owned()),
                Some(("id", id)) => read.id = Some(id.to_owned()),
                Some(("data", data)) => read.data = Some(serde_json::from_str(data).unwrap()),
                _ => {}
            }
        }
        self.text = rest.to_owned();
        read
    }
}

#[tokio::test]
async fn events_resume_behind_the_last_id() {
    let home = Home::new();
    let broker = broker(&home).await;
    publish_to(&broker, 0..30).await;
    let (mut all, mut last_id) = (Vec::new(), None::<String>);
    while all.len() < 30 {
        let query = format!("{STREAM}/records?from=earliest");
        let mut events = Events::open(&broker, &query, last_id.as_deref()).await;
        // Reads to the end of a frame, then connects again.
        loop {
            let event = events.next().await;
            all.push(event.data.unwrap()["value"].as_u64().unwrap());
            if event.id.is_some() {
                last_id = event.id;
                break;
            }
        }
    }
    all.sort_unstable();
    let expected: Vec<u64> = (0..30).collect();
    assert_eq!(all, expected);
}

#[tokio::test]
async fn events_of_a_table_are_its_rows_then_live_then_changes() {
    let home = Home::new();
    let broker = broker(&home).await;
    broker.create(json!({"name": "rows", "merge": "lww"})).await;
    let http = broker.http();
    for number in 0..5 {
        let path = format!("/v1/tables/rows/rows/k{number}");
        assert_eq!(http.put(&path, &json!(number)).await.status, 200);
    }
    let mut events = Events::open(&broker, "rows/records?from=table", None).await;
    for number in 0..5 {
        let data = events.next().await.data.unwrap();
        assert_eq!(data, json!({"key": format!("k{number}"), "value": number}));
    }
    let live = events.next().await;
    assert_eq!(live.name.as_deref(), Some("live"));
    assert!(live.id.is_some());
    assert_eq!(
        http.put("/v1/tables/rows/rows/k2", &json!("new"))
            .await
            .status,
        200
    );
    let change = events.next().await.data.unwrap();
    assert_eq!(
        (&change["key"], &change["value"]),
        (&json!("k2"), &json!("new"))
    );
}

/// A reader that goes away, in the middle of everything, is forgotten.
#[tokio::test]
async fn readers_that_go_away_leave_nothing_behind() {
    let home = Home::new();
    let broker = broker(&home).await;
    publish_to(&broker, 0..30).await;
    for _ in 0..50 {
        let query = format!("{STREAM}/records?from=earliest");
        let mut events = Events::open(&broker, &query, None).await;
        events.next().await;
    }
    let http = broker.http();
    anabranch_tests::condition::eventually("nobody left", async || {
        let open = http.metric("anabranch_connections").await;
        (open == Some(1.0)).then_some(())
    })
    .await;
    let stopped = tokio::time::timeout(Duration::from_secs(20), broker.stop());
    stopped.await.unwrap();
}
