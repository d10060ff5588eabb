//! The world's clock, and everything that it drives.

mod drops;
mod hooks;
mod life;

use std::ops::AddAssign;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::id::ChannelName;
use checkvalve_protocol::time::Time;
use checkvalve_sender::engine::Now;

use super::book::{Book, Held};
use super::high::High;
use super::hook::Running;
use super::low::{Low, Told};
use super::machine::{Machine, arm, lay};
use super::memory::Memory;
use super::peer::Peer;
use super::script::{Script, Side, What};
use super::wire::{LANES, Wire};
use crate::rng::Rng;
use crate::simdisk::{Op, SimDisk};

pub(super) const MS: u64 = 1_000_000;

/// The result of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// How many bundles were dropped.
    pub dropped: u64,
    /// How many bundles were published.
    pub published: u64,
    /// How many processes died.
    pub crashes: u64,
    /// How many tickets were carried.
    pub tickets: u64,
    /// How long the run lasted, in simulated milliseconds.
    pub lasted_ms: u64,
    /// A hash of everything that happened. The same script always gives the same hash.
    pub trace: u64,
}

impl AddAssign for Stats {
    /// Adds what another run came to; the hash becomes that of both, in any order.
    fn add_assign(&mut self, other: Self) {
        self.dropped += other.dropped;
        self.published += other.published;
        self.crashes += other.crashes;
        self.tickets += other.tickets;
        self.lasted_ms += other.lasted_ms;
        self.trace ^= other.trace;
    }
}

/// A violated invariant.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What.
    pub what: String,
    /// When, in simulated milliseconds.
    pub at_ms: u64,
}

/// Plays a script, and reports everything that happens to `tell`. Errors: the first violated invariant.
pub fn run(script: &Script, tell: &mut dyn FnMut(&str)) -> Result<Stats, Failure> {
    let mut world = World::new(script.clone(), tell);
    let played = catch_unwind(AssertUnwindSafe(|| world.play()));
    let what = match played {
        Ok(Ok(())) => return Ok(world.stats()),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            format!("panic: {}", text.or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
        }
    };
    Err(Failure { what, at_ms: world.now / MS })
}

/// The names of the channels of every run.
pub(super) const CHANNELS: [&str; 2] = ["default", "urgent"];

/// The channels of every run.
pub(super) fn channels() -> [ChannelName; 2] {
    CHANNELS.map(|name| ChannelName::new(name).expect("a name"))
}

/// What is known of the code, which is the same in every run.
pub(super) fn plans() -> &'static Arc<Plans> {
    static PLANS: LazyLock<Arc<Plans>> = LazyLock::new(Arc::default);
    &PLANS
}

/// Both machines, the line between them, and everything around them.
pub(super) struct World<'a> {
    pub(super) script: Script,
    pub(super) now: u64,
    pub(super) low: Machine<Low>,
    pub(super) high: Machine<High>,
    /// The memory of the receiver's unfinished blocks.
    pub(super) memory: Memory,
    wire: Wire,
    /// Until when nothing can be handed to each lane.
    stuck_until: [u64; LANES],
    /// When the receiver is checked next.
    pub(super) looks_at: u64,
    pub(super) peer: Peer,
    pub(super) book: Book,
    hooks: Vec<Running>,
    rng: Rng,
    renames: u64,
    crashes: u64,
    pub(super) tickets: u64,
    trace: u64,
    tell: &'a mut dyn FnMut(&str),
}

impl<'a> World<'a> {
    fn new(script: Script, tell: &'a mut dyn FnMut(&str)) -> Self {
        let mut rng = Rng::new(script.seed);
        let mut low = Machine::new(rng.next_u64());
        let mut high = Machine::new(rng.next_u64());
        lay(&low.disk, &["/spool", "/state", "/place"], script.options.spool_mounted.then_some("/spool"));
        lay(&high.disk, &["/inbox", "/quarantine", "/state"], script.options.inbox_mounted.then_some("/inbox"));
        // The receiver hears the first beacon before anything is dropped.
        (low.up_at, high.up_at) = (MS, 0);
        Self {
            now: 0,
            low,
            high,
            memory: Memory::default(),
            wire: Wire::new(rng.next_u64()),
            stuck_until: [0; LANES],
            looks_at: 0,
            peer: Peer::new(&script),
            book: Book::default(),
            hooks: Vec::new(),
            rng,
            renames: 0,
            crashes: 0,
            tickets: 0,
            trace: 0,
            tell,
            script,
        }
    }

