//! What must be so after a step, and at the end.

use std::sync::Arc;

use anabranch_core::frame::Commit;
use anabranch_core::id::Position;
use anabranch_core::vector::VersionVector;

use super::broker::{self, Running};
use super::truth::name_of;
use super::verdict::{Checked, Violation, ensure};
use super::world::World;

impl World {
    /// A broker's log has got longer.
    pub(super) fn check_run(&mut self, at: usize, run: &[Arc<Commit>]) -> Checked {
        // A broker that is being stopped has no mesh any more.
        // One that fetches what it has lost calls nothing stable.
        let running = self.machines[at].running.as_ref();
        let known = running.filter(|running| !running.fetching).map(|running| {
            let mesh = &running.mesh;
            (mesh.stable(), mesh.watermark())
        });
        let own = broker::id_of(at);
        for commit in run {
            let name = name_of(commit);
            match name.0.broker == own {
                true => self.truth.settle(name),
                false => self.outcome.taken += 1,
            }
            let held = &mut self.machines[at].held;
            let place = |violation: Violation| Violation(format!("broker {at}: {violation}"));
            self.truth.check_appended(commit, held).map_err(place)?;
            if let Some((stable, watermark)) = &known {
                let checked = self.truth.check_stable(commit, stable, *watermark);
                checked.map_err(place)?;
            }
            held.advance(name.0, name.1);
            self.machines[at].ever_held.advance(name.0, name.1);
        }
        Ok(())
    }

    /// What a broker calls stable is durable everywhere.
    pub(super) fn check_stable(&self, at: usize) -> Checked {
        let Some(running) = &self.machines[at].running else {
            return Ok(());
        };
        let stable = running.mesh.stable();
        for (other, machine) in self.machines.iter().enumerate() {
            // What a restored broker has lost it fetches before it writes.
            ensure(machine.ever_held.covers(&stable), || {
                let missing = machine.ever_held.missing_from(&stable);
                format!("broker {at} calls stable what broker {other} lacks: {missing:?}")
            })?;
        }
        self.machines
            .iter()
            .enumerate()
            .try_for_each(|(other, machine)| {
                let Some(same) = &machine.running else {
                    return Ok(());
                };
                ensure(
                    same.vector() != running.vector() || same.heads == running.heads,
                    || {
                        format!(
                            "brokers {at} and {other} hold the same frames, and their chains differ"
                        )
                    },
                )
            })
    }

    /// Where two have folded the same frames, they have the same rows.
    pub(super) fn check_rows(&self, at: usize) -> Checked {
        let Some(running) = &self.machines[at].running else {
            return Ok(());
        };
        for (other, machine) in self.machines.iter().enumerate() {
            let Some(like) = &machine.running else {
                continue;
            };
            if like.table.folded() == running.table.folded() {
                same_rows(running, like).map_err(|what| {
                    Violation(format!(
                        "brokers {at} and {other} hold the same frames: {what}"
                    ))
                })?;
            }
        }
        Ok(())
    }

    /// A broker has started: all that was durable is there, and the rest is what was written.
    pub(super) fn check_start(&mut self, at: usize) -> Checked {
        let Some(running) = &self.machines[at].running else {
            return Ok(());
        };
        let found = running.vector();
        let through = running.reader.next_position();
        let reader = &running.reader;
        let read = || broker::read_all(reader, Position::default());
        let commits = self.machines[at].disk.watch(read).map_err(Violation)?;
        let durable = std::mem::take(&mut self.machines[at].held);
        ensure(found.covers(&durable), || {
            let missing = found.missing_from(&durable);
            format!("broker {at} has lost what was durable: {missing:?}")
        })?;
        let own = broker::id_of(at);
        let mut held = VersionVector::EMPTY;
        for commit in &commits {
            let name = name_of(commit);
            if name.0.broker == own {
                self.truth.settle(name);
            }
            self.truth.check_appended(commit, &held)?;
            held.advance(name.0, name.1);
        }
        ensure(held == found, || {
            format!("the log of broker {at} does not hold what its heads say")
        })?;
        self.truth.forget(own);
        self.machines[at].ever_held.merge(&held);
        self.machines[at].held = held;
        let Some(running) = &mut self.machines[at].running else {
            return Ok(());
        };
        let applied = running.table.applied();
        let rest = commits.iter().filter(|commit| commit.position >= applied);
        rest.into_iter()
            .try_for_each(|commit| running.table.apply(commit))?;
        running.table.pass_to(through);
        running.settle();
        Ok(())
    }

    /// Everything is everywhere, and nothing is left but the rows.
    pub(super) fn check_end(&mut self) -> Checked {
        let all = self.truth.all();
        self.truth.check_acked()?;
        let has_all = self
            .machines
            .iter()
            .all(|machine| machine.running.is_some() && machine.held == all);
        ensure(has_all, || self.unequal("nothing happens any more"))?;
        for at in 0..self.machines.len() {
            self.check_stable(at)?;
            self.check_rows(at)?;
            let Some(running) = &mut self.machines[at].running else {
                continue;
            };
            ensure(running.mesh.stable() == all, || {
                let missing = running.mesh.stable().missing_from(&all);
                format!("all hold all, and broker {at} does not call stable {missing:?}")
            })?;
            ensure(running.table.folded() == &all, || {
                format!("the table of broker {at} lacks frames")
            })?;
            running.table.flush()?;
            let kept = running.table.kept();
            ensure(kept == 0, || {
                format!("broker {at} keeps {kept} stamps and tombstones that nobody needs")
            })?;
        }
        Ok(())
    }

    /// Who lacks what.
    pub(super) fn unequal(&self, why: &str) -> String {
        let all = self.truth.all();
        let mut said = why.to_owned();
        for (at, machine) in self.machines.iter().enumerate() {
            let missing = machine.held.missing_from(&all);
            let links = machine.running.as_ref().map(|running| {
                let held = running.holding.frames();
                (running.linked(), held, running.inbox.len())
            });
            said += &format!("; broker {at} lacks {missing:?}, links {links:?}");
        }
        said
    }
}

fn same_rows(one: &Running, other: &Running) -> Result<(), String> {
    let mut rows = one.table.oracle().rows();
    let differs = rows.find(|(key, value)| other.table.value(key) != Some(value));
    match differs {
        Some((key, _)) => Err(format!("row {} differs", String::from_utf8_lossy(key))),
        None => Ok(()),
    }
}
