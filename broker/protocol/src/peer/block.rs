//! Frames as they go over a link: what stands in front of batches, and the batches.
//!
//! Whoever receives a frame holds the one before it, and most of what a header says follows from that
//! one and from the batches. So a link says a header as a difference, and the receiver makes its
//! bytes anew, chain and checksum included.
//!
//! ```text
//! heads   for each item its kind, a varint:
//!   0       a frame as it is: header length varint, header; for each of its parts the length of
//!           the batch, a varint, 0 where the part is not there
//!   1       gaps that belong together: count, and for each a length and the gap, all varints
//!   2 + n   the next frame of the origin with the number n:
//!             flags u8  1 its parts are those of its frame before
//!                       2 its context is a difference to another origin's
//!                       4 it names origins that have no number yet
//!             stamp     milliseconds since the last frame's, zigzag varint; the rest, varint
//!             origins   if new: count varint; broker u64, epoch u32 each. They get the next numbers
//!             another   if so: its number, varint
//!             parts     if not as before: count varint; for each a varint, 0 and stream u64,
//!                       partition u16 of a new place, or its number and one
//!             edits     see `vectors`: what the origin had applied, compared with what it or the
//!                       other one had
//! bodies  the batches of all of them, one behind the other
//! ```
//!
//! Both sides number origins and places in the order in which items name them, those of headers that
//! go as they are included: its origin, its context, its parts. The batches are the bytes of the log.

mod model;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use anabranch_core::batch::Batch;
use anabranch_core::frame::{Chain, Commit, FrameHeader, PartHeader};
use anabranch_core::gap::Gap;
use anabranch_core::id::{PartitionId, Position, Sequence, StreamId};
use anabranch_core::limits::{MAX_FRAME_BYTES, MAX_FRAME_PARTS};
use anabranch_core::sequencer::Foreign;
use anabranch_core::wire::{Reader, put_varint};
use bytes::{BufMut, Bytes, BytesMut};

use self::model::{MOST_PLACES, Model, place_of};
use super::BadMessage;
use super::vectors::{Dense, at, differing, put_edits, put_stamp, read_edits, read_stamp};

const WHOLE: u64 = 0;
const GAPS: u64 = 1;
const NEXT_OF: u64 = 2;

const SAME_PARTS: u8 = 1;
const OTHERS_CONTEXT: u8 = 2;
const NEW_ORIGINS: u8 = 4;

/// Origins whose contexts a header is compared with, those of the frames before it. Who is linked
/// with the same hub has applied much the same.
const COMPARED: usize = 24;

/// A context that differs in fewer entries is not compared with others.
const NEAR: usize = 2;

/// Bytes of an item beside those of the log, as far as credit goes.
const ITEM_BYTES: usize = 5;

/// The same of a part or a gap.
const PART_BYTES: usize = 4;

/// One item of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A frame.
    Frame(Foreign),
    /// What is left of frames that were dropped. They count together or not at all.
    Gaps(Vec<Gap>),
}

/// Bytes of credit that a frame takes: about those that it has in the log. On its way it may have
/// fewer.
#[must_use]
pub fn frame_bytes(commit: &Commit) -> usize {
    ITEM_BYTES + commit.size() + PART_BYTES * commit.parts.len()
}

/// Bytes of credit that an item has taken.
#[must_use]
pub fn item_bytes(item: &Item) -> usize {
    ITEM_BYTES
        + match item {
            Item::Frame(frame) => frame.size() + PART_BYTES * frame.batches().len(),
            Item::Gaps(gaps) => gaps.iter().map(|gap| gap_bytes(&gap_as_sent(gap))).sum(),
        }
}

fn gap_as_sent(gap: &Gap) -> Vec<u8> {
    let mut bytes = Vec::new();
    gap.encode(&mut bytes);
    bytes
}

fn gap_bytes(sent: &[u8]) -> usize {
    sent.len() + PART_BYTES
}

/// A block on its way.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Block {
    /// What stands in front of the batches.
    pub heads: Bytes,
    /// The batches.
    pub bodies: Bytes,
    /// Bytes of credit that it takes.
    pub credit: u32,
    /// The sum of the first eight bytes of the chains of all frames that go as differences: they
    /// were made anew as they were.
    pub proof: u64,
}

fn proof_of(chain: &Chain) -> u64 {
    let first = chain.as_bytes().first_chunk();
    u64::from_le_bytes(*first.expect("a chain is longer"))
}

