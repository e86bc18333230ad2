//! Publishes that are acknowledged once other regions hold them.

use std::time::{Duration, Instant};

use anabranch_protocol::ws::{AckLevel, ClientMessage, Durability, ServerMessage};
use anabranch_tests::condition::eventually;
use anabranch_tests::proxy::Weather;
use anabranch_tests::regions::Regions;
use anabranch_tests::wire::{Wire, publish};
use serde_json::{Value, json};

const CUT: Weather = Weather {
    cut: true,
    delay: Duration::ZERO,
    corrupt_every: None,
};

const SLOW: Weather = Weather {
    cut: false,
    delay: Duration::from_millis(20),
    corrupt_every: None,
};

async fn three() -> Regions {
    let regions = Regions::start(3, &[]).await;
    regions
        .broker(0)
        .create(json!({"name": "e", "merge": "append"}))
        .await;
    regions.know("e").await;
    regions
}

/// Publishes one record in the first region. Gives the status and the answer.
async fn ask(regions: &Regions, ack: &str, wait: &str) -> (u16, Value) {
    let http = regions.broker(0).http();
    let path = format!("/v1/streams/e/records?ack={ack}");
    let headers = [("content-type", "application/json"), ("prefer", wait)];
    let answer = http.send("POST", &path, &headers, r#"[{"value":1}]"#).await;
    (answer.status, answer.json())
}

/// How many frames of the first region another one holds.
async fn held(regions: &Regions, number: usize) -> u64 {
    let origin = regions.status(0).await["origin"]
        .as_str()
        .unwrap()
        .to_owned();
    regions.status(number).await["vector"][&origin]
        .as_u64()
        .unwrap_or(0)
}

fn sequence(answer: &Value) -> u64 {
    let dot = answer["dot"].as_str().unwrap();
    dot.split(':').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_of_regions_comes_once_they_hold_it() {
    let regions = three().await;
    regions.set_between(0, 1, SLOW);
    regions.set_between(0, 2, SLOW);
    regions.linked().await;
    for (ack, others) in [("regions:3", vec![1, 2]), ("region:r0,r2", vec![2])] {
        let started = Instant::now();
        let (status, answer) = ask(&regions, ack, "wait=20").await;
        let took = started.elapsed();
        assert_eq!(
            (status, &answer["durability"]),
            (200, &json!("regions")),
            "{answer}"
        );
        for other in others {
            assert!(held(&regions, other).await >= sequence(&answer), "{ack}");
            let name = json!(format!("r{other}"));
            assert!(
                answer["regions"].as_array().unwrap().contains(&name),
                "{answer}"
            );
        }
        assert!(
            took >= Duration::from_millis(40),
            "there and back: {took:?}"
        );
    }
    // One region is this one.
    let (status, answer) = ask(&regions, "regions:1", "wait=0").await;
    assert_eq!(
        (status, &answer["regions"][0]),
        (200, &json!("r0")),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_reached_in_time_is_said_and_goes_on() {
    let regions = three().await;
    regions.set(2, CUT);
    for ack in ["regions:3", "region:r2"] {
        let (status, answer) = ask(&regions, ack, "wait=1").await;
        assert_eq!(
            (status, &answer["code"]),
            (504, &json!("AB3102")),
            "{answer}"
        );
        let detail = answer["detail"].as_str().unwrap();
        assert!(detail.contains("on disk in r0"), "{detail}");
    }
    let (status, answer) = ask(&regions, "regions:2", "wait=20").await;
    assert_eq!(status, 200, "the second region is enough: {answer}");
    let (status, answer) = ask(&regions, "regions:4", "wait=1").await;
    assert_eq!(
        (status, &answer["code"]),
        (400, &json!("AB1007")),
        "{answer}"
    );
    let (status, answer) = ask(&regions, "region:nowhere", "wait=1").await;
    assert_eq!(
        (status, &answer["code"]),
        (400, &json!("AB1007")),
        "{answer}"
    );
    let (status, answer) = ask(&regions, "everywhere", "wait=1").await;
    assert_eq!(status, 400, "{answer}");
    // All three records are here, and arrive once the region is back.
    regions.set(2, Weather::default());
    regions.converged().await;
    let http = regions.broker(2).http();
    let page = http.json("/v1/streams/e/records?from=earliest").await;
    assert_eq!(page["records"].as_array().unwrap().len(), 3, "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exists_only_here_is_shown() {
    let regions = three().await;
    regions.converged().await;
    regions.set(0, CUT);
    for _ in 0..5 {
        let (status, _) = ask(&regions, "disk", "wait=1").await;
        assert_eq!(status, 200);
    }
    let status = regions.status(0).await;
    let only_here = &status["only_here"];
    assert!(only_here["frames"].as_u64().unwrap() >= 1, "{status}");
    assert!(only_here["bytes"].as_u64().unwrap() > 0, "{status}");
    let http = regions.broker(0).http();
    eventually("the metric", async || {
        let frames = http.metric("anabranch_unreplicated_frames").await?;
        (frames > 0.0).then_some(())
    })
    .await;
    regions.set(0, Weather::default());
    eventually("nothing is only here", async || {
        let status = regions.status(0).await;
        (status["only_here"]["frames"] == 0).then_some(())
    })
    .await;
}

/// A stop does not wait for regions that are away.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_regions_is_answered_when_the_broker_stops() {
    let mut regions = three().await;
    regions.set(0, CUT);
    let address = regions.broker(0).address();
    let mut wire = Wire::connect(address).await;
    let ClientMessage::Publish(mut message) = publish(
        1,
        "e",
        vec![anabranch_protocol::record::Record::value(&b"1"[..])],
    ) else {
        unreachable!("it is a publish")
    };
    message.ack = AckLevel::parse("regions:2").unwrap();
    wire.send(&ClientMessage::Publish(message)).await;
    // It is on disk, and not acknowledged.
    eventually("it is in the log", async || {
        let stream = regions.broker(0).http().json("/v1/streams/e").await;
        (stream["offsets"][0]["next"] == 1).then_some(())
    })
    .await;
    let (answer, ()) = tokio::join!(wire.next(), regions.stop(0));
    let answer = answer.unwrap();
    let ServerMessage::Error(error) = answer.message() else {
        panic!("{answer:?}");
    };
    assert_eq!(
        error.problem.code,
        anabranch_protocol::error::Code::RegionsNotReached
    );
}

/// Many on their way over one connection, of which each is answered once, whatever it waits for.
#[tokio::test(flavor = "multi_thread")]
async fn publishes_of_one_connection_wait_each_for_what_it_asks() {
    let regions = three().await;
    regions.set_between(0, 2, SLOW);
    let mut wire = Wire::connect(regions.broker(0).address()).await;
    let levels = ["disk", "regions:2", "region:r2", "memory", "regions:3"];
    let mut sent = 0;
    for level in levels.iter().cycle().take(200) {
        let ClientMessage::Publish(mut message) = publish(
            sent,
            "e",
            vec![anabranch_protocol::record::Record::value(&b"1"[..])],
        ) else {
            unreachable!("it is a publish")
        };
        message.ack = AckLevel::parse(level).unwrap();
        wire.send(&ClientMessage::Publish(message)).await;
        sent += 1;
    }
    let mut answered = vec![None; usize::try_from(sent).unwrap()];
    while answered.iter().any(Option::is_none) {
        let incoming = wire.next().await.unwrap();
        let ServerMessage::Ack(ack) = incoming.message() else {
            panic!("{incoming:?}");
        };
        for row in &ack.rows {
            let before = answered[usize::try_from(row.id).unwrap()].replace(ack.durability);
            assert_eq!(before, None, "answered twice");
        }
    }
    for (number, durability) in answered.into_iter().enumerate() {
        let expected = match levels[number % levels.len()] {
            "disk" => Durability::Disk,
            "memory" => Durability::Memory,
            _ => Durability::Regions,
        };
        assert_eq!(durability, Some(expected));
    }
}
