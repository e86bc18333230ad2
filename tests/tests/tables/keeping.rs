//! Retention and compaction while serving.

use std::collections::BTreeMap;

use anabranch_protocol::error::Code;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::ServerMessage;
use anabranch_tests::broker::Broker;
use anabranch_tests::condition::eventually;
use anabranch_tests::follow::Follower;
use anabranch_tests::home::Home;
use anabranch_tests::wire::{Wire, publish, subscribe};
use serde_json::{Value, json};

use super::{table, verify};

const OFTEN: [&str; 3] = [
    "log.segment_bytes=1MiB",
    "log.retention_interval_seconds=1",
    "tables.image_rows=1000",
];

/// Bytes of the log's segments that hold something.
fn log_bytes(home: &Home) -> u64 {
    let entries = std::fs::read_dir(home.data().join("log")).unwrap();
    let length = |path: std::path::PathBuf| path.metadata().map_or(0, |it| it.len());
    entries.map(|entry| length(entry.unwrap().path())).sum()
}

#[tokio::test]
async fn retention_by_size_gives_space_back_while_serving() {
    let home = Home::new();
    let broker = Broker::start_with(&home, &OFTEN).await;
    let retention = json!({"max_bytes": 2_000_000});
    broker
        .create(json!({"name": "events", "retention": retention}))
        .await;
    broker.create(json!({"name": "kept"})).await;
    let mut follower = Follower::start(broker.address(), subscribe(1, "events", "earliest")).await;
    let mut wire = broker.connect().await;
    for number in 0..240u32 {
        let mut value = vec![b'x'; 64 * 1024];
        value[..4].copy_from_slice(&number.to_be_bytes());
        wire.publish("events", vec![Record::value(value)]).await;
        if number % 10 == 0 {
            wire.publish("kept", vec![Record::value(number.to_be_bytes().to_vec())])
                .await;
        }
        // A subscriber that keeps up misses nothing of what is dropped behind it.
        let (records, _) = follower.records(1).await;
        assert_eq!(records[0].offset.get(), u64::from(number));
    }
    let http = broker.http();
    eventually("space is given back", async || {
        let first = http.json("/v1/streams/events").await["offsets"][0]["first"].as_u64();
        (first.unwrap() > 150 && log_bytes(&home) < 8 << 20).then_some(())
    })
    .await;
    let mut kept = Follower::start(broker.address(), subscribe(1, "kept", "earliest")).await;
    let (records, _) = kept.records(24).await;
    let dense = (0..).zip(&records).all(|(n, got)| got.offset.get() == n);
    assert!(dense, "the other stream keeps everything");
    let mut rest = Follower::start(broker.address(), subscribe(1, "events", "earliest")).await;
    let (records, _) = rest.records(1).await;
    let missing = 240 - usize::try_from(records[0].offset.get()).unwrap() - records.len();
    let (more, _) = rest.records(missing).await;
    assert_eq!(records.len() + more.len(), missing + records.len());
    broker.stop().await;
    let (code, said) = verify(&home);
    assert_eq!(code, Some(0), "{said}");
}

