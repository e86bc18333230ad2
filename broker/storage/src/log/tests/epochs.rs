//! Under which identity a broker writes after a start.

use super::*;
use crate::disk::Disk;
use crate::log::Proof;

#[test]
fn a_clean_end_and_an_end_in_the_same_boot_keep_the_identity() {
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    let origin = broker.sequencer.origin();
    assert_eq!(broker.recovery.proof, Proof::New);
    broker.put(&[filler(1, 1, 10)]);
    broker.close().unwrap();
    disk.power_cycle();
    let mut broker = open(&disk).unwrap();
    assert_eq!(broker.recovery.proof, Proof::Clean);
    assert!(broker.recovery.is_clean());
    broker.put(&[filler(1, 2, 10)]);
    drop(broker);
    let mut broker = open(&disk).unwrap();
    assert_eq!(broker.recovery.proof, Proof::SameBoot);
    let commit = broker.put(&[filler(1, 3, 10)]);
    assert_eq!(
        (commit.header.origin, commit.header.sequence.get()),
        (origin, 3)
    );
}

#[test]
fn a_restarted_machine_leads_to_a_new_identity_which_then_stays() {
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    let first = broker.sequencer.origin();
    broker.put(&[filler(1, 1, 10)]);
    drop(broker);
    disk.power_cycle();
    let broker = open(&disk).unwrap();
    assert_eq!(broker.recovery.proof, Proof::OtherBoot);
    let second = broker.recovery.new_origin.unwrap();
    assert!(second.broker == first.broker && second.epoch > first.epoch);
    // It has written nothing yet, and must be kept all the same.
    drop(broker);
    let mut broker = open(&disk).unwrap();
    assert_eq!(broker.sequencer.origin(), second);
    let commit = broker.put(&[filler(1, 2, 10)]);
    assert_eq!(
        (commit.header.origin, commit.header.sequence.get()),
        (second, 1)
    );
    drop(broker);
    let broker = open(&disk).unwrap();
    assert_eq!(broker.sequencer.origin(), second);
    broker.close().unwrap();
    assert_eq!(open(&disk).unwrap().sequencer.origin(), second);
}

#[test]
fn a_copied_directory_takes_an_identity_of_its_own() {
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    broker.put(&[filler(1, 1, 10)]);
    for clean in [false, true] {
        if clean {
            broker.close().unwrap();
        } else {
            drop(broker);
        }
        let copies = [Path::new("/copy1"), Path::new("/copy2")];
        let mut origins = Vec::new();
        for copy in copies {
            disk.copy_dir(Path::new(DIR), copy);
            let copied = open_in(&disk, copy).unwrap();
            assert_eq!(copied.recovery.proof, Proof::Copied);
            origins.push(copied.recovery.new_origin.unwrap());
            assert_eq!(copied.all().len(), 1);
        }
        assert_ne!(
            origins[0], origins[1],
            "two copies must not share an identity"
        );
        broker = open(&disk).unwrap();
        assert_eq!(broker.recovery.new_origin, None, "the original goes on");
    }
}

#[test]
fn a_backup_copied_over_its_original_takes_a_new_identity() {
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    let first = broker.sequencer.origin();
    broker.put(&[filler(1, 1, 10)]);
    broker.close().unwrap();
    disk.copy_dir(Path::new(DIR), Path::new("/backup"));
    let mut broker = open(&disk).unwrap();
    broker.put(&[filler(1, 2, 10)]);
    drop(broker);
    // As `cp` does: the same files, other content.
    for name in ["mark", "witness"] {
        let content = disk.content(&Path::new("/backup").join(name)).unwrap();
        let file = disk.create(&Path::new(DIR).join(name)).unwrap();
        file.write_at(&content, 0).unwrap();
    }
    let dir = Path::new(DIR).join("log");
    for path in segments(&disk) {
        let content = disk.content(&Path::new("/backup/log").join(path.file_name().unwrap()));
        let file = disk.create(&dir.join(path.file_name().unwrap())).unwrap();
        file.write_at(&content.unwrap(), 0).unwrap();
    }
    let mut broker = open(&disk).unwrap();
    assert_eq!(broker.recovery.proof, Proof::Copied);
    let commit = broker.put(&[filler(1, 3, 10)]);
    assert_ne!(commit.header.origin, first);
}

#[test]
fn a_lost_mark_leads_to_a_new_identity() {
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    broker.put(&[filler(1, 1, 10)]);
    broker.close().unwrap();
    disk.remove(&Path::new(DIR).join("mark")).unwrap();
    let broker = open(&disk).unwrap();
    assert_eq!(broker.recovery.proof, Proof::NoMark);
    assert!(broker.recovery.new_origin.is_some());
}

#[test]
fn segments_of_another_broker_are_refused() {
    let disk = MemoryDisk::new(1);
    open(&disk).unwrap().put(&[filler(1, 1, 10)]);
    let other = Identity {
        broker: BrokerId::new(1),
        ..IDENTITY
    };
    let opened = Log::open_at(Arc::new(disk), Path::new(DIR), other, SMALL, &mut |_| {});
    assert!(matches!(opened, Err(OpenError::OtherBroker { .. })));
}

#[test]
fn a_log_that_peers_have_shown_to_be_rolled_back_takes_a_new_identity() {
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    let first = broker.sequencer.origin();
    broker.put(&[filler(1, 1, 10)]);
    broker.log.doubt().unwrap();
    drop(broker);
    let broker = open(&disk).unwrap();
    assert_eq!(broker.recovery.proof, Proof::Doubted);
    let second = broker.recovery.new_origin.unwrap();
    assert!(second.broker == first.broker && second.epoch > first.epoch);
    drop(broker);
    assert_eq!(open(&disk).unwrap().recovery.proof, Proof::SameBoot);
}
