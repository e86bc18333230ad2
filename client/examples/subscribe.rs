//! Prints the records of a stream, from the first one on, and goes on for ever.
//!
//! `cargo run --release -p anabranch-client --example subscribe -- http://127.0.0.1:7070 numbers`

use anabranch_client::{Client, From};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments
        .next()
        .unwrap_or("http://127.0.0.1:7070".to_owned());
    let name = arguments.next().unwrap_or("numbers".to_owned());

    let client = Client::connect(&url).await?;
    let mut subscription = client.stream(&name).subscribe(From::Earliest).await?;
    loop {
        // Survives the loss of its connection: it connects again and goes on behind this record.
        let record = subscription.next_record().await?;
        let value = record.value.unwrap_or_default();
        println!(
            "{}/{} {}",
            record.partition,
            record.offset,
            String::from_utf8_lossy(&value)
        );
    }
}
