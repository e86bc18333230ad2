//! The commands that talk to a broker, as a script sees them: in pipes, by their exit codes.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use anabranch_tests::broker::{Broker, command};
use anabranch_tests::condition::{eventually, soon};
use anabranch_tests::home::Home;
use anabranch_tests::proxy::Weather;
use anabranch_tests::regions::Regions;
use serde_json::json;
use tokio::task::spawn_blocking;

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

const CUT: Weather = Weather {
    cut: true,
    delay: Duration::ZERO,
    corrupt_every: None,
};

/// Two regions that know the streams `events` and `rows`, and how to cut and heal what is between them.
async fn two_regions(settings: &[&'static str]) -> Regions {
    let regions = Regions::start(2, settings).await;
    let first = regions.broker(0);
    first.create(json!({"name": "events"})).await;
    first.create(json!({"name": "rows", "merge": "lww"})).await;
    regions.know("events").await;
    regions.know("rows").await;
    // By their own dialling, too: links may be up that the other side has dialled.
    for number in 0..2 {
        eventually("its peer is met", async || {
            let met = regions.status(number).await["peers"][0]["broker"].is_string();
            met.then_some(())
        })
        .await;
    }
    regions
}

/// A command that goes on for a while.
struct Going {
    child: Option<Child>,
    said: PathBuf,
}

impl Drop for Going {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Going {
    fn start(broker: &Broker, arguments: &[&str], home: &Home) -> Self {
        let said = home.path().join(arguments[0]);
        let child = command()
            .args(arguments)
            .env("ANABRANCH_SERVER", format!("http://{}", broker.address()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&said).unwrap())
            .spawn()
            .unwrap();
        Self {
            child: Some(child),
            said,
        }
    }

    /// Waits until it says this on standard error.
    async fn says(&self, what: &str) {
        eventually(what, async || {
            let said = std::fs::read_to_string(&self.said).unwrap();
            said.contains(what).then_some(())
        })
        .await;
    }

    /// What it has printed and how often it has said this, once it has ended well.
    async fn ended(mut self, what: &str) -> (String, usize) {
        let child = self.child.take().unwrap();
        let output = spawn_blocking(|| child.wait_with_output().unwrap());
        let output = soon("its end", output).await.unwrap();
        let said = std::fs::read_to_string(&self.said).unwrap();
        assert!(output.status.success(), "{said}");
        let printed = String::from_utf8(output.stdout).unwrap();
        (printed, said.matches(what).count())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_subscription_in_the_order_of_all_waits_for_is_said_once() {
    let regions = two_regions(&[]).await;
    let home = Home::new();
    regions.set_between(0, 1, CUT);
    let first = regions.broker(0);
    let arguments = [
        "sub", "events", "--order", "total", "--from", "earliest", "--limit", "2",
    ];
    let following = Going::start(first, &arguments, &home);
    let records = "{\"value\":1}\n{\"value\":2}\n";
    assert_eq!(fields(&run(first, &["pub", "events"], records))[0], "2");
    following
        .says("order total waits for region r1, which is not linked and lacks")
        .await;
    let shown = run(first, &["regions"], "");
    let shown = String::from_utf8(shown.stdout).unwrap();
    let member = shown
        .lines()
        .find(|line| line.starts_with("member in r1"))
        .unwrap();
    assert!(member.contains(": active, not linked, lacks"), "{shown}");
    regions.set_between(0, 1, Weather::default());
    let (printed, said) = following.ended("order total waits").await;
    assert_eq!((printed.lines().count(), said), (2, 1), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_an_acknowledgement_waits_for_is_said_once() {
    let regions = two_regions(&["limits.regions_wait_seconds=60"]).await;
    let home = Home::new();
    regions.set_between(0, 1, CUT);
    let first = regions.broker(0);
    let commands: [&[&str]; 3] = [
        &["pub", "events", "--value", "1", "--ack", "regions:2"],
        &["put", "rows", "k", "1", "--ack", "regions:2"],
        &["delete", "rows", "gone", "--ack", "region:r0,r1"],
    ];
    let going = commands.map(|arguments| Going::start(first, arguments, &home));
    for (going, level) in going.iter().zip(["regions:2", "regions:2", "region:r0,r1"]) {
        let said = format!("waiting for {level}: region r1, which is not linked and lacks");
        going.says(&said).await;
    }
    regions.set_between(0, 1, Weather::default());
    for going in going {
        let (printed, said) = going.ended("waiting for").await;
        assert!(
            printed.split('\t').any(|field| field == "regions"),
            "{printed}"
        );
        assert_eq!(said, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rows_and_subscriptions_wait_for_a_token() {
    let regions = two_regions(&["limits.token_wait_seconds=0"]).await;
    let [first, second] = [0, 1].map(|number| regions.broker(number));
    regions.set_between(0, 1, CUT);
    let put = fields(&run(first, &["put", "rows", "k", "17"], ""));
    let token = put[1].as_str();
    let rows = ["rows", "rows", "--token", token];
    let sub = [
        "sub", "rows", "--from", "table", "--limit", "1", "--token", token,
    ];
    for arguments in [&rows[..], &sub] {
        let refused = run(second, arguments, "");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("AB3101"), "{arguments:?}: {said}");
    }
    regions.set_between(0, 1, Weather::default());
    regions.converged().await;
    for arguments in [&rows[..], &sub] {
        assert_eq!(
            fields(&run(second, arguments, "")),
            ["k", "17"],
            "{arguments:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_never_met_and_a_region_that_nobody_is_in_are_named() {
    let home = Home::new();
    // Nobody listens there any more.
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let nobody = nobody.to_string();
    let flags = [
        "--region",
        "eu",
        "--peer",
        &nobody,
        "--peer-listen",
        "127.0.0.1:0",
    ];
    let flags = [&flags[..], &["--set", "links.join_seconds=0"]].concat();
    let started = Broker::try_start(&home, &flags).await;
    let broker = started.unwrap_or_else(|ended| panic!("{}", ended.said));
    let shown = run(&broker, &["regions"], "");
    let shown = String::from_utf8(shown.stdout).unwrap();
    let line = format!("peer {nobody}\tnever met since the start");
    assert!(shown.contains(&line), "{shown}");

    let create = ["stream", "create", "s", "--regions"];
    let warned = run(&broker, &[&create[..], &["eu,su"]].concat(), "");
    let said = String::from_utf8_lossy(&warned.stderr).into_owned();
    assert!(warned.status.success(), "{said}");
    assert!(
        said.contains("warning: no broker is in su; those that are there are in eu"),
        "{said}"
    );
    let fine = run(&broker, &["stream", "create", "t", "--regions", "eu"], "");
    assert!(fine.status.success() && fine.stderr.is_empty(), "{fine:?}");
    broker.stop().await;
}
