//! When each message of an open loop is due.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::latency::nanoseconds;

/// A steady schedule. A kernel timer wakes it, since the runtime's own timers tick in milliseconds.
#[derive(Debug)]
pub(crate) struct Pace {
    schedule: Schedule,
    start: Instant,
    timer: AsyncFd<OwnedFd>,
}

impl Pace {
    /// Begins now: so many records a second, `batch` of them in each message.
    pub(crate) fn start(records_per_second: u64, batch: usize) -> Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self {
            schedule: Schedule {
                records_per_second,
                batch,
            },
            start: Instant::now(),
            timer: watched(timer)?,
        })
    }

    /// When the schedule began.
    pub(crate) fn began(&self) -> Instant {
        self.start
    }

    /// How late it is for a message, in nanoseconds.
    pub(crate) fn late(&self, message: usize) -> u64 {
        nanoseconds(self.start.elapsed()).saturating_sub(self.intended(message))
    }

    /// When a message is due, in nanoseconds from the beginning.
    pub(crate) fn intended(&self, message: usize) -> u64 {
        self.schedule.intended(message)
    }

    /// How many messages are due by now.
    pub(crate) fn due(&self) -> usize {
        self.schedule.due(nanoseconds(self.start.elapsed()))
    }

    /// Waits until a message is due.
    pub(crate) async fn wait(&self, message: usize) -> Result<()> {
        let now = nanoseconds(self.start.elapsed());
        let Some(left) = self.intended(message).checked_sub(now + 1) else {
            return Ok(());
        };
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec::try_from(Duration::from_nanos(left + 1))?,
        };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut guard = self.timer.readable().await?;
            let expired = guard.try_io(|timer| {
                let mut count = [0; 8];
                Ok(rustix::io::read(timer.get_ref(), &mut count)?)
            });
            if let Ok(read) = expired {
                read?;
                return Ok(());
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "its replacement is unsafe because a type may close its descriptor early; an OwnedFd does not"
)]
fn watched(timer: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(timer)
}

#[derive(Debug)]
struct Schedule {
    records_per_second: u64,
    batch: usize,
}

impl Schedule {
    fn intended(&self, message: usize) -> u64 {
        let records = message as u128 * self.batch as u128;
        let nanoseconds = records * 1_000_000_000 / u128::from(self.records_per_second);
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }

    fn due(&self, elapsed: u64) -> usize {
        let records = u128::from(elapsed) * u128::from(self.records_per_second) / 1_000_000_000;
        usize::try_from(records / self.batch as u128 + 1).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_was_intended_before() {
        let schedule = Schedule {
            records_per_second: 9_999,
            batch: 7,
        };
        for elapsed in [0, 1, 700_069, 700_071, 1_000_000_000, 3_600_000_000_000] {
            let due = schedule.due(elapsed);
            assert!(schedule.intended(due - 1) <= elapsed);
            assert!(schedule.intended(due) + 1 >= elapsed);
        }
    }

    #[tokio::test]
    async fn waiting_ends_when_the_message_is_due() {
        let pace = Pace::start(1_000, 1).unwrap();
        pace.wait(20).await.unwrap();
        assert!(pace.began().elapsed() >= Duration::from_millis(20));
        assert!(pace.due() >= 21);
        pace.wait(3).await.unwrap();
    }
}
