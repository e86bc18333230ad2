//! The order that is the same in every region: subscribers of `order=total`, over links that are
//! slow, cut and healed.

use std::collections::BTreeMap;
use std::time::Duration;

use anabranch_core::cursor::Order;
use anabranch_core::id::Dot;
use anabranch_protocol::ws::{Format, Subscribe};
use anabranch_tests::condition::eventually;
use anabranch_tests::follow::{Came, Follower, Got};
use anabranch_tests::proxy::Weather;
use anabranch_tests::regions::Regions;
use anabranch_tests::wire::subscribe;
use serde_json::{Value, json};
use tokio::time::timeout;

const CUT: Weather = Weather {
    cut: true,
    delay: Duration::ZERO,
    corrupt_every: None,
};

/// Batches that each region writes.
const BATCHES: usize = 40;

/// Records of one of them. Batches of different regions that fall into the same millisecond
/// overlap.
const RECORDS: usize = 20;

fn in_total_order<'a>(from: &'a str, format: Format) -> Subscribe<'a> {
    Subscribe {
        order: Order::Total,
        format,
        ..subscribe(1, "t", from)
    }
}

async fn start() -> Regions {
    let regions = Regions::start(3, &[]).await;
    let stream = json!({"name": "t", "merge": "lww", "partitions": 2});
    regions.broker(0).create(stream).await;
    regions.know("t").await;
    regions
}

async fn write(regions: &Regions, region: usize, batch: usize, records: usize) {
    let record = |number: usize| {
        let key = (batch * 7 + number * 3) % 50;
        json!({"key": format!("k{key}"), "value": format!("{region}-{batch}-{number}")})
    };
    let records: Vec<_> = (0..records).map(record).collect();
    let http = regions.broker(region).http();
    let answer = http.post("/v1/streams/t/records", &json!(records)).await;
    assert!(answer.status < 300, "{answer:?}");
}

/// All regions write at the same time.
async fn write_everywhere(regions: &Regions, batches: std::ops::Range<usize>) {
    let one = async |region: usize| {
        for batch in batches.clone() {
            write(regions, region, batch, RECORDS).await;
        }
    };
    tokio::join!(one(0), one(1), one(2));
}

fn key_and_value(got: &Got) -> (String, String) {
    let key = String::from_utf8(got.key.clone().unwrap()).unwrap();
    let value: Value = serde_json::from_str(got.text()).unwrap();
    (key, value.as_str().unwrap().to_owned())
}

/// Pages over HTTP, each in another region than the one before, until there are so many records.
async fn hop(regions: &Regions, records: usize) -> Vec<Dot> {
    let mut random = fastrand::Rng::new();
    let mut all: Vec<Dot> = Vec::new();
    let mut from = "earliest".to_owned();
    while all.len() < records {
        let limit = random.usize(1..40);
        let path = format!("/v1/streams/t/records?order=total&limit={limit}&wait=5&from={from}");
        let http = regions.broker(random.usize(..3)).http();
        let page = http.json(&path).await;
        let given = page["records"].as_array().unwrap();
        all.extend(given.iter().map(dot));
        page["cursor"].as_str().unwrap().clone_into(&mut from);
    }
    all
}

