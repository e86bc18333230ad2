//! What brokers of 3 to 175 regions say to each other beyond records, with the protocol as it is:
//! real sequencers, contexts, holding, blocks and reports, no disks and no sockets.
//!
//! Up to 16 regions everybody is linked with everybody. Beyond, 16 hubs are, and each other region
//! with one of them. Every region writes its share of the rate, and closes a frame at each tick. A
//! message takes one tick to the next broker. Prints a table, and writes plots into `docs/plots/`.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates and sizes are small"
)]

use std::collections::{BTreeMap, BTreeSet};

use anabranch_core::batch::{Batch, BatchBuilder, NewRecord};
use anabranch_core::frame::Commit;
use anabranch_core::holding::{Everything, Holding, Settled};
use anabranch_core::id::{BrokerId, Epoch, Origin, PartitionId, RegionName, StreamId};
use anabranch_core::members::Members;
use anabranch_core::mesh::Mesh;
use anabranch_core::sequencer::{Publish, Sequencer};
use anabranch_core::stability::Report;
use anabranch_protocol::peer::block::{Block, BlockReader, BlockWriter, Item};
use anabranch_protocol::peer::{Encoder, PeerMessage};
use anabranch_tests::repository;
use anabranch_tests::sim::founded_by;
use bytes::BytesMut;

/// Brokers that are linked with all others of them.
const HUBS: usize = 16;

/// How often a link reports at most, in milliseconds, and how many bytes of reports it takes in that
/// time: as `peer/link.rs` does.
const REPORT_EVERY_MS: f64 = 2.0;
const REPORT_BYTES_PER_MS: f64 = 50.0;

/// Ticks in which all links begin, ticks before measuring, and ticks measured.
const BEGIN_TICKS: usize = 6;
const WARM_UP: usize = 8;
const MEASURED: usize = 20;

const REGIONS: [usize; 6] = [3, 7, 16, 50, 100, 175];

struct Broker {
    sequencer: Sequencer,
    mesh: Mesh,
    founders: Members,
    holding: Holding<()>,
    log: Vec<Commit>,
}

/// A link in one direction: what is shipped over it, and how far.
struct Link {
    from: usize,
    to: usize,
    of: BTreeSet<BrokerId>,
    position: usize,
    writer: BlockWriter,
    reader: BlockReader,
    encoder: Encoder,
    next_report: f64,
    report_bytes_per_ms: f64,
    longest_pause: f64,
}

#[derive(Clone, Copy, Default)]
struct Said {
    frames: f64,
    heads: f64,
    reports: f64,
    records: f64,
}

fn id(at: usize) -> BrokerId {
    BrokerId::new(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(at as u64 + 1))
}

fn hub_of(at: usize) -> usize {
    at % HUBS
}

/// Who ships whose frames to whom.
fn links(regions: usize) -> Vec<Link> {
    let hubs = regions.min(HUBS);
    let mut links = Vec::new();
    let mut link = |from: usize, to: usize, of: BTreeSet<BrokerId>| {
        links.push(Link {
            from,
            to,
            of,
            position: 0,
            writer: BlockWriter::default(),
            reader: BlockReader::default(),
            encoder: Encoder::default(),
            next_report: 0.0,
            report_bytes_per_ms: 0.0,
            longest_pause: 0.0,
        });
    };
    for from in 0..hubs {
        let served = (0..regions).filter(|&at| hub_of(at) == from);
        let served: BTreeSet<_> = served.map(id).collect();
        for to in (0..hubs).filter(|&to| to != from) {
            link(from, to, served.clone());
        }
        for leaf in (hubs..regions).filter(|&leaf| hub_of(leaf) == from) {
            link(leaf, from, BTreeSet::from([id(leaf)]));
            let others = (0..regions).filter(|&at| at != leaf);
            link(from, leaf, others.map(id).collect());
        }
    }
    links
}

fn region(at: usize) -> RegionName {
    RegionName::parse(&format!("r{at}")).expect("it is in the alphabet")
}

