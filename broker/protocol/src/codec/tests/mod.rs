//! Both encodings together.

mod documented;
mod peer;
mod properties;
mod snapshots;

use super::*;
use crate::error::Code;

fn refused(codec: Codec, message: &[u8]) -> (Code, String) {
    let error = codec
        .decode_client(codec.frame_kind(), message)
        .expect_err("the message is wrong");
    (error.reason.code(), error.to_string())
}

#[test]
fn a_frame_of_the_wrong_kind_is_refused() {
    for (codec, kind) in [
        (Codec::Msgpack, FrameKind::Text),
        (Codec::Json, FrameKind::Binary),
    ] {
        let error = codec.decode_client(kind, b"{}").unwrap_err();
        assert_eq!(error.reason.code(), Code::WrongFrameKind);
        let error = codec.decode_server(kind, b"{}").unwrap_err();
        assert_eq!(error.reason.code(), Code::WrongFrameKind);
    }
}

#[test]
fn the_first_known_subprotocol_is_taken() {
    assert_eq!(
        Codec::offered("kafka, anabranch.v1.json ,anabranch.v1.msgpack"),
        Some(Codec::Json)
    );
    assert_eq!(Codec::offered("anabranch.v2.json"), None);
    assert_eq!(Codec::offered(""), None);
}

