//! Subscriptions that cannot be served.

use anabranch_core::cursor::Cursor;
use anabranch_core::id::{BrokerId, ClusterId, Epoch, Origin, PartitionId, Sequence};
use anabranch_core::vector::{Token, VersionVector};
use anabranch_protocol::error::Code;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::{ClientMessage, SubscriptionId};
use anabranch_tests::follow::Follower;
use anabranch_tests::wire::subscribe;

use super::scene::Scene;

async fn refused(scene: &Scene, stream: &str, from: &str, code: Code) -> String {
    let message = ClientMessage::Subscribe(subscribe(4, stream, from));
    let mut wire = scene.broker.connect().await;
    wire.send(&message).await;
    let error = wire.refusal(code).await;
    assert_eq!(error.subscription, Some(SubscriptionId::new(4)));
    wire.lives().await;
    error.problem.detail
}

#[tokio::test]
async fn an_unknown_stream_or_partition_is_named() {
    let scene = Scene::new(&[]).await;
    let detail = refused(&scene, "fligths", "earliest", Code::NoSuchStream).await;
    assert!(detail.contains("fligths"), "{detail}");
    refused(&scene, "a/b", "earliest", Code::BadStreamName).await;
    let mut elsewhere = subscribe(4, "events", "earliest");
    elsewhere.partitions = vec![PartitionId::new(0), PartitionId::new(2)];
    let message = ClientMessage::Subscribe(elsewhere);
    scene.refused(&message, Code::NoSuchPartition).await;
    scene.end().await;
}

#[tokio::test]
async fn a_place_that_is_none_is_refused() {
    let scene = Scene::new(&[]).await;
    for from in [
        "",
        "earlist",
        "-1",
        "2013-02-30T00:00:00Z",
        "99999999999999999999",
    ] {
        refused(&scene, "events", from, Code::BadFrom).await;
    }
    let ours = ClusterId::of("anabranch");
    let seen = VersionVector::default();
    let cursor = Cursor::after(seen.clone()).encode(ours);
    let token = Token { seen }.encode(ours);
    let cut = &cursor[..cursor.len() - 2];
    for from in [cut, "Yaaaaaaaaaaaaa", &cursor.replace('A', "B")] {
        refused(&scene, "events", from, Code::BadCursor).await;
    }
    // A token is no cursor, though made alike; it does not even look like one.
    refused(&scene, "events", &token, Code::BadFrom).await;
    scene.end().await;
}

#[tokio::test]
async fn a_cursor_of_another_cluster_is_refused_on_every_surface() {
    let scene = Scene::new(&[]).await;
    let seen = VersionVector::default();
    let theirs = Cursor::after(seen).encode(ClusterId::of("theirs"));
    refused(&scene, "events", &theirs, Code::OtherCluster).await;
    let path = format!("/v1/streams/events/records?from={theirs}");
    let answer = scene.broker.http().get(&path).await;
    let _ = answer.problem(400, "AB1302");
    scene.end().await;
}

#[tokio::test]
async fn numbers_of_subscriptions_must_fit_what_there_is() {
    let scene = Scene::new(&["limits.subscriptions=2"]).await;
    let mut wire = scene.broker.connect().await;
    for number in [1, 2] {
        let message = ClientMessage::Subscribe(subscribe(number, "events", "earliest"));
        wire.send(&message).await;
    }
    for (number, code) in [(2, Code::SubscriptionInUse), (3, Code::Overloaded)] {
        let message = ClientMessage::Subscribe(subscribe(number, "events", "earliest"));
        wire.send(&message).await;
        let error = wire.refusal(code).await;
        assert_eq!(error.subscription, Some(SubscriptionId::new(number)));
    }
    let subscription = SubscriptionId::new(9);
    for message in [
        ClientMessage::Unsubscribe { subscription },
        ClientMessage::Credit {
            subscription,
            bytes: 1,
        },
    ] {
        wire.send(&message).await;
        wire.refusal(Code::NoSuchSubscription).await;
    }
    wire.lives().await;
    scene.end().await;
}

/// A subscription keeps what its cursor says of others for as long as it lives.
#[tokio::test]
async fn a_cursor_that_names_many_unknown_brokers_is_refused() {
    let scene = Scene::new(&[]).await;
    let mut wire = scene.broker.connect().await;
    wire.publish("events", vec![Record::value(b"1".to_vec())])
        .await;
    let mut follower =
        Follower::start(scene.broker.address(), subscribe(1, "events", "earliest")).await;
    let (_, held) = follower.records(1).await;
    let cluster = ClusterId::of("anabranch");
    let with_unknown = |count: u64| {
        let mut cursor = Cursor::decode(&held, cluster).unwrap();
        for broker in 1..=count {
            let origin = Origin {
                broker: BrokerId::new(broker),
                epoch: Epoch::new(1),
            };
            cursor.seen.advance(origin, Sequence::new(7));
        }
        cursor.encode(cluster)
    };
    let detail = refused(&scene, "events", &with_unknown(900), Code::BadCursor).await;
    assert!(detail.contains("900"), "{detail}");
    let few = with_unknown(8);
    let mut follower = Follower::start(scene.broker.address(), subscribe(1, "events", &few)).await;
    wire.publish("events", vec![Record::value(b"2".to_vec())])
        .await;
    assert_eq!(follower.records(1).await.0[0].text(), "2");
    scene.end().await;
}
