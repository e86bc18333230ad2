//! What must be so after a step, and at the end.

use std::sync::Arc;

use anabranch_core::frame::Commit;
use anabranch_core::id::Position;
use anabranch_core::vector::VersionVector;

use super::broker::{self, Running};
use super::truth::{Name, name_of};
use super::verdict::{Checked, Violation, ensure};
use super::world::{Machine, World};

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
        let own = self.machines[at].id;
        for commit in run {
            let name = name_of(commit);
            self.check_fenced(at, name)?;
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
        self.note_fences(at);
        Ok(())
    }

    /// Notes what of brokers was there that it has just learnt were parked.
    fn note_fences(&mut self, at: usize) {
        let Machine {
            running,
            fences,
            held,
            ..
        } = &mut self.machines[at];
        let Some(running) = running else { return };
        let members = running.sequencer.members().iter();
        for (broker, _) in members.filter(|(_, member)| member.has_ended()) {
            let of_it = held.iter().filter(|(origin, _)| origin.broker == broker);
            fences.entry(broker).or_insert_with(|| of_it.collect());
        }
    }

    /// Who knows that a broker was parked takes of it only what some other one had before it knew.
    fn check_fenced(&self, at: usize, (origin, sequence): Name) -> Checked {
        let parked = origin.broker;
        if !self.machines[at].fences.contains_key(&parked) {
            return Ok(());
        }
        let mut others = self.machines.iter().filter(|other| other.id != parked);
        let had = others.any(|other| {
            let had = other.fences.get(&parked).unwrap_or(&other.held);
            had.contains(origin, sequence)
        });
        ensure(had, || {
            format!("broker {at} takes {origin} {sequence} after that one was parked")
        })
    }

    /// What a broker calls stable is durable everywhere.
    pub(super) fn check_stable(&self, at: usize) -> Checked {
        let Some(running) = &self.machines[at].running else {
            return Ok(());
        };
        let stable = running.mesh.stable();
        let members = running.mesh.members();
        for (other, machine) in self.machines.iter().enumerate() {
            if !members.is_active(machine.id) {
                continue;
            }
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
        let own = self.machines[at].id;
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
        self.note_fences(at);
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
        self.truth.check_acked()?;
        let all = self.check_left_behind()?;
        let mut brokers = self.machines.iter().filter(|machine| machine.is_in());
        let has_all = brokers.all(|machine| machine.running.is_some() && machine.held == all);
        ensure(has_all, || self.unequal("nothing happens any more"))?;
        for at in 0..self.machines.len() {
            if self.machines[at].is_in() {
                self.check_end_of(at, &all)?;
            }
        }
        Ok(())
    }

    /// Everything that has to be everywhere. The rest was written by brokers that were parked, and
    /// was never anywhere else.
    fn check_left_behind(&mut self) -> Checked<VersionVector> {
        let mut all = VersionVector::EMPTY;
        let (mut ever, mut out) = (VersionVector::EMPTY, Vec::new());
        for machine in &self.machines {
            match machine.parked || machine.apart {
                true => out.push(machine.id),
                false => {
                    all.merge(&machine.held);
                    ever.merge(&machine.ever_held);
                }
            }
        }
        for (origin, sequence) in self.truth.names() {
            if all.contains(origin, sequence) {
                continue;
            }
            let is_left = out.contains(&origin.broker) && !ever.contains(origin, sequence);
            ensure(is_left, || format!("{origin} {sequence} is lost"))?;
            self.outcome.left_behind += 1;
        }
        Ok(all)
    }

    fn check_end_of(&mut self, at: usize, all: &VersionVector) -> Checked {
        self.check_stable(at)?;
        self.check_rows(at)?;
        let parked: Vec<_> = self.machines.iter().filter(|other| other.parked).collect();
        let parked: Vec<_> = parked.into_iter().map(|other| other.id).collect();
        let Some(running) = &mut self.machines[at].running else {
            return Ok(());
        };
        ensure(running.may_write(), || {
            let entry = running.entrance.entry;
            format!("broker {at} may not write in the end: {entry:?}")
        })?;
        for broker in parked {
            ensure(running.mesh.has_left(broker), || {
                format!("broker {at} waits for {broker}, which was parked")
            })?;
        }
        ensure(running.mesh.stable() == *all, || {
            let missing = running.mesh.stable().missing_from(all);
            format!("all hold all, and broker {at} does not call stable {missing:?}")
        })?;
        ensure(running.table.folded() == all, || {
            format!("the table of broker {at} lacks frames")
        })?;
        running.table.flush()?;
        let kept = running.table.kept();
        ensure(kept == 0, || {
            format!("broker {at} keeps {kept} stamps and tombstones that nobody needs")
        })
    }

    /// Who lacks what.
    pub(super) fn unequal(&self, why: &str) -> String {
        let all = self.truth.all();
        let mut said = why.to_owned();
        for (at, machine) in self.machines.iter().enumerate() {
            let missing = machine.held.missing_from(&all);
            let links = machine.running.as_ref().map(|running| {
                let held = running.holding.frames();
                let entry = running.entrance.entry;
                (entry, running.linked(), held, running.inbox.len())
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
