//! What readers see while frames are applied.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use anabranch_core::batch::{BatchBuilder, Compression, NewRecord};
use anabranch_core::id::{Position, StreamId};
use anabranch_core::stream::MergeMode;
use bytes::Bytes;
use fastrand::Rng;

use super::super::applier::Ahead;
use super::super::plan::Opened;
use super::super::{Applier, KeyRange, Tables, TablesOptions};
use super::history::{History, batch, id};
use super::model::Frame;
use super::{open, small};

const ACCOUNTS: u32 = 1_000;
const BALANCE: u64 = 1_000;

fn key(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// Accounts between which money is moved; the sum stays the same.
struct Bank {
    history: History,
    balances: Vec<u64>,
    rng: Rng,
}

impl Bank {
    fn open() -> (Self, Frame, Frame) {
        let mut history = History::of(1);
        let created = history.create("t", MergeMode::Lww);
        let keys: Vec<_> = (0..ACCOUNTS).map(key).collect();
        let balance = BALANCE.to_be_bytes();
        let writes: Vec<_> = keys.iter().map(|k| (&k[..], Some(&balance[..]))).collect();
        let filled = history.put("t", &writes);
        let balances = vec![BALANCE; keys.len()];
        let rng = Rng::with_seed(3);
        let bank = Self {
            history,
            balances,
            rng,
        };
        (bank, created, filled)
    }

    /// A frame of two parts that moves something from one account to another.
    fn transfer(&mut self) -> Frame {
        let from = self.rng.u32(..ACCOUNTS);
        let to = (from + self.rng.u32(1..ACCOUNTS)) % ACCOUNTS;
        let amount = self.rng.u64(..=self.balances[from as usize]);
        self.balances[from as usize] -= amount;
        self.balances[to as usize] += amount;
        let part = |account: u32| {
            let balance = self.balances[account as usize].to_be_bytes();
            let write = (&key(account)[..], Some(&balance[..]));
            (id("t"), batch(&[write], Compression::None))
        };
        self.history.frame(vec![part(from), part(to)])
    }
}

/// Moves money while `read` looks at all accounts again and again, wherever they are.
fn while_applying(read: impl Fn(&Tables) -> Vec<Bytes> + Sync) {
    let dir = tempfile::tempdir().unwrap();
    let options = TablesOptions {
        image_rows: 3_000,
        search_rows: 100,
        ..TablesOptions::default()
    };
    let (tables, mut applier) = Tables::open(dir.path(), options).unwrap();
    let (mut bank, created, filled) = Bank::open();
    applier.apply(&[created, filled]).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let balances = read(&tables);
                    assert_eq!(balances.len(), ACCOUNTS as usize);
                    let number = |b: &Bytes| u64::from_be_bytes(b[..].try_into().unwrap());
                    let sum: u64 = balances.iter().map(number).sum();
                    assert_eq!(sum, u64::from(ACCOUNTS) * BALANCE);
                }
            });
        }
        for _ in 0..200 {
            let run: Vec<_> = (0..300).map(|_| bank.transfer()).collect();
            applier.apply(&run).unwrap();
        }
        done.store(true, Ordering::Release);
    });
    assert!(tables.stats().flushes > 10);
}

#[test]
fn a_frame_becomes_visible_as_a_whole_to_gets() {
    let keys: Vec<_> = (0..ACCOUNTS).map(|n| (id("t"), key(n))).collect();
    while_applying(|tables| {
        let before = tables.applied();
        let (values, applied) = tables.get_many(&keys).unwrap();
        assert!(applied >= before);
        values.into_iter().map(Option::unwrap).collect()
    });
}

#[test]
fn a_snapshot_is_of_one_moment() {
    while_applying(|tables| {
        let before = tables.applied();
        let mut rows = Vec::new();
        let each = &mut |page: super::super::Page| {
            rows.extend(page.rows);
            ControlFlow::Continue(())
        };
        assert!(tables.snapshot(id("t"), b"", each).unwrap() >= before);
        rows.into_iter().map(|(_, value)| value).collect()
    });
}