fn broker(at: usize, regions: usize) -> Broker {
    let origin = Origin {
        broker: id(at),
        epoch: Epoch::new(1),
    };
    let founders = founded_by((0..regions).map(|at| (id(at), region(at))));
    let mut mesh = Mesh::new(id(at), region(at));
    mesh.resume();
    Broker {
        sequencer: Sequencer::new(origin),
        mesh,
        founders,
        holding: Holding::default(),
        log: Vec::new(),
    }
}

fn batch(records: usize, seed: u64) -> Batch {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut builder = BatchBuilder::default();
    for _ in 0..records {
        let key = random.u64(..).to_be_bytes();
        let value: String = std::iter::repeat_with(|| random.alphanumeric())
            .take(64)
            .collect();
        let value = format!("{{\"number\":{:012},\"text\":\"{value}\"}}", random.u32(..));
        builder
            .push(&NewRecord {
                key: Some(&key),
                value: Some(value.as_bytes()),
                timestamp: 1_700_000_000_000,
                ..NewRecord::default()
            })
            .expect("it is short");
    }
    builder.finish(None).expect("it is not empty")
}

impl Broker {
    fn write(&mut self, records: usize, now_ms: u64) {
        let publish = Publish {
            stream: StreamId::new(5),
            partition: PartitionId::new(0),
            batch: batch(records, now_ms),
        };
        let mut frame = self.sequencer.open();
        frame.add(&[publish], &mut Vec::new()).expect("it fits");
        self.log.extend(frame.close(now_ms));
    }

    fn take(&mut self, items: Vec<Item>, now_ms: u64) {
        for item in items {
            if let Item::Frame(frame) = item {
                self.holding.offer(frame, ());
            }
        }
        while let Some(settled) =
            self.holding
                .next(&mut self.sequencer, now_ms, &Everything, &mut |_| true)
        {
            if let Settled::Taken(commit, ()) = settled {
                self.log.push(commit);
            }
        }
    }

    fn settle(&mut self) {
        let report = self.sequencer.report();
        self.mesh.advance(report, &self.founders);
    }
}

/// What is shipped over a link in a tick, and what of it is not payload.
fn ship(link: &mut Link, log: &[Commit], sum: &mut Said) -> Option<Block> {
    let mut payload = 0;
    for commit in &log[link.position..] {
        if link.of.contains(&commit.header.origin.broker) {
            link.writer.put_frame(commit);
            sum.frames += 1.0;
            sum.records += f64::from(commit.header.record_count());
            let batches = commit.parts.iter().filter_map(|part| part.batch.as_ref());
            payload += batches.map(Batch::len).sum::<usize>();
        }
    }
    link.position = log.len();
    let block = link.writer.take()?;
    let mut message = BytesMut::new();
    let said = PeerMessage::Block {
        compressed: false,
        inflated: u32::try_from(block.bodies.len()).expect("blocks are bounded"),
        block: block.clone(),
    };
    link.encoder.encode(&said, &mut message);
    sum.heads += (message.len() - payload) as f64;
    Some(block)
}

/// Reports go out as often as they may, or with each tick while all links begin. What they take of
/// the link until the next ones is what is counted.
fn report(
    link: &mut Link,
    from: &Broker,
    (at_ms, tick_ms): (f64, f64),
    sum: &mut Said,
) -> Vec<Report> {
    let mut reports = Vec::new();
    let begins = at_ms < BEGIN_TICKS as f64 * tick_ms;
    if begins || at_ms >= link.next_report {
        reports = from.mesh.news(Some(&link.of), false).reports;
        let mut message = BytesMut::new();
        let said = PeerMessage::Reports(reports.clone());
        link.encoder.encode(&said, &mut message);
        let pause = REPORT_EVERY_MS.max(message.len() as f64 / REPORT_BYTES_PER_MS);
        link.report_bytes_per_ms = message.len() as f64 / pause;
        link.next_report = at_ms + pause;
        link.longest_pause = match begins {
            true => 0.0,
            false => link.longest_pause.max(pause),
        };
    }
    sum.reports += link.report_bytes_per_ms * tick_ms;
    reports
}

