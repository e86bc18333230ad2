//! What is dropped gives its space back, whatever lies before and between it.

use anabranch_core::id::{Offset, Origin, Sequence};
use anabranch_core::stream::Retention;
use anabranch_core::vector::VersionVector;

use super::cleaning::{
    COMPACT, EVENTS, OTHER, Policies, TABLE, assert_verified, clean, policies, put_row, records,
    rows, seal_all,
};
use super::*;
use crate::disk::{Disk, Fault};
use crate::log::shared::LoadError;

/// Events are kept for this many seconds.
const KEPT_SECONDS: u64 = 20;

fn short_lived() -> Policies {
    let retention = Retention {
        max_age_seconds: Some(KEPT_SECONDS),
        ..Retention::default()
    };
    policies(retention, COMPACT)
}

/// A row that stays for ever, and behind it events that do not, one a second.
fn many_events(disk: &MemoryDisk, events: u64) -> Broker {
    let mut broker = open(disk).unwrap();
    put_row(&mut broker, "first", Some("stays"));
    for n in 0..events {
        broker.now = 1_000_000 + n * 1000;
        broker.put(&[filler(EVENTS, n, 40)]);
        if n == events / 2 {
            put_row(&mut broker, "middle", Some("stays, too"));
        }
    }
    broker
}

fn bytes_of(disk: &MemoryDisk) -> usize {
    let contents = segments(disk)
        .into_iter()
        .map(|path| disk.content(&path).unwrap().len());
    contents.sum()
}

#[test]
fn single_records_give_their_space_back_behind_a_row_that_stays() {
    let disk = MemoryDisk::new(1);
    let mut broker = many_events(&disk, 2000);
    seal_all(&mut broker);
    let (before, files) = (bytes_of(&disk), segments(&disk).len());
    let kept = clean(&broker, &short_lived()).unwrap();
    assert!(kept.merged > 50, "{kept}");
    let (after, left) = (bytes_of(&disk), segments(&disk).len());
    // The rows, what is young, two segments that are kept as they are, and the one being written.
    assert!(after * 12 < before, "{after} of {before}");
    assert!(left <= 16, "{left} of {files}");
    let found = records(&broker.reader, EVENTS);
    assert!((20..=21).contains(&found.len()), "{}", found.len());
    assert_eq!(found.last().unwrap().0, 666);
    assert_eq!(rows(&broker.reader).len(), 2);
    assert_verified(&disk);
    assert!(clean(&broker, &short_lived()).unwrap().is_empty());
    let vector = broker.sequencer.vector();
    broker.close().unwrap();
    let broker = open(&disk).unwrap();
    assert_eq!(broker.sequencer.vector(), vector);
    assert_eq!(records(&broker.reader, EVENTS), found);
    assert_eq!(rows(&broker.reader).len(), 2);
    assert_eq!(broker.all().len(), 2 + found_frames(&broker));
    assert_verified(&disk);
}

/// Frames that are held whole or in part, of events.
fn found_frames(broker: &Broker) -> usize {
    let held = |commit: &&Arc<Commit>| commit.parts[0].header.stream == StreamId::new(EVENTS);
    broker.all().iter().filter(held).count()
}

#[test]
fn positions_offsets_and_vectors_lead_into_gaps_and_out_again() {
    let disk = MemoryDisk::new(1);
    let broker = many_events(&disk, 600);
    let origin = broker.sequencer.origin();
    clean(&broker, &short_lived()).unwrap();
    let reader = &broker.reader;
    let row = reader.read(position(0), &Filter::All, 1).unwrap();
    assert_eq!(row.commits[0].position, position(0));
    // From inside the gap on, the next thing that is left is found.
    let next = reader.read(position(17), &Filter::All, 1).unwrap();
    assert_eq!(next.commits[0].position, position(302));
    let frame = Sequence::new(303);
    assert_eq!(reader.locate(origin, frame).unwrap(), Some(position(302)));
    assert!(reader.locate(origin, Sequence::new(18)).unwrap().unwrap() < position(302));
    let seen: VersionVector = [(origin, Sequence::new(302))].into_iter().collect();
    assert_eq!(reader.resume(&seen), position(302));
    assert_eq!(reader.vector_before(position(302)).unwrap(), seen);
    let early: VersionVector = [(origin, Sequence::new(40))].into_iter().collect();
    assert!(reader.resume(&early) <= position(40));
    let stream = StreamId::new(EVENTS);
    let (first, next) = reader.bounds(stream, PartitionId::new(0));
    assert_eq!(next, Offset::new(200));
    assert!(first >= Offset::new(192), "{first}");
    let place = reader.at_offset(stream, PartitionId::new(0), Offset::new(3));
    assert!(place.unwrap().unwrap() <= position(12));
}

