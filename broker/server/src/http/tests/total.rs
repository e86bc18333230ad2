//! The order of all records, where the broker is alone and waits for nobody.

use http::StatusCode;

use super::*;
use crate::config::ByteSize;

const EARLIEST: &str = "/v1/streams/events/records?order=total&from=earliest";

/// Everything in pages of so many records.
async fn in_pages(broker: &Broker, limit: usize) -> Vec<String> {
    let mut all = Vec::new();
    let mut from = "earliest".to_owned();
    loop {
        let path = format!("/v1/streams/events/records?order=total&limit={limit}&from={from}");
        let (records, cursor) = page_of(&broker.get(&path).await);
        if records.is_empty() {
            return all;
        }
        assert!(records.len() <= limit);
        all.extend(records);
        from = cursor;
    }
}

#[tokio::test]
async fn pages_of_any_size_are_the_same_records_as_in_the_order_of_the_log() {
    let broker = Broker::with_streams().await;
    for frame in 0..7 {
        let records: Vec<_> = (0..5)
            .map(|n| format!(r#"{{"key":"k{n}","value":{frame}}}"#))
            .collect();
        let records = format!("[{}]", records.join(","));
        broker.publish("events", &records).await;
    }
    let path = "/v1/streams/events/records?from=earliest";
    let (mut expected, _) = page_of(&broker.get(path).await);
    let (mut all, _) = page_of(&broker.get(EARLIEST).await);
    assert_eq!(all.len(), 35);
    for limit in [1, 2, 3, 4, 34] {
        assert_eq!(in_pages(&broker, limit).await, all, "pages of {limit}");
    }
    expected.sort();
    all.sort();
    assert_eq!(all, expected);
    let (some, _) = page_of(&broker.get(&format!("{EARLIEST}&key=k3")).await);
    assert_eq!(some.len(), 7);
}

#[tokio::test]
async fn events_come_at_once_and_resume_behind_their_ids() {
    let broker = Broker::with_streams().await;
    let path = "/v1/streams/events/records?order=total";
    let mut events = broker.follow(path, &[]).await;
    broker.publish("events", r#"[{"key":"a","value":1}]"#).await;
    assert_eq!(events.shape().await, "id");
    assert_eq!(events.shape().await, "event: live|id|cursor");
    let id = events.next_id().await;
    let published = r#"[{"key":"a","value":2}]"#;
    broker.publish("events", published).await;
    let mut resumed = broker.follow(path, &[("last-event-id", &id)]).await;
    assert_eq!(resumed.shape().await, "id");
    assert!(resumed.shape().await.starts_with("a@1=2"));
}

#[tokio::test]
async fn a_place_of_the_other_order_is_refused_with_what_to_do() {
    let broker = Broker::with_streams().await;
    broker.publish("events", r#"[{"value":1}]"#).await;
    let (_, total) = page_of(&broker.get(EARLIEST).await);
    let path = "/v1/streams/events/records?from=earliest";
    let (_, local) = page_of(&broker.get(path).await);
    for (order, cursor, says) in [
        ("local", total, "go on with order=total"),
        ("total", local, "go on with order=local"),
    ] {
        let path = format!("/v1/streams/events/records?order={order}&from={cursor}");
        let problem = broker.get(&path).await.problem();
        assert!(problem.starts_with("AB1301 "), "{problem}");
        assert!(problem.contains(says), "{problem}");
    }
    let path = "/v1/streams/planes/records?order=total&from=table";
    let problem = broker.get(path).await.problem();
    assert!(problem.starts_with("AB1304 "), "{problem}");
}

#[tokio::test]
async fn a_cursor_before_what_was_trimmed_is_refused_and_the_oldest_leads_on() {
    let broker = Broker::start_with(|config| {
        config.log.segment_bytes = ByteSize::new(1 << 20);
    });
    let body = r#"{"name":"events"}"#;
    let made = broker.call("POST", "/v1/streams", &[JSON], body).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let record = format!(r#"[{{"value":"{}"}}]"#, "x".repeat(100_000));
    for _ in 0..30 {
        broker.publish("events", &record).await;
    }
    let (_, early) = page_of(&broker.get(&format!("{EARLIEST}&limit=1")).await);
    let (_, late) = page_of(&broker.get(&format!("{EARLIEST}&limit=30")).await);
    let body = r#"{"before":9999999999999}"#;
    let path = "/v1/streams/events/trim";
    let asked = broker.call("POST", path, &[JSON], body).await;
    assert_eq!(asked.status, StatusCode::ACCEPTED);
    let from = |cursor: &str| format!("/v1/streams/events/records?order=total&from={cursor}");
    let refused = loop {
        let reply = broker.get(&from(&early)).await;
        if reply.status != StatusCode::OK {
            break reply;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert!(refused.problem().starts_with("AB1303 "));
    let oldest = refused.json()["oldest"].as_str().unwrap().to_owned();
    broker.publish("events", r#"[{"value":"new"}]"#).await;
    for cursor in [oldest, late] {
        let (records, _) = page_of(&broker.get(&from(&cursor)).await);
        assert_eq!(records.last().unwrap(), "-@30=new");
    }
}