    fn play(&mut self) -> Held {
        let perfect = std::mem::replace(&mut self.wire.perfect, true);
        self.advance(3_000 * MS)?;
        self.wire.perfect = perfect;
        for event in self.script.events.clone() {
            self.advance((3_000 + event.at_ms) * MS)?;
            self.note(|| format!("[{}] {:?}", event.number, event.what));
            self.happen(event.what)?;
        }
        self.advance(self.now + 2_000 * MS)?;
        self.settle()
    }

    fn stats(&self) -> Stats {
        Stats {
            dropped: self.book.drops.len() as u64,
            published: self.book.published(),
            crashes: self.crashes,
            tickets: self.tickets,
            lasted_ms: self.now / MS,
            trace: self.trace,
        }
    }

    /// Runs the world until `until`.
    pub(super) fn advance(&mut self, until: u64) -> Held {
        loop {
            let next = self.next_ns().clamp(self.now, until);
            self.now = next;
            self.mend_and_start()?;
            if self.low.process.is_some() && self.low.next <= self.now {
                self.step_low()?;
            }
            self.wire.inject(self.now, self.peer.step(self.now));
            while let Some(datagram) = self.wire.take(self.now) {
                self.arrive(datagram)?;
            }
            if self.high.process.is_some() && self.high.next <= self.now {
                self.step_high()?;
            }
            self.end_hooks()?;
            if self.now >= until {
                return Ok(());
            }
        }
    }

    fn next_ns(&self) -> u64 {
        let low = if self.low.process.is_some() { self.low.next } else { self.low.up_at };
        let high = if self.high.process.is_some() { self.high.next } else { self.high.up_at };
        let others = [self.low.faulty_until, self.high.faulty_until, self.wire.next(), self.peer.next()];
        let hooks = self.hooks.iter().map(|hook| hook.ends_ns);
        others.into_iter().flatten().chain(hooks).chain([low, high]).min().expect("there are two machines")
    }

    fn happen(&mut self, what: What) -> Held {
        match what {
            What::Drop { channel, size, files, renamed, told } => {
                self.drop_bundle(channel, size, files, renamed, told);
            }
            What::Crash { side, cut, after_ops: None, down_ms } => self.die(side, cut, down_ms, None)?,
            What::Crash { side, cut, after_ops: Some(ops), down_ms } => match side {
                Side::Low => arm(&mut self.low, cut, ops, down_ms),
                Side::High => arm(&mut self.high, cut, ops, down_ms),
            },
            What::Disk { side, fault, for_ms } => {
                let until = self.now + for_ms * MS;
                match side {
                    Side::Low => self.low.misbehave(fault, &["/", "/spool"], until),
                    Side::High => self.high.misbehave(fault, &["/", "/inbox"], until),
                }
            }
            What::Outage { for_ms } => self.wire.dead_until = self.now + for_ms * MS,
            What::Jump { side: Side::Low, by_ms } => self.low.wall_offset_ms += by_ms,
            What::Jump { side: Side::High, by_ms } => self.high.wall_offset_ms += by_ms,
            What::Late { side: Side::Low, often, for_ms } => self.low.late = (often, self.now + for_ms * MS),
            What::Late { side: Side::High, often, for_ms } => self.high.late = (often, self.now + for_ms * MS),
            What::Lane { lane, stuck: false, for_ms } => self.wire.dark_until[lane] = self.now + for_ms * MS,
            What::Lane { lane, stuck: true, for_ms } => self.stuck_until[lane] = self.now + for_ms * MS,
            What::Slow { side: Side::Low, for_ms } => self.low.slow_until = self.now + for_ms * MS,
            What::Slow { side: Side::High, for_ms } => self.high.slow_until = self.now + for_ms * MS,
            What::Tickets => self.carry_tickets(false)?,
            What::Resend { pick } => self.resend_any(pick)?,
            What::Forge { what, times, for_ms } => self.peer.forge(what, self.now, times, for_ms * MS / times),
        }
        Ok(())
    }

