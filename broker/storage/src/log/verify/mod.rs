//! Looking at everything: every checksum, every chain, and whether what is said twice is the same.
//!
//! Changes nothing. Goes on after damage as far as the indexes lead.

mod finding;

use std::io;
use std::path::{Path, PathBuf};

use anabranch_core::frame::{Chain, Commit};
use anabranch_core::id::{Offset, Origin, Position, Sequence};
use anabranch_core::sequencer::Sequencer;
use anabranch_core::vector::VersionVector;
use hashbrown::HashMap;

use super::entry::Entry;
use super::gap::StoredGap;
use super::index::{Key, SegmentIndex, Summary};
use super::mark;
use super::recover::Progress;
use super::scan::{Found, Scanner, look_behind};
use super::segment::{
    FIRST_ENTRY_AT, Footer, SegmentHeader, SegmentId, first_of, path_of, read_block,
};
use super::shared::read_summary;
use super::trims::Trims;
use crate::data_dir::Identity;
use crate::disk::{Disk, DiskFile};

pub use finding::{Event, Finding, Verified, VerifyError};

/// Verifies the log in `dir`, the data directory, which nobody may have open for writing.
///
/// # Errors
/// When the operating system refuses; damage is no error, but a [`Finding`].
pub fn verify(
    disk: &dyn Disk,
    dir: &Path,
    identity: Identity,
    each: &mut dyn FnMut(Event),
) -> Result<Verified, VerifyError> {
    let log = dir.join("log");
    let io_at = |path: &Path| {
        let path = path.to_owned();
        move |source| VerifyError { path, source }
    };
    let names = disk.list(&log).map_err(io_at(&log))?;
    let firsts: Vec<_> = names.iter().filter_map(|name| first_of(name)).collect();
    let mut total = 0;
    for &first in &firsts {
        let path = path_of(&log, first);
        let file = disk.open(&path).map_err(io_at(&path))?;
        total += file.length().map_err(io_at(&path))?;
    }
    let mut verifier = Verifier {
        disk,
        identity,
        each,
        total,
        result: Verified::default(),
        state: Known::default(),
        path: log.clone(),
        closed: true,
        unsealed: Vec::new(),
        held_to: Position::default(),
    };
    for (number, &first) in firsts.iter().enumerate() {
        if first < verifier.held_to {
            // A crash came between putting it together with the one before and removing it.
            continue;
        }
        let path = path_of(&log, first);
        let is_last = number + 1 == firsts.len();
        let done = verifier.segment(&path, first, is_last);
        done.map_err(io_at(&path))?;
    }
    verifier
        .trims(&log, firsts.first().copied())
        .map_err(io_at(&log))?;
    verifier.mark(dir).map_err(io_at(dir))?;
    Ok(verifier.finish())
}

/// What has been read so far, for comparison. What is not in it is not known, since it was dropped
/// or is damaged.
#[derive(Default)]
struct Known {
    started: bool,
    position: Position,
    heads: HashMap<Origin, (Sequence, Option<Chain>)>,
    offsets: HashMap<Key, Offset>,
    /// Whether everything from the log's first position on has been seen.
    from_start: bool,
}

struct Verifier<'a> {
    disk: &'a dyn Disk,
    identity: Identity,
    each: &'a mut dyn FnMut(Event),
    total: u64,
    result: Verified,
    state: Known,
    /// The file that is being read.
    path: PathBuf,
    /// Whether the segment read last has a seal, or nothing to be sealed.
    closed: bool,
    /// Segments before the last that have no seal: where they end, and their first position. A
    /// crash leaves such, at the end of the log, since sealing is in order and behind the writer.
    unsealed: Vec<(PathBuf, u64, Position)>,
    /// The position after the sealed segment read last.
    held_to: Position,
}

fn follows(sequence: Sequence, origin: Origin, held: Sequence) -> String {
    format!("frame {sequence} of {origin} follows its frame {held}")
}

/// A segment that is being verified.
struct Subject<'a> {
    file: &'a dyn DiskFile,
    id: SegmentId,
    first: Position,
    length: u64,
    sealed: Option<(Footer, Option<Summary>, Option<SegmentIndex>)>,
}

