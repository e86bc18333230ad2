//! Damage at rest is found, named, and never cut away or served.

use super::*;
use crate::disk::Disk;
use crate::log::{Event, Verified, verify};

/// A log of a few sealed segments and an active one, and what is in it.
fn sample(closed: bool) -> (MemoryDisk, Vec<Commit>) {
    let disk = MemoryDisk::new(3);
    let options = LogOptions {
        segment_bytes: 700,
        ..SMALL
    };
    let mut broker = open_as(&disk, Path::new(DIR), IDENTITY, options).unwrap();
    broker.now = 1;
    let written = (0..7)
        .map(|n| broker.put(&[filler(1, n, 20), filler(2, n, 10)]))
        .collect();
    if closed {
        broker.close().unwrap();
    }
    (disk, written)
}

/// Opens and reads a log of which one bit is wrong. Says whether that was noticed.
fn look(disk: &MemoryDisk, written: &[Commit]) -> bool {
    let before: Vec<_> = segments(disk)
        .iter()
        .map(|path| disk.content(path))
        .collect();
    let broker = match open(disk) {
        Err(error) => {
            let refused = matches!(
                error,
                OpenError::Damaged(_) | OpenError::Missing { .. } | OpenError::NewerFormat { .. }
            );
            assert!(refused, "{error}");
            let after: Vec<_> = segments(disk)
                .iter()
                .map(|path| disk.content(path))
                .collect();
            assert_eq!(before, after, "nothing is changed: {error}");
            return true;
        }
        Ok(broker) => broker,
    };
    assert_eq!(
        broker.reader.next_position().get(),
        written.len() as u64,
        "nothing durable is cut"
    );
    let mut noticed = broker.recovery.new_origin.is_some() || !broker.recovery.rebuilt.is_empty();
    noticed |= broker.recovery.scanned_bytes > 0 || broker.recovery.cut_bytes > 0;
    for commit in written {
        match broker.reader.read(commit.position, &Filter::All, 1) {
            Ok(chunk) => assert_same(
                &[chunk.commits[0].clone().into_inner()],
                std::slice::from_ref(commit),
            ),
            Err(_) => noticed = true,
        }
    }
    noticed
}

#[test]
fn every_flipped_byte_of_a_segment_is_noticed_and_none_is_served() {
    for closed in [true, false] {
        let (_, written) = sample(closed);
        let (disk, _) = sample(closed);
        let lengths: Vec<_> = segments(&disk)
            .into_iter()
            .map(|path| (disk.content(&path).unwrap().len(), path))
            .collect();
        let (mut flipped, mut unnoticed) = (0, Vec::new());
        let last = lengths.last().map(|(_, path)| path);
        let content = disk.content(last.unwrap()).unwrap();
        let end = content
            .iter()
            .rposition(|&byte| byte != 0)
            .unwrap()
            .next_multiple_of(8);
        assert_eq!(verified(&disk).findings, 0);
        for (length, path) in &lengths {
            for byte in 0..*length {
                let (disk, _) = sample(closed);
                disk.flip(path, byte, (byte % 8) as u8);
                flipped += 1;
                let unwritten = !closed && Some(path) == last && byte >= end;
                let found = verified(&disk).findings;
                assert!(found > 0 || unwritten, "{} byte {byte}", path.display());
                if !look(&disk, &written) {
                    unnoticed.push((path.clone(), byte));
                }
            }
        }
        assert!(flipped > 3000, "{flipped}");
        // The index and the checkpoint of a sealed segment are read when they are needed; `verify`
        // reads all. What is not needed may be damaged unnoticed, but serves nothing wrong.
        let share = unnoticed.len() * 100 / flipped;
        assert!(share < 60, "{share} % unnoticed");
    }
}

fn verified(disk: &MemoryDisk) -> Verified {
    verify(disk, Path::new(DIR), IDENTITY, &mut |_| {}).unwrap()
}

