//! All of them together, round after round: start, check, write, die.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anabranch_core::id::PartitionId;
use anabranch_core::partitioner::partition_of;
use anabranch_protocol::codec::Codec;
use anabranch_tests::broker::{Broker, command};
use anabranch_tests::condition::eventually;
use anabranch_tests::follow::Follower;
use anabranch_tests::home::Home;
use serde_json::json;

use super::auditor::{Auditor, table};
use super::mark::Mark;
use super::plan::Plan;
use super::transactions::{JOURNAL, TABLES, Transactions, check_atomic, check_tables};
use super::writer::{Audited, Manner, Round, Writer};

/// Streams that are audited record by record, and their partitions.
const AUDITED: [(&str, usize); 5] = [
    ("events", 3),
    ("rows", 2),
    (TABLES[0], 1),
    (JOURNAL, 1),
    (TABLES[1], 1),
];

/// A table whose replaced records are dropped, so that only its rows can be checked.
const COMPACTED: &str = "compacted";

/// In every so many rounds all of the history is read again, and `verify` is run.
const CLOSE_LOOK_EVERY: u32 = 20;

/// A broker's directory, everybody who uses it, and what they remember.
pub(crate) struct World {
    home: Home,
    rng: fastrand::Rng,
    settings: Vec<&'static str>,
    writers: Vec<Writer>,
    transactions: Vec<Transactions>,
    auditors: Vec<Auditor>,
}

impl World {
    pub(crate) fn new(plan: &Plan) -> Self {
        let mut rng = fastrand::Rng::with_seed(plan.seed);
        let segments = ["1MiB", "3MiB", "64MiB"];
        let mut settings = vec!["log.retention_interval_seconds=1"];
        settings.push(match rng.choice(segments).unwrap() {
            "1MiB" => "log.segment_bytes=1MiB",
            "3MiB" => "log.segment_bytes=3MiB",
            _ => "log.segment_bytes=64MiB",
        });
        settings.push("tables.image_rows=1000");
        Self {
            home: Home::new(),
            writers: writers(plan.seed),
            transactions: vec![Transactions::new(100), Transactions::new(101)],
            auditors: AUDITED.map(|(name, n)| Auditor::new(name, n)).into(),
            rng,
            settings,
        }
    }

    /// One life of the broker.
    pub(crate) async fn round(&mut self, round: u32) {
        if round > 0 && self.rng.u8(..) < 32 {
            self.die_at_start().await;
        }
        let broker = Broker::start_with(&self.home, &self.settings).await;
        if round == 0 {
            create_streams(&broker).await;
        }
        let followers = self.check(&broker, round).await;
        self.write_and_die(broker, followers).await;
        if round % CLOSE_LOOK_EVERY == 1 {
            self.verify();
        }
    }

    /// The last life: everything that is still unanswered is sent again, and answered.
    pub(crate) async fn finish(&mut self) {
        let broker = Broker::start_with(&self.home, &self.settings).await;
        let round = Round::default();
        round.last.store(true, Ordering::Relaxed);
        for writer in &mut self.writers {
            writer.run(broker.address(), &round).await;
        }
        self.check(&broker, 0).await;
        for writer in self.writers.iter().filter(|writer| writer.manner.retries) {
            let auditor = self
                .auditors
                .iter()
                .find(|a| a.stream == writer.manner.stream);
            let Some(auditor) = auditor else { continue };
            let all = auditor.log.iter().flatten().filter_map(|seen| seen.mark);
            let own = all.filter(|mark| mark.writer == writer.number).count();
            let deletes =
                (0..writer.next).filter(|&n| writer.deletes(n) && writer.key(n).is_some());
            let expected = usize::try_from(writer.next).unwrap() - deletes.count();
            assert_eq!(own, expected, "all of writer {} is there", writer.number);
        }
        broker.stop().await;
        self.verify();
    }

    /// Kills a broker while it starts.
    async fn die_at_start(&mut self) {
        let moment = Duration::from_millis(self.rng.u64(0..150));
        Broker::start_and_kill(&self.home, &self.settings, moment).await;
    }

    /// Checks that everything acknowledged is there. Returns subscriptions that go on.
    async fn check(&mut self, broker: &Broker, round: u32) -> Vec<Follower> {
        let mut followers = Vec::new();
        let http = broker.http();
        for auditor in &mut self.auditors {
            followers.push(auditor.catch_up(broker.address()).await);
        }
        for writer in &mut self.writers {
            let auditor = self
                .auditors
                .iter()
                .find(|a| a.stream == writer.manner.stream);
            match auditor {
                Some(auditor) => check_writer(writer, auditor),
                None => check_table(writer, &table(&http, COMPACTED).await),
            }
        }
        for transactions in &mut self.transactions {
            transactions.check(&self.auditors[3]);
        }
        check_atomic([&self.auditors[2], &self.auditors[3], &self.auditors[4]]);
        check_tables(&http).await;
        for auditor in &self.auditors {
            if !["events", JOURNAL].contains(&auditor.stream) {
                auditor.check_rows(&http).await;
            }
            if round.is_multiple_of(CLOSE_LOOK_EVERY) {
                auditor.check_all(broker.address()).await;
            }
        }
        followers
    }

