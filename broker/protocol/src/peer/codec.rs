//! Messages between brokers as bytes.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_core::audit::Audit;
use anabranch_core::clock::HybridTimestamp;
use anabranch_core::exchange::Ask;
use anabranch_core::frame::Chain;
use anabranch_core::id::{BrokerId, ClusterId, Epoch, Origin, RegionName, Sequence, StreamId};
use anabranch_core::limits::MAX_CONTEXT_BYTES;
use anabranch_core::members::Standing;
use anabranch_core::recall::Recall;
use anabranch_core::stability::Report;
use anabranch_core::vector::VersionVector;
use anabranch_core::wire::Malformed;
use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};

use super::block::Block;
use super::reports::{ReportReader, ReportWriter};
use super::{BadMessage, Heads, Hello, LENGTH_BYTES, MAX_MESSAGE_BYTES, PeerMessage};
use crate::error::Code;

/// Bytes of a message's checksum.
const CRC_BYTES: usize = 4;

/// Reports in one message at most.
const REPORTS_AT_ONCE: usize = 100;

const _: () = assert!(REPORTS_AT_ONCE * MAX_CONTEXT_BYTES < MAX_MESSAGE_BYTES);

const MAGIC: &[u8; 8] = b"ABPEER01";

const HELLO: u8 = 1;
const ASK: u8 = 2;
const BLOCK: u8 = 3;
const CREDIT: u8 = 4;
const REPORTS: u8 = 5;
const BYE: u8 = 6;
const PING: u8 = 7;
const WITHHELD: u8 = 8;
const AUDIT: u8 = 9;
const RECALLS: u8 = 10;
const HELD: u8 = 11;
const REPORT_EDITS: u8 = 12;

impl From<TryGetError> for BadMessage {
    fn from(_: TryGetError) -> Self {
        Self::Malformed
    }
}

