//! Every configuration key, once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anabranch_core::id::RegionName;
use toml::Value;

use super::value::{
    Bound, ByteSize, ClusterName, GIB, HostPort, KIB, LogFilter, LogFormat, MIB, NotAllowed,
    PeerListen, Reserve, Setting,
};

/// What is known of a key apart from its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// `section.key`.
    pub(crate) name: &'static str,
    /// What it does and why its default is what it is.
    pub(crate) doc: &'static str,
    /// What its values look like.
    pub(crate) form: &'static str,
    /// Smallest and largest value, in bytes, seconds or pieces.
    pub(crate) bound: Bound,
}

impl Key {
    /// The key with this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// The environment variable that sets it.
    pub(crate) fn variable(&self) -> String {
        let name = self.name.replace('.', "_").to_ascii_uppercase();
        format!("ANABRANCH_{name}")
    }

    /// The key's section.
    pub(crate) fn section(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(section, _)| section)
    }
}

/// From the table at the end of this file: one struct per section, [`Config`] with all of them,
/// [`KEYS`], and reading and writing a key by its name.
macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        $section:ident: $Section:ident {
            $( $(#[doc = $doc:literal])+ $key:ident: $Type:ty = $default:expr, $bound:expr; )+
        }
    )+) => {
        $(
            $(#[doc = $about])+
            #[derive(Clone, Debug)]
            pub(crate) struct $Section {
                $( $(#[doc = $doc])+ pub(crate) $key: $Type, )+
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $( $key: $default, )+ }
                }
            }
        )+

        /// The whole configuration of a broker. Every value has been checked.
        #[derive(Clone, Debug, Default)]
        pub(crate) struct Config {
            $( $(#[doc = $about])+ pub(crate) $section: $Section, )+
        }

        /// All keys, in the order of the reference.
        pub(crate) const KEYS: &[Key] = &[
            $( $( Key {
                name: concat!(stringify!($section), ".", stringify!($key)),
                doc: concat!($( $doc, )+),
                form: <$Type as Setting>::FORM,
                bound: $bound,
            }, )+ )+
        ];

        /// The sections and what each is about.
        pub(crate) const SECTIONS: &[(&str, &str)] = &[
            $( (stringify!($section), concat!($( $about, )+)), )+
        ];

        impl Config {
            /// Sets a key. The key must be one of [`KEYS`].
            pub(super) fn set(&mut self, key: &Key, value: &Value) -> Result<(), NotAllowed> {
                match key.name {
                    $( $( concat!(stringify!($section), ".", stringify!($key)) => {
                        self.$section.$key = key.bound.check(Setting::read(value)?)?;
                    } )+ )+
                    _ => {}
                }
                Ok(())
            }

            /// A key's value as it would be written in a file.
            pub(super) fn get(&self, key: &Key) -> Value {
                match key.name {
                    $( $( concat!(stringify!($section), ".", stringify!($key)) => {
                        self.$section.$key.write()
                    } )+ )+
                    _ => Value::Boolean(false),
                }
            }
        }
    };
}

const ANY: Bound = Bound::ANY;

sections! {
    /// Who this broker is.
    broker: Broker {
        /// The region this broker stands in. It becomes part of metrics and of links between regions.
        region: RegionName = RegionName::parse("local").expect("the constant is in the alphabet"), ANY;
        /// The cluster it belongs to. Brokers, cursors and tokens of different clusters refuse each other.
        cluster: ClusterName = ClusterName::default(), ANY;
    }
    /// Where data is kept.
    data: Data {
        /// The data folder. It is created when missing, and locked by the broker that uses it.
        dir: PathBuf = PathBuf::from("./anabranch-data"), ANY;
        /// Writes are refused while less disk than this is free, so that reads, trimming, deleting streams and compaction still have room to work. `"auto"` is 5 % of the disk, at most 1 GiB.
        reserve_bytes: Reserve = Reserve::Auto, ANY;
    }
    /// Where it listens.
    listen: Listen {
        /// HTTP, WebSocket and server-sent events. Port 0 takes any free port.
        address: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7070)), ANY;
        /// Other brokers. `"auto"` is 127.0.0.1:7071 where `listen.peers` names any, and nowhere else. Port 0 takes any free port.
        peer_address: PeerListen = PeerListen::Auto, ANY;
        /// Brokers of other regions, `host:port` each. Name them on both sides, or on one: a link carries both ways.
        peers: Vec<HostPort> = Vec::new(), ANY;
        /// Allows an address beyond loopback. There is no authentication yet: whoever reaches the port may read and write everything.
        insecure: bool = false, ANY;
    }
    /// The log.
    log: Log {
        /// Size at which a segment file is sealed. Larger files mean fewer of them, smaller ones give space back sooner.
        segment_bytes: ByteSize = ByteSize::new(256 * MIB), Bound::of(MIB, 4 * GIB);
        /// How often retention and compaction look for something to drop.
        retention_interval_seconds: Duration = Duration::from_secs(60), Bound::of(1, 86_400);
        /// Memory for the latest commits. A subscriber that is no further behind is served without reading the disk.
        tail_bytes: ByteSize = ByteSize::new(32 * MIB), Bound::of(MIB, 4 * GIB);
    }
    /// Tables.
    tables: Tables {
        /// Memory for recently written rows before they are flushed. More memory collapses more writes of the same key into one.
        image_bytes: ByteSize = ByteSize::new(256 * MIB), Bound::of(MIB, 64 * GIB);
        /// Recently written rows before they are flushed; bounds the same memory where rows are tiny.
        image_rows: usize = 2_000_000, Bound::of(1_000, 1_000_000_000);
        /// Cache for rows read from disk.
        cache_bytes: ByteSize = ByteSize::new(64 * MIB), Bound::of(MIB, 256 * GIB);
    }
    /// Links to brokers of other regions.
    links: Links {
        /// Bytes of frames that a peer may send before they are durable here. Bounds the memory of a link; a link of 80 ms carries so much every 80 ms.
        window_bytes: ByteSize = ByteSize::new(16 * MIB), Bound::of(MIB, GIB);
        /// Compresses what is sent, with zstd. Saves bandwidth and costs processor time.
        compress: bool = true, ANY;
        /// How often rows are compared with each peer, while both hold the same frames. Reads the tables that have changed.
        audit_seconds: Duration = Duration::from_secs(60), Bound::of(1, 86_400);
        /// How long a broker that is no member of its cluster yet, or cannot prove that its log is whole, waits for peers that do not answer before it writes.
        join_seconds: Duration = Duration::from_secs(5), Bound::of(0, 3_600);
    }
    /// What one client, and all of them together, may take.
    limits: Limits {
        /// Open connections. Each costs about 40 kB while idle and one file handle.
        connections: usize = 10_000, Bound::of(1, 1_000_000);
        /// Published bytes that are not durable yet, over all connections. Beyond it publishes answer AB2101 (overloaded).
        in_flight_bytes: ByteSize = ByteSize::new(256 * MIB), Bound::of(MIB, 64 * GIB);
        /// The same for one connection. Beyond it the broker stops reading from that connection.
        connection_in_flight_bytes: ByteSize = ByteSize::new(32 * MIB), Bound::of(KIB, 4 * GIB);
        /// Longest WebSocket message. A record batch of the largest size fits, with its envelope.
        message_bytes: ByteSize = ByteSize::new(9 * MIB), Bound::of(KIB, 64 * MIB);
        /// Longest HTTP request body.
        request_bytes: ByteSize = ByteSize::new(9 * MIB), Bound::of(KIB, 64 * MIB);
        /// Delivered bytes that wait for one subscriber's socket. A subscriber that lets them fill up is disconnected with the cursor to resume at.
        subscriber_buffer_bytes: ByteSize = ByteSize::new(4 * MIB), Bound::of(64 * KIB, GIB);
        /// How long a full subscriber buffer, or a page of a table that is not taken, is tolerated before the disconnect.
        slow_subscriber_seconds: Duration = Duration::from_secs(30), Bound::of(1, 3_600);
        /// How long a subscription may go without any credit before it is ended.
        credit_timeout_seconds: Duration = Duration::from_secs(60), Bound::of(1, 86_400);
        /// Subscriptions on one connection.
        subscriptions: usize = 1_000, Bound::of(1, 100_000);
        /// A WebSocket that was silent this long is pinged; one that stays silent as long again is closed.
        ping_interval_seconds: Duration = Duration::from_secs(20), Bound::of(1, 3_600);
        /// How long a client may take to send its request head, or its first WebSocket message. An HTTP connection without a request is closed after the same time.
        header_timeout_seconds: Duration = Duration::from_secs(10), Bound::of(1, 600);
        /// How long a client may take to send a request body.
        body_timeout_seconds: Duration = Duration::from_secs(60), Bound::of(1, 3_600);
        /// How long a read with a token waits for it when the request does not say.
        token_wait_seconds: Duration = Duration::from_secs(5), Bound::of(0, 600);
        /// How long a publish that asks for other regions waits for them when the request does not say.
        regions_wait_seconds: Duration = Duration::from_secs(10), Bound::of(0, 600);
        /// The longest wait that a request may ask for: for a token, for regions, or for records.
        longest_wait_seconds: Duration = Duration::from_secs(60), Bound::of(1, 600);
        /// How long a shutdown waits for what is under way before it closes connections.
        shutdown_seconds: Duration = Duration::from_secs(10), Bound::of(0, 600);
    }
    /// What the broker tells of itself, on standard error.
    logging: Logging {
        /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,anabranch=debug`.
        level: LogFilter = LogFilter::default(), ANY;
        /// `text` for people, `json` for machines: one object a line.
        format: LogFormat = LogFormat::Text, ANY;
    }
}
