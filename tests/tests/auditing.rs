//! Comparing rows between brokers that hold the same frames.

use std::fs;
use std::path::Path;

use anabranch_tests::broker::Broker;
use anabranch_tests::condition::eventually;
use anabranch_tests::home::Home;
use anabranch_tests::regions::Regions;
use serde_json::{Value, json};

const OFTEN: &str = "links.audit_seconds=1";

async fn with_rows() -> Regions {
    let regions = Regions::start(2, &[OFTEN]).await;
    let stream = json!({"name": "t", "merge": "lww"});
    regions.broker(0).create(stream).await;
    regions.know("t").await;
    for row in 0..50 {
        regions.put(row % 2, "t", &format!("k{row:02}"), "v").await;
    }
    regions.converged().await;
    regions
}

fn digest<'a>(status: &'a Value, stream: &str) -> Option<&'a Value> {
    let digests = status["digests"].as_array()?;
    digests.iter().find(|digest| digest["stream"] == stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_tables_are_found_equal_and_their_digests_are_shown() {
    let regions = with_rows().await;
    for number in 0..2 {
        eventually("compared", async || {
            let status = regions.status(number).await;
            let link = &status["links"][0];
            // The table, and those that the broker has of its own.
            let all = link["equal_tables"].as_u64()? >= 3;
            (all && link["compared_seconds"].is_u64()).then_some(())
        })
        .await;
    }
    let (a, b) = eventually("digests of the same vector", async || {
        let statuses = (regions.status(0).await, regions.status(1).await);
        let a = digest(&statuses.0, "t")?.clone();
        let b = digest(&statuses.1, "t")?.clone();
        (a["vector"] == b["vector"]).then_some((a, b))
    })
    .await;
    assert_eq!(a, b);
    assert_eq!(a["rows"], 50);
    for number in 0..2 {
        assert_eq!(regions.status(number).await["differing"], json!([]));
    }
}

/// A broker that has other rows than its log makes, since somebody has given it the tables of
/// another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_differs_is_found_and_named() {
    let mut regions = with_rows().await;
    let entries = log_entries(&regions.status(1).await);
    let home = Home::new();
    let flags = ["--peer-listen", "127.0.0.1:0"];
    let other = Broker::start_unready(&home, &flags).await;
    eventually("ready", async || {
        let answer = other.http().get("/readyz").await;
        (answer.status == 200).then_some(())
    })
    .await;
    other.create(json!({"name": "t", "merge": "lww"})).await;
    for row in 0..50 {
        let value = if row == 37 { "wrong" } else { "v" };
        put(&other, &format!("k{row:02}"), value).await;
    }
    while log_entries(&other.http().json("/v1/regions").await) < entries {
        put(&other, "k00", "v").await;
    }
    other.stop().await;
    regions.stop(1).await;
    let tables = regions.home(1).data().join("tables");
    fs::remove_dir_all(&tables).unwrap();
    copy(&home.data().join("tables"), &tables);
    regions.restart(1).await;
    assert_eq!(regions.row(1, "t", "k37").await, Some(json!("wrong")));
    let found = eventually("the difference", async || {
        for number in 0..2 {
            let status = regions.status(number).await;
            let differing = status["differing"].as_array()?;
            if let Some(found) = differing
                .iter()
                .find(|found| found.to_string().contains("k37"))
            {
                return Some(found.to_string());
            }
        }
        None
    })
    .await;
    assert!(found.contains("table t"), "{found}");
    // As it says: they are made anew from the log.
    regions.stop(1).await;
    fs::remove_dir_all(&tables).unwrap();
    regions.restart(1).await;
    assert_eq!(regions.row(1, "t", "k37").await, Some(json!("v")));
}

async fn put(broker: &Broker, key: &str, value: &str) {
    let path = format!("/v1/tables/t/rows/{key}");
    let answer = broker.http().put(&path, &json!(value)).await;
    assert!(answer.status < 300, "{answer:?}");
}

/// How many frames a log has: each has a position.
fn log_entries(status: &Value) -> u64 {
    let vector = status["vector"].as_object().unwrap();
    vector.values().filter_map(Value::as_u64).sum()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}
