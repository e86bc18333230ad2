//! All brokers, and what happens to them.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_core::id::{BrokerId, RegionName};
use anabranch_core::vector::VersionVector;
use anabranch_protocol::error::Code;
use anabranch_storage::disk::MemoryDisk;
use fastrand::Rng;

use super::agenda::{Agenda, HOUR, MS, SECOND, Time};
use super::broker::{self, Down, Running, Who};
use super::client::Client;
use super::founders;
use super::mutant::Mutant;
use super::network::Network;
use super::plan::{Fault, Plan};
use super::table::{Stored, Table};
use super::truth::{Truth, name_of};
use super::verdict::{Checked, Outcome, Trace, Violation, ensure};

/// Wall clocks begin here, in milliseconds.
pub(super) const BEGINNING_MS: u64 = 1_700_000_000_000;

/// A link that was silent for so long is cut.
pub(super) const SILENCE: Time = 5 * SECOND;

/// How long it may take until all is as it should be, once nothing goes wrong any more. Somebody's
/// stamps may be an hour ahead.
const PATIENCE: Time = 2 * HOUR;

/// Far more events than a run has that comes to an end.
const MOST_EVENTS: u64 = 2_000_000;

/// Something that happens. A number behind a broker is that of its process.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Write(usize),
    LastWrite(usize),
    Client(usize),
    Flush(usize),
    Synced(usize, u64),
    Fold(usize, u64),
    /// There may be something to say, or to take over.
    Wake(usize, u64),
    Dial(usize, usize),
    /// Over a link, from an end.
    Arrive(u64, usize),
    /// An end has heard nothing for too long, since the cut of this number.
    Silent(u64, usize, u64),
    /// An end notices that the other one is gone.
    Gone(u64, usize),
    Start(usize),
    Join(usize),
    Go(usize),
    Park(usize),
    Remove(usize),
    Return(usize),
    Fault,
    /// A path is as it should be again, unless it was cut anew.
    Heal(usize, usize, u64),
    Calm(usize, usize),
    RightClock(usize),
    Quiet,
}

impl Event {
    /// Whether it is of those that keep everybody busy until all is quiet.
    fn is_of_noise(&self) -> bool {
        matches!(
            self,
            Self::Write(_)
                | Self::Client(_)
                | Self::Flush(_)
                | Self::Fault
                | Self::Join(_)
                | Self::Go(_)
                | Self::Return(_)
                | Self::Remove(_)
        )
    }
}

/// A machine with a broker on it.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) id: BrokerId,
    pub(super) region: RegionName,
    pub(super) disk: MemoryDisk,
    pub(super) running: Option<Running>,
    /// Raised with every start and end of a process.
    pub(super) life: u64,
    /// Whether it will be started.
    pub(super) starts: bool,
    pub(super) skew_ms: i64,
    /// What was durable when the last sync was over.
    pub(super) held: VersionVector,
    /// All that ever was, by which it may have been called stable.
    pub(super) ever_held: VersionVector,
    /// Copies of its data directory so far.
    pub(super) backups: u64,
    pub(super) stored: Stored,
    /// Whom to dial as soon as that may be of use.
    pub(super) wants: Vec<usize>,
    /// When it is looked at again.
    wake_at: Time,
    /// How long until frames that wait are looked at again.
    look: Time,
    /// When a process has more to say.
    wakes: BTreeSet<(Time, u64)>,
    pub(super) slow: bool,
    /// Whose power is cut while it is started or runs.
    pub(super) power_cut: bool,
    /// Whether somebody has written that it was parked.
    pub(super) parked: bool,
    /// Whether it has founded a cluster of its own, which cannot become one with the others'.
    pub(super) apart: bool,
    /// What it held of those that were parked when it took that over.
    pub(super) fences: BTreeMap<BrokerId, VersionVector>,
}

impl Machine {
    fn new(seed: u64, at: usize, plan: &Plan) -> Self {
        Self {
            id: broker::id_of(at),
            region: broker::region_of(at),
            disk: MemoryDisk::new(seed.wrapping_mul(31).wrapping_add(at as u64)),
            running: None,
            life: 0,
            starts: at < plan.brokers,
            skew_ms: 0,
            held: VersionVector::EMPTY,
            ever_held: VersionVector::EMPTY,
            backups: 0,
            stored: Stored::default(),
            wants: Vec::new(),
            wake_at: 0,
            look: 0,
            wakes: BTreeSet::new(),
            slow: false,
            power_cut: false,
            parked: false,
            apart: false,
            fences: BTreeMap::new(),
        }
    }

