//! `rmp-serde` as the other side: what it writes we read, and what we write it reads.

use std::collections::BTreeMap;

use anabranch_core::id::{BrokerId, Epoch, Offset, Origin, PartitionId, Sequence};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::codec::{AckEncoder, AckHead, Codec, FrameKind};
use crate::ws::{AckRow, ClientMessage, Durability, Payload};

#[derive(Serialize, Debug)]
struct Record {
    key: ByteBuf,
    value: ByteBuf,
    headers: BTreeMap<String, ByteBuf>,
    timestamp: i64,
}

#[derive(Serialize, Debug)]
struct Publish {
    r#type: &'static str,
    id: u64,
    stream: String,
    records: Vec<Record>,
}

/// Publish, partition, offset, records, index.
type Row = (u64, u16, Option<u64>, u32, Option<u32>);

#[derive(Deserialize)]
struct Ack {
    r#type: String,
    origin: String,
    sequence: u64,
    durability: String,
    token: String,
    acks: Vec<Row>,
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300).prop_map(ByteBuf::from);
    let headers = prop::collection::btree_map("[a-z]{1,40}", bytes(), 0..3);
    let record =
        (bytes(), bytes(), headers, any::<i64>()).prop_map(|(key, value, headers, timestamp)| {
            Record {
                key,
                value,
                headers,
                timestamp,
            }
        });
    prop::collection::vec(record, 1..20)
}

fn rows() -> impl Strategy<Value = Vec<AckRow>> {
    let row = any::<Row>();
    let row = row.prop_map(|(id, partition, offset, records, index)| AckRow {
        id,
        partition: PartitionId::new(partition),
        offset: offset.map(Offset::new),
        records,
        index,
    });
    prop::collection::vec(row, 0..40)
}

proptest! {
    #[test]
    fn what_another_writes_is_read(id in any::<u64>(), stream in "[a-z]{1,60}", records in records()) {
        let publish = Publish { r#type: "publish", id, stream, records };
        let message = rmp_serde::to_vec_named(&publish).unwrap();
        let ClientMessage::Publish(read) =
            Codec::Msgpack.decode_client(FrameKind::Binary, &message).unwrap()
        else {
            panic!("not a publish");
        };
        prop_assert_eq!(read.id, id);
        prop_assert_eq!(&read.stream, &publish.stream);
        let Payload::Records(read) = read.payload else { panic!("no records") };
        prop_assert_eq!(read.len(), publish.records.len());
        for (read, wrote) in read.iter().zip(&publish.records) {
            prop_assert_eq!(read.key.as_deref(), Some(&wrote.key[..]));
            prop_assert_eq!(read.value.as_deref(), Some(&wrote.value[..]));
            prop_assert_eq!(read.timestamp, Some(wrote.timestamp));
            let headers: BTreeMap<String, ByteBuf> = read
                .headers
                .iter()
                .map(|(name, value)| {
                    let value = value.as_deref().unwrap_or_default();
                    (name.to_string(), ByteBuf::from(value))
                })
                .collect();
            prop_assert_eq!(&headers, &wrote.headers);
        }
    }

    #[test]
    fn what_is_written_another_reads(broker in any::<u64>(), sequence in any::<u64>(), rows in rows()) {
        let origin = Origin { broker: BrokerId::new(broker), epoch: Epoch::new(3) };
        let head = AckHead {
            origin,
            sequence: Sequence::new(sequence),
            durability: Durability::Disk,
            token: "token",
        };
        let mut encoder = AckEncoder::begin(Codec::Msgpack, &head, rows.len());
        for row in &rows {
            encoder.row(row);
        }
        let ack: Ack = rmp_serde::from_slice(&encoder.finish()).unwrap();
        prop_assert_eq!((ack.r#type.as_str(), ack.durability.as_str()), ("ack", "disk"));
        prop_assert_eq!((ack.origin, ack.sequence), (origin.to_string(), sequence));
        prop_assert_eq!(ack.token.as_str(), "token");
        let wrote: Vec<_> = rows
            .iter()
            .map(|row| {
                let offset = row.offset.map(Offset::get);
                (row.id, row.partition.get(), offset, row.records, row.index)
            })
            .collect();
        prop_assert_eq!(ack.acks, wrote);
    }
}
