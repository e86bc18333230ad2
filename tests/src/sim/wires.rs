//! Links between simulated brokers: dialling, carrying messages, ending.

use anabranch_protocol::error::Code;
use anabranch_protocol::peer::{LENGTH_BYTES, PeerMessage};
use bytes::{Bytes, BytesMut};

use super::agenda::MS;
use super::link::{Dialled, Side, Then};
use super::network::{Carried, Link};
use super::verdict::Checked;
use super::world::{Event, World};

/// Frames by their size: what they are stands in their difference to those before.
fn shown(message: &PeerMessage) -> String {
    let PeerMessage::Block { block, .. } = message else {
        return format!("{message:?}");
    };
    let (heads, bodies) = (block.heads.len(), block.bodies.len());
    format!("Block of {heads} + {bodies} bytes")
}

impl World {
    pub(super) fn say(&mut self, at: usize, link: u64, message: &PeerMessage) {
        if self.talks {
            eprintln!("{:>14} broker {at} over {link}: {}", "", shown(message));
        }
        let running = self.machines[at].running.as_mut();
        let Some(side) = running.and_then(|running| running.sides.get_mut(&link)) else {
            return;
        };
        let mut bytes = BytesMut::new();
        side.encoder.encode(message, &mut bytes);
        let bytes = bytes.freeze();
        self.trace.note(&bytes[..]);
        self.carry(at, link, Carried::Message(bytes));
    }

    pub(super) fn carry(&mut self, from: usize, number: u64, carried: Carried) {
        let Some(link) = self.network.links.get(&number) else {
            return;
        };
        let end = usize::from(link.ends[0] != from);
        let path = self.network.path(from, link.ends[1 - end]);
        let delay = path.latency + self.rng.u64(..=path.jitter);
        let now = self.agenda.now();
        if let Some(link) = self.network.links.get_mut(&number) {
            let arrives = (now + delay).max(link.last[end]);
            link.last[end] = arrives;
            link.pipes[end].push_back(carried);
            self.agenda.at(arrives, Event::Arrive(number, end));
        }
    }

    pub(super) fn arrive(&mut self, number: u64, end: usize) -> Checked {
        let Some(link) = self.network.links.get_mut(&number) else {
            return Ok(());
        };
        let (from, to) = (link.ends[end], link.ends[1 - end]);
        let path = self.network.path(from, to);
        let Some(link) = self.network.links.get_mut(&number) else {
            return Ok(());
        };
        if path.cut {
            link.stalled[end] += 1;
            return Ok(());
        }
        let is_open = link.open[1 - end];
        match link.pipes[end].pop_front() {
            Some(Carried::Message(bytes)) if is_open => {
                let bytes = self.damaged(bytes, path.damage);
                self.hear(to, number, end, bytes)
            }
            Some(Carried::End) if is_open => self.end_side(number, 1 - end),
            _ => Ok(()),
        }
    }

    fn damaged(&mut self, bytes: Bytes, one_in: u64) -> Bytes {
        if one_in == 0 || self.rng.u64(..one_in) > 0 {
            return bytes;
        }
        self.outcome.damaged += 1;
        if self.talks {
            eprintln!("{:>14} it is damaged", "");
        }
        let mut bytes = bytes.to_vec();
        let at = self.rng.usize(..bytes.len());
        bytes[at] ^= 1 << self.rng.u8(..8);
        bytes.into()
    }

    fn hear(&mut self, at: usize, link: u64, from: usize, mut bytes: Bytes) -> Checked {
        let length = bytes.split_to(LENGTH_BYTES);
        let wanted = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        // A length that is damaged makes nonsense of all that follows.
        let running = self.machines[at].running.as_mut();
        let Some(side) = running.and_then(|running| running.sides.get_mut(&link)) else {
            return Ok(());
        };
        let message = match length[..] == wanted {
            true => side.decoder.decode(bytes).ok(),
            false => None,
        };
        let Some(message) = message else {
            return self.end_side(link, 1 - from);
        };
        let Some(running) = &mut self.machines[at].running else {
            return Ok(());
        };
        match running.hear(link, message) {
            Ok(Then::GoesOn) => {}
            Ok(Then::Up(replaced)) => {
                self.outcome.links += 1;
                if let Some(replaced) = replaced {
                    self.close(at, replaced);
                }
            }
            Ok(Then::Refused(code)) => return self.refuse(at, link, code),
            Ok(Then::Ends) => return self.end_side(link, 1 - from),
            Err(down) => return self.went_down(at, down),
        }
        self.work(at)
    }

