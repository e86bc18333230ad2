//! Letting a broker that was parked join anew: its directory is put aside, and what nobody else has
//! of its records is written out, for people to decide about.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anabranch_core::definition::Said;
use anabranch_core::frame::Commit;
use anabranch_core::id::{Position, StreamId, StreamName};
use anabranch_core::stream::StreamDefinition;
use anabranch_protocol::http::Regions;
use anabranch_protocol::record::Record;
use anabranch_protocol::record::json::write_record;
use anabranch_storage::data_dir::DataDir;
use anabranch_storage::disk::RealDisk;
use anabranch_storage::log::{Filter, Log, LogOptions, LogReader};
use anyhow::Context;
use serde_json::json;

use super::Ended;
use super::arguments::RejoinArguments;
use super::failure::Failure;
use super::output::{self, Output};

/// Bytes read from the log at once.
const READ_BYTES: usize = 8 * 1024 * 1024;

/// Puts the directory aside. Nothing in it is deleted.
pub(super) async fn run(arguments: RejoinArguments) -> Ended {
    let regions = arguments.target.client()?.regions().await?;
    let dir = DataDir::open_existing(&arguments.data_dir).map_err(anyhow::Error::new)?;
    let broker = dir.identity().broker.to_string();
    check(&regions, &broker)?;
    let aside = dir.path().join(format!("set-aside-{broker}"));
    fs::create_dir_all(&aside).with_context(|| format!("cannot create {}", aside.display()))?;
    let mut unsent = Unsent::new(aside.join("unsent"), &regions);
    unsent.collect(&dir)?;
    let counts = unsent.finish()?;
    put_aside(dir.path(), &aside)?;
    drop(dir);
    show(&arguments, &aside, &counts)?;
    Ok(ExitCode::SUCCESS)
}

/// Others must not wait for it any more: what it has not shipped is given up here.
fn check(regions: &Regions, broker: &str) -> Result<(), Failure> {
    let member = regions.members.iter().find(|held| held.broker == broker);
    match member {
        Some(held) if held.standing == "active" => Err(anyhow::anyhow!(
            "broker {broker} is a member of the cluster and not parked: start it as it is, and it catches up; to give up what it has not shipped, first: anabranch regions park {broker}"
        )
        .into()),
        Some(_) => Ok(()),
        // A removed one is not listed any more.
        None if regions.vector.keys().any(|origin| origin.starts_with(broker)) => Ok(()),
        None => Err(anyhow::anyhow!(
            "the broker that was asked has never heard of broker {broker}; give one of its cluster with --server"
        )
        .into()),
    }
}

/// Records that were written here and that the others do not have.
struct Unsent<'a> {
    folder: PathBuf,
    regions: &'a Regions,
    /// Each with whether no other member may hold it.
    names: HashMap<StreamId, (StreamName, bool)>,
    files: HashMap<StreamName, (BufWriter<File>, u64)>,
}

impl<'a> Unsent<'a> {
    fn new(folder: PathBuf, regions: &'a Regions) -> Self {
        Self {
            folder,
            regions,
            names: HashMap::new(),
            files: HashMap::new(),
        }
    }

    fn collect(&mut self, dir: &DataDir) -> anyhow::Result<()> {
        let progress = output::progress(None, "frames");
        let opened = Log::open(Arc::new(RealDisk), dir, LogOptions::default(), &mut |_| {})?;
        let reader: LogReader = opened.reader;
        let mut at: Position = reader.start_position();
        while at < reader.next_position() {
            let chunk = reader.read(at, &Filter::All, READ_BYTES)?;
            for commit in &chunk.commits {
                self.add(commit, dir)?;
                progress.inc(1);
            }
            at = chunk.next;
        }
        progress.finish_and_clear();
        Ok(())
    }

    fn add(&mut self, commit: &Commit, dir: &DataDir) -> anyhow::Result<()> {
        self.learn(commit, &dir.identity().broker.to_string())?;
        let origin = commit.header.origin;
        let held = self.regions.vector.get(&origin.to_string()).copied();
        let is_own = origin.broker == dir.identity().broker;
        let is_unsent = is_own && commit.header.sequence.get() > held.unwrap_or(0);
        for part in &commit.parts {
            let Some((name, only_here)) = self.names.get(&part.header.stream).cloned() else {
                // The broker's own streams.
                continue;
            };
            // Others have a stub of what they may not hold.
            if !is_unsent && !only_here {
                continue;
            }
            if let Some(batch) = &part.batch {
                for record in batch.records()?.iter() {
                    self.write(&name, &Record::from(&record?))?;
                }
            }
        }
        Ok(())
    }

