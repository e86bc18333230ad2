//! A broker that is asked to stop: it finishes what it has begun, tells everybody, and leaves a
//! directory that opens at once.

use std::time::{Duration, Instant};

use anabranch_protocol::codec::Codec;
use anabranch_protocol::error::Code;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::{ClientMessage, ServerMessage};
use anabranch_tests::broker::Broker;
use anabranch_tests::follow::{Came, Follower};
use anabranch_tests::home::Home;
use anabranch_tests::wire::{Wire, publish, subscribe};
use http_body_util::BodyExt;
use rustix::process::Signal;
use serde_json::json;

/// Publishes without waiting, until the broker says goodbye. Returns how many publishes were
/// acknowledged.
async fn publish_until_told(mut wire: Wire) -> u64 {
    let mut acknowledged = 0;
    let (mut sent, mut gone) = (0, false);
    loop {
        while !gone && sent < acknowledged + 200 {
            let record = Record::value(sent.to_string().into_bytes());
            gone = wire
                .try_send(&publish(sent, "events", vec![record]))
                .await
                .is_err();
            sent += 1;
        }
        let Ok(incoming) = wire.next().await else {
            return acknowledged;
        };
        match incoming.message() {
            ServerMessage::Ack(ack) => acknowledged += ack.rows.len() as u64,
            ServerMessage::Error(error) => {
                assert_eq!(error.problem.code, Code::ShuttingDown, "{error:?}");
                gone = true;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Nothing is left in doubt: what is in the log was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_before_the_end_is_acknowledged() {
    let home = Home::new();
    for round in 0..5u64 {
        let broker = Broker::start(&home).await;
        broker.create(json!({"name": "events"})).await;
        let http = broker.http();
        let held = http.json("/v1/streams/events").await["offsets"][0]["next"]
            .as_u64()
            .unwrap();
        let mut publishers = Vec::new();
        for codec in [Codec::Msgpack, Codec::Json, Codec::Msgpack] {
            let wire = Wire::connect_as(broker.address(), codec).await;
            publishers.push(tokio::spawn(publish_until_told(wire)));
        }
        anabranch_tests::condition::eventually("publishing", async || {
            let shown = http.json("/v1/streams/events").await;
            (shown["offsets"][0]["next"].as_u64()? > held + 500 * round).then_some(())
        })
        .await;
        broker.stop().await;
        let mut acknowledged = 0;
        for publisher in publishers {
            acknowledged += publisher.await.unwrap();
        }
        let broker = Broker::start(&home).await;
        let shown = broker.http().json("/v1/streams/events").await;
        let appended = shown["offsets"][0]["next"].as_u64().unwrap() - held;
        assert_eq!(appended, acknowledged, "round {round}");
        broker.stop().await;
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_clients_that_do_nothing() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    broker.create(json!({"name": "events"})).await;
    let mut idle = broker.connect().await;
    let mut follower = Follower::start(broker.address(), subscribe(1, "events", "latest")).await;
    follower.live().await;
    let silent = tokio::net::TcpStream::connect(broker.address())
        .await
        .unwrap();
    let http = broker.http();
    let events = [("accept", "text/event-stream")];
    let path = "/v1/streams/events/records";
    let following = http.open("GET", path, &events, "").await.unwrap();
    let started = Instant::now();
    broker.stop().await;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    idle.refusal(Code::ShuttingDown).await;
    idle.closed_after(Code::ShuttingDown).await;
    let rest = following.into_body().collect().await.unwrap().to_bytes();
    let said = String::from_utf8_lossy(&rest).into_owned();
    assert!(
        said.contains("event: error") && said.contains("AB6002"),
        "{said}"
    );
    drop(silent);
}

/// Each is told once, and what it had published is acknowledged before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_is_told_once_that_the_broker_stops() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    broker.create(json!({"name": "events"})).await;
    let mut followers = Vec::new();
    for _ in 0..40 {
        let subscription = subscribe(1, "events", "latest");
        let mut follower = Follower::start(broker.address(), subscription).await;
        follower.live().await;
        followers.push(follower);
    }
    broker.stop().await;
    for mut follower in followers {
        let mut told = 0;
        let closed = loop {
            match follower.next().await {
                Came::Refused(problem) => {
                    assert_eq!(problem.code, Code::ShuttingDown, "{problem:?}");
                    told += 1;
                }
                Came::Closed(closed) => break closed,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(told, 1, "{closed:?}");
    }
}

/// The end of a subscription does not come before the answers to what its connection published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_of_a_subscriber_are_acknowledged_before_the_end() {
    let home = Home::new();
    for round in 0..5 {
        let broker = Broker::start(&home).await;
        broker.create(json!({"name": "events"})).await;
        broker.create(json!({"name": "quiet"})).await;
        let http = broker.http();
        let next = async || {
            let shown = http.json("/v1/streams/events").await;
            shown["offsets"][0]["next"].as_u64().unwrap()
        };
        let held = next().await;
        let mut publishers = Vec::new();
        for _ in 0..3 {
            let mut wire = Wire::connect_as(broker.address(), Codec::Msgpack).await;
            let quiet = subscribe(1, "quiet", "earliest");
            wire.send(&ClientMessage::Subscribe(quiet)).await;
            publishers.push(tokio::spawn(publish_until_told(wire)));
        }
        anabranch_tests::condition::eventually("publishing", async || {
            (next().await > held + 500).then_some(())
        })
        .await;
        broker.stop().await;
        let mut acknowledged = 0;
        for publisher in publishers {
            acknowledged += publisher.await.unwrap();
        }
        let broker = Broker::start(&home).await;
        let shown = broker.http().json("/v1/streams/events").await;
        let appended = shown["offsets"][0]["next"].as_u64().unwrap() - held;
        assert_eq!(appended, acknowledged, "round {round}");
        broker.stop().await;
    }
}

#[tokio::test]
async fn a_clean_stop_is_noticed_at_the_next_start() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    broker.create(json!({"name": "events"})).await;
    broker.stop().await;
    Broker::start(&home).await.stop().await;
    let said = std::fs::read_to_string(home.log()).unwrap();
    assert!(said.contains("closed cleanly"), "{said}");
    assert!(!said.contains("unclean"), "{said}");
}

/// At any moment between its first instruction and being ready.
#[tokio::test]
async fn a_broker_may_be_asked_to_stop_while_it_starts() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    broker.create(json!({"name": "rows", "merge": "lww"})).await;
    let mut wire = broker.connect().await;
    for number in 0..2000u32 {
        let key = number.to_be_bytes().to_vec();
        wire.send(&publish(0, "rows", vec![Record::put(key, vec![0; 500])]))
            .await;
    }
    wire.acknowledged(2000).await;
    broker.stop().await;
    for moment in (0..60).step_by(4) {
        let after = Duration::from_millis(moment);
        let status = Broker::start_and_signal(&home, Signal::TERM, after).await;
        // Before it listens for signals, they end it as they end everything.
        assert!(
            status.success() || status.code().is_none(),
            "{moment} ms: {status}"
        );
        assert_ne!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(Signal::ABORT.as_raw()),
            "{moment} ms"
        );
    }
    let broker = Broker::start(&home).await;
    let shown = broker.http().json("/v1/streams/rows").await;
    assert_eq!(shown["offsets"][0]["next"], 2000);
    broker.stop().await;
}
