//! The Rust client against the broker.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anabranch_client::{
    Client, Event, From, MergeMode, PublisherOptions, Record, StreamDefinition, StreamName,
};
use anabranch_tests::broker::Broker;
use anabranch_tests::condition::{eventually, soon};
use anabranch_tests::home::Home;

async fn client(broker: &Broker) -> Client {
    Client::connect(&format!("http://{}", broker.address()))
        .await
        .unwrap()
}

async fn create(client: &Client, name: &str, merge: MergeMode, partitions: u16) {
    let name = StreamName::parse(name).unwrap();
    let definition = StreamDefinition {
        partitions,
        ..StreamDefinition::new(name, merge)
    };
    client.create_stream(&definition).await.unwrap();
}

/// Starts a broker where another one was.
async fn start_again(home: &Home, before: &Broker) -> Broker {
    let address = format!("listen.address={}", before.address());
    Broker::start_with(home, &[&address]).await
}

/// How many records are published while the broker dies again and again.
const RECORDS: u32 = 60_000;
const KILLS: u32 = 8;

/// The publisher sends again what was not acknowledged, the subscription goes on where it was:
/// each record is there once, in order, and is seen once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_and_subscriptions_outlive_the_broker() {
    let home = Home::new();
    let mut broker = Broker::start(&home).await;
    let client = client(&broker).await;
    create(&client, "numbers", MergeMode::Append, 1).await;
    let numbers = client.stream("numbers");
    let mut subscription = numbers.subscribe(From::Earliest).await.unwrap();
    let seen = tokio::spawn(async move {
        for number in 0..RECORDS {
            let record = subscription.next_record().await.unwrap();
            assert_eq!(record.offset.get(), u64::from(number));
            let value = record.value.unwrap();
            assert_eq!(value, number.to_string().as_bytes());
        }
    });
    let options = PublisherOptions {
        batch_records: 50,
        window_bytes: 16 * 1024,
        ..PublisherOptions::default()
    };
    let publisher = numbers.publisher(options).await.unwrap();
    let published = tokio::spawn(async move {
        let mut acks = Vec::new();
        for number in 0..RECORDS {
            let value = number.to_string().into_bytes();
            acks.push(publisher.send(Record::value(value)).await.unwrap());
        }
        publisher.flush().await.unwrap();
        for (number, ack) in (0..).zip(acks) {
            let offset = ack.await.unwrap().offset;
            assert!(
                offset.is_none_or(|it| it.get() == number),
                "{offset:?} for {number}"
            );
        }
        publisher.close().await.unwrap();
    });
    for kill in 1..=KILLS {
        let due = u64::from(RECORDS / (KILLS + 1) * kill);
        let http = broker.http();
        eventually("some are published", async || {
            let shown = http.json("/v1/streams/numbers").await;
            (shown["offsets"][0]["next"].as_u64()? >= due).then_some(())
        })
        .await;
        broker.kill();
        broker = start_again(&home, &broker).await;
    }
    soon("publishing ends", published).await.unwrap();
    soon("everything is seen", seen).await.unwrap();
    let shown = broker.http().json("/v1/streams/numbers").await;
    assert_eq!(shown["offsets"][0]["next"], RECORDS);
    broker.stop().await;
}

/// Over several partitions: each key's records in order, none twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_keep_their_order_over_a_restart() {
    let home = Home::new();
    let mut broker = Broker::start(&home).await;
    let client = client(&broker).await;
    create(&client, "rows", MergeMode::Lww, 4).await;
    let rows = client.stream("rows");
    let publisher = rows.publisher(PublisherOptions::default()).await.unwrap();
    for number in 0..20_000u32 {
        let key = format!("key-{}", number % 50).into_bytes();
        let value = number.to_string().into_bytes();
        publisher.send(Record::put(key, value)).await.unwrap();
        if number == 10_000 {
            broker.kill();
            broker = start_again(&home, &broker).await;
        }
    }
    publisher.flush().await.unwrap();
    let mut last = [0; 50];
    let mut subscription = rows.subscribe(From::Earliest).await.unwrap();
    for _ in 0..20_000 {
        let record = subscription.next_record().await.unwrap();
        let number: u32 = std::str::from_utf8(&record.value.unwrap())
            .unwrap()
            .parse()
            .unwrap();
        let at = usize::try_from(number % 50).unwrap();
        assert!(number >= last[at], "{number} comes after {}", last[at]);
        last[at] = number + 50;
    }
    for key in 0..50u32 {
        let row = rows.row(format!("key-{key}").as_bytes()).await.unwrap();
        assert_eq!(row.unwrap(), (19_950 + key).to_string().as_bytes());
    }
    drop(subscription);
    broker.stop().await;
}

#[tokio::test]
async fn a_table_is_watched_from_its_rows_on() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    let client = client(&broker).await;
    create(&client, "rows", MergeMode::Lww, 1).await;
    let rows = client.stream("rows");
    rows.publish(Record::put(b"a".as_slice(), b"1".as_slice()))
        .await
        .unwrap();
    let mut subscription = rows.subscribe(From::Table).await.unwrap();
    let Event::Row(row) = subscription.next().await.unwrap() else {
        panic!("a row was due");
    };
    assert_eq!((&row.key[..], &row.value[..]), (&b"a"[..], &b"1"[..]));
    assert_eq!(subscription.next().await.unwrap(), Event::Live);
    rows.delete_row(b"a").await.unwrap();
    assert!(subscription.next_record().await.unwrap().is_delete());
    let refused = client.stream("nowhere").row(b"a").await.unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("AB1501"));
    drop(subscription);
    broker.stop().await;
}

/// An example, as the build made it.
fn example(name: &str, broker: &Broker, stream: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    let path: PathBuf = tests
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        path.exists(),
        "{} is missing; build it: cargo build --release --locked -p anabranch-client --examples",
        path.display()
    );
    let mut command = Command::new(path);
    command
        .arg(format!("http://{}", broker.address()))
        .arg(stream);
    command
}

async fn run(mut command: Command) -> Output {
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = soon("an example", running).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_run() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    let table = run(example("table", &broker, "airports")).await;
    let said = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        said.contains("John F Kennedy") && said.contains("then None"),
        "{said}"
    );

    let published = run(example("publish", &broker, "numbers")).await;
    let said = String::from_utf8_lossy(&published.stdout).into_owned();
    assert!(said.contains("1000000 records on disk"), "{said}");

    let mut subscribe = example("subscribe", &broker, "numbers");
    let mut child = subscribe.stdout(Stdio::piped()).spawn().unwrap();
    let out = child.stdout.take().unwrap();
    let first = tokio::task::spawn_blocking(move || {
        use std::io::{BufRead, BufReader};
        let lines = BufReader::new(out).lines().map_while(Result::ok);
        lines.take(1000).last()
    });
    let last = tokio::time::timeout(Duration::from_secs(30), first).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(last.unwrap().unwrap().as_deref(), Some("0/999 {\"n\":999}"));
    broker.stop().await;
}
