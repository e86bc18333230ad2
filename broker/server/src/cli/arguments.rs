//! What can be typed.

use std::net::SocketAddr;
use std::path::PathBuf;

use anabranch_protocol::ws::AckLevel;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{ConfigError, Flag, Loaded, Sources};
use anabranch_client::Order;

/// An event-streaming broker whose streams are tables.
#[derive(Parser, Debug)]
#[command(
    name = "anabranch",
    version,
    after_help = "Exit codes: 0 done, 1 error, 2 usage, 3 not found, 4 conflict, 5 denied, 6 unavailable."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Start a broker for trying things out, or several regions; it prints what to paste next.
    Dev(DevArguments),
    /// Start a broker: the same database with the same durability, and logs for operators.
    Serve(ServeArguments),
    /// Stream a year of real flights into a new broker, show what came of it, and leave it running.
    Demo(DemoArguments),
    /// Create, list, show, alter, trim and delete streams.
    #[command(subcommand)]
    Stream(StreamCommand),
    /// Publish records: NDJSON from standard input, or one given by flags.
    Pub(PublishArguments),
    /// Subscribe to a stream and print its records.
    Sub(SubscribeArguments),
    /// Print one row.
    Get(GetArguments),
    /// Write one row.
    Put(PutArguments),
    /// Delete one row.
    Delete(DeleteArguments),
    /// List rows in key order.
    Rows(RowsArguments),
    /// Show this broker among the others; park or remove one that is gone.
    Regions(RegionsArguments),
    /// Measure a broker.
    #[command(subcommand)]
    Bench(anabranch_bench::cli::Command),
    /// Check every checksum, chain and index of a data folder, and that rows equal the fold of the log.
    Verify(VerifyArguments),
    /// Put the data folder of a parked broker aside, so that it can join anew.
    ///
    /// What it has written and no other broker has is written to files, to be published again by
    /// whoever knows whether it should still count.
    Rejoin(RejoinArguments),
    /// Check whether this machine suits a broker.
    Doctor(DoctorArguments),
    /// Print the effective configuration and where each value comes from.
    Config(ConfigArguments),
    /// Print a completion script for a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Whether a broker runs in this process.
    pub(super) fn serves(&self) -> bool {
        matches!(self, Self::Dev(_) | Self::Serve(_) | Self::Demo(_))
    }
}

/// Flags that set configuration keys.
#[derive(Args, Debug, Default)]
pub(crate) struct BrokerFlags {
    /// The data folder [data.dir].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where clients connect; port 0 takes any free port [listen.address].
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Where other brokers connect [listen.peer_address].
    #[arg(long, value_name = "ADDR")]
    pub(crate) peer_listen: Option<String>,
    /// The region this broker stands in [broker.region].
    #[arg(long, value_name = "NAME")]
    pub(crate) region: Option<String>,
    /// A broker of another region; may be repeated [listen.peers].
    #[arg(long = "peer", value_name = "ADDR")]
    pub(crate) peers: Vec<String>,
    /// The cluster [broker.cluster].
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// A TOML file.
    #[arg(long, value_name = "FILE", env = "ANABRANCH_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Allow an address that other machines can reach; there is no authentication yet [listen.insecure].
    #[arg(long)]
    pub(crate) insecure_listen: bool,
    /// error, warn, info, debug or trace [logging.level].
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// text or json [logging.format].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<String>,
    /// Any configuration key; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = key_and_value)]
    pub(crate) set: Vec<(String, String)>,
    /// Print the chosen addresses as one line of JSON as soon as they are bound.
    #[arg(long)]
    pub(crate) print_addresses: bool,
}

/// What `dev` takes.
#[derive(Args, Debug)]
pub(super) struct DevArguments {
    #[command(flatten)]
    pub(super) flags: BrokerFlags,
    /// Start so many regions: a broker for each, linked with all others.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    #[arg(conflicts_with_all = ["peers", "region", "peer_listen", "print_addresses"])]
    pub(super) regions: Option<u8>,
    /// What they are called, in place of r1, r2 and so on.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    #[arg(conflicts_with_all = ["peers", "region", "peer_listen", "print_addresses"])]
    pub(super) region_names: Vec<String>,
    /// How long every byte between regions takes, in each direction: 40ms for all links, r1-r2=80ms for one; may be repeated.
    #[arg(long = "link-delay", value_name = "DELAY")]
    pub(super) link_delays: Vec<String>,
    /// What happens to regions, as one JSON object a line.
    #[arg(long)]
    pub(super) json: bool,
}

/// What `serve` takes.
#[derive(Args, Debug)]
pub(super) struct ServeArguments {
    #[command(flatten)]
    pub(super) flags: BrokerFlags,
    /// Stop when standard input ends: whoever holds it open cannot leave this broker behind.
    #[arg(long)]
    pub(super) until_stdin_ends: bool,
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err("expected section.key=value".to_owned()),
    }
}

