//! Writes to several streams: each transaction puts the same mark into two tables, under one key,
//! and into a journal. What it wrote must be there in one frame, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use anabranch_core::id::{Origin, Sequence};
use anabranch_tests::http::Http;
use serde_json::{Value, json};

use super::auditor::{Auditor, table};
use super::mark::Mark;
use super::writer::Round;

/// Where transactions write: two tables and a stream of events.
pub(crate) const TABLES: [&str; 2] = ["left", "right"];
pub(crate) const JOURNAL: &str = "journal";

/// Keys that transactions write to.
const KEYS: u32 = 40;

/// Sends one transaction after the other.
#[derive(Debug)]
pub(crate) struct Transactions {
    number: u32,
    next: u32,
    /// Acknowledged and not audited yet: the number, and its offset in the journal.
    acknowledged: Vec<(u32, usize)>,
}

impl Transactions {
    pub(crate) fn new(number: u32) -> Self {
        Self {
            number,
            next: 0,
            acknowledged: Vec::new(),
        }
    }

    /// Sends until the broker is gone, or the last round has begun.
    pub(crate) async fn run(&mut self, address: SocketAddr, round: &Round) {
        let http = Http::new(address);
        let json = [("content-type", "application/json")];
        while !round.last.load(Ordering::Relaxed) {
            let number = self.next;
            self.next += 1;
            let body = self.operations(number).to_string();
            let sent = http.try_send("POST", "/v1/transactions", &json, body);
            let Ok(answer) = sent.await else { return };
            if answer.status != 200 {
                assert_eq!(answer.json()["retryable"], true, "{answer:?}");
                return;
            }
            let answer = answer.json();
            assert_eq!(answer["durability"], "disk");
            let mut placed = answer["offsets"].as_array().unwrap().iter();
            let journal = placed.find(|row| row["stream"] == JOURNAL).unwrap();
            let offset = usize::try_from(journal["offset"].as_u64().unwrap()).unwrap();
            self.acknowledged.push((number, offset));
            round.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn operations(&self, number: u32) -> Value {
        let mark = Mark {
            writer: self.number,
            number,
        };
        let value: Value = serde_json::from_str(&mark.value()).unwrap();
        let key = format!("k{}", number % KEYS);
        json!([
            {"stream": TABLES[0], "key": key, "value": value},
            {"stream": JOURNAL, "value": value},
            {"stream": TABLES[1], "key": key, "value": value},
        ])
    }

    /// Checks that what was acknowledged is where it was said to be.
    pub(crate) fn check(&mut self, journal: &Auditor) {
        for (number, offset) in self.acknowledged.drain(..) {
            let expected = Some(Mark {
                writer: self.number,
                number,
            });
            let found = journal.log[0].get(offset).map(|seen| seen.mark);
            assert_eq!(found, Some(expected), "transaction {number} at {offset}");
        }
    }
}

/// Checks that each transaction is in all three streams, in the same frame, once, or in none.
pub(crate) fn check_atomic(auditors: [&Auditor; 3]) {
    let [left, journal, right] = auditors.map(frames);
    assert!(left == journal && journal == right, "frames are atomic");
    let distinct: BTreeSet<_> = journal.keys().collect();
    assert_eq!(distinct.len(), auditors[1].log[0].len(), "none is doubled");
}

/// In which frame each transaction is.
fn frames(auditor: &Auditor) -> BTreeMap<Mark, (Origin, Sequence)> {
    let all = auditor.log.iter().flatten();
    all.map(|seen| (seen.mark.unwrap(), (seen.dot.origin, seen.dot.sequence)))
        .collect()
}

/// Checks that both tables are the same, read at any moment when nobody writes.
pub(crate) async fn check_tables(http: &Http) {
    let (left, right) = (table(http, TABLES[0]).await, table(http, TABLES[1]).await);
    assert_eq!(left, right, "both tables are written together");
}
