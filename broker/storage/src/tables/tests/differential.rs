//! Random histories, folded by the tables and by the model.

use bytes::Bytes;

use super::super::{Applier, KeyRange, Tables};
use super::history::id;
use super::model::{Frame, Model, STREAMS, Scenario, all_rows};
use super::open;

struct Run {
    scenario: Scenario,
    frames: Vec<Frame>,
    model: Model,
    tables: Tables,
    applier: Applier,
    dir: tempfile::TempDir,
}

impl Run {
    fn of(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (tables, applier) = open(dir.path());
        Self {
            scenario: Scenario::of(seed),
            frames: Vec::new(),
            model: Model::default(),
            tables,
            applier,
            dir,
        }
    }

    fn apply(&mut self) {
        let count = self.scenario.rng.usize(1..8);
        let frames = self.scenario.frames(count);
        self.applier.apply(&frames).unwrap();
        for frame in &frames {
            self.model.apply(frame);
        }
        self.frames.extend(frames);
        assert_eq!(self.tables.applied().get(), self.frames.len() as u64);
    }

    /// As after a crash: what was not flushed is gone and is applied again.
    fn reopen(&mut self) {
        let elsewhere = tempfile::tempdir().unwrap();
        let unused = open(elsewhere.path());
        let (tables, applier) = (
            std::mem::replace(&mut self.tables, unused.0),
            std::mem::replace(&mut self.applier, unused.1),
        );
        drop((applier, tables));
        (self.tables, self.applier) = open(self.dir.path());
        let applied = usize::try_from(self.tables.applied().get()).unwrap();
        let (rows, _) = all_rows(&self.tables);
        assert_eq!(rows, Model::of(&self.frames[..applied]));
        self.applier.apply(&self.frames[applied..]).unwrap();
    }

    fn check_all(&self) {
        let (rows, applied) = all_rows(&self.tables);
        assert_eq!(applied.get(), self.frames.len() as u64);
        assert_eq!(rows, self.model);
    }

    fn check_gets(&mut self) {
        let name = STREAMS[self.scenario.rng.usize(..3)];
        let stream = self.scenario.id(name);
        let keys: Vec<_> = (0..20)
            .map(|_| (stream, Bytes::from(self.scenario.key())))
            .collect();
        let (values, applied) = self.tables.get_many(&keys).unwrap();
        assert_eq!(applied.get(), self.frames.len() as u64);
        for ((stream, key), value) in keys.iter().zip(values) {
            assert_eq!(value, self.model.get(*stream, key));
            assert_eq!(value, self.tables.get(*stream, key).unwrap());
        }
    }

    fn check_scan(&mut self) {
        let name = STREAMS[self.scenario.rng.usize(..3)];
        let stream = self.scenario.id(name);
        let prefixes: [&[u8]; 5] = [b"", b"k", b"k1", b"\xff", b"x"];
        let prefix = prefixes[self.scenario.rng.usize(..5)];
        let mut range = KeyRange {
            prefix: Bytes::from_static(prefix),
            after: self.scenario.rng.bool().then(|| self.scenario.key().into()),
            limit: self.scenario.rng.usize(1..40),
            max_bytes: self.scenario.rng.usize(..6_000),
        };
        let mut expected = self.model.values(stream);
        expected.retain(|(key, _)| {
            key.starts_with(prefix) && range.after.as_ref().is_none_or(|after| key > after)
        });
        let mut rows = Vec::new();
        loop {
            let page = self.tables.scan(stream, &range).unwrap();
            let bytes: usize = page.rows.iter().map(|(k, v)| k.len() + v.len()).sum();
            assert!(page.rows.len() <= range.limit);
            assert!(bytes <= range.max_bytes || page.rows.len() == 1);
            assert!(!page.more || !page.rows.is_empty());
            range.after = page.rows.last().map(|(key, _)| key.clone());
            rows.extend(page.rows);
            if !page.more {
                break;
            }
        }
        assert_eq!(rows, expected);
    }

    fn check_streams(&self) {
        let streams = self.tables.streams();
        let names: Vec<_> = streams.iter().map(|s| s.name.as_str().to_owned()).collect();
        let defined = self.model.values(id("_streams"));
        let mut expected = vec!["_members".to_owned(), "_streams".to_owned()];
        expected.extend(
            defined
                .iter()
                .map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()),
        );
        assert_eq!(names, expected);
    }

    fn step(&mut self) {
        match self.scenario.rng.u32(..100) {
            0..3 => self.applier.flush().unwrap(),
            3..5 => self.reopen(),
            5..10 => self.check_all(),
            10..30 => self.check_scan(),
            30..45 => self.check_gets(),
            45..50 => self.check_streams(),
            _ => self.apply(),
        }
    }
}

#[test]
fn tables_are_the_fold_of_their_history() {
    for seed in 0..40 {
        eprintln!("seed {seed}");
        let mut run = Run::of(seed);
        for _ in 0..150 {
            run.step();
        }
        run.check_all();
        run.applier.flush().unwrap();
        run.check_all();
        run.reopen();
        run.check_all();
    }
}
