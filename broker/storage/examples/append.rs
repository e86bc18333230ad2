//! How fast the log takes groups, beside what the disk takes of the same bytes.
//!
//! ```text
//! cargo run --release -p anabranch-storage --example append [DIR] [MiB]
//! ```
//!
//! In turns, so that both meet the same disk: 1 MiB groups of batches of 1000 records of 100 bytes
//! through [`Log::append`] and [`Log::sync`], then as many bytes with `pwrite` and `fdatasync` into
//! a preallocated file. Then frames of single records, and a clean and an unclean start.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_core::batch::{BatchBuilder, NewRecord};
use anabranch_core::id::{ClusterId, PartitionId, StreamId};
use anabranch_core::sequencer::{Publish, Sequencer};
use anabranch_storage::data_dir::DataDir;
use anabranch_storage::disk::RealDisk;
use anabranch_storage::log::{Log, LogOptions, Opened};

type Failure = Box<dyn std::error::Error>;

const GROUP_BYTES: usize = 1 << 20;
const ROUNDS: usize = 5;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let mib: usize = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let dir = tempfile::tempdir_in(dir)?;
    let groups = mib / ROUNDS;
    for round in 0..ROUNDS {
        let raw = raw(&dir.path().join("raw"), groups)?;
        let log = log(dir.path(), groups)?;
        println!(
            "round {round}: raw {:.0} MB/s, log {:.0} MB/s ({:.0} %), {:.2} µs of CPU per KiB, append alone {:.3} µs per record",
            rate(groups, raw),
            rate(groups, log.took),
            100.0 * raw.as_secs_f64() / log.took.as_secs_f64(),
            log.cpu.as_secs_f64() * 1e6 / as_f64(groups * GROUP_BYTES / 1024),
            log.append.as_secs_f64() * 1e6 / as_f64(log.records),
        );
    }
    singles(dir.path())?;
    starts(dir.path())
}

#[expect(clippy::cast_precision_loss, reason = "printed with three digits")]
fn as_f64(n: usize) -> f64 {
    n as f64
}

fn rate(groups: usize, took: Duration) -> f64 {
    as_f64(groups * GROUP_BYTES) / 1e6 / took.as_secs_f64()
}

fn raw(path: &Path, groups: usize) -> io::Result<Duration> {
    let file = File::create(path)?;
    let length = u64::try_from(groups * GROUP_BYTES).map_err(io::Error::other)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length)?;
    file.sync_all()?;
    let bytes = vec![7; GROUP_BYTES];
    let started = Instant::now();
    let mut at = 0;
    for _ in 0..groups {
        file.write_all_at(&bytes, at)?;
        file.sync_data()?;
        at += u64::try_from(bytes.len()).map_err(io::Error::other)?;
    }
    let took = started.elapsed();
    std::fs::remove_file(path)?;
    Ok(took)
}

fn open(dir: &Path) -> Result<(DataDir, Opened), Failure> {
    let data_dir = DataDir::open(dir, ClusterId::of("bench"), 1)?;
    let disk = Arc::new(RealDisk);
    let opened = Log::open(disk, &data_dir, LogOptions::default(), &mut |_| {})?;
    Ok((data_dir, opened))
}

fn publish(records: usize, stream: u64) -> Result<Publish, Failure> {
    let mut builder = BatchBuilder::default();
    for _ in 0..records {
        builder.push(&NewRecord {
            value: Some(&[b'v'; 92]),
            ..NewRecord::default()
        })?;
    }
    Ok(Publish {
        stream: StreamId::new(stream),
        partition: PartitionId::new(0),
        batch: builder.finish(None)?,
    })
}

struct Taken {
    took: Duration,
    append: Duration,
    cpu: Duration,
    records: usize,
}

fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

fn append(
    log: &mut Log,
    sequencer: &mut Sequencer,
    group: &[Publish],
) -> Result<Duration, Failure> {
    let mut frame = sequencer.open();
    for publish in group {
        frame.add(std::slice::from_ref(publish), &mut Vec::new())?;
    }
    let commit = frame.close(1).ok_or("an empty frame")?;
    let started = Instant::now();
    log.append(commit, 1);
    Ok(started.elapsed())
}

fn log(dir: &Path, groups: usize) -> Result<Taken, Failure> {
    let (_lock, opened) = open(dir)?;
    let Opened {
        mut log,
        mut sequencer,
        ..
    } = opened;
    let batch = publish(1000, 1)?;
    let group: Vec<_> = std::iter::repeat_n(&batch, GROUP_BYTES / batch.batch.len())
        .cloned()
        .collect();
    let (started, before, mut appending) = (Instant::now(), cpu(), Duration::ZERO);
    for _ in 0..groups {
        appending += append(&mut log, &mut sequencer, &group)?;
        log.sync()?;
        if log.wants_roll() {
            log.roll(sequencer.checkpoint())?;
        }
    }
    let (took, used) = (started.elapsed(), cpu().saturating_sub(before));
    log.close(&sequencer.checkpoint())?;
    Ok(Taken {
        took,
        append: appending,
        cpu: used,
        records: groups * group.len() * 1000,
    })
}

/// Frames of 1000 publishes of one record, as single-record publishes make them.
fn singles(dir: &Path) -> Result<(), Failure> {
    let (_lock, opened) = open(dir)?;
    let Opened {
        mut log,
        mut sequencer,
        ..
    } = opened;
    for streams in [1, 100] {
        let group = (0..1000)
            .map(|n| publish(1, n % streams))
            .collect::<Result<Vec<_>, _>>()?;
        let (started, before) = (Instant::now(), cpu());
        let (mut appending, mut syncing) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..1000 {
            appending += append(&mut log, &mut sequencer, &group)?;
            let at = Instant::now();
            log.sync()?;
            syncing += at.elapsed();
            if log.wants_roll() {
                log.roll(sequencer.checkpoint())?;
            }
        }
        let (took, used) = (started.elapsed(), cpu().saturating_sub(before));
        println!(
            "frames of 1000 single records of {streams} streams: {:.2} M records/s; append {:.3}, sync {:.3}, CPU with sequencing {:.3} µs per record",
            1.0 / took.as_secs_f64(),
            appending.as_secs_f64(),
            syncing.as_secs_f64(),
            used.as_secs_f64(),
        );
    }
    // Left as a killed process leaves it.
    drop(log);
    Ok(())
}

fn starts(dir: &Path) -> Result<(), Failure> {
    for _ in 0..2 {
        let (_lock, opened) = open(dir)?;
        println!("start: {}", opened.recovery);
        opened.log.close(&opened.sequencer.checkpoint())?;
    }
    Ok(())
}
