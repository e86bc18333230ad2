//! Killed at any moment, or damaged: what is there afterwards is what it says it is, or an error.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::{Tables, TablesError, destroy};
use super::model::{Model, Scenario, all_rows};
use super::{open, small};

const DIR: &str = "ANABRANCH_TEST_CRASH_DIR";
const SEED: &str = "ANABRANCH_TEST_CRASH_SEED";
const FRAMES: usize = 4_000;

/// Applies the frames of a seed until it is killed, and says how far it is. Run as a process of
/// its own by [`a_killed_process_leaves_what_it_says`]; does nothing among the other tests.
#[test]
fn victim() {
    let (Ok(dir), Ok(seed)) = (std::env::var(DIR), std::env::var(SEED)) else {
        return;
    };
    let mut scenario = Scenario::of(seed.parse().unwrap());
    let (tables, mut applier) = open(Path::new(&dir));
    let frames = scenario.frames(FRAMES);
    let applied = usize::try_from(tables.applied().get()).unwrap();
    for run in frames[applied..].chunks(5) {
        applier.apply(run).unwrap();
        println!("{}", tables.applied());
    }
}

/// Kills the victim when it has come this much further.
fn kill_after(dir: &Path, seed: u64, further: u64) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tables::tests::crash::victim", "--nocapture"])
        .env(DIR, dir)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut places = lines.filter_map(|line| line.unwrap().parse::<u64>().ok());
    let begun = places.next().unwrap();
    let _ = places.find(|&place| place >= begun + further);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_process_leaves_what_it_says() {
    for seed in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let frames = Scenario::of(seed).frames(FRAMES);
        let mut before = 0;
        for round in 0..8 {
            kill_after(dir.path(), seed, 37 * round);
            let Some((tables, applier)) = open_or_rebuild(dir.path()) else {
                assert_eq!(before, 0, "killed while the directory was being made");
                continue;
            };
            let (rows, applied) = all_rows(&tables);
            let applied = usize::try_from(applied.get()).unwrap();
            assert!(applied >= before, "what was flushed stays");
            before = applied;
            assert_eq!(rows, Model::of(&frames[..applied]), "seed {seed}");
            drop(applier);
        }
        assert!(before > 0);
    }
}

fn open_or_rebuild(dir: &Path) -> Option<(Tables, super::super::Applier)> {
    match Tables::open(dir, small()) {
        Ok(opened) => Some(opened),
        Err(TablesError::Damaged { .. }) => {
            destroy(dir).unwrap();
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn files(dir: &Path, ending: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect();
    files.sort();
    files
}

/// Damages flushed tables; then opening or reading says so, the next opening in any case, and
/// what is rebuilt equals what was there.
fn damaged(damage: impl Fn(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("tables");
    let frames = Scenario::of(1).frames(300);
    let (tables, mut applier) = open(&dir);
    applier.apply(&frames).unwrap();
    applier.flush().unwrap();
    drop((tables, applier));
    damage(&dir);
    if let Ok((tables, _applier)) = Tables::open(&dir, small()) {
        let read = tables.each_row(&mut |_, _, _| {});
        assert!(matches!(read, Err(TablesError::Damaged { .. })), "{read:?}");
    }
    let opened = Tables::open(&dir, small()).map(|_| ());
    assert!(
        matches!(opened, Err(TablesError::Damaged { .. })),
        "{opened:?}"
    );
    destroy(&dir).unwrap();
    let (tables, mut applier) = open(&dir);
    applier.apply(&frames).unwrap();
    assert_eq!(all_rows(&tables).0, Model::of(&frames));
}

#[test]
fn a_missing_file_is_noticed() {
    damaged(|dir| std::fs::remove_file(&files(dir, ".sst")[0]).unwrap());
}

#[test]
fn a_missing_directory_of_files_is_noticed() {
    damaged(|dir| std::fs::remove_file(dir.join("CURRENT")).unwrap());
}

#[test]
fn a_file_cut_short_is_noticed() {
    damaged(|dir| {
        for path in files(dir, ".sst") {
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }
    });
}

#[test]
fn a_flipped_byte_is_noticed() {
    damaged(|dir| {
        for path in files(dir, ".sst") {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[20] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    });
}

#[test]
fn a_deleted_directory_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let frames = Scenario::of(2).frames(100);
    let (tables, mut applier) = open(dir.path());
    applier.apply(&frames).unwrap();
    applier.flush().unwrap();
    drop((tables, applier));
    destroy(dir.path()).unwrap();
    let (tables, mut applier) = open(dir.path());
    assert_eq!(tables.applied().get(), 0);
    applier.apply(&frames).unwrap();
    assert_eq!(all_rows(&tables).0, Model::of(&frames));
}
