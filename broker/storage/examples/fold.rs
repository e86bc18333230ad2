//! How fast tables take writes and answer reads: `cargo run --release -p anabranch-storage --example fold --
//! [ROWS] [KEYS] [uniform|skewed|ascending] [random|json] [RECORDS_PER_FRAME]`.
//!
//! All frames are made and synced to a disk in memory before the clock starts. A reader asks for
//! 2,000 random rows a second meanwhile. "settled" ends when flushes and compactions have ended.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anabranch_core::batch::{Batch, BatchBuilder, NewRecord};
use anabranch_core::frame::Commit;
use anabranch_core::id::{BrokerId, ClusterId, PartitionId, StreamId, StreamName};
use anabranch_core::sequencer::{Publish, Sequencer};
use anabranch_core::stream::{MergeMode, SYSTEM_STREAM, StreamDefinition};
use anabranch_storage::data_dir::Identity;
use anabranch_storage::disk::MemoryDisk;
use anabranch_storage::durable::Durable;
use anabranch_storage::log::{Log, LogOptions, Opened};
use anabranch_storage::tables::{Applier, KeyRange, Page, Tables, TablesOptions};
use bytes::Bytes;
use fastrand::Rng;
use rustix::time::{ClockId, clock_gettime};

/// Commits given to the applier at a time, as a log reader would.
const RUN: usize = 64;

/// Frames synced together while they are made.
const GROUP_BYTES: usize = 4 << 20;

struct Load {
    rows: u64,
    keys: u64,
    order: String,
    values: String,
    per_frame: u64,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default| {
        args.next()
            .map_or(default, |n| n.parse().expect("a number"))
    };
    let (rows, keys) = (number(20_000_000), number(1_000_000));
    let load = Load {
        rows,
        keys,
        order: args.next().unwrap_or_else(|| "uniform".into()),
        values: args.next().unwrap_or_else(|| "random".into()),
        per_frame: args.next().map_or(1_000, |n| n.parse().expect("a number")),
    };
    let frames = frames(&load);
    let dir = tempfile::tempdir().expect("a directory for the tables");
    let (tables, applier) = Tables::open(dir.path(), options()).expect("an empty directory opens");
    println!("memory before: {} MB", resident_mb());
    run(&load, &frames, &tables, applier);
    println!("with all rows in the store:");
    reads(&load, &tables);
    if std::env::var_os("UNCHECKED").is_none() {
        check(dir.path(), &frames, &tables);
    }
}

fn options() -> TablesOptions {
    let mut options = TablesOptions::default();
    let env = |name| std::env::var(name).ok()?.parse().ok();
    if let Some(rows) = env("IMAGE_ROWS") {
        options.image_rows = rows;
    }
    if let Some(frozen) = env("FROZEN") {
        options.frozen_images = frozen;
    }
    options
}

fn run(load: &Load, frames: &[Durable<Arc<Commit>>], tables: &Tables, mut applier: Applier) {
    let done = AtomicBool::new(false);
    let cpu = ClockId::ProcessCPUTime;
    let before = seconds(cpu);
    let began = Instant::now();
    let (fold, folded, latencies) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(load, tables, &done));
        let fold = std::thread::Builder::new()
            .name("applier".into())
            .spawn_scoped(scope, || fold(frames, &mut applier))
            .expect("a thread starts");
        let fold = fold.join().expect("the fold ends");
        let folded = began.elapsed().as_secs_f64();
        done.store(true, Ordering::Release);
        (fold, folded, reader.join().expect("the reader ends"))
    });
    settle();
    let settled = began.elapsed().as_secs_f64();
    let all = seconds(cpu) - before;
    let rows = load.rows as f64;
    let stats = tables.stats();
    println!(
        "{:.2} M rows/s, {:.2} M settled",
        rows / folded / 1e6,
        rows / settled / 1e6
    );
    println!(
        "fold thread {:.3} µs per row, all else {:.3} µs",
        fold / rows * 1e6,
        (all - fold) / rows * 1e6
    );
    println!(
        "rows written per row folded {:.3}, {} flushes",
        stats.flushed_rows as f64 / rows,
        stats.flushes
    );
    println!("get {latencies}");
    println!(
        "stored {} MB, level 0 {}, memory {} MB",
        stats.stored_bytes >> 20,
        stats.level0_files,
        resident_mb()
    );
}

