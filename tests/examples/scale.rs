//! What brokers of 3 to 175 regions say to each other beyond records, with the protocol as it is:
//! real sequencers, contexts, holding, blocks and reports, no disks and no sockets.
//!
//! Up to 16 regions everybody is linked with everybody. Beyond, 16 hubs are, and each other region
//! with one of them. Every region writes its share of the rate into a frame each so many
//! milliseconds, not all at the same moment. A message takes a tenth of that time to the next broker. Prints a table, and writes plots into `docs/plots/`.

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

/// Moments into which the time from one frame of a broker to its next is divided. Brokers write at
/// different ones, and a message takes one to the next broker.
const MOMENTS: usize = 10;

/// Frames of each broker while all links begin, before measuring, and measured.
const BEGIN: usize = 3;
const WARM_UP: usize = 5;
const MEASURED: usize = 10;

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

impl Said {
    fn add(&mut self, more: &Self) {
        self.frames += more.frames;
        self.heads += more.heads;
        self.reports += more.reports;
        self.records += more.records;
    }
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

/// When within an interval a broker writes. Those behind the same hub do not write in a row.
fn phase_of(at: usize) -> usize {
    (at / HUBS * 7 + at * 3) % MOMENTS
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

/// What is shipped over a link at a moment, and what of it is not payload.
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

/// Reports go out as often as they may, or at each moment while all links begin. What they take of
/// the link until the next ones is what is counted.
fn report(
    link: &mut Link,
    from: &Broker,
    (at_ms, moment_ms): (f64, f64),
    sum: &mut Said,
) -> Vec<Report> {
    let mut reports = Vec::new();
    let begins = at_ms < (BEGIN * MOMENTS) as f64 * moment_ms;
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
    sum.reports += link.report_bytes_per_ms * moment_ms;
    reports
}

struct Measured {
    regions: usize,
    sum: Said,
    /// Memory per broker, links included.
    kilobytes: f64,
    /// The longest that a link had to wait between reports, in milliseconds.
    pause: f64,
    /// Until all hold the same and know it, after a cut.
    exchanges: usize,
}

impl Measured {
    fn per_record(&self, bytes: f64) -> f64 {
        bytes / self.sum.records.max(1.0)
    }

    /// As a line that [`Measured::parse`] reads.
    fn line(&self) -> String {
        let Said {
            frames,
            heads,
            reports,
            records,
        } = self.sum;
        let Self {
            regions,
            kilobytes,
            pause,
            exchanges,
            ..
        } = self;
        format!("{regions} {frames} {heads} {reports} {records} {kilobytes} {pause} {exchanges}")
    }

    fn parse(line: &str) -> Self {
        let numbers = line
            .split_whitespace()
            .map(|n| n.parse().expect("a number"));
        let [
            regions,
            frames,
            heads,
            reports,
            records,
            kilobytes,
            pause,
            exchanges,
        ]: [f64; 8] = numbers
            .collect::<Vec<_>>()
            .try_into()
            .expect("eight of them");
        Self {
            regions: regions as usize,
            sum: Said {
                frames,
                heads,
                reports,
                records,
            },
            kilobytes,
            pause,
            exchanges: exchanges as usize,
        }
    }
}

fn moment(
    brokers: &mut [Broker],
    links: &mut [Link],
    (now, at_ms, moment_ms): (u64, f64, f64),
    cut: Option<usize>,
) -> Said {
    let mut sum = Said::default();
    let mut arriving = Vec::new();
    for (number, link) in links.iter_mut().enumerate() {
        if cut.is_none_or(|cut| link.from != cut && link.to != cut) {
            let block = ship(link, &brokers[link.from].log, &mut sum);
            let reports = report(link, &brokers[link.from], (at_ms, moment_ms), &mut sum);
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

/// Memory of this process, in kilobytes, at its most.
fn peak_kilobytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is Linux");
    let peak = status.lines().find_map(|line| {
        let rest = line.strip_prefix("VmHWM:")?;
        rest.trim().strip_suffix(" kB")?.parse().ok()
    });
    peak.expect("Linux says so")
}

/// To be called once in a process, since its memory at its most is measured.
fn measure(regions: usize, rate: f64, interval_ms: f64) -> Measured {
    let before = peak_kilobytes();
    let mut brokers: Vec<_> = (0..regions).map(|at| broker(at, regions)).collect();
    let mut links = links(regions);
    let share = rate / regions as f64 * interval_ms / 1000.0;
    let (mut sum, mut owed) = (Said::default(), 0.0);
    let moment_ms = interval_ms / MOMENTS as f64;
    for moments in 0..(WARM_UP + MEASURED) * MOMENTS {
        let now = 1_700_000_000_000 + moments as u64 * 10;
        let phase = moments % MOMENTS;
        if phase == 0 {
            owed += share;
        }
        let records = owed as usize;
        for (at, broker) in brokers.iter_mut().enumerate() {
            if records > 0 && phase_of(at) == phase {
                broker.write(records, now);
            }
            broker.settle();
        }
        if phase == MOMENTS - 1 {
            owed -= records as f64;
        }
        let times = (now, moments as f64 * moment_ms, moment_ms);
        let said = moment(&mut brokers, &mut links, times, None);
        if moments >= WARM_UP * MOMENTS {
            sum.add(&said);
        }
        forget_shipped(&mut brokers, &mut links);
    }
    Measured {
        regions,
        pause: links.iter().map(|l| l.longest_pause).fold(0.0, f64::max),
        kilobytes: (peak_kilobytes() - before) / regions as f64,
        exchanges: heal(&mut brokers, &mut links, moment_ms),
        sum,
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

/// The last region is cut off for some moments while all write. After how many exchanges since it is
/// back do all
/// hold the same, and know that they do?
fn heal(brokers: &mut [Broker], links: &mut [Link], moment_ms: f64) -> usize {
    let cut = brokers.len() - 1;
    let mut now = 1_700_000_100_000;
    for _ in 0..3 {
        now += 100;
        for broker in brokers.iter_mut() {
            broker.write(1, now);
            broker.settle();
        }
        moment(brokers, links, (now, 0.0, moment_ms), Some(cut));
    }
    for exchanges in 1..50 {
        moment(brokers, links, (now, 0.0, moment_ms), None);
        let all = brokers[0].sequencer.vector();
        let is_same =
            |broker: &Broker| broker.sequencer.vector() == all && broker.mesh.stable() == all;
        if brokers.iter().all(is_same) {
            return exchanges;
        }
    }
    0
}

fn main() {
    let arguments: Vec<f64> = (std::env::args().skip(1))
        .map(|n| n.parse().expect("regions, records a second, milliseconds"))
        .collect();
    if let [regions, rate, interval_ms] = arguments[..] {
        println!("{}", measure(regions as usize, rate, interval_ms).line());
        return;
    }
    let most = arguments.first().map_or(usize::MAX, |&most| most as usize);
    println!(
        "| records/s | a frame each | regions | records a frame | bytes before a frame's batches | bytes a record: frames | reports | together | longest pause of reports | memory per broker | exchanges |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let mut curves: Curves = BTreeMap::new();
    for (rate, interval_ms) in [(1_000_000, 1), (1_000_000, 10), (100_000, 1), (100_000, 10)] {
        for regions in REGIONS.into_iter().filter(|&n| n <= most) {
            let measured = measure_apart(regions, rate, interval_ms);
            let Said {
                frames,
                heads,
                reports,
                ..
            } = measured.sum;
            let per = |bytes| measured.per_record(bytes);
            println!(
                "| {rate} | {interval_ms} ms | {regions} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} | {:.0} ms | {:.0} kB | {} |",
                (rate * interval_ms) as f64 / regions as f64 / 1000.0,
                heads / frames.max(1.0),
                per(heads),
                per(reports),
                per(heads + reports),
                measured.pause,
                measured.kilobytes,
                measured.exchanges,
            );
            let curve = curves.entry((rate, interval_ms)).or_default();
            curve.push(measured);
        }
    }
    plot_all(&curves);
}

/// In a process of its own.
fn measure_apart(regions: usize, rate: u64, interval_ms: u64) -> Measured {
    let this = std::env::current_exe().expect("it has a file");
    let arguments = [regions as u64, rate, interval_ms].map(|n| n.to_string());
    let output = std::process::Command::new(this).args(arguments).output();
    let output = output.expect("it starts");
    assert!(output.status.success(), "{output:?}");
    Measured::parse(&String::from_utf8_lossy(&output.stdout))
}

type Curves = BTreeMap<(u64, u64), Vec<Measured>>;

fn plot_all(curves: &Curves) {
    let metadata = |m: &Measured| m.per_record(m.sum.heads + m.sum.reports);
    plot(
        "metadata",
        "bytes beyond batches, per record and receiving broker",
        (0.01, 4),
        curves,
        metadata,
    );
    plot(
        "memory",
        "kilobytes of memory per broker",
        (10.0, 4),
        curves,
        |m| m.kilobytes,
    );
    plot(
        "convergence",
        "exchanges after a cut until all hold the same and know it",
        (1.0, 1),
        curves,
        |m| m.exchanges as f64,
    );
}

/// Something over regions, both on logarithmic axes; that of the values begins here and spans so
/// many powers of ten.
fn plot(
    name: &str,
    title: &str,
    (least, powers): (f64, i32),
    curves: &Curves,
    value: impl Fn(&Measured) -> f64,
) {
    let x = |regions: usize| 60.0 + (regions as f64 / 3.0).ln() / (175.0_f64 / 3.0).ln() * 480.0;
    let y = |value: f64| 340.0 - (value.max(least) / least).log10() / f64::from(powers) * 300.0;
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"380\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"760\" height=\"380\" fill=\"white\"/>\n",
    );
    for power in 0..=powers {
        let value = least * 10f64.powi(power);
        svg += &format!(
            "<line x1=\"60\" x2=\"540\" y1=\"{0:.0}\" y2=\"{0:.0}\" stroke=\"#ddd\"/><text x=\"8\" y=\"{1:.0}\">{value}</text>\n",
            y(value),
            y(value) + 4.0
        );
    }
    for regions in REGIONS {
        let left = x(regions) - 8.0;
        svg += &format!("<text x=\"{left:.0}\" y=\"362\">{regions}</text>\n");
    }
    let colours = ["#1b6ca8", "#2a9d8f", "#c8553d", "#8a5a9e"];
    for (n, ((rate, interval), points)) in curves.iter().enumerate() {
        let line = points
            .iter()
            .map(|m| format!("{:.1},{:.1}", x(m.regions), y(value(m))));
        let line: Vec<_> = line.collect();
        svg += &format!(
            "<polyline fill=\"none\" stroke=\"{0}\" stroke-width=\"2\" points=\"{1}\"/>\n<text x=\"552\" y=\"{2}\" fill=\"{0}\">{rate}/s, a frame each {interval} ms</text>\n",
            colours[n],
            line.join(" "),
            40 + n * 18,
        );
    }
    svg += &format!(
        "<text x=\"250\" y=\"378\">regions</text><text x=\"60\" y=\"20\">{title}</text>\n</svg>\n"
    );
    let path = format!("docs/plots/{name}.svg");
    std::fs::write(repository().join(&path), svg).expect("the repository can be written");
    println!("written: {path}");
}
