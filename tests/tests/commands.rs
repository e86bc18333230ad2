//! The commands that talk to a broker, as a script sees them: in pipes, by their exit codes.

use std::io::Write as _;
use std::process::{Output, Stdio};

use anabranch_tests::broker::{Broker, command};
use anabranch_tests::home::Home;
use serde_json::json;

/// Runs a command against a broker, with this on its standard input.
fn run(broker: &Broker, arguments: &[&str], input: &str) -> Output {
    let mut child = command()
        .args(arguments)
        .env("ANABRANCH_SERVER", format!("http://{}", broker.address()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that does not ask for it may have ended.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// The fields of the one line that a command prints.
fn fields(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 1, "{output:?}");
    lines[0].split('\t').map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_told_in_a_pipe() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    broker.create(json!({"name": "events"})).await;
    broker.create(json!({"name": "rows", "merge": "lww"})).await;
    let read = |token: &str| {
        let read = run(&broker, &["get", "rows", "a", "--token", token], "");
        String::from_utf8(read.stdout).unwrap()
    };
    let records = "{\"value\":1}\n{\"value\":2}\n";
    let published = fields(&run(&broker, &["pub", "events"], records));
    assert_eq!(published[..2], ["2", "disk"]);
    let put = fields(&run(&broker, &["put", "rows", "a", "17"], ""));
    assert_eq!(put[0], "disk");
    assert_eq!(read(&put[1]), "17");
    assert_eq!(read(&published[2]), "17", "both are tokens");
    let deleted = fields(&run(&broker, &["delete", "rows", "a"], ""));
    assert_eq!(deleted[0], "disk");
    assert_eq!(read(&deleted[1]), "");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_ends_with_code_two() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    broker.create(json!({"name": "events"})).await;
    let cases: [(&[&str], &str, i32); 9] = [
        (&["stream", "create", "a/b"], "AB1101", 2),
        (&["stream", "create", "_mine"], "AB1101", 2),
        (&["pub", "a/b"], "AB1101", 2),
        (&["pub", "a/b", "--create", "lww"], "AB1101", 2),
        (&["get", "a/b", "key"], "AB1101", 2),
        (
            &["stream", "create", "x", "--partitions", "5000"],
            "AB1102",
            2,
        ),
        (&["sub", "events", "--from", "c17"], "c17", 2),
        (&["sub", "missing", "--from", "earliest"], "AB1501", 3),
        (
            &["stream", "create", "events", "--merge", "lww"],
            "AB1503",
            4,
        ),
    ];
    for (arguments, what, status) in cases {
        let output = run(&broker, arguments, "{\"value\":1}\n");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(what), "{arguments:?}: {said}");
    }
    broker.stop().await;
}
