//! Mistakes on purpose, to see that they are noticed.

use anabranch_core::batch::Batch;
use anabranch_core::clock::HybridTimestamp;
use anabranch_core::frame::{Commit, CommitPart, FrameHeader, PartHeader};
use anabranch_core::id::{Epoch, Offset, Origin, Position};
use anabranch_core::sequencer::{Foreign, Sequencer};
use anabranch_core::stability::Report;
use anabranch_core::vector::VersionVector;

/// A mistake that a simulated broker makes, in what surrounds the core. The core has no switch for
/// any of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// Frames are taken over without waiting for what they follow.
    NoCausalGate,
    /// A report counts before the frames that it speaks of are there.
    EarlyReport,
    /// A broker goes on under its old identity on a directory that was restored from a backup.
    ReuseSequence,
    /// A broker on a restored directory writes as soon as it has its own frames back.
    FetchOwnTailOnly,
    /// A frame that comes a second time, since a link came up again, is folded a second time.
    DoubleApply,
    /// Tombstones go after a while instead of by the watermark.
    PruneByTime,
    /// Writes are acknowledged before they are durable.
    AckBeforeSync,
}

/// The frame with nothing to follow. Its bytes, and so its chain, stay as they are.
pub(super) fn without_context(frame: &Foreign) -> Foreign {
    let header = FrameHeader {
        context: VersionVector::EMPTY,
        ..frame.header().clone()
    };
    let bytes = frame.header_bytes().clone();
    Foreign::new(header, bytes, frame.batches().to_vec()).expect("the parts are the same")
}

/// The frame as a commit, for folding it once more.
pub(super) fn commit_of(frame: &Foreign, position: Position) -> Commit {
    let mut first_index = 0;
    let headers = frame.header().parts.iter();
    let mut part = |(header, batch): (&PartHeader, &Option<Batch>)| {
        let index = first_index;
        first_index += header.records;
        CommitPart {
            header: *header,
            base_offset: Offset::new(0),
            first_index: index,
            batch: batch.clone(),
        }
    };
    Commit {
        position,
        header: frame.header().clone(),
        header_bytes: frame.header_bytes().clone(),
        parts: headers.zip(frame.batches()).map(&mut part).collect(),
    }
}

/// A report that speaks of none of its broker's own frames, so that it waits for none.
pub(super) fn without_own_frames(report: Report) -> Report {
    let others = report.applied.iter();
    let applied = others.filter(|(origin, _)| origin.broker != report.broker);
    Report {
        applied: applied.collect(),
        ..report
    }
}

/// The state under an epoch that has been written under before.
pub(super) fn with_epoch(sequencer: &Sequencer, epoch: Epoch) -> Sequencer {
    let mut checkpoint = sequencer.checkpoint();
    // A checkpoint begins with the identity: broker u64, epoch u32.
    checkpoint[8..12].copy_from_slice(&epoch.get().to_le_bytes());
    Sequencer::restore(&checkpoint).expect("only the epoch has changed")
}

/// A moment that should be long enough ago, and is not.
pub(super) fn a_while_ago(sequencer: &Sequencer) -> HybridTimestamp {
    let newest = sequencer.last_timestamp().millis();
    HybridTimestamp::from_millis(newest.saturating_sub(300))
}

/// The last epoch that a broker's frames in a log are of.
pub(super) fn last_epoch(sequencer: &Sequencer) -> Option<Epoch> {
    let broker = sequencer.origin().broker;
    let own = sequencer.vector();
    let own = own.iter().filter(|(origin, _)| origin.broker == broker);
    own.map(|(Origin { epoch, .. }, _)| epoch).max()
}
