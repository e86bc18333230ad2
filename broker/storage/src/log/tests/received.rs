//! A peer's gaps in the segment that is written: power cuts, damage, reading across them.

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::frame::Chain;
use anabranch_core::gap::Gap;
use anabranch_core::id::{Epoch, Offset, Origin, Sequence};
use anabranch_core::sequencer::Head;
use anabranch_core::vector::VersionVector;

use super::cleaning::assert_verified;
use super::*;
use crate::disk::{Disk, Fault};

fn peer(broker: u64) -> Origin {
    Origin {
        broker: BrokerId::new(broker),
        epoch: Epoch::new(1),
    }
}

/// The next frames of a peer, all dropped, which followed some of another one.
fn gap(broker: &Broker, of: u64, frames: u64) -> Gap {
    let first = broker.sequencer.head(peer(of)).sequence.next();
    Gap {
        position: Position::default(),
        origin: peer(of),
        first,
        frames,
        timestamp: HybridTimestamp::from_millis(900),
        chain: Chain::new([first.get() as u8; 32]),
        context: [(peer(of + 1), first)].into_iter().collect(),
        parts: Vec::new(),
    }
}

fn receive(broker: &mut Broker, of: u64, frames: u64) {
    let gaps = [gap(broker, of, frames)];
    let accepted = broker.sequencer.accept_gaps(&gaps, 1000).unwrap();
    assert_eq!(accepted.len(), 1);
    broker.log.append_gaps(accepted, broker.now);
}

/// What a sequencer knows, but for what an epoch has told of.
type Reached = (Position, Vec<(Origin, Head)>, Offset, HybridTimestamp);

fn reached(broker: &Broker) -> Reached {
    let sequencer = &broker.sequencer;
    (
        sequencer.next_position(),
        sequencer.heads().collect(),
        sequencer.next_offset(StreamId::new(1), PartitionId::new(0)),
        sequencer.last_timestamp(),
    )
}

/// What the log was after each entry, and how much of it was durable.
#[derive(Default)]
struct History {
    states: Vec<Reached>,
    durable: usize,
}

impl History {
    /// Groups that begin or end with a gap, hold several or nothing else, over several segments.
    fn write(&mut self, broker: &mut Broker, groups: u64) -> Result<(), WriteError> {
        self.states.push(reached(broker));
        for number in 0..groups {
            if number % 3 != 1 {
                receive(broker, 1, 1 + number % 4);
                self.states.push(reached(broker));
            }
            if number % 4 != 1 {
                broker.append(&[filler(1, 3 * number, 200)]);
                self.states.push(reached(broker));
            }
            if number % 3 != 2 {
                receive(broker, 3, 2);
                self.states.push(reached(broker));
            }
            broker.sync()?;
            self.durable = self.states.len() - 1;
        }
        Ok(())
    }

    fn check(&self, broker: &Broker) {
        let found = reached(broker);
        let held = self.states[self.durable..].iter();
        assert!(held.clone().any(|state| *state == found), "{found:?}");
        let reader = &broker.reader;
        let vector = reader.vector_before(reader.next_position()).unwrap();
        assert_eq!(vector, broker.sequencer.vector());
    }
}

#[test]
fn a_power_cut_at_any_operation_loses_no_gap_that_was_durable() {
    let whole = MemoryDisk::new(1);
    let mut history = History::default();
    let mut broker = open(&whole).unwrap();
    history.write(&mut broker, 60).unwrap();
    assert!(broker.reader.shared().state.read().segments.len() >= 2);
    for operation in 1..=whole.operations() {
        let disk = MemoryDisk::new(operation);
        disk.inject(operation, Fault::PowerCut);
        let mut history = History::default();
        if let Ok(mut broker) = open(&disk) {
            let _cut = history.write(&mut broker, 60);
        }
        disk.power_cycle();
        disk.inject(disk.operations() + 1 + operation % 30, Fault::PowerCut);
        drop(open(&disk));
        disk.power_cycle();
        let mut broker = open(&disk).unwrap();
        if history.states.is_empty() {
            continue;
        }
        history.check(&broker);
        let mut later = History::default();
        later.write(&mut broker, 3).unwrap();
        drop(broker);
        let broker = open(&disk).unwrap();
        later.check(&broker);
        assert_eq!(broker.recovery.cut_bytes, 0);
        broker.close().unwrap();
        assert_verified(&disk);
        let closed = open(&disk).unwrap();
        assert_eq!(closed.recovery.scanned_bytes, 0);
        later.check(&closed);
    }
}

/// That it was durable is said by what was written after it: by an entry, or by another gap.
#[test]
fn a_gap_that_was_durable_is_never_cut() {
    for gap_behind in [false, true] {
        let disk = MemoryDisk::new(1);
        let mut broker = open(&disk).unwrap();
        broker.put(&[filler(1, 0, 50)]);
        let at = broker.reader.shared().state.read().active.index.end();
        receive(&mut broker, 1, 4);
        broker.sync().unwrap();
        match gap_behind {
            true => receive(&mut broker, 3, 2),
            false => drop(broker.append(&[filler(1, 1, 50)])),
        }
        broker.sync().unwrap();
        drop(broker);
        let path = segments(&disk).pop().unwrap();
        // Without the mark, only the file itself can tell.
        disk.remove(&Path::new(DIR).join("mark")).unwrap();
        disk.flip(&path, usize::try_from(at).unwrap() + 42, 1);
        let opened = open(&disk);
        assert!(matches!(opened, Err(OpenError::Damaged(_))), "{opened:?}");
    }
}

#[test]
fn readers_pass_over_a_peers_gaps_and_find_every_place() {
    for close in [false, true] {
        let disk = MemoryDisk::new(1);
        let mut broker = open(&disk).unwrap();
        broker.put(&[filler(1, 0, 50)]);
        receive(&mut broker, 1, 4);
        receive(&mut broker, 3, 2);
        broker.sync().unwrap();
        broker.put(&[filler(1, 3, 50)]);
        receive(&mut broker, 1, 3);
        broker.sync().unwrap();
        let own = broker.sequencer.origin();
        if close {
            broker.close().unwrap();
            broker = open(&disk).unwrap();
        }
        let reader = &broker.reader;
        assert_eq!(reader.next_position(), position(11));
        let places: Vec<_> = broker.all().iter().map(|c| c.position.get()).collect();
        assert_eq!(places, [0, 7]);
        // No partition counts what was dropped elsewhere.
        let offsets = reader.bounds(StreamId::new(1), PartitionId::new(0));
        assert_eq!(offsets, (Offset::new(0), Offset::new(2)));
        let found = |of, sequence| reader.locate(of, Sequence::new(sequence)).unwrap();
        assert_eq!(found(peer(1), 3), Some(position(1)));
        assert_eq!(found(peer(1), 5), Some(position(8)));
        assert_eq!(found(own, 2), Some(position(7)));
        let held = |own_frames, first, second| -> VersionVector {
            let all = [(own, own_frames), (peer(1), first), (peer(3), second)];
            all.map(|(origin, n)| (origin, Sequence::new(n)))
                .into_iter()
                .collect()
        };
        assert_eq!(reader.vector_before(position(7)).unwrap(), held(1, 4, 2));
        assert_eq!(reader.vector_before(position(11)).unwrap(), held(2, 7, 2));
        assert_eq!(reader.resume(&held(1, 4, 2)), position(7));
        assert_eq!(reader.resume(&held(2, 4, 2)), position(8));
        assert_eq!(reader.resume(&held(2, 7, 2)), position(11));
    }
}
