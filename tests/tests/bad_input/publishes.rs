//! Publishes that cannot be taken.

use anabranch_core::id::PartitionId;
use anabranch_core::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use anabranch_core::producer::ProducerStamp;
use anabranch_protocol::error::Code;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::{ClientMessage, Publish};
use anabranch_tests::wire::publish;

use super::scene::Scene;

fn value(bytes: usize) -> Record<'static> {
    Record::put(b"k".as_slice(), vec![b'1'; bytes])
}

fn with(message: ClientMessage<'_>, change: impl FnOnce(&mut Publish<'_>)) -> ClientMessage<'_> {
    let ClientMessage::Publish(mut publish) = message else {
        unreachable!("made as a publish");
    };
    change(&mut publish);
    ClientMessage::Publish(publish)
}

#[tokio::test]
async fn an_unknown_stream_is_named() {
    let scene = Scene::new(&[]).await;
    let message = publish(7, "fligths", vec![value(1)]);
    let detail = scene.refused(&message, Code::NoSuchStream).await;
    assert!(detail.contains("fligths"), "{detail}");
    scene.end().await;
}

#[tokio::test]
async fn a_bad_stream_name_is_refused() {
    let scene = Scene::new(&[]).await;
    let long = "x".repeat(250);
    for name in ["", "a/b", "../events", "a b", "events\0", "été", &long] {
        let message = publish(7, name, vec![value(1)]);
        scene.refused(&message, Code::BadStreamName).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn the_brokers_own_streams_are_not_written_to() {
    let scene = Scene::new(&[]).await;
    let message = publish(7, "_streams", vec![value(1)]);
    scene.refused(&message, Code::NotPossible).await;
    scene.end().await;
}

#[tokio::test]
async fn keys_and_values_over_the_limit_are_refused() {
    let scene = Scene::new(&[]).await;
    let long_key = Record::put(vec![b'k'; MAX_KEY_BYTES + 1], b"v".as_slice());
    for record in [long_key, value(MAX_VALUE_BYTES + 1)] {
        for stream in ["events", "rows"] {
            // All records of a publish are taken, or none.
            let records = vec![value(1), record.clone()];
            let message = publish(7, stream, records);
            scene.refused(&message, Code::RecordTooLarge).await;
        }
    }
    let much = vec![value(MAX_VALUE_BYTES - 10); 2];
    let message = publish(7, "events", much);
    scene.refused(&message, Code::BatchTooLarge).await;
    let shown = scene.broker.http().json("/v1/streams/events").await;
    assert_eq!(shown["offsets"][0]["next"], 0, "nothing was taken");
    scene.end().await;
}

#[tokio::test]
async fn what_a_stream_cannot_hold_is_refused() {
    let scene = Scene::new(&[]).await;
    let keyless = publish(7, "rows", vec![Record::value(b"v".as_slice())]);
    scene.refused(&keyless, Code::KeyMissing).await;
    let nowhere = with(publish(7, "rows", vec![value(1)]), |publish| {
        publish.partition = Some(PartitionId::new(2));
    });
    scene.refused(&nowhere, Code::NoSuchPartition).await;
    let nothing = publish(7, "events", Vec::new());
    scene.refused(&nothing, Code::BadParameter).await;
    scene.end().await;
}

#[tokio::test]
async fn a_producer_with_a_gap_or_a_successor_is_refused() {
    let scene = Scene::new(&[]).await;
    let stamped = |epoch, sequence| {
        with(publish(7, "events", vec![value(1)]), |publish| {
            publish.partition = Some(PartitionId::new(1));
            publish.producer = Some(ProducerStamp {
                id: 5,
                epoch,
                sequence,
            });
        })
    };
    let mut wire = scene.broker.connect().await;
    wire.send(&stamped(1, 0)).await;
    wire.next().await.unwrap();
    scene.refused(&stamped(1, 5), Code::ProducerGap).await;
    scene.refused(&stamped(0, 1), Code::ProducerFenced).await;
    scene.end().await;
}

#[tokio::test]
async fn a_refused_publish_does_not_stop_those_around_it() {
    let scene = Scene::new(&[]).await;
    let mut wire = scene.broker.connect().await;
    for id in 0..30 {
        let stream = if id % 3 == 1 { "nowhere" } else { "events" };
        wire.send(&publish(id, stream, vec![value(1)])).await;
    }
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    while taken.len() + refused.len() < 30 {
        match wire.next().await.unwrap().message() {
            anabranch_protocol::ws::ServerMessage::Ack(ack) => {
                taken.extend(ack.rows.iter().map(|row| row.id));
            }
            anabranch_protocol::ws::ServerMessage::Error(error) => {
                assert_eq!(error.problem.code, Code::NoSuchStream);
                refused.extend(error.id);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(
        taken.iter().all(|id| id % 3 != 1) && taken.len() == 20,
        "{taken:?}"
    );
    assert!(refused.iter().all(|id| id % 3 == 1), "{refused:?}");
    scene.end().await;
}
