//! From the table of flights to events in the order in which they happened.
//!
//! **Departure.** `time_hour` is the scheduled hour in universal time; with the scheduled minute
//! and `dep_delay` it gives the moment. (On New York's clocks it shows `dep_time` for every flight.)
//!
//! **Arrival.** The table has no date and no delay that could be added: `arr_time` is what the
//! destination's clocks showed. So it is the first moment after the departure at which they do.
//! (It then lies at least `air_time` after the departure for every flight.)
//!
//! Flights without `dep_time` were cancelled and have no events; those without `arr_time` have no
//! arrival. At the same minute, the order of the table holds.

use std::collections::HashMap;

use anyhow::Context;

use super::calendar::{ATLANTIC, DAY, Minutes, NEW_YORK, Zone, civil_from_days, rfc3339};
use super::dataset::{Column, Columns, json_value};

/// What happened to a flight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// It left its gate.
    Departure,
    /// It reached its gate.
    Arrival,
}

/// One event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Event {
    at: Minutes,
    row: u32,
    kind: Kind,
}

impl Event {
    /// When it happened, in milliseconds since 1970.
    pub(super) fn timestamp_ms(self) -> u64 {
        u64::try_from(self.at * 60_000).unwrap_or(0)
    }
}

/// The table of flights, ready to be told event by event.
pub(super) struct Flights<'a> {
    columns: Named<'a>,
    events: Vec<Event>,
}

struct Named<'a> {
    time_hour: Column<'a>,
    minute: Column<'a>,
    dep_delay: Column<'a>,
    dep_time: Column<'a>,
    arr_time: Column<'a>,
    arr_delay: Column<'a>,
    carrier: Column<'a>,
    flight: Column<'a>,
    tailnum: Column<'a>,
    origin: Column<'a>,
    dest: Column<'a>,
    air_time: Column<'a>,
    distance: Column<'a>,
}

impl<'a> Named<'a> {
    fn new(flights: &'a Columns) -> anyhow::Result<Self> {
        Ok(Self {
            time_hour: flights.column("time_hour")?,
            minute: flights.column("minute")?,
            dep_delay: flights.column("dep_delay")?,
            dep_time: flights.column("dep_time")?,
            arr_time: flights.column("arr_time")?,
            arr_delay: flights.column("arr_delay")?,
            carrier: flights.column("carrier")?,
            flight: flights.column("flight")?,
            tailnum: flights.column("tailnum")?,
            origin: flights.column("origin")?,
            dest: flights.column("dest")?,
            air_time: flights.column("air_time")?,
            distance: flights.column("distance")?,
        })
    }

    fn scheduled(&self, row: usize) -> anyhow::Result<Minutes> {
        let hour = hour_of(self.time_hour.get(row)).context("a scheduled hour is not a time")?;
        Ok(hour + self.minute.known_number(row)?)
    }

    fn departure(&self, row: usize) -> anyhow::Result<Option<Minutes>> {
        if self.dep_time.number(row)?.is_none() {
            return Ok(None);
        }
        Ok(Some(
            self.scheduled(row)? + self.dep_delay.known_number(row)?,
        ))
    }
}

impl<'a> Flights<'a> {
    /// Orders the events of all flights.
    pub(super) fn new(flights: &'a Columns, airports: &Columns) -> anyhow::Result<Self> {
        let columns = Named::new(flights)?;
        let zones = zones(airports)?;
        let mut events = Vec::with_capacity(2 * flights.rows());
        for row in 0..flights.rows() {
            let index = u32::try_from(row)?;
            let event = |at, kind| Event {
                at,
                row: index,
                kind,
            };
            let Some(departed) = columns.departure(row)? else {
                continue;
            };
            events.push(event(departed, Kind::Departure));
            if let Some(shown) = columns.arr_time.number(row)? {
                let zone = zones.get(columns.dest.get(row)).copied();
                let clock = (shown / 100 * 60 + shown % 100) % DAY;
                let arrived = zone.unwrap_or(ATLANTIC).next(departed, clock);
                events.push(event(arrived, Kind::Arrival));
            }
        }
        events.sort_unstable();
        Ok(Self { columns, events })
    }

