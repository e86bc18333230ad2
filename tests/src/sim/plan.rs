//! What a run is like: how many brokers, who dials whom, and what goes wrong. All of it follows from
//! the seed.

use std::collections::BTreeSet;

use fastrand::Rng;

use super::agenda::{HOUR, MS, SECOND, Time};

/// What goes wrong at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// Nothing passes in one direction.
    CutOneWay(usize, usize),
    /// Nothing passes.
    Cut(usize, usize),
    /// Nothing passes, again and again, for a moment.
    Flap(usize, usize),
    /// Brokers of this bit set and the others do not reach each other.
    Part(u64),
    /// Nobody reaches anybody, for days.
    Silence,
    /// Messages are damaged on their way.
    Noise(usize, usize),
    /// The process ends.
    Kill(usize),
    /// The machine loses its power.
    PowerCut(usize),
    /// It loses its power at the disk operation that is so far ahead.
    PowerCutAt(usize, u64),
    /// A disk operation fails.
    DiskFails(usize, u64),
    /// The broker is asked to stop.
    Stop(usize),
    /// The data directory is copied.
    Backup(usize),
    /// It is replaced by its last copy.
    Restore(usize),
    /// A clock is wrong by so many milliseconds from now on.
    Clock(usize, i64),
    /// The disk is slow for a while.
    SlowDisk(usize),
}

/// What a run is like.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) brokers: usize,
    pub(super) clients: usize,
    /// Who dials whom.
    pub(super) dials: Vec<(usize, usize)>,
    /// Whether everybody is linked with everybody, if nothing is cut.
    pub(super) meshed: bool,
    /// When the last fault is over, and nobody writes any more.
    pub(super) quiet_at: Time,
    pub(super) write_every: Time,
    pub(super) fault_every: Time,
    pub(super) keys: u8,
    /// Whether messages are damaged at all, and whether clocks are wrong.
    noisy: bool,
    clocks: bool,
    crashes: bool,
    silence: bool,
    /// Whether directories are often copied and put back.
    restores: bool,
    /// Whether nobody is a member in the beginning.
    pub(super) is_founded_anew: bool,
    /// How long founders wait for each other, if not for ever.
    pub(super) patience: Option<Time>,
    /// Machines that are not there from the beginning.
    spares: usize,
    /// Who goes for good, and is parked.
    pub(super) goes: Option<usize>,
    /// Whether it is started again all the same.
    pub(super) comes_back: bool,
    /// The machine that joins in its place.
    pub(super) joins_anew: Option<usize>,
}

impl Plan {
    pub(super) fn of(rng: &mut Rng) -> Self {
        let brokers = *rng
            .choice([2, 3, 3, 3, 4, 5].iter())
            .expect("it is not empty");
        let dials = dials(brokers, rng);
        let mut plan = Self {
            brokers,
            meshed: pairs(&dials) == brokers * (brokers - 1) / 2,
            clients: rng.usize(1..4),
            dials,
            quiet_at: rng.u64(2..12) * SECOND,
            write_every: rng.u64(20..150) * MS,
            fault_every: rng.u64(100..1500) * MS,
            keys: rng.u8(1..9),
            noisy: rng.u8(..3) == 0,
            clocks: rng.u8(..4) == 0,
            crashes: rng.u8(..3) > 0,
            silence: rng.u8(..12) == 0,
            restores: rng.u8(..5) == 0,
            is_founded_anew: false,
            patience: None,
            spares: 0,
            goes: None,
            comes_back: false,
            joins_anew: None,
        };
        if plan.meshed && rng.u8(..3) == 0 {
            plan.will_be_founded(rng);
        }
        if rng.bool() {
            plan.has_comings(rng);
        }
        plan
    }

    /// Nobody is a member yet. Each is told of all others that it will be linked with: two that are not
    /// told of each other may found two clusters.
    fn will_be_founded(&mut self, rng: &mut Rng) {
        let back: Vec<_> = self.dials.iter().map(|&(from, to)| (to, from)).collect();
        self.dials.extend(back);
        self.dials.sort_unstable();
        self.dials.dedup();
        self.is_founded_anew = true;
        self.patience = rng.bool().then(|| rng.u64(..6) * SECOND);
    }

