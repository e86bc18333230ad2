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
    /// Of all processes, the kernel's and the hypervisor's included.
    machine: Option<Duration>,
}

/// CPU time between two moments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) seconds: f64,
    /// Unknown for a broker that was started by others and whose process id was not told.
    pub(crate) broker: Option<Duration>,
    pub(crate) generator: Duration,
    /// Cores that were busy with something else than the two. A figure that was taken while this
    /// was much above a tenth of a core says little.
    pub(crate) others: Option<f64>,
}

impl Moment {
    /// The broker's is that of all these processes together; unknown when there are none.
    pub(crate) fn now(brokers: impl IntoIterator<Item = u32>) -> Self {
        let times: Option<Vec<_>> = brokers.into_iter().map(|pid| cpu_time(pid).ok()).collect();
        let times = times.filter(|times| !times.is_empty());
        Self {
            at: Instant::now(),
            broker: times.map(|times| times.iter().sum()),
            generator: own_cpu_time(),
            machine: machine_cpu_time().ok(),
        }
    }

    pub(crate) fn until(&self, later: &Self) -> Spent {
        let seconds = later.at.duration_since(self.at).as_secs_f64();
        let between = |later: Option<Duration>, earlier: Option<Duration>| {
            Some(later?.saturating_sub(earlier?))
        };
        let broker = between(later.broker, self.broker);
        let generator = later.generator.saturating_sub(self.generator);
        let others = between(later.machine, self.machine)
            .map(|machine| machine.saturating_sub(generator + broker.unwrap_or_default()));
        Spent {
            seconds,
            broker,
            generator,
            others: others.map(|others| others.as_secs_f64() / seconds),
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

/// Time that the machine's cores were busy: everything but idle and waiting for the disk.
fn machine_cpu_time() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let fields = line.split_ascii_whitespace().skip(1);
    let ticks: Vec<u32> = fields.map(str::parse).collect::<Result<_, _>>()?;
    // user nice system idle iowait irq softirq steal; what follows is counted in user as well.
    let busy = ticks.iter().take(8).enumerate();
    let busy = busy.filter(|(index, _)| !matches!(index, 3 | 4));
    Ok(TICK * busy.map(|(_, ticks)| ticks).sum::<u32>())
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
    fn the_machine_is_at_least_as_busy_as_this_process() {
        let before = Moment::now(None);
        while own_cpu_time() < before.generator + Duration::from_millis(100) {
            std::hint::spin_loop();
        }
        let spent = before.until(&Moment::now(None));
        assert!(spent.others.is_some() && spent.broker.is_none());
        let busy = machine_cpu_time()
            .unwrap()
            .saturating_sub(before.machine.unwrap());
        assert!(busy >= Duration::from_millis(80), "{busy:?}");
    }

    #[test]
    fn memory_is_read() {
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.peak >= memory.resident && memory.resident > 100_000);
    }
}
