//! Reports as they go over a link: as differences to what was reported before.
//!
//! ```text
//! for each report
//!   broker    0 and u64 of one that was not reported yet, or its number and one; a varint
//!   flags u8  1 it is a difference to the report before it, not to the broker's last one
//!             2 it names origins that have no number yet
//!   promise   milliseconds since the broker's last one, zigzag varint; the rest, varint
//!   origins   if new: count varint; broker u64, epoch u32 each. They get the next numbers
//!   edits     see `vectors`
//! ```
//!
//! Brokers get numbers in the order in which they are reported first.

use std::collections::HashMap;

use anabranch_core::id::BrokerId;
use anabranch_core::stability::Report;
use anabranch_core::wire::{Reader, put_varint};
use bytes::{BufMut, BytesMut};

use super::BadMessage;
use super::vectors::{
    Dense, Numbers, differing, most_origins, put_edits, put_stamp, read_edits, read_stamp,
};

/// Brokers that a link numbers at most.
const MOST_BROKERS: usize = 512;

const LIKE_THE_ONE_BEFORE: u8 = 1;
const NEW_ORIGINS: u8 = 2;

/// What both sides of a link remember of the reports that went over it.
#[derive(Debug, Default)]
struct Model {
    origins: Numbers,
    brokers: HashMap<BrokerId, usize>,
    last: Vec<Last>,
}

/// The last report of a broker.
#[derive(Debug)]
struct Last {
    broker: BrokerId,
    applied: Dense,
    millis: u64,
}

impl Model {
    fn add(&mut self, broker: BrokerId) -> usize {
        let number = self.last.len();
        self.brokers.insert(broker, number);
        self.last.push(Last {
            broker,
            applied: Dense::new(),
            millis: 0,
        });
        number
    }

    /// Whether another broker can be numbered. What is remembered of it is as long as all others.
    fn has_room(&self) -> bool {
        let brokers = self.last.len();
        brokers < MOST_BROKERS && self.origins.len() <= most_origins(brokers + 1)
    }

    /// What a report is compared with.
    fn before(&self, number: usize) -> Dense {
        let mut before = self.last[number].applied.clone();
        before.resize(self.origins.len(), 0);
        before
    }
}

/// Writes the reports that go over a link in one direction. All that it writes has to be sent.
#[derive(Debug, Default)]
pub(super) struct ReportWriter {
    model: Model,
}

impl ReportWriter {
    /// Appends those that can go as differences. The others are left over: they name more brokers or
    /// origins than a link numbers.
    pub(super) fn put(&mut self, reports: &[Report], out: &mut BytesMut) -> Vec<Report> {
        let mut left_over = Vec::new();
        let mut before = None;
        for report in reports {
            match self.put_one(report, before, out) {
                None => left_over.push(report.clone()),
                number => before = number,
            }
        }
        left_over
    }

    fn put_one(
        &mut self,
        report: &Report,
        before: Option<usize>,
        out: &mut BytesMut,
    ) -> Option<usize> {
        let model = &mut self.model;
        let known = model.brokers.get(&report.broker).copied();
        if known.is_none() && !model.has_room() {
            return None;
        }
        let brokers = model.last.len() + usize::from(known.is_none());
        let new = (model.origins).new_of(&report.applied, most_origins(brokers))?;
        put_varint(out, known.map_or(0, |number| number as u64 + 1));
        if known.is_none() {
            out.put_u64_le(report.broker.get());
        }
        let number = known.unwrap_or_else(|| model.add(report.broker));
        let flags_at = out.len();
        out.put_u8(0);
        let millis = report.promise.millis();
        put_stamp(report.promise, model.last[number].millis, out);
        if !new.is_empty() {
            out[flags_at] |= NEW_ORIGINS;
            model.origins.put_new(&new, out);
        }
        let applied = model.origins.dense(&report.applied);
        let far = |of: usize| differing(&model.last[of].applied, &applied);
        let like = before.filter(|&before| far(before) < far(number));
        if like.is_some() {
            out[flags_at] |= LIKE_THE_ONE_BEFORE;
        }
        put_edits(&model.before(like.unwrap_or(number)), &applied, out);
        model.last[number].applied = applied;
        model.last[number].millis = millis;
        Some(number)
    }
}

/// Reads the reports that came over a link in one direction, from the first ones on.
#[derive(Debug, Default)]
pub(super) struct ReportReader {
    model: Model,
}

impl ReportReader {
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Vec<Report>, BadMessage> {
        let mut reader = Reader::new(bytes);
        let (mut reports, mut before) = (Vec::new(), None);
        while !reader.is_empty() {
            let (number, report) = self.read_one(&mut reader, before)?;
            reports.push(report);
            before = Some(number);
        }
        Ok(reports)
    }

