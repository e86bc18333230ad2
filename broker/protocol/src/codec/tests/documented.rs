//! What the documentation shows is what the implementation does.

use anabranch_core::batch::{Batch, Check};
use bytes::Bytes;

use super::super::*;
use crate::error::{Code, Problem};
use crate::record::Record;
use crate::record::json::{parse_delivered, parse_record};
use crate::ws::{Payload, shared};

const WEBSOCKET: &str = include_str!("../../../../../docs/protocol/websocket.md");
const HTTP: &str = include_str!("../../../../../docs/protocol/http.md");

/// The fenced blocks of this language.
fn blocks(text: &'static str, language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let after = text.split(&fence[..]).skip(1);
    after
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

fn bytes_of(block: &str) -> Bytes {
    let code = block.lines().filter_map(|line| line.split('#').next());
    let digits = code.flat_map(|line| line.split(' '));
    let parsed = digits.filter(|pair| !pair.is_empty());
    parsed
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

#[test]
fn every_json_message_of_the_documentation_is_one() {
    let messages = blocks(WEBSOCKET, "json");
    assert!(messages.len() >= 17, "{}", messages.len());
    for message in messages {
        let text = message.trim().as_bytes();
        let client = Codec::Json.decode_client(FrameKind::Text, text);
        let server = Codec::Json.decode_server(FrameKind::Text, text);
        assert!(
            client.is_ok() || server.is_ok(),
            "{message}: {client:?}, {server:?}"
        );
    }
}

#[test]
fn the_example_is_right_byte_by_byte() {
    let [publish, ack] = blocks(WEBSOCKET, "hex")[..] else {
        panic!("the page has two blocks of bytes");
    };
    let message = bytes_of(publish);
    let decoded = Codec::Msgpack.decode_client(FrameKind::Binary, &message);
    let Ok(ClientMessage::Publish(publish)) = decoded else {
        panic!("{decoded:?}");
    };
    let mut ours = Vec::new();
    let again = ClientMessage::Publish(publish.clone());
    Codec::Msgpack.encode_client(&again, &mut ours);
    assert_eq!(ours, message, "the order is ours as well");
    let Payload::Batch(batch) = publish.payload else {
        panic!("a batch");
    };
    let batch = Batch::parse(shared(batch, &message), Check::Records).unwrap();
    let records = batch.records().unwrap();
    let record = Record::from(&records.iter().next().unwrap().unwrap());
    let expected = Record::put(b"AA1".as_slice(), br#"{"delay":12}"#.as_slice())
        .with_header("src", b"7".as_slice())
        .at(1_357_020_000_000);
    assert_eq!(record, expected);
    let ack = bytes_of(ack);
    let decoded = Codec::Msgpack.decode_server(FrameKind::Binary, &ack);
    let Ok(ServerMessage::Ack(ack)) = decoded else {
        panic!("{decoded:?}");
    };
    assert_eq!(ack.rows[0].offset.map(|offset| offset.get()), Some(1000));
}

#[test]
fn every_error_code_is_in_the_table() {
    for &code in Code::ALL.iter().filter(|&&code| code != Code::Unknown) {
        let retry = if code.retryable() { "yes" } else { "no" };
        let row = format!(
            "| `{code}` | {} | {retry} | {} |",
            code.http_status(),
            code.title()
        );
        assert!(HTTP.contains(&row), "missing: {row}");
    }
}

#[test]
fn the_records_and_the_problem_of_the_http_page_are_read() {
    let blocks = blocks(HTTP, "json");
    let having = |part: &str| {
        blocks
            .iter()
            .find(|block| block.contains(part))
            .unwrap()
            .trim()
    };
    assert!(parse_record(having("\"headers\"").as_bytes()).is_ok());
    let page: crate::http::RecordsPage = serde_json::from_str(having("\"cursor\"")).unwrap();
    assert!(parse_delivered(page.records[0].get().as_bytes()).is_ok());
    let problem: Problem = serde_json::from_str(having("urn:anabranch")).unwrap();
    assert_eq!(problem.code, Code::CursorTooOld);
    let _: crate::http::PublishAnswer = serde_json::from_str(having("\"durability\"")).unwrap();
    let _: crate::http::StreamInfo = serde_json::from_str(having("\"merge\"")).unwrap();
    let _: Vec<crate::http::TransactionOperation> =
        serde_json::from_str(having("\"transfers\"")).unwrap();
}