/// One segment after the other is rewritten, put together and removed, and the power goes at any
/// operation on the disk.
#[test]
fn a_power_cut_while_segments_are_put_together_loses_nothing() {
    let prepared = |fault: Option<u64>| {
        let disk = MemoryDisk::new(11);
        let broker = many_events(&disk, 300);
        let from = disk.operations();
        if let Some(operation) = fault {
            disk.inject(operation, Fault::PowerCut);
        }
        (disk, broker, from)
    };
    let (disk, broker, from) = prepared(None);
    assert!(clean(&broker, &short_lived()).unwrap().merged >= 8);
    let operations = disk.operations();
    let kept = records(&broker.reader, EVENTS);
    for operation in from + 1..=operations {
        let (disk, broker, _) = prepared(Some(operation));
        let failed = clean(&broker, &short_lived());
        assert!(failed.is_err() && !disk.is_powered());
        drop(broker);
        disk.power_cycle();
        let mut broker = open(&disk).unwrap();
        broker.now = 1_299_000;
        assert_verified(&disk);
        assert_eq!(rows(&broker.reader).len(), 2);
        assert!(records(&broker.reader, EVENTS).ends_with(&kept));
        clean(&broker, &short_lived()).unwrap();
        assert_eq!(records(&broker.reader, EVENTS), kept);
        assert_verified(&disk);
    }
}

#[test]
fn every_flipped_byte_of_gaps_is_noticed() {
    let prepared = || {
        let disk = MemoryDisk::new(5);
        let broker = many_events(&disk, 60);
        clean(&broker, &short_lived()).unwrap();
        broker.close().unwrap();
        disk
    };
    let disk = prepared();
    let first = segments(&disk).remove(0);
    let length = disk.content(&first).unwrap().len();
    assert!(length < 2000, "{length}");
    for byte in 0..length {
        disk.flip(&first, byte, (byte % 8) as u8);
        let found = crate::log::verify(&disk, Path::new(DIR), IDENTITY, &mut |_| {}).unwrap();
        assert!(found.findings > 0, "byte {byte}");
        disk.flip(&first, byte, (byte % 8) as u8);
    }
    assert_verified(&disk);
}

/// What producers said in frames that are gone is only in checkpoints.
#[test]
fn a_gap_is_passed_over_only_where_a_checkpoint_follows() {
    let damaged = |segments_back: std::ops::Range<usize>| {
        let disk = MemoryDisk::new(5);
        let broker = many_events(&disk, 200);
        clean(&broker, &short_lived()).unwrap();
        drop(broker);
        let sealed = segments(&disk);
        for path in sealed
            .iter()
            .rev()
            .skip(1)
            .skip(segments_back.start)
            .take(segments_back.len())
        {
            let file = disk.open(path).unwrap();
            let length = file.length().unwrap();
            let footer = crate::log::segment::Footer::read(&*file, length)
                .unwrap()
                .unwrap();
            disk.flip(path, footer.checkpoint_at() as usize + 3, 2);
        }
        disk
    };
    assert_eq!(open(&damaged(0..1)).unwrap().recovery.rebuilt.len(), 1);
    assert_eq!(open(&damaged(0..2)).unwrap().recovery.rebuilt.len(), 2);
    let refused = open(&damaged(0..3)).unwrap_err().to_string();
    assert!(refused.contains("checkpoint"), "{refused}");
    // One in the middle is not even needed.
    assert!(open(&damaged(2..3)).unwrap().recovery.rebuilt.is_empty());
}

