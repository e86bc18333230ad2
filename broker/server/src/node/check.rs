//! What every surface checks before it publishes.

use anabranch_core::batch::{Batch, Check};
use anabranch_core::id::PartitionId;
use anabranch_core::stream::{MergeMode, StreamDefinition};
use anabranch_protocol::error::Code;
use bytes::Bytes;

use super::{Error, error};

/// Checks that a stream has this partition.
///
/// # Errors
/// When it does not.
pub(crate) fn check_partition(
    definition: &StreamDefinition,
    partition: PartitionId,
) -> Result<PartitionId, Error> {
    if partition.get() < definition.partitions {
        Ok(partition)
    } else {
        Err(error::no_such_partition(definition, partition))
    }
}

/// Checks a ready-made batch as closely as its stream needs.
///
/// # Errors
/// With what is wrong with it.
pub(crate) fn check_batch(definition: &StreamDefinition, bytes: Bytes) -> Result<Batch, Error> {
    match definition.merge {
        MergeMode::Append => Ok(Batch::parse(bytes, Check::Outer)?),
        MergeMode::Lww => {
            let batch = Batch::parse(bytes, Check::Records)?;
            let records = batch.records()?;
            check_inflation(&batch, records.bytes().len())?;
            check_keys(
                definition,
                records.iter().map(|r| r.is_ok_and(|r| r.key.is_some())),
            )?;
            Ok(batch)
        }
    }
}

/// Most bytes that one byte of a compressed batch may stand for in a keyed stream. All batches of a
/// frame are in memory while it is folded, so this bounds what a frame of 1 MiB can cost.
const MAX_INFLATION: usize = 128;

/// Small batches of a repeated record are beyond any suspicion.
const ALWAYS_INFLATED: usize = 64 * 1024;

fn check_inflation(batch: &Batch, inflated: usize) -> Result<(), Error> {
    if inflated <= ALWAYS_INFLATED.max(MAX_INFLATION * batch.len()) {
        return Ok(());
    }
    Err(Error::new(
        Code::BatchTooLarge,
        format!(
            "a batch of {} bytes inflates to {inflated}, which is more than {MAX_INFLATION} times as much; send it uncompressed",
            batch.len()
        ),
    ))
}

/// A keyed stream folds by key, so a record without one has no row to go to.
pub(crate) fn check_keys(
    definition: &StreamDefinition,
    has_key: impl Iterator<Item = bool>,
) -> Result<(), Error> {
    if definition.merge != MergeMode::Lww {
        return Ok(());
    }
    match { has_key }.position(|has_key| !has_key) {
        None => Ok(()),
        Some(index) => Err(Error::new(
            Code::KeyMissing,
            format!(
                "record {index} has no key, but stream {} keeps one row per key; give it a key, or use a stream with merge \"append\"",
                definition.name
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use anabranch_core::batch::{BatchBuilder, Compression, NewRecord};
    use anabranch_core::id::StreamName;

    use super::*;

    fn check(merge: MergeMode, value: &[u8]) -> Result<Batch, Error> {
        let definition = StreamDefinition::new(StreamName::parse("rows").unwrap(), merge);
        let mut builder = BatchBuilder::default();
        let record = NewRecord {
            key: Some(b"key"),
            value: Some(value),
            ..NewRecord::default()
        };
        builder.push(&record).unwrap();
        let batch = builder.finish_compressed(Compression::Zstd, None).unwrap();
        check_batch(&definition, batch.bytes().clone())
    }

    /// Within the limit of one batch, so that only their number would fill the memory.
    #[test]
    fn a_small_batch_that_inflates_beyond_measure_is_refused_by_a_table() {
        let bomb = vec![0; 4 << 20];
        let refused = check(MergeMode::Lww, &bomb).unwrap_err();
        assert_eq!(refused.code, Code::BatchTooLarge, "{refused:?}");
        assert!(refused.detail.contains("uncompressed"), "{refused:?}");
        // Nobody inflates it in the broker.
        check(MergeMode::Append, &bomb).unwrap();
    }

    #[test]
    fn what_compresses_well_is_taken() {
        check(MergeMode::Lww, &vec![0; ALWAYS_INFLATED - 1024]).unwrap();
        let text: Vec<u8> = (0u32..40_000)
            .flat_map(|n| n.to_string().into_bytes())
            .collect();
        check(MergeMode::Lww, &text).unwrap();
    }
}
