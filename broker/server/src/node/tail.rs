//! The newest frames of every stream that somebody follows, kept in memory and shared.
//!
//! A subscriber that keeps up never touches the disk, and what one of them encodes the others
//! reuse. One budget of bytes covers all streams; the oldest frame anywhere goes first.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use anabranch_core::cursor::Cursor;
use anabranch_core::frame::Commit;
use anabranch_core::id::{ClusterId, Origin, Position, Sequence, StreamId};
use anabranch_core::vector::VersionVector;
use anabranch_protocol::ws::SubscriptionId;
use anabranch_storage::durable::Durable;
use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::selection::Opened;

/// A durable frame on its way to subscribers.
pub(crate) struct Delivered {
    pub(crate) opened: Opened,
    /// What was in the log before and with this frame, but for its own origin.
    others: Arc<VersionVector>,
    cluster: ClusterId,
    cursor: OnceLock<String>,
    /// Messages made of this frame, by what makes them differ.
    shared: Mutex<Vec<(MessageKey, Bytes)>>,
}

/// What two subscribers must have in common to be sent the very same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MessageKey {
    pub(crate) stream: StreamId,
    pub(crate) subscription: SubscriptionId,
    /// Encoding and format, as the surface numbers them.
    pub(crate) shape: u8,
}

/// Messages of one frame are kept while they are together at most so many times as large as the
/// frame; beyond, subscribers encode for themselves. Inflated records may be much larger.
const SHARED_PER_FRAME: usize = 2;

/// Messages of tiny frames are mostly names and cursor.
const SHARED_AT_LEAST: usize = 4 * 1024;

