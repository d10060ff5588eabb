//! Install hooks: when they start, and how the receiver hears of their end.

use checkvalve_receiver::delivery::HookRun;
use checkvalve_receiver::hook::Outcome;

use super::super::book::Held;
use super::super::hook::Running;
use super::super::script::Side;
use super::World;
use crate::simdisk::SimDisk;

impl World<'_> {
    pub(super) fn start_hook(&mut self, run: HookRun) -> Held {
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

    pub(super) fn end_hooks(&mut self) -> Held {
        while let Some(at) = self.hooks.iter().position(|hook| hook.ends_ns <= self.now) {
            let Running { run, outcome, .. } = self.hooks.swap_remove(at);
            self.tell_end(&run, &outcome)?;
        }
        Ok(())
    }

    pub(super) fn tell_end(&mut self, run: &HookRun, outcome: &Outcome) -> Held {
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
}
