//! How fast a link can take from the log what a peer asks for, from the page cache, on one core.
//!
//! ```text
//! cargo run --release -p anabranch-storage --example ship [DIR] [MiB]
//! ```
//!
//! A log of batches of 1000 records of 100 bytes, in turns by seven brokers. Asked for are the frames
//! of all of them, then those of one, which a link does that ships nothing twice.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anabranch_core::batch::{Batch, BatchBuilder, NewRecord};
use anabranch_core::exchange::Ask;
use anabranch_core::id::{BrokerId, ClusterId, Epoch, Origin, PartitionId, StreamId};
use anabranch_core::sequencer::{Foreign, Publish, Sequencer};
use anabranch_core::vector::VersionVector;
use anabranch_storage::data_dir::DataDir;
use anabranch_storage::disk::RealDisk;
use anabranch_storage::log::{Log, LogOptions, LogReader, Opened, Shipped};

type Failure = Box<dyn std::error::Error>;

const BROKERS: u64 = 7;

/// What a link sends at a time.
const BLOCK_BYTES: usize = 1 << 20;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let mib: usize = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let temp = tempfile::tempdir_in(dir)?;
    let data = DataDir::open(temp.path(), ClusterId::of("ship"), BROKERS + 1)?;
    let options = LogOptions::default();
    let opened = Log::open(Arc::new(RealDisk), &data, options, &mut |_| {})?;
    let reader = opened.reader.clone();
    fill(opened, mib)?;
    for of in [1..=BROKERS, 3..=3] {
        let ask = Ask {
            held: VersionVector::EMPTY,
            of: of.map(BrokerId::new).collect::<BTreeSet<_>>(),
        };
        // The first time fills the page cache.
        for _ in 0..2 {
            ship(&reader, &ask)?;
        }
    }
    Ok(())
}

fn batch() -> Result<Batch, Failure> {
    let mut builder = BatchBuilder::default();
    for number in 0..1000 {
        let value = format!("{number:0100}");
        builder.push(&NewRecord {
            value: Some(value.as_bytes()),
            ..NewRecord::default()
        })?;
    }
    Ok(builder.finish(None)?)
}

fn fill(mut opened: Opened, mib: usize) -> Result<(), Failure> {
    let batch = batch()?;
    let origin = |broker| Origin {
        broker: BrokerId::new(broker),
        epoch: Epoch::new(1),
    };
    let mut writers: Vec<_> = (1..=BROKERS).map(|n| Sequencer::new(origin(n))).collect();
    let mut bytes = 0;
    while bytes < mib << 20 {
        for writer in &mut writers {
            let mut frame = writer.open();
            let publish = Publish {
                stream: StreamId::new(1),
                partition: PartitionId::new(0),
                batch: batch.clone(),
            };
            frame.add(&[publish], &mut Vec::new())?;
            let commit = frame.close(1).ok_or("a frame of nothing")?;
            bytes += commit.size();
            let accepted = opened
                .sequencer
                .accept(&Foreign::from(&commit), u64::MAX / 2)?;
            opened.log.append(accepted, 1);
        }
        opened.log.sync()?;
        if opened.log.wants_roll() {
            opened.log.roll(opened.sequencer.checkpoint())?;
        }
    }
    opened.log.close(&opened.sequencer.checkpoint())?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "printed with three digits")]
fn ship(reader: &LogReader, ask: &Ask) -> Result<(), Failure> {
    let started = Instant::now();
    let (mut at, mut bytes, mut frames) = (reader.ship_from(ask), 0, 0);
    while at < reader.next_position() {
        let shipment = reader.ship(at, ask, &|_| true, BLOCK_BYTES)?;
        for item in &shipment.items {
            if let Shipped::Frame(commit) = item {
                bytes += commit.size();
                frames += 1;
            }
        }
        at = shipment.next;
    }
    let took = started.elapsed().as_secs_f64();
    println!(
        "{} of {BROKERS} brokers: {frames} frames, {:.0} MB, {:.0} MB/s",
        ask.of.len(),
        bytes as f64 / 1e6,
        bytes as f64 / 1e6 / took,
    );
    Ok(())
}
