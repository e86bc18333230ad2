//! A stranger's client, written from the protocol's description alone.

use std::path::PathBuf;
use std::process::Command;

use anabranch_tests::broker::Broker;
use anabranch_tests::home::Home;
use serde_json::json;

/// An interpreter that has what the script imports: that of the path, or the one that the test
/// command makes beside the build.
fn interpreter() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let made = tests.ancestors().nth(3).unwrap().join("python/bin/python3");
    let found = [PathBuf::from("python3"), made].into_iter().find(|python| {
        let mut command = Command::new(python);
        let output = command.args(["-c", "import websockets, msgpack"]).output();
        output.is_ok_and(|output| output.status.success())
    });
    found.expect(
        "no python3 has the packages websockets and msgpack; `cargo all-tests` installs them",
    )
}

#[tokio::test]
async fn a_client_of_sixty_lines_publishes_and_subscribes() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    broker
        .create(json!({"name": "strangers", "partitions": 2}))
        .await;
    let script = anabranch_tests::repository().join("tests/python/subscribe_and_publish.py");
    let lines = std::fs::read_to_string(&script).unwrap().lines().count();
    assert!(lines <= 60, "{lines} lines");
    let python = interpreter();
    let run = move |url: String, stream: &str| {
        let mut command = Command::new(&python);
        command.arg(&script).args([&url, stream]);
        command.output().unwrap()
    };
    let url = format!("http://{}", broker.address());
    let (done, refused) =
        tokio::task::spawn_blocking(move || (run(url.clone(), "strangers"), run(url, "nowhere")))
            .await
            .unwrap();
    assert!(done.status.success(), "{done:?}");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.contains("key-2 {\"n\":2}"), "{said}");
    // Errors reach it as codes.
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("AB1501"),
        "{refused:?}"
    );
    broker.stop().await;
}