    fn step_low(&mut self) -> Held {
        let now = self.now;
        self.low.stamp(now);
        let clock = self.low.clock(now);
        let pace = self.low.pace(now);
        let Some(process) = &mut self.low.process else { return Ok(()) };
        let mut told = Told::default();
        let next = SimDisk::until_power_cut(|| process.step(now, clock, pace, &self.stuck_until, &mut told));
        process.fault().map_or(Ok(()), Err)?;
        self.hear_low(told)?;
        match next {
            None => self.die_armed(Side::Low, None),
            Some(next) => {
                self.low.next = if pace.still { next.min(self.low.slow_until).max(now + MS) } else { next };
                Ok(())
            }
        }
    }

    fn hear_low(&mut self, told: Told) -> Held {
        for job in &told.jobs {
            self.note(|| {
                format!("transmits {}/{} ({}) from ESI {}", job.channel, job.sequence, job.bundle, job.esis.start)
            });
            self.book.started(job)?;
            self.peer.hear(job);
        }
        for (id, whole) in told.ended {
            self.note(|| format!("{id} {}", if whole { "is transmitted" } else { "failed" }));
            self.book.ended(id, whole);
        }
        for (lane, datagram) in told.datagrams {
            self.peer.overhear(&datagram);
            self.book.said.sent(&datagram)?;
            self.wire.send(self.now, lane, datagram, &self.script.options);
        }
        Ok(())
    }

    fn arrive(&mut self, mut datagram: Vec<u8>) -> Held {
        let now = self.now;
        self.high.stamp(now);
        let (pace, wall) = (self.high.pace(now), self.high.wall_ms(now));
        let Some(process) = &mut self.high.process else { return Ok(()) };
        let done = SimDisk::until_power_cut(|| {
            process.receive(Time(now), wall, pace, &mut datagram);
            process.work(wall, pace, false);
        });
        if done.is_none() {
            return self.die_armed(Side::High, None);
        }
        process.fault().map_or(Ok(()), Err)?;
        self.high.next = self.high.next.min(process.wakes_at().map_or(u64::MAX, |at| at.0));
        self.look_into_inbox(false)
    }

    fn step_high(&mut self) -> Held {
        let now = self.now;
        self.high.stamp(now);
        let (pace, wall) = (self.high.pace(now), self.high.wall_ms(now));
        let Some(process) = &mut self.high.process else { return Ok(()) };
        let due = SimDisk::until_power_cut(|| {
            process.tend(Time(now), wall);
            process.work(wall, pace, true);
            if pace.still { Vec::new() } else { process.delivery.due_hooks(wall) }
        });
        let Some(due) = due else { return self.die_armed(Side::High, None) };
        process.fault().map_or(Ok(()), Err)?;
        process.is_bounded()?;
        self.high.next = (now + 100 * MS).min(process.wakes_at().map_or(u64::MAX, |at| at.0)).max(now + 1);
        self.look_into_inbox(false)?;
        self.look()?;
        due.into_iter().try_for_each(|run| self.start_hook(run))
    }

    fn look_into_inbox(&mut self, always: bool) -> Held {
        let disk = &self.high.disk;
        let renames = disk.count(Op::Rename) + disk.count(Op::RenameNoreplace);
        if renames == self.renames && !always {
            return Ok(());
        }
        self.renames = renames;
        let wall = self.high.wall_ms(self.now);
        let process = self.high.process.as_ref();
        let status = process.map(|process| self.quietly(|| process.delivery.status(wall)));
        self.book.inbox(&self.high.disk, status.as_ref())
    }

    /// Looks from outside, without counting the operations on the receiver's disk.
    fn quietly<T>(&self, look: impl FnOnce() -> T) -> T {
        self.high.disk.outside(look)
    }

    /// Makes the line perfect.
    pub(super) fn mend_wire(&mut self) {
        self.wire.perfect = true;
    }

    pub(super) fn low_clock(&self) -> Now {
        self.low.clock(self.now)
    }

    pub(super) fn high_wall_ms(&self) -> u64 {
        self.high.wall_ms(self.now)
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let text = format!("{:>9.3} {}", self.now as f64 / 1e9, what());
        let hash = blake3::hash(text.as_bytes());
        let word = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"));
        self.trace = self.trace.rotate_left(1) ^ word;
        (self.tell)(&text);
    }
}
