//! Brokers that join a cluster that has written for long, that are parked, and that come back.

use std::time::Duration;

use anabranch_tests::broker::{Broker, command};
use anabranch_tests::condition::eventually;
use anabranch_tests::home::Home;
use anabranch_tests::proxy::Weather;
use anabranch_tests::regions::Regions;
use serde_json::{Value, json};

const CUT: Weather = Weather {
    cut: true,
    delay: Duration::ZERO,
    corrupt_every: None,
};

async fn with_rows(count: usize) -> Regions {
    let regions = Regions::start(count, &[]).await;
    regions
        .broker(0)
        .create(json!({"name": "t", "merge": "lww"}))
        .await;
    regions.know("t").await;
    for row in 0..20 {
        let key = format!("k{row}");
        regions.put(row % count, "t", &key, "kept").await;
    }
    regions.converged().await;
    for row in 0..10 {
        regions.delete(row % count, "t", &format!("k{row}")).await;
    }
    regions.converged().await;
    regions
}

/// Every frame is known to be held by all of these.
async fn stable(regions: &Regions, among: &[usize]) {
    for &number in among {
        eventually("everything is stable", async || {
            let status = regions.status(number).await;
            (status["stable"] == status["vector"]).then_some(())
        })
        .await;
    }
}

async fn equal(regions: &Regions, among: &[usize], rows: usize) {
    let first = eventually("the same vectors", async || {
        let first = regions.status(among[0]).await["vector"].clone();
        for &number in among {
            if regions.status(number).await["vector"] != first {
                return None;
            }
        }
        Some(regions.rows(among[0], "t").await)
    })
    .await;
    assert_eq!(first.as_array().unwrap().len(), rows, "{first}");
    for &number in among {
        assert_eq!(regions.rows(number, "t").await, first, "region {number}");
    }
}

