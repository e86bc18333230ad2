//! Publishes a million small records and waits until all are on disk.
//!
//! `cargo run --release -p anabranch-client --example publish -- http://127.0.0.1:7070 numbers`

use std::time::Instant;

use anabranch_client::{Client, MergeMode, PublisherOptions, Record, StreamDefinition, StreamName};

const RECORDS: u32 = 1_000_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments
        .next()
        .unwrap_or("http://127.0.0.1:7070".to_owned());
    let name = arguments.next().unwrap_or("numbers".to_owned());

    let client = Client::connect(&url).await?;
    let definition = StreamDefinition::new(StreamName::parse(&name)?, MergeMode::Append);
    client.create_stream(&definition).await?;

    let started = Instant::now();
    let publisher = client
        .stream(&name)
        .publisher(PublisherOptions::default())
        .await?;
    for n in 0..RECORDS {
        let value = format!("{{\"n\":{n}}}");
        // Waits when too much is on its way. The future it returns may be awaited for the
        // record's own acknowledgement; `flush` waits for all of them.
        publisher.send(Record::value(value.as_bytes())).await?;
    }
    publisher.flush().await?;
    println!("{RECORDS} records on disk after {:?}", started.elapsed());
    Ok(())
}
