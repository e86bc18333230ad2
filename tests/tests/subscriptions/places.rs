//! From the start, the end, a time, a cursor, the table.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anabranch_protocol::codec::Codec;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::Format;
use anabranch_tests::broker::Broker;
use anabranch_tests::condition::eventually;
use anabranch_tests::follow::{Came, Follower};
use anabranch_tests::home::Home;
use anabranch_tests::wire::subscribe;
use serde_json::json;

use super::numbers::{STREAM, numbers, publish_to, those};

async fn broker(home: &Home) -> Broker {
    let broker = Broker::start(home).await;
    broker
        .create(json!({"name": STREAM, "partitions": 3}))
        .await;
    broker
}

async fn from(broker: &Broker, from: &str, count: usize) -> Vec<u32> {
    let mut follower = Follower::start(broker.address(), subscribe(1, STREAM, from)).await;
    numbers(&follower.records(count).await.0)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

#[tokio::test]
async fn earliest_is_everything_and_goes_on() {
    let home = Home::new();
    let broker = broker(&home).await;
    publish_to(&broker, 0..20).await;
    let mut follower = Follower::start(broker.address(), subscribe(1, STREAM, "earliest")).await;
    assert_eq!(
        numbers(&follower.records(20).await.0),
        those(0..20, |_| true)
    );
    publish_to(&broker, 20..40).await;
    assert_eq!(
        numbers(&follower.records(20).await.0),
        those(20..40, |_| true)
    );
}

#[tokio::test]
async fn latest_is_what_comes_after_the_subscription_is_live() {
    let home = Home::new();
    let broker = broker(&home).await;
    publish_to(&broker, 0..20).await;
    let mut follower = Follower::start(broker.address(), subscribe(1, STREAM, "latest")).await;
    let live = follower.live().await;
    publish_to(&broker, 20..30).await;
    assert_eq!(
        numbers(&follower.records(10).await.0),
        those(20..30, |_| true)
    );
    // Its cursor leads to the same place.
    assert_eq!(from(&broker, &live, 10).await, those(20..30, |_| true));
}

#[tokio::test]
async fn a_time_is_what_was_appended_since() {
    let home = Home::new();
    let broker = broker(&home).await;
    publish_to(&broker, 0..20).await;
    let between = now_ms() + 2;
    eventually("the clock moves on", async || {
        (now_ms() > between).then_some(())
    })
    .await;
    publish_to(&broker, 20..50).await;
    let since = from(&broker, &between.to_string(), 30).await;
    assert_eq!(since, those(20..50, |_| true));
    assert_eq!(from(&broker, "0", 50).await.len(), 50);
    let future = (now_ms() + 3_600_000).to_string();
    let mut follower = Follower::start(broker.address(), subscribe(1, STREAM, &future)).await;
    publish_to(&broker, 50..53).await;
    let (records, _) = follower.records(3).await;
    assert_eq!(
        numbers(&records),
        those(50..53, |_| true),
        "a time to come is the end"
    );
}

#[tokio::test]
async fn a_cursor_is_what_comes_behind_it() {
    let home = Home::new();
    let broker = broker(&home).await;
    publish_to(&broker, 0..30).await;
    let mut follower = Follower::start(broker.address(), subscribe(1, STREAM, "earliest")).await;
    let mut seen = Vec::new();
    while seen.len() < 30 {
        let Came::Frame { records, cursor } = follower.next().await else {
            panic!("a frame was due");
        };
        seen.extend(numbers(&records));
        if seen.len() < 30 {
            let rest = from(&broker, &cursor, 30 - seen.len()).await;
            let expected = those(0..30, |number| !seen.contains(&number));
            assert_eq!(rest, expected);
        }
    }
}

/// All shapes of messages carry the same records.
#[tokio::test]
async fn both_subprotocols_and_formats_deliver_the_same() {
    let home = Home::new();
    let broker = broker(&home).await;
    publish_to(&broker, 0..60).await;
    let mut all = Vec::new();
    for codec in Codec::ALL {
        for format in [Format::Records, Format::Batch] {
            let mut wanted = subscribe(7, STREAM, "earliest");
            wanted.format = format;
            let mut follower = Follower::start_as(broker.address(), codec, wanted).await;
            all.push(follower.records(60).await);
        }
    }
    assert!(all.iter().all(|it| *it == all[0]), "{all:?}");
}

/// While somebody writes: the rows of one moment, and every change after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_its_rows_at_one_moment_then_every_change() {
    let home = Home::new();
    let broker = Broker::start_with(&home, &["tables.image_rows=1000"]).await;
    let table = json!({"name": "rows", "merge": "lww", "partitions": 2});
    broker.create(table).await;
    let mut wire = broker.connect().await;
    let write = |from: u32| {
        let record = move |number: u32| {
            let key = format!("key-{:04}", number % 2500).into_bytes();
            match number % 11 {
                0 => Record::delete(key),
                _ => Record::put(key, number.to_string().into_bytes()),
            }
        };
        (from..from + 100).map(record).collect::<Vec<_>>()
    };
    for from in (0..6000).step_by(100) {
        wire.publish("rows", write(from)).await;
    }
    let writing = tokio::spawn(async move {
        for from in (6000..12_000).step_by(100) {
            wire.publish("rows", write(from)).await;
        }
    });
    let mut followers = Vec::new();
    for _ in 0..4 {
        followers.push(Follower::start(broker.address(), subscribe(1, "rows", "table")).await);
    }
    writing.await.unwrap();
    let last = Record::put(b"the end".as_slice(), b"1".as_slice());
    broker.connect().await.publish("rows", vec![last]).await;
    let mut expected = BTreeMap::new();
    for record in (0..12_000).step_by(100).flat_map(write) {
        let key = record.key.unwrap().into_owned();
        match record.value {
            Some(value) => expected.insert(key, value.into_owned()),
            None => expected.remove(&key),
        };
    }
    for mut follower in followers {
        assert_eq!(fold(&mut follower).await, expected);
    }
}

