//! Brokers that cannot start: each says why, with a code, and leaves everything as it was.

use std::net::TcpListener;
use std::process::Output;

use anabranch_protocol::record::Record;
use anabranch_tests::broker::{Broker, Ended, command};
use anabranch_tests::home::Home;
use serde_json::json;

use super::scene::Scene;

async fn cannot_start(home: &Home, flags: &[&str], code: &str) -> Ended {
    let ended = Broker::try_start(home, flags)
        .await
        .expect_err("it started");
    assert!(
        ended.said.contains(code),
        "{code} is not in: {}",
        ended.said
    );
    assert!(!ended.status.success());
    ended
}

#[tokio::test]
async fn two_processes_on_one_directory_are_one_too_many() {
    let scene = Scene::new(&[]).await;
    let ended = cannot_start(&scene.home, &[], "AB7001").await;
    let holder = scene.broker.pid().to_string();
    assert!(
        ended.said.contains(&holder),
        "{holder} is not in: {}",
        ended.said
    );
    scene.end().await;
}

#[tokio::test]
async fn verify_leaves_the_directory_of_a_running_broker_alone() {
    let scene = Scene::new(&[]).await;
    let data = scene.home.data();
    let verify: Output = command()
        .args(["verify", "--data-dir"])
        .arg(data)
        .output()
        .unwrap();
    assert!(!verify.status.success(), "{verify:?}");
    let said = String::from_utf8_lossy(&verify.stderr);
    assert!(said.contains("in use"), "{said}");
    scene.end().await;
}

#[tokio::test]
async fn a_directory_of_a_newer_format_is_left_alone() {
    let home = Home::new();
    Broker::start(&home).await.stop().await;
    let format = home.data().join("format");
    let held = std::fs::read_to_string(&format).unwrap();
    let newer = held.replace("anabranch 1", "anabranch 2");
    assert_ne!(newer, held);
    std::fs::write(&format, &newer).unwrap();
    cannot_start(&home, &[], "AB7002").await;
    assert_eq!(std::fs::read_to_string(&format).unwrap(), newer);
    std::fs::write(&format, held).unwrap();
    Broker::start(&home).await.stop().await;
}

#[tokio::test]
async fn a_directory_of_another_cluster_is_left_alone() {
    let home = Home::new();
    Broker::start(&home).await.stop().await;
    cannot_start(&home, &["--cluster", "theirs"], "AB7003").await;
    Broker::start(&home).await.stop().await;
}

#[tokio::test]
async fn a_directory_of_another_region_is_left_alone_where_that_would_matter() {
    let home = Home::new();
    let start = async |region: &str| match Broker::try_start(&home, &["--region", region]).await {
        Ok(broker) => broker,
        Err(ended) => panic!("{}", ended.said),
    };
    let broker = start("a").await;
    let kept = json!({"name": "kept", "regions": ["b", "c"]});
    broker.create(kept).await;
    broker.stop().await;
    start("d").await.stop().await;
    cannot_start(&home, &["--region", "b"], "AB7004").await;
    let broker = start("a").await;
    let http = broker.http();
    let deleted = http.send("DELETE", "/v1/streams/kept", &[], "").await;
    assert_eq!(deleted.status, 204, "{deleted:?}");
    broker.stop().await;
    // Others may still hold of it what is a stub here.
    cannot_start(&home, &["--region", "b"], "AB7004").await;
}

#[tokio::test]
async fn a_log_that_lacks_a_segment_is_left_alone() {
    let home = Home::new();
    let small = ["log.segment_bytes=1MiB"];
    let broker = Broker::start_with(&home, &small).await;
    broker.create(json!({"name": "events"})).await;
    let mut wire = broker.connect().await;
    for _ in 0..8 {
        let record = Record::value(vec![b'x'; 600_000]);
        wire.publish("events", vec![record]).await;
    }
    broker.stop().await;
    let log = home.data().join("log");
    let mut segments: Vec<_> = std::fs::read_dir(&log)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "segment"))
        .collect();
    segments.sort();
    assert!(segments.len() >= 4, "{segments:?}");
    let (gone, kept) = (&segments[2], home.path().join("kept"));
    std::fs::rename(gone, &kept).unwrap();
    let ended = cannot_start(&home, &["--set", small[0]], "AB5101").await;
    assert!(ended.said.contains("lacks positions"), "{}", ended.said);
    std::fs::rename(&kept, gone).unwrap();
    let broker = Broker::start_with(&home, &small).await;
    let shown = broker.http().json("/v1/streams/events").await;
    assert_eq!(shown["offsets"][0]["next"], 8);
    broker.stop().await;
}

#[tokio::test]
async fn an_unknown_configuration_key_is_named_with_the_nearest() {
    let home = Home::new();
    let file = home.path().join("broker.toml");
    std::fs::write(&file, "[log]\nsegment_byte = \"8MiB\"\n").unwrap();
    let file = file.to_string_lossy();
    for flags in [["--config", &*file], ["--set", "log.segment_byte=8MiB"]] {
        let ended = cannot_start(&home, &flags, "AB7101").await;
        assert!(ended.said.contains("log.segment_bytes"), "{}", ended.said);
        assert_eq!(ended.status.code(), Some(2));
    }
    assert!(!home.data().exists(), "nothing was made");
}

#[tokio::test]
async fn a_bad_configuration_value_is_named_with_what_is_expected() {
    let home = Home::new();
    for set in [
        "log.segment_bytes=many",
        "log.segment_bytes=1",
        "limits.connections=-1",
    ] {
        let ended = cannot_start(&home, &["--set", set], "AB7102").await;
        assert_eq!(ended.status.code(), Some(2), "{set}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let home = Home::new();
    let listen = format!("listen.address={address}");
    let ended = cannot_start(&home, &["--set", &listen], "AB7201").await;
    assert!(ended.said.contains(&address), "{}", ended.said);
    assert_eq!(ended.status.code(), Some(4));
}

#[tokio::test]
async fn beyond_loopback_needs_a_word() {
    let home = Home::new();
    cannot_start(&home, &["--set", "listen.address=0.0.0.0:0"], "AB7202").await;
}