impl BrokerFlags {
    /// The configuration that these flags, the environment and the file make.
    pub(crate) fn load(&self) -> Result<Loaded, ConfigError> {
        let sources = Sources {
            file: self.config.clone(),
            environment: environment(),
            flags: self.flags(),
        };
        sources.load()
    }

    fn flags(&self) -> Vec<Flag> {
        let dir = self.data_dir.as_ref().map(|dir| dir.to_string_lossy());
        let texts = [
            ("--data-dir", "data.dir", dir.as_deref()),
            ("--listen", "listen.address", self.listen.as_deref()),
            (
                "--peer-listen",
                "listen.peer_address",
                self.peer_listen.as_deref(),
            ),
            ("--region", "broker.region", self.region.as_deref()),
            ("--cluster", "broker.cluster", self.cluster.as_deref()),
            ("--log-level", "logging.level", self.log_level.as_deref()),
            ("--log-format", "logging.format", self.log_format.as_deref()),
        ];
        let mut flags: Vec<Flag> = texts
            .into_iter()
            .filter_map(|(flag, key, value)| Some(Flag::new(flag, key, value?)))
            .collect();
        if !self.peers.is_empty() {
            flags.push(Flag::new("--peer", "listen.peers", self.peers.clone()));
        }
        if self.insecure_listen {
            flags.push(Flag::new("--insecure-listen", "listen.insecure", true));
        }
        let set = |(key, value): &(String, String)| Flag::new("--set", key, value.as_str());
        flags.extend(self.set.iter().map(set));
        flags
    }
}

/// Variables that are not text cannot be ours.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Which broker to talk to, and how to answer.
#[derive(Args, Debug, Clone)]
pub(crate) struct Target {
    /// The broker.
    #[arg(
        long,
        value_name = "URL",
        env = "ANABRANCH_SERVER",
        default_value = "http://127.0.0.1:7070"
    )]
    pub(super) server: String,
    /// One JSON object a line.
    #[arg(long)]
    pub(super) json: bool,
}

/// How a stream folds.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub(super) enum Merge {
    /// Every record is a row of its own.
    Append,
    /// One row per key: the last writer wins.
    Lww,
}

impl Merge {
    /// Its name in the API.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Lww => "lww",
        }
    }
}

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct RegionsArguments {
    #[command(subcommand)]
    pub(super) command: Option<RegionsCommand>,
    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Subcommand, Debug)]
pub(super) enum RegionsCommand {
    /// Wait no more for a broker that is gone: what is deleted and stable can be dropped without it.
    ///
    /// What it has written and not shipped is lost to the others. It comes back by `anabranch rejoin`.
    Park {
        /// Its id, or its region if it is the only one there.
        member: String,
        #[command(flatten)]
        target: Target,
    },
    /// The same, and it is not shown any more.
    Remove {
        /// Its id, or its region if it is the only one there.
        member: String,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Subcommand, Debug)]
pub(super) enum StreamCommand {
    /// Create a stream.
    Create {
        /// Its name.
        name: String,
        /// How it folds into rows.
        #[arg(long, value_enum, default_value = "append")]
        merge: Merge,
        /// How many partitions.
        #[arg(long, default_value_t = 1)]
        partitions: u16,
        /// The regions that may hold its records, with commas between them. All unless given; it
        /// cannot change later.
        #[arg(long, value_delimiter = ',', value_name = "REGION")]
        regions: Vec<String>,
        #[command(flatten)]
        retention: RetentionFlags,
        #[command(flatten)]
        target: Target,
    },
    /// List all streams.
    List(Target),
    /// Show one stream: its definition, offsets and size.
    Show {
        /// Its name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Change what a stream keeps.
    Alter {
        /// Its name.
        name: String,
        #[command(flatten)]
        retention: RetentionFlags,
        #[command(flatten)]
        target: Target,
    },
    /// Drop records older than something.
    Trim {
        /// The stream.
        name: String,
        /// An age (7d, 12h, 30m, 10s), a time (2026-01-31T00:00:00Z), or milliseconds since 1970.
        #[arg(long)]
        before: String,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a stream, its records and its rows.
    Delete {
        /// Its name.
        name: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Args, Debug, Clone)]
pub(super) struct RetentionFlags {
    /// Drop records older than this: 7d, 12h, 30m, 10s, or `none`.
    #[arg(long, value_name = "AGE")]
    pub(super) max_age: Option<String>,
    /// Drop the oldest records beyond this: 10GiB, 500MB, or `none`.
    #[arg(long, value_name = "SIZE")]
    pub(super) max_bytes: Option<String>,
    /// Drop records that a later one of the same key has replaced.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(super) compact: Option<bool>,
}

#[derive(Args, Debug)]
pub(super) struct PublishArguments {
    /// The stream.
    pub(super) stream: String,
    /// Create the stream if it is missing.
    #[arg(long, value_enum, value_name = "MERGE")]
    pub(super) create: Option<Merge>,
    /// The key of a single record.
    #[arg(long, requires = "value")]
    pub(super) key: Option<String>,
    /// The value of a single record: JSON, or text that is then sent as it is.
    #[arg(long)]
    pub(super) value: Option<String>,
    /// When it counts as published: disk, memory, regions:N (on disk in so many regions, this one
    /// included) or region:NAME,NAME… (on disk in all of these).
    #[arg(long, value_name = "LEVEL", default_value = "disk", value_parser = ack_level)]
    pub(super) ack: AckLevel,
    #[command(flatten)]
    pub(super) target: Target,
}

fn ack_level(text: &str) -> Result<AckLevel, &'static str> {
    AckLevel::parse(text).ok_or("must be disk, memory, regions:N or region:NAME,NAME…")
}

#[derive(Args, Debug)]
pub(super) struct SubscribeArguments {
    /// The stream.
    pub(super) stream: String,
    /// earliest, latest, table, a time, milliseconds since 1970, or a cursor.
    #[arg(long, default_value = "latest")]
    pub(super) from: String,
    /// Stop after so many records.
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<u64>,
    /// Only these partitions: 0,3.
    #[arg(long, value_delimiter = ',')]
    pub(super) partitions: Vec<u16>,
    /// Only this key.
    #[arg(long, conflicts_with = "prefix")]
    pub(super) key: Option<String>,
    /// Only keys that begin so.
    #[arg(long)]
    pub(super) prefix: Option<String>,
    /// local: that of the broker's log; total: the same in every region.
    #[arg(long, default_value = "local", value_parser = order)]
    pub(super) order: Order,
    /// Wait until this token is reached, then begin.
    #[arg(long)]
    pub(super) token: Option<String>,
    #[command(flatten)]
    pub(super) target: Target,
}

fn order(name: &str) -> Result<Order, &'static str> {
    Order::named(name).ok_or("must be local or total")
}