/// Writes what goes over a link in one direction. Every block that it makes has to be sent, in order.
#[derive(Debug, Default)]
pub struct BlockWriter {
    model: Model,
    /// Whose frames went last, the last one at the end.
    recent: VecDeque<usize>,
    heads: BytesMut,
    bodies: BytesMut,
    credit: usize,
    proof: u64,
}

/// A header that can go as a difference.
struct Difference {
    number: usize,
    /// Whose context is nearest.
    from: usize,
    same_parts: bool,
    applied: Dense,
}

impl BlockWriter {
    /// Appends a frame.
    pub fn put_frame(&mut self, commit: &Commit) {
        self.credit += frame_bytes(commit);
        let batches = commit.parts.iter().map(|part| part.batch.as_ref());
        self.bodies.reserve(commit.size());
        for batch in batches.flatten() {
            self.bodies.put_slice(batch.bytes());
        }
        if self.put_difference(commit).is_none() {
            self.put_whole(commit);
        }
        self.model.note(&commit.header);
        if let Some(number) = self.model.numbers.get(commit.header.origin) {
            self.recent.retain(|&recent| recent != number);
            self.recent.push_back(number);
            if self.recent.len() > COMPARED {
                self.recent.pop_front();
            }
        }
    }

    fn put_whole(&mut self, commit: &Commit) {
        put_varint(&mut self.heads, WHOLE);
        put_varint(&mut self.heads, commit.header_bytes.len() as u64);
        self.heads.put_slice(&commit.header_bytes);
        for part in &commit.parts {
            let length = part.batch.as_ref().map_or(0, Batch::len);
            put_varint(&mut self.heads, length as u64);
        }
    }

    /// Appends a header as a difference, if it can go so.
    fn put_difference(&mut self, commit: &Commit) -> Option<()> {
        let header = &commit.header;
        let is_whole = commit.parts.iter().all(|part| {
            let batch = part.batch.as_ref();
            batch.is_some_and(|batch| part_of(place_of(&part.header), batch) == part.header)
        });
        if !is_whole || header.encode() != commit.header_bytes {
            return None;
        }
        let most = self.model.most_origins();
        let new = self.model.numbers.new_of(&header.context, most)?;
        let difference = self.difference(header)?;
        let Difference { number, from, .. } = difference;
        let mut flags = 0;
        flags |= if difference.same_parts { SAME_PARTS } else { 0 };
        flags |= if from == number { 0 } else { OTHERS_CONTEXT };
        flags |= if new.is_empty() { 0 } else { NEW_ORIGINS };
        let Self { model, heads, .. } = self;
        put_varint(heads, NEXT_OF + number as u64);
        heads.put_u8(flags);
        put_stamp(header.timestamp, model.millis, heads);
        if !new.is_empty() {
            model.numbers.put_new(&new, heads);
        }
        if from != number {
            put_varint(heads, from as u64);
        }
        if !difference.same_parts {
            put_places(model, &header.parts, heads);
        }
        let mut applied = difference.applied;
        applied.resize(model.numbers.len(), 0);
        for (origin, sequence) in header.context.iter() {
            applied[model.numbers.get(origin)?] = sequence.get();
        }
        let mut before = model.last(from)?.applied.clone();
        before.resize(applied.len(), 0);
        // The receiver knows the frame's own number.
        before[number] = applied[number];
        put_edits(&before, &applied, heads);
        self.proof = self.proof.wrapping_add(proof_of(&header.chain));
        Some(())
    }

    /// `None` when the receiver could not make the header from what it knows.
    fn difference(&self, header: &FrameHeader) -> Option<Difference> {
        let model = &self.model;
        let number = model.numbers.get(header.origin)?;
        let last = model.last(number)?;
        let mut applied = last.applied.clone();
        for (origin, sequence) in header.context.iter() {
            let Some(of) = model.numbers.get(origin) else {
                continue;
            };
            // What did not rise is not told from what the context leaves out.
            if of == number || sequence.get() <= at(&last.applied, of) {
                return None;
            }
            applied.resize(applied.len().max(of + 1), 0);
            applied[of] = sequence.get();
        }
        let sequence = header.sequence.get();
        if last.sequence.get() + 1 != sequence || header.parts.len() > MOST_PLACES {
            return None;
        }
        applied[number] = sequence;
        let places = header.parts.iter().map(place_of);
        let places = places.map(|place| model.place_numbers.get(&place).copied());
        let same_parts = last.places.is_some() && places.collect::<Option<Vec<_>>>() == last.places;
        let have_room = model.places.len() + header.parts.len() <= MOST_PLACES;
        (same_parts || have_room).then(|| Difference {
            number,
            from: self.nearest(number, &applied),
            same_parts,
            applied,
        })
    }

