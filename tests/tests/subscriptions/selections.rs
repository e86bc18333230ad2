//! By partition, key and prefix.

use anabranch_core::id::PartitionId;
use anabranch_core::partitioner::partition_of;
use anabranch_protocol::codec::Codec;
use anabranch_protocol::ws::{KeyFilter, Subscribe};
use anabranch_tests::broker::Broker;
use anabranch_tests::follow::Follower;
use anabranch_tests::home::Home;
use anabranch_tests::wire::subscribe;
use serde_json::json;

use super::numbers::{STREAM, key, numbers, publish_to, those};

/// Subscribes to a part of 200 numbers, half of which come before the subscription: exactly those
/// that are wanted must come, in both subprotocols.
async fn check(select: impl Fn(&mut Subscribe<'_>), wanted: impl Fn(u32) -> bool) {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    broker
        .create(json!({"name": STREAM, "partitions": 3}))
        .await;
    publish_to(&broker, 0..100).await;
    let mut followers = Vec::new();
    for codec in Codec::ALL {
        let mut subscription = subscribe(1, STREAM, "earliest");
        select(&mut subscription);
        followers.push(Follower::start_as(broker.address(), codec, subscription).await);
    }
    publish_to(&broker, 100..200).await;
    let expected = those(0..200, wanted);
    for mut follower in followers {
        let (records, _) = follower.records(expected.len()).await;
        assert_eq!(numbers(&records), expected);
        follower.wire().lives().await;
    }
    broker.stop().await;
}

#[tokio::test]
async fn partitions_are_selected() {
    let asked = [PartitionId::new(0), PartitionId::new(2)];
    check(
        |subscribe| subscribe.partitions = asked.to_vec(),
        |number| asked.contains(&partition_of(key(number).as_bytes(), 3)),
    )
    .await;
}

#[tokio::test]
async fn a_key_is_selected() {
    check(
        |subscribe| subscribe.keys = KeyFilter::Key(b"b-7".into()),
        |number| key(number) == "b-7",
    )
    .await;
}

#[tokio::test]
async fn keys_are_selected_by_prefix() {
    check(
        |subscribe| subscribe.keys = KeyFilter::Prefix(b"a-".into()),
        |number| key(number).starts_with("a-"),
    )
    .await;
}

#[tokio::test]
async fn a_prefix_within_partitions_is_selected() {
    check(
        |subscribe| {
            subscribe.keys = KeyFilter::Prefix(b"b-".into());
            subscribe.partitions = vec![PartitionId::new(1)];
        },
        |number| {
            let key = key(number);
            key.starts_with("b-") && partition_of(key.as_bytes(), 3).get() == 1
        },
    )
    .await;
}