    /// Some join, one goes, and perhaps comes back.
    fn has_comings(&mut self, rng: &mut Rng) {
        self.quiet_at += rng.u64(..10) * SECOND;
        let goes = self.brokers > 2 && self.meshed && rng.bool();
        self.goes = goes.then(|| rng.usize(..self.brokers));
        self.restores &= !goes;
        let joins = rng.usize(if goes { 0..3 } else { 1..3 });
        self.comes_back = goes && rng.bool();
        self.joins_anew = (goes && rng.bool()).then_some(self.brokers + joins);
        self.spares = joins + usize::from(self.joins_anew.is_some());
        for spare in self.brokers..self.brokers + self.spares {
            // Who joins must not be told of one that was parked, see ADR 0024.
            let mut stay: Vec<_> = (0..self.brokers)
                .filter(|&at| Some(at) != self.goes)
                .collect();
            rng.shuffle(&mut stay);
            let told = rng.usize(1..=stay.len());
            self.dials
                .extend(stay[..told].iter().map(|&to| (spare, to)));
            self.meshed &= told == stay.len();
        }
    }

    /// All machines, also those that are not there yet.
    pub(super) fn machines(&self) -> usize {
        self.brokers + self.spares
    }

    /// Machines that join.
    pub(super) fn joins(&self) -> impl Iterator<Item = usize> + use<> {
        let anew = self.joins_anew;
        (self.brokers..self.machines()).filter(move |&at| Some(at) != anew)
    }

    pub(super) fn fault(&self, rng: &mut Rng) -> Fault {
        let all = self.machines();
        let at = rng.usize(..all);
        let to = (at + rng.usize(1..all)) % all;
        if self.restores && rng.bool() {
            return match rng.u8(..3) {
                0 => Fault::Backup(at),
                _ => Fault::Restore(at),
            };
        }
        let fault = self.any_fault(at, to, rng);
        match fault {
            // Who may have forgotten something asks all, and one that is gone does not answer.
            Fault::PowerCut(at) | Fault::PowerCutAt(at, _) if self.goes.is_some() => {
                Fault::Kill(at)
            }
            _ => fault,
        }
    }

    fn any_fault(&self, at: usize, to: usize, rng: &mut Rng) -> Fault {
        let all = self.machines();
        match rng.u8(..16) {
            0 | 1 => Fault::CutOneWay(at, to),
            2 | 3 => Fault::Cut(at, to),
            4 | 5 => Fault::Flap(at, to),
            6 => Fault::Part(rng.u64(..1 << all)),
            7 if self.silence => Fault::Silence,
            8 if self.noisy => Fault::Noise(at, to),
            9 | 10 if self.crashes => Fault::Kill(at),
            11 if self.crashes => Fault::PowerCut(at),
            12 if self.crashes => match rng.u8(..4) {
                0 => Fault::DiskFails(at, rng.u64(1..40)),
                _ => Fault::PowerCutAt(at, rng.u64(1..60)),
            },
            13 if self.crashes => Fault::Stop(at),
            14 if self.clocks => Fault::Clock(at, wrong_by(rng)),
            _ => Fault::SlowDisk(at),
        }
    }

    /// How long a fault lasts.
    pub(super) fn lasts(fault: Fault, rng: &mut Rng) -> Time {
        match fault {
            Fault::Flap(..) => rng.u64(1..300) * MS,
            Fault::Silence => 72 * HOUR,
            Fault::Kill(_) | Fault::Stop(_) | Fault::Restore(_) | Fault::DiskFails(..) => {
                rng.u64(1..2000) * MS
            }
            _ => match rng.u8(..4) {
                0 => rng.u64(10..30) * SECOND,
                _ => rng.u64(50..4000) * MS,
            },
        }
    }
}

fn wrong_by(rng: &mut Rng) -> i64 {
    *rng.choice([-3_600_000, -400, 0, 300, 450, 3_600_000].iter())
        .expect("it is not empty")
}

fn pairs(dials: &[(usize, usize)]) -> usize {
    let pairs = dials.iter().map(|&(a, b)| (a.min(b), a.max(b)));
    pairs.collect::<BTreeSet<_>>().len()
}

/// Mostly everybody dials everybody; sometimes links make a chain or a star, and frames are relayed.
fn dials(brokers: usize, rng: &mut Rng) -> Vec<(usize, usize)> {
    let shape = rng.u8(..5);
    let mut dials = Vec::new();
    for one in 0..brokers {
        for other in one + 1..brokers {
            let linked = match shape {
                0 => other == one + 1,
                1 => one == 0,
                _ => true,
            };
            if linked {
                match rng.u8(..3) {
                    0 => dials.push((one, other)),
                    1 => dials.push((other, one)),
                    _ => dials.extend([(one, other), (other, one)]),
                }
            }
        }
    }
    dials
}
