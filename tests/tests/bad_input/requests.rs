//! HTTP requests that cannot be answered.

use anabranch_tests::http::Http;
use serde_json::{Value, json};

use super::scene::Scene;

/// `METHOD PATH BODY`, and the status and code of the refusal.
type Case<'a> = (&'a str, &'a str, &'a str, u16, &'a str);

async fn refused(http: &Http, cases: &[Case<'_>]) {
    for &(method, path, body, status, code) in cases {
        let kind = [("content-type", "application/json")];
        let answer = http.send(method, path, &kind, body.to_owned()).await;
        let shown = format!("{method} {path} {}", &body[..body.len().min(80)]);
        assert_eq!(answer.status, status, "{shown}: {answer:?}");
        let _ = answer.problem(status, code);
    }
}

#[tokio::test]
async fn streams_that_cannot_be_are_refused() {
    let scene = Scene::new(&[]).await;
    let refused_definition = |body, status, code| ("POST", "/v1/streams", body, status, code);
    let cases = [
        refused_definition(r#"{"name":"a/b"}"#, 400, "AB1101"),
        refused_definition(r#"{"name":"_a"}"#, 400, "AB1101"),
        refused_definition(r#"{"name":"a","color":1}"#, 400, "AB1102"),
        refused_definition(r#"{"name":"a","partitions":0}"#, 400, "AB1102"),
        refused_definition(r#"{"name":"a","merge":"document"}"#, 400, "AB1102"),
        refused_definition("[]", 400, "AB1102"),
        refused_definition("{", 400, "AB1008"),
        refused_definition(r#"{"name":"events","merge":"lww"}"#, 409, "AB1503"),
    ];
    refused(&scene.broker.http(), &cases).await;
    scene.end().await;
}

#[tokio::test]
async fn streams_that_are_not_there_or_cannot_change_are_refused() {
    let scene = Scene::new(&[]).await;
    let (nowhere, events) = ("/v1/streams/fligths", "/v1/streams/events");
    let cases = [
        ("GET", nowhere, "", 404, "AB1501"),
        ("GET", "/v1/streams/a%2Fb", "", 400, "AB1101"),
        ("GET", "/v1/streams/..%2F..%2Fetc", "", 400, "AB1101"),
        ("DELETE", nowhere, "", 404, "AB1501"),
        ("PATCH", nowhere, "{}", 404, "AB1501"),
        ("PATCH", events, r#"{"merge":"lww"}"#, 409, "AB1103"),
        ("PATCH", events, r#"{"partitions":3}"#, 409, "AB1103"),
        ("DELETE", "/v1/streams/_streams", "", 400, "AB1207"),
        (
            "POST",
            "/v1/streams/events/trim",
            r#"{"before":"x"}"#,
            400,
            "AB1007",
        ),
        (
            "POST",
            "/v1/streams/fligths/trim",
            r#"{"before":1}"#,
            404,
            "AB1501",
        ),
    ];
    refused(&scene.broker.http(), &cases).await;
    scene.end().await;
}

#[tokio::test]
async fn records_that_cannot_be_published_are_refused() {
    let scene = Scene::new(&[]).await;
    let (events, rows) = ("/v1/streams/events/records", "/v1/streams/rows/records");
    let long_key = json!([{"key": "k".repeat(4097), "value": 1}]).to_string();
    let deep = format!("[{{\"value\":{}1{}}}]", "[".repeat(200), "]".repeat(200));
    let http = scene.broker.http();
    refused(
        &http,
        &[
            ("POST", "/v1/streams/fligths/records", "[{}]", 404, "AB1501"),
            (
                "POST",
                "/v1/streams/_streams/records",
                r#"[{"key":"a"}]"#,
                400,
                "AB1207",
            ),
            ("POST", events, "nothing", 400, "AB1008"),
            ("POST", events, "", 400, "AB1008"),
            ("POST", events, "[]", 400, "AB1007"),
            ("POST", events, r#"[{"value":1,"color":2}]"#, 400, "AB1003"),
            (
                "POST",
                events,
                r#"[{"value":1,"op":"merge"}]"#,
                400,
                "AB1007",
            ),
            ("POST", events, &long_key, 413, "AB1204"),
            (
                "POST",
                &format!("{events}?partition=2"),
                "[{}]",
                400,
                "AB1206",
            ),
            (
                "POST",
                &format!("{events}?ack=never"),
                "[{}]",
                400,
                "AB1007",
            ),
            ("POST", &format!("{events}?color=1"), "[{}]", 400, "AB1007"),
            ("POST", rows, r#"[{"value":1}]"#, 400, "AB1205"),
        ],
    )
    .await;
    let json = [("content-type", "application/json")];
    let answer = http.send("POST", events, &json, deep).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    let answer = http.send("POST", events, &[], "[{}]").await;
    let _ = answer.problem(415, "AB1009");
    let producer = [json[0], ("anabranch-producer", "1/2")];
    let answer = http.send("POST", events, &producer, "[{}]").await;
    let _ = answer.problem(400, "AB1007");
    scene.end().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let scene = Scene::new(&["limits.request_bytes=64KiB"]).await;
    let http = scene.broker.http();
    let value = "x".repeat(64 * 1024);
    let body = json!([{"key": "k", "value": value}]);
    let answer = http.post("/v1/streams/events/records", &body).await;
    let _ = answer.problem(413, "AB1005");
    // The broker may hang up on what it does not want to read.
    let http = scene.broker.http();
    let answer = http.put("/v1/tables/rows/rows/k", &json!(value)).await;
    let _ = answer.problem(413, "AB1005");
    scene.end().await;
}

#[tokio::test]
async fn a_body_that_claims_to_be_huge_takes_no_memory() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let scene = Scene::new(&[]).await;
    let before = scene.broker.peak_memory();
    for length in [1u64 << 31, 1 << 40, (1 << 63) - 1] {
        let mut socket = tokio::net::TcpStream::connect(scene.broker.address())
            .await
            .unwrap();
        let head = format!(
            "POST /v1/streams/events/records HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n["
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 1024];
        let read = socket.read(&mut answer);
        let read = anabranch_tests::condition::soon("an answer", read)
            .await
            .unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
    let grown = scene.broker.peak_memory() - before;
    assert!(grown < 16 << 20, "grown by {grown} bytes");
    scene.end().await;
}

#[tokio::test]
async fn reads_that_make_no_sense_are_refused() {
    let scene = Scene::new(&[]).await;
    let records = "/v1/streams/events/records";
    let rows = "/v1/tables/rows/rows";
    refused(
        &scene.broker.http(),
        &[
            ("GET", "/v1/streams/fligths/records", "", 404, "AB1501"),
            ("GET", &format!("{records}?from=earlist"), "", 400, "AB1304"),
            (
                "GET",
                &format!("{records}?from=Yaaaaaaaaa"),
                "",
                400,
                "AB1301",
            ),
            (
                "GET",
                &format!("{records}?form=earliest"),
                "",
                400,
                "AB1007",
            ),
            ("GET", &format!("{records}?limit=0"), "", 400, "AB1007"),
            ("GET", &format!("{records}?wait=soon"), "", 400, "AB1007"),
            ("GET", &format!("{records}?partition=2"), "", 400, "AB1206"),
            (
                "GET",
                &format!("{records}?key=a&prefix=b"),
                "",
                400,
                "AB1007",
            ),
            ("GET", "/v1/tables/fligths/rows/a", "", 404, "AB1501"),
            ("GET", &format!("{rows}/nothing"), "", 404, "AB1502"),
            ("GET", &format!("{rows}?limit=many"), "", 400, "AB1007"),
            ("PUT", &format!("{rows}/a"), "{", 400, "AB1008"),
            ("PATCH", &format!("{rows}/a"), "{}", 400, "AB1207"),
            ("PUT", "/v1/tables/events/rows/a", "1", 400, "AB1207"),
            ("GET", "/v2/streams", "", 404, "AB1506"),
        ],
    )
    .await;
    scene.end().await;
}

#[tokio::test]
async fn wrong_methods_say_which_are_right() {
    let scene = Scene::new(&[]).await;
    let http = scene.broker.http();
    let answer = http.send("PUT", "/v1/streams", &[], "").await;
    let _ = answer.problem(405, "AB1507");
    let allow = answer.header("allow").to_owned();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    scene.end().await;
}

#[tokio::test]
async fn tokens_and_conditions_that_cannot_be_met_are_refused() {
    let scene = Scene::new(&[]).await;
    let http = scene.broker.http();
    let row = "/v1/tables/rows/rows/k";
    let _ = http.put(row, &json!(1)).await;
    for (method, header, value, status, code) in [
        ("GET", "anabranch-token", "nonsense", 400, "AB1301"),
        ("GET", "if-match", "\"other\"", 412, "AB1508"),
        ("PUT", "if-match", "*", 400, "AB1207"),
        ("DELETE", "if-none-match", "*", 400, "AB1207"),
    ] {
        let answer = http.send(method, row, &[(header, value)], "1").await;
        let _ = answer.problem(status, code);
    }
    let ahead = token_ahead(&http).await;
    let headers = [("anabranch-token", ahead.as_str()), ("prefer", "wait=0")];
    let answer = http.send("GET", row, &headers, "").await;
    let _ = answer.problem(504, "AB3101");
    scene.end().await;
}

/// A token for a frame that this broker has yet to write.
async fn token_ahead(http: &Http) -> String {
    use anabranch_core::id::{ClusterId, Sequence};
    use anabranch_core::vector::Token;
    let answer: Value = http.put("/v1/tables/rows/rows/k", &json!(2)).await.json();
    let ours = ClusterId::of("anabranch");
    let token = Token::decode(answer["token"].as_str().unwrap(), ours).unwrap();
    let ahead = token.seen.iter().map(|(origin, sequence)| {
        let sequence = Sequence::new(sequence.get() + 1_000_000);
        (origin, sequence)
    });
    Token {
        seen: ahead.collect(),
    }
    .encode(ours)
}

#[tokio::test]
async fn transactions_that_cannot_be_whole_leave_no_trace() {
    let scene = Scene::new(&[]).await;
    let http = scene.broker.http();
    let path = "/v1/transactions";
    let good = r#"{"stream":"rows","key":"t","value":1}"#;
    let many = format!("[{}]", vec![r#"{"stream":"events"}"#; 250_001].join(","));
    let with = |bad: &str| format!("[{good},{bad}]");
    refused(
        &http,
        &[
            ("POST", path, "[]", 400, "AB1007"),
            ("POST", path, "{", 400, "AB1008"),
            (
                "POST",
                path,
                &with(r#"{"stream":"fligths","value":1}"#),
                404,
                "AB1501",
            ),
            (
                "POST",
                path,
                &with(r#"{"stream":"_streams","key":"a"}"#),
                400,
                "AB1207",
            ),
            (
                "POST",
                path,
                &with(r#"{"stream":"rows","value":1}"#),
                400,
                "AB1205",
            ),
            (
                "POST",
                path,
                &with(r#"{"stream":"events","color":1}"#),
                400,
                "AB1003",
            ),
            ("POST", path, &many, 413, "AB1208"),
        ],
    )
    .await;
    let row = http.get("/v1/tables/rows/rows/t").await;
    let _ = row.problem(404, "AB1502");
    scene.end().await;
}

/// A page in a browser on the broker's machine reaches loopback, whoever wrote it.
#[tokio::test]
async fn pages_of_strangers_get_nothing() {
    let scene = Scene::new(&[]).await;
    let http = scene.broker.http();
    let upgrade = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "anabranch.v1.json"),
        ("origin", "http://evil.example"),
    ];
    let answer = http.send("GET", "/v1/ws", &upgrade, "").await;
    let _ = answer.problem(403, "AB4001");
    let stranger = [
        ("origin", "http://evil.example"),
        ("content-type", "text/plain"),
    ];
    let row = "/v1/tables/rows/rows/k";
    let answer = http.send("PUT", row, &stranger, "1").await;
    let _ = answer.problem(403, "AB4001");
    let own = [
        ("origin", "http://localhost:3000"),
        ("content-type", "text/plain"),
    ];
    assert_eq!(http.send("PUT", row, &own, "1").await.status, 200);
    scene.end().await;
}