/// The writer goes on in the next segment while the full one is being sealed.
#[test]
fn a_segment_that_a_crash_left_unsealed_is_no_damage_unless_a_later_one_is_sealed() {
    let strip = |disk: &MemoryDisk, path: &PathBuf| {
        let file = disk.open(path).unwrap();
        let length = file.length().unwrap();
        file.write_at(&[0; 96], length - 96).unwrap();
    };
    let (disk, written) = sample(false);
    let all = segments(&disk);
    assert!(all.len() >= 4, "{all:?}");
    strip(&disk, &all[all.len() - 2]);
    assert_eq!(verified(&disk).findings, 0);
    strip(&disk, &all[all.len() - 3]);
    assert_eq!(verified(&disk).findings, 0);
    assert_same(&open(&disk).unwrap().all(), &written);

    let (disk, _) = sample(false);
    strip(&disk, &all[all.len() - 3]);
    assert_eq!(verified(&disk).findings, 1, "a later one is sealed");
    let (disk, _) = sample(true);
    strip(&disk, &all[all.len() - 2]);
    assert!(verified(&disk).findings > 0, "the log was closed");
}

#[test]
fn every_flipped_byte_of_a_mark_is_noticed_and_none_believed() {
    let (disk, written) = sample(true);
    let path = Path::new(DIR).join("mark");
    for byte in (0..128).chain(4096..4224) {
        disk.flip(&path, byte, (byte % 8) as u8);
        assert!(verified(&disk).findings > 0, "byte {byte}");
        disk.flip(&path, byte, (byte % 8) as u8);
    }
    disk.flip(&path, 30, 1);
    let broker = open(&disk).unwrap();
    assert_same(&broker.all(), &written);
    assert_eq!(
        broker.recovery.new_origin, None,
        "the other slot says the same"
    );
}

#[test]
fn verifying_goes_on_behind_damage_and_counts_what_is_whole() {
    let (disk, written) = sample(true);
    let first = &segments(&disk)[0];
    disk.flip(first, 70, 1);
    let mut findings = Vec::new();
    let result = verify(&disk, Path::new(DIR), IDENTITY, &mut |event| {
        if let Event::Finding(finding) = event {
            findings.push(finding);
        }
    });
    let result = result.unwrap();
    assert_eq!(result.entries, written.len() as u64 - 1);
    assert_eq!(result.next, position(written.len() as u64));
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!((&findings[0].path, findings[0].offset), (first, 64));
}

#[test]
fn damage_in_an_unsealed_segment_is_not_cut_if_it_was_durable() {
    let disk = MemoryDisk::new(3);
    let mut broker = open(&disk).unwrap();
    for n in 0..3 {
        broker.put(&[filler(1, n, 100)]);
    }
    drop(broker);
    let path = &segments(&disk)[0];
    // In the middle: entries that follow speak of it. At the end: only the mark does.
    for (entry, witness) in [(1, "an entry"), (2, "the mark")] {
        let at = 64 + entry * 336 + 60;
        disk.flip(path, at, 1);
        match open(&disk) {
            Err(OpenError::Damaged(damage)) => {
                assert_eq!(damage.position, position(entry as u64), "{witness}");
                assert_eq!(&damage.path, path);
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("{witness} knows that it was durable"),
        }
        disk.flip(path, at, 1);
    }
    assert_eq!(open(&disk).unwrap().all().len(), 3);
}

#[test]
fn a_missing_segment_is_called_missing() {
    for which in 0..3 {
        let (disk, _) = sample(true);
        let all = segments(&disk);
        assert!(all.len() >= 3, "{all:?}");
        let path = &all[which.min(all.len() - 1)];
        disk.remove(path).unwrap();
        assert!(
            matches!(open(&disk), Err(OpenError::Missing { .. })),
            "{path:?}"
        );
    }
}

#[test]
fn a_damaged_index_is_rebuilt_from_whole_entries() {
    let (disk, written) = sample(true);
    let all = segments(&disk);
    let last = all.last().unwrap();
    let length = disk.content(last).unwrap().len();
    // Somewhere in the index of the segment that is opened to be written on.
    let checkpoint = 120;
    disk.flip(last, length - 96 - checkpoint - 70, 2);
    let broker = open(&disk).unwrap();
    assert_eq!(broker.recovery.rebuilt, std::slice::from_ref(last));
    assert_same(&broker.all(), &written);
    drop(broker);
    assert!(open(&disk).unwrap().recovery.rebuilt.is_empty());
}

#[test]
fn a_mark_beyond_the_log_refuses_the_log() {
    let (disk, _) = sample(false);
    let last = segments(&disk).pop().unwrap();
    let file = disk.open(&last).unwrap();
    file.truncate(64).unwrap();
    assert!(matches!(open(&disk), Err(OpenError::Damaged(_))));
}
