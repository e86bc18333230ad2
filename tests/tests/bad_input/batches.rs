//! Record batches that lie.

use anabranch_core::batch::{BatchBuilder, Compression, NewRecord};
use anabranch_protocol::error::Code;
use anabranch_tests::wire::publish_batch;

use super::scene::Scene;

/// Where the fields of a batch are.
const LENGTH: usize = 8;
const MAGIC: usize = 16;
const CRC: usize = 17;
const ATTRIBUTES: usize = 21;
const LAST_OFFSET_DELTA: usize = 23;
const COUNT: usize = 57;
const RECORDS: usize = 61;

fn batch() -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    for value in [b"one".as_slice(), b"two"] {
        let record = NewRecord {
            key: Some(b"key"),
            value: Some(value),
            ..NewRecord::default()
        };
        builder.push(&record).unwrap();
    }
    builder.finish(None).unwrap().bytes().to_vec()
}

/// A batch with bytes changed at a place, and a CRC that agrees.
fn changed(at: usize, to: &[u8]) -> Vec<u8> {
    let mut batch = batch();
    batch[at..at + to.len()].copy_from_slice(to);
    sign(&mut batch);
    batch
}

fn sign(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[ATTRIBUTES..]);
    batch[CRC..ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
}

/// Sends a batch over WebSocket and HTTP, to a stream of events and to a table; it must be refused
/// with this code each time.
async fn refused(scene: &Scene, batch: &[u8], code: Code) {
    for stream in ["events", "rows"] {
        scene.refused(&publish_batch(3, stream, batch), code).await;
        let path = format!("/v1/streams/{stream}/records");
        let kind = [("content-type", "application/vnd.anabranch.batch")];
        let http = scene.broker.http();
        let answer = http.send("POST", &path, &kind, batch.to_vec()).await;
        let _ = answer.problem(code.http_status(), code.code());
    }
}

#[tokio::test]
async fn a_record_count_that_lies_is_refused() {
    let scene = Scene::new(&[]).await;
    for (count, code) in [
        (0, Code::MalformedBatch),
        (-1, Code::MalformedBatch),
        (1, Code::MalformedBatch),
        (3, Code::MalformedBatch),
        (i32::MAX, Code::BatchTooLarge),
    ] {
        let mut batch = changed(COUNT, &count.to_be_bytes());
        refused(&scene, &batch, code).await;
        let last = count.wrapping_sub(1).to_be_bytes();
        batch[LAST_OFFSET_DELTA..LAST_OFFSET_DELTA + 4].copy_from_slice(&last);
        sign(&mut batch);
        refused(&scene, &batch, code).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_crc_that_lies_is_refused() {
    let scene = Scene::new(&[]).await;
    let whole = batch();
    for at in [CRC, ATTRIBUTES + 10, RECORDS + 3, whole.len() - 1] {
        let mut batch = whole.clone();
        batch[at] ^= 0x10;
        refused(&scene, &batch, Code::BatchCrc).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_length_that_lies_is_refused() {
    let scene = Scene::new(&[]).await;
    for length in [0, -1, 48, 1_000_000, i32::MAX, i32::MIN] {
        let batch = changed(LENGTH, &length.to_be_bytes());
        refused(&scene, &batch, Code::MalformedBatch).await;
    }
    // Lengths within the records: of the first record, then of its key.
    for (at, length) in [(RECORDS, 0x7e), (RECORDS, 0x01), (RECORDS + 4, 0x7e)] {
        let batch = changed(at, &[length]);
        refused(&scene, &batch, Code::MalformedBatch).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_truncated_batch_is_refused() {
    let scene = Scene::new(&[]).await;
    let whole = batch();
    for end in [0, 1, 20, RECORDS - 1, RECORDS, whole.len() - 1] {
        refused(&scene, &whole[..end], Code::MalformedBatch).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn an_unknown_compression_is_refused() {
    let scene = Scene::new(&[]).await;
    for compression in 5..8u8 {
        let batch = changed(ATTRIBUTES + 1, &[compression]);
        refused(&scene, &batch, Code::Compression).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn batches_of_other_versions_and_kinds_are_refused() {
    let scene = Scene::new(&[]).await;
    for magic in [0, 1, 3] {
        let batch = changed(MAGIC, &[magic]);
        refused(&scene, &batch, Code::MalformedBatch).await;
    }
    // Kafka's transactions, its control batches, and our own mark of compaction.
    for attributes in [0x0010i16, 0x0020, 0x4000] {
        let batch = changed(ATTRIBUTES, &attributes.to_be_bytes());
        refused(&scene, &batch, Code::MalformedBatch).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_compressed_batch_that_does_not_inflate_is_refused_by_a_table() {
    let scene = Scene::new(&[]).await;
    for compression in 1..5u8 {
        let batch = changed(ATTRIBUTES + 1, &[compression]);
        let message = publish_batch(3, "rows", &batch);
        scene.refused(&message, Code::MalformedBatch).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_decompression_bomb_takes_no_memory() {
    let scene = Scene::new(&[]).await;
    let before = scene.broker.peak_memory();
    let mut builder = BatchBuilder::default();
    let zeros = vec![0; 4 << 20];
    let record = NewRecord {
        key: Some(b"key"),
        value: Some(&zeros),
        ..NewRecord::default()
    };
    builder.push(&record).unwrap();
    let small = builder.finish_compressed(Compression::Zstd, None).unwrap();
    // The same, inflating to 1 GiB: frames of zstd follow each other.
    let mut bomb = small.bytes().to_vec();
    let body = bomb[RECORDS..].to_vec();
    for _ in 1..256 {
        bomb.extend(&body);
    }
    let length = i32::try_from(bomb.len() - 12).unwrap();
    bomb[LENGTH..LENGTH + 4].copy_from_slice(&length.to_be_bytes());
    sign(&mut bomb);
    assert!(bomb.len() < 1 << 20, "{}", bomb.len());
    for _ in 0..10 {
        let message = publish_batch(3, "rows", &bomb);
        scene.refused(&message, Code::BatchTooLarge).await;
    }
    let grown = scene.broker.peak_memory() - before;
    assert!(grown < 128 << 20, "grown by {grown} bytes");
    scene.end().await;
}