    fn read_one(
        &mut self,
        reader: &mut Reader<'_>,
        before: Option<usize>,
    ) -> Result<(usize, Report), BadMessage> {
        let model = &mut self.model;
        let number = match reader.varint()? {
            0 => {
                let broker = BrokerId::new(reader.u64()?);
                if !model.has_room() || model.brokers.contains_key(&broker) {
                    return Err(BadMessage::Malformed);
                }
                model.add(broker)
            }
            number => usize::try_from(number - 1).map_err(|_| BadMessage::Malformed)?,
        };
        let flags = reader.u8()?;
        let last = model.last.get(number).ok_or(BadMessage::Malformed)?;
        let broker = last.broker;
        let promise = read_stamp(reader, last.millis)?;
        if flags & NEW_ORIGINS != 0 {
            let most = most_origins(model.last.len());
            model.origins.read_new(reader, most)?;
        }
        let like = match flags & LIKE_THE_ONE_BEFORE {
            0 => number,
            _ => before.ok_or(BadMessage::Malformed)?,
        };
        let applied = read_edits(reader, &model.before(like), model.origins.len())?;
        let report = Report {
            broker,
            applied: model.origins.sparse(&applied, |_, _| true),
            promise,
        };
        model.last[number].applied = applied;
        model.last[number].millis = promise.millis();
        Ok((number, report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anabranch_core::clock::HybridTimestamp;
    use anabranch_core::id::{Epoch, Origin, Sequence};
    use proptest::prelude::*;

    fn report(broker: u64, entries: &[(u64, u64)], promise: u64) -> Report {
        let entry = |&(broker, sequence)| {
            let origin = Origin {
                broker: BrokerId::new(broker),
                epoch: Epoch::new(1),
            };
            (origin, Sequence::new(sequence))
        };
        Report {
            broker: BrokerId::new(broker),
            applied: entries.iter().map(entry).collect(),
            promise: HybridTimestamp::new(promise),
        }
    }

    #[test]
    fn reports_of_brokers_that_hold_much_the_same_take_a_few_bytes_each() {
        let (mut writer, mut reader) = (ReportWriter::default(), ReportReader::default());
        let mut of_all = |sequence: u64| {
            let entries: Vec<_> = (1..=100).map(|broker| (broker, sequence)).collect();
            let reports: Vec<_> = (1..=100)
                .map(|broker| report(broker, &entries, sequence << 16))
                .collect();
            let mut out = BytesMut::new();
            assert_eq!(writer.put(&reports, &mut out), []);
            assert_eq!(reader.read(&out).unwrap(), reports);
            out.len()
        };
        of_all(1_700_000_000_000);
        let bytes = of_all(1_700_000_000_001);
        assert!(bytes < 600, "{bytes}");
    }

    #[test]
    fn reports_of_more_brokers_than_a_link_numbers_are_left_over() {
        let (mut writer, mut reader) = (ReportWriter::default(), ReportReader::default());
        let reports: Vec<_> = (0..MOST_BROKERS as u64 + 2)
            .map(|broker| report(broker, &[(broker, 1)], 1))
            .collect();
        let mut out = BytesMut::new();
        let left_over = writer.put(&reports, &mut out);
        assert_eq!(left_over, reports[MOST_BROKERS..]);
        assert_eq!(reader.read(&out).unwrap(), reports[..MOST_BROKERS]);
        // Of few brokers, more origins can be numbered.
        let (mut writer, mut reader) = (ReportWriter::default(), ReportReader::default());
        let long: Vec<_> = (0..1400).map(|broker| (broker, 1)).collect();
        let reports: Vec<_> = (0..200).map(|broker| report(broker, &long, 1)).collect();
        let mut out = BytesMut::new();
        let left_over = writer.put(&reports, &mut out);
        assert_eq!(left_over, reports[187..], "those are 262,144 entries");
        assert_eq!(reader.read(&out).unwrap(), reports[..187]);
    }

    proptest! {
        #[test]
        fn reports_read_back_in_whatever_order_they_come(
            rounds in prop::collection::vec(
                prop::collection::vec(
                    (0u64..6, prop::collection::vec((0u64..8, 1u64..9), 0..8), any::<u64>()), 0..5
                ), 0..12)
        ) {
            let (mut writer, mut reader) = (ReportWriter::default(), ReportReader::default());
            for round in rounds {
                let reports: Vec<_> = round
                    .iter()
                    .map(|(broker, entries, promise)| report(*broker, entries, *promise))
                    .collect();
                let mut out = BytesMut::new();
                prop_assert_eq!(writer.put(&reports, &mut out), []);
                prop_assert_eq!(reader.read(&out).unwrap(), reports);
            }
        }

        #[test]
        fn garbage_is_no_report_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = ReportReader::default().read(&bytes);
        }
    }
}
