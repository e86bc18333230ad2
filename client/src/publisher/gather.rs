//! Open batches, filled by callers and taken by the worker.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anabranch_core::batch::{BatchBuilder, BatchError};
use anabranch_core::id::PartitionId;
use anabranch_core::partitioner::partition_of;
use anabranch_protocol::record::Record;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use super::{AckFuture, Outcome, PublisherOptions};
use crate::error::Error;

/// What a record counts for beside its bytes.
const RECORD_OVERHEAD: usize = 64;

/// A batch that takes no more records.
#[derive(Debug)]
pub(super) struct Full {
    pub(super) partition: PartitionId,
    pub(super) builder: BatchBuilder,
    pub(super) outcome: watch::Sender<Outcome>,
    /// What it takes of the window.
    pub(super) permits: usize,
}

#[derive(Debug)]
struct Open {
    batch: Full,
    since: Instant,
}

#[derive(Debug)]
struct State {
    /// One place per partition.
    open: Vec<Option<Open>>,
    full: VecDeque<Full>,
    /// Batches that may not be settled yet, oldest first.
    unsettled: VecDeque<watch::Receiver<Outcome>>,
    /// Where records without a key go, until that batch is full.
    keyless: usize,
    /// Open batches do not wait for more.
    hurry: bool,
    /// No more records will come.
    finishing: bool,
    closed: Option<Error>,
}

#[derive(Debug)]
pub(super) struct Gather {
    state: Mutex<State>,
    window: Semaphore,
    window_bytes: usize,
    batch_records: u32,
    batch_bytes: usize,
    linger: Duration,
    pub(super) changed: Notify,
}

/// What the worker finds.
pub(super) struct Taken {
    pub(super) batches: Vec<Full>,
    /// When to look again.
    pub(super) next: Option<Instant>,
    pub(super) finishing: bool,
}

