//! Several brokers, each a process, over links that are slow, cut and noisy.

use std::time::Duration;

use anabranch_tests::condition::eventually;
use anabranch_tests::home::Home;
use anabranch_tests::proxy::Weather;
use anabranch_tests::regions::Regions;
use serde_json::json;

const CUT: Weather = Weather {
    cut: true,
    delay: Duration::ZERO,
    corrupt_every: None,
};

/// What is written in one region is read in the others.
async fn arrives(regions: &Regions, stream: &str, key: &str, value: &str) {
    for number in 0..regions.brokers().len() {
        eventually(key, async || {
            let row = regions.row(number, stream, key).await?;
            (row == json!(value)).then_some(())
        })
        .await;
    }
}

/// Everybody holds the same vectors, and reads the same rows.
async fn agree(regions: &Regions, stream: &str, rows: usize) {
    regions.converged().await;
    let first = regions.rows(0, stream).await;
    assert_eq!(first.as_array().unwrap().len(), rows, "{first}");
    for number in 1..regions.brokers().len() {
        assert_eq!(regions.rows(number, stream).await, first, "region {number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_in_one_region_is_read_in_all() {
    let regions = Regions::start(3, &[]).await;
    let stream = json!({"name": "t", "merge": "lww"});
    regions.broker(0).create(stream).await;
    regions.know("t").await;
    for number in 0..3 {
        let key = format!("from-{number}");
        regions.put(number, "t", &key, "hello").await;
        arrives(&regions, "t", &key, "hello").await;
    }
    agree(&regions, "t", 3).await;
    let status = regions.status(0).await;
    assert_eq!(status["links"].as_array().unwrap().len(), 2, "{status}");
    assert_eq!(status["forks"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_cut_off_writes_on_and_all_agree_once_it_is_back() {
    let mut regions = Regions::start(3, &[]).await;
    let stream = json!({"name": "t", "merge": "lww"});
    regions.broker(0).create(stream).await;
    regions.know("t").await;
    regions.put(0, "t", "both", "before").await;
    arrives(&regions, "t", "both", "before").await;
    regions.set(2, CUT);
    for round in 0..20 {
        let value = format!("here-{round}");
        regions.put(0, "t", &format!("a{round}"), &value).await;
        regions.put(2, "t", &format!("c{round}"), &value).await;
        regions.put(round % 2, "t", "both", &value).await;
        regions.put(2, "t", "both", &format!("there-{round}")).await;
    }
    // Within one millisecond the greater counter wins, whoever wrote last.
    let last = now_ms();
    eventually("the next millisecond", async || {
        (now_ms() > last).then_some(())
    })
    .await;
    regions.put(2, "t", "both", "there-last").await;
    // Each side reads its own writes meanwhile, and nothing of the other.
    assert_eq!(regions.row(2, "t", "both").await, Some(json!("there-last")));
    assert_eq!(regions.row(2, "t", "a0").await, None);
    arrives_at(&regions, 1, "a19").await;
    assert_eq!(regions.row(1, "t", "c0").await, None);
    regions.set(2, Weather::default());
    agree(&regions, "t", 41).await;
    // The last write by the clock is the one of the region that was cut off.
    assert_eq!(regions.row(0, "t", "both").await, Some(json!("there-last")));
    regions.restart(1).await;
    regions.put(1, "t", "after", "restart").await;
    arrives(&regions, "t", "after", "restart").await;
    agree(&regions, "t", 42).await;
}

fn now_ms() -> u128 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    since.unwrap().as_millis()
}

async fn arrives_at(regions: &Regions, number: usize, key: &str) {
    eventually(key, async || regions.row(number, "t", key).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_a_region_without_a_link_are_relayed() {
    let regions = Regions::start(3, &[]).await;
    let stream = json!({"name": "t", "merge": "lww"});
    regions.broker(0).create(stream).await;
    regions.know("t").await;
    regions.set_between(0, 2, CUT);
    for number in [0, 2, 1] {
        let key = format!("from-{number}");
        regions.put(number, "t", &key, "relayed").await;
        arrives(&regions, "t", &key, "relayed").await;
    }
    agree(&regions, "t", 3).await;
    let held = regions.status(0).await;
    assert_eq!(held["links"].as_array().unwrap().len(), 1, "{held}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_noisy_slow_link_loses_nothing_and_doubles_nothing() {
    let regions = Regions::start(2, &[]).await;
    let stream = json!({"name": "e", "merge": "append", "partitions": 4});
    regions.broker(0).create(stream).await;
    regions.know("e").await;
    regions.set_between(
        0,
        1,
        Weather {
            cut: false,
            delay: Duration::from_millis(2),
            corrupt_every: Some(50_021),
        },
    );
    let value = "x".repeat(900);
    for round in 0..200 {
        for number in 0..2 {
            let records: Vec<_> = (0..10)
                .map(|n| json!({"key": format!("{number}-{round}-{n}"), "value": value}))
                .collect();
            let answer = regions.brokers()[number]
                .http()
                .post("/v1/streams/e/records", &json!(records))
                .await;
            assert!(answer.status < 300, "{answer:?}");
        }
    }
    regions.converged().await;
    for broker in regions.brokers() {
        let path = "/v1/streams/e/records?from=earliest&limit=10000";
        let mut keys = Vec::new();
        let mut from = path.to_owned();
        loop {
            let page = broker.http().json(&from).await;
            let records = page["records"].as_array().unwrap();
            if records.is_empty() {
                break;
            }
            keys.extend(records.iter().map(|record| record["key"].to_string()));
            let cursor = page["cursor"].as_str().unwrap();
            from = format!("/v1/streams/e/records?from={cursor}&limit=10000");
        }
        keys.sort();
        let all = keys.len();
        keys.dedup();
        assert_eq!((all, keys.len()), (4000, 4000), "lost or doubled");
    }
}

/// Frames that retention has dropped in one region go to another as gaps, so that what follows them
/// is taken over.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_missed_what_was_dropped_meanwhile_goes_on_behind_it() {
    let mut regions = Regions::start(
        2,
        &["log.retention_interval_seconds=1", "log.segment_bytes=1MiB"],
    )
    .await;
    let stream = json!({"name": "e", "merge": "append", "retention": {"max_bytes": 300_000}});
    regions.broker(0).create(stream).await;
    regions
        .broker(0)
        .create(json!({"name": "t", "merge": "lww"}))
        .await;
    regions.know("t").await;
    regions.set(1, CUT);
    let http = regions.broker(0).http();
    for round in 0..80 {
        let records: Vec<_> = (0..20).map(|_| json!({"value": noise(5000)})).collect();
        let answer = http.post("/v1/streams/e/records", &json!(records)).await;
        assert!(answer.status < 300, "{answer:?}");
        regions.put(0, "t", &format!("k{}", round % 7), "v").await;
    }
    // Once what is left of the stream is less than what was written, most of it was dropped.
    let kept = eventually("retention", async || {
        let stream = http.json("/v1/streams/e").await;
        let first = stream["offsets"][0]["first"].as_u64()?;
        (first > 800 && log_bytes(&regions) < 6 << 20).then_some(first)
    })
    .await;
    assert!(kept > 800);
    regions.set(1, Weather::default());
    agree(&regions, "t", 7).await;
    regions.put(1, "t", "after", "gaps").await;
    arrives(&regions, "t", "after", "gaps").await;
    // The gaps are in the end of the log that a start reads, and in what is shipped on.
    regions.restart(1).await;
    regions.put(0, "t", "later", "restart").await;
    arrives(&regions, "t", "later", "restart").await;
    agree(&regions, "t", 9).await;
}

/// A backup that is put back has lost what was written since, and its broker gets that from a peer
/// before it writes anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_gets_its_own_writes_back_before_it_writes() {
    let mut regions = Regions::start(2, &[]).await;
    let stream = json!({"name": "t", "merge": "lww"});
    regions.broker(0).create(stream).await;
    regions.know("t").await;
    regions.put(1, "t", "before", "backup").await;
    regions.converged().await;
    let data = regions.home(1).data();
    let backup = Home::new();
    regions.stop(1).await;
    copy_folder(&data, &backup.path().join("copy"));
    regions.restart(1).await;
    let origin = regions.status(1).await["origin"].clone();
    for row in 0..30 {
        regions.put(1, "t", &format!("k{row}"), "since").await;
    }
    regions.converged().await;
    regions.kill(1);
    std::fs::remove_dir_all(&data).unwrap();
    copy_folder(&backup.path().join("copy"), &data);
    regions.restart_patiently(1).await;
    let status = regions.status(1).await;
    assert_ne!(status["origin"], origin, "it writes under a new identity");
    // It is ready, so it has them all, and writes behind them.
    assert_eq!(regions.row(1, "t", "k29").await, Some(json!("since")));
    regions.put(1, "t", "k29", "later").await;
    agree(&regions, "t", 31).await;
    assert_eq!(regions.row(0, "t", "k29").await, Some(json!("later")));
    assert_eq!(status["forks"], json!([]));
}

/// Streams that are made and deleted in several regions at once end the same everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn streams_made_and_deleted_in_all_regions_at_once_end_the_same() {
    let regions = Regions::start(3, &[]).await;
    regions.set(2, CUT);
    for round in 0..3 {
        for (number, broker) in regions.brokers().iter().enumerate() {
            let merge = ["lww", "append", "lww"][(number + round) % 3];
            let name = format!("s{round}");
            let definition = json!({"name": name, "merge": merge, "partitions": number + 1});
            let http = broker.http();
            // Whoever knows of another's refuses, and one may be deleted elsewhere as it is made.
            let made = http.post("/v1/streams", &definition).await;
            assert!(matches!(made.status, 200 | 201 | 404 | 409), "{made:?}");
            if (number + round) % 2 == 0 {
                let path = format!("/v1/streams/{name}");
                let deleted = http.send("DELETE", &path, &[], "").await;
                assert!(matches!(deleted.status, 204 | 404), "{deleted:?}");
            }
        }
    }
    regions.set(2, Weather::default());
    regions.converged().await;
    let defined = async |number: usize| {
        let streams = regions.broker(number).http().json("/v1/streams").await;
        let streams = streams["streams"].as_array().unwrap().iter();
        let what = streams.map(|s| json!([s["name"], s["merge"], s["partitions"]]));
        what.collect::<Vec<_>>()
    };
    let first = defined(0).await;
    for number in 1..3 {
        eventually("the same streams", async || {
            (defined(number).await == first).then_some(())
        })
        .await;
    }
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Text that does not compress.
fn noise(length: usize) -> String {
    let mut random = fastrand::Rng::new();
    std::iter::repeat_with(|| random.alphanumeric())
        .take(length)
        .collect()
}

/// Bytes of the first broker's log.
fn log_bytes(regions: &Regions) -> u64 {
    let log = regions.home(0).data().join("log");
    let files = std::fs::read_dir(log).unwrap().map_while(Result::ok);
    files
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum()
}
