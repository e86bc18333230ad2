//! Which brokers belong to the cluster, as the log says.
//!
//! Members are records of the system stream [`MEMBERS_STREAM`]: the key is a broker's id, the value
//! says where it stands and whether it is waited for. A broker writes nothing else before its log
//! holds that it is a member, so all that it writes follows that record, and whoever takes over its
//! first frame knows it already. That is what makes it sound that others drop what is stable
//! without having met it.
//!
//! A standing only ever moves on, from active to parked to removed, so records join in any order. A
//! broker that was parked never comes back: its directory is put aside, and it joins under a new id.

use std::collections::BTreeMap;

use bytes::BufMut;
use serde_json::{Value, json};

use crate::batch::{Batch, BatchBuilder, BatchError, NewRecord, Operation, Record};
use crate::clock::HybridTimestamp;
use crate::frame::{CommitPart, FrameHeader};
use crate::id::{BrokerId, Epoch, Origin, RegionName, Sequence, StreamId};
use crate::vector::VersionVector;
use crate::wire::{Malformed, Reader, put_varint};

/// The stream whose rows are the members.
pub const MEMBERS_STREAM: &str = "_members";

/// Its id: what every frame's parts are compared with.
const STREAM: StreamId = StreamId::new(0x025e_e610_6adc_7393);

/// Whether a broker is waited for. Later ones win.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Standing {
    /// Nothing is stable that it has not applied.
    Active,
    /// Nobody waits for it any more, and nobody takes its frames from itself.
    Parked,
    /// The same, for good: it is not shown any more.
    Removed,
}

impl Standing {
    const ALL: [Self; 3] = [Self::Active, Self::Parked, Self::Removed];

    /// The name in records and in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Parked => "parked",
            Self::Removed => "removed",
        }
    }

    /// The number in messages between brokers.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The standing of a number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|held| held.as_str() == text)
    }
}

/// What the log says of one broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Whether it is waited for.
    pub standing: Standing,
    /// Where it stands, as of the record with the greatest stamp.
    pub region: RegionName,
    stamp: (HybridTimestamp, Origin),
    /// Whether another one has written that it is a member.
    admitted: bool,
    /// The frames that have ended its being waited for; whoever has applied one of them has it too.
    ended_by: VersionVector,
}

impl Member {
    /// Whether it was parked or removed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.standing > Standing::Active
    }

    /// Whether another broker has written that it is a member: one whose cluster was founded.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// Whether who has applied this knows that it is not waited for any more.
    #[must_use]
    pub fn is_known_ended(&self, applied: &VersionVector) -> bool {
        let mut frames = self.ended_by.iter();
        frames.any(|(origin, sequence)| applied.contains(origin, sequence))
    }
}

/// All members.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    members: BTreeMap<BrokerId, Member>,
}

impl Members {
    /// Nobody.
    pub const EMPTY: Self = Self {
        members: BTreeMap::new(),
    };

    /// What is said of a broker.
    #[must_use]
    pub fn get(&self, broker: BrokerId) -> Option<&Member> {
        self.members.get(&broker)
    }

    /// Whether a broker may write.
    #[must_use]
    pub fn is_active(&self, broker: BrokerId) -> bool {
        self.standing(broker) == Some(Standing::Active)
    }

    /// Whether a broker was parked or removed.
    #[must_use]
    pub fn has_ended(&self, broker: BrokerId) -> bool {
        self.standing(broker) > Some(Standing::Active)
    }

    /// The standing of a broker; `None` if it is no member.
    #[must_use]
    pub fn standing(&self, broker: BrokerId) -> Option<Standing> {
        self.members.get(&broker).map(|member| member.standing)
    }

    /// The standing of each that the log names.
    #[must_use]
    pub fn standings(&self) -> BTreeMap<BrokerId, Standing> {
        self.iter()
            .map(|(broker, member)| (broker, member.standing))
            .collect()
    }

