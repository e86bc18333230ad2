//! Machines that come and go: those that join, those that are parked and removed, and those that
//! come back though they were parked.

use anabranch_core::id::BrokerId;
use anabranch_core::members::Standing;

use super::agenda::{MS, SECOND};
use super::broker::Request;
use super::verdict::Checked;
use super::world::{Event, World};

impl World {
    /// What is to come of all that the plan has.
    pub(super) fn expect_comings(&mut self) {
        let last = self.plan.quiet_at;
        for at in self.plan.joins() {
            let when = self.rng.u64(SECOND / 2..last.max(SECOND));
            self.agenda.at(when, Event::Join(at));
        }
        if let Some(at) = self.plan.goes {
            let when = self.rng.u64(SECOND / 2..last.max(SECOND));
            self.agenda.at(when, Event::Go(at));
        }
    }

    /// A machine without anything on it is told of some brokers, and starts.
    pub(super) fn join(&mut self, at: usize) -> Checked {
        if self.machines[at].starts {
            return Ok(());
        }
        // Of those that are being founded one that is not told to all would found its own.
        let is_founded = |&(from, to): &(usize, usize)| {
            let running = self.machines[to].running.as_ref();
            from == at && running.is_some_and(|running| running.mesh.is_founded())
        };
        if !self.plan.dials.iter().any(is_founded) {
            let again = self.next_in(8 * self.plan.write_every);
            self.agenda.after(again, Event::Join(at));
            return Ok(());
        }
        self.machines[at].starts = true;
        self.outcome.joined += 1;
        self.agenda.after(0, Event::Start(at));
        Ok(())
    }

    /// A machine that was to join has founded a cluster of its own, since those that it was told of had
    /// just been started and did not know yet that theirs was founded. It has to be emptied.
    pub(super) fn give_up(&mut self, at: usize) {
        let id = self.machines[at].id;
        let mut others = self.machines.iter().filter(|other| other.id != id);
        let is_known = others.any(|other| {
            let mut held = other.ever_held.iter();
            held.any(|(origin, _)| origin.broker == id)
        });
        if at < self.plan.brokers || is_known || self.machines[at].running.is_none() {
            return;
        }
        self.end_process(at, true);
        self.machines[at].starts = false;
        self.machines[at].apart = true;
        self.outcome.apart += 1;
    }

    /// A machine goes down that will not be waited for, unless somebody who stays does not know yet
    /// that it is a member.
    pub(super) fn go(&mut self, at: usize) -> Checked {
        let id = self.machines[at].id;
        let stay = self.machines.iter().enumerate();
        let mut stay = stay.filter(|(other, machine)| *other != at && machine.starts);
        let all_know = stay.all(|(_, machine)| {
            let running = machine.running.as_ref();
            running.is_some_and(|running| {
                let mesh = &running.mesh;
                mesh.is_founded() && mesh.members().is_active(id)
            })
        });
        if self.machines[at].running.is_none() || !all_know {
            let again = self.next_in(8 * self.plan.write_every);
            self.agenda.after(again, Event::Go(at));
            return Ok(());
        }
        let says_so = self.rng.bool();
        self.end_process(at, says_so);
        let machine = &mut self.machines[at];
        machine.starts = false;
        if !says_so {
            machine.disk.power_cycle();
        }
        let wait = self.rng.u64(10..3000) * MS;
        self.agenda.after(wait, Event::Park(at));
        Ok(())
    }

    /// Who is asked to park or remove a broker, if anybody may.
    fn ender(&mut self, whom: BrokerId) -> Option<usize> {
        let machines = self.machines.iter().enumerate();
        let may: Vec<_> = machines
            .filter(|(_, machine)| {
                let running = machine.running.as_ref();
                !machine.parked
                    && running.is_some_and(|running| {
                        let is_linked = running.linked().contains_key(&whom);
                        let known = running.mesh.members().get(whom).is_some();
                        let may_end = running.mesh.check_end(whom, is_linked).is_ok();
                        running.may_write() && known && may_end
                    })
            })
            .map(|(at, _)| at)
            .collect();
        self.rng.choice(&may).copied()
    }

    /// Has it written that a broker stands there from now on.
    fn end_member(&mut self, at: usize, standing: Standing) -> Checked {
        let (id, region) = (self.machines[at].id, self.machines[at].region.clone());
        let Some(by) = self.ender(id) else {
            return Ok(());
        };
        if let Some(running) = &mut self.machines[by].running {
            running.say(Request::Member(id, standing, region));
        }
        self.work(by)
    }

    /// A broker is parked, again and again until somebody has written it.
    pub(super) fn park(&mut self, at: usize) -> Checked {
        let id = self.machines[at].id;
        let knows = |machine: &super::world::Machine| machine.fences.contains_key(&id);
        if !self.machines.iter().any(knows) {
            self.agenda.after(SECOND, Event::Park(at));
            return self.end_member(at, Standing::Parked);
        }
        self.machines[at].parked = true;
        self.outcome.parked += 1;
        if self.quiet {
            return Ok(());
        }
        let comes_back = self.plan.comes_back;
        if comes_back {
            let wait = self.rng.u64(..3000) * MS;
            self.agenda.after(wait, Event::Return(at));
        }
        if let Some(anew) = self.plan.joins_anew {
            // On an empty disk, under another id, where it stood before.
            self.machines[anew].region = self.machines[at].region.clone();
            let wait = self.rng.u64(..3000) * MS;
            self.agenda.after(wait, Event::Join(anew));
        }
        if self.rng.bool() {
            let wait = self.rng.u64(..5000) * MS;
            self.agenda.after(wait, Event::Remove(at));
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, at: usize) -> Checked {
        self.end_member(at, Standing::Removed)
    }

    /// A broker that was parked is started nevertheless, on what its disk has left.
    pub(super) fn come_back(&mut self, at: usize) -> Checked {
        self.machines[at].starts = true;
        self.outcome.returned += 1;
        self.start(at)
    }

    /// Nobody is left running who was parked.
    pub(super) fn end_parked(&mut self) {
        for at in 0..self.machines.len() {
            if self.machines[at].parked {
                self.machines[at].starts = false;
                if self.machines[at].running.is_some() {
                    self.end_process(at, true);
                }
            }
        }
    }
}