impl From<Malformed> for BadMessage {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Writes the messages that go over a link in one direction. Every message that it writes has to be
/// sent: reports are written as differences to those before.
#[derive(Debug, Default)]
pub struct Encoder {
    reports: ReportWriter,
}

impl Encoder {
    /// Appends a message, its length in front.
    pub fn encode(&mut self, message: &PeerMessage, out: &mut BytesMut) {
        let PeerMessage::Reports(reports) = message else {
            return enclose(out, |out| put(message, out));
        };
        // A message has room for so many, though each names as many origins as there can be.
        for reports in reports.chunks(REPORTS_AT_ONCE) {
            let mut left_over = Vec::new();
            enclose(out, |out| {
                out.put_u8(REPORT_EDITS);
                left_over = self.reports.put(reports, out);
            });
            if !left_over.is_empty() {
                enclose(out, |out| put_reports(&left_over, out));
            }
        }
    }
}

/// Reads the messages that came over a link in one direction, from the first one on.
#[derive(Debug, Default)]
pub struct Decoder {
    reports: ReportReader,
}

impl Decoder {
    /// Reads a message; `bytes` is what follows its length.
    ///
    /// # Errors
    /// When they are something else.
    pub fn decode(&mut self, mut bytes: Bytes) -> Result<PeerMessage, BadMessage> {
        if bytes.try_get_u32_le()? != crc32c::crc32c(&bytes) {
            return Err(BadMessage::Crc);
        }
        match bytes.first() {
            Some(&REPORT_EDITS) => Ok(PeerMessage::Reports(self.reports.read(&bytes[1..])?)),
            _ => read(bytes),
        }
    }
}

/// Puts length and checksum around a message.
fn enclose(out: &mut BytesMut, put: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u64_le(0);
    put(out);
    let body = start + LENGTH_BYTES + CRC_BYTES;
    let length = u32::try_from(out.len() - start - LENGTH_BYTES).expect("messages are bounded");
    let crc = crc32c::crc32c(&out[body..]);
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    out[start + LENGTH_BYTES..body].copy_from_slice(&crc.to_le_bytes());
}

/// Appends kind and body.
fn put(message: &PeerMessage, out: &mut BytesMut) {
    match message {
        PeerMessage::Hello(hello) => put_hello(hello, out),
        PeerMessage::Ask { ask, window } => {
            out.put_u8(ASK);
            out.put_u64_le(*window);
            put_brokers(out, &ask.of);
            put_vector(out, &ask.held);
        }
        PeerMessage::Block {
            compressed,
            inflated,
            block,
        } => {
            out.put_u8(BLOCK);
            out.put_u8(u8::from(*compressed));
            out.put_u32_le(block.credit);
            out.put_u64_le(block.proof);
            out.put_u32_le(*inflated);
            put_length(out, block.heads.len());
            out.put_slice(&block.heads);
            out.put_slice(&block.bodies);
        }
        PeerMessage::Credit(bytes) => {
            out.put_u8(CREDIT);
            out.put_u64_le(*bytes);
        }
        PeerMessage::Reports(reports) => put_reports(reports, out),
        PeerMessage::Bye { code, message } => {
            out.put_u8(BYE);
            put_text(out, code.code());
            put_text(out, message);
        }
        PeerMessage::Ping => out.put_u8(PING),
        PeerMessage::Audit(audit) => put_audit(audit, out),
        PeerMessage::Withheld(origin, from) => {
            out.put_u8(WITHHELD);
            put_origin(out, *origin);
            out.put_u64_le(from.get());
        }
        PeerMessage::Held(held) => {
            out.put_u8(HELD);
            put_vector(out, held);
        }
        PeerMessage::Recalls(recalls) => put_recalls(recalls, out),
    }
}

fn put_reports(reports: &[Report], out: &mut BytesMut) {
    out.put_u8(REPORTS);
    put_length(out, reports.len());
    for report in reports {
        out.put_u64_le(report.broker.get());
        out.put_u64_le(report.promise.get());
        put_vector(out, &report.applied);
    }
}

fn put_recalls(recalls: &[Recall], out: &mut BytesMut) {
    out.put_u8(RECALLS);
    put_length(out, recalls.len());
    for recall in recalls {
        put_origin(out, recall.origin);
        put_brokers(out, &recall.answered);
        put_vector(out, &recall.held);
    }
}

fn put_audit(audit: &Audit, out: &mut BytesMut) {
    out.put_u8(AUDIT);
    out.put_u64_le(audit.stream.get());
    out.put_u64_le(audit.vector);
    out.put_u128_le(audit.sum);
    out.put_u64_le(audit.rows);
    put_bytes(out, &audit.from);
    out.put_u8(u8::from(audit.to.is_some()));
    put_bytes(out, audit.to.as_deref().unwrap_or_default());
}

fn put_hello(hello: &Hello, out: &mut BytesMut) {
    out.put_u8(HELLO);
    out.put_slice(MAGIC);
    out.put_u32_le(hello.cluster.get());
    put_origin(out, hello.origin);
    put_text(out, hello.region.as_str());
    put_length(out, hello.heads.len());
    for (&origin, (sequence, chain)) in &hello.heads {
        put_origin(out, origin);
        out.put_u64_le(sequence.get());
        out.put_slice(chain.as_bytes());
    }
    put_length(out, hello.members.len());
    for (broker, standing) in &hello.members {
        out.put_u64_le(broker.get());
        out.put_u8(standing.code());
    }
    out.put_u8(u8::from(hello.complete));
}

fn put_text(out: &mut BytesMut, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.put_slice(bytes);
}

fn put_origin(out: &mut BytesMut, origin: Origin) {
    out.put_u64_le(origin.broker.get());
    out.put_u32_le(origin.epoch.get());
}

fn put_brokers(out: &mut BytesMut, brokers: &BTreeSet<BrokerId>) {
    put_length(out, brokers.len());
    for broker in brokers {
        out.put_u64_le(broker.get());
    }
}

fn put_vector(out: &mut BytesMut, vector: &VersionVector) {
    let at = out.len();
    out.put_u32_le(0);
    vector.encode(out);
    let length = u32::try_from(out.len() - at - 4).expect("vectors are bounded");
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

fn put_length(out: &mut BytesMut, length: usize) {
    out.put_u32_le(u32::try_from(length).expect("lists are bounded by the message"));
}

fn read(mut bytes: Bytes) -> Result<PeerMessage, BadMessage> {
    let kind = bytes.try_get_u8()?;
    let message = match kind {
        HELLO => PeerMessage::Hello(read_hello(&mut bytes)?),
        ASK => read_ask(&mut bytes)?,
        BLOCK => read_block(&mut bytes)?,
        CREDIT => PeerMessage::Credit(bytes.try_get_u64_le()?),
        REPORTS => PeerMessage::Reports(read_reports(&mut bytes)?),
        BYE => {
            // A newer broker may give a reason that is unknown here.
            let code = read_text(&mut bytes)?.parse().unwrap_or(Code::Unknown);
            let message = read_text(&mut bytes)?;
            PeerMessage::Bye { code, message }
        }
        PING => PeerMessage::Ping,
        AUDIT => PeerMessage::Audit(read_audit(&mut bytes)?),
        HELD => PeerMessage::Held(read_vector(&mut bytes)?),
        RECALLS => PeerMessage::Recalls(read_recalls(&mut bytes)?),
        WITHHELD => {
            let origin = read_origin(&mut bytes)?;
            PeerMessage::Withheld(origin, Sequence::new(bytes.try_get_u64_le()?))
        }
        kind => return Err(BadMessage::Kind(kind)),
    };
    if bytes.is_empty() {
        Ok(message)
    } else {
        Err(BadMessage::Malformed)
    }
}

fn read_block(bytes: &mut Bytes) -> Result<PeerMessage, BadMessage> {
    let compressed = match bytes.try_get_u8()? {
        0 => false,
        1 => true,
        _ => return Err(BadMessage::Malformed),
    };
    let credit = bytes.try_get_u32_le()?;
    let proof = bytes.try_get_u64_le()?;
    let inflated = bytes.try_get_u32_le()?;
    let heads = bytes.try_get_u32_le()? as usize;
    Ok(PeerMessage::Block {
        compressed,
        inflated,
        block: Block {
            heads: take(bytes, heads)?,
            bodies: bytes.split_off(0),
            credit,
            proof,
        },
    })
}

fn read_hello(bytes: &mut Bytes) -> Result<Hello, BadMessage> {
    if take(bytes, MAGIC.len()).ok().as_deref() != Some(MAGIC) {
        return Err(BadMessage::Magic);
    }
    let cluster = ClusterId::new(bytes.try_get_u32_le()?);
    let origin = read_origin(bytes)?;
    let region = RegionName::parse(&read_text(bytes)?).map_err(|_| BadMessage::Malformed)?;
    let mut heads = Heads::new();
    for _ in 0..bytes.try_get_u32_le()? {
        let origin = read_origin(bytes)?;
        let sequence = Sequence::new(bytes.try_get_u64_le()?);
        // What is not held is not named, and the last number there is has none after it.
        if sequence == Sequence::NONE || sequence.get() == u64::MAX {
            return Err(BadMessage::Malformed);
        }
        let mut chain = [0; 32];
        chain.copy_from_slice(&take(bytes, 32)?);
        heads.insert(origin, (sequence, Chain::new(chain)));
    }
    let mut members = BTreeMap::new();
    for _ in 0..bytes.try_get_u32_le()? {
        let broker = BrokerId::new(bytes.try_get_u64_le()?);
        let standing = Standing::from_code(bytes.try_get_u8()?);
        members.insert(broker, standing.ok_or(BadMessage::Malformed)?);
    }
    Ok(Hello {
        cluster,
        origin,
        region,
        heads,
        members,
        complete: match bytes.try_get_u8()? {
            0 => false,
            1 => true,
            _ => return Err(BadMessage::Malformed),
        },
    })
}

fn read_audit(bytes: &mut Bytes) -> Result<Audit, BadMessage> {
    let stream = StreamId::new(bytes.try_get_u64_le()?);
    let vector = bytes.try_get_u64_le()?;
    let sum = bytes.try_get_u128_le()?;
    let rows = bytes.try_get_u64_le()?;
    let length = bytes.try_get_u32_le()? as usize;
    let from = take(bytes, length)?;
    let has_end = bytes.try_get_u8()?;
    let length = bytes.try_get_u32_le()? as usize;
    let to = take(bytes, length)?;
    let to = match has_end {
        0 if to.is_empty() => None,
        1 => Some(to),
        _ => return Err(BadMessage::Malformed),
    };
    Ok(Audit {
        stream,
        from,
        to,
        vector,
        sum,
        rows,
    })
}

fn read_ask(bytes: &mut Bytes) -> Result<PeerMessage, BadMessage> {
    let window = bytes.try_get_u64_le()?;
    let of = read_brokers(bytes)?;
    let held = read_vector(bytes)?;
    Ok(PeerMessage::Ask {
        ask: Ask { held, of },
        window,
    })
}

fn read_recalls(bytes: &mut Bytes) -> Result<Vec<Recall>, BadMessage> {
    let mut recalls = Vec::new();
    for _ in 0..bytes.try_get_u32_le()? {
        recalls.push(Recall {
            origin: read_origin(bytes)?,
            answered: read_brokers(bytes)?,
            held: read_vector(bytes)?,
        });
    }
    Ok(recalls)
}

fn read_brokers(bytes: &mut Bytes) -> Result<BTreeSet<BrokerId>, BadMessage> {
    let mut brokers = BTreeSet::new();
    for _ in 0..bytes.try_get_u32_le()? {
        brokers.insert(BrokerId::new(bytes.try_get_u64_le()?));
    }
    Ok(brokers)
}

fn read_reports(bytes: &mut Bytes) -> Result<Vec<Report>, BadMessage> {
    let mut reports = Vec::new();
    for _ in 0..bytes.try_get_u32_le()? {
        reports.push(Report {
            broker: BrokerId::new(bytes.try_get_u64_le()?),
            promise: HybridTimestamp::new(bytes.try_get_u64_le()?),
            applied: read_vector(bytes)?,
        });
    }
    Ok(reports)
}

fn read_origin(bytes: &mut Bytes) -> Result<Origin, BadMessage> {
    Ok(Origin {
        broker: BrokerId::new(bytes.try_get_u64_le()?),
        epoch: Epoch::new(bytes.try_get_u32_le()?),
    })
}

fn read_vector(bytes: &mut Bytes) -> Result<VersionVector, BadMessage> {
    let length = bytes.try_get_u32_le()? as usize;
    VersionVector::decode(&take(bytes, length)?).map_err(|_| BadMessage::Malformed)
}

fn read_text(bytes: &mut Bytes) -> Result<String, BadMessage> {
    let length = bytes.try_get_u32_le()? as usize;
    String::from_utf8(take(bytes, length)?.into()).map_err(|_| BadMessage::Malformed)
}

pub(super) fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, BadMessage> {
    if length > bytes.len() {
        return Err(BadMessage::Malformed);
    }
    Ok(bytes.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn origin(broker: u64) -> Origin {
        Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(3),
        }
    }

    fn vector(entries: &[(u64, u64)]) -> VersionVector {
        let entries = entries.iter();
        entries
            .map(|&(broker, n)| (origin(broker), Sequence::new(n)))
            .collect()
    }

    fn audit(from: &'static [u8], to: Option<&'static [u8]>) -> PeerMessage {
        PeerMessage::Audit(Audit {
            stream: StreamId::new(77),
            from: Bytes::from_static(from),
            to: to.map(Bytes::from_static),
            vector: 5,
            sum: u128::MAX - 3,
            rows: 9,
        })
    }

    fn messages() -> Vec<PeerMessage> {
        let heads = [(origin(1), (Sequence::new(9), Chain::new([3; 32])))];
        vec![
            PeerMessage::Hello(Hello {
                cluster: ClusterId::of("c"),
                origin: origin(1),
                region: RegionName::parse("eu-west").unwrap(),
                heads: heads.into_iter().collect(),
                members: [(BrokerId::new(4), Standing::Parked)].into_iter().collect(),
                complete: true,
            }),
            PeerMessage::Ask {
                ask: Ask {
                    held: vector(&[(1, 4), (2, 1)]),
                    of: [1, 7].map(BrokerId::new).into_iter().collect(),
                },
                window: 1 << 24,
            },
            PeerMessage::Block {
                compressed: true,
                inflated: 77,
                block: Block {
                    heads: Bytes::from_static(b"heads"),
                    bodies: Bytes::from_static(b"bodies"),
                    credit: 99,
                    proof: 1 << 60,
                },
            },
            PeerMessage::Credit(4096),
            PeerMessage::Reports(vec![Report {
                broker: BrokerId::new(4),
                applied: vector(&[(4, 2)]),
                promise: HybridTimestamp::new(99),
            }]),
            PeerMessage::Bye {
                code: Code::OtherCluster,
                message: "no".to_owned(),
            },
            PeerMessage::Ping,
            PeerMessage::Withheld(origin(2), Sequence::new(8)),
            PeerMessage::Held(vector(&[(1, 4), (3, 8)])),
            PeerMessage::Recalls(vec![Recall {
                origin: origin(2),
                answered: [1, 7].map(BrokerId::new).into_iter().collect(),
                held: vector(&[(1, 4)]),
            }]),
            audit(b"a", Some(b"\xff")),
            audit(b"", None),
        ]
    }

    fn bytes_of(message: &PeerMessage) -> Bytes {
        let mut out = BytesMut::new();
        Encoder::default().encode(message, &mut out);
        let length = out.get_u32_le() as usize;
        assert_eq!(length, out.len());
        out.freeze()
    }

    fn decode(bytes: Bytes) -> Result<PeerMessage, BadMessage> {
        Decoder::default().decode(bytes)
    }

    #[test]
    fn every_message_reads_back_and_none_that_is_cut_short_does() {
        for message in messages() {
            let bytes = bytes_of(&message);
            assert_eq!(decode(bytes.clone()).unwrap(), message);
            let body = bytes.slice(CRC_BYTES..);
            for length in 0..body.len() {
                let short = body.slice(..length);
                let crc = crc32c::crc32c(&short).to_le_bytes();
                let read = decode([&crc[..], &short].concat().into());
                // A block's end is where the message ends.
                let is_block = matches!(message, PeerMessage::Block { .. });
                let is_report = matches!(message, PeerMessage::Reports(_)) && length == 1;
                assert!(
                    read.is_err() || is_block || is_report,
                    "{message:?} {length}"
                );
            }
        }
    }

    #[test]
    fn a_hello_with_a_sequence_that_cannot_be_is_refused() {
        let PeerMessage::Hello(hello) = messages().remove(0) else {
            panic!("the first message is a hello");
        };
        for (sequence, is_refused) in [
            (0, true),
            (1, false),
            (u64::MAX - 1, false),
            (u64::MAX, true),
        ] {
            let head = (Sequence::new(sequence), Chain::START);
            let claims = PeerMessage::Hello(Hello {
                heads: [(origin(1), head)].into_iter().collect(),
                ..hello.clone()
            });
            assert_eq!(decode(bytes_of(&claims)).is_err(), is_refused, "{sequence}");
        }
    }

    #[test]
    fn a_bit_that_is_flipped_in_any_message_is_noticed() {
        for message in messages() {
            let bytes = bytes_of(&message);
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.to_vec();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(damaged.into()), Err(BadMessage::Crc), "{message:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(bytes.into());
        }

        #[test]
        fn a_damaged_message_never_panics(which in 0usize..12, at in any::<usize>(), to in any::<u8>()) {
            let mut bytes = bytes_of(&messages()[which])[CRC_BYTES..].to_vec();
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = read(bytes.into());
        }
    }
}
