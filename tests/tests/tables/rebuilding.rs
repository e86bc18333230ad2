//! Tables that are deleted or damaged, a log that is damaged.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anabranch_protocol::record::Record;
use anabranch_tests::broker::Broker;
use anabranch_tests::home::Home;
use serde_json::{Value, json};

use super::{table, verify};

const SMALL: [&str; 2] = ["log.segment_bytes=1MiB", "tables.image_rows=1000"];

/// A directory with a few segments and a few thousand rows, and the rows.
async fn filled(home: &Home) -> BTreeMap<String, Value> {
    let broker = Broker::start_with(home, &SMALL).await;
    broker
        .create(json!({"name": "rows", "merge": "lww", "partitions": 2}))
        .await;
    let mut wire = broker.connect().await;
    for round in 0..40u32 {
        let record = |n: u32| {
            let key = format!("key-{:05}", (round * 311 + n * 7) % 6000).into_bytes();
            let value = format!("\"{round}-{n}-{}\"", "x".repeat(150));
            match n % 13 {
                0 => Record::delete(key),
                _ => Record::put(key, value.into_bytes()),
            }
        };
        wire.publish("rows", (0..500).map(record).collect()).await;
    }
    let rows = table(&broker.http(), "rows").await;
    assert!(rows.len() > 2000, "{}", rows.len());
    broker.stop().await;
    rows
}

async fn check_rows(home: &Home, expected: &BTreeMap<String, Value>) {
    let broker = Broker::start_with(home, &SMALL).await;
    let rows = table(&broker.http(), "rows").await;
    assert!(
        rows == *expected,
        "{} of {} rows",
        rows.len(),
        expected.len()
    );
    broker.stop().await;
    let (code, said) = verify(home);
    assert_eq!(code, Some(0), "{said}");
}

fn files(home: &Home, folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(home.data().join(folder)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect();
    paths.sort();
    paths
}

/// Changes one byte in the middle of a file.
fn flip(path: &PathBuf) -> u64 {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
    at
}

#[tokio::test]
async fn a_deleted_folder_of_tables_is_made_anew_from_the_log() {
    let home = Home::new();
    let rows = filled(&home).await;
    std::fs::remove_dir_all(home.data().join("tables")).unwrap();
    check_rows(&home, &rows).await;
}

#[tokio::test]
async fn damaged_tables_are_made_anew_from_the_log() {
    let home = Home::new();
    let rows = filled(&home).await;
    let tables = files(&home, "tables", ".sst");
    assert!(!tables.is_empty());
    std::fs::remove_file(&tables[0]).unwrap();
    check_rows(&home, &rows).await;
}

#[tokio::test]
async fn tables_of_an_older_copy_catch_up_and_those_of_a_newer_one_are_made_anew() {
    let home = Home::new();
    let rows = filled(&home).await;
    let broker = Broker::start_with(&home, &SMALL).await;
    let http = broker.http();
    let mut later = rows.clone();
    for number in 0..50 {
        let key = format!("later-{number}");
        let path = format!("/v1/tables/rows/rows/{key}");
        assert_eq!(http.put(&path, &json!(number)).await.status, 200);
        later.insert(key, json!(number));
    }
    broker.stop().await;
    check_rows(&home, &later).await;
}

/// Damage in a sealed segment, found by reading: it is named and served to nobody, the rest is
/// served, and no byte of the log is changed.
#[tokio::test]
async fn a_damaged_byte_of_the_log_is_reported_and_nothing_is_cut() {
    let home = Home::new();
    let rows = filled(&home).await;
    let segments = files(&home, "log", ".segment");
    assert!(segments.len() >= 3, "{segments:?}");
    let damaged = &segments[1];
    flip(damaged);
    let held: Vec<_> = segments
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();

    let (code, said) = verify(&home);
    assert_eq!(code, Some(1), "{said}");
    let name = damaged.file_name().unwrap().to_string_lossy().into_owned();
    assert!(said.contains(&name), "{name} is not in: {said}");

    let broker = Broker::start_with(&home, &SMALL).await;
    let http = broker.http();
    assert!(
        table(&http, "rows").await == rows,
        "rows do not need the log"
    );
    let mut from = "earliest".to_owned();
    let refused = loop {
        let path = format!("/v1/streams/rows/records?from={from}&limit=100");
        let page = http.get(&path).await;
        if page.status != 200 {
            break page.problem(500, "AB5102");
        }
        let page = page.json();
        assert_ne!(
            page["records"],
            json!([]),
            "the damage was passed over in silence"
        );
        from = page["cursor"].as_str().unwrap().to_owned();
    };
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains(&name), "{name} is not in: {detail}");
    assert_eq!(
        http.put("/v1/tables/rows/rows/new", &json!(1)).await.status,
        200
    );
    let latest = http
        .json("/v1/streams/rows/records?from=latest&wait=0")
        .await;
    assert_eq!(latest["records"], json!([]));
    broker.stop().await;
    for (path, held) in segments.iter().zip(held).take(3) {
        assert!(
            std::fs::read(path).unwrap().starts_with(&held[..]),
            "{}",
            path.display()
        );
    }
}

/// Damage below the mark in the segment that was being written when the broker died.
#[tokio::test]
async fn a_damaged_byte_of_the_unsealed_log_is_reported_and_nothing_is_cut() {
    let home = Home::new();
    let mut broker = Broker::start(&home).await;
    broker.create(json!({"name": "events"})).await;
    let mut wire = broker.connect().await;
    for _ in 0..50 {
        wire.publish("events", vec![Record::value(vec![b'x'; 1000])])
            .await;
    }
    broker.kill();
    let segments = files(&home, "log", ".segment");
    assert_eq!(segments.len(), 1);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&segments[0])
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 20_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 20_000).unwrap();
    let held = std::fs::read(&segments[0]).unwrap();

    let (code, said) = verify(&home);
    assert_eq!(code, Some(1), "{said}");
    for _ in 0..2 {
        let ended = Broker::try_start(&home, &[]).await.expect_err("it started");
        assert!(ended.said.contains("AB5101"), "{}", ended.said);
        assert!(
            std::fs::read(&segments[0]).unwrap() == held,
            "nothing is changed"
        );
    }
    file.write_all_at(&byte, 20_000).unwrap();
    let broker = Broker::start(&home).await;
    let shown = broker.http().json("/v1/streams/events").await;
    assert_eq!(shown["offsets"][0]["next"], 50);
    broker.stop().await;
}