impl Delivered {
    pub(crate) fn new(
        commit: Durable<Arc<Commit>>,
        others: Arc<VersionVector>,
        cluster: ClusterId,
    ) -> Self {
        Self {
            opened: Opened::new(commit),
            others,
            cluster,
            cursor: OnceLock::new(),
            shared: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn commit(&self) -> &Commit {
        &self.opened.commit
    }

    pub(crate) fn position(&self) -> Position {
        self.commit().position
    }

    fn most_shared(&self) -> usize {
        SHARED_AT_LEAST.max(SHARED_PER_FRAME * self.commit().size())
    }

    /// Everything in the log up to and including this frame.
    pub(crate) fn seen(&self) -> VersionVector {
        let mut seen = VersionVector::clone(&self.others);
        seen.advance(self.commit().header.origin, self.commit().header.sequence);
        seen
    }

    /// Everything in the log before this frame.
    pub(super) fn seen_before(&self) -> VersionVector {
        VersionVector::clone(&self.others)
    }

    /// The cursor after this frame, encoded once for all whom nothing beyond this log was given.
    pub(super) fn cursor(&self) -> &str {
        let encode = || Cursor::after(self.seen()).encode(self.cluster);
        self.cursor.get_or_init(encode)
    }

    /// The message of this shape, made by the first who asks; `None` when there is nothing to say.
    pub(crate) fn message(
        &self,
        key: MessageKey,
        encode: impl FnOnce() -> Option<Bytes>,
    ) -> Option<Bytes> {
        let mut shared = self.shared.lock();
        if let Some((_, message)) = shared.iter().find(|(held, _)| *held == key) {
            return Some(message.clone());
        }
        let message = encode()?;
        let held: usize = shared.iter().map(|(_, held)| held.len()).sum();
        if held + message.len() <= self.most_shared() {
            shared.push((key, message.clone()));
        }
        Some(message)
    }
}

/// The newest frames of one stream.
pub(crate) struct StreamTail {
    ring: RwLock<Ring>,
    /// First position that is not durable yet, as of the stream's latest frame.
    changed: watch::Sender<Position>,
}

struct Ring {
    /// Every frame of the stream from here on is in `frames`.
    floor: Position,
    frames: VecDeque<Arc<Delivered>>,
}

/// What a tail holds from a position on.
pub(crate) enum Look {
    /// These, and nothing of the stream between them; go on at the position.
    Frames(Vec<Arc<Delivered>>, Position),
    /// Nothing yet.
    Empty,
    /// The position is older than what is kept: read the log.
    TooOld,
}

impl StreamTail {
    /// The frames from `from` on, up to about `max_bytes`.
    pub(crate) fn look(&self, from: Position, max_bytes: usize) -> Look {
        let ring = self.ring.read();
        if from < ring.floor {
            return Look::TooOld;
        }
        let first = ring.frames.partition_point(|f| f.position() < from);
        let mut bytes = 0;
        let frames: Vec<_> = ring
            .frames
            .range(first..)
            .take_while(|frame| {
                let before = bytes;
                bytes += frame.commit().size();
                before < max_bytes
            })
            .cloned()
            .collect();
        match frames.last() {
            Some(last) => {
                let next = last.position().next();
                Look::Frames(frames, next)
            }
            None => Look::Empty,
        }
    }
}

/// The tails of all streams that are followed.
pub(crate) struct Tail {
    cluster: ClusterId,
    streams: RwLock<HashMap<StreamId, Arc<StreamTail>>>,
    order: Mutex<Order>,
    budget: usize,
}

/// Frames in the order they came, to know which is the oldest; and what the log holds.
struct Order {
    frames: VecDeque<(Arc<StreamTail>, usize)>,
    bytes: usize,
    others: Arc<VersionVector>,
    next: Position,
}

impl Tail {
    /// A tail after `next` entries whose frames are `seen`, keeping up to `budget` bytes.
    pub(crate) fn new(
        cluster: ClusterId,
        budget: usize,
        seen: VersionVector,
        next: Position,
    ) -> Self {
        let order = Order {
            frames: VecDeque::new(),
            bytes: 0,
            others: Arc::new(seen),
            next,
        };
        Self {
            cluster,
            streams: RwLock::new(HashMap::new()),
            order: Mutex::new(order),
            budget,
        }
    }

    /// The tail of a stream; it keeps frames from now on, for as long as the receiver lives.
    pub(crate) fn follow(&self, stream: StreamId) -> (Arc<StreamTail>, watch::Receiver<Position>) {
        let streams = self.streams.read();
        if let Some(tail) = streams.get(&stream) {
            // Under the lock, so that no sweep comes between.
            return (Arc::clone(tail), tail.changed.subscribe());
        }
        drop(streams);
        // The lock on the order keeps frames from slipping in between floor and ring.
        let order = self.order.lock();
        let mut streams = self.streams.write();
        let fresh = || {
            Arc::new(StreamTail {
                ring: RwLock::new(Ring {
                    floor: order.next,
                    frames: VecDeque::new(),
                }),
                changed: watch::Sender::new(order.next),
            })
        };
        let tail = streams.entry(stream).or_insert_with(fresh);
        (Arc::clone(tail), tail.changed.subscribe())
    }

    /// Every frame before this has been pushed.
    pub(crate) fn next(&self) -> Position {
        self.order.lock().next
    }

    /// Everything that is durable, as a vector.
    pub(crate) fn seen(&self) -> VersionVector {
        VersionVector::clone(&self.order.lock().others)
    }

    /// Both at one moment.
    pub(super) fn end(&self) -> (Position, VersionVector) {
        let order = self.order.lock();
        (order.next, VersionVector::clone(&order.others))
    }

    /// Adds frames that became durable and wakes who follows their streams.
    pub(crate) fn push(&self, run: &[Durable<Arc<Commit>>]) {
        let mut order = self.order.lock();
        let mut touched: Vec<Arc<StreamTail>> = Vec::new();
        for commit in run {
            order.next = commit.position.next();
            self.push_one(commit, &mut order, &mut touched);
        }
        let next = order.next;
        order.evict(self.budget);
        drop(order);
        for tail in touched {
            tail.changed.send_replace(next);
        }
    }

    /// Notes frames of which nothing is left, and that everything before a position was pushed.
    pub(crate) fn pass(&self, last: &[(Origin, Sequence)], next: Position) {
        if last.is_empty() {
            return;
        }
        let mut order = self.order.lock();
        let others = Arc::make_mut(&mut order.others);
        for &(origin, sequence) in last {
            others.advance(origin, sequence);
        }
        order.next = next;
    }

    fn push_one(
        &self,
        commit: &Durable<Arc<Commit>>,
        order: &mut Order,
        touched: &mut Vec<Arc<StreamTail>>,
    ) {
        let delivered = Arc::new(Delivered::new(
            commit.clone(),
            Arc::clone(&order.others),
            self.cluster,
        ));
        order.note(commit);
        let streams = self.streams.read();
        if streams.is_empty() {
            return;
        }
        let mut last = None;
        for part in &commit.parts {
            if last.replace(part.header.stream) == Some(part.header.stream) {
                continue;
            }
            let Some(tail) = streams.get(&part.header.stream) else {
                continue;
            };
            let mut ring = tail.ring.write();
            if ring
                .frames
                .back()
                .is_some_and(|f| f.position() == commit.position)
            {
                continue;
            }
            ring.frames.push_back(Arc::clone(&delivered));
            drop(ring);
            let bytes = commit.size() + delivered.most_shared();
            order.bytes += bytes;
            order.frames.push_back((Arc::clone(tail), bytes));
            if !touched.iter().any(|held| Arc::ptr_eq(held, tail)) {
                touched.push(Arc::clone(tail));
            }
        }
    }

    /// Forgets streams that nobody follows any more.
    pub(crate) fn sweep(&self) {
        let mut order = self.order.lock();
        let mut streams = self.streams.write();
        let before = streams.len();
        streams.retain(|_, tail| tail.changed.receiver_count() > 0);
        if streams.len() == before {
            return;
        }
        let kept = |tail: &Arc<StreamTail>| streams.values().any(|held| Arc::ptr_eq(held, tail));
        order.frames.retain(|(tail, _)| kept(tail));
        order.bytes = order.frames.iter().map(|(_, bytes)| bytes).sum();
    }

    /// Wakes everybody, so that they notice that the broker is stopping.
    pub(crate) fn wake_all(&self) {
        for tail in self.streams.read().values() {
            tail.changed.send_modify(|_| {});
        }
    }
}

impl Order {
    /// Raises the vector. With one origin this clones a vector of one entry per frame.
    fn note(&mut self, commit: &Commit) {
        let header = &commit.header;
        Arc::make_mut(&mut self.others).advance(header.origin, header.sequence);
    }

    fn evict(&mut self, budget: usize) {
        while self.bytes > budget {
            let Some((tail, bytes)) = self.frames.pop_front() else {
                break;
            };
            self.bytes -= bytes;
            let mut ring = tail.ring.write();
            if let Some(gone) = ring.frames.pop_front() {
                ring.floor = gone.position().next();
            }
        }
    }
}
