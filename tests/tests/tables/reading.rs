//! One's own writes, many rows at one moment, ranges.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anabranch_protocol::record::Record;
use anabranch_tests::broker::Broker;
use anabranch_tests::home::Home;
use serde_json::{Value, json};

async fn broker(home: &Home) -> Broker {
    let broker = Broker::start_with(home, &["tables.image_rows=1000"]).await;
    broker
        .create(json!({"name": "rows", "merge": "lww", "partitions": 3}))
        .await;
    broker
}

/// While others write as fast as they can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_sees_every_write_that_was_acknowledged_before_it() {
    let home = Home::new();
    let broker = broker(&home).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut noise = broker.connect().await;
    let stopped = Arc::clone(&stop);
    let noisy = tokio::spawn(async move {
        let mut number = 0u32;
        while !stopped.load(Ordering::Relaxed) {
            let record = |n: u32| Record::put(format!("noise-{n}").into_bytes(), b"0".as_slice());
            noise
                .publish("rows", (number..number + 200).map(record).collect())
                .await;
            number = (number + 200) % 20_000;
        }
    });
    let (writer, reader) = (broker.http(), broker.http());
    let mut wire = broker.connect().await;
    for number in 0..300u32 {
        let key = format!("k{}", number % 7);
        let path = format!("/v1/tables/rows/rows/{key}");
        if number % 2 == 0 {
            assert_eq!(writer.put(&path, &json!(number)).await.status, 200);
        } else {
            let value = number.to_string().into_bytes();
            wire.publish("rows", vec![Record::put(key.into_bytes(), value)])
                .await;
        }
        assert_eq!(reader.json(&path).await, number);
    }
    stop.store(true, Ordering::Relaxed);
    noisy.await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn a_token_carries_a_write_to_a_read() {
    let home = Home::new();
    let broker = broker(&home).await;
    let http = broker.http();
    for number in 0..100 {
        let put = http.put("/v1/tables/rows/rows/k", &json!(number)).await;
        let token = put.header("anabranch-token").to_owned();
        assert_eq!(put.json()["token"], token);
        let headers = [("anabranch-token", token.as_str()), ("prefer", "wait=5")];
        let got = broker
            .http()
            .send("GET", "/v1/tables/rows/rows/k", &headers, "")
            .await;
        assert_eq!(got.json(), number);
        assert_ne!(got.header("anabranch-token"), "");
    }
}