/// Applies all frames and flushes; gives the thread's processor time.
fn fold(frames: &[Durable<Arc<Commit>>], applier: &mut Applier) -> f64 {
    let before = seconds(ClockId::ThreadCPUTime);
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for run in frames.chunks(RUN) {
        let began = Instant::now();
        applier.apply(run).expect("the frames fold");
        slowest = slowest.max(began.elapsed());
    }
    println!(
        "folded after {:.2?}, slowest run {slowest:.1?}",
        began.elapsed()
    );
    applier.flush().expect("the image flushes");
    seconds(ClockId::ThreadCPUTime) - before
}

/// Reads at a steady pace; gives the quantiles of its latency.
fn read(load: &Load, tables: &Tables, done: &AtomicBool) -> String {
    let mut rng = Rng::with_seed(9);
    let mut taken = Vec::new();
    while !done.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_micros(500));
        let key = key(rng.u64(..load.keys), &load.order);
        let began = Instant::now();
        let value = tables.get(stream(), &key).expect("the store reads");
        taken.push(began.elapsed());
        std::hint::black_box(value);
    }
    quantiles(taken)
}

fn quantiles(mut taken: Vec<Duration>) -> String {
    taken.sort_unstable();
    let at = |per_mille: usize| {
        let place = (taken.len() * per_mille / 1000).min(taken.len().saturating_sub(1));
        taken.get(place).copied().unwrap_or_default()
    };
    format!(
        "p50 {:.1?} p99 {:.1?} p99.9 {:.1?}",
        at(500),
        at(990),
        at(999)
    )
}

/// How long gets, scans and a snapshot take with nothing else going on.
fn reads(load: &Load, tables: &Tables) {
    let mut rng = Rng::with_seed(8);
    let mut gets = Vec::new();
    let mut scans = Vec::new();
    for n in 0..20_000 {
        let key = key(rng.u64(..load.keys), &load.order);
        let began = Instant::now();
        std::hint::black_box(tables.get(stream(), &key).expect("the store reads"));
        gets.push(began.elapsed());
        if n % 100 == 0 {
            let range = KeyRange {
                prefix: Bytes::new(),
                after: Some(Bytes::copy_from_slice(&key)),
                limit: 100,
                max_bytes: 1 << 20,
            };
            let began = Instant::now();
            std::hint::black_box(tables.scan(stream(), &range).expect("the store reads"));
            scans.push(began.elapsed());
        }
    }
    println!("  get {}", quantiles(gets));
    let first = scans[0];
    println!(
        "  scan of 100 rows, the first {first:.1?}, {}",
        quantiles(scans)
    );
    let began = Instant::now();
    let mut rows = 0;
    let each = &mut |page: Page| {
        rows += page.rows.len();
        ControlFlow::Continue(())
    };
    tables
        .snapshot(stream(), b"", each)
        .expect("the store reads");
    println!("  snapshot of {rows} rows {:.2?}", began.elapsed());
}

/// Waits until nothing runs any more: compactions have no other sign.
fn settle() {
    let mut quiet = 0;
    let mut last = seconds(ClockId::ProcessCPUTime);
    while quiet < 3 {
        std::thread::sleep(Duration::from_millis(50));
        let now = seconds(ClockId::ProcessCPUTime);
        quiet = if now - last < 0.002 { quiet + 1 } else { 0 };
        last = now;
    }
}

/// Every row is the last one written.
fn check(dir: &Path, frames: &[Durable<Arc<Commit>>], tables: &Tables) {
    let mut last = std::collections::HashMap::new();
    for part in frames
        .iter()
        .flat_map(|frame| &frame.parts)
        .filter(|part| part.header.stream == stream())
    {
        let records = part
            .batch
            .as_ref()
            .expect("nothing was dropped")
            .records()
            .expect("plain");
        for record in records.iter() {
            let record = record.expect("made here");
            last.insert(
                record.key.expect("keyed").to_vec(),
                record.value.map(<[u8]>::to_vec),
            );
        }
    }
    let began = Instant::now();
    let mut rows = 0;
    let each = &mut |of, key: &[u8], stored: &[u8]| {
        if of == stream() {
            rows += 1;
            assert_eq!(last.get(key).and_then(Option::as_deref), Some(&stored[1..]));
        }
    };
    tables.each_row(each).expect("the store reads");
    assert_eq!(rows, last.len());
    println!(
        "{rows} rows compared in {:.2} s, all equal ({})",
        began.elapsed().as_secs_f64(),
        dir.display()
    );
}

