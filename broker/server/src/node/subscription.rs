//! A subscription: where it stands, and what comes next.
//!
//! | file | holds |
//! |---|---|
//! | `local` | a place in this broker's log |
//! | `total` | a place in the order that is the same in every region |

mod local;
mod total;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use anabranch_core::cursor::{Cursor, Order, Resumed};
use anabranch_core::frame::Commit;
use anabranch_core::id::{PartitionId, Position, Sequence};
use anabranch_core::stream::{MergeMode, StreamDefinition};
use anabranch_core::total::Slice;
use anabranch_core::vector::VersionVector;
use anabranch_protocol::error::Code;
use anabranch_protocol::position::From;
use anabranch_protocol::ws::KeyFilter;
use anabranch_storage::tables::Page;
use tokio::sync::watch;

use self::local::Local;
use self::total::Total;
use super::selection::{Opened, Selected, Selection, each_selected};
use super::tail::{Delivered, StreamTail};
use super::{Error, Running, error};

/// Bytes taken from tail or log at once.
const STEP_BYTES: usize = 1024 * 1024;

/// Tables that are read whole at the same time; more wait for their turn.
pub(super) const SNAPSHOTS: usize = 4;

/// Brokers that a cursor may name though this one has nothing of them. What a cursor has seen of
/// them is kept for as long as its subscription lives.
const UNKNOWN_ORIGINS: usize = 64;

/// What to follow.
#[derive(Clone, Debug)]
pub(crate) struct SubscribeRequest {
    pub(crate) stream: String,
    pub(crate) partitions: Option<BTreeSet<PartitionId>>,
    pub(crate) keys: KeyFilter<'static>,
    pub(crate) from: From,
    pub(crate) order: Order,
}

/// What a subscriber is given.
pub(crate) enum Event {
    /// Frames, in order. What is not selected must be left out.
    Frames(Vec<Given>),
    /// Rows of the table, at one moment.
    Rows(Page),
    /// What was there has been given; from here on it is what comes.
    Live(Cursor),
}

/// A frame that a subscriber is given, or some of its records.
#[derive(Clone)]
pub(crate) enum Given {
    /// In the order of the log.
    Frame(Arc<Delivered>),
    /// In the order of all.
    Slice(Slice<Arc<Opened>>),
}

impl Given {
    /// The frame, opened where records of its midst are wanted.
    pub(crate) fn frame(&self) -> &Opened {
        match self {
            Self::Frame(frame) => &frame.opened,
            Self::Slice(slice) => &slice.item,
        }
    }

    pub(crate) fn commit(&self) -> &Commit {
        &self.frame().commit
    }
}

/// What lies before a subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ahead {
    /// Records or rows that it wants.
    Something,
    /// Nothing yet.
    Nothing,
    /// Nothing as far as was looked; look again.
    Unknown,
}

/// What is followed.
struct Followed {
    running: Arc<Running>,
    definition: Arc<StreamDefinition>,
    selection: Selection,
    tail: Arc<StreamTail>,
    changed: watch::Receiver<Position>,
}

/// A place in a stream.
pub(crate) enum Subscription {
    Local(Box<Local>),
    Total(Box<Total>),
}

impl Subscription {
    pub(crate) fn start(running: &Arc<Running>, request: &SubscribeRequest) -> Result<Self, Error> {
        let definition = running.held_stream(&request.stream)?;
        let selection = Selection::new(&definition, request)?;
        let (tail, changed) = running.tail.follow(definition.id());
        let followed = Followed {
            running: Arc::clone(running),
            definition,
            selection,
            tail,
            changed,
        };
        Ok(match request.order {
            Order::Local => Self::Local(Box::new(Local::start(followed, &request.from)?)),
            Order::Total => Self::Total(Box::new(Total::start(followed, &request.from)?)),
        })
    }

    fn followed(&self) -> &Followed {
        match self {
            Self::Local(local) => &local.followed,
            Self::Total(total) => &total.followed,
        }
    }