/// Each key is written hundreds of times. What is replaced goes, rows stay, and so they do when
/// the tables are made anew from what is left of the log.
#[tokio::test]
async fn compaction_drops_what_was_replaced_and_keeps_every_row() {
    let home = Home::new();
    let broker = Broker::start_with(&home, &OFTEN).await;
    let retention = json!({"compact": true});
    broker
        .create(json!({"name": "rows", "merge": "lww", "retention": retention}))
        .await;
    let mut wire = broker.connect().await;
    let mut expected: BTreeMap<String, Value> = BTreeMap::new();
    for round in 0..150u32 {
        let mut records = Vec::new();
        for n in 0..100u32 {
            let key = format!("key-{:04}", (round * 37 + n) % 400);
            let value = format!("{round}-{n}-{}", "x".repeat(700));
            if (round + n).is_multiple_of(17) {
                expected.remove(&key);
                records.push(Record::delete(key.into_bytes()));
            } else {
                records.push(Record::put(
                    key.clone().into_bytes(),
                    format!("\"{value}\"").into_bytes(),
                ));
                expected.insert(key, json!(value));
            }
        }
        wire.publish("rows", records).await;
        if round % 30 == 0 {
            assert!(
                table(&broker.http(), "rows").await == expected,
                "round {round}"
            );
        }
    }
    eventually("what was replaced is gone", async || {
        (log_bytes(&home) < 6 << 20).then_some(())
    })
    .await;
    assert!(table(&broker.http(), "rows").await == expected);
    check_fold(&broker, &expected).await;
    broker.stop().await;
    let (code, said) = verify(&home);
    assert_eq!(code, Some(0), "{said}");
    std::fs::remove_dir_all(home.data().join("tables")).unwrap();
    let broker = Broker::start_with(&home, &OFTEN).await;
    assert!(table(&broker.http(), "rows").await == expected, "made anew");
    broker.stop().await;
}

/// Folding what a subscriber from the start is given leads to the rows.
async fn check_fold(broker: &Broker, expected: &BTreeMap<String, Value>) {
    let end = Record::put(b"the end".as_slice(), b"0".as_slice());
    broker.connect().await.publish("rows", vec![end]).await;
    let mut follower = Follower::start(broker.address(), subscribe(1, "rows", "earliest")).await;
    let mut fold: BTreeMap<String, Value> = BTreeMap::new();
    while fold.remove("the end").is_none() {
        for got in follower.records(1).await.0 {
            let key = String::from_utf8(got.key.unwrap()).unwrap();
            match got.value {
                Some(value) => fold.insert(key, serde_json::from_slice(&value).unwrap()),
                None => fold.remove(&key),
            };
        }
    }
    assert!(fold == *expected, "the fold of what is left is the table");
    let gone = broker
        .http()
        .send("DELETE", "/v1/tables/rows/rows/the%20end", &[], "")
        .await;
    assert_eq!(gone.status, 200);
}

/// Publishes without waiting until the stream is gone, and everything is answered.
async fn publish_until_it_is_gone(mut wire: Wire) {
    let (mut sent, mut answered, mut gone) = (0, 0, false);
    while !gone || answered < sent {
        while !gone && sent < answered + 300 {
            let record = Record::value(b"before".as_slice());
            wire.send(&publish(sent, "again", vec![record])).await;
            sent += 1;
        }
        match wire.next().await.unwrap().message() {
            ServerMessage::Ack(ack) => answered += ack.rows.len() as u64,
            ServerMessage::Error(error) => {
                assert_eq!(error.problem.code, Code::NoSuchStream, "{error:?}");
                answered += 1;
                gone = true;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// What was on its way when a stream was deleted does not come back with a new one of its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_made_again_is_empty_whatever_was_being_published() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    let http = broker.http();
    for round in 0..20 {
        broker.create(json!({"name": "again"})).await;
        let mut publishers = Vec::new();
        for _ in 0..3 {
            let wire = broker.connect().await;
            publishers.push(tokio::spawn(publish_until_it_is_gone(wire)));
        }
        let held = http.json("/v1/streams/again").await["offsets"][0]["first"].clone();
        eventually("publishing", async || {
            let shown = http.json("/v1/streams/again").await;
            (shown["offsets"][0]["next"].as_u64()? > held.as_u64()? + 200).then_some(())
        })
        .await;
        let deleted = http.send("DELETE", "/v1/streams/again", &[], "").await;
        assert_eq!(deleted.status, 204, "{deleted:?}");
        for publisher in publishers {
            publisher.await.unwrap();
        }
        broker.create(json!({"name": "again"})).await;
        let path = "/v1/streams/again/records?from=earliest&limit=1";
        let records = http.json(path).await["records"].clone();
        assert_eq!(records, json!([]), "round {round}");
        let deleted = http.send("DELETE", "/v1/streams/again", &[], "").await;
        assert_eq!(deleted.status, 204, "{deleted:?}");
    }
    broker.stop().await;
}
