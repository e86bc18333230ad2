//! Clients that do not go on.

use std::time::{Duration, Instant};

use anabranch_protocol::error::Code;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::KeyFilter;
use anabranch_tests::condition::{eventually, soon};
use anabranch_tests::follow::{Came, Follower};
use anabranch_tests::wire::subscribe;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::scene::Scene;

const ONE_SECOND: &str = "limits.credit_timeout_seconds=1";

/// Rows of a table that is many times as large as what is read ahead of a subscriber.
const ROWS: usize = 200;

/// Tables that a broker reads whole at the same time.
const READERS: u32 = 4;

async fn publish(scene: &Scene, count: u32) {
    let mut wire = scene.broker.connect().await;
    for number in 0..count {
        let value = number.to_string().into_bytes();
        wire.publish("events", vec![Record::value(value).at(0)])
            .await;
    }
}

/// Waits for the end of a subscription, whose cursor is returned.
async fn ended(follower: &mut Follower, code: Code) -> String {
    match follower.next().await {
        Came::Refused(problem) => {
            assert_eq!(problem.code, code, "{problem:?}");
            assert!(problem.retryable);
            problem.cursor.unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_subscription_that_is_never_given_credit_ends_with_a_cursor() {
    let scene = Scene::new(&[ONE_SECOND]).await;
    let mut without = subscribe(1, "events", "earliest");
    without.credit = 0;
    publish(&scene, 5).await;
    let mut follower = Follower::start(scene.broker.address(), without).await;
    let cursor = ended(&mut follower, Code::NoCredit).await;
    follower.wire().closed_after(Code::NoCredit).await;
    let resumed = subscribe(1, "events", &cursor);
    let mut follower = Follower::start(scene.broker.address(), resumed).await;
    let (records, _) = follower.records(5).await;
    assert_eq!(records.len(), 5, "nothing was passed over");
    scene.end().await;
}

#[tokio::test]
async fn a_subscription_that_is_given_no_more_credit_resumes_where_it_ended() {
    let scene = Scene::new(&[ONE_SECOND]).await;
    publish(&scene, 40).await;
    let mut little = subscribe(1, "events", "earliest");
    little.credit = 1;
    let mut follower = Follower::start(scene.broker.address(), little).await;
    let (first, _) = follower.records(40).await;
    publish(&scene, 40).await;
    let cursor = ended(&mut follower, Code::SlowSubscriber).await;
    let resumed = subscribe(1, "events", &cursor);
    let mut follower = Follower::start(scene.broker.address(), resumed).await;
    let (rest, _) = follower.records(80 - first.len()).await;
    let mut dots: Vec<_> = first.iter().chain(&rest).map(|got| got.dot).collect();
    assert_eq!(dots.len(), 80);
    dots.dedup();
    assert_eq!(dots.len(), 80, "none twice");
    scene.end().await;
}

#[tokio::test]
async fn a_subscription_without_records_needs_no_credit() {
    let scene = Scene::new(&[ONE_SECOND]).await;
    let mut without = subscribe(1, "events", "earliest");
    without.credit = 0;
    let mut follower = Follower::start(scene.broker.address(), without).await;
    let started = Instant::now();
    while started.elapsed().as_millis() < 1500 {
        scene.is_undisturbed().await;
        follower.wire().lives().await;
    }
    follower.grant(1000).await;
    publish(&scene, 1).await;
    assert_eq!(follower.records(1).await.0.len(), 1);
    scene.end().await;
}

/// Only what a subscription asked for can be kept waiting.
#[tokio::test]
async fn records_outside_of_a_filter_need_no_credit() {
    let scene = Scene::new(&[ONE_SECOND, "log.tail_bytes=1MiB"]).await;
    let mut followers = Vec::new();
    for from in ["latest", "earliest"] {
        let mut filtered = subscribe(1, "events", from);
        filtered.keys = KeyFilter::Prefix(b"wanted".into());
        filtered.credit = 0;
        followers.push(Follower::start(scene.broker.address(), filtered).await);
    }
    let mut wire = scene.broker.connect().await;
    let started = Instant::now();
    let mut others = 0;
    // Also beyond what is kept in memory.
    while started.elapsed() < Duration::from_secs(2) || others < 30 {
        let other = Record::put(b"other".to_vec(), vec![b'x'; 100_000]);
        wire.publish("events", vec![other]).await;
        others += 1;
    }
    for follower in &mut followers {
        follower.wire().lives().await;
    }
    let wanted = Record::put(b"wanted-1".to_vec(), b"1".to_vec());
    wire.publish("events", vec![wanted]).await;
    let mut slow = followers.pop().unwrap();
    let mut quick = followers.pop().unwrap();
    quick.grant(1000).await;
    quick.live().await;
    assert_eq!(quick.records(1).await.0[0].text(), "1");
    ended(&mut slow, Code::NoCredit).await;
    scene.end().await;
}

/// As many as may read whole tables at the same time, and none of them goes on.
#[tokio::test]
async fn readers_of_a_table_that_take_no_rows_make_room_for_others() {
    let scene = Scene::new(&["limits.slow_subscriber_seconds=1"]).await;
    let mut wire = scene.broker.connect().await;
    for number in 0..ROWS {
        let key = format!("{number:04}").into_bytes();
        let put = vec![Record::put(key, vec![b'x'; 100_000])];
        wire.publish("rows", put).await;
    }
    let mut slow = Vec::new();
    for _ in 0..READERS {
        let mut without = subscribe(1, "rows", "table");
        without.credit = 0;
        slow.push(Follower::start(scene.broker.address(), without).await);
    }
    let http = scene.broker.http();
    let readers = async || http.metric("anabranch_table_readers").await;
    eventually("all places are taken", async || {
        (readers().await == Some(f64::from(READERS))).then_some(())
    })
    .await;
    let mut quick = Follower::start(scene.broker.address(), subscribe(1, "rows", "table")).await;
    let took = Instant::now();
    let (rows, _) = quick.table().await;
    assert_eq!(rows.len(), ROWS);
    let took = took.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    eventually("all were let go", async || {
        (readers().await == Some(0.0)).then_some(())
    })
    .await;
    for follower in &mut slow {
        follower.grant(1 << 40).await;
        let ended = loop {
            match follower.next().await {
                Came::Rows(_) => {}
                other => break other,
            }
        };
        match ended {
            Came::Refused(problem) => {
                assert_eq!(problem.code, Code::SlowSubscriber, "{problem:?}");
            }
            other => panic!("{other:?}"),
        }
        follower.wire().closed_after(Code::SlowSubscriber).await;
    }
    scene.end().await;
}

/// Requests that are begun and not finished: in the head, and in the body.
#[tokio::test]
async fn requests_that_are_never_finished_are_given_up() {
    let short = [
        "limits.header_timeout_seconds=1",
        "limits.body_timeout_seconds=1",
    ];
    let scene = Scene::new(&short).await;
    let head = "POST /v1/streams/events/records HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n";
    for sent in ["GET".to_owned(), head.to_owned(), format!("{head}\r\n[")] {
        let mut socket = TcpStream::connect(scene.broker.address()).await.unwrap();
        socket.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = soon("the end", socket.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            read.is_err()
                || answer.is_empty()
                || answer.contains(" 408 ")
                || answer.contains(" 400 "),
            "{answer}"
        );
    }
    scene.end().await;
}

/// Beyond the limit, connections are told so; health can still be asked for.
#[tokio::test]
async fn a_flood_of_connections_is_refused_and_health_stays_in_reach() {
    let scene = Scene::new(&["limits.connections=40"]).await;
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(TcpStream::connect(scene.broker.address()).await.unwrap());
    }
    scene.is_undisturbed().await;
    drop(held.split_off(45));
    let mut free = false;
    anabranch_tests::condition::eventually("a place for the crowded", async || {
        if free {
            held.push(TcpStream::connect(scene.broker.address()).await.unwrap());
        }
        let http = scene.broker.http();
        let answer = http.try_send("GET", "/v1/streams", &[], "").await.ok()?;
        // A connection from before the flood may have kept its place until the flood was over.
        free = answer.status == 200;
        if free {
            return None;
        }
        let _ = answer.problem(503, "AB2202");
        assert_ne!(answer.header("retry-after"), "");
        assert_eq!(http.get("/livez").await.status, 200);
        assert_eq!(http.get("/metrics").await.status, 200);
        Some(())
    })
    .await;
    drop(held);
    anabranch_tests::condition::eventually("a place for everybody", async || {
        let http = scene.broker.http();
        let answer = http.try_send("GET", "/v1/streams", &[], "").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    scene.end().await;
}
