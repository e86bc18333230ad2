//! What a program gets that uses the Rust client instead of ready-made messages.

use std::time::Instant;

use anabranch_client::{Client, Publisher, PublisherOptions, Record};
use anyhow::{Result, ensure};

use super::load::{Defaults, Length, Load};
use super::stage::Stage;
use crate::cli::{Format, LoadArguments, Merge};
use crate::frames::Values;
use crate::progress;
use crate::report::{Report, Unit};

const DEFAULTS: Defaults = Defaults {
    records: Some(10_000_000),
    seconds: 0.0,
    warm_up: 1.0,
    batch: 1000,
    keys: None,
    window: 32,
    connections: 1,
    rate: None,
    format: Format::Batch,
};

/// Records sent between two looks at the clock and the bar.
const STRIDE: usize = 1000;

pub(crate) async fn run(given: &LoadArguments) -> Result<Report> {
    let stage = Stage::set_beside_disk(&given.setting, "client", Merge::Append).await?;
    let load = Load::new(given, &DEFAULTS, stage.stream())?;
    ensure!(
        load.rate.is_none(),
        "the client is measured as fast as it goes"
    );
    let client = Client::connect(&format!("http://{}", stage.broker.address())).await?;
    let options = PublisherOptions {
        batch_records: u32::try_from(load.shape.batch)?,
        ..PublisherOptions::default()
    };
    let publisher = client.stream(stage.stream()).publisher(options).await?;
    let values = Values::new(load.shape.value_bytes);
    send(&publisher, &values, Length::Time(load.warm_up)).await?;
    let before = stage.cpu();
    let records = send(&publisher, &values, load.length).await?;
    let spent = before.until(&stage.cpu());
    publisher.close().await?;

    let (bytes, batch) = (load.shape.value_bytes, load.shape.batch);
    let work = format!("durable publish through the Rust client, {bytes} B, up to {batch} a batch");
    let mut report = stage.report("client", work);
    let rate = records as f64 / spent.seconds;
    report.add("records", rate, Unit::PerSecond);
    let bytes = rate * load.shape.record_bytes() as f64 / 1e6;
    report.add("keys and values", bytes, Unit::MegabytesPerSecond);
    report.add_cpu(&spent, records, "record");
    stage.clear(&mut report).await?;
    Ok(report)
}

/// Sends and waits for the last acknowledgement; returns how many records it were.
async fn send(publisher: &Publisher, values: &Values, length: Length) -> Result<usize> {
    let (records, end) = match length {
        Length::Records(records) => (Some(records), None),
        Length::Time(time) => (None, Some(Instant::now() + time)),
    };
    let bar = progress::bar("publishing", records);
    let mut sent = 0;
    while records.is_none_or(|records| sent < records) && end.is_none_or(|end| Instant::now() < end)
    {
        for number in sent..sent + STRIDE {
            // Refused or lost records show when the publisher is flushed.
            publisher
                .send(Record::value(values.value(number as u64)))
                .await?;
        }
        sent += STRIDE;
        bar.inc(STRIDE as u64);
    }
    publisher.flush().await?;
    bar.finish_and_clear();
    Ok(sent)
}
