use super::*;
use anabranch_core::batch::{BatchBuilder, NewRecord};
use anabranch_core::gap::GapBuilder;
use anabranch_core::id::{BrokerId, Epoch, Origin};
use anabranch_core::sequencer::{Publish, Sequencer};
use anabranch_core::vector::VersionVector;
use proptest::prelude::*;

fn origin(broker: u64) -> Origin {
    Origin {
        broker: BrokerId::new(broker.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        epoch: Epoch::new(3),
    }
}

fn publish(bytes: usize, partition: u16) -> Publish {
    let value = vec![7; bytes];
    let mut batch = BatchBuilder::default();
    let record = NewRecord {
        value: Some(&value),
        ..NewRecord::default()
    };
    batch.push(&record).unwrap();
    Publish {
        stream: StreamId::new(1),
        partition: PartitionId::new(partition),
        batch: batch.finish(None).unwrap(),
    }
}

fn write(writer: &mut Sequencer, partitions: &[u16], now_ms: u64) -> Commit {
    let publishes: Vec<_> = partitions.iter().map(|&p| publish(50, p)).collect();
    let mut frame = writer.open();
    frame.add(&publishes, &mut Vec::new()).unwrap();
    frame.close(now_ms).unwrap()
}

fn take_over(reader: &mut Sequencer, commit: &Commit) {
    reader
        .accept(&Foreign::from(commit), u64::MAX >> 17)
        .unwrap();
}

/// Both ends of a link.
#[derive(Default)]
struct Ends {
    writer: BlockWriter,
    reader: BlockReader,
}

impl Ends {
    fn ship<'a>(&mut self, commits: impl IntoIterator<Item = &'a Commit>) -> Block {
        for commit in commits {
            self.writer.put_frame(commit);
        }
        self.writer.take().unwrap()
    }

    /// Ships them, and says how many bytes stood before their batches.
    fn carry(&mut self, commits: &[Commit]) -> usize {
        let block = self.ship(commits);
        let credit: usize = commits.iter().map(frame_bytes).sum();
        assert_eq!(block.credit as usize, credit);
        let read = self.reader.read(&block).unwrap();
        let sent: Vec<_> = commits.iter().map(|c| Item::Frame(c.into())).collect();
        assert!(read == sent, "byte for byte");
        block.heads.len()
    }
}

/// Brokers that all write in a round, and take over all that the others wrote.
struct Cluster {
    brokers: Vec<Sequencer>,
    now_ms: u64,
}

impl Cluster {
    fn new(brokers: u64) -> Self {
        Self {
            brokers: (0..brokers).map(|n| Sequencer::new(origin(n))).collect(),
            now_ms: 1_700_000_000_000,
        }
    }

    fn round(&mut self) -> Vec<Commit> {
        self.now_ms += 10;
        let now_ms = self.now_ms;
        let brokers = self.brokers.iter_mut();
        let written: Vec<_> = brokers.map(|b| write(b, &[0], now_ms)).collect();
        for (at, broker) in self.brokers.iter_mut().enumerate() {
            let others = written.iter().enumerate().filter(|(of, _)| *of != at);
            others.for_each(|(_, commit)| take_over(broker, commit));
        }
        written
    }
}

#[test]
fn a_frame_of_a_hundred_busy_brokers_takes_a_few_bytes() {
    let mut cluster = Cluster::new(100);
    let mut ends = Ends::default();
    for _ in 0..3 {
        ends.carry(&cluster.round());
    }
    let written = cluster.round();
    let as_they_are: usize = written.iter().map(|c| c.header_bytes.len()).sum();
    let bytes = ends.carry(&written);
    assert!(as_they_are > 100_000);
    assert!(bytes < 100 * 12, "{bytes} bytes for 100 frames");
    // Alone, too: all others have written once more.
    let mut alone = Ends::default();
    let mine: Vec<_> = (0..4).map(|_| cluster.round().swap_remove(7)).collect();
    let bytes = mine.iter().map(|c| alone.carry(std::slice::from_ref(c)));
    let bytes: Vec<_> = bytes.collect();
    assert!(bytes[0] > 100 && bytes[3] < 20, "{bytes:?}");
}

