//! What a client says.

use std::borrow::Cow;

use anabranch_core::cursor::Order;
use anabranch_core::id::PartitionId;
use anabranch_core::producer::ProducerStamp;
use bytes::Bytes;

use super::{AckLevel, Format, SubscriptionId};
use crate::position::{BadFrom, From};
use crate::record::Record;

/// A message from a client to a broker.
#[derive(Clone, PartialEq, Debug)]
pub enum ClientMessage<'a> {
    /// The first one.
    Hello(Hello<'a>),
    /// Records for a stream.
    Publish(Publish<'a>),
    /// Asks for a stream's records.
    Subscribe(Subscribe<'a>),
    /// Allows the broker to send so many bytes more.
    Credit {
        /// On which subscription.
        subscription: SubscriptionId,
        /// How many bytes.
        bytes: u64,
    },
    /// Ends a subscription.
    Unsubscribe {
        /// Which one.
        subscription: SubscriptionId,
    },
    /// Asks for a pong.
    Ping {
        /// Comes back in the pong.
        id: u64,
    },
}

/// Who the client is.
#[derive(Clone, PartialEq, Debug)]
pub struct Hello<'a> {
    /// Protocol version; [`super::VERSION`].
    pub version: u64,
    /// The client software, for the broker's logs.
    pub client: Option<Cow<'a, str>>,
    /// The cluster it expects to find, by name.
    pub cluster: Option<Cow<'a, str>>,
}

/// Records for one stream. All of them are appended, or none.
#[derive(Clone, PartialEq, Debug)]
pub struct Publish<'a> {
    /// Comes back in the acknowledgement or the error.
    pub id: u64,
    /// The stream's name.
    pub stream: Cow<'a, str>,
    /// The partition; otherwise each record's key decides. A batch without it goes to partition 0.
    pub partition: Option<PartitionId>,
    /// What to append.
    pub payload: Payload<'a>,
    /// The idempotent producer's stamp of `records`. A batch carries its own.
    pub producer: Option<ProducerStamp>,
    /// When to acknowledge.
    pub ack: AckLevel,
}

/// What a publish carries.
#[derive(Clone, PartialEq, Debug)]
pub enum Payload<'a> {
    /// Records, which the broker makes into batches.
    Records(Vec<Record<'a>>),
    /// A record batch v2 that is ready to be stored.
    Batch(Cow<'a, [u8]>),
}

/// A borrowed or decoded binary as shared bytes: a slice of `message`, without copying, when it
/// was borrowed from it.
///
/// # Panics
/// When the binary was borrowed from something else than `message`.
#[must_use]
pub fn shared(binary: Cow<'_, [u8]>, message: &Bytes) -> Bytes {
    match binary {
        Cow::Borrowed(slice) => message.slice_ref(slice),
        Cow::Owned(decoded) => Bytes::from(decoded),
    }
}

/// A subscription.
#[derive(Clone, PartialEq, Debug)]
pub struct Subscribe<'a> {
    /// The number it goes by from now on.
    pub subscription: SubscriptionId,
    /// The stream's name.
    pub stream: Cow<'a, str>,
    /// Only these partitions; all when empty.
    pub partitions: Vec<PartitionId>,
    /// Only these keys.
    pub keys: KeyFilter<'a>,
    /// Where to start, as sent; see [`Subscribe::position`].
    pub from: Option<Cow<'a, str>>,
    /// In which order records come.
    pub order: Order,
    /// How records come.
    pub format: Format,
    /// Bytes that the broker may send before it is given more credit.
    pub credit: u64,
}

impl Subscribe<'_> {
    /// Where to start.
    ///
    /// # Errors
    /// When the client sent something that names no place.
    pub fn position(&self) -> Result<From, BadFrom> {
        self.from.as_deref().map_or(Ok(From::Latest), From::parse)
    }
}

/// Which keys a subscription is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum KeyFilter<'a> {
    /// All of them, and records without a key.
    #[default]
    All,
    /// This one.
    Key(Cow<'a, [u8]>),
    /// Those that begin with this.
    Prefix(Cow<'a, [u8]>),
}

impl KeyFilter<'_> {
    /// Whether a record with this key passes.
    #[must_use]
    pub fn passes(&self, key: Option<&[u8]>) -> bool {
        match self {
            Self::All => true,
            Self::Key(wanted) => key == Some(wanted.as_ref()),
            Self::Prefix(prefix) => key.is_some_and(|key| key.starts_with(prefix)),
        }
    }

    /// The filter with everything copied.
    #[must_use]
    pub fn into_owned(self) -> KeyFilter<'static> {
        match self {
            Self::All => KeyFilter::All,
            Self::Key(key) => KeyFilter::Key(Cow::Owned(key.into_owned())),
            Self::Prefix(prefix) => KeyFilter::Prefix(Cow::Owned(prefix.into_owned())),
        }
    }
}
