use expect_test::expect;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_made_shown_changed_and_deleted() {
    let broker = Broker::start();
    let wish = r#"{"name":"orders","merge":"lww","partitions":2}"#;
    let made = broker.call("POST", "/v1/streams", &[JSON], wish).await;
    assert_eq!(made.status, StatusCode::CREATED);
    assert_eq!(made.header("location"), "/v1/streams/orders");
    expect![[r#"{"name":"orders","merge":"lww","partitions":2,"retention":{"max_age_seconds":null,"max_bytes":null,"compact":false},"regions":null,"offsets":[{"partition":0,"first":0,"next":0},{"partition":1,"first":0,"next":0}],"bytes":0}"#]]
    .assert_eq(made.text());
    let again = broker.call("POST", "/v1/streams", &[JSON], wish).await;
    assert_eq!(again.status, StatusCode::OK);

    let other = r#"{"name":"orders","merge":"append"}"#;
    let other = broker.call("POST", "/v1/streams", &[JSON], other).await;
    assert!(other.problem().starts_with("AB1503 "), "{}", other.text());

    let change = r#"{"retention":{"max_bytes":5}}"#;
    let changed = broker
        .call("PATCH", "/v1/streams/orders", &[JSON], change)
        .await;
    assert_eq!(changed.json()["retention"]["max_bytes"], 5);
    let fixed = broker
        .call(
            "PATCH",
            "/v1/streams/orders",
            &[JSON],
            r#"{"merge":"append"}"#,
        )
        .await;
    assert!(fixed.problem().starts_with("AB1103 "));

    let list = broker.get("/v1/streams").await.json();
    assert_eq!(list["streams"].as_array().unwrap().len(), 1);
    assert_eq!(list["streams"][0]["name"], "orders");

    let gone = broker.call("DELETE", "/v1/streams/orders", &[], "").await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    let missing = broker.get("/v1/streams/orders").await;
    assert!(missing.problem().starts_with("AB1501 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_wishes_for_streams_are_refused() {
    let broker = Broker::start();
    for (body, expected) in [
        (r#"{"name":"a/b"}"#, "AB1101 "),
        (r#"{"name":"_a"}"#, "AB1101 "),
        (r#"{"name":"a","colour":1}"#, "AB1102 "),
        (
            r#"{"name":"a","merge":"document"}"#,
            "AB1102 merge \"document\" is not available yet",
        ),
        (
            r#"{"name":"a",}"#,
            "AB1008 the body: trailing comma at line 1 column 13",
        ),
        ("", "AB1008 "),
    ] {
        let reply = broker.call("POST", "/v1/streams", &[JSON], body).await;
        assert!(
            reply.problem().starts_with(expected),
            "{body}: {}",
            reply.text()
        );
    }
    let untyped = broker
        .call("POST", "/v1/streams", &[], r#"{"name":"a"}"#)
        .await;
    assert!(
        untyped
            .problem()
            .starts_with("AB1009 the body has no content type")
    );
    let system = broker.call("DELETE", "/v1/streams/_streams", &[], "").await;
    assert!(system.problem().starts_with("AB1207 "));
    let name = broker.get("/v1/streams/%FF").await;
    assert!(name.problem().starts_with("AB1101 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn trimming_takes_a_time_in_both_forms() {
    let broker = Broker::with_streams().await;
    for body in [r#"{"before":1}"#, r#"{"before":"2013-01-01T06:00:00Z"}"#] {
        let reply = broker
            .call("POST", "/v1/streams/events/trim", &[JSON], body)
            .await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{}", reply.text());
    }
    for (body, expected) in [
        (r#"{"before":"yesterday"}"#, "AB1007 before: must be"),
        (r#"{"before":-1}"#, "AB1007 before: must be"),
        (r#"{"after":1}"#, "AB1008 the body: unknown field `after`"),
    ] {
        let reply = broker
            .call("POST", "/v1/streams/events/trim", &[JSON], body)
            .await;
        assert!(reply.problem().starts_with(expected), "{}", reply.text());
    }
    let system = broker
        .call(
            "POST",
            "/v1/streams/_streams/trim",
            &[JSON],
            r#"{"before":1}"#,
        )
        .await;
    assert!(system.problem().starts_with("AB1207 "));
}