    /// Whether it has to be equal to all others in the end.
    pub(super) fn is_in(&self) -> bool {
        self.starts && !self.parked
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) rng: Rng,
    pub(super) agenda: Agenda<Event>,
    pub(super) machines: Vec<Machine>,
    pub(super) network: Network,
    pub(super) truth: Truth,
    pub(super) clients: Vec<Client>,
    pub(super) outcome: Outcome,
    pub(super) quiet: bool,
    /// Until when nobody reaches anybody.
    pub(super) silent_until: Time,
    /// Says what happens.
    pub(super) talks: bool,
    pub(super) trace: Trace,
    pub(super) written: u64,
    pub(super) mutant: Option<Mutant>,
}

impl World {
    pub(super) fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let plan = Plan::of(&mut rng);
        let machines = (0..plan.machines()).map(|at| Machine::new(seed, at, &plan));
        let mut world = Self {
            machines: machines.collect(),
            network: Network::new(plan.machines()),
            agenda: Agenda::default(),
            truth: Truth::default(),
            clients: vec![Client::default(); plan.clients],
            outcome: Outcome::default(),
            quiet: false,
            silent_until: 0,
            talks: std::env::var_os("ANABRANCH_SIM_LOG").is_some(),
            trace: Trace::default(),
            written: 0,
            mutant,
            plan,
            rng,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let mut late = 50;
        match self.plan.is_founded_anew {
            false => {
                let founders = &mut self.machines[..self.plan.brokers];
                let founded = founders::found(founders, &mut self.truth);
                founded.expect("nothing goes wrong yet");
                for machine in founders {
                    machine.stored = Stored::founded();
                }
            }
            true => {
                late = 3000;
                self.outcome.founded = 1;
            }
        }
        for (from, to) in self.network.between() {
            let path = self.network.path_mut(from, to);
            path.latency = self.rng.u64(1..120) * MS;
            path.jitter = self.rng.u64(0..2) * path.latency / 2;
        }
        for at in 0..self.machines.len() {
            let skew = i64::from(self.rng.u8(..200)) - 100;
            self.machines[at].skew_ms = skew;
            let late = self.rng.u64(..late) * MS;
            self.agenda.after(late, Event::Start(at));
            self.agenda.after(late, Event::Write(at));
            self.agenda.after(late, Event::Flush(at));
        }
        for (from, to) in self.plan.dials.clone() {
            self.machines[from].wants.push(to);
        }
        for client in 0..self.plan.clients {
            self.agenda.after(SECOND / 2, Event::Client(client));
        }
        self.agenda.after(self.plan.fault_every, Event::Fault);
        self.expect_comings();
        self.agenda.at(self.plan.quiet_at, Event::Quiet);
    }

    pub(super) fn run(mut self) -> Result<Outcome, Violation> {
        if self.talks {
            eprintln!("{:?}", self.plan);
        }
        while let Some(event) = self.agenda.next() {
            if self.quiet && event.is_of_noise() {
                continue;
            }
            self.outcome.events += 1;
            let now = self.agenda.now();
            self.trace.note((now, format!("{event:?}")));
            if self.talks {
                eprintln!("{now:>12} {event:?}");
            }
            self.happen(event).map_err(|violation| {
                let what = violation.0;
                Violation(format!("after {} ms: {what}", now / MS))
            })?;
            let patience = PATIENCE + self.plan.quiet_at.max(self.quiet_since());
            let events = self.outcome.events;
            ensure(events < MOST_EVENTS, || "it never ends".to_owned())?;
            ensure(now < patience, || self.unequal("not equal after two hours"))?;
        }
        self.check_end()?;
        self.outcome.trace = self.trace.sum();
        self.outcome.frames = self.truth.frames();
        self.outcome.acked = self.truth.acks;
        self.outcome.lasted = self.agenda.now();
        Ok(self.outcome)
    }

    fn quiet_since(&self) -> Time {
        match self.quiet {
            true => self.plan.quiet_at,
            false => self.agenda.now(),
        }
    }

