//! The client against a small broker in this process, which cuts connections where it hurts.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

mod broker;

use std::time::Duration;

use anabranch_client::{
    Client, Code, Event, From, PublisherOptions, Record, SubscribeOptions, Watch,
};
use broker::Broker;

fn client(broker: &Broker) -> Client {
    Client::builder(&broker.url()).lazy().unwrap()
}

fn small_batches() -> PublisherOptions {
    PublisherOptions {
        batch_records: 7,
        ..PublisherOptions::default()
    }
}

fn number(n: u32) -> String {
    n.to_string()
}

#[tokio::test]
async fn every_record_counts_once_however_often_the_connection_breaks() {
    let broker = Broker::start().await;
    broker.cut_after_publishes(3);
    let stream = client(&broker).stream("numbers");
    let publisher = stream.publisher(small_batches()).await.unwrap();
    let mut acks = Vec::new();
    for n in 0..500 {
        let text = number(n);
        acks.push(
            publisher
                .send(Record::value(text.as_bytes()))
                .await
                .unwrap(),
        );
    }
    publisher.close().await.unwrap();
    let expected: Vec<_> = (0..500).map(number).collect();
    assert_eq!(broker.log(), expected);
    assert!(broker.connections() > 10);
    for (n, ack) in acks.into_iter().enumerate() {
        let ack = ack.await.unwrap();
        if let Some(offset) = ack.offset {
            assert_eq!(offset.get(), n as u64);
        }
    }
}

