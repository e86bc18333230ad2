//! Takes deliveries and checks that nothing is missing.

use std::net::SocketAddr;

use anabranch_core::batch::{Batch, Records};
use anabranch_core::cursor::Order;
use anabranch_protocol::ws::{
    ClientMessage, Deliver, Format, KeyFilter, Part, PartPayload, ServerMessage, Subscribe,
    SubscriptionId,
};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;

use crate::cli;
use crate::wire::{self, Receiver, Transmitter};

/// Bytes that the broker may send ahead. Granted anew when half of them are used.
const CREDIT: u64 = 64 * 1024 * 1024;

const SUBSCRIPTION: SubscriptionId = SubscriptionId::new(1);

/// One connection with one subscription, from the next record on.
pub(crate) struct Subscriber {
    transmitter: Transmitter,
    receiver: Receiver,
    /// Offset that the next record must have; known with the first one.
    next: Option<u64>,
    /// Bytes of messages for which credit has been given back.
    granted: u64,
}

/// What is done with records.
pub(crate) enum Look<'l> {
    /// They are counted.
    Count,
    /// Their values are shown to this; batches have their CRC checked.
    Values(&'l mut dyn FnMut(&[u8])),
}

impl Subscriber {
    /// Subscribes, and waits until the subscription is live.
    pub(crate) async fn connect(
        address: SocketAddr,
        stream: &str,
        format: cli::Format,
    ) -> Result<Self> {
        let (transmitter, mut receiver) = wire::open(address).await?;
        let subscribe = ClientMessage::Subscribe(Subscribe {
            subscription: SUBSCRIPTION,
            stream: stream.into(),
            partitions: Vec::new(),
            keys: KeyFilter::All,
            from: Some("latest".into()),
            order: Order::Local,
            format: match format {
                cli::Format::Batch => Format::Batch,
                cli::Format::Records => Format::Records,
            },
            credit: CREDIT,
        });
        transmitter.send(&subscribe).await?;
        match receiver.message().await? {
            ServerMessage::Live { .. } => {}
            other => bail!("the broker sent {other:?} where the subscription goes live"),
        }
        Ok(Self {
            transmitter,
            receiver,
            next: None,
            granted: 0,
        })
    }

    /// Waits for a message; returns how many records it brought.
    ///
    /// # Errors
    /// When records are missing, come twice, or cannot be read.
    pub(crate) async fn take(&mut self, look: Look<'_>) -> Result<usize> {
        let message = self.receiver.message().await?;
        let taken = match message {
            ServerMessage::Deliver(deliver) => take_parts(&deliver, &mut self.next, look)?,
            other => bail!("the broker sent {other:?} to a subscriber"),
        };
        let used = self.receiver.received() - self.granted;
        if used >= CREDIT / 2 {
            self.granted += used;
            let credit = ClientMessage::Credit {
                subscription: SUBSCRIPTION,
                bytes: used,
            };
            self.transmitter.send(&credit).await?;
        } else if self.receiver.pong_is_due() {
            self.transmitter.write(&[]).await?;
        }
        Ok(taken)
    }
}

fn take_parts(deliver: &Deliver<'_>, next: &mut Option<u64>, mut look: Look<'_>) -> Result<usize> {
    let mut taken = 0;
    for part in &deliver.parts {
        let begins = part.offset.get();
        let expected = next.unwrap_or(begins);
        ensure!(
            begins == expected,
            "a subscriber was given offset {begins} where {expected} is next"
        );
        let records = count(part)?;
        if let Look::Values(value) = &mut look {
            each_value(part, value)?;
        }
        *next = Some(begins + records as u64);
        taken += records;
    }
    Ok(taken)
}

/// Where a record batch says how many records are in it.
const COUNT_AT: usize = 57;

fn count(part: &Part<'_>) -> Result<usize> {
    match &part.payload {
        PartPayload::Batch(batch) => {
            let field = batch.get(COUNT_AT..).and_then(<[u8]>::first_chunk);
            let count = u32::from_be_bytes(*field.context("a batch is cut off")?);
            Ok(count as usize)
        }
        PartPayload::Records(records) => Ok(records.len()),
    }
}

fn each_value(part: &Part<'_>, value: &mut dyn FnMut(&[u8])) -> Result<()> {
    match &part.payload {
        PartPayload::Batch(batch) => {
            for record in records_of(batch)?.iter() {
                value(record?.value.unwrap_or_default());
            }
        }
        PartPayload::Records(records) => {
            for delivered in records {
                value(delivered.record.value.as_deref().unwrap_or_default());
            }
        }
    }
    Ok(())
}

/// Checks the batch's CRC as well.
fn records_of(batch: &[u8]) -> Result<Records> {
    let batch = Batch::reopen(Bytes::copy_from_slice(batch))?;
    Ok(batch.records()?)
}

#[cfg(test)]
mod tests {
    use anabranch_core::id::{Offset, PartitionId};

    use super::*;
    use crate::frames::Values;

    fn part(offset: u64, batch: &[u8]) -> Part<'_> {
        Part {
            partition: PartitionId::new(0),
            offset: Offset::new(offset),
            index: 0,
            payload: PartPayload::Batch(batch.into()),
        }
    }

    #[test]
    fn records_of_a_batch_are_counted_and_shown() {
        let mut builder = anabranch_core::batch::BatchBuilder::default();
        for number in 0..3 {
            let value = Values::new(30).value(number);
            let record = anabranch_core::batch::NewRecord {
                value: Some(&value),
                ..Default::default()
            };
            builder.push(&record).unwrap();
        }
        let batch = builder.finish(None).unwrap();
        let part = part(5, batch.bytes());
        assert_eq!(count(&part).unwrap(), 3);
        let mut seen = Vec::new();
        each_value(&part, &mut |value| seen.push(Values::number_of(value))).unwrap();
        assert_eq!(seen, [Some(0), Some(1), Some(2)]);
    }
}
