//! What is written reads back, and what was not written does no harm.

use std::borrow::Cow;

use anabranch_core::batch::{Batch, Operation};
use anabranch_core::cursor::Order;
use anabranch_core::id::{BrokerId, Epoch, Offset, Origin, PartitionId, Sequence};
use anabranch_core::producer::ProducerStamp;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::*;
use crate::error::{Code, Problem};
use crate::record::{Placement, Record, build_batches};
use crate::ws::*;

fn text() -> impl Strategy<Value = Cow<'static, str>> {
    any::<String>().prop_map(Cow::Owned)
}

fn bytes() -> impl Strategy<Value = Cow<'static, [u8]>> {
    vec(any::<u8>(), 0..40).prop_map(Cow::Owned)
}

/// In JSON, blanks around a value are lost; so there are none here.
fn value() -> impl Strategy<Value = Cow<'static, [u8]>> {
    let json = prop_oneof![
        Just("null".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        any::<(u8, bool)>().prop_map(|(n, yes)| format!("{{\"n\":{n},\"yes\":[{yes}]}}")),
    ];
    prop_oneof![
        json.prop_map(|text| Cow::Owned(text.into_bytes())),
        bytes().prop_map(|bytes| Cow::Owned([b"\xff", bytes.as_ref()].concat())),
    ]
}

fn record() -> impl Strategy<Value = Record<'static>> {
    let headers = vec((text(), option::of(bytes())), 0..3);
    let timestamp = option::of(any::<i64>());
    (
        option::of(bytes()),
        option::of(value()),
        headers,
        timestamp,
        any::<bool>(),
    )
        .prop_map(|(key, value, headers, timestamp, delete)| Record {
            key,
            value,
            headers,
            timestamp,
            operation: if delete {
                Operation::Delete
            } else {
                Operation::Put
            },
        })
}

fn hello() -> impl Strategy<Value = ClientMessage<'static>> {
    (any::<u64>(), option::of(text()), option::of(text())).prop_map(|(version, client, cluster)| {
        ClientMessage::Hello(Hello {
            version,
            client,
            cluster,
        })
    })
}

fn publish() -> impl Strategy<Value = ClientMessage<'static>> {
    let payload = prop_oneof![
        bytes().prop_map(Payload::Batch),
        vec(record(), 0..5).prop_map(Payload::Records),
    ];
    let stamp = (0u64..1 << 63, 0u16..1 << 15, 0u32..1 << 31);
    let partition = option::of(any::<u16>().prop_map(PartitionId::new));
    (
        any::<u64>(),
        text(),
        partition,
        payload,
        option::of(stamp),
        ack_level(),
    )
        .prop_map(|(id, stream, partition, payload, stamp, ack)| {
            let of_records = matches!(payload, Payload::Records(_));
            let stamp = stamp.filter(|_| of_records);
            ClientMessage::Publish(Publish {
                id,
                stream,
                partition,
                payload,
                producer: stamp.map(|(id, epoch, sequence)| ProducerStamp {
                    id,
                    epoch,
                    sequence,
                }),
                ack,
            })
        })
}

fn ack_level() -> impl Strategy<Value = AckLevel> {
    prop_oneof![
        Just(AckLevel::Disk),
        Just(AckLevel::Memory),
        Just(AckLevel::parse("regions:3").unwrap()),
        Just(AckLevel::parse("region:eu,us").unwrap()),
    ]
}

fn subscription() -> impl Strategy<Value = SubscriptionId> {
    any::<u32>().prop_map(SubscriptionId::new)
}

fn subscribe() -> impl Strategy<Value = ClientMessage<'static>> {
    let keys = prop_oneof![
        Just(KeyFilter::All),
        bytes().prop_map(KeyFilter::Key),
        bytes().prop_map(KeyFilter::Prefix),
    ];
    let partitions = vec(any::<u16>().prop_map(PartitionId::new), 0..4);
    let from = option::of(text());
    (
        subscription(),
        text(),
        partitions,
        keys,
        from,
        any::<[bool; 2]>(),
        any::<u64>(),
    )
        .prop_map(
            |(subscription, stream, partitions, keys, from, [total, batch], credit)| {
                ClientMessage::Subscribe(Subscribe {
                    subscription,
                    stream,
                    partitions,
                    keys,
                    from,
                    order: if total { Order::Total } else { Order::Local },
                    format: if batch {
                        Format::Batch
                    } else {
                        Format::Records
                    },
                    credit,
                })
            },
        )
}

