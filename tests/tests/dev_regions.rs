//! `dev` with several regions: one command starts them, and cuts their links when it is told to.

use std::time::{Duration, Instant};

use anabranch_tests::condition::eventually;
use anabranch_tests::dev::{Dev, gone, kill};
use anabranch_tests::home::Home;
use rustix::process::Signal;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn regions_write_on_while_a_link_is_cut_and_agree_after_it() {
    let home = Home::new();
    let flags = [
        "--regions",
        "3",
        "--link-delay",
        "60ms",
        "--link-delay",
        "r1-r2=0",
    ];
    let mut dev = Dev::start(&home, &flags).await;
    dev.create(json!({"name": "t", "merge": "lww"})).await;
    let written = Instant::now();
    dev.put(0, "t", "slow", "way").await;
    dev.reads(2, "t", "slow", "way").await;
    let took = written.elapsed();
    assert!(took >= Duration::from_millis(60), "{took:?}");

    let told = dev.order("cut r3").await;
    let cut = |a: &str| json!({"between": [a, "r3"], "cut": true, "delay_ms": 60});
    let expected = json!({"event": "links", "links": [cut("r1"), cut("r2")]});
    assert_eq!(told, expected);
    dev.put(0, "t", "both", "first").await;
    dev.put(0, "t", "here", "1").await;
    dev.put(2, "t", "there", "2").await;
    dev.put(2, "t", "both", "second").await;
    dev.reads(1, "t", "here", "1").await;
    assert_eq!(dev.row(2, "t", "here").await, None);
    assert_eq!(dev.row(1, "t", "there").await, None);
    assert_eq!(dev.row(0, "t", "both").await, Some(json!("first")));

    dev.order("heal").await;
    dev.agree("t", 4).await;

    // What is on disk is there after a stop in order.
    let told = dev.order("delay r1-r3 5ms").await;
    assert_eq!(told["links"][0]["delay_ms"], 5, "{told}");
    let pids = dev.pids();
    dev.signal(Signal::TERM);
    assert!(dev.ended().await.success());
    for pid in pids {
        gone(pid).await;
    }
    let dev = Dev::start(&home, &["--regions", "3"]).await;
    dev.agree("t", 4).await;
    let log = std::fs::read_to_string(home.data().join("r2.log")).unwrap();
    assert!(log.contains("closed cleanly"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_end_with_the_process_that_started_them() {
    let home = Home::new();
    let mut dev = Dev::start(&home, &["--region-names", "eu,us"]).await;
    dev.create(json!({"name": "t", "merge": "lww"})).await;
    let pids = dev.pids();
    dev.signal(Signal::KILL);
    assert!(!dev.ended().await.success());
    for pid in pids {
        gone(pid).await;
    }
    // They stopped in order, and left their folders to others.
    let dev = Dev::start(&home, &["--region-names", "eu,us"]).await;
    let log = std::fs::read_to_string(home.data().join("eu.log")).unwrap();
    assert!(log.contains("closed cleanly"), "{log}");
    dev.put(1, "t", "a", "b").await;
    dev.agree("t", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_is_told_of_and_can_be_started_again() {
    let home = Home::new();
    let mut dev = Dev::start(&home, &["--regions", "2"]).await;
    dev.create(json!({"name": "t", "merge": "lww"})).await;
    kill(dev.pids()[1]);
    let told = dev.told().await;
    assert_eq!(
        (&told["event"], &told["region"]),
        (&json!("ended"), &json!("r2"))
    );
    dev.put(0, "t", "a", "while r2 is down").await;
    let again = dev.order("start r2").await;
    assert_eq!(again["event"], "started", "{again}");
    dev.agree("t", 1).await;
    let told = dev.order("kill r1").await;
    assert_eq!(
        (&told["event"], &told["region"]),
        (&json!("ended"), &json!("r1"))
    );
    assert_eq!(dev.order("kill r1").await["event"], "refused");
    assert_eq!(dev.order("start r1").await["event"], "started");
    assert_eq!(dev.order("start r1").await["event"], "refused");
    dev.put(0, "t", "b", "after").await;
    dev.agree("t", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_order_is_answered_and_changes_nothing() {
    let home = Home::new();
    let mut dev = Dev::start(&home, &["--regions", "2"]).await;
    let links = dev.order("links").await;
    assert_eq!(dev.order("cut r3").await["event"], "refused");
    let help = dev.order("help").await;
    assert!(help["text"].as_str().unwrap().contains("heal"), "{help}");
    assert_eq!(dev.order("links").await, links);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_refuses_ends_the_start_with_its_reason_and_its_code() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let flags = ["--regions", "2", "--listen", &address];
    let refused = Dev::try_start(&home, &flags).await.unwrap_err();
    assert_eq!(refused.status.code(), Some(4), "{}", refused.said);
    let reason = refused.said.contains("r1 did not start") && refused.said.contains("AB7201");
    assert!(reason, "{}", refused.said);
    // Nothing of it is left, so that it can be started elsewhere.
    let dev = eventually("the folders", async || {
        let flags = ["--regions", "2", "--listen", "127.0.0.1:0"];
        Dev::try_start(&home, &flags).await.ok()
    })
    .await;
    drop(dev);
}