impl Verifier<'_> {
    fn found(&mut self, offset: u64, position: Position, what: impl ToString) {
        self.result.findings += 1;
        (self.each)(Event::Finding(Finding {
            path: self.path.clone(),
            offset,
            position,
            what: what.to_string(),
        }));
    }

    fn segment(&mut self, path: &Path, first: Position, is_last: bool) -> io::Result<()> {
        self.path = path.to_owned();
        let file = self.disk.open(path)?;
        let length = file.length()?;
        self.result.segments += 1;
        self.begin(first);
        let header = match SegmentHeader::read(&*file)? {
            Ok(header) => header,
            Err(fault) => {
                self.found(0, first, format!("the segment's header: {fault}"));
                self.state = Known::default();
                return Ok(());
            }
        };
        if header.first != first || header.identity != self.identity {
            self.found(
                0,
                first,
                "the segment's header names another position or broker",
            );
        }
        let mut subject = Subject {
            file: &*file,
            id: header.id,
            first,
            length,
            sealed: None,
        };
        subject.sealed = self.seal(&subject)?;
        if let Some((footer, ..)) = &subject.sealed {
            self.held_to = footer.next;
            self.sealed_too_early();
        } else if !is_last {
            if Footer::remains(&*file, length, header.id)? {
                self.found(length, first, "the segment's footer is damaged");
            } else {
                self.unsealed.push((path.to_owned(), length, first));
            }
        }
        let index = self.entries(&subject)?;
        self.closed = subject.sealed.is_some() || self.state.position == first;
        if let Some(index) = index {
            self.compare(&subject, &index)?;
        }
        self.result.bytes += length;
        let done = self.result.bytes;
        let total = self.total;
        (self.each)(Event::Progress(Progress { done, total }));
        Ok(())
    }

    /// Something is sealed that comes after what is not.
    fn sealed_too_early(&mut self) {
        let here = self.path.clone();
        for (path, end, first) in std::mem::take(&mut self.unsealed) {
            self.path = path;
            self.found(end, first, "the segment has lost its footer");
        }
        self.path = here;
    }

    /// Compares the beginning of a segment with the end of the one before.
    fn begin(&mut self, first: Position) {
        if self.state.started && self.state.position != first {
            let what = format!("the segment follows position {}", self.state.position);
            self.found(0, first, what);
            self.state = Known::default();
        }
        if !self.state.started {
            self.state.from_start = first == Position::default();
            self.state.started = true;
            self.state.position = first;
        }
    }

    /// Reads what seals the segment, as far as it is whole.
    #[expect(clippy::type_complexity, reason = "named by the field that it fills")]
    fn seal(
        &mut self,
        subject: &Subject<'_>,
    ) -> io::Result<Option<(Footer, Option<Summary>, Option<SegmentIndex>)>> {
        let footer = Footer::read(subject.file, subject.length)?;
        let Some(footer) = footer.ok().filter(|footer| footer.id == subject.id) else {
            return Ok(None);
        };
        let summary = read_summary(subject.file, &footer)?;
        if summary.is_none() {
            self.found(footer.summary_at(), subject.first, "the summary is damaged");
        }
        let block = read_block(subject.file, footer.index_at(), footer.index)?;
        let index = summary.as_ref().zip(block).and_then(|(summary, block)| {
            SegmentIndex::decode(&block, summary, FIRST_ENTRY_AT).ok()
        });
        if index.is_none() {
            self.found(footer.index_at(), subject.first, "the index is damaged");
        }
        Ok(Some((footer, summary, index)))
    }

    /// Reads all entries. Returns the index that they make if all of them are whole.
    fn entries(&mut self, subject: &Subject<'_>) -> io::Result<Option<SegmentIndex>> {
        let known = subject.sealed.as_ref();
        let end = known.map_or(subject.length, |(footer, ..)| footer.entries_end);
        let base = self.base(subject);
        let mut index = SegmentIndex::new(subject.first, base, FIRST_ENTRY_AT);
        let mut whole = true;
        let mut scanner = Scanner::new(subject.file, subject.id, FIRST_ENTRY_AT, end);
        while !scanner.is_at_end() {
            let (offset, position) = (scanner.at(), self.state.position);
            match scanner.next(position)? {
                Ok(found) => {
                    match &found {
                        Found::Entry(entry) => self.entry(offset, entry),
                        Found::Gap(stored) => self.gap(offset, stored),
                    }
                    if whole {
                        found.push_to(&mut index);
                    }
                    self.state.position = found.next_position();
                }
                // If something is missing, the next segment does not begin where this one ends.
                Err(_) if known.is_none() => {
                    self.tail(subject, offset)?;
                    break;
                }
                Err(fault) => {
                    self.found(offset, position, fault);
                    whole = false;
                    if !self.skip(subject, &mut scanner) {
                        break;
                    }
                }
            }
        }
        if let Some((footer, ..)) = known
            && self.state.position != footer.next
        {
            self.found(
                end,
                self.state.position,
                "the segment has fewer entries than its footer says",
            );
            self.state = Known::default();
        }
        Ok(whole.then_some(index))
    }

    fn base(&self, subject: &Subject<'_>) -> VersionVector {
        if self.state.from_start {
            return self.vector();
        }
        match &subject.sealed {
            Some((_, Some(summary), _)) => summary.base.clone(),
            _ => self.vector(),
        }
    }

    fn vector(&self) -> VersionVector {
        let heads = self.state.heads.iter();
        heads
            .map(|(&origin, &(sequence, _))| (origin, sequence))
            .collect()
    }

    /// Goes on after a damaged entry, if the index knows where.
    fn skip(&mut self, subject: &Subject<'_>, scanner: &mut Scanner<'_>) -> bool {
        // The frame that is lost might be anybody's.
        let index = subject
            .sealed
            .as_ref()
            .and_then(|(_, _, index)| index.as_ref());
        let next = index.map(|index| index.entry_of(self.state.position).saturating_add(1));
        let position = index.zip(next).map(|(index, next)| index.position_of(next));
        self.state = Known {
            started: true,
            position: position.unwrap_or(self.state.position.next()),
            ..Known::default()
        };
        let Some((index, next)) = index.zip(next).filter(|(i, n)| (*n as usize) < i.len()) else {
            return false;
        };
        scanner.go_to(index.place(next as usize).0);
        true
    }

    /// What lies behind the last entry of a segment that is not sealed.
    fn tail(&mut self, subject: &Subject<'_>, offset: u64) -> io::Result<()> {
        let behind = look_behind(subject.file, subject.id, offset, subject.length)?;
        let position = self.state.position;
        if behind.durable > position {
            let what = format!(
                "the entry is damaged; entries behind it say that everything below position {} was durable",
                behind.durable
            );
            self.found(offset, position, what);
        }
        Ok(())
    }

    fn entry(&mut self, offset: u64, entry: &Entry) {
        let commit = &entry.commit;
        self.result.entries += 1;
        for batch in commit.parts.iter().filter_map(|part| part.batch.as_ref()) {
            self.result.records += u64::from(batch.count());
        }
        self.durable(offset, commit.position, entry.header.durable);
        self.chain(offset, commit);
        self.offsets(offset, commit);
    }

    fn durable(&mut self, offset: u64, position: Position, durable: Position) {
        if durable > position {
            let what = "it says that it was durable before it was written";
            self.found(offset, position, what);
        }
    }

    fn chain(&mut self, offset: u64, commit: &Commit) {
        let header = &commit.header;
        let held = self.state.heads.get(&header.origin).copied();
        let before = match held {
            None if self.state.from_start => Some((Sequence::NONE, Some(Chain::START))),
            held => held,
        };
        if let Some((sequence, chain)) = before {
            if header.sequence != sequence.next() {
                let what = follows(header.sequence, header.origin, sequence);
                self.found(offset, commit.position, what);
            } else if let Some(chain) = chain
                && let Err(error) = header.verify_chain(chain, &commit.header_bytes)
            {
                self.found(offset, commit.position, error);
            }
        }
        let head = (header.sequence, Some(header.chain));
        self.state.heads.insert(header.origin, head);
    }

    fn offsets(&mut self, offset: u64, commit: &Commit) {
        for part in &commit.parts {
            let key = (part.header.stream, part.header.partition);
            let place = (offset, commit.position);
            self.offset(place, key, part.base_offset, part.header.records.into());
        }
    }

    fn offset(&mut self, place: (u64, Position), key: Key, base: Offset, records: u64) {
        let next = base.advance(records);
        let expected = match self.state.offsets.insert(key, next) {
            None if self.state.from_start => Some(Offset::default()),
            held => held,
        };
        if expected.is_some_and(|expected| expected != base) {
            let (stream, partition) = key;
            let what = format!("stream {stream} partition {partition} continues at offset {base}");
            self.found(place.0, place.1, what);
        }
    }

    /// Frames that are gone: what they were is not known, but where they began and ended.
    fn gap(&mut self, offset: u64, stored: &StoredGap) {
        self.result.entries += 1;
        let gap = &stored.gap;
        self.durable(offset, gap.position, stored.durable);
        let held = self.state.heads.get(&gap.origin).copied();
        let before = match held {
            None if self.state.from_start => Some(Sequence::NONE),
            held => held.map(|(sequence, _)| sequence),
        };
        if let Some(sequence) = before.filter(|sequence| gap.first != sequence.next()) {
            let what = follows(gap.first, gap.origin, sequence);
            self.found(offset, gap.position, what);
        }
        let head = (gap.last(), Some(gap.chain));
        self.state.heads.insert(gap.origin, head);
        for part in &gap.parts {
            let key = (part.stream, part.partition);
            self.offset((offset, gap.position), key, part.base_offset, part.records);
        }
    }

    /// Compares what seals a segment with its entries.
    fn compare(&mut self, subject: &Subject<'_>, index: &SegmentIndex) -> io::Result<()> {
        let Some((footer, summary, sealed)) = &subject.sealed else {
            return Ok(());
        };
        let found = index.summary();
        if summary.as_ref().is_some_and(|summary| *summary != found) {
            self.found(
                footer.summary_at(),
                subject.first,
                "the summary does not agree with the entries",
            );
        }
        // Encoded they are the same, in whatever order the lists are.
        if sealed
            .as_ref()
            .is_some_and(|sealed| sealed.encode(&found) != index.encode(&found))
        {
            self.found(
                footer.index_at(),
                subject.first,
                "the index does not agree with the entries",
            );
        }
        let at = footer.checkpoint_at();
        let bytes = read_block(subject.file, at, footer.checkpoint)?;
        match bytes.and_then(|bytes| Sequencer::restore(&bytes).ok()) {
            None => self.found(at, footer.next, "the checkpoint is damaged"),
            Some(state) if !self.agrees(&state) => {
                self.found(
                    at,
                    footer.next,
                    "the checkpoint does not agree with the entries",
                );
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn agrees(&self, state: &Sequencer) -> bool {
        let known = &self.state;
        let heads = known.heads.iter().all(|(&origin, &(sequence, chain))| {
            let head = state.head(origin);
            head.sequence == sequence && chain.is_none_or(|chain| chain == head.chain)
        });
        let offsets = known
            .offsets
            .iter()
            .all(|(&(stream, partition), &next)| state.next_offset(stream, partition) == next);
        let complete = !known.from_start || state.vector() == self.vector();
        state.next_position() == known.position && heads && offsets && complete
    }

    fn trims(&mut self, log: &Path, first: Option<Position>) -> io::Result<()> {
        self.path = log.join("trims");
        let position = first.unwrap_or_default();
        match Trims::load(self.disk, log)? {
            Ok((trims, damaged)) => {
                if damaged > 0 {
                    self.found(0, position, "one of two copies is damaged");
                }
                let floor = trims.floor().position();
                if position > floor {
                    let what = format!("segments from position {floor} on are missing");
                    self.found(0, position, what);
                }
            }
            Err(_) => self.found(0, position, "both copies are damaged"),
        }
        Ok(())
    }

    fn mark(&mut self, dir: &Path) -> io::Result<()> {
        self.path = dir.join("mark");
        let position = self.state.position;
        let found = mark::find(self.disk, dir)?;
        if found.mark.as_ref().is_some_and(|mark| mark.clean) {
            self.sealed_too_early();
        }
        if found.damaged > 0 {
            let what = format!("{} of its two slots are damaged", found.damaged);
            self.found(0, position, what);
        }
        match found.mark {
            None if position > Position::default() => {
                self.found(0, position, "there is no readable mark");
            }
            Some(mark) if mark.position > position => {
                let what = format!(
                    "everything below position {} was durable, but the log ends before",
                    mark.position
                );
                self.found(0, position, what);
            }
            Some(mark) if mark.clean && !self.closed => {
                self.found(
                    0,
                    position,
                    "the log was closed, but its last segment's footer is damaged",
                );
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(self) -> Verified {
        let vector = self.vector();
        Verified {
            next: self.state.position,
            vector,
            ..self.result
        }
    }
}
