//! What happens to places that are gone.

use anabranch_protocol::error::Code;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::ClientMessage;
use anabranch_tests::broker::Broker;
use anabranch_tests::condition::eventually;
use anabranch_tests::follow::Follower;
use anabranch_tests::home::Home;
use anabranch_tests::wire::subscribe;
use serde_json::json;

const SETTINGS: [&str; 2] = ["log.segment_bytes=1MiB", "log.retention_interval_seconds=1"];

/// Publishes a few megabytes of events; returns the cursor after the first.
async fn fill(broker: &Broker) -> String {
    broker.create(json!({"name": "events"})).await;
    let mut wire = broker.connect().await;
    let value = vec![b'x'; 64 * 1024];
    for _ in 0..64 {
        wire.publish("events", vec![Record::value(value.as_slice())])
            .await;
    }
    let mut follower = Follower::start(broker.address(), subscribe(1, "events", "earliest")).await;
    follower.records(1).await.1
}

async fn first_offset(broker: &Broker) -> u64 {
    let shown = broker.http().json("/v1/streams/events").await;
    shown["offsets"][0]["first"].as_u64().unwrap()
}

/// Checks that a cursor is refused, and that the one it is answered with works.
async fn check_gone(broker: &Broker, cursor: &str) {
    let mut wire = broker.connect().await;
    wire.send(&ClientMessage::Subscribe(subscribe(1, "events", cursor)))
        .await;
    let error = wire.refusal(Code::CursorTooOld).await;
    wire.lives().await;
    let path = format!("/v1/streams/events/records?from={cursor}");
    let answer = broker.http().get(&path).await;
    let problem = answer.problem(410, "AB1303");
    let oldest = error.problem.oldest.unwrap();
    assert_eq!(problem["oldest"], oldest);

    let first = first_offset(broker).await;
    let mut follower = Follower::start(broker.address(), subscribe(1, "events", &oldest)).await;
    let (records, _) = follower.records(1).await;
    assert_eq!(
        records[0].offset.get(),
        first,
        "the oldest that is kept comes first"
    );
    let mut follower = Follower::start(broker.address(), subscribe(1, "events", "earliest")).await;
    let (records, _) = follower.records(1).await;
    assert_eq!(records[0].offset.get(), first);
}

#[tokio::test]
async fn a_cursor_before_what_was_trimmed_is_refused_with_the_oldest() {
    let home = Home::new();
    let broker = Broker::start_with(&home, &SETTINGS).await;
    let cursor = fill(&broker).await;
    let before = json!({"before": "2100-01-01T00:00:00Z"});
    let trimmed = broker.http().post("/v1/streams/events/trim", &before).await;
    assert_eq!(trimmed.status, 202, "{trimmed:?}");
    eventually("trimmed", async || {
        (first_offset(&broker).await > 1).then_some(())
    })
    .await;
    broker
        .connect()
        .await
        .publish("events", vec![Record::value(b"x".as_slice())])
        .await;
    check_gone(&broker, &cursor).await;
    broker.stop().await;
    // A restart makes nothing of it come back.
    let broker = Broker::start_with(&home, &SETTINGS).await;
    check_gone(&broker, &cursor).await;
    broker.stop().await;
}

#[tokio::test]
async fn a_cursor_before_what_retention_kept_is_refused_with_the_oldest() {
    let home = Home::new();
    let broker = Broker::start_with(&home, &SETTINGS).await;
    let cursor = fill(&broker).await;
    let retention = json!({"retention": {"max_bytes": 1_000_000}});
    let json = [("content-type", "application/json")];
    let http = broker.http();
    let changed = http
        .send("PATCH", "/v1/streams/events", &json, retention.to_string())
        .await;
    assert_eq!(changed.status, 200, "{changed:?}");
    eventually("dropped", async || {
        (first_offset(&broker).await > 1).then_some(())
    })
    .await;
    check_gone(&broker, &cursor).await;
    broker.stop().await;
}

/// Bytes that the log's files take.
fn log_bytes(home: &Home) -> u64 {
    let files = std::fs::read_dir(home.data().join("log")).unwrap();
    files
        .map(|file| file.unwrap().metadata().map_or(0, |m| m.len()))
        .sum()
}

/// The definitions of streams are the first records of the log, and stay.
#[tokio::test]
async fn what_is_trimmed_gives_its_space_back_and_who_saw_it_all_goes_on() {
    let home = Home::new();
    let broker = Broker::start_with(&home, &SETTINGS).await;
    let early = fill(&broker).await;
    let mut follower = Follower::start(broker.address(), subscribe(1, "events", &early)).await;
    let (_, all_seen) = follower.records(63).await;
    broker.create(json!({"name": "other"})).await;
    let mut wire = broker.connect().await;
    let value = vec![b'x'; 64 * 1024];
    for _ in 0..300 {
        wire.publish("other", vec![Record::value(value.as_slice())])
            .await;
    }
    let before = log_bytes(&home);
    assert!(before > 20 << 20, "{before}");
    for stream in ["events", "other"] {
        let at = json!({"before": "2100-01-01T00:00:00Z"});
        let path = format!("/v1/streams/{stream}/trim");
        assert_eq!(broker.http().post(&path, &at).await.status, 202);
    }
    // What is being written, what is prepared, and two segments that are kept as they are.
    eventually("space is given back", async || {
        (log_bytes(&home) < 5 << 20).then_some(())
    })
    .await;
    wire.publish("events", vec![Record::value(b"news".as_slice())])
        .await;
    check_gone(&broker, &early).await;
    let mut follower = Follower::start(broker.address(), subscribe(1, "events", &all_seen)).await;
    let (records, _) = follower.records(1).await;
    assert_eq!(records[0].offset.get(), 64);
    broker.stop().await;
    let broker = Broker::start_with(&home, &SETTINGS).await;
    check_gone(&broker, &early).await;
    assert_eq!(first_offset(&broker).await, 64);
    broker.stop().await;
}