struct Measured {
    regions: usize,
    sum: Said,
    kilobytes: f64,
    /// The longest that a link had to wait between reports, in milliseconds.
    pause: f64,
    heal: usize,
}

fn tick(
    brokers: &mut [Broker],
    links: &mut [Link],
    (now, at_ms, tick_ms): (u64, f64, f64),
    cut: Option<usize>,
) -> Said {
    let mut sum = Said::default();
    let mut arriving = Vec::new();
    for (number, link) in links.iter_mut().enumerate() {
        if cut.is_none_or(|cut| link.from != cut && link.to != cut) {
            let block = ship(link, &brokers[link.from].log, &mut sum);
            let reports = report(link, &brokers[link.from], (at_ms, tick_ms), &mut sum);
            arriving.push((number, block, reports));
        }
    }
    for (number, block, reports) in arriving {
        let link = &mut links[number];
        if let Some(block) = block {
            let items = link.reader.read(&block).expect("it was just written");
            brokers[link.to].take(items, now);
        }
        let broker = &mut brokers[link.to];
        broker.settle();
        reports
            .into_iter()
            .for_each(|report| broker.mesh.hear(report));
    }
    sum
}

/// What a broker keeps of all others, encoded: its sequencer, and the newest report of each.
fn state_kilobytes(broker: &Broker, regions: usize) -> f64 {
    let all = (0..regions).map(id).collect();
    let reports = broker.mesh.news(Some(&all), false).reports;
    let mut encoded = broker.sequencer.checkpoint();
    for report in reports {
        report.applied.encode(&mut encoded);
    }
    encoded.len() as f64 / 1000.0
}

fn measure(regions: usize, rate: f64, tick_ms: f64) -> Measured {
    let mut brokers: Vec<_> = (0..regions).map(|at| broker(at, regions)).collect();
    let mut links = links(regions);
    let share = rate / regions as f64 * tick_ms / 1000.0;
    let (mut sum, mut owed, mut kilobytes) = (Said::default(), 0.0, 0.0);
    for round in 0..WARM_UP + MEASURED {
        let now = 1_700_000_000_000 + round as u64 * 100;
        owed += share;
        let records = owed as usize;
        owed -= records as f64;
        for broker in &mut brokers {
            if records > 0 {
                broker.write(records, now);
            }
            broker.settle();
        }
        let times = (now, round as f64 * tick_ms, tick_ms);
        let said = tick(&mut brokers, &mut links, times, None);
        if round >= WARM_UP {
            sum.frames += said.frames;
            sum.heads += said.heads;
            sum.reports += said.reports;
            sum.records += said.records;
        }
        forget_shipped(&mut brokers, &mut links);
        kilobytes = state_kilobytes(&brokers[0], regions);
    }
    Measured {
        regions,
        pause: links.iter().map(|l| l.longest_pause).fold(0.0, f64::max),
        heal: heal(&mut brokers, &mut links, tick_ms),
        sum,
        kilobytes,
    }
}

/// All links have shipped what there was.
fn forget_shipped(brokers: &mut [Broker], links: &mut [Link]) {
    let mut least: Vec<usize> = brokers.iter().map(|broker| broker.log.len()).collect();
    for link in links.iter() {
        least[link.from] = least[link.from].min(link.position);
    }
    for link in links {
        link.position -= least[link.from];
    }
    for (broker, least) in brokers.iter_mut().zip(least) {
        broker.log.drain(..least);
    }
}

/// The last region is cut off for some ticks while all write. How many ticks after it is back do all
/// hold the same, and know that they do?
fn heal(brokers: &mut [Broker], links: &mut [Link], tick_ms: f64) -> usize {
    let cut = brokers.len() - 1;
    let mut now = 1_700_000_100_000;
    for _ in 0..3 {
        now += 100;
        for broker in brokers.iter_mut() {
            broker.write(1, now);
            broker.settle();
        }
        tick(brokers, links, (now, 0.0, tick_ms), Some(cut));
    }
    for ticks in 1..50 {
        tick(brokers, links, (now, 0.0, tick_ms), None);
        let all = brokers[0].sequencer.vector();
        let is_same =
            |broker: &Broker| broker.sequencer.vector() == all && broker.mesh.stable() == all;
        if brokers.iter().all(is_same) {
            return ticks;
        }
    }
    0
}