fn stream() -> StreamId {
    StreamName::parse("bench").expect("a good name").id()
}

fn key(n: u64, order: &str) -> [u8; 16] {
    let hash = if order == "ascending" {
        n
    } else {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    let mut key = [0; 16];
    key[..8].copy_from_slice(&hash.to_be_bytes());
    key[8..].copy_from_slice(&n.to_be_bytes());
    key
}

fn frames(load: &Load) -> Vec<Durable<Arc<Commit>>> {
    let mut rng = Rng::with_seed(1);
    let identity = Identity {
        cluster: ClusterId::of("bench"),
        broker: BrokerId::new(1),
    };
    let disk = Arc::new(MemoryDisk::new(1));
    let options = LogOptions::default();
    let Opened {
        mut log,
        mut sequencer,
        ..
    } = Log::open_at(disk, Path::new("/bench"), identity, options, &mut |_| {})
        .expect("an empty disk opens");
    let definition = StreamDefinition::new(
        StreamName::parse("bench").expect("a good name"),
        MergeMode::Lww,
    );
    let mut create = BatchBuilder::default();
    put(
        &mut create,
        b"bench",
        definition.to_json().to_string().as_bytes(),
    );
    let system = StreamName::parse(SYSTEM_STREAM).expect("a good name").id();
    log.append(frame(&mut sequencer, system, create), 1);
    let mut frames = Vec::new();
    for from in (0..load.rows).step_by(usize::try_from(load.per_frame).expect("small")) {
        let mut batch = BatchBuilder::with_capacity(130_000);
        for row in from..load.rows.min(from + load.per_frame) {
            let n = match load.order.as_str() {
                "ascending" => row % load.keys,
                "skewed" => skewed(&mut rng, load.keys),
                _ => rng.u64(..load.keys),
            };
            put(
                &mut batch,
                &key(n, &load.order),
                &value(&mut rng, row, &load.values),
            );
        }
        log.append(frame(&mut sequencer, stream(), batch), 1);
        if log.pending_bytes() > GROUP_BYTES {
            frames.extend(log.sync().expect("memory does not fail"));
            if log.wants_roll() {
                log.roll(sequencer.checkpoint())
                    .expect("memory does not fail");
            }
        }
    }
    frames.extend(log.sync().expect("memory does not fail"));
    frames
}

/// Half of the writes go to about one key in a hundred.
fn skewed(rng: &mut Rng, keys: u64) -> u64 {
    let mut below = keys;
    for _ in 0..5 {
        below = rng.u64(..below) + 1;
    }
    below - 1
}

fn value(rng: &mut Rng, row: u64, kind: &str) -> Vec<u8> {
    if kind == "json" {
        return format!(
            r#"{{"id":{row},"status":"delivered","city":"Rotterdam","amount":{}.{:02},"items":{}}}"#,
            rng.u32(..10_000), rng.u32(..100), rng.u32(..9),
        ).into_bytes();
    }
    let mut value = vec![0; 100];
    rng.fill(&mut value);
    value
}

fn put(batch: &mut BatchBuilder, key: &[u8], value: &[u8]) {
    let record = NewRecord {
        key: Some(key),
        value: Some(value),
        ..NewRecord::default()
    };
    batch.push(&record).expect("there is room");
}

fn frame(sequencer: &mut Sequencer, stream: StreamId, batch: BatchBuilder) -> Commit {
    let batch: Batch = batch.finish(None).expect("it has records");
    let mut open = sequencer.open();
    let publish = Publish {
        stream,
        partition: PartitionId::new(0),
        batch,
    };
    open.add(&[publish], &mut Vec::new())
        .expect("there is room");
    open.close(1).expect("it has a part")
}

fn seconds(clock: ClockId) -> f64 {
    let now = clock_gettime(clock);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn resident_mb() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok());
    (pages.unwrap_or(0) * 4096) >> 20
}