    /// Notes the names of streams that are made.
    fn learn(&mut self, commit: &Commit, broker: &str) -> anyhow::Result<()> {
        let system = StreamDefinition::system().id();
        let parts = commit.parts.iter();
        for part in parts.filter(|part| part.header.stream == system) {
            let Some(batch) = &part.batch else { continue };
            for record in batch.records()?.iter() {
                let record = record?;
                let key = record.key.and_then(|key| std::str::from_utf8(key).ok());
                let name = key.and_then(|key| StreamName::parse(key).ok());
                if let Some(name) = name
                    && let Ok(said) = Said::read(&name, &record)
                    && let Some(definition) = said.definition()
                {
                    let only_here = self.is_only_here(definition, broker);
                    self.names.insert(definition.id(), (name, only_here));
                }
            }
        }
        Ok(())
    }

    /// Whether no other member stands where the records of a stream may be.
    fn is_only_here(&self, definition: &StreamDefinition, broker: &str) -> bool {
        let Some(regions) = &definition.regions else {
            return false;
        };
        let members = self.regions.members.iter();
        let mut others = members.filter(|held| held.broker != broker && held.standing == "active");
        !others.any(|held| regions.iter().any(|region| region.as_str() == held.region))
    }

    fn write(&mut self, name: &StreamName, record: &Record<'_>) -> anyhow::Result<()> {
        if !self.files.contains_key(name) {
            fs::create_dir_all(&self.folder)?;
            let file = File::create(self.folder.join(format!("{name}.ndjson")))?;
            self.files.insert(name.clone(), (BufWriter::new(file), 0));
        }
        if let Some((file, count)) = self.files.get_mut(name) {
            let mut line = Vec::new();
            write_record(&mut line, record);
            line.push(b'\n');
            file.write_all(&line)?;
            *count += 1;
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<Vec<(StreamName, u64)>> {
        let mut counts = Vec::new();
        for (name, (mut file, count)) in self.files {
            file.flush()?;
            file.get_ref().sync_all()?;
            counts.push((name, count));
        }
        counts.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
        Ok(counts)
    }
}

/// Moves everything but the lock; what says whose directory it is goes last, so that a command that
/// is ended halfway can be given again.
fn put_aside(dir: &Path, aside: &Path) -> anyhow::Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let stays = name == "lock" || name.to_string_lossy().starts_with("set-aside-");
        if !stays {
            names.push(name);
        }
    }
    names.sort_by_key(|name| name == "format");
    for name in names {
        let (from, to) = (dir.join(&name), aside.join(&name));
        fs::rename(&from, &to)
            .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))?;
    }
    File::open(dir)?.sync_all()?;
    Ok(())
}

fn show(
    arguments: &RejoinArguments,
    aside: &Path,
    counts: &[(StreamName, u64)],
) -> std::io::Result<()> {
    let output = Output::new(arguments.target.json);
    let rows: Vec<Vec<String>> = counts
        .iter()
        .map(|(name, count)| vec![name.to_string(), count.to_string()])
        .collect();
    let objects = counts.iter().map(|(name, count)| {
        json!({"stream": name.as_str(), "records": count, "file": aside.join("unsent").join(format!("{name}.ndjson")).display().to_string()})
    });
    output.table(&["stream", "records that nobody else has"], &rows, objects)?;
    output::hint(&format!("the old data lies in {}", aside.display()));
    if counts.is_empty() {
        output::notice("the others have all of its records: nothing was written out");
    }
    if let Some((name, _)) = counts.first() {
        output::hint(&format!(
            "what should still count, publish again: anabranch pub {name} < {}",
            aside
                .join("unsent")
                .join(format!("{name}.ndjson"))
                .display()
        ));
    }
    output::hint("start the broker with the same flags: it joins with a new id");
    Ok(())
}
