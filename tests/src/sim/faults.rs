//! What goes wrong, done, and put right again.

use std::path::{Path, PathBuf};

use anabranch_core::vector::VersionVector;
use anabranch_storage::disk::{Disk, Fault as DiskFault};

use super::agenda::{MS, SECOND, Time};
use super::broker::DIR;
use super::network::Carried;
use super::plan::{Fault, Plan};
use super::table::Stored;
use super::verdict::{Checked, Violation};
use super::world::{Event, SILENCE, World};

/// Where a copy of the data directory is.
fn backup(number: u64) -> PathBuf {
    PathBuf::from(format!("/backup{number}"))
}

impl World {
    pub(super) fn inflict(&mut self, fault: Fault) -> Checked {
        let lasts = Plan::lasts(fault, &mut self.rng);
        if self.talks {
            eprintln!("{:>14} {fault:?} for {} ms", "", lasts / MS);
        }
        match fault {
            Fault::CutOneWay(from, to) => self.cut(from, to, lasts),
            Fault::Cut(one, other) | Fault::Flap(one, other) => {
                self.cut(one, other, lasts);
                self.cut(other, one, lasts);
            }
            Fault::Part(set) => {
                for (from, to) in self.network.between() {
                    if (set >> from) & 1 != (set >> to) & 1 {
                        self.cut(from, to, lasts);
                    }
                }
            }
            Fault::Silence => self.be_silent(lasts),
            Fault::Noise(from, to) => {
                self.network.path_mut(from, to).damage = self.rng.u64(2..20);
                self.agenda.after(lasts, Event::Calm(from, to));
            }
            Fault::Kill(at) => return self.kill(at, lasts),
            Fault::PowerCut(at) => {
                self.machines[at].power_cut = true;
                return self.crash(at);
            }
            Fault::PowerCutAt(at, ahead) => self.inject(at, ahead, DiskFault::PowerCut),
            Fault::DiskFails(at, ahead) => self.inject(at, ahead, DiskFault::Io),
            Fault::Stop(at) => return self.stop(at, lasts),
            Fault::Backup(at) => self.back_up(at),
            Fault::Restore(at) => return self.restore(at, lasts),
            Fault::Clock(at, skew) => {
                self.machines[at].skew_ms = skew;
                self.agenda.after(lasts, Event::RightClock(at));
            }
            Fault::SlowDisk(at) => {
                self.machines[at].slow = true;
                self.agenda.after(lasts, Event::RightClock(at));
            }
        }
        Ok(())
    }

    fn inject(&mut self, at: usize, ahead: u64, fault: DiskFault) {
        let disk = &self.machines[at].disk;
        disk.inject(disk.operations() + ahead, fault);
    }

    /// Nothing passes from one to another, for a while. Who hears nothing closes the link.
    fn cut(&mut self, from: usize, to: usize, lasts: Time) {
        let path = self.network.path_mut(from, to);
        path.cut = true;
        path.cuts += 1;
        let cuts = path.cuts;
        let lasts = lasts.max(self.silent_until.saturating_sub(self.agenda.now()));
        self.agenda.after(lasts, Event::Heal(from, to, cuts));
        for (link, end) in self.network.over(from, to) {
            self.agenda
                .after(SILENCE, Event::Silent(link, 1 - end, cuts));
        }
    }

    /// Three days in which nobody reaches anybody. All write, but seldom.
    fn be_silent(&mut self, lasts: Time) {
        self.silent_until = self.agenda.now() + lasts;
        for (from, to) in self.network.between() {
            self.cut(from, to, lasts);
        }
        self.plan.write_every = lasts / 40;
        self.plan.fault_every = lasts / 10;
        self.plan.quiet_at = self.agenda.now() + lasts + 1000 * MS;
        self.agenda.at(self.plan.quiet_at, Event::Quiet);
    }

    pub(super) fn heal(&mut self, from: usize, to: usize, cut: u64) {
        let path = self.network.path_mut(from, to);
        if !path.cut || path.cuts != cut {
            return;
        }
        path.cut = false;
        for (number, end) in self.network.over(from, to) {
            if let Some(link) = self.network.links.get_mut(&number) {
                let late = std::mem::take(&mut link.stalled[end]);
                for _ in 0..late {
                    self.agenda.after(MS, Event::Arrive(number, end));
                }
            }
        }
        if self.network.is_open(from, to) {
            self.dial_wanted(from);
            self.dial_wanted(to);
        }
    }

    /// The process is gone. The system closes its connections, if it is still there.
    pub(super) fn end_process(&mut self, at: usize, says_so: bool) {
        let machine = &mut self.machines[at];
        machine.life += 1;
        machine.running = None;
        machine.wants = self
            .plan
            .dials
            .iter()
            .filter(|(from, _)| *from == at)
            .map(|(_, to)| *to)
            .collect();
        // Nobody will ever tell.
        let waiting = self.clients.iter_mut();
        waiting
            .filter(|client| client.waits == Some(at))
            .for_each(|client| client.waits = None);
        let links = self.network.links.iter();
        let own: Vec<_> = links
            .filter_map(|(&number, link)| {
                let end = link.ends.iter().position(|&end| end == at)?;
                link.open[end].then_some((number, end))
            })
            .collect();
        for (number, end) in own {
            match says_so {
                true => self.hang_up(at, number),
                false => self.agenda.after(SILENCE, Event::Gone(number, 1 - end)),
            }
            if let Some(link) = self.network.links.get_mut(&number) {
                link.open[end] = false;
            }
        }
    }

