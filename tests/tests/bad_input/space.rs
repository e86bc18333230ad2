//! A disk without room: writes are refused, reads go on, and writes come back with the room.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anabranch_protocol::error::Code;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::ServerMessage;
use anabranch_tests::broker::{Broker, command};
use anabranch_tests::condition::eventually;
use anabranch_tests::follow::Follower;
use anabranch_tests::home::Home;
use anabranch_tests::wire::{publish, subscribe};
use serde_json::json;

/// More than any disk has.
const MORE_THAN_THERE_IS: &str = "data.reserve_bytes=900000TiB";

#[tokio::test]
async fn below_the_reserve_writes_are_refused_and_reads_go_on() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    broker.create(json!({"name": "rows", "merge": "lww"})).await;
    let row = "/v1/tables/rows/rows/k";
    assert_eq!(broker.http().put(row, &json!("held")).await.status, 200);
    broker.stop().await;

    let broker = Broker::start_with(&home, &[MORE_THAN_THERE_IS]).await;
    let http = broker.http();
    // It looks at the disk once a second.
    eventually("refused", async || {
        let answer = http.put(row, &json!("new")).await;
        (answer.status == 507).then_some(())
    })
    .await;
    let answer = http.put(row, &json!("new")).await;
    let problem = answer.problem(507, "AB2104");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("reserve") && detail.contains("anabranch stream trim"),
        "{detail}"
    );
    let records = "/v1/streams/rows/records";
    let body = json!([{"key": "k", "value": 1}]);
    let _ = http.post(records, &body).await.problem(507, "AB2104");
    let body = json!([{"stream": "rows", "key": "k", "value": 1}]);
    let _ = http
        .post("/v1/transactions", &body)
        .await
        .problem(507, "AB2104");
    let _ = http
        .post("/v1/streams", &json!({"name": "more"}))
        .await
        .problem(507, "AB2104");
    let mut wire = broker.connect().await;
    let record = Record::put(b"k".as_slice(), b"v".as_slice());
    wire.send(&publish(1, "rows", vec![record])).await;
    wire.refusal(Code::DiskFull).await;
    wire.lives().await;

    assert_eq!(http.json(row).await, "held");
    let mut follower = Follower::start(broker.address(), subscribe(1, "rows", "earliest")).await;
    assert_eq!(follower.records(1).await.0[0].text(), "\"held\"");
    let _ = http.get("/readyz").await.problem(507, "AB2104");
    assert_eq!(http.get("/livez").await.status, 200);
    let deleted = http.send("DELETE", "/v1/streams/rows", &[], "").await;
    assert_eq!(deleted.status, 204, "it gives space back: {deleted:?}");
    broker.stop().await;
}

/// A file system in memory, of a few megabytes.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount(home: &Home, megabytes: u32) -> Option<Self> {
        let at = home.path().join("small");
        std::fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={megabytes}m"),
                "anabranch-test",
            ])
            .arg(&at)
            .output();
        mounted
            .is_ok_and(|it| it.status.success())
            .then_some(Self { at })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

