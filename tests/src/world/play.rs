//! The world's clock, and all that goes on by it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkvalve_host::disk::{Disk, FileTime};
use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::id::ChannelName;
use checkvalve_protocol::time::Time;
use checkvalve_receiver::delivery::HookRun;
use checkvalve_receiver::hook::Outcome;
use checkvalve_sender::engine::Now;
use checkvalve_sender::spool::Seen;

use super::book::{Book, Held};
use super::high::High;
use super::hook::Running;
use super::low::{self, Low, Told};
use super::memory::Memory;
use super::peer::Peer;
use super::script::{Cut, Fault, Script, Side, What};
use super::wire::Wire;
use crate::rng::Rng;
use crate::simdisk::{Op, SimDisk};

pub(super) const MS: u64 = 1_000_000;
const WALL_MS: i64 = 1_700_000_000_000;

/// What a run came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bundles that were dropped.
    pub dropped: u64,
    /// Bundles that were published.
    pub published: u64,
    /// Processes that died.
    pub crashes: u64,
    /// Tickets that were carried.
    pub tickets: u64,
    /// Simulated milliseconds.
    pub lasted_ms: u64,
    /// Stands for all that happened: the same script gives the same.
    pub trace: u64,
}

/// What did not hold.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What.
    pub what: String,
    /// When, in simulated milliseconds.
    pub at_ms: u64,
}

/// Plays a script. `tell` hears of each thing that happens. Errors: the first thing that must hold and does not.
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

/// The channels of every run.
pub(super) fn channels() -> [ChannelName; 2] {
    ["default", "urgent"].map(|name| ChannelName::new(name).expect("a name"))
}

/// One machine, and what runs on it.
pub(super) struct Machine<P> {
    pub(super) disk: SimDisk,
    pub(super) process: Option<P>,
    /// When the process starts again.
    up_at: u64,
    /// How often it started.
    pub(super) epoch: u64,
    started: u64,
    wall_offset_ms: i64,
    boot: u64,
    /// How the process will die, and how long it will be away.
    armed: Option<(Cut, u64)>,
    /// The disk misbehaves until then.
    faulty_until: Option<u64>,
    /// It misbehaved since the process started.
    pub(super) faulty: bool,
    slow_until: u64,
    next: u64,
}

/// All there is.
pub(super) struct World<'a> {
    pub(super) script: Script,
    pub(super) now: u64,
    pub(super) low: Machine<Low>,
    pub(super) high: Machine<High>,
    /// Of the receiver's blocks under way.
    pub(super) memory: Memory,
    wire: Wire,
    pub(super) peer: Peer,
    pub(super) book: Book,
    hooks: Vec<Running>,
    plans: Arc<Plans>,
    rng: Rng,
    renames: u64,
    crashes: u64,
    pub(super) tickets: u64,
    trace: u64,
    tell: &'a mut dyn FnMut(&str),
}

impl<P> Machine<P> {
    fn new(seed: u64) -> Self {
        Self {
            disk: SimDisk::new(seed),
            process: None,
            up_at: 0,
            epoch: 0,
            started: 0,
            wall_offset_ms: 0,
            boot: 1,
            armed: None,
            faulty_until: None,
            faulty: false,
            slow_until: 0,
            next: 0,
        }
    }

    fn wall_ms(&self, now: u64) -> u64 {
        let ms = WALL_MS + i64::try_from(now / MS).expect("a run of years") + self.wall_offset_ms;
        u64::try_from(ms).expect("after 1970")
    }

    fn clock(&self, now: u64) -> Now {
        Now { wall_ms: self.wall_ms(now), mono_ms: (now - self.started) / MS + 1 }
    }

    fn stamp(&self, now: u64) {
        let ms = self.wall_ms(now);
        let nanos = u32::try_from(ms % 1000 * MS + now % MS).expect("below a second");
        self.disk.set_time(FileTime { secs: i64::try_from(ms / 1000).expect("seconds"), nanos });
    }

    /// The disk is as it should be again.
    fn mend(&mut self, roots: &[&str]) {
        self.disk.heal();
        for root in roots {
            self.disk.set_capacity(Path::new(root), None);
            self.disk.set_read_only(Path::new(root), false);
        }
        self.faulty_until = None;
        self.armed = None;
    }

