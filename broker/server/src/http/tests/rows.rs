use expect_test::expect;

use super::*;

const ROWS: &str = "/v1/tables/planes/rows";

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_written_read_and_deleted() {
    let broker = Broker::with_streams().await;
    let path = format!("{ROWS}/a%2F%C3%A9");
    let put = broker.call("PUT", &path, &[JSON], "{\"seats\": 12}").await;
    assert_eq!(put.status, StatusCode::OK, "{}", put.text());
    assert_eq!(put.json()["token"], put.header("anabranch-token"));

    let row = broker.get(&path).await;
    assert_eq!(row.text(), "{\"seats\": 12}");
    assert_eq!(row.header("content-type"), "application/json");
    assert_eq!(row.header("anabranch-token"), put.header("anabranch-token"));
    let tag = row.header("etag").to_owned();
    assert_eq!(tag.len(), 34);

    let held = broker
        .call("GET", &path, &[("if-none-match", &tag)], "")
        .await;
    assert_eq!(
        (held.status, held.body.len()),
        (StatusCode::NOT_MODIFIED, 0)
    );
    assert_eq!(held.header("etag"), tag);
    let wanted = broker
        .call("GET", &path, &[("if-match", "\"x\"")], "")
        .await;
    assert!(wanted.problem().starts_with("AB1508 "));
    let head = broker.call("HEAD", &path, &[], "").await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));

    let gone = broker.call("DELETE", &path, &[], "").await;
    assert_eq!(gone.status, StatusCode::OK);
    let missing = broker.get(&path).await;
    assert!(
        missing
            .problem()
            .starts_with("AB1502 stream planes has no row \"a/é\"")
    );
    assert_ne!(missing.header("anabranch-token"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_bytes_unless_they_are_json() {
    let broker = Broker::with_streams().await;
    broker
        .call("PUT", &format!("{ROWS}/%FF"), &[], &b"\xfe\xff"[..])
        .await;
    let row = broker.get(&format!("{ROWS}/%FF")).await;
    assert_eq!(&row.body[..], b"\xfe\xff");
    assert_eq!(row.header("content-type"), "application/octet-stream");
    let not_json = broker
        .call("PUT", &format!("{ROWS}/a"), &[JSON], "{oops}")
        .await;
    assert!(
        not_json
            .problem()
            .starts_with("AB1008 the body: key must be a string at line 1")
    );
    let page = broker.get(ROWS).await;
    assert_eq!(
        page.text(),
        r#"{"rows":[{"key_base64":"/w==","value_base64":"/v8="}]}"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_come_in_pages() {
    let broker = Broker::with_streams().await;
    broker
        .publish("planes", r#"[{"key":"b2","value":3},{"key":"a","value":1},{"key":"b1","value":2},{"key":"c","value":4}]"#)
        .await;
    let first = broker.get(&format!("{ROWS}?limit=2")).await;
    expect![[r#"{"rows":[{"key":"a","value":1},{"key":"b1","value":2}],"next":"b1"}"#]]
        .assert_eq(first.text());
    assert_ne!(first.header("anabranch-token"), "");
    let second = broker.get(&format!("{ROWS}?limit=2&after=b1")).await;
    expect![[r#"{"rows":[{"key":"b2","value":3},{"key":"c","value":4}]}"#]]
        .assert_eq(second.text());
    let prefix = broker
        .get(&format!("{ROWS}?prefix=b&after_base64=YjE="))
        .await;
    expect![[r#"{"rows":[{"key":"b2","value":3}]}"#]].assert_eq(prefix.text());
    let named = broker.get(&format!("{ROWS}?key=c&key=none&key=a")).await;
    expect![[r#"{"rows":[{"key":"c","value":4},{"key":"a","value":1}]}"#]].assert_eq(named.text());
    for (query, expected) in [
        ("limit=x", "AB1007 limit=x"),
        ("key=a&prefix=b", "AB1007 prefix belongs to a range"),
        ("after=a&after_base64=YQ==", "AB1007 after and after_base64"),
        ("after_base64=*", "AB1007 after_base64 is not base64"),
        ("perfix=a", "AB1007 unknown query parameter"),
    ] {
        let reply = broker.get(&format!("{ROWS}?{query}")).await;
        assert!(reply.problem().starts_with(expected), "{}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_an_append_stream_are_its_records() {
    let broker = Broker::with_streams().await;
    let answer = broker
        .publish("events", r#"[{"value":1},{"value":2}]"#)
        .await;
    let dot = answer["dot"].as_str().unwrap();
    let row = broker.get(&format!("/v1/tables/events/rows/{dot}")).await;
    assert_eq!(row.text(), "1");
    let rows = broker
        .get(&format!("/v1/tables/events/rows?after={dot}"))
        .await
        .json();
    assert_eq!(rows["rows"][0]["value"], 2);
    let named = broker
        .get(&format!("/v1/tables/events/rows?key={dot}"))
        .await
        .json();
    assert_eq!(named["rows"][0]["value"], 1);
    let missing = broker.get("/v1/tables/events/rows/x").await;
    assert!(missing.problem().starts_with("AB1502 "));
    let write = broker
        .call("PUT", "/v1/tables/events/rows/x", &[], "1")
        .await;
    assert!(write.problem().starts_with("AB1207 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_no_broker_can_keep_are_refused() {
    let broker = Broker::with_streams().await;
    let row = format!("{ROWS}/a");
    for (method, path, header, expected) in [
        (
            "PUT",
            row.as_str(),
            ("if-match", "\"x\""),
            "AB1207 if-match is not possible on writes",
        ),
        (
            "DELETE",
            &row,
            ("if-none-match", "*"),
            "AB1207 if-none-match",
        ),
        (
            "PATCH",
            &row,
            ("x-none", ""),
            "AB1207 rows of stream planes are replaced whole",
        ),
        (
            "PUT",
            "/v1/tables/_streams/rows/a",
            ("x-none", ""),
            "AB1207 stream _streams",
        ),
        ("PUT", "/v1/tables/none/rows/a", ("x-none", ""), "AB1501 "),
    ] {
        let reply = broker.call(method, path, &[header], "1").await;
        assert!(reply.problem().starts_with(expected), "{}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_its_token_and_says_what_is_missing() {
    let broker = Broker::with_streams().await;
    let put = broker.call("PUT", &format!("{ROWS}/a"), &[], "1").await;
    let token = put.header("anabranch-token");
    let headers = [("anabranch-token", token), ("prefer", "wait=1")];
    let row = broker.call("GET", &format!("{ROWS}/a"), &headers, "").await;
    assert_eq!(row.text(), "1");

    let running = broker.node.running().unwrap();
    let mut ahead = running.token(token).unwrap();
    ahead
        .seen
        .advance(running.origin(), anabranch_core::id::Sequence::new(1 << 40));
    let ahead = ahead.encode(running.cluster());
    let headers = [("anabranch-token", ahead.as_str()), ("prefer", "wait=0")];
    for path in [
        format!("{ROWS}/a"),
        ROWS.to_owned(),
        format!("{ROWS}?key=a"),
    ] {
        let late = broker.call("GET", &path, &headers, "").await;
        assert!(late.problem().starts_with("AB3101 "), "{}", late.text());
        assert!(late.text().contains(&running.origin().to_string()));
    }
    let foreign = ahead_of_another_cluster();
    let headers = [("anabranch-token", foreign.as_str())];
    let foreign = broker.call("GET", &format!("{ROWS}/a"), &headers, "").await;
    assert!(foreign.problem().starts_with("AB1302 "));
}

fn ahead_of_another_cluster() -> String {
    let seen = anabranch_core::vector::VersionVector::default();
    anabranch_core::vector::Token { seen }.encode(ClusterId::of("another"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_one_frame_or_nothing() {
    let broker = Broker::with_streams().await;
    let body = r#"[{"stream":"planes","key":"a","value":1},{"stream":"events","value":{"n":1}},{"stream":"planes","key":"a","value":2},{"stream":"planes","key":"b","op":"put","value_base64":"/w=="}]"#;
    let done = broker.call("POST", "/v1/transactions", &[JSON], body).await;
    assert_eq!(done.status, StatusCode::OK, "{}", done.text());
    let offsets = done.json()["offsets"].clone();
    assert_eq!(offsets[0]["stream"], "planes");
    assert_eq!(
        (&offsets[0]["records"], &offsets[1]["records"]),
        (&3.into(), &1.into())
    );
    assert_eq!(offsets[1]["stream"], "events");
    assert_eq!(broker.get(&format!("{ROWS}/a")).await.text(), "2");

    for (body, expected) in [
        (
            r#"[{"stream":"planes","key":"a","value":9},{"stream":"none","value":1}]"#,
            "AB1501 ",
        ),
        (
            r#"[{"stream":"planes","key":"a","value":9},{"stream":"planes","value":1}]"#,
            "AB1205 ",
        ),
        (
            r#"[{"stream":"planes","key":"a","value":9,"if":1}]"#,
            "AB1003 operation 0: unknown field `if`",
        ),
        (r#"[{"stream":"planes","key":"a","op":"inc"}]"#, "AB1007 "),
        (
            r#"[{"key":"a"}]"#,
            "AB1008 operation 0: missing field `stream`",
        ),
        ("[]", "AB1007 "),
        ("{}", "AB1008 the body must be a JSON array of operations"),
    ] {
        let reply = broker.call("POST", "/v1/transactions", &[JSON], body).await;
        assert!(reply.problem().starts_with(expected), "{}", reply.text());
    }
    assert_eq!(broker.get(&format!("{ROWS}/a")).await.text(), "2");
}