fn dot(record: &Value) -> Dot {
    record["dot"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_regions_give_the_same_order_and_it_ends_with_the_rows_of_the_table() {
    let regions = start().await;
    for (pair, delay) in [((0, 1), 5), ((0, 2), 20), ((1, 2), 40)] {
        let delay = Duration::from_millis(delay);
        let weather = Weather {
            delay,
            ..Weather::default()
        };
        regions.set_between(pair.0, pair.1, weather);
    }
    let mut followers = Vec::new();
    for (region, format) in [Format::Records, Format::Batch, Format::Records]
        .into_iter()
        .enumerate()
    {
        let address = regions.broker(region).address();
        followers.push(Follower::start(address, in_total_order("earliest", format)).await);
    }
    let all = 3 * BATCHES * RECORDS;
    let (_, hopped) = tokio::join!(write_everywhere(&regions, 0..BATCHES), hop(&regions, all));
    let mut sequences = Vec::new();
    for follower in &mut followers {
        let (records, cursor) = follower.records(all).await;
        assert_eq!(records.len(), all);
        sequences.push((records, cursor));
    }
    let dots = |records: &[Got]| records.iter().map(|got| got.dot).collect::<Vec<_>>();
    let first = dots(&sequences[0].0);
    for (records, _) in &sequences {
        assert!(dots(records) == first, "regions differ");
    }
    assert!(
        hopped == first,
        "who hops between regions is given another order"
    );
    assert!(first.iter().any(|dot| dot.origin != first[0].origin));
    // The last writer of the order is the one that won.
    let last: BTreeMap<_, _> = sequences[0].0.iter().map(key_and_value).collect();
    regions.converged().await;
    let rows = regions.rows(1, "t").await;
    let row = |row: &Value| {
        Some((
            row["key"].as_str()?.to_owned(),
            row["value"].as_str()?.to_owned(),
        ))
    };
    let rows: BTreeMap<_, _> = rows.as_array().unwrap().iter().filter_map(row).collect();
    assert_eq!(last, rows);
    // Each cursor leads on, in any region.
    write(&regions, 2, 999, 3).await;
    for (region, (_, cursor)) in [1, 2, 0].into_iter().zip(&sequences) {
        let address = regions.broker(region).address();
        let mut follower = Follower::start(address, in_total_order(cursor, Format::Batch)).await;
        let (records, _) = follower.records(3).await;
        for got in &records {
            assert!(key_and_value(got).1.starts_with("2-999-"), "{records:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_waits_for_a_region_that_is_cut_off_and_goes_on_after_it() {
    let regions = start().await;
    write_everywhere(&regions, 0..2).await;
    let before = 3 * 2 * RECORDS;
    let mut followers = Vec::new();
    for region in 0..3 {
        let address = regions.broker(region).address();
        let subscribe = in_total_order("earliest", Format::Records);
        let mut follower = Follower::start(address, subscribe).await;
        let (records, _) = follower.records(before).await;
        followers.push((follower, records));
    }
    regions.set(2, CUT);
    let address = regions.broker(0).address();
    let mut latest = Follower::start(address, in_total_order("latest", Format::Records)).await;
    latest.live().await;
    let mut local = Follower::start(address, subscribe(1, "t", "latest")).await;
    local.live().await;
    write_everywhere(&regions, 2..4).await;
    // In the order of the log they come at once, the frames of both regions that are linked.
    local.records(2 * 2 * RECORDS).await;
    for (follower, _) in &mut followers {
        let came = timeout(Duration::from_millis(300), follower.next_unhurried()).await;
        assert!(came.is_err(), "although a region is silent: {came:?}");
    }
    let page = "/v1/streams/t/records?order=total&from=earliest&limit=10000";
    let given = regions.broker(1).http().json(page).await;
    assert_eq!(given["records"].as_array().unwrap().len(), before);
    regions.set(2, Weather::default());
    let after = 3 * 2 * RECORDS;
    let mut sequences = Vec::new();
    for (follower, mut records) in followers {
        let mut follower = follower;
        records.extend(follower.records(after).await.0);
        sequences.push(records.into_iter().map(|got| got.dot).collect::<Vec<_>>());
    }
    assert_eq!(sequences[0].len(), before + after);
    assert!(
        sequences.iter().all(|dots| *dots == sequences[0]),
        "regions differ"
    );
    let (late, _) = latest.records(after).await;
    let late: Vec<_> = late.iter().map(|got| got.dot).collect();
    assert!(late == sequences[0][before..], "latest begins elsewhere");
    let hopped = hop(&regions, before + after).await;
    assert!(hopped == sequences[0], "who hops is given another order");
}

/// A restart begins with nothing heard of anybody; the order waits for all to have spoken again.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_region_goes_on_in_the_same_order() {
    let mut regions = start().await;
    write_everywhere(&regions, 0..3).await;
    let all = 3 * 3 * RECORDS;
    let first = hop(&regions, all).await;
    regions.converged().await;
    regions.restart(1).await;
    write_everywhere(&regions, 3..5).await;
    let all = all + 3 * 2 * RECORDS;
    for region in [1, 0] {
        let address = regions.broker(region).address();
        let subscribe = in_total_order("earliest", Format::Batch);
        let mut follower = Follower::start(address, subscribe).await;
        let (records, _) = follower.records(all).await;
        let dots: Vec<_> = records.iter().map(|got| got.dot).collect();
        assert!(dots[..first.len()] == first[..], "the beginning differs");
    }
}

/// Then nothing is known yet of what the others may still write.
#[tokio::test(flavor = "multi_thread")]
async fn latest_after_a_restart_is_not_the_beginning() {
    let mut regions = start().await;
    write_everywhere(&regions, 0..2).await;
    regions.converged().await;
    regions.set(1, CUT);
    regions.restart(1).await;
    let address = regions.broker(1).address();
    let mut latest = Follower::start(address, in_total_order("latest", Format::Records)).await;
    latest.live().await;
    write(&regions, 1, 999, 3).await;
    regions.set(1, Weather::default());
    let (records, _) = latest.records(3).await;
    for got in &records {
        assert!(key_and_value(got).1.starts_with("1-999-"), "{records:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_the_order_does_not_have_is_refused() {
    let regions = start().await;
    write(&regions, 0, 1, 5).await;
    let http = regions.broker(0).http();
    let cursor = async |order: &str| {
        let path = format!("/v1/streams/t/records?order={order}&from=earliest");
        let page = http.json(&path).await;
        page["cursor"].as_str().unwrap().to_owned()
    };
    let (local, total) = (cursor("local").await, cursor("total").await);
    for (order, from, status, code) in [
        ("total", "table", 400, "AB1304"),
        ("total", local.as_str(), 400, "AB1301"),
        ("local", total.as_str(), 400, "AB1301"),
        ("causal", "earliest", 400, "AB1007"),
    ] {
        let path = format!("/v1/streams/t/records?order={order}&from={from}");
        let _ = http.get(&path).await.problem(status, code);
    }
    let address = regions.broker(0).address();
    let mut follower = Follower::start(address, in_total_order("table", Format::Records)).await;
    let came = follower.next().await;
    assert!(matches!(came, Came::Refused(_)), "{came:?}");
    // A time begins with what is stamped then or later.
    let later = eventually("given", async || {
        let path = "/v1/streams/t/records?order=total&from=946684800000";
        let page = http.json(path).await;
        let records = page["records"].as_array().unwrap().len();
        (records == 5).then_some(4_102_444_800_000_u64)
    })
    .await;
    let page = http
        .json(&format!("/v1/streams/t/records?order=total&from={later}"))
        .await;
    assert_eq!(page["records"], json!([]));
    // Also behind its cursor nothing earlier comes.
    write(&regions, 1, 2, 5).await;
    hop(&regions, 10).await;
    let cursor = page["cursor"].as_str().unwrap();
    let path = format!("/v1/streams/t/records?order=total&from={cursor}");
    assert_eq!(http.json(&path).await["records"], json!([]));
}