fn main() {
    let most = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(175);
    println!(
        "| records/s | a frame each | regions | records a frame | bytes before a frame's batches | bytes a record: frames | reports | together | longest pause of reports | state per broker, encoded | ticks |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let mut curves: BTreeMap<(u64, u64), Vec<Measured>> = BTreeMap::new();
    for (rate, tick_ms) in [
        (1_000_000.0, 1.0),
        (1_000_000.0, 10.0),
        (100_000.0, 1.0),
        (100_000.0, 10.0),
    ] {
        for regions in REGIONS.into_iter().filter(|&n| n <= most) {
            let measured = measure(regions, rate, tick_ms);
            let per = |bytes: f64| bytes / measured.sum.records.max(1.0);
            println!(
                "| {rate:.0} | {tick_ms:.0} ms | {regions} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} | {:.0} ms | {:.0} kB | {} |",
                rate / regions as f64 * tick_ms / 1000.0,
                measured.sum.heads / measured.sum.frames.max(1.0),
                per(measured.sum.heads),
                per(measured.sum.reports),
                per(measured.sum.heads + measured.sum.reports),
                measured.pause,
                measured.kilobytes,
                measured.heal,
            );
            curves
                .entry((rate as u64, tick_ms as u64))
                .or_default()
                .push(measured);
        }
    }
    plot(&curves);
}

/// Bytes a record over regions, both on logarithmic axes.
fn plot(curves: &BTreeMap<(u64, u64), Vec<Measured>>) {
    let x = |regions: usize| 60.0 + (regions as f64 / 3.0).ln() / (175.0_f64 / 3.0).ln() * 480.0;
    let y = |bytes: f64| 340.0 - bytes.max(0.1).log10() * 44.0 - 44.0;
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"380\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"760\" height=\"380\" fill=\"white\"/>\n",
    );
    for power in -1..6 {
        let bytes = 10f64.powi(power);
        svg += &format!(
            "<line x1=\"60\" x2=\"540\" y1=\"{0:.0}\" y2=\"{0:.0}\" stroke=\"#ddd\"/><text x=\"8\" y=\"{1:.0}\">{bytes} B</text>\n",
            y(bytes),
            y(bytes) + 4.0
        );
    }
    for regions in REGIONS {
        svg += &format!(
            "<text x=\"{:.0}\" y=\"362\">{regions}</text>\n",
            x(regions) - 8.0
        );
    }
    let colours = ["#1b6ca8", "#2a9d8f", "#c8553d", "#8a5a9e"];
    for (n, ((rate, tick), points)) in curves.iter().enumerate() {
        for (what, dash) in [("frames", ""), ("reports", " stroke-dasharray=\"5 4\"")] {
            let line: Vec<String> = points
                .iter()
                .map(|m| {
                    let bytes = if what == "frames" {
                        m.sum.heads
                    } else {
                        m.sum.reports
                    };
                    format!(
                        "{:.1},{:.1}",
                        x(m.regions),
                        y(bytes / m.sum.records.max(1.0))
                    )
                })
                .collect();
            svg += &format!(
                "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{dash} points=\"{}\"/>\n",
                colours[n],
                line.join(" ")
            );
        }
        svg += &format!(
            "<text x=\"552\" y=\"{}\" fill=\"{}\">{rate}/s, a frame each {tick} ms</text>\n",
            40 + n * 18,
            colours[n]
        );
    }
    svg += "<text x=\"552\" y=\"130\">solid: frames</text><text x=\"552\" y=\"148\">dashed: reports</text>\n<text x=\"250\" y=\"378\">regions</text><text x=\"60\" y=\"20\">bytes beyond records, per record and receiving broker</text>\n</svg>\n";
    let path = repository().join("docs/plots/metadata.svg");
    std::fs::write(&path, svg).expect("the repository can be written");
    println!("\nwritten: docs/plots/metadata.svg");
}