#[test]
fn who_has_not_seen_what_is_gone_is_known() {
    let disk = MemoryDisk::new(1);
    let mut broker = many_events(&disk, 100);
    let origin = broker.sequencer.origin();
    let stream = StreamId::new(EVENTS);
    let seen = |sequence: u64| -> VersionVector {
        let frame = (Origin { ..origin }, Sequence::new(sequence));
        std::iter::once(frame).collect()
    };
    assert!(!broker.reader.misses(stream, &VersionVector::default()));
    // Much of another stream follows, so that the trim is far behind the last record dropped.
    for n in 0..300 {
        broker.now += 1000;
        broker.put(&[filler(OTHER, n, 40)]);
    }
    clean(&broker, &short_lived()).unwrap();
    assert_eq!(records(&broker.reader, EVENTS).len(), 0);
    // The row, 100 events, the other row in the middle.
    assert_eq!(broker.reader.gone(stream), seen(102));
    assert_eq!(broker.reader.gone_to(stream), position(102));
    assert!(broker.reader.trimmed(stream) > position(300));
    assert!(broker.reader.misses(stream, &seen(101)));
    assert!(!broker.reader.misses(stream, &seen(102)));
    assert!(
        !broker
            .reader
            .misses(StreamId::new(OTHER), &VersionVector::default())
    );
    broker.close().unwrap();
    assert_eq!(open(&disk).unwrap().reader.gone(stream), seen(102));
}

#[test]
fn deletes_that_are_dropped_are_missed_by_who_has_not_seen_them() {
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    let long = "v".repeat(300);
    put_row(&mut broker, "k", Some(&long));
    put_row(&mut broker, "k", None);
    seal_all(&mut broker);
    let stream = StreamId::new(TABLE);
    clean(&broker, &short_lived()).unwrap();
    assert!(!broker.reader.misses(stream, &VersionVector::default()));
    broker.now += 25 * 60 * 60 * 1000;
    for n in 0..20 {
        put_row(&mut broker, &format!("n{n}"), Some(&long));
    }
    seal_all(&mut broker);
    clean(&broker, &short_lived()).unwrap();
    let frame = |sequence| (broker.sequencer.origin(), Sequence::new(sequence));
    let gone: VersionVector = std::iter::once(frame(2)).collect();
    assert_eq!(broker.reader.gone(stream), gone);
    assert!(
        broker
            .reader
            .misses(stream, &std::iter::once(frame(1)).collect())
    );
    assert_eq!(
        broker.reader.gone_to(stream),
        position(0),
        "no trim has moved"
    );
}

fn footer_of(disk: &MemoryDisk, path: &Path) -> crate::log::segment::Footer {
    let file = disk.open(path).unwrap();
    let length = file.length().unwrap();
    crate::log::segment::Footer::read(&*file, length)
        .unwrap()
        .unwrap()
}

/// Inverts a bit in the checkpoint of the sealed segment with this number.
fn damage_checkpoint(disk: &MemoryDisk, number: usize) {
    let path = &segments(disk)[number];
    let at = footer_of(disk, path).checkpoint_at();
    disk.flip(path, at as usize + 3, 2);
}

/// The same in the summary.
fn damage_summary(disk: &MemoryDisk, number: usize) {
    let path = &segments(disk)[number];
    let at = footer_of(disk, path).summary_at();
    disk.flip(path, at as usize + 1, 2);
}

#[test]
fn a_seal_that_is_made_anew_behind_a_gap_does_not_forget_what_the_gap_did() {
    let prepared = || {
        let disk = MemoryDisk::new(5);
        let broker = many_events(&disk, 200);
        clean(&broker, &short_lived()).unwrap();
        drop(broker);
        let with_gaps = segments(&disk).len() - 4;
        damage_summary(&disk, with_gaps);
        (disk, with_gaps)
    };
    let (disk, number) = prepared();
    let path = segments(&disk).remove(number);
    let checkpoint = |disk: &MemoryDisk| {
        let footer = footer_of(disk, &path);
        let from = footer.checkpoint_at() as usize;
        disk.content(&path).unwrap()[from..][..footer.checkpoint.length as usize].to_vec()
    };
    let before = checkpoint(&disk);
    assert_eq!(
        open(&disk).unwrap().recovery.rebuilt,
        std::slice::from_ref(&path)
    );
    assert_verified(&disk);
    assert!(checkpoint(&disk) == before);

    // With the checkpoint lost, too, those behind it have to be there, now and later.
    let (disk, number) = prepared();
    damage_checkpoint(&disk, number);
    assert_eq!(
        open(&disk).unwrap().recovery.rebuilt,
        std::slice::from_ref(&path)
    );
    for later in number + 1..segments(&disk).len() - 1 {
        damage_checkpoint(&disk, later);
    }
    let refused = open(&disk).unwrap_err().to_string();
    assert!(refused.contains("checkpoint"), "{refused}");
}

