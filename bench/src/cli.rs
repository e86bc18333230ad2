//! What can be typed after `anabranch bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

/// A measurement.
#[derive(Subcommand, Debug, Clone)]
pub enum Command {
    /// Durable publishing: ready-made batches, acknowledged after fdatasync.
    ///
    /// Defaults: 30,000,000 records, 1000 a batch, 100 bytes each, `append`, one connection,
    /// 32 batches in flight.
    Publish(PublishArguments),
    /// The same into a table, until every row is applied and readable.
    ///
    /// Defaults: 20,000,000 records of 1,000,000 keys, 1000 a batch, 100 bytes each.
    Rows(LoadArguments),
    /// Single-record publishes to delivery, open loop.
    ///
    /// Defaults: 10,000 records a second for 20 seconds, 100 bytes each.
    Latency(LoadArguments),
    /// One row a request over HTTP, checked against what was written.
    ///
    /// Defaults: 50 connections for 10 seconds, a table of 1,000,000 keys.
    Reads(LoadArguments),
    /// Single-record publishes, many in flight on one connection.
    ///
    /// Defaults: 5,000,000 records, 1024 in flight, 100 bytes each.
    Singles(LoadArguments),
    /// What a program gets that publishes through the Rust client.
    ///
    /// Defaults: 10,000,000 records, 100 bytes each, batches of up to 1000.
    Client(LoadArguments),
    /// One stream to many subscribers.
    ///
    /// Defaults: 1, 10 and 100 subscribers, 6 seconds each, 1000 records a batch, 100 bytes each.
    Fanout(FanoutArguments),
    /// Time from start to listening and to ready, after a clean end and after SIGKILL.
    ///
    /// Default: 1 GB of log, in a table of 1,000,000 keys.
    Restart(RestartArguments),
    /// Memory of an idle broker, and of idle subscribers.
    ///
    /// Default: 1000 subscribers, each with a connection of its own.
    Idle(IdleArguments),
    /// Two regions: a record acked in one, delivered and readable in the other, open loop.
    ///
    /// Defaults: 10,000 records a second for 20 seconds, 100 bytes each, in an `lww` table.
    RegionsLatency(RegionsLatencyArguments),
    /// Two regions: one was cut off and catches up, while both are written to.
    ///
    /// Defaults: 1 GB missed, 100,000 records a second in each region, 100 a batch, 100 bytes each.
    RegionsCatchUp(RegionsCatchUpArguments),
    /// More and more regions, all linked and all written to at the same rate.
    ///
    /// Defaults: 2 to 7 regions, 10 seconds each, 10,000 records a second in each region, 100 a
    /// batch, 100 bytes each.
    RegionsScale(RegionsScaleArguments),
    /// All of them but those of several regions, one after the other, as a table.
    All(Setting),
}

impl Command {
    pub(crate) fn setting(&self) -> &Setting {
        match self {
            Self::Publish(arguments) => &arguments.load.setting,
            Self::Rows(load)
            | Self::Latency(load)
            | Self::Reads(load)
            | Self::Singles(load)
            | Self::Client(load) => &load.setting,
            Self::Fanout(arguments) => &arguments.load.setting,
            Self::Restart(arguments) => &arguments.setting,
            Self::Idle(arguments) => &arguments.setting,
            Self::RegionsLatency(arguments) => &arguments.load.setting,
            Self::RegionsCatchUp(arguments) => &arguments.load.setting,
            Self::RegionsScale(arguments) => &arguments.load.setting,
            Self::All(setting) => setting,
        }
    }
}

/// Where to measure, and how to print it.
#[derive(Args, Debug, Clone, Default)]
pub struct Setting {
    /// A broker that runs already; otherwise one is started and ended again.
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// Process id of that broker, for its CPU time and memory.
    #[arg(long, value_name = "PID", requires = "server")]
    pub pid: Option<u32>,
    /// Where the broker's temporary data folder is made; it should be on the disk to be measured.
    #[arg(long, value_name = "DIR", conflicts_with = "server")]
    pub dir: Option<PathBuf>,
    /// Configuration of the broker that is started; may be repeated.
    #[arg(
        long = "set",
        value_name = "SECTION.KEY=VALUE",
        conflicts_with = "server"
    )]
    pub set: Vec<String>,
    /// A small run that shows whether everything works; its figures mean nothing.
    #[arg(long)]
    pub quick: bool,
    /// One JSON object a measurement.
    #[arg(long)]
    pub json: bool,
    /// Rows of a Markdown table.
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
}