#[test]
fn a_scan_is_of_one_moment() {
    let range = KeyRange {
        prefix: Bytes::new(),
        after: None,
        limit: ACCOUNTS as usize,
        max_bytes: usize::MAX,
    };
    while_applying(|tables| {
        let page = tables.scan(id("t"), &range).unwrap();
        assert!(!page.more);
        page.rows.into_iter().map(|(_, value)| value).collect()
    });
}

fn table(dir: &std::path::Path) -> (Tables, Applier, History) {
    let (tables, mut applier) = open(dir);
    let mut history = History::of(1);
    applier
        .apply(&[history.create("t", MergeMode::Lww)])
        .unwrap();
    (tables, applier, history)
}

#[test]
fn a_large_image_is_frozen_by_a_reader_and_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (tables, mut applier) = Tables::open(dir.path(), TablesOptions::default()).unwrap();
    let mut history = History::of(1);
    applier
        .apply(&[history.create("t", MergeMode::Lww)])
        .unwrap();
    let keys: Vec<_> = (0..100_000u32).rev().map(key).collect();
    for keys in keys.chunks(5_000) {
        let writes: Vec<_> = keys.iter().map(|k| (&k[..], Some(&k[..]))).collect();
        applier.apply(&[history.put("t", &writes)]).unwrap();
    }
    let range = KeyRange {
        prefix: Bytes::new(),
        after: Some(key(50_000)),
        limit: 10,
        max_bytes: usize::MAX,
    };
    let page = tables.scan(id("t"), &range).unwrap();
    let expected: Vec<_> = (50_001..50_011).map(|n| (key(n), key(n))).collect();
    assert_eq!((page.rows, page.more), (expected, true));
    assert_eq!(tables.stats().image_rows, 0);
    // Without the applier nobody flushes, but reading goes on.
    drop(applier);
    let mut count = 0;
    let each = &mut |page: super::super::Page| {
        count += page.rows.len();
        ControlFlow::Continue(())
    };
    tables.snapshot(id("t"), b"", each).unwrap();
    assert_eq!(count, keys.len());
}

#[test]
fn a_snapshot_can_be_broken_off() {
    let dir = tempfile::tempdir().unwrap();
    let (tables, mut applier, mut history) = table(dir.path());
    let keys: Vec<_> = (0..5_000u32).map(key).collect();
    let writes: Vec<_> = keys.iter().map(|k| (&k[..], Some(&k[..]))).collect();
    applier.apply(&[history.put("t", &writes)]).unwrap();
    let mut pages = 0;
    let each = &mut |page: super::super::Page| {
        assert!(page.more);
        pages += 1;
        ControlFlow::Break(())
    };
    tables.snapshot(id("t"), b"", each).unwrap();
    assert_eq!(pages, 1);
}

#[test]
fn the_position_advances_over_what_leaves_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (tables, mut applier, mut history) = table(dir.path());
    applier
        .apply(&[
            history.create("events", MergeMode::Append),
            history.put("events", &[(b"k", Some(b"v"))]),
            history.put("nobody", &[(b"k", Some(b"v"))]),
        ])
        .unwrap();
    assert_eq!(tables.applied(), Position::new(4));
    for stream in ["events", "nobody"] {
        assert_eq!(tables.get(id(stream), b"k").unwrap(), None);
    }
    applier.flush().unwrap();
    drop((tables, applier));
    let (tables, _applier) = open(dir.path());
    assert_eq!(tables.applied(), Position::new(4));
    // The two, and those of the broker itself.
    assert_eq!(tables.streams().len(), 4);
}

