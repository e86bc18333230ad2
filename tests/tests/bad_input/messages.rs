//! WebSocket messages that are none, or come out of turn.

use anabranch_protocol::codec::Codec;
use anabranch_protocol::error::Code;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::{ClientMessage, SubscriptionId};
use anabranch_tests::wire::{Wire, hello, publish};
use tokio_tungstenite::tungstenite::Message;

use super::scene::Scene;

/// Sends something on a connection that has said hello, which must end it with this code.
async fn ends_with(scene: &Scene, codec: Codec, message: Message, code: Code) {
    let mut wire = Wire::connect_as(scene.broker.address(), codec).await;
    wire.try_send_raw(message).await.unwrap();
    wire.refusal(code).await;
    wire.closed_after(code).await;
}

fn text(text: &str) -> Message {
    Message::text(text)
}

fn binary(bytes: &[u8]) -> Message {
    Message::binary(bytes.to_vec())
}

#[tokio::test]
async fn text_where_binary_is_due_is_refused_and_the_reverse() {
    let scene = Scene::new(&[]).await;
    let ping = text(r#"{"type":"ping","id":1}"#);
    ends_with(&scene, Codec::Msgpack, ping, Code::WrongFrameKind).await;
    let ping = binary(b"\x82\xa4type\xa4ping\xa2id\x01");
    ends_with(&scene, Codec::Json, ping, Code::WrongFrameKind).await;
    scene.end().await;
}

#[tokio::test]
async fn a_message_before_hello_is_refused() {
    let scene = Scene::new(&[]).await;
    let messages = [
        publish(1, "events", vec![Record::value(b"x".as_slice())]),
        ClientMessage::Ping { id: 1 },
        ClientMessage::Unsubscribe {
            subscription: SubscriptionId::new(1),
        },
    ];
    for (message, codec) in messages
        .iter()
        .zip([Codec::Msgpack, Codec::Json].iter().cycle())
    {
        let mut wire = Wire::mute(scene.broker.address(), *codec).await;
        wire.send(message).await;
        wire.refusal(Code::BeforeHello).await;
        wire.closed_after(Code::BeforeHello).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_client_that_never_says_hello_is_let_go() {
    let scene = Scene::new(&["limits.header_timeout_seconds=1"]).await;
    let mut wire = Wire::mute(scene.broker.address(), Codec::Msgpack).await;
    wire.refusal(Code::BeforeHello).await;
    wire.closed_after(Code::BeforeHello).await;
    scene.end().await;
}

#[tokio::test]
async fn truncated_and_malformed_messages_are_refused() {
    let scene = Scene::new(&[]).await;
    let whole = b"\x82\xa4type\xa4ping\xa2id\x01";
    for end in 0..whole.len() {
        let part = binary(&whole[..end]);
        ends_with(&scene, Codec::Msgpack, part, Code::MalformedMessage).await;
    }
    let bad: [&[u8]; 6] = [
        // Something follows.
        b"\x82\xa4type\xa4ping\xa2id\x01\x01",
        // A field twice.
        b"\x83\xa4type\xa4ping\xa2id\x01\xa2id\x01",
        // A field of the wrong type.
        b"\x82\xa4type\xa4ping\xa2id\xc0",
        // No map.
        b"\x93\x01\x02\x03",
        // No type.
        b"\x81\xa2id\x01",
        b"\xc1",
    ];
    for message in bad {
        ends_with(
            &scene,
            Codec::Msgpack,
            binary(message),
            Code::MalformedMessage,
        )
        .await;
    }
    for message in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"type":"ping"}"#,
        r#"{"type":"ping","id":-1}"#,
    ] {
        ends_with(&scene, Codec::Json, text(message), Code::MalformedMessage).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn unknown_types_and_fields_are_refused() {
    let scene = Scene::new(&[]).await;
    for message in [
        r#"{"type":"pling","id":1}"#,
        r#"{"type":"ping","id":1,"color":"red"}"#,
        r#"{"type":"ping","id":1,"stream":"events"}"#,
    ] {
        ends_with(&scene, Codec::Json, text(message), Code::UnknownField).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn another_version_or_cluster_is_refused() {
    let scene = Scene::new(&["broker.cluster=ours"]).await;
    for (message, code) in [
        (hello(2, None), Code::UnsupportedVersion),
        (hello(1, Some("theirs")), Code::OtherCluster),
    ] {
        let mut wire = Wire::mute(scene.broker.address(), Codec::Msgpack).await;
        wire.send(&message).await;
        wire.refusal(code).await;
        wire.closed_after(code).await;
    }
    let mut wire = Wire::mute(scene.broker.address(), Codec::Msgpack).await;
    wire.send(&hello(1, Some("ours"))).await;
    wire.next().await.unwrap();
    wire.lives().await;
    scene.end().await;
}

/// Lengths up to what the formats can say, in messages of a few bytes.
#[tokio::test]
async fn lengths_that_lie_take_no_memory() {
    let scene = Scene::new(&[]).await;
    let before = scene.broker.peak_memory();
    let lies: [&[u8]; 5] = [
        b"\xdf\xff\xff\xff\xff",
        b"\x82\xa4type\xdb\xff\xff\xff\xff",
        b"\x84\xa4type\xa7publish\xa2id\x01\xa6stream\xa6events\xa7records\xdd\x7f\xff\xff\xff",
        b"\x84\xa4type\xa7publish\xa2id\x01\xa6stream\xa6events\xa5batch\xc6\x7f\xff\xff\xff",
        b"\x84\xa4type\xa7publish\xa2id\x01\xa6stream\xa6events\xa7records\x91\xdf\x7f\xff\xff\xff",
    ];
    for lie in lies {
        for _ in 0..20 {
            ends_with(&scene, Codec::Msgpack, binary(lie), Code::MalformedMessage).await;
        }
    }
    for length in [1u64 << 31, 1 << 40, (1 << 63) - 1] {
        let mut wire = scene.broker.connect().await;
        let mut head = vec![0x82, 0x80 | 127];
        head.extend(length.to_be_bytes());
        head.extend([0; 4]);
        wire.send_bytes(&head).await.unwrap();
        wire.refusal(Code::MessageTooLarge).await;
        wire.closed_after(Code::MessageTooLarge).await;
    }
    let grown = scene.broker.peak_memory() - before;
    assert!(grown < 48 << 20, "grown by {grown} bytes");
    scene.end().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_before_it_is_read() {
    let scene = Scene::new(&["limits.message_bytes=64KiB"]).await;
    let mut wire = scene.broker.connect().await;
    let large = Message::binary(vec![0; 64 * 1024 + 1]);
    // The broker may hang up before all of it is sent.
    let _ = wire.try_send_raw(large).await;
    wire.refusal(Code::MessageTooLarge).await;
    wire.closed_after(Code::MessageTooLarge).await;
    scene.end().await;
}

#[tokio::test]
async fn a_connection_cut_within_a_frame_is_nobody_elses_business() {
    let scene = Scene::new(&[]).await;
    for sent in 1..14 {
        let mut wire = scene.broker.connect().await;
        let frame = [0x82, 0xfe, 0x10, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        wire.send_bytes(&frame[..sent]).await.unwrap();
        drop(wire);
    }
    scene.is_undisturbed().await;
    scene.end().await;
}

#[tokio::test]
async fn frames_that_break_the_websocket_protocol_are_refused() {
    let scene = Scene::new(&[]).await;
    let broken: [&[u8]; 4] = [
        // Without a mask, which clients must have.
        &[0x82, 1, 0x80],
        // A reserved bit.
        &[0xc2, 0x81, 0, 0, 0, 0, 0x80],
        // A reserved kind.
        &[0x83, 0x81, 0, 0, 0, 0, 0x80],
        // A continuation of nothing.
        &[0x80, 0x81, 0, 0, 0, 0, 0x80],
    ];
    for frame in broken {
        let mut wire = scene.broker.connect().await;
        wire.send_bytes(frame).await.unwrap();
        wire.refusal(Code::MalformedMessage).await;
        wire.closed_after(Code::MalformedMessage).await;
    }
    scene.end().await;
}