#[test]
fn frames_and_gaps_read_back_from_a_block_byte_for_byte() {
    let mut writer = Sequencer::new(origin(1));
    let whole = write(&mut writer, &[0, 1], 5);
    let mut partial = write(&mut writer, &[0, 1], 6);
    partial.parts[1].batch = None;
    let mut gone = partial.clone();
    gone.parts[0].batch = None;
    let mut gaps = GapBuilder::default();
    gaps.add(&gone);
    let mut gaps = gaps.take();
    // Where it stands in the log does not go over a link.
    gaps.iter_mut()
        .for_each(|gap| gap.position = Position::new(0));
    let after = write(&mut writer, &[0, 1, 2], 7);
    let mut ends = Ends::default();
    ends.writer.put_frame(&whole);
    ends.writer.put_frame(&partial);
    ends.writer.put_gaps(&gaps);
    ends.writer.put_frame(&after);
    let block = ends.writer.take().unwrap();
    assert_eq!(ends.writer.take(), None);
    assert_eq!(
        ends.reader.read(&block).unwrap(),
        [
            Item::Frame(Foreign::from(&whole)),
            Item::Frame(Foreign::from(&partial)),
            Item::Gaps(gaps),
            Item::Frame(Foreign::from(&after)),
        ]
    );
}

#[test]
fn every_bit_that_is_flipped_before_batches_or_in_them_is_noticed() {
    let mut cluster = Cluster::new(4);
    let rounds: Vec<_> = (0..3).map(|_| cluster.round()).collect();
    let at_third = || {
        let mut ends = Ends::default();
        rounds[..2].iter().for_each(|round| {
            ends.carry(round);
        });
        let block = ends.ship(&rounds[2]);
        (ends.reader, block)
    };
    let (mut reader, block) = at_third();
    let sent = reader.read(&block).unwrap();
    let flipped = |bytes: &Bytes, bit: usize| {
        let mut damaged = bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        Bytes::from(damaged)
    };
    for bit in 0..block.heads.len() * 8 {
        let (mut reader, mut block) = at_third();
        block.heads = flipped(&block.heads, bit);
        let read = reader.read(&block);
        assert!(read.is_err() || read.as_ref() == Ok(&sent), "bit {bit}");
    }
    // Base offsets, which each broker gives anew, are in no checksum.
    for bit in 64..block.bodies.len() * 8 {
        let (mut reader, mut block) = at_third();
        block.bodies = flipped(&block.bodies, bit);
        if let Ok(read) = reader.read(&block) {
            assert_eq!(read.len(), sent.len(), "bit {bit}");
            for (read, sent) in read.iter().zip(&sent) {
                let (Item::Frame(read), Item::Frame(sent)) = (read, sent) else {
                    panic!("no gap was sent")
                };
                assert_eq!(read.header(), sent.header(), "bit {bit}");
            }
        }
    }
}

#[test]
fn more_origins_than_a_link_numbers_are_named_as_they_are() {
    let brokers = super::super::vectors::MOST_ORIGINS as u64 / 2 + 3;
    let mut all = Sequencer::new(origin(0));
    let mut ends = Ends::default();
    for round in 0..2 {
        for n in 1..brokers {
            let mut one = Sequencer::new(origin(n + round * brokers));
            take_over(&mut all, &write(&mut one, &[0], 5));
        }
        for _ in 0..2 {
            let commit = write(&mut all, &[0], 6);
            ends.carry(&[commit]);
        }
    }
}

/// As many origins as after very many power cuts.
#[test]
fn what_a_link_remembers_is_bounded_and_the_rest_goes_as_it_is() {
    let mut all = Sequencer::new(origin(0));
    let mut ends = Ends::default();
    for n in 1..=600 {
        let commit = write(&mut Sequencer::new(origin(n)), &[0], 5);
        take_over(&mut all, &commit);
        ends.carry(&[commit]);
        if n % 100 == 0 {
            ends.carry(&[write(&mut all, &[0], 6)]);
        }
    }
    for model in [&ends.writer.model, &ends.reader.model] {
        let entries = model.remembered * model.numbers.len();
        assert!(((1 << 17)..=1 << 18).contains(&entries), "{entries}");
    }
}

#[test]
fn a_frame_after_the_last_sequence_there_is_is_refused() {
    let mut header = write(&mut Sequencer::new(origin(1)), &[0], 5).header;
    header.sequence = Sequence::new(u64::MAX - 1);
    let mut heads = BytesMut::new();
    let bytes = header.seal(Chain::START);
    let body = publish(50, 0).batch;
    put_varint(&mut heads, WHOLE);
    put_varint(&mut heads, bytes.len() as u64);
    heads.put_slice(&bytes);
    put_varint(&mut heads, body.len() as u64);
    heads.put_slice(&[2, SAME_PARTS, 0, 0, 3]);
    let block = Block {
        heads: heads.freeze(),
        bodies: [&body.bytes()[..], body.bytes()].concat().into(),
        credit: u32::MAX,
        proof: 0,
    };
    let read = BlockReader::default().read(&block);
    assert_eq!(read, Err(BadMessage::Malformed));
}

