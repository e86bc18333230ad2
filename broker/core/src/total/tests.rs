//! The merge against sorting everything, in several regions, over hops between them.

use proptest::prelude::*;

use super::*;
use crate::id::{BrokerId, ClusterId, Epoch};

const CLUSTER: ClusterId = ClusterId::new(3);

const ORIGINS: u64 = 4;

fn origin(number: u64) -> Origin {
    Origin {
        broker: BrokerId::new(number),
        epoch: Epoch::new(1),
    }
}

/// A record: its stamp, who wrote it, frame and index.
type Record = (HybridTimestamp, Origin, Sequence, u32);

/// The frames of an origin, densely numbered. Some are of another stream, which a source never sees.
#[derive(Clone, Debug)]
struct Writer {
    origin: Origin,
    frames: Vec<(Whole<()>, bool)>,
}

impl Writer {
    fn new(number: u64, frames: Vec<(u64, u32, bool)>) -> Self {
        let mut stamp = 0;
        let mut sequence = Sequence::NONE;
        let frames = frames.into_iter().map(|(pause, records, is_wanted)| {
            sequence = sequence.next();
            // Zero is before all stamps.
            let timestamp = HybridTimestamp::new(stamp + pause + 1);
            stamp += pause + 1 + u64::from(records);
            let whole = Whole {
                sequence,
                timestamp,
                records,
                item: (),
            };
            (whole, is_wanted)
        });
        Self {
            origin: origin(number),
            frames: frames.collect(),
        }
    }

    /// Its frames that were here when everything up to a watermark was, and perhaps some more.
    fn here(&self, watermark: HybridTimestamp, more: usize) -> &[(Whole<()>, bool)] {
        let until = self
            .frames
            .partition_point(|(f, _)| f.timestamp <= watermark);
        &self.frames[..(until + more).min(self.frames.len())]
    }

    /// Tells a merge of the next few frames; says whether there were any.
    fn feed(&self, merge: &mut Merge<()>, here: &[(Whole<()>, bool)], most: usize) -> bool {
        let read = merge.read(self.origin);
        let mut wanted = here
            .iter()
            .filter(|(f, wanted)| *wanted && f.sequence > read);
        let mut fed = false;
        for (frame, _) in wanted.by_ref().take(most) {
            merge.push(self.origin, frame.clone());
            fed = true;
        }
        if wanted.next().is_none()
            && let Some((last, _)) = here.last()
        {
            merge.pass(self.origin, last.sequence);
        }
        fed
    }
}

fn writers() -> impl Strategy<Value = Vec<Writer>> {
    // Short pauses, so that frames overlap.
    let frame = (0u64..11, 1u32..7, prop::bool::weighted(0.8));
    let frames = prop::collection::vec(frame, 0..12);
    prop::collection::vec(frames, 1..=ORIGINS as usize).prop_map(|writers| {
        let numbered = (1..).zip(writers);
        numbered
            .map(|(number, frames)| Writer::new(number, frames))
            .collect()
    })
}

fn records_of(slice: &Slice<()>, timestamp: HybridTimestamp) -> impl Iterator<Item = Record> {
    let (origin, sequence) = (slice.origin, slice.sequence);
    let records = slice.records.clone();
    records.map(move |index| (timestamp.of_record(index), origin, sequence, index))
}

fn sorted(writers: &[Writer]) -> Vec<Record> {
    let mut all: Vec<Record> = writers
        .iter()
        .flat_map(|writer| {
            let wanted = writer.frames.iter().filter(|(_, wanted)| *wanted);
            wanted.flat_map(|(frame, _)| {
                (0..frame.records).map(|index| {
                    let stamp = frame.timestamp.of_record(index);
                    (stamp, writer.origin, frame.sequence, index)
                })
            })
        })
        .collect();
    all.sort_unstable();
    all
}

/// A region at some moment.
#[derive(Clone, Debug)]
struct Moment {
    watermark: u64,
    /// Frames beyond the watermark that are here.
    more: usize,
    /// How many frames of an origin are read at once.
    chunk: usize,
    /// How many slices are taken before the subscriber goes elsewhere, and how many records of the
    /// one that follows.
    take: usize,
    part: u32,
}

