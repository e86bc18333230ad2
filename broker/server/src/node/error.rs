//! The errors of the node: problems as every surface shows them, and how others become one.

use anabranch_core::id::PartitionId;
use anabranch_core::stream::StreamDefinition;
use anabranch_protocol::error::{Code, Problem};
use anabranch_storage::log::ReadError;
use anabranch_storage::tables::TablesError;

/// Why a request was refused or failed.
pub(crate) type Error = Problem;

pub(super) fn internal(what: &str) -> Error {
    Error::new(Code::Internal, what)
}

/// The broker has failed, and takes no writes any more.
pub(super) fn failed(reason: &dyn std::fmt::Display) -> Error {
    Error::new(Code::Stopped, format!("the broker has stopped: {reason}"))
}

/// Writes are refused for want of room.
pub(super) fn disk_full(why: &str, data_dir: &str) -> Error {
    Error::new(
        Code::DiskFull,
        format!(
            "disk full: {why} in {data_dir}; writes are refused, reads go on. Free space, or trim: anabranch stream trim STREAM --before 7d"
        ),
    )
}

pub(super) fn no_such_stream(name: &str) -> Error {
    let shown: String = name.chars().take(80).collect();
    Error::new(
        Code::NoSuchStream,
        format!(
            "there is no stream {shown:?}; those there are: anabranch stream list, to make it: anabranch stream create {shown}"
        ),
    )
}

pub(super) fn no_such_partition(stream: &StreamDefinition, partition: PartitionId) -> Error {
    Error::new(
        Code::NoSuchPartition,
        format!(
            "stream {} has {} partitions, numbered from 0; there is no partition {partition}",
            stream.name, stream.partitions
        ),
    )
}

/// A range of the log that cannot be read. What else the log holds is not concerned.
pub(super) fn unreadable(error: &ReadError) -> Error {
    Error::new(Code::UnreadableRange, error.to_string())
}

pub(super) fn tables(error: &TablesError) -> Error {
    Error::new(Code::Internal, error.to_string())
}
