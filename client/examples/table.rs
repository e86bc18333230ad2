//! Uses a stream as a table: writes rows, reads them back, and watches one.
//!
//! `cargo run --release -p anabranch-client --example table -- http://127.0.0.1:7070 airports`

use anabranch_client::{Client, MergeMode, ReadOptions, RowRange, StreamDefinition, StreamName};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments
        .next()
        .unwrap_or("http://127.0.0.1:7070".to_owned());
    let name = arguments.next().unwrap_or("airports".to_owned());

    let client = Client::connect(&url).await?;
    let definition = StreamDefinition::new(StreamName::parse(&name)?, MergeMode::Lww);
    client.create_stream(&definition).await?;
    let airports = client.stream(&name);

    // Both or neither.
    let written = client
        .transaction()
        .put(&name, b"JFK", br#"{"name":"John F Kennedy Intl"}"#)
        .put(&name, b"LGA", br#"{"name":"La Guardia"}"#)
        .commit()
        .await?;

    // The token makes sure that a read sees the write, whichever broker answers.
    let read = airports
        .row_with(b"JFK", &ReadOptions::after(written.token))
        .await?;
    if let Some(row) = &read.value {
        println!("JFK {}", String::from_utf8_lossy(&row.bytes));
    }
    for row in &airports.rows(&RowRange::default()).await?.rows {
        println!("{:?} {:?}", row.key, row.value);
    }

    let mut watch = airports.watch(b"LGA").await?;
    println!("now {:?}", watch.next().await?);
    airports.delete_row(b"LGA").await?;
    println!("then {:?}", watch.next().await?);
    Ok(())
}
