//! How processes start and end.

use checkvalve_receiver::delivery::HookRun;
use checkvalve_receiver::hook::Outcome;

use super::super::book::Held;
use super::super::high::High;
use super::super::hook::Running;
use super::super::low::Low;
use super::super::machine::bury;
use super::super::script::{Cut, Side};
use super::{MS, World, plans};
use crate::simdisk::SimDisk;

impl World<'_> {
    /// Ends disk faults whose time is over, and starts processes that are due.
    pub(super) fn mend_and_start(&mut self) -> Held {
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

    pub(super) fn start_low(&mut self) -> Held {
        let (now, seed) = (self.now, self.rng.next_u64());
        let low = &mut self.low;
        low.started = now;
        low.epoch += 1;
        low.faulty = low.faulty_until.is_some();
        low.stamp(now);
        let clock = low.clock(now);
        let opened = SimDisk::until_power_cut(|| Low::open(&low.disk, &self.script.options, plans(), clock, seed));
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

    pub(super) fn start_high(&mut self) -> Held {
        let (now, seed) = (self.now, self.rng.next_u64());
        let high = &mut self.high;
        high.started = now;
        high.epoch += 1;
        high.faulty = high.faulty_until.is_some();
        high.stamp(now);
        let (boot, wall) = (high.boot, high.wall_ms(now));
        let opened = SimDisk::until_power_cut(|| {
            High::open(&high.disk, &self.memory, &self.script.options, plans(), boot, wall, seed)
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

    /// Ends a process whose armed power cut or kill struck in the middle of an operation.
    pub(super) fn die_armed(&mut self, side: Side, telling: Option<(&HookRun, &Outcome)>) -> Held {
        let armed = match side {
            Side::Low => self.low.armed.take(),
            Side::High => self.high.armed.take(),
        };
        let (cut, down_ms) = armed.ok_or("a process died that nobody killed")?;
        self.die(side, cut, down_ms, telling)
    }

    pub(super) fn die(&mut self, side: Side, cut: Cut, down_ms: u64, telling: Option<(&HookRun, &Outcome)>) -> Held {
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

    /// SIGTERM: interrupts hooks, and keeps what is in memory.
    pub(super) fn stop(&mut self, side: Side) -> Held {
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

    /// Ends all faults for the rest of the run.
    pub(in crate::world) fn mend_all(&mut self) {
        self.low.mend(&["/", "/spool"]);
        self.high.mend(&["/", "/inbox"]);
        (self.low.slow_until, self.high.slow_until) = (0, 0);
        (self.low.late, self.high.late) = ((0, 0), (0, 0));
        self.low.process.iter_mut().for_each(Low::hurry);
        self.high.process.iter_mut().for_each(High::hurry);
        self.wire.dead_until = 0;
        self.wire.dark_until.fill(0);
        self.stuck_until.fill(0);
        self.low.up_at = self.low.up_at.min(self.now);
        self.high.up_at = self.high.up_at.min(self.now);
    }

    /// Switches the sender off for the rest of the run.
    pub(in crate::world) fn silence(&mut self) {
        self.low.process = None;
        self.low.up_at = u64::MAX;
    }

    /// Handles the result of an operator's command to the sender, which may have killed the sender's process.
    pub(in crate::world) fn low_survived<T>(&mut self, did: Option<T>) -> Result<Option<T>, String> {
        self.low.next = self.now;
        if did.is_none() {
            self.die_armed(Side::Low, None)?;
        }
        Ok(did)
    }

    /// Like [`World::low_survived`], for the receiver.
    pub(in crate::world) fn high_survived<T>(&mut self, did: Option<T>) -> Result<Option<T>, String> {
        if did.is_none() {
            self.die_armed(Side::High, None)?;
        }
        Ok(did)
    }
}