/// Writers move an amount back and forth between rows of two tables; readers, over keys, ranges
/// and several partitions, must never see money made or lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_rows_are_read_at_one_moment() {
    let home = Home::new();
    let broker = broker(&home).await;
    let (stop, written) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut writers = Vec::new();
    for writer in 0..2 {
        let (http, stop, written) = (broker.http(), Arc::clone(&stop), Arc::clone(&written));
        let write = move |number: u32| {
            let amount = number % 100;
            let rows = [
                ("a", amount),
                ("b", 100 - amount),
                ("c", amount),
                ("d", 100 - amount),
            ];
            let write = |(key, value)| {
                let key = format!("{writer}-{key}");
                json!({"stream": "rows", "key": key, "value": value})
            };
            Value::from(rows.map(write).to_vec())
        };
        assert_eq!(http.post("/v1/transactions", &write(0)).await.status, 200);
        writers.push(tokio::spawn(async move {
            let mut number = 1;
            while !stop.load(Ordering::Relaxed) {
                let done = http.post("/v1/transactions", &write(number)).await;
                assert_eq!(done.status, 200, "{done:?}");
                number += 1;
                written.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let http = broker.http();
    let enough = |reads| reads >= 600 && written.load(Ordering::Relaxed) >= 300;
    for read in (0..).take_while(|&reads| !enough(reads)) {
        let query = match read % 3 {
            0 => "key=0-a&key=0-b&key=0-c&key=0-d&key=1-a&key=1-b&key=1-c&key=1-d",
            1 => "prefix=",
            _ => "limit=8",
        };
        let page = http.json(&format!("/v1/tables/rows/rows?{query}")).await;
        let rows = page["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 8, "{page}");
        let value = |row: &Value| row["value"].as_u64().unwrap();
        for rows in rows.chunks(4) {
            let [a, b, c, d] = [0, 1, 2, 3].map(|at| value(&rows[at]));
            assert!(a + b == 100 && c + d == 100 && a == c, "{page}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    broker.stop().await;
}

#[tokio::test]
async fn ranges_are_in_the_order_of_keys_whatever_their_bytes() {
    let home = Home::new();
    let broker = broker(&home).await;
    let http = broker.http();
    let keys = [
        "", "%00", "%00%00", "a", "a%2Fb", "a%20b", "ab", "b", "%C3%A9", "%FE", "%FF%00",
    ];
    let keys = &keys[1..];
    for (number, key) in keys.iter().enumerate() {
        let path = format!("/v1/tables/rows/rows/{key}");
        assert_eq!(http.put(&path, &json!(number)).await.status, 200, "{key}");
    }
    let (mut values, mut after) = (Vec::new(), String::new());
    loop {
        let page = http
            .json(&format!("/v1/tables/rows/rows?limit=2{after}"))
            .await;
        let rows = page["rows"].as_array().unwrap().iter();
        values.extend(rows.map(|row| row["value"].as_u64().unwrap()));
        let next = (page["next"].as_str(), page["next_base64"].as_str());
        after = match next {
            (Some(key), _) => format!("&after={}", key.replace('\0', "%00").replace(' ', "%20")),
            (_, Some(key)) => format!("&after_base64={}", key.replace('+', "%2B")),
            _ => break,
        };
    }
    // Bytes, not letters: a space stands before a slash.
    assert_eq!(values, [0, 1, 2, 4, 3, 5, 6, 7, 8, 9]);
    let page = http.json("/v1/tables/rows/rows?prefix=a").await;
    assert_eq!(page["rows"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn values_come_back_as_they_were_sent_and_tags_follow_them() {
    let home = Home::new();
    let broker = broker(&home).await;
    let http = broker.http();
    let path = "/v1/tables/rows/rows/k";
    let json = [("content-type", "application/json")];
    let text = "{\"b\": 1.10,  \"a\":[ ]}";
    assert_eq!(http.send("PUT", path, &json, text).await.status, 200);
    let got = http.get(path).await;
    assert_eq!(got.body, text, "byte for byte");
    assert_eq!(got.header("content-type"), "application/json");
    let tag = got.header("etag").to_owned();
    let same = http.send("GET", path, &[("if-none-match", &tag)], "").await;
    assert_eq!(same.status, 304);
    let binary = [("content-type", "application/octet-stream")];
    let bytes = vec![0xff, 0, 1];
    assert_eq!(
        http.send("PUT", path, &binary, bytes.clone()).await.status,
        200
    );
    let got = http.send("GET", path, &[("if-none-match", &tag)], "").await;
    assert_eq!((got.status, &got.body[..]), (200, &bytes[..]));
    assert_eq!(got.header("content-type"), "application/octet-stream");
    assert_eq!(http.send("DELETE", path, &[], "").await.status, 200);
    let _ = http.get(path).await.problem(404, "AB1502");
}

#[tokio::test]
async fn records_of_an_append_stream_are_rows_named_by_their_dots() {
    let home = Home::new();
    let broker = broker(&home).await;
    broker
        .create(json!({"name": "events", "partitions": 2}))
        .await;
    let http = broker.http();
    let mut dots = Vec::new();
    for number in 0..25 {
        let answer = http
            .post("/v1/streams/events/records", &json!([{"value": number}]))
            .await;
        dots.push(answer.json()["dot"].as_str().unwrap().to_owned());
    }
    for (number, dot) in dots.iter().enumerate() {
        let row = http.json(&format!("/v1/tables/events/rows/{dot}")).await;
        assert_eq!(row, number);
    }
    let rows = super::table(&http, "events").await;
    assert_eq!(rows.len(), 25);
    let _ = http
        .get("/v1/tables/events/rows/nonsense")
        .await
        .problem(404, "AB1502");
}