    fn hang_up(&mut self, at: usize, number: u64) {
        self.carry(at, number, Carried::End);
    }

    fn kill(&mut self, at: usize, lasts: Time) -> Checked {
        if self.machines[at].running.is_some() {
            self.end_process(at, true);
            self.agenda.after(lasts, Event::Start(at));
        }
        Ok(())
    }

    fn back_up(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        // What was never started on has no identity to be copied.
        if machine.disk.is_powered() && machine.life > 0 {
            machine.backups += 1;
            let to = backup(machine.backups);
            machine.disk.copy_dir(Path::new(DIR), &to);
        }
    }

    /// The directory becomes what it was once, unless something would be lost that is nowhere else.
    fn restore(&mut self, at: usize, lasts: Time) -> Checked {
        let machine = &self.machines[at];
        let is_elsewhere = machine.held.iter().all(|(origin, sequence)| {
            let mut others = self.machines.iter().enumerate();
            let holds = |held: &VersionVector| held.contains(origin, sequence);
            others.any(|(other, m)| other != at && m.is_in() && holds(&m.held))
        });
        // A backup may be from before one was parked that still runs: see FAULTS.md.
        let may_forget_parked = !machine.fences.is_empty();
        let is_there = machine.running.is_some() && machine.backups > 0;
        if !is_there || !is_elsewhere || may_forget_parked {
            return Ok(());
        }
        self.end_process(at, true);
        let machine = &mut self.machines[at];
        let disk = machine.disk.clone();
        let replaced = disk.watch(|| -> std::io::Result<()> {
            for dir in [Path::new(DIR).to_owned(), Path::new(DIR).join("log")] {
                for name in disk.list(&dir)? {
                    disk.remove(&dir.join(name))?;
                }
                disk.sync_dir(&dir)?;
            }
            Ok(())
        });
        // The power went before: then it is what it was.
        if replaced.is_ok() {
            disk.copy_dir(&backup(machine.backups), Path::new(DIR));
            machine.held = VersionVector::EMPTY;
            machine.stored = Stored::default();
        }
        self.agenda.after(lasts, Event::Start(at));
        Ok(())
    }

    /// A disk that fails ends the process; a machine without power is gone.
    pub(super) fn crash(&mut self, at: usize) -> Checked {
        if self.machines[at].running.is_none() {
            self.machines[at].power_cut = false;
            return Ok(());
        }
        let has_power = self.machines[at].disk.is_powered() && !self.machines[at].power_cut;
        self.end_process(at, has_power);
        self.start_later(at, has_power);
        Ok(())
    }

    fn start_later(&mut self, at: usize, has_power: bool) {
        if !has_power {
            self.machines[at].power_cut = false;
            self.machines[at].disk.power_cycle();
        }
        let wait = self.rng.u64(1..8000) * MS;
        self.agenda.after(wait, Event::Start(at));
    }

    /// Only a disk that fails keeps a broker from starting.
    pub(super) fn start_failed(&mut self, at: usize, why: String) -> Checked {
        if self.talks {
            eprintln!("{:>14} it does not start: {why}", "");
        }
        let has_power = self.machines[at].disk.is_powered();
        let by_disk = !has_power || why.contains("os error 5");
        if !by_disk {
            return Err(Violation(format!("broker {at} does not start: {why}")));
        }
        self.start_later(at, has_power);
        Ok(())
    }

    fn stop(&mut self, at: usize, lasts: Time) -> Checked {
        let machine = &mut self.machines[at];
        let Some(mut running) = machine.running.take() else {
            return Ok(());
        };
        // It ends what it has begun.
        let closed = match running.synced() {
            Ok((run, _)) => {
                let checkpoint = running.sequencer.checkpoint();
                let closed = running.log.close(&checkpoint).is_ok();
                self.check_run(at, &run)?;
                closed
            }
            Err(_) => false,
        };
        self.end_process(at, true);
        match closed {
            true => self.agenda.after(lasts, Event::Start(at)),
            false => self.start_later(at, self.machines[at].disk.is_powered()),
        }
        Ok(())
    }

    /// From now on nothing goes wrong, and nobody writes.
    pub(super) fn be_quiet(&mut self) -> Checked {
        if self.agenda.now() < self.plan.quiet_at || self.quiet {
            return Ok(());
        }
        self.quiet = true;
        for (from, to) in self.network.between() {
            let path = self.network.path_mut(from, to);
            path.damage = 0;
            let cuts = path.cuts;
            self.heal(from, to, cuts);
        }
        self.end_parked();
        for at in 0..self.machines.len() {
            self.machines[at].skew_ms = 0;
            self.machines[at].slow = false;
            self.agenda.after(MS, Event::Start(at));
            self.agenda.after(2 * MS, Event::RightClock(at));
            // Whoever relays is chosen by who has more; what is reported once nobody has may go
            // round in a circle until something new is written.
            if !self.plan.meshed {
                self.agenda.after(60 * SECOND, Event::LastWrite(at));
            }
        }
        Ok(())
    }
}
