//! What clients do: they write everywhere, and some carry a token from broker to broker.

use anabranch_core::batch::{BatchBuilder, NewRecord, Operation};
use anabranch_core::id::{PartitionId, StreamId};
use anabranch_core::sequencer::Publish;

use super::broker::Request;
use super::table::{EVENTS, ROWS};
use super::verdict::Checked;
use super::world::{Event, World};

impl World {
    pub(super) fn write(&mut self, at: usize) -> Checked {
        let next = self.next_in(self.plan.write_every);
        self.agenda.after(next, Event::Write(at));
        if self.machines[at].running.is_none() {
            return Ok(());
        }
        self.publish(at, None)
    }

    pub(super) fn publish(&mut self, at: usize, client: Option<usize>) -> Checked {
        if let Some(running) = &self.machines[at].running
            && !running.may_write()
        {
            if let Some(client) = client {
                self.clients[client].waits = None;
            }
            return Ok(());
        }
        let group = (0..self.rng.u8(1..3)).map(|_| self.batch()).collect();
        if let Some(running) = &mut self.machines[at].running {
            running.inbox.push_back(Request::Publish(group, client));
        }
        self.work(at)
    }

    fn batch(&mut self) -> Publish {
        let mut builder = BatchBuilder::default();
        let is_event = self.rng.u8(..4) == 0;
        for _ in 0..self.rng.u8(1..4) {
            self.written += 1;
            let key = [b'a' + self.rng.u8(..self.plan.keys)];
            let value = format!("{:04}", self.written);
            let deletes = !is_event && self.rng.u8(..4) == 0;
            let record = NewRecord {
                operation: match deletes {
                    true => Operation::Delete,
                    false => Operation::Put,
                },
                key: (!is_event).then_some(&key[..]),
                value: (!deletes).then_some(value.as_bytes()),
                ..NewRecord::default()
            };
            builder.push(&record).expect("it is short");
        }
        let stream: StreamId = if is_event { EVENTS } else { ROWS };
        Publish {
            stream,
            partition: PartitionId::new(self.rng.u16(..3)),
            batch: builder.finish(None).expect("it is not empty"),
        }
    }

    /// A client goes to some broker, reads what its token lets it, and perhaps writes.
    pub(super) fn client(&mut self, number: usize) -> Checked {
        let next = self.next_in(4 * self.plan.write_every);
        self.agenda.after(next, Event::Client(number));
        let at = self.rng.usize(..self.machines.len());
        let key = [b'a' + self.rng.u8(..self.plan.keys)];
        let writes = self.rng.bool();
        let Some(running) = &self.machines[at].running else {
            return Ok(());
        };
        let client = &mut self.clients[number];
        if client.waits.is_some() || !client.may_read(&running.table) {
            return Ok(());
        }
        self.outcome.reads += 1;
        client.read(&running.table, &key)?;
        if writes {
            client.waits = Some(at);
            return self.publish(at, Some(number));
        }
        Ok(())
    }

    pub(super) fn flush(&mut self, at: usize) -> Checked {
        let next = self.next_in(8 * self.plan.write_every);
        self.agenda.after(next, Event::Flush(at));
        let machine = &mut self.machines[at];
        if let Some(running) = &mut machine.running {
            running.table.flush()?;
            machine.stored = running.table.stored().clone();
        }
        Ok(())
    }
}