#[derive(Args, Debug)]
pub(super) struct GetArguments {
    /// The stream.
    pub(super) stream: String,
    /// The row's key.
    pub(super) key: String,
    /// Wait until this token is reached.
    #[arg(long)]
    pub(super) token: Option<String>,
    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Args, Debug)]
pub(super) struct PutArguments {
    /// The stream.
    pub(super) stream: String,
    /// The row's key.
    pub(super) key: String,
    /// The value; `-` or nothing reads standard input.
    pub(super) value: Option<String>,
    /// When it counts as written: disk, memory, regions:N (on disk in so many regions, this one
    /// included) or region:NAME,NAME… (on disk in all of these).
    #[arg(long, value_name = "LEVEL", default_value = "disk", value_parser = ack_level)]
    pub(super) ack: AckLevel,
    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Args, Debug)]
pub(super) struct DeleteArguments {
    /// The stream.
    pub(super) stream: String,
    /// The row's key.
    pub(super) key: String,
    /// When it counts as deleted: disk, memory, regions:N (on disk in so many regions, this one
    /// included) or region:NAME,NAME… (on disk in all of these).
    #[arg(long, value_name = "LEVEL", default_value = "disk", value_parser = ack_level)]
    pub(super) ack: AckLevel,
    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Args, Debug)]
pub(super) struct RowsArguments {
    /// The stream.
    pub(super) stream: String,
    /// Only keys that begin so.
    #[arg(long)]
    pub(super) prefix: Option<String>,
    /// Only keys after this one.
    #[arg(long)]
    pub(super) after: Option<String>,
    /// At most so many rows.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(super) limit: usize,
    /// Wait until this token is reached.
    #[arg(long)]
    pub(super) token: Option<String>,
    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Args, Debug)]
pub(super) struct RejoinArguments {
    /// The data folder of the broker that was parked; it must be stopped.
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: PathBuf,
    /// A broker of the cluster that goes on, which says what it has.
    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Args, Debug)]
pub(super) struct VerifyArguments {
    /// The data folder of a stopped broker.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./anabranch-data",
        env = "ANABRANCH_DATA_DIR"
    )]
    pub(super) data_dir: PathBuf,
    /// One JSON object a line.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(super) struct DoctorArguments {
    #[command(flatten)]
    pub(super) flags: BrokerFlags,
    /// One JSON object a line.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(super) struct ConfigArguments {
    #[command(flatten)]
    pub(super) flags: BrokerFlags,
    /// Print the reference of all keys instead, in Markdown.
    #[arg(long)]
    pub(super) reference: bool,
    /// One JSON object a line.
    #[arg(long)]
    pub(super) json: bool,
}

/// What `demo` takes.
#[derive(Args, Debug)]
pub(crate) struct DemoArguments {
    /// The data folder; `./anabranch-demo` when it is not given.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where the broker listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070")]
    pub(crate) listen: SocketAddr,
    /// Stop the broker when everything is there, instead of leaving it running.
    #[arg(long)]
    pub(crate) exit: bool,
    /// The summary as one line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
