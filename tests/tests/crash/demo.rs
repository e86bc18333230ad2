//! The demo, killed again and again, goes on where it was.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::Duration;

use anabranch_tests::broker::{Broker, command};
use anabranch_tests::condition::{eventually, soon};
use anabranch_tests::demo::Demo;
use anabranch_tests::follow::{Came, Follower};
use anabranch_tests::home::Home;
use anabranch_tests::http::Http;
use anabranch_tests::wire::subscribe;

use super::plan::Plan;
use crate::real_data;

/// Events between two kills, at most. A hundred kills then see most of the year.
const EVENTS_AT_MOST: usize = 12_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_during_the_demo_lose_and_double_nothing() {
    let plan = Plan::read(100);
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    let mut killed = 0;
    while killed < plan.rounds {
        killed = one_demo(&plan, &mut rng, killed).await;
    }
}

/// One demo from its beginning to its end. Returns how often a demo was killed so far.
async fn one_demo(plan: &Plan, rng: &mut fastrand::Rng, mut killed: u32) -> u32 {
    let home = Home::new();
    let mut witness = Witness::new();
    while killed < plan.rounds {
        plan.note(killed);
        let mut demo = Demo::start(&home);
        if rng.u8(..) < 40 {
            // Before it has begun, or while it is at the tables.
            tokio::time::sleep(Duration::from_millis(rng.u64(0..400))).await;
        } else if !witness.see(&mut demo, rng.usize(0..EVENTS_AT_MOST)).await {
            break;
        }
        demo.kill();
        killed += 1;
    }
    Demo::start(&home).finish().await;
    let broker = Broker::start(&home).await;
    witness.check_all(&broker).await;
    real_data::check(&broker.http()).await;
    broker.stop().await;
    let verify = command()
        .args(["verify", "--data-dir"])
        .arg(home.data())
        .output();
    let verify = verify.unwrap();
    assert!(verify.status.success(), "{verify:?}");
    killed
}

/// Follows the events over all crashes. What was delivered was acknowledged.
struct Witness {
    cursor: String,
    /// The values seen, as hashes, by offset.
    seen: Vec<u64>,
}

impl Witness {
    fn new() -> Self {
        let cursor = "earliest".to_owned();
        Self {
            cursor,
            seen: Vec::new(),
        }
    }

    /// Sees so many events more; false when the demo has ended.
    async fn see(&mut self, demo: &mut Demo, more: usize) -> bool {
        let address = demo.address();
        let http = Http::new(address);
        let held = eventually("the stream is there", async || {
            if demo.has_ended() {
                return Some(None);
            }
            let shown = http
                .try_send("GET", "/v1/streams/flights", &[], "")
                .await
                .ok()?;
            (shown.status == 200).then(|| shown.json()["offsets"][0]["next"].as_u64())
        })
        .await;
        let Some(held) = held else { return false };
        let (held, known) = (usize::try_from(held).unwrap(), self.seen.len());
        assert!(
            held >= known,
            "{known} events were delivered, {held} are left"
        );
        let mut follower = Follower::start(address, subscribe(1, "flights", &self.cursor)).await;
        let enough = held + more;
        while self.seen.len() < enough {
            let next = soon("events", follower.next_unhurried());
            match next.await {
                Came::Frame { records, cursor } => self.take(&records, cursor),
                Came::Refused(_) | Came::Closed(_) => return false,
                other => panic!("{other:?}"),
            }
        }
        true
    }

    fn take(&mut self, records: &[anabranch_tests::follow::Got], cursor: String) {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        for got in records {
            assert_eq!(
                got.offset.get(),
                self.seen.len() as u64,
                "offsets are dense"
            );
            self.seen.push(hasher.hash_one(got.text()));
        }
        self.cursor = cursor;
    }

    /// Checks that what was seen is what is there.
    async fn check_all(&self, broker: &Broker) {
        let mut again = Self::new();
        let from = subscribe(1, "flights", "earliest");
        let mut follower = Follower::start(broker.address(), from).await;
        while again.seen.len() < self.seen.len() {
            let (records, cursor) = follower.records(1).await;
            again.take(&records, cursor);
        }
        assert!(again.seen.starts_with(&self.seen), "history changed");
    }
}
