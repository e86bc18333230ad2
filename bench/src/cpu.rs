//! CPU time and memory, of broker and generator apart.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// `/proc` counts in ticks of 10 ms on every Linux that user space can tell (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// CPU time of both sides at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    at: Instant,
    broker: Option<Duration>,
    generator: Duration,
}

/// CPU time between two moments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) seconds: f64,
    /// Unknown for a broker that was started by others and whose process id was not told.
    pub(crate) broker: Option<Duration>,
    pub(crate) generator: Duration,
}

impl Moment {
    pub(crate) fn now(broker: Option<u32>) -> Self {
        Self {
            at: Instant::now(),
            broker: broker.and_then(|pid| cpu_time(pid).ok()),
            generator: own_cpu_time(),
        }
    }

    pub(crate) fn until(&self, later: &Self) -> Spent {
        Spent {
            seconds: later.at.duration_since(self.at).as_secs_f64(),
            broker: later
                .broker
                .zip(self.broker)
                .map(|(later, earlier)| later.saturating_sub(earlier)),
            generator: later.generator.saturating_sub(self.generator),
        }
    }
}

fn own_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// User and system time of all threads of a process, ended ones included.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(')').context("no process name")?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut ticks = || -> Result<u32> { Ok(fields.next().context("too short")?.parse()?) };
    Ok(TICK * (ticks()? + ticks()?))
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) resident: u64,
    /// The most that was ever resident.
    pub(crate) peak: u64,
}

pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let text = line.with_context(|| format!("/proc has no {name}"))?;
        let kib: u64 = text.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    };
    Ok(Memory {
        resident: field("VmRSS:")?,
        peak: field("VmHWM:")?,
    })
}

/// Raises the soft limit of open files to the hard one; the broker that is started inherits it.
pub(crate) fn allow_many_connections() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where it is refused, what needs many connections will say so.
    let _ = setrlimit(Resource::Nofile, raised);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_reading_cpu_time_agree() {
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(60) {
            std::hint::spin_loop();
        }
        let (own, read) = (own_cpu_time(), cpu_time(std::process::id()).unwrap());
        assert!(
            own.abs_diff(read) < Duration::from_millis(50),
            "{own:?} {read:?}"
        );
    }

    #[test]
    fn memory_is_read() {
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.peak >= memory.resident && memory.resident > 100_000);
    }
}
