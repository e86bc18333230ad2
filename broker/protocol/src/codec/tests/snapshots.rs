//! What every message looks like on the wire. A change here is a change of the protocol.

use std::borrow::Cow;
use std::fmt::Write;

use anabranch_core::cursor::Order;
use anabranch_core::id::{BrokerId, Epoch, Offset, Origin, PartitionId, Sequence};
use anabranch_core::producer::ProducerStamp;
use expect_test::{Expect, expect};

use super::super::*;
use crate::error::{Code, Problem};
use crate::record::Record;
use crate::ws::*;

/// `MessagePack` with printable runs as text, other bytes as hex.
fn readable(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut in_text = false;
    for (at, &byte) in bytes.iter().enumerate() {
        let printable = |b: &u8| b.is_ascii_graphic() || *b == b' ';
        let run = bytes[at..].iter().take_while(|b| printable(b)).count();
        let starts = run >= 2 && byte.is_ascii_alphanumeric();
        if printable(&byte) && (in_text || starts) {
            if !in_text {
                text.push_str(" '");
            }
            text.push(char::from(byte));
            in_text = true;
        } else {
            if in_text {
                text.push('\'');
            }
            write!(text, " {byte:02x}").unwrap();
            in_text = false;
        }
    }
    if in_text {
        text.push('\'');
    }
    text.trim_start().to_owned()
}

fn check_client(message: &ClientMessage<'_>, expected: &Expect) {
    let encoded = Codec::ALL.map(|codec| {
        let mut bytes = Vec::new();
        codec.encode_client(message, &mut bytes);
        bytes
    });
    check(&encoded, expected);
}

fn check_server(message: &ServerMessage<'_>, expected: &Expect) {
    let encoded = Codec::ALL.map(|codec| {
        let mut bytes = Vec::new();
        codec.encode_server(message, &mut bytes);
        bytes
    });
    check(&encoded, expected);
}

fn check([msgpack, json]: &[Vec<u8>; 2], expected: &Expect) {
    let json = std::str::from_utf8(json).unwrap();
    expected.assert_eq(&format!("{json}\n{}\n", readable(msgpack)));
}

fn origin() -> Origin {
    Origin {
        broker: BrokerId::new(0x00c0_ffee),
        epoch: Epoch::new(1),
    }
}

const ONE: SubscriptionId = SubscriptionId::new(1);