    /// The origin whose context differs in the fewest entries from one of this origin.
    fn nearest(&self, number: usize, applied: &[u64]) -> usize {
        let far = |of: usize| {
            let last = self.model.last(of);
            last.map_or(usize::MAX, |last| differing(&last.applied, applied))
        };
        let (mut nearest, mut least) = (number, far(number));
        for &of in self.recent.iter().rev() {
            // The frame's own number is not said, so one entry always differs.
            if least <= NEAR {
                break;
            }
            let differs = far(of);
            if differs < least {
                (nearest, least) = (of, differs);
            }
        }
        nearest
    }

    /// Appends gaps that belong together.
    pub fn put_gaps(&mut self, gaps: &[Gap]) {
        put_varint(&mut self.heads, GAPS);
        put_varint(&mut self.heads, gaps.len() as u64);
        for gap in gaps {
            let bytes = gap_as_sent(gap);
            put_varint(&mut self.heads, bytes.len() as u64);
            self.heads.put_slice(&bytes);
            self.credit += gap_bytes(&bytes);
        }
        self.credit += ITEM_BYTES;
    }

    /// What was appended since the last block; `None` when nothing was.
    ///
    /// # Panics
    /// When it is more than 4 GiB.
    pub fn take(&mut self) -> Option<Block> {
        let credit = std::mem::take(&mut self.credit);
        (credit > 0).then(|| Block {
            heads: self.heads.split().freeze(),
            bodies: self.bodies.split().freeze(),
            credit: u32::try_from(credit).expect("blocks are bounded"),
            proof: std::mem::take(&mut self.proof),
        })
    }
}

fn put_places(model: &mut Model, parts: &[PartHeader], heads: &mut BytesMut) {
    put_varint(heads, parts.len() as u64);
    for part in parts {
        let place = place_of(part);
        if let Some(number) = model.place_numbers.get(&place) {
            put_varint(heads, u64::from(*number) + 1);
            continue;
        }
        model.place(place);
        put_varint(heads, 0);
        heads.put_u64_le(place.0.get());
        heads.put_u16_le(place.1.get());
    }
}

/// The part table's entry of a batch that was not changed since.
fn part_of((stream, partition): (StreamId, PartitionId), batch: &Batch) -> PartHeader {
    PartHeader {
        stream,
        partition,
        records: batch.offset_span(),
        length: u32::try_from(batch.len()).expect("batches are bounded"),
        crc: batch.crc(),
    }
}

/// Reads what came over a link in one direction, from its first block on.
#[derive(Debug, Default)]
pub struct BlockReader {
    model: Model,
}

impl BlockReader {
    /// Reads the items of the next block. Every checksum and length is checked; chains of frames that
    /// came as they are, and contexts, are the sequencer's to check.
    ///
    /// # Errors
    /// When the bytes are something else, take more credit than the block says, or a header that was
    /// made anew is not the one that was sent.
    pub fn read(&mut self, block: &Block) -> Result<Vec<Item>, BadMessage> {
        let mut heads = Reader::new(&block.heads);
        let mut bodies = block.bodies.clone();
        let mut credit = block.credit as usize;
        let (mut items, mut proof) = (Vec::new(), 0u64);
        while !heads.is_empty() {
            let item = match heads.varint()? {
                WHOLE => Item::Frame(self.read_whole(&mut heads, &mut bodies)?),
                GAPS => Item::Gaps(read_gaps(&mut heads)?),
                next => {
                    let frame = self.read_difference(next - NEXT_OF, &mut heads, &mut bodies)?;
                    proof = proof.wrapping_add(proof_of(&frame.header().chain));
                    Item::Frame(frame)
                }
            };
            credit = credit
                .checked_sub(item_bytes(&item))
                .ok_or(BadMessage::Malformed)?;
            items.push(item);
        }
        if proof != block.proof {
            return Err(BadMessage::Proof);
        }
        match bodies.is_empty() {
            true => Ok(items),
            false => Err(BadMessage::Malformed),
        }
    }

    fn read_whole(
        &mut self,
        heads: &mut Reader<'_>,
        bodies: &mut Bytes,
    ) -> Result<Foreign, BadMessage> {
        let bytes = Bytes::copy_from_slice(read_bytes(heads)?);
        let header = FrameHeader::decode(&bytes).map_err(|_| BadMessage::Malformed)?;
        let mut batches = Vec::with_capacity(header.parts.len());
        for _ in &header.parts {
            batches.push(match heads.varint()? {
                0 => None,
                length => Some(take_batch(bodies, Some(length))?),
            });
        }
        self.model.note(&header);
        Foreign::new(header, bytes, batches).map_err(|_| BadMessage::Malformed)
    }

