//! A trim that comes between the look at what is kept and the reading of it.

use std::time::Duration;

use http::StatusCode;

use super::*;
use crate::config::ByteSize;

const MIB: u64 = 1 << 20;

/// The offset of the oldest record that is kept.
async fn first(broker: &Broker) -> u64 {
    let shown = broker.get("/v1/streams/events").await.json();
    shown["offsets"][0]["first"].as_u64().unwrap()
}

async fn fill(broker: &Broker) {
    let body = r#"{"name":"events"}"#;
    let made = broker.call("POST", "/v1/streams", &[JSON], body).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let record = format!(r#"[{{"value":"{}"}}]"#, "x".repeat(100_000));
    for _ in 0..50 {
        broker.publish("events", &record).await;
    }
}

/// What one request for records is answered whose reading of the log begins only after a trim.
async fn read_across_a_trim(from: &str, broker: &Broker) -> Reply {
    // The only thread that may block is held up, and with it what reads the log.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let holding = tokio::task::spawn_blocking(move || held.recv());
    let path = format!("/v1/streams/events/records?from={from}&limit=10");
    let mut reading = Box::pin(broker.get(&path));
    assert!(futures_util::poll!(&mut reading).is_pending());
    let body = r#"{"before":9999999999999}"#;
    let path = "/v1/streams/events/trim";
    let asked = broker.call("POST", path, &[JSON], body).await;
    assert_eq!(asked.status, StatusCode::ACCEPTED);
    while first(broker).await < 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Something that is kept.
    broker.publish("events", r#"[{"value":"new"}]"#).await;
    release.send(()).unwrap();
    let reply = reading.await;
    holding.await.unwrap().unwrap();
    reply
}

fn with_one_blocking_thread(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build();
    runtime.unwrap().block_on(test);
}

fn small_segments(config: &mut Config) {
    config.log.segment_bytes = ByteSize::new(MIB);
    config.log.tail_bytes = ByteSize::new(MIB);
}

#[test]
fn a_trim_before_the_log_is_read_is_no_silent_gap() {
    with_one_blocking_thread(async {
        let broker = Broker::start_with(small_segments);
        fill(&broker).await;
        let one = broker.get("/v1/streams/events/records?from=earliest&limit=1");
        let one = one.await.json();
        let cursor = one["cursor"].as_str().unwrap();
        let reply = read_across_a_trim(cursor, &broker).await;
        assert_eq!(reply.status, StatusCode::GONE, "{}", reply.text());
        assert!(reply.problem().starts_with("AB1303 "));
    });
}

/// Who has seen nothing yet misses nothing.
#[test]
fn a_trim_before_the_log_is_read_moves_the_earliest_record() {
    with_one_blocking_thread(async {
        let broker = Broker::start_with(small_segments);
        fill(&broker).await;
        let reply = read_across_a_trim("earliest", &broker).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        let first = first(&broker).await;
        assert_eq!(reply.json()["records"][0]["offset"], first);
    });
}
