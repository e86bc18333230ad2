//! What the writer and the links tell of themselves. The writer's handles are registered once, since
//! a look-up per group would cost more than the group's bookkeeping.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::frame::Commit;
use anabranch_storage::durable::Durable;
use metrics::{
    Counter, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

use super::Status;

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

/// What is known of other regions, for whoever watches.
#[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
pub(crate) fn set_regions(status: &Status) {
    for link in &status.links {
        let peer = link.region.to_string();
        let gauge = |name: &'static str| gauge!(name, "peer" => peer.clone());
        gauge("anabranch_peer_lag_bytes").set(link.ahead.bytes as f64);
        gauge("anabranch_peer_lag_seconds").set(link.ahead.millis as f64 / 1000.0);
        gauge("anabranch_peer_behind_frames").set(link.behind.frames as f64);
    }
    for (broker, &frames) in &status.lacks {
        if let Some(member) = status.members.get(*broker) {
            let peer = member.region.to_string();
            gauge!("anabranch_peer_lag_frames", "peer" => peer).set(frames as f64);
        }
    }
    gauge!("anabranch_peer_links").set(status.links.len() as f64);
    gauge!("anabranch_held_frames").set(status.held_frames as f64);
    gauge!("anabranch_held_bytes").set(status.held_bytes as f64);
    gauge!("anabranch_unreplicated_frames").set(status.only_here.frames as f64);
    gauge!("anabranch_unreplicated_bytes").set(status.only_here.bytes as f64);
    gauge!("anabranch_unreplicated_seconds").set(status.only_here.millis as f64 / 1000.0);
}

/// Says what the gauges of [`set_regions`] are.
pub(crate) fn describe_regions() {
    describe_gauge!(
        "anabranch_peer_lag_frames",
        "Frames that a member has not said that it holds, linked or not"
    );
    describe_gauge!(
        "anabranch_peer_lag_bytes",
        "About the bytes of these frames"
    );
    describe_gauge!(
        "anabranch_peer_lag_seconds",
        "For how long a linked peer has lacked the oldest of them"
    );
    describe_gauge!(
        "anabranch_peer_behind_frames",
        "Frames that a linked peer holds and this broker does not"
    );
    describe_gauge!("anabranch_peer_links", "Links to other brokers that are up");
    describe_gauge!(
        "anabranch_held_frames",
        "Frames of other regions that wait for what they follow"
    );
    describe_gauge!("anabranch_held_bytes", "Bytes of these frames");
    describe_gauge!(
        "anabranch_unreplicated_frames",
        "Frames written here that no other region has said that it holds"
    );
    describe_gauge!(
        "anabranch_unreplicated_bytes",
        "About the bytes of these frames"
    );
    describe_gauge!(
        "anabranch_unreplicated_seconds",
        "For how long the oldest of them has been only here"
    );
}
