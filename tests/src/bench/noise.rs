//! Whether the machine was quiet: a spin loop runs before each measurement, and the processor time of others is counted during
//! it.
//!
//! The processor time of others is what `/proc/stat` counts, minus what this process, its descendants and the kernel's own
//! threads (which move this bench's datagrams) have used. Time stolen by the host is counted separately.

use std::collections::HashMap;
use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::stats::Series;

/// How long the spin loop runs.
const SPIN: Duration = Duration::from_millis(25);
/// The most that the spin loop's rate may vary between the measurements of one figure, as a share.
const SPIN_SPREAD: f64 = 0.15;
/// The most processor time of others that is tolerated, in cores.
const OTHERS: f64 = 0.10;
/// The most processor time that the host may steal, in cores.
const STOLEN: f64 = 0.05;

/// How quiet the machine was during one measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Turns of the spin loop right before the measurement, in millions per second.
    pub spin: f64,
    /// Processor time of other processes, in cores.
    pub others: f64,
    /// Processor time that the host took away, in cores.
    pub stolen: f64,
}

/// A measurement under way.
#[derive(Debug)]
pub struct Watch {
    spin: f64,
    before: Times,
    started: Instant,
}

/// Processor time so far, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    /// All of the machine that was not idle.
    busy: f64,
    stolen: f64,
    /// This process, its descendants, and the kernel's threads.
    ours: f64,
}

/// Measures with `work`, and says how quiet the machine was meanwhile.
pub fn watched<T>(work: impl FnOnce() -> T) -> (T, Noise) {
    let watch = Watch::start();
    let result = work();
    (result, watch.end())
}

/// Why these measurements cannot be trusted; None when the machine was quiet.
pub fn verdict(all: &[Noise]) -> Option<String> {
    let worst = |value: fn(&Noise) -> f64| all.iter().map(value).fold(0.0, f64::max);
    let spin = Series(all.iter().map(|noise| noise.spin).collect());
    let spin_spread = if spin.max() > 0.0 { 1.0 - spin.min() / spin.max() } else { 0.0 };
    let (others, stolen) = (worst(|noise| noise.others), worst(|noise| noise.stolen));
    let mut why = Vec::new();
    if others > OTHERS {
        why.push(format!("others used {others:.2} cores"));
    }
    if stolen > STOLEN {
        why.push(format!("the host took {stolen:.2} cores"));
    }
    if spin_spread > SPIN_SPREAD {
        why.push(format!("the processor's speed varied by {:.0} %", spin_spread * 100.0));
    }
    (!why.is_empty()).then(|| why.join(", "))
}

impl Watch {
    /// Runs the spin loop (25 ms) and begins to count.
    pub fn start() -> Self {
        Self { spin: spin(), before: Times::now(), started: Instant::now() }
    }

    /// What was counted.
    pub fn end(self) -> Noise {
        let (seconds, now) = (self.started.elapsed().as_secs_f64().max(1e-3), Times::now());
        let others = (now.busy - self.before.busy) - (now.ours - self.before.ours);
        // The kernel counts in ticks of 10 ms, so less than a few ticks means nothing.
        let others = if others < 0.03 { 0.0 } else { others / seconds };
        Noise { spin: self.spin, others, stolen: (now.stolen - self.before.stolen) / seconds }
    }
}

impl Noise {
    /// As it is written to the results.
    pub fn json(&self) -> Value {
        json!({ "spin_millions_per_second": self.spin, "others_cores": self.others, "stolen_cores": self.stolen })
    }
}

impl Times {
    fn now() -> Self {
        // Our own time is read last, so that work between the two readings does not count as that of others.
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self { ours: ours(), ..Self::parse(&stat) }
    }

    fn parse(stat: &str) -> Self {
        let first = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let of = |fields: &[usize]| fields.iter().filter_map(|field| ticks.get(*field)).sum::<f64>() / ticks_a_second();
        // user, nice, system, irq, softirq; steal (proc(5)).
        Self { busy: of(&[0, 1, 2, 5, 6]), stolen: of(&[7]), ours: 0.0 }
    }
}

/// Seconds of this process, its descendants with those that they have waited for, and the kernel's threads.
fn ours() -> f64 {
    let (this, mut parents, mut used) = (std::process::id(), HashMap::new(), HashMap::new());
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let number = |field: usize| fields.get(field).and_then(|field| field.parse::<u32>().ok()).unwrap_or(0);
        parents.insert(pid, number(1));
        // The time of processes that this one has waited for is in its own; kernel threads wait for none.
        used.insert(pid, (11..15).map(|field| f64::from(number(field))).sum::<f64>());
    }
    let is_ours = |pid: u32| {
        let mut at = pid;
        // Pid 2 is the parent of the kernel's threads.
        while at != this && at != 2 {
            match parents.get(&at) {
                Some(&parent) if parent != 0 => at = parent,
                _ => return false,
            }
        }
        true
    };
    used.iter().filter(|(pid, _)| is_ours(**pid)).map(|(_, ticks)| ticks).sum::<f64>() / ticks_a_second()
}

/// Millions of turns per second of a loop of dependent multiplications: the processor speed that this thread got.
#[expect(clippy::cast_precision_loss, reason = "a count of turns")]
fn spin() -> f64 {
    let (started, mut turns, mut value) = (Instant::now(), 0_u64, 1_u64);
    while started.elapsed() < SPIN {
        for _ in 0..10_000 {
            value = black_box(value).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 1;
        }
        turns += 10_000;
    }
    turns as f64 / 1e6 / started.elapsed().as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "100, as a rule")]
fn ticks_a_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Noise = Noise { spin: 900.0, others: 0.02, stolen: 0.0 };

    #[test]
    fn says_what_disturbed() {
        assert_eq!(verdict(&[QUIET, Noise { spin: 850.0, ..QUIET }]), None);
        assert_eq!(verdict(&[]), None);
        let said = |noise: Noise| verdict(&[QUIET, noise]).unwrap_or_default();
        assert_eq!(said(Noise { others: 0.5, ..QUIET }), "others used 0.50 cores");
        assert_eq!(said(Noise { stolen: 0.1, ..QUIET }), "the host took 0.10 cores");
        assert_eq!(said(Noise { spin: 450.0, ..QUIET }), "the processor's speed varied by 50 %");
    }

    #[test]
    fn reads_the_machine_s_time() {
        let times = Times::parse("cpu  100 200 300 4000 50 10 20 30 0 0\ncpu0 1 1 1 1\n");
        assert_eq!((times.busy, times.stolen), (630.0 / ticks_a_second(), 30.0 / ticks_a_second()));
    }

    #[test]
    fn own_work_is_not_others() {
        let before = ours();
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(200) {
            black_box(spin());
        }
        assert!(ours() > before, "this process has worked");
    }
}
