//! A cluster that was founded before the first frame that is looked at.

use anabranch_core::frame::Commit;
use anabranch_core::id::{BrokerId, Epoch, Origin, PartitionId, RegionName};
use anabranch_core::members::{self, Members, Standing};
use anabranch_core::sequencer::{Foreign, Publish, Sequencer};
use anabranch_core::stream::StreamDefinition;
use anabranch_storage::log::{Opened, most_entry_bytes};

use super::broker;
use super::truth::{Truth, name_of};
use super::verdict::{Checked, Violation};
use super::world::{BEGINNING_MS, Machine};

/// What is published to say where a broker stands. `now_ms` is the wall clock.
pub(super) fn said(
    broker: BrokerId,
    standing: Standing,
    region: &RegionName,
    now_ms: u64,
) -> Publish {
    Publish {
        stream: StreamDefinition::members().id(),
        partition: PartitionId::new(0),
        batch: members::batch(broker, standing, region, now_ms).expect("a small record fits"),
    }
}

/// Puts into all of these logs what the first one has written: that all are members.
pub(super) fn found(machines: &mut [Machine], truth: &mut Truth) -> Checked {
    let standing = Standing::Active;
    let founding: Vec<_> = machines
        .iter()
        .map(|machine| said(machine.id, standing, &machine.region, BEGINNING_MS))
        .collect();
    let mut first: Option<Foreign> = None;
    for machine in machines {
        let disk = machine.disk.clone();
        disk.watch(|| {
            let mut opened = broker::open(&machine.disk, machine.id).map_err(Violation)?;
            let sequencer = &mut opened.sequencer;
            let known = sequencer.vector();
            let commit = match &first {
                None => {
                    let mut frame = sequencer.open();
                    let added = frame.add(&founding, &mut Vec::new());
                    added.map_err(|error| Violation(error.to_string()))?;
                    let commit = frame.close(BEGINNING_MS).expect("it holds something new");
                    truth.sequenced(&commit, known)?;
                    truth.settle(name_of(&commit));
                    commit
                }
                Some(frame) => {
                    let accepted = sequencer.accept(frame, BEGINNING_MS);
                    accepted.map_err(|error| Violation(error.to_string()))?
                }
            };
            first.get_or_insert_with(|| Foreign::from(&commit));
            machine.held = sequencer.vector();
            machine.ever_held = sequencer.vector();
            write(opened, commit).map_err(Violation)
        })?;
    }
    Ok(())
}

fn write(opened: Opened, commit: Commit) -> Result<(), String> {
    let Opened {
        mut log, sequencer, ..
    } = opened;
    let bytes = most_entry_bytes(commit.parts.len(), commit.size());
    log.make_room(bytes).map_err(|error| error.to_string())?;
    log.append(commit, BEGINNING_MS);
    log.sync().map_err(|error| error.to_string())?;
    let closed = log.close(&sequencer.checkpoint());
    closed.map_err(|error| error.to_string())
}

/// What its log says of who belongs to it.
///
/// # Panics
/// Never: the records are small.
pub fn founded_by(founders: impl Iterator<Item = (BrokerId, RegionName)>) -> Members {
    let mut scratch = Sequencer::new(Origin {
        broker: BrokerId::new(u64::MAX),
        epoch: Epoch::new(1),
    });
    for (broker, region) in founders {
        let publish = said(broker, Standing::Active, &region, 1);
        let mut frame = scratch.open();
        frame
            .add(&[publish], &mut Vec::new())
            .expect("nothing speaks against it");
        let _ = frame.close(1);
    }
    scratch.members().clone()
}