#[test]
fn segments_that_cannot_be_put_together_do_not_keep_the_cleaner_busy() {
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    for n in 0..12 {
        put_row(&mut broker, &format!("k{n}"), Some("stays"));
        seal_all(&mut broker);
    }
    for number in 0..10 {
        damage_checkpoint(&disk, number);
    }
    let report = clean(&broker, &short_lived()).unwrap();
    assert!(report.is_empty(), "{report}");
    assert_eq!(rows(&broker.reader).len(), 12);
}

#[test]
fn a_cleaning_that_failed_leaves_no_file_behind() {
    let prepared = || {
        let disk = MemoryDisk::new(11);
        let broker = many_events(&disk, 100);
        (disk.operations(), disk, broker)
    };
    let (from, disk, broker) = prepared();
    clean(&broker, &short_lived()).unwrap();
    for operation in from + 1..=disk.operations() {
        let (_, disk, broker) = prepared();
        disk.inject(operation, Fault::NoSpace);
        let _done_or_not = clean(&broker, &short_lived());
        let names = disk.list(&Path::new(DIR).join("log")).unwrap();
        let copy = |name: &&String| name.ends_with(".temp") && *name != "trims.temp";
        let left = names.iter().find(copy);
        assert_eq!(left, None, "operation {operation}");
    }
}

#[test]
fn a_damaged_gap_is_reported_once() {
    let disk = MemoryDisk::new(5);
    let broker = many_events(&disk, 60);
    clean(&broker, &short_lived()).unwrap();
    let first = Arc::clone(&broker.reader.shared().state.read().segments[0]);
    let loaded = broker.reader.shared().load(&first).unwrap();
    let gap = (0..loaded.index.len()).find(|&entry| loaded.index.is_gap(entry as u32));
    let (at, _) = loaded.index.place(gap.unwrap());
    let frames = loaded.index.position_of(gap.unwrap() as u32 + 1);
    assert!(frames > position(10), "{frames}");
    broker.close().unwrap();
    disk.flip(&first.path, at as usize + 40, 1);
    let found = crate::log::verify(&disk, Path::new(DIR), IDENTITY, &mut |_| {}).unwrap();
    assert_eq!(found.findings, 1);
}

/// What is left of an entry whose batch was dropped does not say who had published it.
#[test]
fn producers_are_known_again_where_only_a_summary_is_damaged() {
    use anabranch_core::producer::ProducerStamp;
    let disk = MemoryDisk::new(5);
    let mut broker = open(&disk).unwrap();
    put_row(&mut broker, "first", Some("stays"));
    seal_all(&mut broker);
    for n in 0..5 {
        let mut builder = BatchBuilder::default();
        let value = Some([b'v'; 500].as_slice());
        let record = NewRecord {
            value,
            ..NewRecord::default()
        };
        builder.push(&record).unwrap();
        let stamp = ProducerStamp {
            id: 5 + n,
            epoch: 0,
            sequence: 0,
        };
        broker.put(&[Publish {
            stream: StreamId::new(EVENTS),
            partition: PartitionId::new(0),
            batch: builder.finish(Some(stamp)).unwrap(),
        }]);
    }
    seal_all(&mut broker);
    broker.now += 1000 * 1000;
    assert_eq!(clean(&broker, &short_lived()).unwrap().rewritten, 1);
    let checkpoint = broker.sequencer.checkpoint();
    drop(broker);
    damage_summary(&disk, 1);
    let broker = open(&disk).unwrap();
    assert_eq!(broker.recovery.rebuilt.len(), 1);
    assert!(broker.sequencer.checkpoint() == checkpoint);
}

/// The cleaner may put another file in place between a look at the old one's index and at its entries.
#[test]
fn a_replaced_segment_is_not_taken_for_a_damaged_one() {
    let disk = MemoryDisk::new(5);
    let broker = many_events(&disk, 200);
    let old = Arc::clone(&broker.reader.shared().state.read().segments[0]);
    clean(&broker, &short_lived()).unwrap();
    let file = disk.open(&old.path).unwrap();
    let length = file.length().unwrap();
    let footer = crate::log::segment::Footer::read(&*file, length)
        .unwrap()
        .unwrap();
    disk.flip(&old.path, footer.index_at() as usize + 1, 2);
    let loaded = broker.reader.shared().load_by_entries(&old);
    assert!(matches!(loaded, Err(LoadError::Replaced)), "{loaded:?}");
}
