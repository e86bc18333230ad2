//! Whether this machine suits a broker, and what to do where it does not.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::Ended;
use super::arguments::DoctorArguments;
use super::output::Output;
use crate::config::{ByteSize, Config};

/// How well a check went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Good,
    Doubtful,
    Bad,
}

impl Verdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Doubtful => "warn",
            Self::Bad => "fail",
        }
    }
}

/// One check: what was found, and what to do about it.
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    advice: &'static str,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, found: String, advice: &'static str) -> Self {
        let advice = if verdict == Verdict::Good { "" } else { advice };
        Self {
            check,
            verdict,
            found,
            advice,
        }
    }

    fn fields(&self) -> Vec<String> {
        let Self {
            check,
            verdict,
            found,
            advice,
        } = self;
        vec![
            verdict.as_str().to_owned(),
            (*check).to_owned(),
            found.clone(),
            (*advice).to_owned(),
        ]
    }

    fn json(&self) -> serde_json::Value {
        let Self {
            check,
            verdict,
            found,
            advice,
        } = self;
        json!({"check": check, "verdict": verdict.as_str(), "found": found, "advice": advice})
    }
}

/// Runs every check; the exit code is 1 when one of them fails.
pub(super) async fn run(arguments: DoctorArguments) -> Ended {
    let loaded = arguments.flags.load()?;
    let checks = move || examine(&loaded.config);
    let findings = tokio::task::spawn_blocking(checks).await?;
    let rows: Vec<_> = findings.iter().map(Finding::fields).collect();
    let output = Output::new(arguments.json);
    let head = ["", "check", "found", "advice"];
    output.table(&head, &rows, findings.iter().map(Finding::json))?;
    let failed = findings.iter().any(|it| it.verdict == Verdict::Bad);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn examine(config: &Config) -> Vec<Finding> {
    let folder = nearest_folder(&config.data.dir);
    vec![
        data_folder(&folder, &config.data.dir),
        disk_free(&folder, config),
        sync_latency(&folder),
        file_limit(config.limits.connections),
        memory(config),
        port(config.listen.address),
        clock(&config.data.dir),
    ]
}

/// The data folder, or where it would be made.
fn nearest_folder(dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let existing = absolute.ancestors().find(|path| path.is_dir());
    existing.map_or(absolute.clone(), Path::to_owned)
}

fn data_folder(folder: &Path, dir: &Path) -> Finding {
    let (verdict, found) = match probe_file(folder) {
        Ok(_) if dir.is_dir() => (Verdict::Good, format!("{} is writable", dir.display())),
        Ok(_) => (Verdict::Good, format!("{} can be created", dir.display())),
        Err(error) => (Verdict::Bad, format!("{}: {error}", folder.display())),
    };
    let advice = "choose another folder with --data-dir, or make this one writable";
    Finding::new("data folder", verdict, found, advice)
}

fn disk_free(folder: &Path, config: &Config) -> Finding {
    const ADVICE: &str = "free space, or lower data.reserve_bytes: writes are refused below it";
    let name = "disk free";
    let space = match rustix::fs::statvfs(folder) {
        Ok(space) => space,
        Err(error) => return Finding::new(name, Verdict::Bad, error.to_string(), ADVICE),
    };
    let (free, total) = (
        space.f_bavail * space.f_frsize,
        space.f_blocks * space.f_frsize,
    );
    let reserve = config.data.reserve_bytes.on_disk_of(total);
    let verdict = match free {
        free if free <= reserve => Verdict::Bad,
        free if free < reserve + 4 * config.log.segment_bytes.get() => Verdict::Doubtful,
        _ => Verdict::Good,
    };
    let found = format!(
        "{} of {}, reserve {}",
        human(free),
        human(total),
        human(reserve)
    );
    Finding::new(name, verdict, found, ADVICE)
}

/// Slower than this at the median, and acknowledgements feel slow.
const SLOW_SYNC: Duration = Duration::from_millis(5);
/// No disk that keeps data over a power loss is faster than this.
const IMPLAUSIBLE_SYNC: Duration = Duration::from_micros(15);

fn sync_latency(folder: &Path) -> Finding {
    let name = "sync latency";
    let mut times = match time_syncs(folder, 64) {
        Ok(times) => times,
        Err(error) => return Finding::new(name, Verdict::Bad, error.to_string(), "check the disk"),
    };
    times.sort_unstable();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    let found = format!("median {median:.2?}, worst {worst:.2?} of {}", times.len());
    let (verdict, advice) = if median > SLOW_SYNC {
        let advice = "each acknowledgement waits this long: use a disk with power-loss protection";
        (Verdict::Doubtful, advice)
    } else if median < IMPLAUSIBLE_SYNC {
        let advice = "this is memory, or a disk that only claims to sync: a power loss may lose acknowledged records";
        (Verdict::Doubtful, advice)
    } else {
        (Verdict::Good, "")
    };
    Finding::new(name, verdict, found, advice)
}

/// Times writes of 4 KiB into preallocated space, which is how the log writes.
fn time_syncs(folder: &Path, count: u64) -> io::Result<Vec<Duration>> {
    let file = probe_file(folder)?;
    file.set_len(count * 4096)?;
    let (mut writer, block) = (&file, [7_u8; 4096]);
    writer.write_all(&block)?;
    file.sync_all()?;
    let mut times = Vec::new();
    for _ in 1..count {
        let start = Instant::now();
        writer.write_all(&block)?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// A file that is gone as soon as it is closed.
fn probe_file(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!(".anabranch-doctor-{}", std::process::id()));
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// File handles that are not connections: segments, tables, and room to spare.
const OTHER_FILES: u64 = 1024;

fn file_limit(connections: usize) -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let allowed = limit.current.unwrap_or(u64::MAX);
    let wanted = OTHER_FILES + u64::try_from(connections).unwrap_or(u64::MAX);
    let verdict = match allowed {
        allowed if allowed < OTHER_FILES => Verdict::Bad,
        allowed if allowed < wanted => Verdict::Doubtful,
        _ => Verdict::Good,
    };
    let found = format!("{allowed} files, {connections} connections are allowed");
    let advice = "raise it (ulimit -n, LimitNOFILE=), or lower limits.connections";
    Finding::new("file limit", verdict, found, advice)
}

fn memory(config: &Config) -> Finding {
    let name = "memory";
    // Two images: one is filled while the other is flushed.
    let caches = 2 * config.tables.image_bytes.get()
        + config.tables.cache_bytes.get()
        + config.log.tail_bytes.get()
        + config.limits.in_flight_bytes.get();
    let Some(available) = available_memory() else {
        let found = "unknown on this system".to_owned();
        return Finding::new(name, Verdict::Good, found, "");
    };
    let verdict = if available < caches {
        Verdict::Doubtful
    } else {
        Verdict::Good
    };
    let found = format!(
        "{} available, at most {} for caches",
        human(available),
        human(caches)
    );
    let advice = "lower tables.image_bytes, tables.cache_bytes or limits.in_flight_bytes";
    Finding::new(name, verdict, found, advice)
}

fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

fn port(address: SocketAddr) -> Finding {
    let (verdict, found) = match TcpListener::bind(address) {
        Ok(_) => (Verdict::Good, format!("{address} is free")),
        Err(error) => (Verdict::Bad, format!("{address}: {error}")),
    };
    let advice = "stop what uses it (perhaps a running broker), or choose another with --listen";
    Finding::new("port", verdict, found, advice)
}

/// 2024-01-01. Whatever is earlier is a clock that was never set.
const SOFTWARE_IS_YOUNGER: Duration = Duration::from_secs(1_704_067_200);

fn clock(dir: &Path) -> Finding {
    let now = SystemTime::now();
    let ahead = newest_file(dir).and_then(|newest| newest.duration_since(now).ok());
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (verdict, found) = match ahead {
        _ if since < SOFTWARE_IS_YOUNGER => (Verdict::Bad, "the clock was never set".to_owned()),
        Some(ahead) if ahead > Duration::from_secs(1) => (
            Verdict::Doubtful,
            format!("the data was written {ahead:.0?} from now"),
        ),
        _ => (Verdict::Good, "plausible".to_owned()),
    };
    let advice = "keep it set with NTP: among several writers, the later time stamp wins";
    Finding::new("clock", verdict, found, advice)
}

fn newest_file(dir: &Path) -> Option<SystemTime> {
    let log = fs::read_dir(dir.join("log")).ok()?;
    log.filter_map(|entry| entry.ok()?.metadata().ok()?.modified().ok())
        .max()
}

fn human(bytes: u64) -> String {
    ByteSize::new(bytes).rounded()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_finding_and_failures_carry_advice() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.data.dir = dir.path().join("data");
        config.listen.address = taken.local_addr().unwrap();
        let findings = examine(&config);
        assert_eq!(findings.len(), 7);
        let port = findings.iter().find(|it| it.check == "port").unwrap();
        assert_eq!(port.verdict, Verdict::Bad);
        for finding in findings {
            assert_eq!(finding.advice.is_empty(), finding.verdict == Verdict::Good);
        }
        assert!(!config.data.dir.exists(), "looking changes nothing");
    }
}