#[test]
fn json_that_is_no_message_is_refused_with_a_code() {
    let cases: &[(&str, Code)] = &[
        ("", Code::MalformedMessage),
        ("[]", Code::MalformedMessage),
        ("{}", Code::MalformedMessage),
        (r#"{"type":"ping"}"#, Code::MalformedMessage),
        (r#"{"type":"ping","id":1}x"#, Code::MalformedMessage),
        (r#"{"type":"ping","id":1,"id":2}"#, Code::MalformedMessage),
        (r#"{"type":"ping","id":-1}"#, Code::MalformedMessage),
        (r#"{"type":"ping","id":"1"}"#, Code::MalformedMessage),
        (r#"{"type":"pink","id":1}"#, Code::UnknownField),
        (r#"{"type":"ping","id":1,"extra":1}"#, Code::UnknownField),
        (r#"{"type":"ping","id":1,"stream":"x"}"#, Code::UnknownField),
        (
            r#"{"type":"publish","id":1,"stream":"x"}"#,
            Code::MalformedMessage,
        ),
        (
            r#"{"type":"publish","id":1,"stream":"x","records":[],"ack":"soon"}"#,
            Code::BadParameter,
        ),
        (
            r#"{"type":"publish","id":1,"stream":"x","batch":"*"}"#,
            Code::BadParameter,
        ),
        (
            r#"{"type":"publish","id":1,"stream":"x","batch":"","records":[]}"#,
            Code::BadParameter,
        ),
        (
            r#"{"type":"publish","id":1,"stream":"x","batch":"","partition":65536}"#,
            Code::BadParameter,
        ),
        (
            r#"{"type":"publish","id":1,"stream":"x","records":[{"op":"patch"}]}"#,
            Code::MalformedMessage,
        ),
        (
            r#"{"type":"publish","id":1,"stream":"x","records":[{"keys":1}]}"#,
            Code::UnknownField,
        ),
        (
            r#"{"type":"subscribe","subscription":1,"stream":"x","credit":1,"key":"a","prefix":"b"}"#,
            Code::BadParameter,
        ),
        (
            r#"{"type":"subscribe","subscription":4294967296,"stream":"x","credit":1}"#,
            Code::BadParameter,
        ),
    ];
    for (text, code) in cases {
        let (got, words) = refused(Codec::Json, text.as_bytes());
        assert_eq!(got, *code, "{text}: {words}");
    }
}

#[test]
fn an_error_says_which_publish_it_is_about() {
    let text = br#"{"type":"publish","id":7,"stream":"x"}"#;
    let error = Codec::Json
        .decode_client(FrameKind::Text, text)
        .unwrap_err();
    assert_eq!(error.id, Some(7));
    assert_eq!(
        error.to_string(),
        "a publish message needs the field records or batch"
    );
}

fn packed(value: &serde_json::Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &unparsed(value)).unwrap();
    bytes
}

fn unparsed(value: &serde_json::Value) -> rmpv::Value {
    use serde_json::Value;
    match value {
        Value::Null => rmpv::Value::Nil,
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => number.as_u64().expect("small numbers only").into(),
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => rmpv::Value::Array(items.iter().map(unparsed).collect()),
        Value::Object(fields) => {
            let fields = fields.iter();
            rmpv::Value::Map(
                fields
                    .map(|(n, v)| (n.as_str().into(), unparsed(v)))
                    .collect(),
            )
        }
    }
}

#[test]
fn messagepack_that_is_no_message_is_refused_with_a_code() {
    use serde_json::json;
    let cases = [
        (json!([]), Code::MalformedMessage),
        (json!(1), Code::MalformedMessage),
        (json!({}), Code::MalformedMessage),
        (json!({"type": 1}), Code::MalformedMessage),
        (json!({"type": "ping"}), Code::MalformedMessage),
        (json!({"type": "ping", "id": "x"}), Code::MalformedMessage),
        (json!({"type": "pink"}), Code::UnknownField),
        (
            json!({"type": "ping", "id": 1, "extra": [[[]]]}),
            Code::UnknownField,
        ),
        (
            json!({"type": "ping", "id": 1, "bytes": 1}),
            Code::UnknownField,
        ),
        (
            json!({"type": "publish", "id": 1, "stream": "x", "records": {}}),
            Code::MalformedMessage,
        ),
        (
            json!({"type": "publish", "id": 1, "stream": "x", "records": [{"k": 1}]}),
            Code::UnknownField,
        ),
        (
            json!({"type": "publish", "id": 1, "stream": "x", "records": [{"op": "x"}]}),
            Code::BadParameter,
        ),
        (
            json!({"type": "publish", "id": 1, "stream": "x", "batch": 5}),
            Code::MalformedMessage,
        ),
    ];
    for (value, code) in cases {
        let (got, words) = refused(Codec::Msgpack, &packed(&value));
        assert_eq!(got, code, "{value}: {words}");
    }
    let mut trailing = packed(&json!({"type": "ping", "id": 1}));
    trailing.push(0);
    assert_eq!(
        refused(Codec::Msgpack, &trailing).1,
        "1 bytes follow the message"
    );
}

#[test]
fn lengths_that_lie_are_refused_before_memory_is_taken() {
    // {"records": [ 4,294,967,295 items
    let mut message = vec![0x81, 0xa7];
    message.extend_from_slice(b"records");
    message.extend_from_slice(&[0xdd, 0xff, 0xff, 0xff, 0xff, 0xc0]);
    assert_eq!(refused(Codec::Msgpack, &message).0, Code::MalformedMessage);
    // {"batch": 4 GiB
    let mut message = vec![0x81, 0xa5];
    message.extend_from_slice(b"batch");
    message.extend_from_slice(&[0xc6, 0xff, 0xff, 0xff, 0xff, 0x00]);
    assert_eq!(refused(Codec::Msgpack, &message).0, Code::MalformedMessage);
    // A map of 4,294,967,295 fields.
    assert_eq!(
        refused(Codec::Msgpack, &[0xdf, 0xff, 0xff, 0xff, 0xff]).0,
        Code::MalformedMessage
    );
}

#[test]
fn deep_nests_are_refused_without_recursion() {
    let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
    let text =
        format!(r#"{{"type":"publish","id":1,"stream":"x","records":[{{"value":{deep}}}]}}"#);
    let (code, words) = refused(Codec::Json, text.as_bytes());
    assert_eq!(code, Code::MalformedMessage, "{words}");
    assert_eq!(
        refused(Codec::Json, deep.as_bytes()).0,
        Code::MalformedMessage
    );
    let nested = vec![0x91; 1_000_000];
    assert_eq!(refused(Codec::Msgpack, &nested).0, Code::MalformedMessage);
}

#[test]
fn fields_of_a_newer_broker_are_passed_over() {
    use serde_json::json;
    let value = json!({"type": "pong", "id": 5, "moon": {"phase": [1, 2, {"x": null}]}});
    let pong = ServerMessage::Pong { id: 5 };
    let bytes = packed(&value);
    assert_eq!(
        Codec::Msgpack.decode_server(FrameKind::Binary, &bytes),
        Ok(pong.clone())
    );
    let text = value.to_string();
    assert_eq!(
        Codec::Json.decode_server(FrameKind::Text, text.as_bytes()),
        Ok(pong)
    );
}