#[test]
fn gaps_take_credit_for_all_their_bytes() {
    let mut writer = Sequencer::new(origin(1));
    let mut gaps = GapBuilder::default();
    for _ in 0..9 {
        let mut gone = write(&mut writer, &[0, 1, 2], 5);
        gone.parts.iter_mut().for_each(|part| part.batch = None);
        gaps.add(&gone);
    }
    let mut ends = Ends::default();
    ends.writer.put_gaps(&gaps.take());
    let mut block = ends.writer.take().unwrap();
    let read = ends.reader.read(&block).unwrap();
    assert_eq!(item_bytes(&read[0]), block.credit as usize);
    block.credit -= 1;
    assert_eq!(ends.reader.read(&block), Err(BadMessage::Malformed));
}

#[test]
fn more_is_not_read_than_the_credit_that_a_block_says() {
    let mut cluster = Cluster::new(2);
    let mut ends = Ends::default();
    let mut block = ends.ship(&cluster.round());
    block.credit -= 1;
    assert_eq!(ends.reader.read(&block), Err(BadMessage::Malformed));
}

proptest! {
    /// Frames of several brokers, some of which know of the others' and some do not, over several links
    /// that begin at different times and are not asked for the same.
    #[test]
    fn whatever_is_shipped_reads_back(
        steps in prop::collection::vec((0usize..5, 0usize..5, prop::collection::vec(0u16..4, 1..4), any::<bool>()), 1..60),
        start in 0usize..20,
        of in 1u32..32,
    ) {
        let mut brokers: Vec<_> = (0..5).map(|n| Sequencer::new(origin(n))).collect();
        let mut log = Vec::new();
        for (n, (writes, hears, partitions, drops)) in steps.into_iter().enumerate() {
            let mut commit = write(&mut brokers[writes], &partitions, 1000 + n as u64);
            if hears != writes {
                // All that it lacks of that one, if nothing else is lacking.
                let known = brokers[hears].vector();
                let lacking: Vec<_> = log.iter().chain([&commit]).filter(|c: &&Commit| {
                    c.header.origin == origin(writes as u64) && !known.contains(c.header.origin, c.header.sequence)
                }).cloned().collect();
                for commit in &lacking {
                    if brokers[hears].accept(&Foreign::from(commit), u64::MAX >> 17).is_err() {
                        break;
                    }
                }
            }
            if drops {
                commit.parts[0].batch = None;
            }
            log.push(commit);
        }
        let mut ends = Ends::default();
        let asked = |commit: &&Commit| {
            let n = (0..5).find(|&n| origin(n) == commit.header.origin).unwrap();
            of & (1 << n) != 0
        };
        let shipped: Vec<_> = log.iter().skip(start).filter(asked).cloned().collect();
        for commits in shipped.chunks(3) {
            ends.carry(commits);
        }
    }

    #[test]
    fn garbage_is_refused_without_a_panic(
        heads in prop::collection::vec(any::<u8>(), 0..200),
        bodies in prop::collection::vec(any::<u8>(), 0..200),
        after in any::<bool>(),
    ) {
        let mut ends = Ends::default();
        if after {
            ends.carry(&Cluster::new(3).round());
        }
        let block = Block { heads: heads.into(), bodies: bodies.into(), credit: u32::MAX, proof: 0 };
        let _ = ends.reader.read(&block);
    }
}

/// What a context leaves out is not what it says again.
#[test]
fn a_context_that_says_again_what_was_known_goes_as_it_is() {
    let mut writer = Sequencer::new(origin(1));
    let mut other = Sequencer::new(origin(2));
    take_over(&mut writer, &write(&mut other, &[0], 5));
    let first = write(&mut writer, &[0], 6);
    let mut second = write(&mut writer, &[0], 7);
    assert!(second.header.context.is_empty());
    second.header.context = VersionVector::from_iter([(origin(2), Sequence::new(1))]);
    second.header_bytes = second.header.seal(first.header.chain);
    let mut ends = Ends::default();
    ends.carry(&[first]);
    assert!(ends.carry(&[second]) > 100);
}
