//! Records that are numbered, so that none is missed or doubled unnoticed.

use std::ops::Range;

use anabranch_protocol::record::Record;
use anabranch_tests::broker::Broker;
use anabranch_tests::follow::Got;
use anabranch_tests::wire::Wire;

/// The stream they are published to.
pub(crate) const STREAM: &str = "numbers";

/// Keys of numbers: `a-0` to `a-4`, and `b-5` to `b-9`.
pub(crate) fn key(number: u32) -> String {
    let family = if number % 10 < 5 { 'a' } else { 'b' };
    format!("{family}-{}", number % 10)
}

/// The record of a number.
pub(crate) fn record(number: u32) -> Record<'static> {
    Record::put(key(number).into_bytes(), number.to_string().into_bytes())
}

/// Publishes numbers, three at a time, each time waiting for the acknowledgement.
pub(crate) async fn publish(wire: &mut Wire, numbers: Range<u32>) {
    let all: Vec<u32> = numbers.collect();
    for some in all.chunks(3) {
        let records = some.iter().map(|&number| record(number)).collect();
        wire.publish(STREAM, records).await;
    }
}

/// Publishes numbers on a connection of their own.
pub(crate) async fn publish_to(broker: &Broker, numbers: Range<u32>) {
    publish(&mut broker.connect().await, numbers).await;
}

/// The numbers of records, in order of their values.
pub(crate) fn numbers(records: &[Got]) -> Vec<u32> {
    let mut numbers: Vec<u32> = records
        .iter()
        .map(|got| got.text().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Numbers that satisfy a condition.
pub(crate) fn those(numbers: Range<u32>, wanted: impl Fn(u32) -> bool) -> Vec<u32> {
    numbers.filter(|&number| wanted(number)).collect()
}
