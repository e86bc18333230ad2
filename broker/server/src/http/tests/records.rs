use std::time::{Duration, Instant};

use anabranch_core::batch::{BatchBuilder, NewRecord};
use expect_test::expect;

use super::*;

const RECORDS: &str = "/v1/streams/events/records";

fn batch(values: &[&str]) -> Bytes {
    let mut builder = BatchBuilder::default();
    for value in values {
        let value = Some(value.as_bytes());
        builder
            .push(&NewRecord {
                value,
                ..NewRecord::default()
            })
            .unwrap();
    }
    builder.finish(None).unwrap().bytes().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_come_back_as_they_were_sent() {
    let broker = Broker::with_streams().await;
    let body = r#"[{"key":"a","value":{"x":  1.0},"headers":{"h":"1"},"timestamp":7},{"value_base64":"/w=="},{"key":"a","op":"delete"}]"#;
    let path = format!("{RECORDS}?partition=1");
    let reply = broker.call("POST", &path, &[JSON], body).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let answer = reply.json();
    assert_eq!(
        answer["offsets"],
        serde_json::json!([{"partition":1,"offset":0,"records":3}])
    );
    assert_eq!(answer["durability"], "disk");
    assert_eq!(answer["token"], reply.header("anabranch-token"));
    let dot = answer["dot"].as_str().unwrap();
    assert!(dot.ends_with(":0"), "{dot}");

    let page = broker.get(&format!("{RECORDS}?from=earliest")).await.json();
    let mut records = page["records"].as_array().unwrap().clone();
    assert_eq!(records[0]["dot"], dot);
    for record in &mut records {
        record.as_object_mut().unwrap().shift_remove("dot");
    }
    records[1]
        .as_object_mut()
        .unwrap()
        .shift_remove("timestamp");
    records[2]
        .as_object_mut()
        .unwrap()
        .shift_remove("timestamp");
    let lines: Vec<_> = records.iter().map(ToString::to_string).collect();
    expect![[r#"
        {"partition":1,"offset":0,"timestamp":7,"key":"a","value":{"x":1.0},"headers":{"h":"1"}}
        {"partition":1,"offset":1,"value_base64":"/w=="}
        {"partition":1,"offset":2,"key":"a","op":"delete"}"#]]
    .assert_eq(&lines.join("\n"));
    let whole = broker.get(&format!("{RECORDS}?from=earliest")).await;
    assert!(
        whole.text().contains(r#""value":{"x":  1.0}"#),
        "{}",
        whole.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_and_batches_are_other_ways_to_publish() {
    let broker = Broker::with_streams().await;
    let path = format!("{RECORDS}?partition=0&ack=memory");
    let lines = broker
        .call("POST", &path, &[NDJSON], "{\"value\":1}\n\n{\"value\":2}\n")
        .await;
    assert_eq!(lines.json()["durability"], "memory");
    let ready = broker
        .call(
            "POST",
            &format!("{RECORDS}?partition=0"),
            &[BATCH],
            batch(&["3", "4"]),
        )
        .await;
    assert_eq!(ready.json()["offsets"][0]["offset"], 2);
    let (records, _) = page_of(&broker.get(&format!("{RECORDS}?from=earliest")).await);
    assert_eq!(records, ["-@0=1", "-@1=2", "-@2=3", "-@3=4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_publish_of_a_producer_counts_once() {
    let broker = Broker::with_streams().await;
    let path = format!("{RECORDS}?partition=0");
    let publish = async |stamp: &str, body: &'static str| {
        let headers = [JSON, ("anabranch-producer", stamp)];
        broker.call("POST", &path, &headers, body).await
    };
    let first = publish("9/0/0", r#"[{"value":1},{"value":2}]"#)
        .await
        .json();
    let again = publish("9/0/0", r#"[{"value":1},{"value":2}]"#)
        .await
        .json();
    assert_eq!(first["offsets"], again["offsets"]);
    assert!(first["dot"].is_string() && again["dot"].is_null());
    let gap = publish("9/0/5", r#"[{"value":3}]"#).await;
    assert!(gap.problem().starts_with("AB1402 "));
    let wrong = publish("nine", r#"[{"value":3}]"#).await;
    assert!(
        wrong
            .problem()
            .starts_with("AB1007 anabranch-producer: nine")
    );
    let keys: Vec<_> = (0..20)
        .map(|n| format!(r#"{{"key":"{n}","value":1}}"#))
        .collect();
    let headers = [JSON, ("anabranch-producer", "9/0/2")];
    let spread = format!("[{}]", keys.join(","));
    let spread = broker.call("POST", RECORDS, &headers, spread).await;
    assert!(spread.problem().starts_with("AB1207 "), "{}", spread.text());
    let (records, _) = page_of(&broker.get(&format!("{RECORDS}?from=earliest")).await);
    assert_eq!(records, ["-@0=1", "-@1=2"]);
}

type Case = (
    &'static str,
    (&'static str, &'static str),
    Body,
    &'static str,
);

/// A stream, a body with its type, and how the refusal begins.
fn unpublishable() -> Vec<Case> {
    let mut damaged = batch(&["1"]).to_vec();
    damaged[64] ^= 1;
    let long_key = format!(r#"[{{"key":"{}","value":1}}]"#, "k".repeat(5000));
    vec![
        ("events", JSON, "[{},\n{\"value\":}]".into(), "AB1008 "),
        (
            "events",
            JSON,
            "{}".into(),
            "AB1008 the body must be a JSON array",
        ),
        (
            "events",
            JSON,
            r#"[{"valeu":1}]"#.into(),
            "AB1003 record 0: unknown field `valeu`",
        ),
        (
            "events",
            JSON,
            "[]".into(),
            "AB1007 a publish needs at least one record",
        ),
        (
            "events",
            NDJSON,
            "{}\n\n{\"value\":x}\n".into(),
            "AB1008 body line 3, record 1",
        ),
        ("events", NDJSON, "".into(), "AB1007 "),
        (
            "events",
            ("content-type", "text/plain"),
            "x".into(),
            "AB1009 ",
        ),
        ("events", BATCH, damaged.into(), "AB1202 "),
        ("events", BATCH, "short".into(), "AB1201 "),
        (
            "events",
            JSON,
            long_key.into(),
            "AB1204 record 0: 5000 bytes of key",
        ),
        (
            "planes",
            JSON,
            r#"[{"key":"a"},{"value":1}]"#.into(),
            "AB1205 record 1 has no key",
        ),
        ("planes", BATCH, batch(&["1"]).into(), "AB1205 "),
        ("nothing", JSON, "[]".into(), "AB1501 "),
        ("_streams", JSON, r#"[{"key":"a"}]"#.into(), "AB1207 "),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_published_is_refused_with_its_place() {
    let broker = Broker::with_streams().await;
    for (stream, media_type, body, expected) in unpublishable() {
        let path = format!("/v1/streams/{stream}/records");
        let reply = broker.call("POST", &path, &[media_type], body).await;
        assert!(
            reply.problem().starts_with(expected),
            "{expected}: {}",
            reply.text()
        );
    }
    let (records, _) = page_of(&broker.get(&format!("{RECORDS}?from=earliest")).await);
    assert_eq!(records, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_with_wrong_parameters_are_refused() {
    let broker = Broker::with_streams().await;
    for (query, expected) in [
        ("partition=2", "AB1206 "),
        ("partition=x", "AB1007 partition=x"),
        (
            "ack=never",
            "AB1007 ack=never: must be disk, memory, regions:N or region:NAME",
        ),
        (
            "akc=disk",
            "AB1007 unknown query parameter \"akc\"; this route takes partition, ack",
        ),
    ] {
        let path = format!("{RECORDS}?{query}");
        let reply = broker
            .call("POST", &path, &[JSON], r#"[{"value":1}]"#)
            .await;
        assert!(reply.problem().starts_with(expected), "{}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_bounded_while_they_are_read() {
    let broker = Broker::start_with(|config| {
        config.limits.request_bytes = crate::config::ByteSize::new(1024);
    });
    let made = broker
        .call("POST", "/v1/streams", &[JSON], r#"{"name":"events"}"#)
        .await;
    assert_eq!(made.status, StatusCode::CREATED);
    let said = broker
        .call("POST", RECORDS, &[JSON], "x".repeat(1025))
        .await;
    assert!(
        said.problem().starts_with("AB1005 the body is 1025 bytes"),
        "{}",
        said.text()
    );
    let chunks = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>("x".repeat(100)));
    let endless = broker
        .call("POST", RECORDS, &[JSON], Body::from_stream(chunks))
        .await;
    assert!(
        endless.problem().starts_with("AB1005 the body is longer"),
        "{}",
        endless.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_given_up() {
    let broker = Broker::start_with(|config| {
        config.limits.body_timeout_seconds = Duration::from_millis(50);
    });
    let never = futures_util::stream::pending::<std::io::Result<Bytes>>();
    let body = Body::from_stream(never);
    let reply = broker.call("POST", "/v1/streams", &[JSON], body).await;
    let problem = reply.problem();
    assert!(problem.contains("did not arrive within"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_cut_frames_and_go_on_within_them() {
    let broker = Broker::with_streams().await;
    let path = format!("{RECORDS}?partition=0");
    for body in [
        r#"[{"value":1},{"value":2},{"value":3}]"#,
        r#"[{"value":4}]"#,
    ] {
        broker.call("POST", &path, &[JSON], body).await;
    }
    let mut cursor = "earliest".to_owned();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let page = broker
            .get(&format!("{RECORDS}?from={cursor}&limit=2"))
            .await;
        let (records, next) = page_of(&page);
        seen.push(records.join(" "));
        cursor = next;
    }
    assert_eq!(seen, ["-@0=1 -@1=2", "-@2=3 -@3=4", ""]);
    let path = format!("{RECORDS}?from={cursor}");
    broker.publish("events", r#"[{"key":"z","value":5}]"#).await;
    assert_eq!(page_of(&broker.get(&path).await).0.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_picked_by_partition_key_and_prefix() {
    let broker = Broker::with_streams().await;
    broker
        .publish(
            "events",
            r#"[{"key":"aa","value":1},{"key":"ab","value":2},{"key":"b/c","value":3}]"#,
        )
        .await;
    let pick = async |query: &str| {
        let path = format!("{RECORDS}?from=earliest&{query}");
        let page = broker.get(&path).await.json();
        let mut values: Vec<_> = page["records"]
            .as_array()
            .unwrap()
            .iter()
            .map(|record| record["value"].to_string())
            .collect();
        values.sort();
        values.join(" ")
    };
    assert_eq!(pick("key=ab").await, "2");
    assert_eq!(pick("key=b%2Fc").await, "3");
    assert_eq!(pick("prefix=a").await, "1 2");
    assert_eq!(pick("prefix=zz").await, "");
    assert_eq!(pick("partition=0,1").await, "1 2 3");
    let (one, other) = (pick("partition=0").await, pick("partition=1").await);
    assert_eq!(
        one.len() + other.len(),
        4 + usize::from(one.is_empty() || other.is_empty())
    );

    for (query, expected) in [
        ("from=earlist", "AB1304 cannot start from \"earlist\""),
        ("from=YwAAAAAA", "AB1301 "),
        ("partition=7", "AB1206 "),
        ("key=a&prefix=a", "AB1007 give key or prefix"),
        ("limit=0", "AB1007 limit=0"),
        ("limit=10001", "AB1007 "),
        ("wait=-1", "AB1007 wait=-1"),
        ("since=1", "AB1007 unknown query parameter \"since\""),
    ] {
        let reply = broker.get(&format!("{RECORDS}?{query}")).await;
        assert!(
            reply.problem().starts_with(expected),
            "{query}: {}",
            reply.text()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_waits_for_what_comes_and_no_longer() {
    let broker = Broker::with_streams().await;
    let (none, cursor) = page_of(&broker.get(RECORDS).await);
    assert_eq!(none.len(), 0);
    let started = Instant::now();
    let path = format!("{RECORDS}?from={cursor}&wait=0.2");
    assert_eq!(page_of(&broker.get(&path).await).0.len(), 0);
    assert!(started.elapsed() >= Duration::from_millis(200));

    let path = format!("{RECORDS}?from={cursor}&wait=30&key=b");
    let waiting = broker.get(&path);
    let publishing = async {
        broker.publish("events", r#"[{"key":"a","value":1}]"#).await;
        broker.publish("events", r#"[{"key":"b","value":2}]"#).await;
    };
    let (reply, ()) = tokio::join!(waiting, publishing);
    let (records, _) = page_of(&reply);
    assert_eq!(records.len(), 1);
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_given_whole_and_then_what_changes() {
    let broker = Broker::with_streams().await;
    broker
        .publish(
            "planes",
            r#"[{"key":"a","value":1},{"key":"b","value":2},{"key":"a","value":3}]"#,
        )
        .await;
    let planes = "/v1/streams/planes/records?from=table";
    let (rows, cursor) = page_of(&broker.get(planes).await);
    assert_eq!(rows, ["a@-=3", "b@-=2"]);
    broker.publish("planes", r#"[{"key":"c","value":4}]"#).await;
    let (changes, _) = page_of(
        &broker
            .get(&format!("/v1/streams/planes/records?from={cursor}"))
            .await,
    );
    assert_eq!(changes, ["c@3=4"]);
    let cut = broker.get(&format!("{planes}&limit=2")).await;
    assert!(
        cut.problem().starts_with("AB1304 the table has more rows"),
        "{}",
        cut.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_carry_frames_and_resume_after_them() {
    let broker = Broker::with_streams().await;
    let path = format!("{RECORDS}?from=earliest");
    let publish = format!("{RECORDS}?partition=0");
    broker
        .call("POST", &publish, &[JSON], r#"[{"value":1},{"value":2}]"#)
        .await;
    let mut events = broker.follow(&path, &[]).await;
    assert_eq!(events.shape().await, "id");
    assert_eq!(events.shape().await, "-@0=1");
    assert_eq!(events.shape().await, "-@1=2|id");
    broker
        .call("POST", &publish, &[JSON], r#"[{"value":3}]"#)
        .await;
    let id = events.next_id().await;
    broker
        .call("POST", &publish, &[JSON], r#"[{"value":4},{"value":5}]"#)
        .await;

    let mut resumed = broker
        .follow(&format!("{path}&limit=1"), &[("last-event-id", &id)])
        .await;
    assert_eq!(resumed.shape().await, "id");
    // A place inside a frame names the frame.
    assert!(resumed.next_id().await.len() > id.len());
    assert_eq!(resumed.next().await, None, "the limit ends it");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_cut_within_a_frame_resume_within_it() {
    let broker = Broker::with_streams().await;
    let publish = format!("{RECORDS}?partition=0");
    broker
        .call(
            "POST",
            &publish,
            &[JSON],
            r#"[{"value":1},{"value":2},{"value":3}]"#,
        )
        .await;
    let path = format!("{RECORDS}?from=earliest&limit=2");
    let mut events = broker.follow(&path, &[]).await;
    events.next().await;
    assert_eq!(events.shape().await, "-@0=1");
    let id = events.next_id().await;
    assert_eq!(events.next().await, None);
    let mut resumed = broker.follow(&path, &[("last-event-id", &id)]).await;
    resumed.next().await;
    assert_eq!(resumed.shape().await, "-@2=3|id");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_table_goes_live_and_ends_with_the_broker() {
    let mut broker = Broker::with_streams().await;
    broker.publish("planes", r#"[{"key":"a","value":1}]"#).await;
    let mut events = broker
        .follow("/v1/streams/planes/records?from=table", &[])
        .await;
    assert_eq!(events.shape().await, "a@-=1");
    assert_eq!(events.shape().await, "event: live|id|cursor");
    broker.publish("planes", r#"[{"key":"a","value":2}]"#).await;
    assert_eq!(events.shape().await, "a@1=2|id");
    broker.stop();
    let error = events.next().await.unwrap();
    assert!(
        error.starts_with("event: error|data: {") && error.contains("AB6002"),
        "{error}"
    );
    assert_eq!(events.next().await, None);
}
