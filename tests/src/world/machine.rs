//! One of the two machines: its disk, its clocks and its process.

use std::path::Path;

use checkvalve_host::disk::{Disk, FileTime};
use checkvalve_sender::engine::Now;

use super::pace::Pace;
use super::play::MS;
use super::script::{Cut, Fault};
use crate::simdisk::SimDisk;

const WALL_MS: i64 = 1_700_000_000_000;

/// One machine and its process.
pub(super) struct Machine<P> {
    pub(super) disk: SimDisk,
    pub(super) process: Option<P>,
    /// When the process starts again.
    pub(super) up_at: u64,
    /// How often the process has started.
    pub(super) epoch: u64,
    pub(super) started: u64,
    pub(super) wall_offset_ms: i64,
    pub(super) boot: u64,
    /// How the process will die, and for how many milliseconds it will be down.
    pub(super) armed: Option<(Cut, u64)>,
    /// Until when the disk misbehaves.
    pub(super) faulty_until: Option<u64>,
    /// Whether the disk has misbehaved since the process started.
    pub(super) faulty: bool,
    /// When the disk last stops or stopped misbehaving.
    pub(super) failed_until: u64,
    pub(super) slow_until: u64,
    /// How many of 1,000 disk operations take long, and until when.
    pub(super) late: (u32, u64),
    pub(super) next: u64,
}

impl<P> Machine<P> {
    pub(super) fn new(seed: u64) -> Self {
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
            failed_until: 0,
            slow_until: 0,
            late: (0, 0),
            next: 0,
        }
    }

    pub(super) fn wall_ms(&self, now: u64) -> u64 {
        let ms = WALL_MS + i64::try_from(now / MS).expect("a run of years") + self.wall_offset_ms;
        // Linux clocks do not go back before 1970.
        u64::try_from(ms).unwrap_or(0)
    }

    pub(super) fn pace(&self, now: u64) -> Pace {
        let (often, until) = self.late;
        Pace { still: self.slow_until > now, late: if until > now { often } else { 0 } }
    }

    pub(super) fn clock(&self, now: u64) -> Now {
        Now { wall_ms: self.wall_ms(now), mono_ms: (now - self.started) / MS + 1 }
    }

    pub(super) fn stamp(&self, now: u64) {
        let ms = self.wall_ms(now);
        let nanos = u32::try_from(ms % 1000 * MS + now % MS).expect("below a second");
        self.disk.set_time(FileTime { secs: i64::try_from(ms / 1000).expect("seconds"), nanos });
    }

    /// Ends all faults of the disk, and disarms a pending death.
    pub(super) fn mend(&mut self, roots: &[&str]) {
        self.disk.heal();
        for root in roots {
            self.disk.set_capacity(Path::new(root), None);
            self.disk.set_read_only(Path::new(root), false);
        }
        self.faulty_until = None;
        self.armed = None;
    }

    pub(super) fn misbehave(&mut self, fault: Fault, roots: &[&str], until: u64) {
        self.faulty = true;
        self.faulty_until = Some(until);
        self.failed_until = until;
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

pub(super) fn lay(disk: &SimDisk, names: &[&str], mounted: Option<&str>) {
    for name in names {
        disk.create_dir(Path::new(name), 0o755).expect("an empty disk");
    }
    disk.sync_fs(Path::new("/")).expect("an empty disk");
    if let Some(name) = mounted {
        disk.mount(Path::new(name));
    }
}

pub(super) fn arm<P>(machine: &mut Machine<P>, cut: Cut, ops: u64, down_ms: u64) {
    if machine.armed.is_none() && machine.process.is_some() {
        machine.disk.cut_power_at(ops);
        machine.armed = Some((cut, down_ms));
    }
}

pub(super) fn bury<P>(machine: &mut Machine<P>, cut: Cut, seed: u64, up_at: u64) {
    // Whatever the process does while it is dropped must not reach the disk.
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