    fn misbehave(&mut self, fault: Fault, roots: &[&str], until: u64) {
        self.faulty = true;
        self.faulty_until = Some(until);
        match fault {
            Fault::Nth(nth, errno) => self.disk.fail_nth(nth, errno),
            Fault::Op(op, nth, errno) => self.disk.fail_op(op, nth, errno),
            Fault::Every(op, errno) => self.disk.fail_every(op, errno),
            Fault::From(nth, errno) => self.disk.fail_from(nth, errno),
            Fault::Full => roots.iter().for_each(|root| {
                let used = self.disk.used(Path::new(root));
                self.disk.set_capacity(Path::new(root), Some(used + 300));
            }),
            Fault::ReadOnly => roots.iter().for_each(|root| self.disk.set_read_only(Path::new(root), true)),
        }
    }
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
            peer: Peer::new(&script),
            book: Book::default(),
            hooks: Vec::new(),
            plans: Arc::new(Plans::new()),
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

    /// Goes on until then.
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
            What::Slow { side: Side::Low, for_ms } => self.low.slow_until = self.now + for_ms * MS,
            What::Slow { side: Side::High, for_ms } => self.high.slow_until = self.now + for_ms * MS,
            What::Tickets => self.carry_tickets(false)?,
            What::Resend { pick } => self.resend_any(pick)?,
            What::Forge { what, times, for_ms } => self.peer.forge(what, self.now, times, for_ms * MS / times),
        }
        Ok(())
    }

    /// Mends what time mends, starts what is down and due.
    fn mend_and_start(&mut self) -> Held {
        if self.low.faulty_until.is_some_and(|at| at <= self.now) {
            self.low.mend(&["/", "/spool"]);
        }
        if self.high.faulty_until.is_some_and(|at| at <= self.now) {
            self.high.mend(&["/", "/inbox"]);
        }
        if self.low.process.is_none() && self.low.up_at <= self.now {
            self.start_low()?;
        }
        if self.high.process.is_none() && self.high.up_at <= self.now {
            self.start_high()?;
        }
        Ok(())
    }

    fn start_low(&mut self) -> Held {
        let (now, seed) = (self.now, self.rng.next_u64());
        let (low, plans) = (&mut self.low, &self.plans);
        low.started = now;
        low.epoch += 1;
        low.faulty = low.faulty_until.is_some();
        low.stamp(now);
        let clock = low.clock(now);
        let opened = SimDisk::until_power_cut(|| Low::open(&low.disk, &self.script.options, plans, clock, seed));
        match opened {
            None => return self.die_armed(Side::Low, None),
            Some(Err(error)) if low.faulty => {
                low.up_at = now + 1_000 * MS;
                self.note(|| format!("the sender cannot start: {error}"));
            }
            Some(Err(error)) => return Err(format!("the sender cannot start: {error}")),
            Some(Ok(process)) => {
                (low.process, low.next) = (Some(process), now);
                self.note(|| "the sender starts".to_owned());
            }
        }
        Ok(())
    }

    fn start_high(&mut self) -> Held {
        let (now, seed) = (self.now, self.rng.next_u64());
        let high = &mut self.high;
        high.started = now;
        high.epoch += 1;
        high.faulty = high.faulty_until.is_some();
        high.stamp(now);
        let (boot, wall, plans) = (high.boot, high.wall_ms(now), &self.plans);
        let opened = SimDisk::until_power_cut(|| {
            High::open(&high.disk, &self.memory, &self.script.options, plans, boot, wall, seed)
        });
        match opened {
            None => return self.die_armed(Side::High, None),
            Some(Err(error)) if high.faulty => {
                high.up_at = now + 1_000 * MS;
                self.note(|| format!("the receiver cannot start: {error}"));
            }
            Some(Err(error)) => return Err(format!("the receiver cannot start: {error}")),
            Some(Ok(process)) => {
                (high.process, high.next) = (Some(process), now);
                self.note(|| "the receiver starts".to_owned());
            }
        }
        self.look_into_inbox(true)
    }

    fn step_low(&mut self) -> Held {
        let now = self.now;
        self.low.stamp(now);
        let clock = self.low.clock(now);
        let slow = self.low.slow_until > now;
        let Some(process) = &mut self.low.process else { return Ok(()) };
        let mut told = Told::default();
        let next = SimDisk::until_power_cut(|| process.step(now, clock, slow, &mut told));
        process.fault().map_or(Ok(()), Err)?;
        self.hear_low(told)?;
        match next {
            None => self.die_armed(Side::Low, None),
            Some(next) => {
                self.low.next = if slow { next.min(self.low.slow_until).max(now + MS) } else { next };
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
        for datagram in told.datagrams {
            self.peer.overhear(&datagram);
            self.wire.send(self.now, datagram, &self.script.options);
        }
        Ok(())
    }

    fn arrive(&mut self, mut datagram: Vec<u8>) -> Held {
        let now = self.now;
        self.high.stamp(now);
        let (slow, wall) = (self.high.slow_until > now, self.high.wall_ms(now));
        let Some(process) = &mut self.high.process else { return Ok(()) };
        let done = SimDisk::until_power_cut(|| {
            process.receive(Time(now), wall, slow, &mut datagram);
            process.work(wall, slow, false);
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
        let (slow, wall) = (self.high.slow_until > now, self.high.wall_ms(now));
        let Some(process) = &mut self.high.process else { return Ok(()) };
        let due = SimDisk::until_power_cut(|| {
            process.tend(Time(now), wall);
            process.work(wall, slow, true);
            if slow { Vec::new() } else { process.delivery.due_hooks(wall) }
        });
        let Some(due) = due else { return self.die_armed(Side::High, None) };
        process.fault().map_or(Ok(()), Err)?;
        let over = process.memory_over();
        if over > 0 {
            return Err(format!("the receiver holds {over} bytes more than it may"));
        }
        self.high.next = (now + 100 * MS).min(process.wakes_at().map_or(u64::MAX, |at| at.0)).max(now + 1);
        self.look_into_inbox(false)?;
        due.into_iter().try_for_each(|run| self.start_hook(run))
    }

    fn start_hook(&mut self, run: HookRun) -> Held {
        self.note(|| format!("hook of {}/{} attempt {}", run.channel, run.sequence, run.attempt));
        let Some(process) = &self.high.process else { return Ok(()) };
        let status = self.quietly(|| process.delivery.status(self.high.wall_ms(self.now)));
        self.book.inbox(&self.high.disk, Some(&status))?;
        if !self.book.is_published(run.channel.as_str(), run.sequence) {
            return Err(format!("the hook of {}/{} starts and nothing is in the inbox", run.channel, run.sequence));
        }
        self.book.hook_starts(&run, &status, self.high.epoch, &self.script.options)?;
        self.hooks.push(Running::start(run, self.now, self.script.seed, &self.script.options));
        Ok(())
    }

    fn end_hooks(&mut self) -> Held {
        while let Some(at) = self.hooks.iter().position(|hook| hook.ends_ns <= self.now) {
            let Running { run, outcome, .. } = self.hooks.swap_remove(at);
            self.tell_end(&run, &outcome)?;
        }
        Ok(())
    }

    fn tell_end(&mut self, run: &HookRun, outcome: &Outcome) -> Held {
        self.note(|| format!("hook of {}/{}: {outcome}", run.channel, run.sequence));
        let wall = self.high.wall_ms(self.now);
        self.high.stamp(self.now);
        let Some(process) = &self.high.process else { return Ok(()) };
        match SimDisk::until_power_cut(|| process.delivery.hook_ended(run, outcome, wall)) {
            None => self.die_armed(Side::High, Some((run, outcome))),
            Some(()) => {
                self.book.hook_ended(run, outcome, self.high.epoch, self.high.faulty);
                self.high.next = self.now;
                Ok(())
            }
        }
    }

    /// The power was cut, or the process killed, in the middle of an operation.
    fn die_armed(&mut self, side: Side, telling: Option<(&HookRun, &Outcome)>) -> Held {
        let armed = match side {
            Side::Low => self.low.armed.take(),
            Side::High => self.high.armed.take(),
        };
        let (cut, down_ms) = armed.ok_or("a process died that nobody killed")?;
        self.die(side, cut, down_ms, telling)
    }

    fn die(&mut self, side: Side, cut: Cut, down_ms: u64, telling: Option<(&HookRun, &Outcome)>) -> Held {
        self.note(|| format!("{side:?}: {cut:?}"));
        self.crashes += 1;
        let (now, seed) = (self.now, self.rng.next_u64());
        if cut == Cut::Stop {
            self.stop(side)?;
        }
        match side {
            Side::Low => {
                bury(&mut self.low, cut, seed, now + down_ms * MS);
                self.book.holds(&self.low.disk)
            }
            Side::High => {
                if cut == Cut::Kill {
                    self.memory.kill();
                }
                bury(&mut self.high, cut, seed, now + down_ms * MS);
                if cut != Cut::Kill {
                    self.memory.clear();
                }
                self.book.hooks_are_gone(telling, self.high.epoch);
                self.hooks.clear();
                self.book.inbox(&self.high.disk, None)
            }
        }
    }

    /// SIGTERM: hooks are interrupted, what is in memory is kept.
    fn stop(&mut self, side: Side) -> Held {
        if side == Side::Low {
            return Ok(());
        }
        for Running { run, .. } in std::mem::take(&mut self.hooks) {
            self.tell_end(&run, &Outcome::Interrupted)?;
        }
        self.high.stamp(self.now);
        let wall = self.high.wall_ms(self.now);
        let Some(process) = &mut self.high.process else { return Ok(()) };
        if SimDisk::until_power_cut(|| process.stop(wall)).is_none() {
            return self.die_armed(Side::High, None);
        }
        process.fault().map_or(Ok(()), Err)
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

    /// Looks from outside, which must not count as an operation of the receiver's disk.
    fn quietly<T>(&self, look: impl FnOnce() -> T) -> T {
        self.high.disk.outside(look)
    }

    fn drop_bundle(&mut self, channel: usize, size: u64, files: u64, renamed: bool, told: bool) {
        let number = self.book.drops.len();
        let mut rng = Rng::new(self.script.seed ^ 0xd20b ^ (number as u64) << 32 ^ size << 8 ^ files);
        let channel = channels()[channel].clone();
        let name = name_of(number, &mut rng);
        let directory = PathBuf::from(low::SPOOL).join(channel.as_str());
        let place = if self.script.options.spool_mounted { "/spool/.place" } else { "/place" };
        let place = PathBuf::from(place).join(&name);
        let to = directory.join(&name);
        self.low.stamp(self.now);
        let disk = self.low.disk.clone();
        let at = if renamed { &place } else { &to };
        let made = disk.outside(|| {
            disk.create_dir_all(place.parent().expect("a directory"), 0o755)?;
            disk.create_dir_all(&directory, 0o755)?;
            make(&disk, at, size, files, &mut rng)?;
            disk.sync_fs(Path::new(low::SPOOL))?;
            disk.sync_fs(Path::new("/"))?;
            if renamed {
                disk.rename(&place, &to)?;
                disk.sync_fs(Path::new(low::SPOOL))?;
            }
            io::Result::Ok(())
        });
        if let Err(error) = made {
            self.note(|| format!("{name:?} cannot be dropped: {error}"));
            // For good: what a power cut would bring back of it is no bundle that anybody dropped.
            let parent = at.parent().expect("a directory");
            disk.outside(|| drop(disk.remove_tree(at).and_then(|()| disk.sync_fs(parent))));
            return;
        }
        self.book.dropped(&disk, channel.as_str(), &to);
        let clock = self.low.clock(self.now);
        if let (Some(process), true) = (&mut self.low.process, told) {
            let seen = if renamed { vec![Seen::Renamed] } else { vec![Seen::Created, Seen::Closed] };
            for seen in seen {
                process.engine.seen((channel.clone(), name.clone()), seen, clock);
            }
            self.low.next = self.now;
        }
    }

    /// Mends all that is broken, for good.
    pub(super) fn mend_all(&mut self) {
        self.low.mend(&["/", "/spool"]);
        self.high.mend(&["/", "/inbox"]);
        (self.low.slow_until, self.high.slow_until) = (0, 0);
        self.wire.dead_until = 0;
        self.low.up_at = self.low.up_at.min(self.now);
        self.high.up_at = self.high.up_at.min(self.now);
    }

    /// The line loses nothing any more.
    pub(super) fn mend_wire(&mut self) {
        self.wire.perfect = true;
    }

    /// The sender is switched off for good.
    pub(super) fn silence(&mut self) {
        self.low.process = None;
        self.low.up_at = u64::MAX;
    }

    pub(super) fn low_clock(&self) -> Now {
        self.low.clock(self.now)
    }

    pub(super) fn high_wall_ms(&self) -> u64 {
        self.high.wall_ms(self.now)
    }

    /// What a person made the sender's engine do may have killed its process.
    pub(super) fn low_survived<T>(&mut self, did: Option<T>) -> Result<Option<T>, String> {
        self.low.next = self.now;
        if did.is_none() {
            self.die_armed(Side::Low, None)?;
        }
        Ok(did)
    }

    /// As [`World::low_survived`], of the receiver.
    pub(super) fn high_survived<T>(&mut self, did: Option<T>) -> Result<Option<T>, String> {
        if did.is_none() {
            self.die_armed(Side::High, None)?;
        }
        Ok(did)
    }

    pub(super) fn drop_again(&mut self, number: usize) {
        let channel = channels().iter().position(|c| c.as_str() == self.book.drops[number].channel);
        self.drop_bundle(channel.expect("a channel"), 500, 0, true, true);
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let text = format!("{:>9.3} {}", self.now as f64 / 1e9, what());
        let hash = blake3::hash(text.as_bytes());
        let word = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"));
        self.trace = self.trace.rotate_left(1) ^ word;
        (self.tell)(&text);
    }
}

fn lay(disk: &SimDisk, names: &[&str], mounted: Option<&str>) {
    for name in names {
        disk.create_dir(Path::new(name), 0o755).expect("an empty disk");
    }
    disk.sync_fs(Path::new("/")).expect("an empty disk");
    if let Some(name) = mounted {
        disk.mount(Path::new(name));
    }
}

fn arm<P>(machine: &mut Machine<P>, cut: Cut, ops: u64, down_ms: u64) {
    if machine.armed.is_none() && machine.process.is_some() {
        machine.disk.cut_power_at(ops);
        machine.armed = Some((cut, down_ms));
    }
}

fn bury<P>(machine: &mut Machine<P>, cut: Cut, seed: u64, up_at: u64) {
    // What the process still does while it goes must not reach the disk.
    machine.disk.fail_from(0, 5);
    machine.process = None;
    match cut {
        Cut::Power => {
            machine.disk.crash(seed);
            machine.boot += 1;
        }
        Cut::Stop | Cut::Kill => machine.disk.kill(),
    }
    machine.armed = None;
    machine.up_at = up_at;
}

fn name_of(number: usize, rng: &mut Rng) -> OsString {
    let mut name = format!("b{number}").into_bytes();
    match rng.below(6) {
        0 => name.extend(b" with blank"),
        1 => name.extend("-gr\u{fc}\u{df}e".bytes()),
        2 => name.extend([0xff, b'\n']),
        _ => {}
    }
    OsString::from_vec(name)
}

/// What an operator drops.
fn make(disk: &SimDisk, at: &Path, size: u64, files: u64, rng: &mut Rng) -> io::Result<()> {
    let file = |path: &Path, len: u64, rng: &mut Rng| -> io::Result<()> {
        let mode = [0o644, 0o600, 0o755, 0o444][usize::try_from(rng.below(4)).expect("small")];
        let file = disk.create_new(path, 0o600)?;
        file.write_all_at(&rng.bytes(usize::try_from(len).expect("small")), 0)?;
        disk.set_mode(path, mode)?;
        touch(disk, path, rng)
    };
    if files == 0 {
        return file(at, size, rng);
    }
    disk.create_dir(at, 0o755)?;
    let mut directories = vec![at.to_owned()];
    for number in 0..files {
        let parent = directories[usize::try_from(rng.below(directories.len() as u64)).expect("small")].clone();
        match rng.below(6) {
            0 => {
                let path = parent.join(format!("d{number}"));
                disk.create_dir(&path, 0o755)?;
                directories.push(path);
            }
            1 => {
                let path = parent.join(format!("l{number}"));
                disk.symlink(if rng.chance(30) { b"/etc".as_slice() } else { b"./f0" }, &path)?;
                touch(disk, &path, rng)?;
            }
            2 => file(&parent.join(format!("f{number}")), 0, rng)?,
            _ => file(&parent.join(format!("f{number}")), rng.below(2 * size / files + 1), rng)?,
        }
    }
    for (number, path) in directories.iter().enumerate().rev() {
        let mode = if number == 0 { 0o755 } else { [0o755, 0o700, 0o750, 0o555][number % 4] };
        touch(disk, path, rng)?;
        disk.set_mode(path, mode)?;
    }
    Ok(())
}

fn touch(disk: &SimDisk, path: &Path, rng: &mut Rng) -> io::Result<()> {
    let secs = [0, -86_400, 1_600_000_000, 4_102_444_800][usize::try_from(rng.below(4)).expect("small")];
    disk.set_mtime(path, secs, u32::try_from(rng.below(1_000_000_000)).expect("below a second"))
}