/// What is sent, and how fast.
#[derive(Args, Debug, Clone, Default)]
pub struct LoadArguments {
    /// Records to send, after the warm-up.
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    pub records: Option<usize>,
    /// How long to go on, after the warm-up.
    #[arg(long, value_name = "S")]
    pub seconds: Option<f64>,
    /// How long to warm up [default: 1, or 2 for latency].
    #[arg(long, value_name = "S")]
    pub warm_up: Option<f64>,
    /// Records in one publish.
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Bytes of a value, at least 24.
    #[arg(long, value_name = "BYTES")]
    pub record_bytes: Option<usize>,
    /// Number of keys.
    #[arg(long, value_name = "N")]
    pub keys: Option<u32>,
    /// Draw keys from a Zipf distribution with this exponent, instead of uniformly.
    #[arg(long, value_name = "EXPONENT")]
    pub zipf: Option<f64>,
    /// Publishes in flight on each connection, or requests at once.
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,
    /// Connections.
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// Open loop: records a second over all connections, whatever the broker does.
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<u64>,
    /// How records travel.
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Where, and how to print it.
    #[command(flatten)]
    pub setting: Setting,
}

/// How records travel.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// As ready-made record batches.
    Batch,
    /// One by one, as maps; the broker makes them into batches, or takes batches apart.
    Records,
}

/// How the stream folds.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Merge {
    /// Every record is a row.
    #[default]
    Append,
    /// One row per key: the last writer wins.
    Lww,
}

impl Merge {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Lww => "lww",
        }
    }
}

/// Flags of `bench publish`.
#[derive(Args, Debug, Clone)]
pub struct PublishArguments {
    /// How the stream folds.
    #[arg(long, value_enum, default_value = "append")]
    pub merge: Merge,
    /// What is sent.
    #[command(flatten)]
    pub load: LoadArguments,
}

/// Flags of `bench fanout`.
#[derive(Args, Debug, Clone)]
pub struct FanoutArguments {
    /// Numbers of subscribers, one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    pub subscribers: Vec<usize>,
    /// Batches that the slowest subscriber may be behind before publishing waits for it.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub behind: usize,
    /// What is sent.
    #[command(flatten)]
    pub load: LoadArguments,
}

/// Flags of `bench restart`.
#[derive(Args, Debug, Clone)]
pub struct RestartArguments {
    /// Megabytes of records to fill the log with.
    #[arg(long, value_name = "MB")]
    pub megabytes: Option<usize>,
    /// How the stream folds.
    #[arg(long, value_enum, default_value = "lww")]
    pub merge: Merge,
    /// Where, and how to print it.
    #[command(flatten)]
    pub setting: Setting,
}

/// Flags of `bench idle`.
#[derive(Args, Debug, Clone)]
pub struct IdleArguments {
    /// How many subscribers.
    #[arg(long, value_name = "N")]
    pub subscribers: Option<usize>,
    /// Where, and how to print it.
    #[command(flatten)]
    pub setting: Setting,
}

/// Flags of `bench regions-latency`.
#[derive(Args, Debug, Clone)]
pub struct RegionsLatencyArguments {
    /// How long every byte takes over the link, in each direction: `20ms`.
    #[arg(long, value_name = "DELAY", default_value = "0ms", value_parser = milliseconds)]
    pub link_delay: Duration,
    /// What is sent.
    #[command(flatten)]
    pub load: LoadArguments,
}

/// Flags of `bench regions-catch-up`.
#[derive(Args, Debug, Clone)]
pub struct RegionsCatchUpArguments {
    /// Megabytes of keys and values that are missed.
    #[arg(long, value_name = "MB")]
    pub megabytes: Option<usize>,
    /// What is sent in both regions; with --window a closed loop.
    #[command(flatten)]
    pub load: LoadArguments,
}

/// Flags of `bench regions-scale`.
#[derive(Args, Debug, Clone)]
pub struct RegionsScaleArguments {
    /// Numbers of regions, one after the other.
    #[arg(long, value_delimiter = ',', default_value = "2,3,4,5,6,7")]
    pub regions: Vec<usize>,
    /// How often all of them are measured; what is printed is about all rounds together.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub rounds: usize,
    /// What is sent in each region.
    #[command(flatten)]
    pub load: LoadArguments,
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix("ms").unwrap_or(text);
    let number = number.parse().ok().filter(|number| *number <= 60_000);
    let number = number.ok_or("expected milliseconds, for example 20ms, at most 60000ms")?;
    Ok(Duration::from_millis(number))
}