/// Publishes one record as soon as the broker takes any.
async fn room_again(broker: &Broker) {
    let body = json!([{"value": "x"}]);
    eventually("room again", async || {
        let http = broker.http();
        let answer = http.post("/v1/streams/events/records", &body).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

/// Filling a disk while publishing as fast as it goes. Where mounting is not allowed, the reserve
/// alone is tested, above.
#[tokio::test]
async fn a_disk_that_fills_up_loses_nothing_and_goes_on_when_there_is_room() {
    let outer = Home::new();
    let Some(disk) = SmallDisk::mount(&outer, 64) else {
        return;
    };
    let home = Home::within(&disk.at);
    let filler = disk.at.join("filler");
    std::fs::write(&filler, vec![0; 8 << 20]).unwrap();
    let settings = [
        "log.segment_bytes=4MiB",
        "data.reserve_bytes=8MiB",
        "tables.image_bytes=1MiB",
    ];
    let mut broker = Broker::start_with(&home, &settings).await;
    broker.create(json!({"name": "events"})).await;
    let acknowledged = fill(&broker).await;
    assert!(acknowledged > 5, "{acknowledged}");
    let http = broker.http();
    let ready = http.get("/livez").await;
    assert_eq!(ready.status, 200, "it is full, not broken: {ready:?}");
    check(&broker, acknowledged).await;

    std::fs::remove_file(&filler).unwrap();
    room_again(&broker).await;
    broker.kill();
    let broker = Broker::start_with(&home, &settings).await;
    check(&broker, acknowledged).await;
    broker.stop().await;
    let verify = command()
        .args(["verify", "--data-dir"])
        .arg(home.data())
        .output()
        .unwrap();
    assert!(verify.status.success(), "{verify:?}");
}

/// What was acknowledged is in the log, whatever becomes of the tables.
#[tokio::test]
async fn a_broker_that_cannot_write_its_tables_ends_and_says_why() {
    let outer = Home::new();
    let Some(disk) = SmallDisk::mount(&outer, 24) else {
        return;
    };
    let home = Home::within(&disk.at);
    let settings = [
        "log.segment_bytes=8MiB",
        "data.reserve_bytes=1",
        "tables.image_bytes=1MiB",
    ];
    let broker = Broker::start_with(&home, &settings).await;
    broker.create(json!({"name": "rows", "merge": "lww"})).await;
    let filler = disk.at.join("filler");
    // Once more where the broker has just taken some of it.
    eventually("room for the filler", async || {
        let free = rustix::fs::statvfs(&disk.at).unwrap();
        let free = usize::try_from(free.f_bavail * free.f_frsize).unwrap();
        // The broker may hold nearly all of it for a moment.
        let most = free.checked_sub(300_000)?;
        std::fs::write(&filler, vec![0; most]).ok()
    })
    .await;
    let mut idle = broker.connect().await;
    let mut wire = broker.connect().await;
    let mut acknowledged = 0;
    let refused = loop {
        // Does not shrink when it is compressed.
        let mut value = vec![0; 32 * 1024];
        fastrand::fill(&mut value);
        let key = format!("{acknowledged:06}").into_bytes();
        wire.send(&publish(1, "rows", vec![Record::put(key, value)]))
            .await;
        match wire.next().await.unwrap().message() {
            ServerMessage::Ack(_) => acknowledged += 1,
            ServerMessage::Error(error) => break error.problem.code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused, Code::Stopped, "after {acknowledged}");
    idle.refusal(Code::Stopped).await;
    idle.closed_after(Code::Stopped).await;
    let status = broker.ended().await;
    assert_eq!(status.code(), Some(1));
    let said = std::fs::read_to_string(home.log()).unwrap();
    assert!(said.contains("AB6003"), "{said}");

    std::fs::remove_file(&filler).unwrap();
    let broker = Broker::start_with(&home, &settings).await;
    for number in 0..acknowledged {
        let path = format!("/v1/tables/rows/rows/{number:06}");
        assert_eq!(broker.http().get(&path).await.status, 200, "{number}");
    }
    broker.stop().await;
}

/// On a disk without a free byte: a disk that another program has filled, while a segment is still
/// to be written to.
const TO_THE_LAST_BYTE: [&str; 4] = [
    "log.segment_bytes=4MiB",
    "data.reserve_bytes=0",
    "tables.image_bytes=1MiB",
    "log.retention_interval_seconds=3600",
];

impl SmallDisk {
    /// Leaves no byte free.
    fn fill_up(&self) -> PathBuf {
        let filler = self.at.join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        let full = loop {
            if let Err(error) = file.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        filler
    }
}

/// A broker with `count` records of 64 KiB in `events`, on a disk without a free byte.
async fn on_a_full_disk(disk: &SmallDisk, home: &Home, count: usize) -> (Broker, PathBuf) {
    let broker = Broker::start_with(home, &TO_THE_LAST_BYTE).await;
    broker.create(json!({"name": "events"})).await;
    eventually("ballast", async || {
        home.data().join("ballast").exists().then_some(())
    })
    .await;
    let mut wire = broker.connect().await;
    for _ in 0..count {
        wire.publish("events", vec![Record::value(vec![b'x'; 64 * 1024])])
            .await;
    }
    let filler = disk.fill_up();
    (broker, filler)
}

/// The broker's own log lies on that disk as well.
#[tokio::test]
async fn a_group_that_reaches_beyond_its_segment_is_refused_where_no_byte_is_free() {
    let outer = Home::new();
    let Some(disk) = SmallDisk::mount(&outer, 32) else {
        return;
    };
    let home = Home::within(&disk.at);
    let (mut broker, filler) = on_a_full_disk(&disk, &home, 20).await;
    let (mut acknowledged, mut refused) = (20, 0);
    let mut wire = broker.connect().await;
    for number in 0..100 {
        let record = Record::value(vec![b'y'; 64 * 1024]);
        wire.send(&publish(number, "events", vec![record])).await;
    }
    while acknowledged + refused < 120 {
        match wire.next().await.unwrap().message() {
            ServerMessage::Ack(ack) => acknowledged += ack.rows.len(),
            ServerMessage::Error(error) => {
                assert_eq!(error.problem.code, Code::DiskFull, "{error:?}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(
        acknowledged > 30 && refused > 30,
        "{acknowledged}, {refused}"
    );
    let http = broker.http();
    let _ = http.get("/readyz").await.problem(507, "AB2104");
    check(&broker, acknowledged).await;

    std::fs::remove_file(&filler).unwrap();
    room_again(&broker).await;
    broker.kill();
    let broker = Broker::start_with(&home, &TO_THE_LAST_BYTE).await;
    check(&broker, acknowledged + 1).await;
    let shown = broker.http().json("/v1/streams/events").await;
    assert_eq!(shown["offsets"][0]["next"], acknowledged + 1, "none twice");
    broker.stop().await;
}

#[tokio::test]
async fn a_trim_gives_space_back_where_no_byte_is_free() {
    let outer = Home::new();
    let Some(disk) = SmallDisk::mount(&outer, 32) else {
        return;
    };
    let home = Home::within(&disk.at);
    let (broker, _filler) = on_a_full_disk(&disk, &home, 250).await;
    let http = broker.http();
    let big = json!([{"value": "x".repeat(512 * 1024)}]).to_string();
    // A refusal may come before all of the body is sent, and end the connection.
    let published = async || {
        let header = ("content-type", "application/json");
        let records = "/v1/streams/events/records";
        let answer = http.try_send("POST", records, &[header], big.clone()).await;
        answer.is_ok_and(|answer| answer.status == 200)
    };
    while published().await {}
    let trimmed = http
        .post(
            "/v1/streams/events/trim",
            &json!({"before": "2100-01-01T00:00:00Z"}),
        )
        .await;
    assert_eq!(trimmed.status, 202, "{trimmed:?}");
    eventually("room again", async || published().await.then_some(())).await;
    broker.stop().await;
}

#[tokio::test]
async fn a_broker_starts_where_no_byte_is_free() {
    let outer = Home::new();
    let Some(disk) = SmallDisk::mount(&outer, 32) else {
        return;
    };
    let home = Home::within(&disk.at);
    let (mut broker, filler) = on_a_full_disk(&disk, &home, 20).await;
    broker.kill();
    let mut broker = Broker::start_with(&home, &TO_THE_LAST_BYTE).await;
    check(&broker, 20).await;
    broker.kill();
    std::fs::remove_file(&filler).unwrap();
    Broker::start_with(&home, &TO_THE_LAST_BYTE)
        .await
        .stop()
        .await;
    // Stopped in an orderly way, the log has given back what it had reserved.
    let filler = disk.fill_up();
    let broker = Broker::start_with(&home, &TO_THE_LAST_BYTE).await;
    check(&broker, 20).await;
    std::fs::remove_file(&filler).unwrap();
    let body = json!([{"value": "x"}]);
    eventually("room again", async || {
        let answer = broker
            .http()
            .post("/v1/streams/events/records", &body)
            .await;
        (answer.status == 200).then_some(())
    })
    .await;
    broker.stop().await;
}

/// Publishes until the disk is full; returns how many records were acknowledged.
async fn fill(broker: &Broker) -> usize {
    let mut wire = broker.connect().await;
    let value = vec![b'x'; 64 * 1024];
    for number in 0.. {
        wire.send(&publish(1, "events", vec![Record::value(value.as_slice())]))
            .await;
        match wire.next().await.unwrap().message() {
            ServerMessage::Ack(_) => {}
            ServerMessage::Error(error) => {
                assert_eq!(error.problem.code, Code::DiskFull, "{error:?}");
                return number;
            }
            other => panic!("{other:?}"),
        }
    }
    unreachable!("no disk is endless")
}

/// Checks that at least what was acknowledged is there.
async fn check(broker: &Broker, acknowledged: usize) {
    let from = subscribe(1, "events", "earliest");
    let mut follower = Follower::start(broker.address(), from).await;
    let (records, _) = follower.records(acknowledged).await;
    let dense = (0..).zip(&records).all(|(n, got)| got.offset.get() == n);
    assert!(dense, "offsets are dense");
}