    /// All that the log names, ordered by id.
    pub fn iter(&self) -> impl Iterator<Item = (BrokerId, &Member)> {
        self.members
            .iter()
            .map(|(&broker, member)| (broker, member))
    }

    /// How many were parked or removed.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.members
            .values()
            .filter(|member| member.has_ended())
            .count()
    }

    /// Whether nobody is a member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Joins what a frame says.
    pub(crate) fn note(&mut self, header: &FrameHeader, parts: &[CommitPart]) {
        // One comparison for each part of every frame: nothing is allocated where there is nothing.
        for part in parts.iter().filter(|part| part.header.stream == STREAM) {
            // The broker itself writes these. Of who sends something else nothing is believed.
            let Some(records) = part.batch.as_ref().and_then(|batch| batch.records().ok()) else {
                continue;
            };
            let said = records.iter().map_while(Result::ok);
            for (broker, standing, region) in said.filter_map(|record| read(&record)) {
                self.join(header, broker, standing, region);
            }
        }
    }

    fn join(&mut self, by: &FrameHeader, broker: BrokerId, standing: Standing, region: RegionName) {
        let stamp = (by.timestamp, by.origin);
        let fresh = || Member {
            standing,
            region: region.clone(),
            admitted: false,
            stamp,
            ended_by: VersionVector::EMPTY,
        };
        let member = self.members.entry(broker).or_insert_with(fresh);
        member.standing = member.standing.max(standing);
        member.admitted |= standing == Standing::Active && by.origin.broker != broker;
        if stamp > member.stamp {
            member.stamp = stamp;
            member.region = region;
        }
        if standing > Standing::Active {
            // Of one writer, whoever has applied the later one has applied the first.
            let first = member.ended_by.get(by.origin) == Sequence::NONE;
            if first {
                member.ended_by.advance(by.origin, by.sequence);
            }
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.members.len() as u64);
        for (broker, member) in &self.members {
            out.put_u64_le(broker.get());
            out.put_u8(member.standing.code());
            out.put_u8(u8::from(member.admitted));
            put_varint(out, member.region.as_str().len() as u64);
            out.put_slice(member.region.as_str().as_bytes());
            out.put_u64_le(member.stamp.0.get());
            out.put_u64_le(member.stamp.1.broker.get());
            out.put_u32_le(member.stamp.1.epoch.get());
            member.ended_by.encode(out);
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut members = BTreeMap::new();
        for _ in 0..reader.varint()? {
            let broker = BrokerId::new(reader.u64()?);
            let standing = Standing::from_code(reader.u8()?);
            let admitted = reader.u8()? != 0;
            let length = usize::try_from(reader.varint()?).map_err(|_| Malformed)?;
            let region = std::str::from_utf8(reader.take(length)?).map_err(|_| Malformed)?;
            let timestamp = HybridTimestamp::new(reader.u64()?);
            let origin = Origin {
                broker: BrokerId::new(reader.u64()?),
                epoch: Epoch::new(reader.u32()?),
            };
            let member = Member {
                standing: standing.ok_or(Malformed)?,
                admitted,
                region: RegionName::parse(region).map_err(|_| Malformed)?,
                stamp: (timestamp, origin),
                ended_by: VersionVector::read(reader)?,
            };
            members.insert(broker, member);
        }
        Ok(Self { members })
    }
}

fn read(record: &Record<'_>) -> Option<(BrokerId, Standing, RegionName)> {
    let key = std::str::from_utf8(record.key?).ok()?;
    let broker = BrokerId::parse(key)?;
    let value: Value = serde_json::from_slice(record.value?).ok()?;
    let standing = Standing::parse(value.get("standing")?.as_str()?)?;
    let region = RegionName::parse(value.get("region")?.as_str()?).ok()?;
    Some((broker, standing, region))
}

