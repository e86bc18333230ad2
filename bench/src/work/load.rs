//! What is sent: flags where they are given, defaults where not.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::cli::{Format, LoadArguments};
use crate::frames::Shape;
use crate::keys::KeySpace;
use crate::publisher::Until;

/// What a measurement sends unless it is told otherwise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    /// By number; otherwise by time.
    pub(crate) records: Option<usize>,
    pub(crate) seconds: f64,
    pub(crate) warm_up: f64,
    pub(crate) batch: usize,
    /// Records have no key when `None`.
    pub(crate) keys: Option<u32>,
    pub(crate) window: usize,
    pub(crate) connections: usize,
    pub(crate) rate: Option<u64>,
    pub(crate) format: Format,
}

/// The same, settled.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) length: Length,
    pub(crate) warm_up: Duration,
    pub(crate) shape: Shape,
    pub(crate) keys: Option<u32>,
    pub(crate) window: usize,
    pub(crate) connections: usize,
    /// Records a second over all connections; `None` for as fast as the window allows.
    pub(crate) rate: Option<u64>,
}

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    Records(usize),
    Time(Duration),
}

impl Load {
    pub(crate) fn new(given: &LoadArguments, defaults: &Defaults, stream: &str) -> Result<Self> {
        let quick = given.setting.quick;
        let batch = given.batch.unwrap_or(defaults.batch);
        let keys = given.keys.or(defaults.keys);
        let keys = keys.map(|keys| if quick { keys.min(1_000) } else { keys });
        let load = Self {
            length: length(given, defaults, batch),
            warm_up: seconds(given.warm_up.unwrap_or(match quick {
                true => 0.05,
                false => defaults.warm_up,
            })),
            shape: Shape {
                stream: stream.to_owned(),
                batch,
                value_bytes: given.record_bytes.unwrap_or(100),
                keys: keys.map(|keys| KeySpace::new(keys, given.zipf)),
                format: given.format.unwrap_or(defaults.format),
            },
            keys,
            window: given.window.unwrap_or(defaults.window),
            connections: given.connections.unwrap_or(defaults.connections),
            rate: given.rate.or(defaults.rate),
        };
        let positive = |name, value: usize| ensure_positive(name, value);
        positive("--batch", load.shape.batch)?;
        positive("--window", load.window)?;
        positive("--connections", load.connections)?;
        ensure!(load.keys != Some(0), "--keys must not be 0");
        ensure!(load.rate != Some(0), "--rate must not be 0");
        Ok(load)
    }

    /// Records to be sent after the warm-up, where that is known.
    pub(crate) fn records(&self) -> Option<usize> {
        match (self.length, self.rate) {
            (Length::Records(records), _) => Some(records),
            (Length::Time(time), Some(rate)) => Some(records_in(rate, time)),
            (Length::Time(_), None) => None,
        }
    }

    /// When each of the connections has done its part.
    pub(crate) fn until(&self) -> Until<'static> {
        match self.length {
            Length::Records(records) => {
                Until::Messages((records / self.connections).div_ceil(self.shape.batch))
            }
            Length::Time(time) => Until::Time(Instant::now() + time),
        }
    }

    pub(crate) fn until_warm(&self) -> Until<'static> {
        Until::Time(Instant::now() + self.warm_up)
    }

    /// In words: `1000 × 100 B a batch, 32 in flight`.
    pub(crate) fn words(&self) -> String {
        let Shape {
            batch, value_bytes, ..
        } = &self.shape;
        let mut words = match (batch, self.shape.format) {
            (1, Format::Batch) => format!("single-record publishes of {value_bytes} B"),
            (1, Format::Records) => format!("single-record publishes of {value_bytes} B as maps"),
            (_, Format::Batch) => format!("{batch} × {value_bytes} B a batch"),
            (_, Format::Records) => format!("{batch} × {value_bytes} B a publish as maps"),
        };
        if self.connections > 1 {
            words.push_str(&format!(", {} connections", self.connections));
        }
        match self.rate {
            Some(rate) => words.push_str(&format!(", open loop, {rate}/s")),
            None => words.push_str(&format!(", {} in flight", self.window)),
        }
        words
    }
}

fn length(given: &LoadArguments, defaults: &Defaults, batch: usize) -> Length {
    let by_default = match defaults.records {
        _ if given.setting.quick => Length::Records(20 * batch.max(50)),
        Some(records) => Length::Records(records),
        None => Length::Time(seconds(defaults.seconds)),
    };
    let by_default = match (by_default, defaults.records) {
        (Length::Records(_), None) => Length::Time(seconds(0.3)),
        (length, _) => length,
    };
    match (given.records, given.seconds) {
        (Some(records), _) => Length::Records(records),
        (None, Some(time)) => Length::Time(seconds(time)),
        (None, None) => by_default,
    }
}

/// Records due in some time at a rate.
pub(crate) fn records_in(rate: u64, time: Duration) -> usize {
    let records = u128::from(rate) * time.as_millis() / 1000;
    usize::try_from(records).unwrap_or(usize::MAX)
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn ensure_positive(name: &str, value: usize) -> Result<()> {
    ensure!(value > 0, "{name} must not be 0");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults = Defaults {
        records: None,
        seconds: 5.0,
        warm_up: 1.0,
        batch: 10,
        keys: Some(100_000),
        window: 4,
        connections: 1,
        rate: None,
        format: Format::Batch,
    };

    fn load(given: &LoadArguments) -> Load {
        Load::new(given, &DEFAULTS, "s").unwrap()
    }

    #[test]
    fn flags_come_before_defaults() {
        let mut given = LoadArguments::default();
        assert_eq!(load(&given).words(), "10 × 100 B a batch, 4 in flight");
        assert_eq!(load(&given).records(), None);
        given.rate = Some(2_000);
        given.batch = Some(1);
        assert_eq!(load(&given).records(), Some(10_000));
        assert_eq!(
            load(&given).words(),
            "single-record publishes of 100 B, open loop, 2000/s"
        );
        given.records = Some(7);
        assert_eq!(load(&given).records(), Some(7));
    }

    #[test]
    fn quick_runs_are_short() {
        let mut given = LoadArguments::default();
        given.setting.quick = true;
        let quick = load(&given);
        assert!(matches!(quick.length, Length::Time(time) if time < Duration::from_secs(1)));
        assert_eq!(quick.keys, Some(1_000));
    }

    #[test]
    fn zeros_are_refused() {
        let given = LoadArguments {
            window: Some(0),
            ..LoadArguments::default()
        };
        assert!(Load::new(&given, &DEFAULTS, "s").is_err());
    }
}