    fn happen(&mut self, event: Event) -> Checked {
        match event {
            Event::Write(at) => self.write(at),
            Event::LastWrite(at) => self.publish(at, None),
            Event::Client(client) => self.client(client),
            Event::Flush(at) => self.flush(at),
            Event::Synced(at, life) if self.lives(at, life) => self.synced(at),
            Event::Fold(at, life) if self.lives(at, life) => self.fold(at),
            Event::Wake(at, life) if self.lives(at, life) => self.work(at),
            Event::Synced(..) | Event::Fold(..) | Event::Wake(..) => Ok(()),
            Event::Dial(from, to) => self.dial(from, to),
            Event::Arrive(link, end) => self.arrive(link, end),
            Event::Silent(link, end, cut) => self.silent(link, end, cut),
            Event::Gone(link, end) => self.end_side(link, end),
            Event::Start(at) => self.start(at),
            Event::Join(at) => self.join(at),
            Event::Go(at) => self.go(at),
            Event::Park(at) => self.park(at),
            Event::Remove(at) => self.remove(at),
            Event::Return(at) => self.come_back(at),
            Event::Fault => self.next_fault(),
            Event::Heal(from, to, cut) => {
                self.heal(from, to, cut);
                Ok(())
            }
            Event::Calm(from, to) => {
                self.network.path_mut(from, to).damage = 0;
                Ok(())
            }
            Event::RightClock(at) => {
                self.machines[at].skew_ms = 0;
                self.machines[at].slow = false;
                self.work(at)
            }
            Event::Quiet => self.be_quiet(),
        }
    }

    pub(super) fn lives(&self, at: usize, life: u64) -> bool {
        self.machines[at].life == life && self.machines[at].running.is_some()
    }

    pub(super) fn wall_ms(&self, at: usize) -> u64 {
        let now = BEGINNING_MS + self.agenda.now() / MS;
        now.saturating_add_signed(self.machines[at].skew_ms)
    }

    pub(super) fn next_in(&mut self, mean: Time) -> Time {
        self.rng.u64(..2 * mean.max(1))
    }

    /// What a broker does whenever something has come, or it is time: gathers a group, and says
    /// what there is to say.
    pub(super) fn work(&mut self, at: usize) -> Checked {
        let (now, now_ms) = (self.agenda.now(), self.wall_ms(at));
        let written = self.rng.bool();
        let Some(running) = &mut self.machines[at].running else {
            return Ok(());
        };
        running.attend(now);
        match running.gather((now, now_ms), written, &mut self.truth) {
            Ok(true) => {
                if self.mutant == Some(Mutant::AckBeforeSync) {
                    let own = running.syncing.iter().flat_map(|group| &group.own);
                    own.for_each(|(name, _)| self.truth.ack(*name));
                }
                let most = if self.machines[at].slow { 80 * MS } else { MS };
                let sync = self.rng.u64(100..=most);
                let life = self.machines[at].life;
                self.agenda.after(sync, Event::Synced(at, life));
            }
            Ok(false) => self.look_again(at),
            Err(down) => return self.went_down(at, down),
        }
        self.speak(at)
    }

    /// Frames that wait for the clock here are looked at now and then.
    fn look_again(&mut self, at: usize) {
        let now = self.agenda.now();
        let machine = &mut self.machines[at];
        let Some(running) = &machine.running else {
            return;
        };
        if running.holding.is_empty() {
            machine.look = 50 * MS;
        } else if machine.wake_at <= now {
            machine.look = (machine.look * 2).clamp(50 * MS, 60 * SECOND);
            machine.wake_at = now + machine.look;
            self.agenda
                .at(machine.wake_at, Event::Wake(at, machine.life));
        }
    }

    fn speak(&mut self, at: usize) -> Checked {
        let now = self.agenda.now();
        let Some(running) = &self.machines[at].running else {
            return Ok(());
        };
        let links: Vec<u64> = running.sides.keys().copied().collect();
        for link in links {
            let Some(running) = &mut self.machines[at].running else {
                return Ok(());
            };
            match running.speak(link, now) {
                Ok((said, wake)) => {
                    for message in said {
                        self.say(at, link, &message);
                    }
                    if let Some(time) = wake {
                        self.wake_at(at, time);
                    }
                }
                Err(down) => return self.went_down(at, down),
            }
        }
        Ok(())
    }

