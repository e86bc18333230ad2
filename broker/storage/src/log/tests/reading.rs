//! Whatever is asked of a reader, it answers as a naive model would.

use std::collections::BTreeSet;

use anabranch_core::id::{Offset, Origin};
use anabranch_core::vector::VersionVector;
use proptest::prelude::*;

use super::*;

struct Sample {
    broker: Broker,
    disk: MemoryDisk,
    written: Vec<Commit>,
}

fn sample(frames: &[Vec<(u64, u16)>]) -> Sample {
    let disk = MemoryDisk::new(2);
    let mut broker = open(&disk).unwrap();
    let mut written = Vec::new();
    for (n, frame) in frames.iter().enumerate() {
        broker.now = 1000 + 10 * n as u64;
        let value = format!("{n:0200}");
        let group: Vec<_> = frame
            .iter()
            .map(|&(stream, partition)| publish(stream, partition, &[(None, Some(&value))]))
            .collect();
        written.push(broker.put(&group));
        if n == frames.len() / 2 {
            // The second half is written under a new identity.
            drop(broker);
            disk.power_cycle();
            broker = open(&disk).unwrap();
        }
    }
    Sample {
        broker,
        disk,
        written,
    }
}

fn frames() -> impl Strategy<Value = Vec<Vec<(u64, u16)>>> {
    let part = (1u64..4, 0u16..3);
    prop::collection::vec(prop::collection::vec(part, 1..4), 1..40)
}

fn filters() -> impl Strategy<Value = Filter> {
    prop_oneof![
        Just(Filter::All),
        (1u64..5).prop_map(|stream| Filter::Stream(StreamId::new(stream))),
        (1u64..4, prop::collection::btree_set(0u16..3, 0..3)).prop_map(|(stream, partitions)| {
            let partitions: BTreeSet<_> = partitions.into_iter().map(PartitionId::new).collect();
            Filter::Partitions(StreamId::new(stream), partitions)
        }),
    ]
}

/// What a filtered read of these commits should be.
fn filtered(written: &[Commit], filter: &Filter) -> Vec<(Position, Vec<Option<u32>>)> {
    let matching = written
        .iter()
        .filter(|c| c.header.parts.iter().any(|p| filter.wants(p)));
    let crc = |p: &anabranch_core::frame::PartHeader| filter.wants(p).then_some(p.crc);
    matching
        .map(|c| (c.position, c.header.parts.iter().map(crc).collect()))
        .collect()
}

fn vector_of(written: &[Commit]) -> VersionVector {
    let frame = |c: &Commit| (c.header.origin, c.header.sequence);
    written.iter().map(frame).collect()
}

fn check_offsets(reader: &LogReader, written: &[Commit]) {
    for stream in (1..5).map(StreamId::new) {
        for partition in (0..3).map(PartitionId::new) {
            let parts = written.iter().flat_map(|commit| {
                let of = move |p: &&anabranch_core::frame::CommitPart| {
                    p.header.stream == stream && p.header.partition == partition
                };
                commit
                    .parts
                    .iter()
                    .filter(of)
                    .map(|p| (p.base_offset, commit.position))
            });
            let offsets: Vec<_> = parts.collect();
            let next = Offset::new(offsets.len() as u64);
            assert_eq!(
                reader.bounds(stream, partition),
                match offsets.is_empty() {
                    true => (next, next),
                    false => (Offset::new(0), next),
                }
            );
            for (offset, position) in offsets {
                assert_eq!(
                    reader.at_offset(stream, partition, offset).unwrap(),
                    Some(position)
                );
            }
            assert_eq!(reader.at_offset(stream, partition, next).unwrap(), None);
        }
    }
}

fn check_vectors(reader: &LogReader, written: &[Commit]) {
    for n in 0..=written.len() {
        let vector = vector_of(&written[..n]);
        assert_eq!(reader.vector_before(position(n as u64)).unwrap(), vector);
        assert_eq!(reader.resume(&vector), position(n as u64));
    }
    for commit in written {
        let found = reader
            .locate(commit.header.origin, commit.header.sequence)
            .unwrap();
        assert_eq!(found, Some(commit.position));
        let ms = commit.header.timestamp.millis();
        let first = written
            .iter()
            .find(|c| c.header.timestamp.millis() >= ms)
            .unwrap();
        assert_eq!(reader.at_timestamp(ms), first.position);
    }
    let nobody = Origin {
        broker: BrokerId::new(1),
        epoch: anabranch_core::id::Epoch::new(1),
    };
    assert_eq!(
        reader
            .locate(nobody, anabranch_core::id::Sequence::new(1))
            .unwrap(),
        None
    );
    assert_eq!(reader.at_timestamp(u64::MAX >> 20), reader.next_position());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn reads_and_look_ups_agree_with_a_list_of_commits(frames in frames(), filter in filters()) {
        let Sample { broker, disk, written } = sample(&frames);
        let check = |reader: &LogReader| {
            assert_same(&read_all(reader, &Filter::All), &written);
            let found: Vec<_> = read_all(reader, &filter)
                .iter()
                .map(|c| (c.position, c.parts.iter().map(|p| p.batch.as_ref().map(|b| b.crc())).collect()))
                .collect();
            assert_eq!(found, filtered(&written, &filter));
            check_offsets(reader, &written);
            check_vectors(reader, &written);
        };
        check(&broker.reader);
        broker.close().unwrap();
        check(&open(&disk).unwrap().reader);
    }
}

#[test]
fn a_read_beyond_the_end_is_empty_and_says_where_it_was() {
    let Sample { broker, .. } = sample(&[vec![(1, 0)], vec![(1, 0)]]);
    let chunk = broker.reader.read(position(2), &Filter::All, 100).unwrap();
    assert!(chunk.commits.is_empty());
    assert_eq!(chunk.next, position(2));
    let chunk = broker
        .reader
        .read(position(9), &Filter::Stream(StreamId::new(7)), 100)
        .unwrap();
    assert!(chunk.commits.is_empty());
    assert_eq!(chunk.next, position(9));
}

#[test]
fn what_is_not_synced_is_not_read() {
    let Sample { mut broker, .. } = sample(&[vec![(1, 0)]]);
    broker.append(&[filler(1, 5, 10)]);
    assert_eq!(broker.reader.next_position(), position(1));
    assert_eq!(broker.all().len(), 1);
    broker.sync().unwrap();
    assert_eq!(broker.all().len(), 2);
}