fn moments() -> impl Strategy<Value = Vec<Moment>> {
    let moment = (0u64..120, 0usize..4, 1usize..4, 0usize..20, 0u32..4).prop_map(
        |(watermark, more, chunk, take, part)| Moment {
            watermark,
            more,
            chunk,
            take,
            part,
        },
    );
    prop::collection::vec(moment, 0..12)
}

/// Goes on at a cursor in a region, and returns what was given and the cursor then.
fn visit(writers: &[Writer], cursor: &Cursor, moment: &Moment) -> (Vec<Record>, Cursor) {
    let watermark = HybridTimestamp::new(moment.watermark);
    let mut merge = Merge::after(cursor);
    let mut given = Vec::new();
    let mut left = moment.take;
    loop {
        for writer in writers {
            let here = writer.here(watermark, moment.more);
            // What is read may all be passed over.
            while merge.lacks(writer.origin) && writer.feed(&mut merge, here, moment.chunk) {}
        }
        let before = merge.cursor();
        let Some(slice) = merge.next(watermark) else {
            return (given, merge.cursor());
        };
        let writer = writers.iter().find(|w| w.origin == slice.origin).unwrap();
        let frame = writer
            .frames
            .iter()
            .find(|(f, _)| f.sequence == slice.sequence);
        let timestamp = frame.unwrap().0.timestamp;
        if left == 0 {
            let start = slice.records.start;
            let end = (start + moment.part).min(slice.records.end);
            let part = start..end;
            let mut cursor = before;
            slice.note(&mut cursor, end);
            let slice = Slice {
                records: part,
                ..slice
            };
            given.extend(records_of(&slice, timestamp));
            return (given, cursor);
        }
        left -= 1;
        let mut noted = before;
        slice.note(&mut noted, slice.records.end);
        // What was noted says no more than the merge itself, and passes over the same.
        let truth = merge.cursor();
        assert!(truth.seen.covers(&noted.seen));
        assert_eq!(
            truth.begun.get(&slice.origin),
            noted.begun.get(&slice.origin)
        );
        given.extend(records_of(&slice, timestamp));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_region_gives_the_same_order_and_who_hops_misses_nothing(
        writers in writers(),
        moments in moments(),
        after in prop_oneof![Just(0), 0u64..100],
    ) {
        let mut cursor = Cursor {
            order: Order::Total,
            after: HybridTimestamp::new(after),
            ..Cursor::default()
        };
        let mut given = Vec::new();
        let all_of_it = Moment {
            watermark: u64::MAX,
            more: 0,
            chunk: 2,
            take: usize::MAX,
            part: 0,
        };
        for moment in moments.iter().chain([&all_of_it]) {
            let text = cursor.encode(CLUSTER);
            cursor = Cursor::decode(&text, CLUSTER).unwrap();
            let (more, next) = visit(&writers, &cursor, moment);
            let watermark = HybridTimestamp::new(moment.watermark);
            prop_assert!(more.iter().all(|(stamp, ..)| *stamp <= watermark));
            given.extend(more);
            cursor = next;
        }
        let mut wanted = sorted(&writers);
        wanted.retain(|(stamp, ..)| *stamp > cursor.after);
        prop_assert_eq!(given, wanted);
    }
}

/// A frame that comes although everything up to its stamp was promised: a broker that was alone has
/// met another. It is late, but not lost.
#[test]
fn what_comes_late_is_given_late() {
    let whole = |sequence, timestamp, records| Whole {
        sequence: Sequence::new(sequence),
        timestamp: HybridTimestamp::new(timestamp),
        records,
        item: (),
    };
    let mut merge = Merge::after(&Cursor::default());
    merge.push(origin(1), whole(1, 100, 2));
    let last = HybridTimestamp::new(u64::MAX);
    assert_eq!(merge.next(last).map(|slice| slice.records), Some(0..2));
    let mut merge = Merge::after(&merge.cursor());
    merge.push(origin(2), whole(1, 50, 3));
    merge.push(origin(1), whole(1, 100, 2));
    merge.push(origin(1), whole(2, 102, 1));
    let given: Vec<_> = std::iter::from_fn(|| merge.next(last)).collect();
    let places: Vec<_> = given
        .iter()
        .map(|s| (s.origin, s.records.clone()))
        .collect();
    assert_eq!(places, [(origin(2), 0..3), (origin(1), 0..1)]);
}