    /// All events in order.
    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    /// The flight's name: carrier and number, airport, and the day in New York.
    pub(super) fn key(&self, event: Event) -> anyhow::Result<String> {
        let (columns, row) = (&self.columns, event.row as usize);
        let scheduled = columns.scheduled(row)?;
        let local = scheduled + NEW_YORK.offset(scheduled);
        let (year, month, day) = civil_from_days(local.div_euclid(DAY));
        let (carrier, flight) = (columns.carrier.get(row), columns.flight.get(row));
        let origin = columns.origin.get(row);
        Ok(format!(
            "{carrier}{flight}-{origin}-{year:04}-{month:02}-{day:02}"
        ))
    }

    /// The event as JSON.
    pub(super) fn value(&self, event: Event) -> anyhow::Result<String> {
        let (columns, row) = (&self.columns, event.row as usize);
        let text = |column: Column<'_>| json_value(column.get(row), false);
        let number = |column: Column<'_>| json_value(column.get(row), true);
        let (kind, rest) = match event.kind {
            Kind::Departure => {
                let scheduled = rfc3339(columns.scheduled(row)?);
                let delay = number(columns.dep_delay);
                (
                    "departure",
                    format!("\"delay\":{delay},\"scheduled\":\"{scheduled}\""),
                )
            }
            Kind::Arrival => {
                let (delay, air_time) = (number(columns.arr_delay), number(columns.air_time));
                (
                    "arrival",
                    format!("\"delay\":{delay},\"air_time\":{air_time}"),
                )
            }
        };
        Ok(format!(
            "{{\"event\":\"{kind}\",\"time\":\"{}\",\"carrier\":{},\"flight\":{},\"tailnum\":{},\"origin\":{},\"dest\":{},\"distance\":{},{rest}}}",
            rfc3339(event.at),
            text(columns.carrier),
            number(columns.flight),
            text(columns.tailnum),
            text(columns.origin),
            text(columns.dest),
            number(columns.distance),
        ))
    }
}

/// `2013-01-01T10:00:00Z`, whose minutes and seconds are always zero.
fn hour_of(text: &str) -> Option<Minutes> {
    let field = |range| text.get(range).and_then(|digits: &str| digits.parse().ok());
    let days = super::calendar::days_from_civil(field(0..4)?, field(5..7)?, field(8..10)?);
    Some(days * DAY + field(11..13)? * 60)
}

fn zones(airports: &Columns) -> anyhow::Result<HashMap<&str, Zone>> {
    let (code, hours, rule) = (
        airports.column("faa")?,
        airports.column("tz")?,
        airports.column("dst")?,
    );
    let zone = |row| -> anyhow::Result<Zone> {
        Ok(Zone {
            standard: hours.known_number(row)? * 60,
            daylight_saving: rule.get(row) == "A",
        })
    };
    (0..airports.rows())
        .filter(|&row| hours.get(row).parse::<i64>().is_ok())
        .map(|row| Ok((code.get(row), zone(row)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::super::dataset::Table;
    use super::*;

    #[test]
    fn a_year_of_events_is_in_order_and_complete() {
        let (flights, airports) = (
            Table::Flights.unpack().unwrap(),
            Table::Airports.unpack().unwrap(),
        );
        let flights = Flights::new(&flights, &airports).unwrap();
        let events = flights.events();
        assert_eq!(events.len(), 656_584);
        let arrivals = events.iter().filter(|e| e.kind == Kind::Arrival).count();
        assert_eq!(arrivals, 328_063);
        let (first, last) = (events[0], events[events.len() - 1]);
        expect![["UA1545-EWR-2013-01-01"]].assert_eq(&flights.key(first).unwrap());
        expect![[r#"{"event":"departure","time":"2013-01-01T10:17:00Z","carrier":"UA","flight":1545,"tailnum":"N14228","origin":"EWR","dest":"IAH","distance":1400,"delay":2,"scheduled":"2013-01-01T10:15:00Z"}"#]].assert_eq(&flights.value(first).unwrap());
        expect![[r#"{"event":"arrival","time":"2014-01-01T10:53:00Z","carrier":"B6","flight":1205,"tailnum":"N627JB","origin":"JFK","dest":"PDX","distance":2454,"delay":null,"air_time":null}"#]].assert_eq(&flights.value(last).unwrap());
        assert_eq!(last.timestamp_ms(), 1_388_573_580_000);
    }
}