    pub(crate) fn definition(&self) -> &Arc<StreamDefinition> {
        &self.followed().definition
    }

    pub(crate) fn selection(&self) -> &Selection {
        &self.followed().selection
    }

    /// The opaque text of a cursor.
    pub(crate) fn encode_cursor(&self, cursor: &Cursor) -> String {
        cursor.encode(self.followed().running.cluster())
    }

    /// The cursor that stands for the current place, when all of what came was given.
    pub(crate) fn cursor(&self) -> Result<Cursor, Error> {
        match self {
            Self::Local(local) => local.cursor(),
            Self::Total(total) => Ok(total.cursor()),
        }
    }

    /// Passes what is about to be given: which records of the frame the client lacks. To be asked
    /// once for all that comes, in order.
    pub(crate) fn pass(&mut self, given: &Given) -> Range<u32> {
        match (self, given) {
            (Self::Local(local), Given::Frame(frame)) => local.pass(frame)..u32::MAX,
            (Self::Total(total), Given::Slice(slice)) => total.pass(slice),
            _ => unreachable!("each order gives its own"),
        }
    }

    /// Where the messages for others do for this one as well, they are kept here.
    pub(crate) fn shared<'g>(&self, given: &'g Given) -> Option<&'g Delivered> {
        match (self, given) {
            (Self::Local(local), Given::Frame(frame)) if local.is_like_others() => Some(frame),
            _ => None,
        }
    }

    /// The text of the cursor behind what was passed last.
    pub(crate) fn cursor_after<'g>(&self, given: &'g Given) -> Cow<'g, str> {
        match (self, given) {
            (Self::Local(local), Given::Frame(frame)) => local.cursor_after(frame),
            (Self::Total(total), Given::Slice(_)) => self.encode_cursor(&total.passed()).into(),
            _ => unreachable!("each order gives its own"),
        }
    }

    /// The text of the cursor inside the frame that was passed last, behind its first records.
    pub(crate) fn cursor_within(&self, given: &Given, records: u32) -> String {
        self.encode_cursor(&match (self, given) {
            (Self::Local(local), Given::Frame(frame)) => local.cursor_within(frame, records),
            (Self::Total(total), Given::Slice(slice)) => total.passed_within(slice, records),
            _ => unreachable!("each order gives its own"),
        })
    }

    /// The text of the cursor before what is not passed.
    pub(crate) fn cursor_before(&self, given: &Given) -> String {
        self.encode_cursor(&match (self, given) {
            (Self::Local(local), Given::Frame(frame)) => local.cursor_before(frame),
            (Self::Total(total), Given::Slice(_)) => total.passed(),
            _ => unreachable!("each order gives its own"),
        })
    }

    /// Waits for what comes next. Cancel-safe.
    ///
    /// # Errors
    /// When the stream was deleted, the place was trimmed away, or the broker stops.
    pub(crate) async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.next_held().await? {
                return Ok(event);
            }
            self.wait().await;
        }
    }

    /// What comes next of what is there already; `None` when all of it was given. Cancel-safe.
    ///
    /// # Errors
    /// As [`Subscription::next`].
    pub(crate) async fn next_held(&mut self) -> Result<Option<Event>, Error> {
        match self {
            Self::Local(local) => local.next_held().await,
            Self::Total(total) => total.next_held().await,
        }
    }

    /// Whether records or rows are there that were not given. Where only some are wanted, goes
    /// on to the first of them, a step at a time. Cancel-safe.
    ///
    /// # Errors
    /// As [`Subscription::next`].
    pub(crate) async fn ahead(&mut self) -> Result<Ahead, Error> {
        match self {
            Self::Local(local) => local.ahead().await,
            Self::Total(total) => total.ahead().await,
        }
    }

    /// Waits until there may be something. Cancel-safe.
    pub(crate) async fn wait(&mut self) {
        match self {
            Self::Local(local) => local.followed.wait().await,
            Self::Total(total) => total.wait().await,
        }
    }
}