impl Gather {
    pub(super) fn new(partitions: u16, options: &PublisherOptions) -> Self {
        let window_bytes = options.window_bytes.clamp(1, Semaphore::MAX_PERMITS);
        let window_bytes = window_bytes.min(u32::MAX as usize);
        Self {
            state: Mutex::new(State {
                open: (0..partitions.max(1)).map(|_| None).collect(),
                full: VecDeque::new(),
                unsettled: VecDeque::new(),
                keyless: 0,
                hurry: false,
                finishing: false,
                closed: None,
            }),
            window: Semaphore::new(window_bytes),
            window_bytes,
            batch_records: options.batch_records.max(1),
            batch_bytes: options.batch_bytes,
            linger: options.linger,
            changed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn permits_of(&self, record: &Record<'_>) -> usize {
        (record.len() + RECORD_OVERHEAD).min(self.window_bytes)
    }

    /// Waits for room in the window and takes it.
    pub(super) async fn room_for(&self, record: &Record<'_>) -> Result<(), Error> {
        let permits = u32::try_from(self.permits_of(record)).unwrap_or(u32::MAX);
        match self.window.acquire_many(permits).await {
            Ok(taken) => {
                taken.forget();
                Ok(())
            }
            Err(_) => Err(self.state().closed.clone().unwrap_or(Error::Closed)),
        }
    }

    /// Adds a record for which room was taken.
    pub(super) fn add(&self, record: &Record<'_>) -> Result<AckFuture, Error> {
        let permits = self.permits_of(record);
        let mut state = self.state();
        if let Some(error) = state.closed.clone() {
            return Err(error);
        }
        let lane = state.lane_of(record);
        let added = match state.push(lane, record, permits) {
            Err(BatchError::TooLarge(_) | BatchError::Count(_)) if state.has_records(lane) => {
                state.seal(lane);
                state.push(lane, record, permits)
            }
            added => added,
        };
        let added = match added {
            Ok(added) => added,
            Err(error) => {
                drop(state);
                self.give_back(permits);
                return Err(error.into());
            }
        };
        let is_full = added.index + 1 >= self.batch_records || added.bytes >= self.batch_bytes;
        if is_full {
            state.seal(lane);
        }
        if is_full || added.index == 0 {
            self.changed.notify_one();
        }
        Ok(AckFuture {
            outcome: added.outcome,
            index: added.index,
        })
    }

    /// Lets open batches go at once; returns everything that is not settled.
    pub(super) fn flush(&self) -> VecDeque<watch::Receiver<Outcome>> {
        let mut state = self.state();
        state.hurry = true;
        self.changed.notify_one();
        state.unsettled.clone()
    }

    /// No more records will come.
    pub(super) fn finish(&self) {
        self.state().finishing = true;
        self.changed.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed.is_some()
    }

    /// Takes full batches, and open ones that have waited long enough.
    pub(super) fn take(&self, now: Instant) -> Taken {
        let mut state = self.state();
        let at_once = std::mem::take(&mut state.hurry) || state.finishing;
        let mut next: Option<Instant> = None;
        for lane in 0..state.open.len() {
            let Some(since) = state.open[lane].as_ref().map(|open| open.since) else {
                continue;
            };
            let due = since + self.linger;
            if at_once || due <= now {
                state.seal(lane);
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        Taken {
            batches: state.full.drain(..).collect(),
            next,
            finishing: state.finishing,
        }
    }

    pub(super) fn give_back(&self, permits: usize) {
        self.window.add_permits(permits);
    }

    /// Refuses everything that waits here and all that comes.
    pub(super) fn close(&self, error: &Error) {
        let mut state = self.state();
        state.closed = Some(error.clone());
        for lane in 0..state.open.len() {
            state.seal(lane);
        }
        for batch in state.full.drain(..) {
            batch.outcome.send_replace(Some(Err(error.clone())));
        }
        self.window.close();
    }
}

/// A record in its batch.
struct Added {
    outcome: watch::Receiver<Outcome>,
    index: u32,
    bytes: usize,
}

impl State {
    fn lane_of(&self, record: &Record<'_>) -> usize {
        let partitions = u16::try_from(self.open.len()).unwrap_or(u16::MAX);
        match &record.key {
            Some(key) if partitions > 1 => usize::from(partition_of(key, partitions).get()),
            Some(_) => 0,
            None => self.keyless,
        }
    }

    fn has_records(&self, lane: usize) -> bool {
        self.open[lane]
            .as_ref()
            .is_some_and(|open| !open.batch.builder.is_empty())
    }

    fn push(
        &mut self,
        lane: usize,
        record: &Record<'_>,
        permits: usize,
    ) -> Result<Added, BatchError> {
        let now = now_ms();
        if self.open[lane].is_none() {
            self.open[lane] = Some(self.fresh(lane));
        }
        let open = self.open[lane].as_mut().expect("it was just made");
        let index = open.batch.builder.count();
        record.push_to(&mut open.batch.builder, now)?;
        open.batch.permits += permits;
        Ok(Added {
            outcome: open.batch.outcome.subscribe(),
            index,
            bytes: open.batch.builder.len(),
        })
    }

    fn fresh(&mut self, lane: usize) -> Open {
        while self
            .unsettled
            .front()
            .is_some_and(|outcome| outcome.borrow().is_some())
        {
            self.unsettled.pop_front();
        }
        let (outcome, watched) = watch::channel(None);
        self.unsettled.push_back(watched);
        let partition = u16::try_from(lane).map(PartitionId::new);
        Open {
            batch: Full {
                partition: partition.expect("there are at most 65,535 partitions"),
                builder: BatchBuilder::default(),
                outcome,
                permits: 0,
            },
            since: Instant::now(),
        }
    }

    fn seal(&mut self, lane: usize) {
        if let Some(open) = self.open[lane].take_if(|open| !open.batch.builder.is_empty()) {
            self.full.push_back(open.batch);
            if lane == self.keyless {
                self.keyless = (lane + 1) % self.open.len();
            }
        }
    }
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}