fn client_message() -> impl Strategy<Value = ClientMessage<'static>> {
    prop_oneof![
        hello(),
        publish(),
        subscribe(),
        (subscription(), any::<u64>()).prop_map(|(subscription, bytes)| ClientMessage::Credit {
            subscription,
            bytes
        }),
        subscription().prop_map(|subscription| ClientMessage::Unsubscribe { subscription }),
        any::<u64>().prop_map(|id| ClientMessage::Ping { id }),
    ]
}

fn origin() -> impl Strategy<Value = Origin> {
    any::<(u64, u32)>().prop_map(|(broker, epoch)| Origin {
        broker: BrokerId::new(broker),
        epoch: Epoch::new(epoch),
    })
}

fn ack() -> impl Strategy<Value = ServerMessage<'static>> {
    let row = any::<(u64, u16, Option<u64>, u32, Option<u32>)>().prop_map(
        |(id, partition, offset, records, index)| AckRow {
            id,
            partition: PartitionId::new(partition),
            offset: offset.map(Offset::new),
            records,
            index,
        },
    );
    (
        origin(),
        any::<u64>(),
        any::<bool>(),
        text(),
        vec(row, 0..20),
    )
        .prop_map(|(origin, sequence, memory, token, rows)| {
            ServerMessage::Ack(Ack {
                origin,
                sequence: Sequence::new(sequence),
                durability: if memory {
                    Durability::Memory
                } else {
                    Durability::Disk
                },
                token,
                rows,
            })
        })
}

fn deliver() -> impl Strategy<Value = ServerMessage<'static>> {
    let delivered = (any::<u64>(), record()).prop_map(|(offset, record)| Delivered {
        partition: None,
        offset: Offset::new(offset),
        record,
    });
    let payload = prop_oneof![
        bytes().prop_map(PartPayload::Batch),
        vec(delivered, 0..4).prop_map(PartPayload::Records),
    ];
    let part =
        (any::<(u16, u64, u32)>(), payload).prop_map(|((partition, offset, index), payload)| {
            Part {
                partition: PartitionId::new(partition),
                offset: Offset::new(offset),
                index,
                payload,
            }
        });
    (
        subscription(),
        text(),
        origin(),
        any::<(u64, u64)>(),
        vec(part, 0..4),
    )
        .prop_map(
            |(subscription, cursor, origin, (sequence, timestamp), parts)| {
                ServerMessage::Deliver(Deliver {
                    subscription,
                    cursor,
                    origin,
                    sequence: Sequence::new(sequence),
                    timestamp,
                    parts,
                })
            },
        )
}

fn problem() -> impl Strategy<Value = Problem> {
    let code = (0..Code::ALL.len()).prop_map(|n| Code::ALL[n]);
    let cursors = (option::of(any::<String>()), option::of(any::<String>()));
    (code, any::<String>(), cursors).prop_map(|(code, detail, (cursor, oldest))| Problem {
        cursor,
        oldest,
        ..Problem::new(code, detail)
    })
}

fn server_message() -> impl Strategy<Value = ServerMessage<'static>> {
    let row = (bytes(), value()).prop_map(|(key, value)| Row { key, value });
    let welcome = (any::<(u64, u64, u64)>(), text(), text(), text(), text());
    prop_oneof![
        ack(),
        deliver(),
        (subscription(), vec(row, 0..5))
            .prop_map(|(subscription, rows)| ServerMessage::Rows { subscription, rows }),
        (subscription(), text()).prop_map(|(subscription, cursor)| ServerMessage::Live {
            subscription,
            cursor
        }),
        (subscription(), text()).prop_map(|(subscription, cursor)| ServerMessage::Unsubscribed {
            subscription,
            cursor
        }),
        (
            option::of(any::<u64>()),
            option::of(subscription()),
            problem()
        )
            .prop_map(
                |(id, subscription, problem)| ServerMessage::Error(ErrorMessage {
                    id,
                    subscription,
                    problem
                })
            ),
        any::<u64>().prop_map(|id| ServerMessage::Pong { id }),
        welcome.prop_map(
            |((version, message_bytes, in_flight_bytes), server, cluster, broker, region)| {
                ServerMessage::Hello(Welcome {
                    version,
                    server,
                    cluster,
                    broker,
                    region,
                    limits: Limits {
                        message_bytes,
                        in_flight_bytes,
                    },
                })
            }
        ),
    ]
}

