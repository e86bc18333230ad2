//! Slow ones, idle ones, many.

use std::time::{Duration, Instant};

use anabranch_protocol::error::Code;
use anabranch_protocol::record::Record;
use anabranch_tests::broker::Broker;
use anabranch_tests::condition::eventually;
use anabranch_tests::follow::{Came, Follower};
use anabranch_tests::home::Home;
use anabranch_tests::wire::subscribe;
use serde_json::json;

const SMALL_BUFFER: [&str; 2] = [
    "limits.subscriber_buffer_bytes=64KiB",
    "limits.slow_subscriber_seconds=1",
];

/// More than the sockets between two processes hold.
const RECORDS: usize = 480;
const RECORD_BYTES: usize = 128 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_does_not_read_is_let_go_and_others_do_not_wait() {
    let home = Home::new();
    let broker = Broker::start_with(&home, &SMALL_BUFFER).await;
    broker.create(json!({"name": "events"})).await;
    let mut slow = Follower::start(broker.address(), subscribe(1, "events", "earliest")).await;
    let mut quick = Follower::start(broker.address(), subscribe(1, "events", "earliest")).await;
    let memory = broker.peak_memory();
    let mut wire = broker.connect().await;
    let mut took = Vec::new();
    for number in 0..RECORDS {
        let mut value = vec![b'x'; RECORD_BYTES];
        value[..8].copy_from_slice(format!("{number:08}").as_bytes());
        let sent = Instant::now();
        wire.publish("events", vec![Record::value(value)]).await;
        quick.records(1).await;
        took.push(sent.elapsed());
    }
    took.sort_unstable();
    let (median, worst) = (took[RECORDS / 2], took[RECORDS - 1]);
    assert!(median < Duration::from_millis(100), "{median:?}");
    assert!(worst < Duration::from_secs(2), "{worst:?}");
    let grown = broker.peak_memory() - memory;
    assert!(grown < 96 << 20, "grown by {grown} bytes");

    let http = broker.http();
    eventually("the slow one is let go", async || {
        let slow = http.metric("anabranch_slow_subscribers_total").await;
        (slow == Some(1.0)).then_some(())
    })
    .await;
    let (mut seen, mut cursor) = (0, "earliest".to_owned());
    loop {
        match slow.next().await {
            Came::Frame {
                records,
                cursor: here,
            } => {
                seen += records.len();
                cursor = here;
            }
            Came::Refused(problem) => {
                assert_eq!(problem.code, Code::SlowSubscriber);
                assert_eq!(problem.cursor, Some(cursor.clone()), "it says where");
            }
            Came::Closed(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(seen < RECORDS, "it was slow");
    let mut resumed = Follower::start(broker.address(), subscribe(1, "events", &cursor)).await;
    let (rest, _) = resumed.records(RECORDS - seen).await;
    assert_eq!(
        rest[0].text()[..8],
        format!("{seen:08}"),
        "nothing lost, nothing doubled"
    );
    assert_eq!(rest.len(), RECORDS - seen);
}

/// Connections of the crowd. Its file handles, and the broker's, must be allowed.
const CROWD: usize = 1000;

#[tokio::test]
async fn a_thousand_idle_subscribers_cost_little_and_hear_everything() {
    let home = Home::new();
    allow_file_handles();
    let broker = Broker::start(&home).await;
    broker.create(json!({"name": "events"})).await;
    let before = broker.memory();
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let follower = Follower::start(broker.address(), subscribe(1, "events", "latest")).await;
        crowd.push(follower);
    }
    for follower in &mut crowd {
        follower.live().await;
    }
    let each = broker.memory().saturating_sub(before) / CROWD as u64;
    assert!(each <= 40_000, "{each} bytes each");
    broker
        .connect()
        .await
        .publish("events", vec![Record::value(b"hello".as_slice())])
        .await;
    for follower in &mut crowd {
        assert_eq!(follower.records(1).await.0[0].text(), "hello");
    }
    drop(crowd);
    broker.stop().await;
}

fn allow_file_handles() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}