fn member<'a>(status: &'a Value, region: &str) -> &'a Value {
    let members = status["members"].as_array().unwrap();
    let found = members.iter().find(|member| member["region"] == region);
    found.unwrap_or_else(|| panic!("{region} in {status}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_joins_later_has_all_rows_and_brings_none_back() {
    let mut regions = with_rows(2).await;
    stable(&regions, &[0, 1]).await;
    regions.join().await;
    equal(&regions, &[0, 1, 2], 10).await;
    regions.put(2, "t", "k3", "written by the third").await;
    equal(&regions, &[0, 1, 2], 11).await;
    // What it has not applied is not stable in a region that has no link to it.
    for number in 0..3 {
        let status = regions.status(number).await;
        assert_eq!(member(&status, "r2")["standing"], "active", "{status}");
        assert_eq!(status["writes"], "open");
    }
    stable(&regions, &[0, 1, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_writes_nothing_before_it_is_a_member() {
    let home = Home::new();
    // Something listens there that never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let flags = ["--peer", &address, "--set", "links.join_seconds=2"];
    let flags = [&flags[..], &["--peer-listen", "127.0.0.1:0"]].concat();
    let mut started = Broker::start_unready(&home, &flags).await;
    // Until its log is read it says that it is starting.
    let answer = eventually("it has started", async || {
        let answer = started.http().get("/readyz").await;
        (answer.json()["code"] != "AB6001").then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["code"], "AB6004");
    let answer = started
        .http()
        .post("/v1/streams", &json!({"name": "early"}))
        .await;
    assert_eq!(answer.json()["code"], "AB6004", "{answer:?}");
    // It does not wait for ever.
    eventually("it has founded a cluster", async || {
        let answer = started.http().get("/readyz").await;
        (answer.status == 200).then_some(())
    })
    .await;
    started.create(json!({"name": "early"})).await;
    started.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_region_is_waited_for_no_more_and_resurrects_nothing() {
    let mut regions = with_rows(3).await;
    stable(&regions, &[0, 1, 2]).await;
    regions.set(2, CUT);
    regions.put(2, "t", "only-there", "lost").await;
    regions.put(2, "t", "k12", "overwritten there").await;
    regions.kill(2);
    for row in 10..14 {
        regions.delete(0, "t", &format!("k{row}")).await;
    }
    // Nothing is dropped for as long as the third may come back.
    equal(&regions, &[0, 1], 6).await;
    let status = regions.status(0).await;
    assert_ne!(status["stable"], status["vector"]);
    park_the_third(&regions).await;
    // It comes back as if nothing had been.
    regions.set(2, Weather::default());
    regions.restart(2).await;
    let http = regions.broker(2).http();
    let refused = eventually("it is told", async || {
        let answer = http.put("/v1/tables/t/rows/late", &json!("x")).await;
        (answer.status == 403).then(|| answer.json())
    })
    .await;
    assert_eq!(refused["code"], "AB4103", "{refused}");
    assert_eq!(regions.row(2, "t", "only-there").await, Some(json!("lost")));
    equal(&regions, &[0, 1], 6).await;
    // Its directory is put aside, with what nobody else has, and it joins under a new id.
    regions.kill(2);
    let unsent = rejoin(&regions).await;
    // What it took before it was told is among them.
    assert_eq!(unsent[..2], [json!("only-there"), json!("k12")]);
    assert!(unsent[2..].iter().all(|key| key == "late"), "{unsent:?}");
    regions.restart_patiently(2).await;
    equal(&regions, &[0, 1, 2], 6).await;
    regions.put(2, "t", "back", "again").await;
    equal(&regions, &[0, 1, 2], 7).await;
    regions.delete(0, "t", "back").await;
    equal(&regions, &[0, 1, 2], 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_region_is_not_shown_and_another_takes_its_place() {
    let mut regions = with_rows(3).await;
    stable(&regions, &[0, 1, 2]).await;
    regions.kill(2);
    park_the_third(&regions).await;
    let answer = regions.end(1, "r2", "remove").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["members"].as_array().unwrap().len(), 2);
    let (printed, said) = run_rejoin(&regions).await;
    assert!(printed.is_empty(), "{printed}");
    assert!(said.contains("nothing was written out"), "{said}");
    // A new one gets what is there, and the deleted rows stay deleted.
    regions.join().await;
    equal(&regions, &[0, 1, 3], 10).await;
}

/// Parks it, which is down, and waits until nobody waits for it any more.
async fn park_the_third(regions: &Regions) {
    // It is refused for as long as its link has not been noticed to be down.
    eventually("parked", async || {
        let answer = regions.end(0, "r2", "park").await;
        (answer.status == 200).then_some(())
    })
    .await;
    for number in 0..2 {
        eventually("not waited for", async || {
            let status = regions.status(number).await;
            let third = member(&status, "r2");
            let gone = third["standing"] == "parked" && third["waited_for"] == false;
            gone.then_some(())
        })
        .await;
    }
    stable(regions, &[0, 1]).await;
}

/// Runs the command on the third one's folder; gives what it prints and what it says.
async fn run_rejoin(regions: &Regions) -> (String, String) {
    let server = format!("http://{}", regions.broker(0).address());
    let mut command = command();
    command
        .args(["rejoin", "--json", "--server", &server, "--data-dir"])
        .arg(regions.home(2).data());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    (String::from_utf8(output.stdout).unwrap(), said)
}

/// The same; gives the keys of what nobody else has.
async fn rejoin(regions: &Regions) -> Vec<Value> {
    let (output, _) = run_rejoin(regions).await;
    let line: Value = serde_json::from_str(output.lines().next().unwrap()).unwrap();
    assert_eq!(line["stream"], "t");
    let unsent = std::fs::read_to_string(line["file"].as_str().unwrap()).unwrap();
    let record = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    unsent
        .lines()
        .map(|line| record(line)["key"].clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_broker_that_is_down_can_be_parked() {
    let regions = Regions::start(2, &[]).await;
    // Each has founded, and hears of the other.
    stable(&regions, &[0, 1]).await;
    for (name, why) in [
        ("r1", "is linked"),
        ("r0", "cannot park itself"),
        ("r9", "no member"),
    ] {
        let answer = regions.end(0, name, "park").await;
        assert_eq!(answer.status, 400, "{answer:?}");
        let detail = answer.json()["detail"].to_string();
        assert!(detail.contains(why), "{detail}");
    }
}