/// Cuts a message short at every place, or changes one of its bytes: nothing may panic.
fn harass(codec: Codec, message: &[u8], at: prop::sample::Index, to: u8) {
    let kind = codec.frame_kind();
    let mut changed = message.to_vec();
    let place = at.index(message.len());
    changed[place] = to;
    let _ = codec.decode_client(kind, &changed);
    let _ = codec.decode_server(kind, &changed);
    let cut = &message[..place];
    assert!(codec.decode_client(kind, cut).is_err());
    assert!(codec.decode_server(kind, cut).is_err());
}

proptest! {
    #[test]
    fn what_clients_say_reads_back(message in client_message(), at: prop::sample::Index, to: u8) {
        for codec in Codec::ALL {
            let mut bytes = Vec::new();
            codec.encode_client(&message, &mut bytes);
            let read = codec.decode_client(codec.frame_kind(), &bytes);
            prop_assert_eq!(read.as_ref(), Ok(&message));
            harass(codec, &bytes, at, to);
        }
    }

    #[test]
    fn what_brokers_say_reads_back(message in server_message(), at: prop::sample::Index, to: u8) {
        for codec in Codec::ALL {
            let mut bytes = Vec::new();
            codec.encode_server(&message, &mut bytes);
            let read = codec.decode_server(codec.frame_kind(), &bytes);
            prop_assert_eq!(read.as_ref(), Ok(&message));
            harass(codec, &bytes, at, to);
        }
    }

    #[test]
    fn garbage_does_no_harm(bytes in vec(any::<u8>(), 0..200)) {
        for codec in Codec::ALL {
            let _ = codec.decode_client(codec.frame_kind(), &bytes);
            let _ = codec.decode_server(codec.frame_kind(), &bytes);
        }
    }

    #[test]
    fn written_piece_by_piece_it_is_the_same(
        records in vec(record(), 1..6),
        head in (subscription(), any::<String>(), origin(), any::<(u64, u64)>()),
        offset in 0..u64::MAX / 2,
    ) {
        let now = 5;
        let batch = build_batches(&records, &Placement::new(1, now));
        // Timestamps far apart do not fit a batch.
        prop_assume!(batch.is_ok());
        let batch = batch.unwrap().remove(0).1;
        prop_assume!(Batch::parse(batch.bytes().clone(), anabranch_core::batch::Check::Records).is_ok());
        let (subscription, cursor, origin, (sequence, timestamp)) = head;
        let head = DeliverHead {
            subscription,
            cursor: &cursor,
            origin,
            sequence: Sequence::new(sequence),
            timestamp,
        };
        let part = PartHead { partition: PartitionId::new(3), offset: Offset::new(offset), index: 9 };
        let delivered = records.iter().zip(offset..).map(|(record, offset)| {
            let mut record = record.clone();
            record.timestamp.get_or_insert(now);
            Delivered { partition: None, offset: Offset::new(offset), record }
        });
        let whole = |payload| ServerMessage::Deliver(Deliver {
            subscription,
            cursor: Cow::Borrowed(&cursor),
            origin,
            sequence: Sequence::new(sequence),
            timestamp,
            parts: vec![Part { partition: part.partition, offset: part.offset, index: 9, payload }],
        });
        let as_records = whole(PartPayload::Records(delivered.collect()));
        let stored = [&batch.stored_prefix(part.offset)[..], &batch.bytes()[16..]].concat();
        let as_batch = whole(PartPayload::Batch(stored.into()));
        for codec in Codec::ALL {
            let kind = codec.frame_kind();
            let mut encoder = DeliverEncoder::begin(codec, &head, 0);
            let inflated = batch.records().unwrap();
            let written = encoder.records(&part, inflated.iter(), &KeyFilter::All, &(0..u32::MAX));
            prop_assert_eq!(written, Ok(records.len()));
            let bytes = encoder.finish();
            let read = codec.decode_server(kind, &bytes);
            prop_assert_eq!(read.as_ref(), Ok(&as_records));
            let mut encoder = DeliverEncoder::begin(codec, &head, 0);
            encoder.batch(&part, &batch);
            let bytes = encoder.finish();
            let read = codec.decode_server(kind, &bytes);
            prop_assert_eq!(read.as_ref(), Ok(&as_batch));
        }
    }
}

