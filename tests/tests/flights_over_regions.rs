//! A year of flights, split over three regions by the airport of departure, while their links are
//! slow, noisy and cut. In the end each region holds what the source files say.

use std::collections::BTreeMap;
use std::time::Duration;

use anabranch_tests::broker::Broker;
use anabranch_tests::condition::eventually;
use anabranch_tests::demo::{Demo, answers, records};
use anabranch_tests::home::Home;
use anabranch_tests::http::Http;
use anabranch_tests::proxy::Weather;
use anabranch_tests::regions::Regions;
use serde_json::{Value, json};

/// Which region has which airport of departure.
const AIRPORTS: [&str; 3] = ["EWR", "JFK", "LGA"];

/// Records in one request.
const AT_ONCE: usize = 5_000;

const CUT: Weather = Weather {
    cut: true,
    delay: Duration::ZERO,
    corrupt_every: None,
};

const NOISY: Weather = Weather {
    cut: false,
    delay: Duration::from_millis(5),
    corrupt_every: Some(3_000_017),
};

/// All events of the demo, by airport of departure.
async fn events() -> BTreeMap<String, Vec<Value>> {
    let home = Home::new();
    Demo::start(&home).finish().await;
    let broker = Broker::start(&home).await;
    let mut events: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    records(&broker.http(), "flights", |event| {
        let airport = event["origin"].as_str().unwrap();
        events
            .entry(airport.to_owned())
            .or_default()
            .push(event.clone());
    })
    .await;
    broker.stop().await;
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_region_ends_with_all_flights() {
    let events = events().await;
    let regions = Regions::start(3, &["links.audit_seconds=1"]).await;
    let streams = [
        json!({"name": "flights", "merge": "append", "partitions": 3}),
        json!({"name": "latest", "merge": "lww"}),
    ];
    for stream in streams {
        regions.broker(0).create(stream).await;
    }
    regions.know("latest").await;
    let most = events.values().map(Vec::len).max().unwrap();
    for round in 0..most.div_ceil(AT_ONCE) {
        match round {
            4 => regions.set_between(0, 1, NOISY),
            8 => regions.set(2, CUT),
            14 => regions.set_between(0, 1, CUT),
            _ => {}
        }
        for (number, airport) in AIRPORTS.iter().enumerate() {
            let here = events[*airport].chunks(AT_ONCE).nth(round);
            write(&regions.broker(number).http(), here.unwrap_or_default()).await;
        }
    }
    let cut_off = json!(departures(&regions, 2).await);
    assert_ne!(cut_off, answers()["departures_by_origin"]);
    regions.set(2, Weather::default());
    regions.set_between(0, 1, Weather::default());
    regions.converged().await;
    for number in 0..3 {
        let found = json!(departures(&regions, number).await);
        assert_eq!(found, answers()["departures_by_origin"], "region {number}");
    }
    equal_digests(&regions).await;
}

/// The events, and for each flight the latest one.
async fn write(http: &Http, events: &[Value]) {
    if events.is_empty() {
        return;
    }
    let publish = async |stream: &str, records: Vec<Value>| {
        let path = format!("/v1/streams/{stream}/records");
        let answer = http.post(&path, &json!(records)).await;
        assert!(answer.status < 300, "{answer:?}");
    };
    let record = |event: &Value| json!({"key": event["dest"], "value": event});
    publish("flights", events.iter().map(record).collect()).await;
    let row = |event: &Value| {
        let flight = format!("{}{}", event["carrier"].as_str().unwrap(), event["flight"]);
        json!({"key": flight, "value": event})
    };
    publish("latest", events.iter().map(row).collect()).await;
}

async fn departures(regions: &Regions, number: usize) -> BTreeMap<String, u64> {
    let mut departures = BTreeMap::new();
    records(&regions.broker(number).http(), "flights", |event| {
        if event["event"] == "departure" {
            let airport = event["origin"].as_str().unwrap().to_owned();
            *departures.entry(airport).or_default() += 1;
        }
    })
    .await;
    departures
}

/// The brokers have compared their tables, and say that they are the same.
async fn equal_digests(regions: &Regions) {
    eventually("digests of the same vector", async || {
        let mut digests = Vec::new();
        for number in 0..3 {
            let status = regions.status(number).await;
            assert_eq!(status["differing"], json!([]));
            let all = status["digests"].as_array()?.clone();
            digests.push(
                all.into_iter()
                    .find(|digest| digest["stream"] == "latest")?,
            );
        }
        let vectors = digests.iter().map(|digest| &digest["vector"]);
        let same = vectors
            .collect::<Vec<_>>()
            .windows(2)
            .all(|two| two[0] == two[1]);
        if !same {
            return None;
        }
        assert!(digests[0]["rows"].as_u64().unwrap() > 3_000, "{digests:?}");
        for digest in &digests {
            assert_eq!(*digest, digests[0]);
        }
        Some(())
    })
    .await;
}