#[test]
fn hello_of_a_client() {
    let message = ClientMessage::Hello(Hello {
        version: VERSION,
        client: Some("python".into()),
        cluster: Some("dev".into()),
    });
    check_client(
        &message,
        &expect![[r#"
        {"type":"hello","version":1,"client":"python","cluster":"dev"}
        84 a4 'type' a5 'hello' a7 'version' 01 a6 'client' a6 'python' a7 'cluster' a3 'dev'
    "#]],
    );
}

#[test]
fn publish_of_records() {
    let records = vec![
        Record::put(b"AA1".as_slice(), br#"{"delay":12}"#.as_slice()).at(1_357_020_000_000),
        Record::put(b"\xff".as_slice(), b"\x00".as_slice()).with_header("trace", b"7".as_slice()),
        Record::delete(b"AA2".as_slice()),
    ];
    let message = ClientMessage::Publish(Publish {
        id: 1,
        stream: "flights".into(),
        partition: Some(PartitionId::new(0)),
        payload: Payload::Records(records),
        producer: Some(ProducerStamp {
            id: 300,
            epoch: 0,
            sequence: 70_000,
        }),
        ack: AckLevel::Memory,
    });
    check_client(
        &message,
        &expect![[r#"
        {"type":"publish","id":1,"stream":"flights","partition":0,"producer":{"id":300,"epoch":0,"sequence":70000},"ack":"memory","records":[{"timestamp":1357020000000,"key":"AA1","value":{"delay":12}},{"key_base64":"/w==","value_base64":"AA==","headers":{"trace":"7"}},{"key":"AA2","op":"delete"}]}
        87 a4 'type' a7 'publish' a2 'id' 01 a6 'stream' a7 'flights' a9 'partition' 00 a8 'producer' 83 a2 'id' cd 01 2c a5 'epoch' 00 a8 'sequence' ce 00 01 11 70 a3 'ack' a6 'memory' a7 'records' 93 83 a9 'timestamp' cf 00 00 01 3b f4 b1 ef 00 a3 'key' c4 03 'AA1' a5 'value' c4 0c 7b 22 'delay":12}' 83 a3 'key' c4 01 ff a5 'value' c4 01 00 a7 'headers' 81 a5 'trace' c4 01 37 82 a3 'key' c4 03 'AA2' a2 'op' a6 'delete'
    "#]],
    );
}

#[test]
fn publish_of_a_batch() {
    let message = ClientMessage::Publish(Publish {
        id: 2,
        stream: "flights".into(),
        partition: None,
        payload: Payload::Batch(Cow::Borrowed(b"\x00\x01\x02")),
        producer: None,
        ack: AckLevel::Disk,
    });
    check_client(
        &message,
        &expect![[r#"
        {"type":"publish","id":2,"stream":"flights","batch":"AAEC"}
        84 a4 'type' a7 'publish' a2 'id' 02 a6 'stream' a7 'flights' a5 'batch' c4 03 00 01 02
    "#]],
    );
}

#[test]
fn subscribe() {
    let message = ClientMessage::Subscribe(Subscribe {
        subscription: ONE,
        stream: "flights".into(),
        partitions: vec![PartitionId::new(0), PartitionId::new(300)],
        keys: KeyFilter::Prefix(Cow::Borrowed(b"AA")),
        from: Some("earliest".into()),
        order: Order::Total,
        format: Format::Batch,
        credit: 1_048_576,
    });
    check_client(
        &message,
        &expect![[r#"
        {"type":"subscribe","subscription":1,"stream":"flights","partitions":[0,300],"prefix":"AA","from":"earliest","order":"total","format":"batch","credit":1048576}
        89 a4 'type' a9 'subscribe' ac 'subscription' 01 a6 'stream' a7 'flights' aa 'partitions' 92 00 cd 01 2c a6 'prefix' c4 02 'AA' a4 'from' a8 'earliest' a5 'order' a5 'total' a6 'format' a5 'batch' a6 'credit' ce 00 10 00 00
    "#]],
    );
}

#[test]
fn credit_unsubscribe_and_ping() {
    let subscription = ONE;
    let credit = ClientMessage::Credit {
        subscription,
        bytes: 65_536,
    };
    check_client(
        &credit,
        &expect![[r#"
        {"type":"credit","subscription":1,"bytes":65536}
        83 a4 'type' a6 'credit' ac 'subscription' 01 a5 'bytes' ce 00 01 00 00
    "#]],
    );
    check_client(
        &ClientMessage::Unsubscribe { subscription },
        &expect![[r#"
        {"type":"unsubscribe","subscription":1}
        82 a4 'type' ab 'unsubscribe' ac 'subscription' 01
    "#]],
    );
    check_client(
        &ClientMessage::Ping { id: 9 },
        &expect![[r#"
        {"type":"ping","id":9}
        82 a4 'type' a4 'ping' a2 'id' 09
    "#]],
    );
}

#[test]
fn hello_of_a_broker() {
    let message = ServerMessage::Hello(Welcome {
        version: VERSION,
        server: "0.1.0".into(),
        cluster: "dev".into(),
        broker: "0000000000c0ffee".into(),
        region: "local".into(),
        limits: Limits {
            message_bytes: 16_777_216,
            in_flight_bytes: 67_108_864,
        },
    });
    check_server(
        &message,
        &expect![[r#"
        {"type":"hello","version":1,"server":"0.1.0","cluster":"dev","broker":"0000000000c0ffee","region":"local","limits":{"message_bytes":16777216,"in_flight_bytes":67108864}}
        87 a4 'type' a5 'hello' a7 'version' 01 a6 'server' a5 '0.1.0' a7 'cluster' a3 'dev' a6 'broker' b0 '0000000000c0ffee' a6 'region' a5 'local' a6 'limits' 82 ad 'message_bytes' ce 01 00 00 00 af 'in_flight_bytes' ce 04 00 00 00
    "#]],
    );
}

#[test]
fn ack() {
    let row = |id, offset, index| AckRow {
        id,
        partition: PartitionId::new(0),
        offset,
        records: 3,
        index,
    };
    let message = ServerMessage::Ack(Ack {
        origin: origin(),
        sequence: Sequence::new(7),
        durability: Durability::Disk,
        token: "dAgAA".into(),
        rows: vec![
            row(1, Some(Offset::new(0)), Some(0)),
            row(2, Some(Offset::new(0)), None),
            row(3, None, None),
        ],
    });
    check_server(
        &message,
        &expect![[r#"
        {"type":"ack","origin":"0000000000c0ffee.1","sequence":7,"durability":"disk","token":"dAgAA","acks":[[1,0,0,3,0],[2,0,0,3,null],[3,0,null,3,null]]}
        86 a4 'type' a3 'ack' a6 'origin' b2 '0000000000c0ffee.1' a8 'sequence' 07 aa 'durability' a4 'disk' a5 'token' a5 'dAgAA' a4 'acks' dd 00 00 00 03 95 01 00 00 03 00 95 02 00 00 03 c0 95 03 00 c0 03 c0
    "#]],
    );
}

fn deliver_of(payload: PartPayload<'static>) -> ServerMessage<'static> {
    ServerMessage::Deliver(Deliver {
        subscription: ONE,
        cursor: "YwgAA".into(),
        origin: origin(),
        sequence: Sequence::new(7),
        timestamp: 1_357_020_000_000,
        parts: vec![Part {
            partition: PartitionId::new(0),
            offset: Offset::new(1000),
            index: 0,
            payload,
        }],
    })
}

#[test]
fn deliver() {
    let record = Record::put(b"AA1".as_slice(), b"{}".as_slice())
        .with_header("trace", b"\xff".as_slice())
        .at(1_357_020_000_000);
    let delivered = Delivered {
        partition: None,
        offset: Offset::new(1000),
        record,
    };
    check_server(
        &deliver_of(PartPayload::Records(vec![delivered])),
        &expect![[r#"
            {"type":"deliver","subscription":1,"cursor":"YwgAA","origin":"0000000000c0ffee.1","sequence":7,"timestamp":1357020000000,"parts":[{"partition":0,"offset":1000,"index":0,"records":[{"offset":1000,"timestamp":1357020000000,"key":"AA1","value":{},"headers":{"trace":{"base64":"/w=="}}}]}]}
            87 a4 'type' a7 'deliver' ac 'subscription' 01 a6 'cursor' a5 'YwgAA' a6 'origin' b2 '0000000000c0ffee.1' a8 'sequence' 07 a9 'timestamp' cf 00 00 01 3b f4 b1 ef 00 a5 'parts' dd 00 00 00 01 84 a9 'partition' 00 a6 'offset' cd 03 e8 a5 'index' 00 a7 'records' 91 85 a6 'offset' cd 03 e8 a9 'timestamp' cf 00 00 01 3b f4 b1 ef 00 a3 'key' c4 03 'AA1' a5 'value' c4 02 7b 7d a7 'headers' 81 a5 'trace' c4 01 ff
        "#]],
    );
    check_server(
        &deliver_of(PartPayload::Batch(Cow::Borrowed(b"\x00\x01\x02"))),
        &expect![[r#"
            {"type":"deliver","subscription":1,"cursor":"YwgAA","origin":"0000000000c0ffee.1","sequence":7,"timestamp":1357020000000,"parts":[{"partition":0,"offset":1000,"index":0,"batch":"AAEC"}]}
            87 a4 'type' a7 'deliver' ac 'subscription' 01 a6 'cursor' a5 'YwgAA' a6 'origin' b2 '0000000000c0ffee.1' a8 'sequence' 07 a9 'timestamp' cf 00 00 01 3b f4 b1 ef 00 a5 'parts' dd 00 00 00 01 84 a9 'partition' 00 a6 'offset' cd 03 e8 a5 'index' 00 a5 'batch' c4 03 00 01 02
        "#]],
    );
}

#[test]
fn rows_live_and_unsubscribed() {
    let row = Row {
        key: Cow::Borrowed(b"AA"),
        value: Cow::Borrowed(br#"{"name":"American"}"#),
    };
    let rows = ServerMessage::Rows {
        subscription: ONE,
        rows: vec![row],
    };
    check_server(
        &rows,
        &expect![[r#"
        {"type":"rows","subscription":1,"rows":[{"key":"AA","value":{"name":"American"}}]}
        83 a4 'type' a4 'rows' ac 'subscription' 01 a4 'rows' 91 82 a3 'key' c4 02 'AA' a5 'value' c4 13 7b 22 'name":"American"}'
    "#]],
    );
    let live = ServerMessage::Live {
        subscription: ONE,
        cursor: "YwgAA".into(),
    };
    check_server(
        &live,
        &expect![[r#"
        {"type":"live","subscription":1,"cursor":"YwgAA"}
        83 a4 'type' a4 'live' ac 'subscription' 01 a6 'cursor' a5 'YwgAA'
    "#]],
    );
    let unsubscribed = ServerMessage::Unsubscribed {
        subscription: ONE,
        cursor: "YwgAA".into(),
    };
    check_server(
        &unsubscribed,
        &expect![[r#"
        {"type":"unsubscribed","subscription":1,"cursor":"YwgAA"}
        83 a4 'type' ac 'unsubscribed' ac 'subscription' 01 a6 'cursor' a5 'YwgAA'
    "#]],
    );
}

#[test]
fn error_and_pong() {
    let error = ServerMessage::Error(ErrorMessage {
        id: Some(4),
        subscription: None,
        problem: Problem::new(Code::NoSuchStream, "stream \"fligths\" does not exist"),
    });
    check_server(
        &error,
        &expect![[r#"
        {"type":"error","id":4,"code":"AB1501","message":"stream \"fligths\" does not exist","retryable":false}
        85 a4 'type' a5 'error' a2 'id' 04 a4 'code' a6 'AB1501' a7 'message' bf 'stream "fligths" does not exist' a9 'retryable' c2
    "#]],
    );
    let ended = ServerMessage::Error(ErrorMessage {
        id: None,
        subscription: Some(ONE),
        problem: Problem::new(Code::SlowSubscriber, "too slow").with_cursor("YwgAA"),
    });
    check_server(
        &ended,
        &expect![[r#"
        {"type":"error","subscription":1,"code":"AB2201","message":"too slow","retryable":true,"cursor":"YwgAA"}
        86 a4 'type' a5 'error' ac 'subscription' 01 a4 'code' a6 'AB2201' a7 'message' a8 'too slow' a9 'retryable' c3 a6 'cursor' a5 'YwgAA'
    "#]],
    );
    check_server(
        &ServerMessage::Pong { id: 9 },
        &expect![[r#"
        {"type":"pong","id":9}
        82 a4 'type' a4 'pong' a2 'id' 09
    "#]],
    );
}