    /// Lets everybody write until a random moment, then ends the broker.
    async fn write_and_die(&mut self, mut broker: Broker, followers: Vec<Follower>) {
        let round = Round::default();
        let address = broker.address();
        let more = self.rng.u64(0..4000);
        let moment = Duration::from_micros(self.rng.u64(0..3000));
        let gently = self.rng.u8(..) < 24;
        let kill = async {
            let acknowledged = || round.acknowledged.load(Ordering::Relaxed);
            eventually("writing", async || (acknowledged() >= more).then_some(())).await;
            tokio::time::sleep(moment).await;
            if gently {
                broker.stop().await;
            } else {
                broker.kill();
            }
        };
        let auditors = self.auditors.iter_mut().zip(followers);
        let following = auditors.map(|(auditor, follower)| auditor.follow(follower));
        let writing = self.writers.iter_mut().map(|w| w.run(address, &round));
        let transactions = self.transactions.iter_mut().map(|t| t.run(address, &round));
        tokio::join!(
            kill,
            futures_util::future::join_all(following),
            futures_util::future::join_all(writing),
            futures_util::future::join_all(transactions),
        );
    }

    /// Checks every checksum, chain and index, and that rows are the fold of the log.
    fn verify(&self) {
        let verify = command()
            .arg("verify")
            .arg("--data-dir")
            .arg(self.home.data())
            .output()
            .unwrap();
        assert!(verify.status.success(), "{verify:?}");
    }
}

/// Checks that what a writer was told is so.
fn check_writer(writer: &mut Writer, auditor: &Auditor) {
    let partition = usize::from(writer.manner.partition.get());
    let log = &auditor.log[partition];
    for batch in std::mem::take(&mut writer.acknowledged) {
        let Some(offset) = batch.offset else { continue };
        let offset = usize::try_from(offset.get()).unwrap();
        for (place, number) in (offset..).zip(batch.first..batch.first + batch.count) {
            let what = format!("record {number} of writer {} at {place}", writer.number);
            let seen = log.get(place).unwrap_or_else(|| panic!("{what} is lost"));
            let deleted = writer.deletes(number) && writer.key(number).is_some();
            let expected = (!deleted).then(|| writer.mark(number));
            assert_eq!(seen.mark, expected, "{what}");
        }
        if let Some(dot) = batch.dot {
            assert_eq!(log[offset].dot, dot, "{batch:?}");
        }
    }
    let Audited {
        places, mut due, ..
    } = writer.audited;
    for mark in log[places..].iter().filter_map(|seen| seen.mark) {
        if mark.writer != writer.number {
            continue;
        }
        while writer.manner.retries && writer.deletes(due) {
            due += 1;
        }
        let right = match writer.manner.retries {
            true => mark.number == due,
            false => mark.number >= due,
        };
        assert!(right, "{mark:?} where {due} is due");
        due = mark.number + 1;
    }
    writer.audited.places = log.len();
    writer.audited.due = due;
}

/// Checks the rows of a table that only this writer writes to: each holds what was acknowledged
/// last, or something that was sent later.
fn check_table(writer: &mut Writer, rows: &BTreeMap<String, Mark>) {
    let answered = writer.acknowledged.last().map(|b| b.first + b.count);
    for number in writer.audited.due..answered.unwrap_or_default() {
        let key = writer.key(number).unwrap().to_owned();
        writer.audited.latest.insert(key, number);
        writer.audited.due = number + 1;
    }
    writer.acknowledged.clear();
    for (key, &number) in &writer.audited.latest {
        let held = rows.get(key).map(|mark| mark.number);
        let right = held.is_some_and(|held| {
            held >= number && writer.key(held) == Some(key) && held < writer.next
        });
        assert!(right, "{key} holds {held:?} where {number} is due");
    }
}

async fn create_streams(broker: &Broker) {
    for (name, partitions) in AUDITED {
        let keyed = !["events", JOURNAL].contains(&name);
        let merge = if keyed { "lww" } else { "append" };
        let definition = json!({"name": name, "merge": merge, "partitions": partitions});
        broker.create(definition).await;
    }
    let retention = json!({"compact": true});
    let definition = json!({"name": COMPACTED, "merge": "lww", "retention": retention});
    broker.create(definition).await;
}

fn writers(seed: u64) -> Vec<Writer> {
    let events = |partition, retries, batch, window| Manner {
        stream: "events",
        partition: PartitionId::new(partition),
        codec: Codec::Msgpack,
        keys: Vec::new(),
        delete_every: 0,
        retries,
        batch,
        window,
    };
    let rows = |partition: u16, delete_every, codec| Manner {
        stream: "rows",
        codec,
        keys: keys_of(partition, 2),
        delete_every,
        ..events(partition, true, 5, 32)
    };
    let compacted = Manner {
        stream: COMPACTED,
        keys: keys_of(0, 1),
        ..events(0, true, 20, 8)
    };
    let manners = [
        events(0, true, 1, 128),
        events(1, true, 40, 16),
        events(2, false, 3, 32),
        rows(0, 0, Codec::Msgpack),
        rows(0, 7, Codec::Msgpack),
        rows(1, 5, Codec::Json),
        compacted,
    ];
    let numbered = (0..).zip(manners);
    numbered
        .map(|(number, manner)| Writer::new(number, manner, seed))
        .collect()
}

/// Keys that fall into a partition.
fn keys_of(partition: u16, partitions: u16) -> Vec<String> {
    let keys = (0..100).map(|number| format!("key-{number}"));
    keys.filter(|key| partition_of(key.as_bytes(), partitions).get() == partition)
        .collect()
}
