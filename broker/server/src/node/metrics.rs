//! Handles of the metrics that the write path feeds; registered once, since a look-up per group
//! would cost more than the group's bookkeeping.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::frame::Commit;
use anabranch_storage::durable::Durable;
use metrics::{Counter, Histogram, counter, describe_counter, describe_histogram, histogram};

/// What the writer counts.
pub(crate) struct WriterMetrics {
    records: Counter,
    bytes: Counter,
    frames: Counter,
    sync_seconds: Histogram,
    group_bytes: Histogram,
}

impl WriterMetrics {
    pub(crate) fn register() -> Self {
        describe_counter!(
            "anabranch_publish_records_total",
            "Records appended and durable"
        );
        describe_counter!(
            "anabranch_publish_bytes_total",
            "Bytes appended to the log, headers included"
        );
        describe_counter!("anabranch_frames_total", "Frames appended and durable");
        describe_histogram!(
            "anabranch_fsync_seconds",
            "Time to write a group and make it durable"
        );
        describe_histogram!(
            "anabranch_group_bytes",
            "Bytes made durable by one fdatasync"
        );
        Self {
            records: counter!("anabranch_publish_records_total"),
            bytes: counter!("anabranch_publish_bytes_total"),
            frames: counter!("anabranch_frames_total"),
            sync_seconds: histogram!("anabranch_fsync_seconds"),
            group_bytes: histogram!("anabranch_group_bytes"),
        }
    }

    /// Counts one group. Bytes go into a histogram, where precision beyond 2^52 is of no use.
    #[expect(clippy::cast_precision_loss, reason = "a group is a few MiB")]
    pub(crate) fn group(&self, took: Duration, bytes: usize, run: &[Durable<Arc<Commit>>]) {
        if run.is_empty() {
            return;
        }
        let records: u64 = run
            .iter()
            .map(|commit| u64::from(commit.header.record_count()))
            .sum();
        self.records.increment(records);
        self.bytes.increment(bytes as u64);
        self.frames.increment(run.len() as u64);
        self.sync_seconds.record(took.as_secs_f64());
        self.group_bytes.record(bytes as f64);
    }
}