#[tokio::test]
async fn a_refused_record_fails_with_the_code_and_others_go_on() {
    let broker = Broker::start().await;
    broker.refuse("poison", Code::KeyMissing);
    let stream = client(&broker).stream("numbers");
    let one_each = PublisherOptions {
        batch_records: 1,
        ..PublisherOptions::default()
    };
    let publisher = stream.publisher(one_each).await.unwrap();
    let mut acks = Vec::new();
    for text in ["a", "b", "poison", "c", "d"] {
        acks.push(
            publisher
                .send(Record::value(text.as_bytes()))
                .await
                .unwrap(),
        );
    }
    let flushed = publisher.flush().await;
    assert_eq!(flushed.unwrap_err().code(), Some(Code::KeyMissing));
    let mut failed = Vec::new();
    for (n, ack) in acks.into_iter().enumerate() {
        if let Err(error) = ack.await {
            assert_eq!(error.code(), Some(Code::KeyMissing));
            failed.push(n);
        }
    }
    assert_eq!(failed, [2]);
    assert_eq!(broker.log(), ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn publish_waits_for_the_acknowledgement() {
    let broker = Broker::start().await;
    let stream = client(&broker).stream("numbers");
    for n in 0..3 {
        let ack = stream
            .publish(Record::value(b"x".as_slice()))
            .await
            .unwrap();
        assert_eq!(ack.offset.map(|offset| offset.get()), Some(n));
        assert!(ack.dot.is_some());
    }
}

#[tokio::test]
async fn the_window_bounds_what_waits() {
    let broker = Broker::start().await;
    broker.hold_acks(true);
    let stream = client(&broker).stream("numbers");
    let options = PublisherOptions {
        window_bytes: 10 * 100,
        linger: Duration::ZERO,
        ..PublisherOptions::default()
    };
    let publisher = stream.publisher(options).await.unwrap();
    let value = [b'x'; 36];
    let mut sent = 0;
    let send = || publisher.send(Record::value(value.as_slice()));
    while tokio::time::timeout(Duration::from_millis(200), send())
        .await
        .is_ok()
    {
        sent += 1;
    }
    assert_eq!(sent, 10, "a record counts for its bytes and 64 more");
    broker.hold_acks(false);
    send().await.unwrap();
    publisher.close().await.unwrap();
    assert_eq!(broker.log().len(), 11);
}

#[tokio::test]
async fn a_publisher_gives_up_after_its_time() {
    let broker = Broker::start().await;
    let stream = client(&broker).stream("numbers");
    let options = PublisherOptions {
        give_up_after: Duration::from_millis(100),
        ..PublisherOptions::default()
    };
    let publisher = stream.publisher(options).await.unwrap();
    broker.stop();
    let ack = publisher
        .send(Record::value(b"x".as_slice()))
        .await
        .unwrap();
    assert!(ack.await.unwrap_err().retryable());
    assert!(publisher.is_closed());
    assert!(
        publisher
            .send(Record::value(b"y".as_slice()))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_subscription_resumes_behind_the_last_record() {
    let broker = Broker::start().await;
    for n in 0..200 {
        broker.append(&number(n));
    }
    broker.cut_after_deliveries(17);
    let options = SubscribeOptions {
        credit_bytes: 1000,
        ..SubscribeOptions::default()
    };
    let stream = client(&broker).stream("numbers");
    let mut subscription = stream
        .subscribe_with(From::Earliest, options)
        .await
        .unwrap();
    for n in 0..200 {
        let record = subscription.next_record().await.unwrap();
        assert_eq!(record.value.as_deref(), Some(number(n).as_bytes()));
        assert_eq!(record.offset.get(), u64::from(n));
    }
    assert!(broker.connections() > 10);
    // The last record is processed once the next is asked for.
    let more = tokio::time::timeout(Duration::from_millis(50), subscription.next()).await;
    assert!(more.is_err());
    let cursor = From::Cursor(subscription.cursor().unwrap().to_owned());
    broker.append("200");
    let mut later = stream.subscribe(cursor).await.unwrap();
    let record = later.next_record().await.unwrap();
    assert_eq!(record.value.as_deref(), Some(b"200".as_slice()));
}

#[tokio::test]
async fn latest_is_a_place_that_does_not_move() {
    let broker = Broker::start().await;
    broker.append("before");
    let stream = client(&broker).stream("numbers");
    let mut subscription = stream.subscribe(From::Latest).await.unwrap();
    broker.cut_all();
    broker.append("after");
    let record = subscription.next_record().await.unwrap();
    assert_eq!(record.value.as_deref(), Some(b"after".as_slice()));
    assert_eq!(broker.connections(), 2);
}

#[tokio::test]
async fn rows_begin_again_when_the_connection_breaks_between_them() {
    let broker = Broker::start().await;
    broker.put_row("a", "1");
    broker.put_row("b", "2");
    broker.cut_in_rows();
    let stream = client(&broker).stream("numbers");
    let mut subscription = stream.subscribe(From::Table).await.unwrap();
    let mut seen = Vec::new();
    loop {
        match subscription.next().await.unwrap() {
            Event::Row(row) => seen.push(String::from_utf8(row.key.to_vec()).unwrap()),
            Event::Restarted => seen.push("again".to_owned()),
            Event::Live => break,
            Event::Record(record) => panic!("{record:?} before the table was complete"),
        }
    }
    assert_eq!(seen, ["a", "again", "a", "b"]);
    let mut watch: Watch = stream.watch(b"b").await.unwrap();
    assert_eq!(
        watch.next().await.unwrap().as_deref(),
        Some(b"2".as_slice())
    );
    let mut nothing = stream.watch(b"z").await.unwrap();
    assert_eq!(nothing.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_cursor_that_is_too_old_ends_the_subscription() {
    let broker = Broker::start().await;
    let stream = client(&broker).stream("numbers");
    let old = From::Cursor("Ytooold1".to_owned());
    let mut subscription = stream.subscribe(old).await.unwrap();
    let error = subscription.next().await.unwrap_err();
    assert_eq!(error.code(), Some(Code::CursorTooOld));
    assert!(!error.retryable());
    assert_eq!(
        subscription.next().await,
        Err(anabranch_client::Error::Closed)
    );
}

#[tokio::test]
async fn nobody_listening_is_an_error_that_may_pass() {
    let broker = Broker::start().await;
    let url = broker.url();
    broker.stop();
    let error = Client::connect(&url).await.unwrap_err();
    assert!(error.retryable(), "{error}");
    assert!(
        error.to_string().contains("cannot connect to 127.0.0.1:"),
        "{error}"
    );
}
