//! At a cursor, over connections and restarts.

use anabranch_core::id::PartitionId;
use anabranch_core::partitioner::partition_of;
use anabranch_protocol::ws::{ClientMessage, KeyFilter, Subscribe, SubscriptionId};
use anabranch_tests::broker::Broker;
use anabranch_tests::follow::{Came, Follower};
use anabranch_tests::home::Home;
use anabranch_tests::wire::subscribe;
use serde_json::json;

use super::numbers::{STREAM, key, numbers, publish_to, those};

/// How often the broker is started anew.
const RESTARTS: u32 = 6;

/// Numbers published between two starts.
const NUMBERS: u32 = 90;

/// A subscriber that reads a few records at a time, on a new connection each time.
struct Reader {
    select: fn(&mut Subscribe<'_>),
    wants: fn(u32) -> bool,
    cursor: String,
    seen: Vec<u32>,
}

impl Reader {
    fn new(select: fn(&mut Subscribe<'_>), wants: fn(u32) -> bool) -> Self {
        let cursor = "earliest".to_owned();
        Self {
            select,
            wants,
            cursor,
            seen: Vec::new(),
        }
    }

    /// Reads until it has all that it wants of the numbers so far.
    async fn read(&mut self, broker: &Broker, numbers_so_far: u32, at_once: usize) {
        let expected = those(0..numbers_so_far, self.wants);
        while self.seen.len() < expected.len() {
            let mut subscription = subscribe(1, STREAM, &self.cursor);
            (self.select)(&mut subscription);
            let mut follower = Follower::start(broker.address(), subscription).await;
            let missing = expected.len() - self.seen.len();
            let (records, cursor) = follower.records(at_once.min(missing)).await;
            self.seen.extend(numbers(&records));
            self.cursor = cursor;
        }
        self.seen.sort_unstable();
        assert_eq!(self.seen, expected);
    }
}

#[tokio::test]
async fn resuming_over_restarts_loses_and_doubles_nothing() {
    let home = Home::new();
    let mut readers = [
        Reader::new(|_| (), |_| true),
        Reader::new(
            |subscribe| subscribe.partitions = vec![PartitionId::new(1)],
            |number| partition_of(key(number).as_bytes(), 3).get() == 1,
        ),
        Reader::new(
            |subscribe| subscribe.keys = KeyFilter::Key(b"a-3".into()),
            |number| key(number) == "a-3",
        ),
        Reader::new(
            |subscribe| subscribe.keys = KeyFilter::Prefix(b"b".into()),
            |number| key(number).starts_with('b'),
        ),
    ];
    for restart in 0..RESTARTS {
        let mut broker = Broker::start_with(&home, &["log.segment_bytes=1MiB"]).await;
        if restart == 0 {
            broker
                .create(json!({"name": STREAM, "partitions": 3}))
                .await;
        }
        let (from, to) = (restart * NUMBERS, (restart + 1) * NUMBERS);
        publish_to(&broker, from..to - 30).await;
        for reader in &mut readers {
            reader.read(&broker, to - 30, 7).await;
        }
        // What comes last is read after the restart.
        publish_to(&broker, to - 30..to).await;
        match restart % 2 {
            0 => broker.kill(),
            _ => broker.stop().await,
        }
    }
}

#[tokio::test]
async fn an_ended_subscription_says_where_it_would_resume() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    broker.create(json!({"name": STREAM})).await;
    publish_to(&broker, 0..9).await;
    let mut follower = Follower::start(broker.address(), subscribe(1, STREAM, "earliest")).await;
    let (first, _) = follower.records(9).await;
    let subscription = SubscriptionId::new(1);
    let message = ClientMessage::Unsubscribe { subscription };
    follower.wire().send(&message).await;
    let Came::Unsubscribed { cursor } = follower.next().await else {
        panic!("it should have ended");
    };
    publish_to(&broker, 9..18).await;
    let resumed = ClientMessage::Subscribe(subscribe(1, STREAM, &cursor));
    follower.wire().send(&resumed).await;
    let (second, _) = follower.records(9).await;
    let all = [numbers(&first), numbers(&second)].concat();
    assert_eq!(all, those(0..18, |_| true));
}

/// A broker that is asked to stop tells its subscribers, who resume after it is back.
#[tokio::test]
async fn a_stopping_broker_says_so_and_cursors_outlive_it() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    broker.create(json!({"name": STREAM})).await;
    publish_to(&broker, 0..9).await;
    let mut follower = Follower::start(broker.address(), subscribe(1, STREAM, "earliest")).await;
    let (_, cursor) = follower.records(9).await;
    let stopping = tokio::spawn(broker.stop());
    // Once for the subscription, once for the connection.
    let mut told = 0;
    while let Came::Refused(problem) = follower.next().await {
        assert_eq!(problem.code.code(), "AB6002");
        told += 1;
    }
    assert!(told > 0);
    stopping.await.unwrap();
    let broker = Broker::start(&home).await;
    publish_to(&broker, 9..12).await;
    let mut follower = Follower::start(broker.address(), subscribe(1, STREAM, &cursor)).await;
    let (records, _) = follower.records(3).await;
    assert_eq!(numbers(&records), [9, 10, 11]);
}