#[test]
fn a_part_without_matching_records_is_left_out() {
    let records = [
        Record::put(b"aa".as_slice(), b"1".as_slice()),
        Record::put(b"ab".as_slice(), b"2".as_slice()),
        Record::value(b"3".as_slice()),
    ];
    let batch = build_batches(&records, &Placement::new(1, 0))
        .unwrap()
        .remove(0)
        .1;
    let head = DeliverHead {
        subscription: SubscriptionId::new(1),
        cursor: "c",
        origin: Origin {
            broker: BrokerId::new(1),
            epoch: Epoch::new(1),
        },
        sequence: Sequence::new(1),
        timestamp: 0,
    };
    let part = PartHead {
        partition: PartitionId::new(0),
        offset: Offset::new(10),
        index: 0,
    };
    let inflated = batch.records().unwrap();
    let all = 0..u32::MAX;
    for codec in Codec::ALL {
        let mut encoder = DeliverEncoder::begin(codec, &head, 0);
        let mut add = |keys, indexes| encoder.records(&part, inflated.iter(), keys, indexes);
        let none = KeyFilter::Key(b"zz".as_slice().into());
        assert_eq!(add(&none, &all), Ok(0));
        let one = KeyFilter::Key(b"ab".as_slice().into());
        assert_eq!(add(&one, &all), Ok(1));
        assert_eq!(add(&one, &(0..1)), Ok(0));
        assert_eq!(add(&one, &(2..3)), Ok(0));
        let both = KeyFilter::Prefix(b"a".as_slice().into());
        assert_eq!(add(&both, &all), Ok(2));
        let bytes = encoder.finish();
        let Ok(ServerMessage::Deliver(deliver)) = codec.decode_server(codec.frame_kind(), &bytes)
        else {
            panic!("a deliver message");
        };
        assert_eq!(deliver.parts.len(), 2);
        let PartPayload::Records(records) = &deliver.parts[0].payload else {
            panic!("records were asked for");
        };
        assert_eq!(records[0].offset, Offset::new(11));
    }
}

#[test]
fn rows_of_an_acknowledgement_are_added_one_by_one() {
    let head = AckHead {
        origin: Origin {
            broker: BrokerId::new(7),
            epoch: Epoch::new(1),
        },
        sequence: Sequence::new(44),
        durability: Durability::Disk,
        token: "dabc",
    };
    let rows: Vec<_> = (0..1000u32)
        .map(|n| AckRow {
            id: u64::from(n),
            partition: PartitionId::new(1),
            offset: Some(Offset::new(u64::from(n) * 3)),
            records: 3,
            index: (n % 7 != 0).then_some(n * 3),
        })
        .collect();
    for codec in Codec::ALL {
        let mut encoder = AckEncoder::begin(codec, &head, rows.len());
        rows.iter().for_each(|row| encoder.row(row));
        let bytes = encoder.finish();
        let read = codec.decode_server(codec.frame_kind(), &bytes);
        let Ok(ServerMessage::Ack(ack)) = read else {
            panic!("an ack, not {read:?}");
        };
        assert_eq!(ack.rows, rows);
        assert_eq!((ack.origin, ack.sequence), (head.origin, head.sequence));
    }
}