    /// Once for each moment, however often it is asked for.
    fn wake_at(&mut self, at: usize, time: Time) {
        let now = self.agenda.now();
        let machine = &mut self.machines[at];
        machine.wakes = machine.wakes.split_off(&(now, machine.life));
        if machine.wakes.insert((time, machine.life)) {
            self.agenda.at(time, Event::Wake(at, machine.life));
        }
    }

    fn synced(&mut self, at: usize) -> Checked {
        let Some(running) = &mut self.machines[at].running else {
            return Ok(());
        };
        let (run, group) = match running.synced() {
            Ok(done) => done,
            Err(down) => return self.went_down(at, down),
        };
        for commit in &run {
            self.trace.note(commit.header.chain.as_bytes());
        }
        self.check_run(at, &run)?;
        for (name, client) in &group.own {
            self.truth.ack(*name);
            let commit = run.iter().find(|commit| name_of(commit) == *name);
            let (Some(client), Some(commit)) = (client, commit) else {
                continue;
            };
            self.clients[*client].acked(commit, self.truth.fact(*name)?)?;
        }
        let Some(running) = &mut self.machines[at].running else {
            return Ok(());
        };
        if let Err(down) = running.advance(run, &group) {
            return self.went_down(at, down);
        }
        let Some(running) = &mut self.machines[at].running else {
            return Ok(());
        };
        for link in std::mem::take(&mut running.entrance.fenced) {
            self.refuse(at, link, Code::Parked)?;
        }
        // What it took of links' credit goes back.
        drop(group);
        self.check_stable(at)?;
        let wait = self.rng.u64(10..5 * MS);
        let life = self.machines[at].life;
        self.agenda.after(wait, Event::Fold(at, life));
        self.work(at)
    }

    fn fold(&mut self, at: usize) -> Checked {
        if let Some(running) = &mut self.machines[at].running {
            running.fold()?;
        }
        self.check_rows(at)
    }

    fn next_fault(&mut self) -> Checked {
        let next = self.next_in(self.plan.fault_every);
        self.agenda.after(next, Event::Fault);
        let fault: Fault = self.plan.fault(&mut self.rng);
        self.inflict(fault)
    }

    /// What a broker is told when it starts. Of one that has gone for good and was not parked yet
    /// nobody is told any more.
    fn who(&self, at: usize) -> Who {
        let machine = &self.machines[at];
        let is_named = |&(from, to): &(usize, usize)| {
            let named = &self.machines[to];
            from == at && (named.starts || named.parked)
        };
        let founds = at < self.plan.brokers;
        let patience = self.plan.patience.filter(|_| founds);
        Who {
            at,
            id: machine.id,
            region: machine.region.clone(),
            named: self.plan.dials.iter().copied().filter(is_named).count(),
            deadline: patience.map(|patience| self.agenda.now() + patience),
        }
    }

    /// A broker starts on what its disk has left.
    pub(super) fn start(&mut self, at: usize) -> Checked {
        let who = self.who(at);
        let machine = &mut self.machines[at];
        if machine.running.is_some() || !machine.starts {
            return Ok(());
        }
        let opened = broker::open(&machine.disk, who.id);
        let opened = match opened {
            Ok(opened) => opened,
            Err(why) => return self.start_failed(at, why),
        };
        machine.life += 1;
        let table = Table::restored(machine.stored.clone());
        let deadline = who.deadline;
        if self.talks {
            eprintln!("{:>14} {:?}", "", opened.recovery);
        }
        let (running, _) = Running::new(who, opened, table, self.mutant);
        machine.running = Some(running);
        if let Some(deadline) = deadline {
            self.agenda.at(deadline, Event::Wake(at, machine.life));
        }
        self.check_start(at)?;
        self.outcome.restarts += 1;
        self.dial_wanted(at);
        for other in 0..self.machines.len() {
            if self.machines[other].wants.contains(&at) {
                self.dial_wanted(other);
            }
        }
        self.work(at)
    }

    pub(super) fn went_down(&mut self, at: usize, down: Down) -> Checked {
        match down {
            Down::Wrong(violation) => Err(violation),
            Down::Disk => self.crash(at),
        }
    }
}
