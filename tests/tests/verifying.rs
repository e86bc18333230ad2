//! `verify` after a kill: what the next start puts right is no fault, and nothing is written to.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::SystemTime;

use anabranch_protocol::record::Record;
use anabranch_tests::broker::{Broker, command};
use anabranch_tests::condition::eventually;
use anabranch_tests::home::Home;
use serde_json::{Value, json};

const SMALL_SEGMENTS: [&str; 1] = ["log.segment_bytes=1MiB"];

/// Bytes of what seals a segment; see docs/format/log.md.
const FOOTER_BYTES: u64 = 96;

fn verify(home: &Home) -> Output {
    let mut verify = command();
    verify
        .args(["verify", "--json", "--data-dir"])
        .arg(home.data());
    verify.output().unwrap()
}

/// Verifies a folder in which everything must hold. Returns how many rows were compared.
fn rows_that_hold(home: &Home) -> u64 {
    let verified = verify(home);
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(verified.status.success(), "{said}");
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    last["rows"].as_u64().unwrap()
}

/// Publishes rows `0..keys`, each with this letter.
async fn put_rows(broker: &Broker, keys: u32, letter: char) {
    let mut wire = broker.connect().await;
    for key in 0..keys {
        let value = format!("\"{}\"", String::from(letter).repeat(1000)).into_bytes();
        let record = Record::put(key.to_string().into_bytes(), value);
        wire.publish("rows", vec![record]).await;
    }
}

#[tokio::test]
async fn rows_of_a_stream_deleted_just_before_a_kill_are_no_difference() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    let rows = json!({"name": "rows", "merge": "lww"});
    broker.create(rows.clone()).await;
    broker.create(json!({"name": "kept", "merge": "lww"})).await;
    put_rows(&broker, 20, 'a').await;
    // The tables are written to the disk.
    broker.stop().await;

    let mut broker = Broker::start(&home).await;
    let deleted = broker
        .http()
        .send("DELETE", "/v1/streams/rows", &[], "")
        .await;
    assert_eq!(deleted.status, 204, "{deleted:?}");
    broker.kill();
    assert_eq!(rows_that_hold(&home), 1, "the definition that is left");

    let mut broker = Broker::start(&home).await;
    broker.create(rows).await;
    put_rows(&broker, 3, 'b').await;
    broker.kill();
    assert_eq!(rows_that_hold(&home), 5);
    Broker::start(&home).await.stop().await;
}

#[tokio::test]
async fn rows_whose_records_were_replaced_and_dropped_before_a_kill_are_no_difference() {
    let home = Home::new();
    let broker = Broker::start_with(&home, &SMALL_SEGMENTS).await;
    let compacted = json!({"name": "rows", "merge": "lww", "retention": {"compact": true}});
    broker.create(compacted).await;
    put_rows(&broker, 2000, 'a').await;
    broker.stop().await;

    let often = ["log.segment_bytes=1MiB", "log.retention_interval_seconds=1"];
    let mut broker = Broker::start_with(&home, &often).await;
    put_rows(&broker, 2000, 'b').await;
    eventually("old rows are dropped", async || {
        let said = std::fs::read_to_string(home.log()).unwrap();
        let cleaned = |line: &str| line.contains("log cleaned") && !line.contains(" 0 segments");
        said.lines().any(cleaned).then_some(())
    })
    .await;
    broker.kill();
    assert_eq!(rows_that_hold(&home), 2001);
}

/// A crash may leave many segments without a seal: where the disk was full, they wait for room.
#[tokio::test]
async fn no_file_of_a_killed_folder_is_changed_however_many_segments_are_unsealed() {
    let home = Home::new();
    let mut broker = Broker::start_with(&home, &SMALL_SEGMENTS).await;
    broker.create(json!({"name": "rows", "merge": "lww"})).await;
    put_rows(&broker, 9000, 'a').await;
    broker.kill();
    let segments = segments(&home.data());
    assert!(segments.len() > 7, "{segments:?}");
    for segment in &segments[2..segments.len() - 1] {
        let file = File::options().write(true).open(segment).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length - FOOTER_BYTES).unwrap();
    }
    let before = files(&home.data());
    let verified = verify(&home);
    let after = files(&home.data());
    let names = |files: &BTreeMap<PathBuf, _>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
    let changed: Vec<_> = before
        .iter()
        .filter(|(path, file)| after[*path] != **file)
        .map(|(path, _)| path)
        .collect();
    assert!(changed.is_empty(), "{changed:?}: {verified:?}");
    assert!(verified.status.success(), "{verified:?}");
    Broker::start_with(&home, &SMALL_SEGMENTS)
        .await
        .stop()
        .await;
    assert_eq!(rows_that_hold(&home), 9001);
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data.join("log")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|it| it == "segment"))
        .collect();
    segments.sort();
    segments
}

/// What is in a file, and when it was written.
type Seen = (u64, u32, SystemTime);

/// All files of a folder, but for the lock, which says who holds it.
fn files(folder: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let found = path.metadata().unwrap();
        if found.is_dir() {
            seen.extend(files(&path));
        } else if !path.ends_with("lock") {
            let content = crc32c::crc32c(&std::fs::read(&path).unwrap());
            seen.insert(path, (found.len(), content, found.modified().unwrap()));
        }
    }
    seen
}

/// What a `verify` that was killed has left is as large as tables and log at worst.
#[tokio::test]
async fn what_an_interrupted_verify_left_is_removed_by_a_start() {
    let home = Home::new();
    Broker::start(&home).await.stop().await;
    let left = home.data().join("verify.tmp");
    std::fs::create_dir_all(left.join("log")).unwrap();
    std::fs::write(left.join("log/00000000000000000000.segment"), "copy").unwrap();
    let broker = Broker::start(&home).await;
    assert!(!left.exists());
    broker.stop().await;
}