    /// Ends a link, and says why.
    pub(super) fn refuse(&mut self, at: usize, number: u64, code: Code) -> Checked {
        let Some(link) = self.network.links.get(&number) else {
            return Ok(());
        };
        let (ends, end) = (link.ends, usize::from(link.ends[0] != at));
        self.outcome.refused += u64::from(code == Code::Parked);
        let message = String::new();
        self.say(at, number, &PeerMessage::Bye { code, message });
        self.end_side(number, end)?;
        if code == Code::OtherFounding {
            ends.into_iter().for_each(|at| self.give_up(at));
        }
        Ok(())
    }

    pub(super) fn dial(&mut self, from: usize, to: usize) -> Checked {
        let is_up = |at: usize| self.machines[at].running.is_some();
        let Some(running) = &self.machines[from].running else {
            return Ok(());
        };
        let dials = |side: &Side| side.peer == to && side.dialled == Dialled::Here;
        if running.sides.values().any(dials) {
            return Ok(());
        }
        let is_linked = running.linked().contains_key(&self.machines[to].id);
        if self.talks {
            let path = self.network.is_open(from, to);
            eprintln!(
                "{:>14} linked {is_linked}, up {}, open {path}",
                "",
                is_up(to)
            );
        }
        if is_linked {
            // It would find out that there is a link already, and whom it has met.
            self.machines[from].wants.push(to);
            let met = self.machines[to].id;
            if let Some(running) = &mut self.machines[from].running {
                running.entrance.meet(to, met);
            }
            return self.work(from);
        }
        if !is_up(to) || !self.network.is_open(from, to) {
            self.machines[from].wants.push(to);
            return Ok(());
        }
        self.network.forget_ended();
        self.network.made += 1;
        let number = self.network.made;
        self.network.links.insert(number, Link::new(from, to));
        for (at, peer, dialled) in [(from, to, Dialled::Here), (to, from, Dialled::There)] {
            if let Some(running) = &mut self.machines[at].running {
                let hello = running.hello();
                let side = Side::new(peer, dialled, hello.clone());
                running.sides.insert(number, side);
                self.say(at, number, &PeerMessage::Hello(hello));
            }
        }
        Ok(())
    }

    /// An end of a link is not used any more; the other one will notice.
    fn close(&mut self, at: usize, number: u64) {
        self.carry(at, number, Carried::End);
        if let Some(link) = self.network.links.get_mut(&number) {
            let end = usize::from(link.ends[0] != at);
            link.open[end] = false;
            if end == 0 {
                let to = link.ends[1];
                let wait = self.rng.u64(50..3000) * MS;
                self.agenda.after(wait, Event::Dial(at, to));
            }
        }
    }

    pub(super) fn end_side(&mut self, number: u64, end: usize) -> Checked {
        let Some(link) = self.network.links.get(&number) else {
            return Ok(());
        };
        let at = link.ends[end];
        if !link.open[end] {
            return Ok(());
        }
        self.close(at, number);
        if let Some(running) = &mut self.machines[at].running
            && running.lose(number).is_some_and(|side| side.is_seated())
        {
            self.dial_wanted(at);
            return self.work(at);
        }
        Ok(())
    }

    /// Whom a broker would have dialled if that had been of use.
    pub(super) fn dial_wanted(&mut self, at: usize) {
        if self.machines[at].running.is_none() {
            return;
        }
        for to in std::mem::take(&mut self.machines[at].wants) {
            let wait = self.rng.u64(50..1000) * MS;
            self.agenda.after(wait, Event::Dial(at, to));
        }
    }

    pub(super) fn silent(&mut self, number: u64, end: usize, cut: u64) -> Checked {
        let Some(link) = self.network.links.get(&number) else {
            return Ok(());
        };
        let path = self.network.path(link.ends[1 - end], link.ends[end]);
        match path.cut && path.cuts == cut {
            true => self.end_side(number, end),
            false => Ok(()),
        }
    }
}