#[test]
fn a_stream_that_comes_again_has_none_of_its_old_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (tables, mut applier, mut history) = table(dir.path());
    for flush in [false, true, false] {
        applier
            .apply(&[history.put("t", &[(b"old", Some(b"v"))])])
            .unwrap();
        if flush {
            applier.flush().unwrap();
        }
        let before = history.id("t");
        applier.apply(&[history.delete("t")]).unwrap();
        // Written where nobody knew of the deletion.
        let late = batch(&[(b"old", Some(b"v"))], Compression::None);
        applier
            .apply(&[history.frame(vec![(before, late)])])
            .unwrap();
        assert!(tables.streams().by_name("t").is_none());
        applier
            .apply(&[
                history.create("t", MergeMode::Lww),
                history.put("t", &[(b"new", Some(b"v"))]),
            ])
            .unwrap();
        for _ in 0..2 {
            for stream in [before, history.id("t")] {
                assert_eq!(tables.get(stream, b"old").unwrap(), None);
            }
            assert!(tables.get(history.id("t"), b"new").unwrap().is_some());
            applier.flush().unwrap();
        }
    }
}

#[test]
fn a_record_without_a_key_makes_no_row_and_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (tables, mut applier, mut history) = table(dir.path());
    let mut builder = BatchBuilder::default();
    for key in [Some(&b"k"[..]), None] {
        let record = NewRecord {
            key,
            value: Some(b"v"),
            ..NewRecord::default()
        };
        builder.push(&record).unwrap();
    }
    let frame = history.frame(vec![(id("t"), builder.finish(None).unwrap())]);
    applier.apply(&[frame]).unwrap();
    assert_eq!(
        tables.get(id("t"), b"k").unwrap().as_deref(),
        Some(&b"v"[..])
    );
    assert_eq!(tables.applied(), Position::new(2));
}

#[test]
fn the_log_alone_makes_an_image_full() {
    let dir = tempfile::tempdir().unwrap();
    let options = TablesOptions {
        log_bytes: 10_000,
        ..small()
    };
    let (tables, mut applier) = Tables::open(dir.path(), options).unwrap();
    let mut history = History::of(1);
    for _ in 0..10 {
        let frame = history.put("nobody", &[(b"k", Some(&[0; 2_000]))]);
        applier.apply(&[frame]).unwrap();
    }
    applier.flush().unwrap();
    assert!(tables.stats().flushes >= 2);
    assert_eq!(tables.applied(), Position::new(10));
}

#[test]
fn values_of_megabytes_fit() {
    let dir = tempfile::tempdir().unwrap();
    let (tables, mut applier, mut history) = table(dir.path());
    let stream: StreamId = id("t");
    for length in [4 << 20, 10, (1 << 20) - 40, 3 << 20] {
        let value = vec![7; length];
        applier
            .apply(&[history.put("t", &[(b"k", Some(&value)), (b"l", Some(b"v"))])])
            .unwrap();
        assert_eq!(tables.get(stream, b"k").unwrap().unwrap(), value);
        assert_eq!(tables.get(stream, b"l").unwrap().unwrap(), &b"v"[..]);
        let each = &mut |_: StreamId, key: &[u8], stored: &[u8]| {
            assert!(key != b"k" || stored.len() == length + 1);
        };
        tables.each_row(each).unwrap();
    }
}

#[test]
fn a_reader_that_freezes_the_image_makes_the_applier_look_again() {
    let dir = tempfile::tempdir().unwrap();
    let (tables, applier, mut history) = table(dir.path());
    let keys: Vec<_> = (0..2_000).map(key).collect();
    let writes: Vec<_> = keys.iter().map(|k| (&k[..], Some(&k[..]))).collect();
    let run = [history.put("t", &writes)];
    let shared = &*tables.shared;
    let mark = shared.state.read().mark;
    let opened = Opened::of(&run, mark, tables.streams(), shared).unwrap();
    let writes = opened.writes(shared.hasher).unwrap();
    let before = Ahead::of(shared, &opened, &writes).unwrap();
    drop(shared.freeze_to_read().unwrap().unwrap());
    assert_eq!(applier.fold_ahead(&opened, &writes, before), None);
    assert_eq!(tables.applied(), Position::new(1));
    let after = Ahead::of(shared, &opened, &writes).unwrap();
    assert_eq!(applier.fold_ahead(&opened, &writes, after), Some(true));
    assert_eq!(tables.get(id("t"), &key(7)).unwrap(), Some(key(7)));
}