impl Followed {
    /// Reads a cursor of this order.
    fn cursor(&self, text: &str, order: Order) -> Result<Cursor, Error> {
        let cursor = self.running.cursor(text)?;
        if cursor.order != order {
            let of = cursor.order.as_str();
            return Err(Error::new(
                Code::BadCursor,
                format!(
                    "the cursor is one of order {of}; go on with order={of}, or begin anew from earliest, latest or a time"
                ),
            ));
        }
        self.check_unknown(&cursor)?;
        Ok(cursor)
    }

    fn check_unknown(&self, cursor: &Cursor) -> Result<(), Error> {
        let held = self.running.vector();
        let seen = cursor.seen.iter().map(|(origin, _)| origin);
        let begun = cursor.begun.keys().copied();
        let first = begun.filter(|&origin| cursor.seen.get(origin) == Sequence::NONE);
        let unknown = seen
            .chain(first)
            .filter(|&origin| held.get(origin) == Sequence::NONE)
            .count();
        if unknown <= UNKNOWN_ORIGINS {
            return Ok(());
        }
        Err(Error::new(
            Code::BadCursor,
            format!(
                "the cursor names {unknown} writers that are unknown here, more than the {UNKNOWN_ORIGINS} that a cursor may; pass on unchanged what a broker sent, or go on from earliest, latest or the table"
            ),
        ))
    }

    /// The oldest place at which records may be left.
    fn earliest(&self) -> Position {
        let reader = &self.running.reader;
        reader
            .trimmed(self.definition.id())
            .max(reader.start_position())
    }

    /// What a cursor would miss is gone. The error names the oldest one that works, except where
    /// deletes are gone: a cursor behind them would pass over rows that are still there.
    fn too_old(&self, cursor: &Cursor) -> Result<Error, Error> {
        let name = &self.definition.name;
        let anew = match cursor.order {
            Order::Local => "from=table",
            Order::Total => "from=earliest",
        };
        if self.definition.merge == MergeMode::Lww {
            return Ok(Error::new(
                Code::CursorTooOld,
                format!(
                    "deletes that the cursor has not seen are gone from stream {name}; begin again with {anew}"
                ),
            ));
        }
        let mut gone = self.running.vector_before(self.earliest())?;
        gone.merge(&self.running.reader.gone(self.definition.id()));
        // What was given elsewhere and is kept here must not be given again.
        let oldest = Cursor {
            order: cursor.order,
            after: cursor.after,
            ..Resumed::at(cursor, &gone).cursor(gone)
        };
        let error = Error::new(
            Code::CursorTooOld,
            format!(
                "the cursor lies before what retention has kept of stream {name}; go on from the oldest cursor, or {anew}"
            ),
        );
        Ok(error.with_oldest(oldest.encode(self.running.cluster())))
    }

    /// Whether something is gone that who has seen just this would miss.
    fn misses(&self, seen: &VersionVector) -> bool {
        self.running.reader.misses(self.definition.id(), seen)
    }

    fn check_stream(&self) -> Result<(), Error> {
        let streams = self.running.tables.streams();
        match streams.get(self.definition.id()) {
            Some(_) => Ok(()),
            None => Err(error::no_such_stream(self.definition.name.as_str())),
        }
    }

    /// Whether some of these records of a frame are wanted.
    fn wants_of(&self, frame: &Opened, records: &Range<u32>) -> Result<bool, Error> {
        let mut wanted = false;
        let mut each = |_: &Selected<'_>| wanted = true;
        each_selected(frame, &self.definition, &self.selection, records, &mut each)?;
        Ok(wanted)
    }

    /// Waits until frames of the stream have come, or the broker stops. Cancel-safe.
    async fn wait(&mut self) {
        let mut phase = self.running.phase.subscribe();
        tokio::select! {
            // The sender lives in `self.tail`, so this cannot fail.
            _ = self.changed.changed() => {}
            _ = phase.wait_for(|phase| !phase.is_ready()) => {}
        }
    }
}
