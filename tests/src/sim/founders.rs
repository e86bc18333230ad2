//! A cluster that was founded before the first frame that is looked at.

use anabranch_core::id::{BrokerId, Epoch, Origin, PartitionId, RegionName};
use anabranch_core::members::{self, Members, Standing};
use anabranch_core::sequencer::{Publish, Sequencer};
use anabranch_core::stream::StreamDefinition;

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
        let publish = Publish {
            stream: StreamDefinition::members().id(),
            partition: PartitionId::new(0),
            batch: members::batch(broker, Standing::Active, &region, 1)
                .expect("a small record fits"),
        };
        let mut frame = scratch.open();
        frame
            .add(&[publish], &mut Vec::new())
            .expect("nothing speaks against it");
        let _ = frame.close(1);
    }
    scratch.members().clone()
}
