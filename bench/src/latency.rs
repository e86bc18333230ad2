//! Percentiles of latencies.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency that is told apart from longer ones.
const LONGEST: u64 = 120_000_000_000;

/// Latencies in nanoseconds, to three digits.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST, 3);
        Self(histogram.expect("the bounds are those of an HdrHistogram"))
    }
}

impl Latencies {
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0
            .add(&other.0)
            .expect("all histograms have the same bounds");
    }

    /// How many were recorded.
    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.0.len()).unwrap_or(usize::MAX)
    }

    /// `None` when nothing was recorded.
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        if self.0.is_empty() {
            return None;
        }
        let at = |quantile| milliseconds(self.0.value_at_quantile(quantile));
        Some(Percentiles {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: milliseconds(self.0.max()),
        })
    }
}

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            p50,
            p99,
            p999,
            max,
        } = self;
        write!(
            f,
            "p50 {p50:.2}, p99 {p99:.2}, p99.9 {p999:.2}, max {max:.1} ms"
        )
    }
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// A duration in nanoseconds; 584 years are enough.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::default();
        assert!(latencies.percentiles().is_none());
        for millisecond in 1..=1000 {
            latencies.record(millisecond * 1_000_000);
        }
        let percentiles = latencies.percentiles().unwrap();
        let text = percentiles.to_string();
        assert!(text.starts_with("p50 500."), "{text}");
        assert!((percentiles.max - 1000.0).abs() < 1.0);
    }
}