/// The rows, and what changed, up to the record with the key `the end`.
async fn fold(follower: &mut Follower) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let (rows, _) = follower.table().await;
    let sorted = rows.is_sorted_by(|a, b| a.0 < b.0);
    assert!(sorted, "rows come in the order of their keys");
    let mut fold: BTreeMap<_, _> = rows.into_iter().collect();
    while fold.remove(b"the end".as_slice()).is_none() {
        for got in follower.records(1).await.0 {
            let key = got.key.unwrap();
            match got.value {
                Some(value) => fold.insert(key, value),
                None => fold.remove(&key),
            };
        }
    }
    fold
}

#[tokio::test]
async fn a_deleted_stream_ends_its_subscriptions() {
    let home = Home::new();
    let broker = broker(&home).await;
    publish_to(&broker, 0..3).await;
    let mut follower = Follower::start(broker.address(), subscribe(1, STREAM, "earliest")).await;
    follower.records(3).await;
    let path = format!("/v1/streams/{STREAM}");
    let deleted = broker.http().send("DELETE", &path, &[], "").await;
    assert_eq!(deleted.status, 204, "{deleted:?}");
    match follower.next().await {
        Came::Refused(problem) => assert_eq!(problem.code.code(), "AB1501"),
        other => panic!("{other:?}"),
    }
    follower.wire().lives().await;
    let gone = broker.http().get(&path).await;
    let _ = gone.problem(404, "AB1501");
    // Made again, it is empty.
    broker.create(json!({"name": STREAM})).await;
    let page = broker
        .http()
        .json(&format!("{path}/records?from=earliest"))
        .await;
    assert_eq!(page["records"], json!([]));
    tokio::time::timeout(Duration::from_secs(30), broker.stop())
        .await
        .unwrap();
}
