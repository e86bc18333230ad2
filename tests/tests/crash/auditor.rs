//! A subscriber that goes on after every crash, at its cursor, and checks what it is given:
//! offsets are dense, names rise, and what it has seen once it sees again, the same.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use anabranch_core::id::{Dot, Offset, Origin, Sequence};
use anabranch_tests::condition::soon;
use anabranch_tests::follow::{Came, Follower, Got};
use anabranch_tests::http::Http;
use anabranch_tests::wire::subscribe;

use super::mark::Mark;

/// A record as the auditor remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) dot: Dot,
    /// `None` for a deletion.
    pub(crate) mark: Option<Mark>,
}

/// What was seen of one stream, over all rounds.
#[derive(Debug)]
pub(crate) struct Auditor {
    pub(crate) stream: &'static str,
    cursor: String,
    /// By partition and offset.
    pub(crate) log: Vec<Vec<Seen>>,
    /// The fold of what was seen: key → mark.
    pub(crate) rows: BTreeMap<String, Mark>,
    /// The last name of each origin.
    last: HashMap<Origin, (Sequence, u32)>,
}

impl Auditor {
    pub(crate) fn new(stream: &'static str, partitions: usize) -> Self {
        Self {
            stream,
            cursor: "earliest".to_owned(),
            log: vec![Vec::new(); partitions],
            rows: BTreeMap::new(),
            last: HashMap::new(),
        }
    }

    /// Reads on from the cursor to what is the end now, and returns the subscription.
    pub(crate) async fn catch_up(&mut self, address: SocketAddr) -> Follower {
        let ends = ends(address, self.stream).await;
        for (seen, end) in self.log.iter().zip(&ends) {
            let seen = seen.len();
            assert!(
                seen <= *end,
                "{}: {seen} delivered records of which {end} are left",
                self.stream
            );
        }
        let mut follower = Follower::start(address, subscribe(1, self.stream, &self.cursor)).await;
        while self
            .log
            .iter()
            .zip(&ends)
            .any(|(seen, end)| seen.len() < *end)
        {
            match follower.next().await {
                Came::Frame { records, cursor } => self.take(&records, cursor),
                other => panic!("{}: {other:?}", self.stream),
            }
        }
        follower
    }

    /// Goes on until the broker is gone.
    pub(crate) async fn follow(&mut self, mut follower: Follower) {
        loop {
            let next = soon("the end of the broker", follower.next_unhurried());
            match next.await {
                Came::Frame { records, cursor } => self.take(&records, cursor),
                Came::Refused(problem) => assert!(problem.retryable, "{problem:?}"),
                Came::Closed(_) => return,
                other => panic!("{}: {other:?}", self.stream),
            }
        }
    }

    fn take(&mut self, records: &[Got], cursor: String) {
        for got in records {
            self.take_one(got);
        }
        self.cursor = cursor;
    }

    fn take_one(&mut self, got: &Got) {
        let stream = self.stream;
        let log = &mut self.log[usize::from(got.partition.get())];
        let next = Offset::new(log.len() as u64);
        assert_eq!(got.offset, next, "{stream}: offsets are dense: {got:?}");
        let (origin, name) = (got.dot.origin, (got.dot.sequence, got.dot.index));
        if let Some(before) = self.last.insert(origin, name) {
            assert!(before < name, "{stream}: {name:?} comes after {before:?}");
        }
        let seen = Seen {
            dot: got.dot,
            mark: got.value.as_deref().map(Mark::of),
        };
        log.push(seen);
        if let Some(key) = &got.key {
            let key = String::from_utf8(key.clone()).unwrap();
            match seen.mark {
                Some(mark) => self.rows.insert(key, mark),
                None => self.rows.remove(&key),
            };
        }
    }

    /// Checks that the table is the fold of what was seen.
    pub(crate) async fn check_rows(&self, http: &Http) {
        let rows = table(http, self.stream).await;
        assert_eq!(rows, self.rows, "{}: rows are the fold", self.stream);
    }

    /// Reads everything again, and checks that it is what was seen before.
    pub(crate) async fn check_all(&self, address: SocketAddr) {
        let mut again = Self::new(self.stream, self.log.len());
        let follower = again.catch_up(address).await;
        drop(follower);
        assert!(again.log == self.log, "{}: history changed", self.stream);
    }
}

/// Offsets that come next, by partition.
async fn ends(address: SocketAddr, stream: &str) -> Vec<usize> {
    let shown = Http::new(address)
        .json(&format!("/v1/streams/{stream}"))
        .await;
    let partitions = shown["offsets"].as_array().unwrap().iter();
    let next = partitions.map(|partition| partition["next"].as_u64().unwrap());
    next.map(|next| usize::try_from(next).unwrap()).collect()
}

/// All rows of a table.
pub(crate) async fn table(http: &Http, stream: &str) -> BTreeMap<String, Mark> {
    let mut rows = BTreeMap::new();
    let mut after = String::new();
    loop {
        let path = format!("/v1/tables/{stream}/rows?limit=1000{after}");
        let page = http.json(&path).await;
        for row in page["rows"].as_array().unwrap() {
            let key = row["key"].as_str().unwrap().to_owned();
            rows.insert(key, Mark::of(row["value"].to_string().as_bytes()));
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return rows,
        }
    }
}