/// The batch that says this of a broker. `now_ms` is the wall clock.
///
/// # Errors
/// Never: it is small.
pub fn batch(
    broker: BrokerId,
    standing: Standing,
    region: &RegionName,
    now_ms: u64,
) -> Result<Batch, BatchError> {
    let key = broker.to_string();
    let value = json!({ "region": region.as_str(), "standing": standing.as_str() }).to_string();
    let mut batch = BatchBuilder::default();
    batch.push(&NewRecord {
        operation: Operation::Put,
        timestamp: now_ms.cast_signed(),
        key: Some(key.as_bytes()),
        value: Some(value.as_bytes()),
        ..NewRecord::default()
    })?;
    batch.finish(None)
}

/// What a log says of whom somebody else has made members, all of them in region `a`.
#[cfg(test)]
pub(crate) fn founded(brokers: &[u64]) -> Members {
    use crate::id::PartitionId;
    use crate::sequencer::{Publish, Sequencer};
    use crate::stream::StreamDefinition;

    let mut scratch = Sequencer::new(Origin {
        broker: BrokerId::new(99),
        epoch: Epoch::new(1),
    });
    let region = RegionName::parse("a").expect("it is in the alphabet");
    for &broker in brokers {
        let said = batch(BrokerId::new(broker), Standing::Active, &region, 1);
        let publish = Publish {
            stream: StreamDefinition::members().id(),
            partition: PartitionId::new(0),
            batch: said.expect("it is small"),
        };
        let mut frame = scratch.open();
        let added = frame.add(&[publish], &mut Vec::new());
        added.expect("it fits");
        drop(frame.close(1));
    }
    scratch.members().clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PartitionId;
    use crate::sequencer::{Foreign, Publish, Sequencer};
    use crate::stream::StreamDefinition;

    fn sequencer(broker: u64) -> Sequencer {
        Sequencer::new(Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(1),
        })
    }

    fn say(writer: &mut Sequencer, of: u64, standing: Standing, region: &str) -> Foreign {
        let region = RegionName::parse(region).unwrap();
        let publish = Publish {
            stream: StreamDefinition::members().id(),
            partition: PartitionId::new(0),
            batch: batch(BrokerId::new(of), standing, &region, 5).unwrap(),
        };
        let mut frame = writer.open();
        frame.add(&[publish], &mut Vec::new()).unwrap();
        Foreign::from(&frame.close(5).unwrap())
    }

    #[test]
    fn the_id_is_that_of_the_stream() {
        assert_eq!(StreamDefinition::members().id(), STREAM);
    }

    #[test]
    fn a_standing_only_moves_on_in_whatever_order_records_come() {
        let (mut a, mut b) = (sequencer(1), sequencer(2));
        let admitted = say(&mut a, 3, Standing::Active, "x");
        let parked = say(&mut b, 3, Standing::Parked, "x");
        let again = say(&mut a, 3, Standing::Active, "y");
        a.accept(&parked, 9).unwrap();
        b.accept(&admitted, 9).unwrap();
        b.accept(&again, 9).unwrap();
        assert_eq!(a.members(), b.members());
        let member = a.members().get(BrokerId::new(3)).unwrap();
        assert_eq!(member.standing, Standing::Parked);
        assert_eq!(
            member.region.as_str(),
            "y",
            "the last stamp says where it stands"
        );
        assert!(a.members().has_ended(BrokerId::new(3)));
        // Who has applied the frame that parked it knows, and nobody else.
        assert!(!member.is_known_ended(&sequencer(1).vector()));
        let origin = b.origin();
        let applied = VersionVector::from_iter([(origin, Sequence::new(1))]);
        assert!(member.is_known_ended(&applied));
    }

    #[test]
    fn members_outlive_a_checkpoint() {
        let mut a = sequencer(1);
        say(&mut a, 1, Standing::Active, "x");
        say(&mut a, 4, Standing::Removed, "y");
        let restored = Sequencer::restore(&a.checkpoint()).unwrap();
        assert_eq!(restored, a);
        assert!(restored.members().is_active(BrokerId::new(1)));
    }
}