    fn read_difference(
        &mut self,
        number: u64,
        heads: &mut Reader<'_>,
        bodies: &mut Bytes,
    ) -> Result<Foreign, BadMessage> {
        let model = &mut self.model;
        let number = usize::try_from(number).map_err(|_| BadMessage::Malformed)?;
        let origin = model.numbers.origin(number).ok_or(BadMessage::Malformed)?;
        let flags = heads.u8()?;
        let timestamp = read_stamp(heads, model.millis)?;
        if flags & NEW_ORIGINS != 0 {
            let most = model.most_origins();
            model.numbers.read_new(heads, most)?;
        }
        let from = match flags & OTHERS_CONTEXT {
            0 => number,
            _ => usize::try_from(heads.varint()?).map_err(|_| BadMessage::Malformed)?,
        };
        let places = match flags & SAME_PARTS {
            0 => read_places(model, heads)?,
            _ => {
                let last = model.last(number).and_then(|last| last.places.clone());
                last.ok_or(BadMessage::Malformed)?
            }
        };
        let last = model.last(number).ok_or(BadMessage::Malformed)?;
        let sequence = last.sequence.get() + 1;
        // The last sequence there is has none after it, and no broker gets there.
        if sequence == u64::MAX {
            return Err(BadMessage::Malformed);
        }
        let mut before = model
            .last(from)
            .ok_or(BadMessage::Malformed)?
            .applied
            .clone();
        before.resize(model.numbers.len(), 0);
        before[number] = sequence;
        let applied = read_edits(heads, &before, model.numbers.len())?;
        let context = model.numbers.sparse(&applied, |of, sequence| {
            of != number && sequence > at(&last.applied, of)
        });
        let mut header = FrameHeader {
            origin,
            sequence: Sequence::new(sequence),
            timestamp,
            context,
            chain: Chain::START,
            parts: Vec::with_capacity(places.len()),
        };
        let mut batches = Vec::with_capacity(places.len());
        for place in places {
            let batch = take_batch(bodies, None)?;
            let place = model.places[usize::from(place)];
            header.parts.push(part_of(place, &batch));
            batches.push(Some(batch));
        }
        if header.body_length() > MAX_FRAME_BYTES {
            return Err(BadMessage::Malformed);
        }
        let bytes = header.seal(last.chain);
        self.model.note(&header);
        Foreign::new(header, bytes, batches).map_err(|_| BadMessage::Malformed)
    }
}

fn read_places(model: &mut Model, heads: &mut Reader<'_>) -> Result<Vec<u16>, BadMessage> {
    let count = heads.varint()?;
    if !(1..=MAX_FRAME_PARTS as u64).contains(&count) {
        return Err(BadMessage::Malformed);
    }
    let mut places = Vec::new();
    for _ in 0..count {
        places.push(match heads.varint()? {
            0 => {
                let place = (StreamId::new(heads.u64()?), PartitionId::new(heads.u16()?));
                let next = model.places.len();
                match model.place(place) {
                    Some(number) if usize::from(number) == next => number,
                    _ => return Err(BadMessage::Malformed),
                }
            }
            number => {
                let number = u16::try_from(number - 1).map_err(|_| BadMessage::Malformed)?;
                match usize::from(number) < model.places.len() {
                    true => number,
                    false => return Err(BadMessage::Malformed),
                }
            }
        });
    }
    Ok(places)
}

fn read_gaps(heads: &mut Reader<'_>) -> Result<Vec<Gap>, BadMessage> {
    let mut gaps = Vec::new();
    for _ in 0..heads.varint()? {
        let bytes = read_bytes(heads)?;
        let gap = Gap::decode(Position::new(0), bytes).map_err(|_| BadMessage::Malformed)?;
        gaps.push(gap);
    }
    Ok(gaps)
}

fn read_bytes<'a>(heads: &mut Reader<'a>) -> Result<&'a [u8], BadMessage> {
    let length = usize::try_from(heads.varint()?).map_err(|_| BadMessage::Malformed)?;
    Ok(heads.take(length)?)
}

/// The next batch, of this length or of the one that it says itself.
fn take_batch(bodies: &mut Bytes, length: Option<u64>) -> Result<Batch, BadMessage> {
    let said = Batch::peek_length(bodies).ok_or(BadMessage::Malformed)?;
    if length.is_some_and(|length| length != said as u64) || said > bodies.len() {
        return Err(BadMessage::Malformed);
    }
    Batch::reopen(bodies.split_to(said)).map_err(|_| BadMessage::Malformed)
}
