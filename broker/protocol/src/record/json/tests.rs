//! Both directions.

use super::*;
use proptest::prelude::*;

fn written(record: &Record<'_>) -> String {
    let mut out = Vec::new();
    write_record(&mut out, record);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_value_is_kept_as_it_was_written() {
    let text = br#"{"key":"k","value": {"b":1.50, "a":1e3}}"#;
    let record = parse_record(text).unwrap();
    assert_eq!(
        record.value.as_deref(),
        Some(br#"{"b":1.50, "a":1e3}"#.as_slice())
    );
    assert_eq!(
        written(&record),
        r#"{"key":"k","value":{"b":1.50, "a":1e3}}"#
    );
}

#[test]
fn null_is_a_value_and_none_is_none() {
    let null = parse_record(br#"{"value":null}"#).unwrap();
    assert_eq!(null.value.as_deref(), Some(b"null".as_slice()));
    assert_eq!(parse_record(b"{}").unwrap().value, None);
    assert_eq!(written(&Record::default()), "{}");
}

#[test]
fn what_is_not_text_or_json_travels_as_base64() {
    let record = Record::put(b"\xfe".as_slice(), b"not json".as_slice())
        .with_header("bin", b"\xfe".as_slice())
        .with_header("text", b"t".as_slice());
    let text = written(&record);
    let expected = r#"{"key_base64":"/g==","value_base64":"bm90IGpzb24=","headers":{"bin":{"base64":"/g=="},"text":"t"}}"#;
    assert_eq!(text, expected);
    assert_eq!(parse_record(text.as_bytes()).unwrap(), record);
}

#[test]
fn line_breaks_of_a_stored_value_do_not_break_lines() {
    let record = Record::value(b"{\n \"a\": \"x\\n\",\r\n \"b\": 2 }\n".as_slice());
    assert_eq!(written(&record), r#"{"value":{  "a": "x\n",   "b": 2 }}"#);
}

#[test]
fn errors_say_which_record_and_what() {
    let words = |text: &str| parse_ndjson(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        words("{}\n\n{\"op\":\"patch\"}\n"),
        "record 1: op must be \"put\" or \"delete\""
    );
    assert_eq!(
        words("{\"key\":\"a\",\"key_base64\":\"\"}"),
        "record 0: key must be left out when there is a key_base64"
    );
    assert!(words("{\"kee\":\"a\"}").starts_with("record 0: unknown field `kee`, expected"));
    assert!(words("{").starts_with("record 0: EOF"));
    let error = parse_array(br#"[{}, {"key": 5}]"#).unwrap_err();
    assert!(error.to_string().starts_with("record 1: invalid type"));
    assert!(parse_array(b"{}").is_err());
}

#[test]
fn values_nest_only_so_deep() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let record = |depth| format!("{{\"value\":{}}}", nested(depth));
    assert!(parse_record(record(MAX_JSON_DEPTH).as_bytes()).is_ok());
    assert!(parse_record(record(MAX_JSON_DEPTH + 1).as_bytes()).is_err());
    assert_eq!(as_json(nested(200_000).as_bytes()), None);
    // Brackets in strings do not nest.
    let text = format!("\"\\\"{}\"", "[".repeat(1000));
    assert!(as_json(text.as_bytes()).is_some());
}

#[test]
fn rows_and_delivered_records_read_back() {
    let mut out = Vec::new();
    write_row(&mut out, b"k", b"\xff");
    assert_eq!(out, br#"{"key":"k","value_base64":"/w=="}"#);
    let (key, value) = parse_row(&out).unwrap();
    assert_eq!(
        (key.as_ref(), value.as_ref()),
        (b"k".as_slice(), b"\xff".as_slice())
    );
    let text = br#"{"partition":2,"offset":9,"timestamp":5,"key":"k","new":{}}"#;
    let delivered = parse_delivered(text).unwrap();
    assert_eq!(delivered.partition, Some(PartitionId::new(2)));
    assert_eq!(delivered.offset, Offset::new(9));
    assert_eq!(delivered.record.timestamp, Some(5));
}

proptest! {
    #[test]
    fn garbage_never_panics(text in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = parse_record(&text);
        let _ = parse_array(&text);
        let _ = parse_ndjson(&text);
        let _ = as_json(&text);
    }

    #[test]
    fn what_is_embedded_is_one_line_of_json(text in "[\\[\\]{}\",:0-9a-z \n\r\\\\]{0,30}") {
        if let Some(json) = as_json(text.as_bytes()) {
            prop_assert!(!json.contains(['\n', '\r']));
            let left: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(left, serde_json::from_str::<serde_json::Value>(&text).unwrap());
        }
    }
}
