//! The part `link`: whole daemons with real config files, one file from tmpfs to tmpfs, from the rename into the spool
//! to the start of the hook, beside a plain blast over the same link right before.
//!
//! The rate is searched: it begins so high that it limits nothing. After a transfer that did not arrive, it becomes a tenth
//! lower, or a little lower than what the sender achieved. The result is the first rate at which all repetitions arrive.

use std::time::Duration;

use super::ceiling::{Kind, blast};
use super::inner::Passes;
use super::noise::{Noise, watched};
use super::report::{Figure, Section, Target};
use super::stats::Series;
use super::stopwatch::Stopwatch;
use super::transfer::{Arrived, Lost, send};
use super::wire::{self, Offload};
use super::{Plan, gbits, payload};
use crate::link::Link;
use crate::pair::Pair;
use crate::snapshot::Snapshot;
use crate::tree;

/// The lowest rate to try, in Mbit/s.
const LAST_RATE: u64 = 200;
/// How many transfers may fail in one case.
const FAILURES: usize = 16;

/// One case, and what was measured of it.
struct Cell {
    mtu: u16,
    offload: Offload,
    /// Datagrams lost in 1,000.
    loss: u32,
    rate: u64,
    samples: Vec<Sample>,
    failures: usize,
    last_failure: String,
}

struct Sample {
    arrived: Arrived,
    /// The rate of a plain blast right before, in Gbit/s.
    blast: f64,
    /// Processor time of [`Passes`] right before, in s/GB.
    passes: f64,
    noise: Noise,
}

/// What the transfers over a link are compared with.
struct Beside {
    link: Link,
    passes: Passes,
}

/// The part `link`.
pub fn run(plan: &Plan) -> Section {
    let about = format!("whole daemons, {} MiB from tmpfs to tmpfs, rename to hook", plan.file >> 20);
    let mut section = Section { name: "link", about, ..Section::default() };
    let mut cells = Vec::new();
    for mtu in [1500, 9000] {
        cells.push(Cell::new(plan, mtu, Offload::Kernel, 0));
        for loss in [0, 10, 30] {
            cells.push(Cell::new(plan, mtu, Offload::Nic, loss));
        }
    }
    let mut beside =
        [1500, 9000].map(|mtu| (mtu, Beside { link: wire::make(mtu, Offload::Kernel), passes: Passes::new(mtu) }));
    // The cases take turns, so that drift of the machine's speed affects all of them.
    while cells.iter().any(|cell| cell.wants(plan)) {
        for cell in cells.iter_mut().filter(|cell| cell.wants(plan)) {
            let beside = beside.iter_mut().find(|(mtu, _)| *mtu == cell.mtu).map(|(_, beside)| beside);
            cell.measure(plan, beside.expect("a link of each MTU"));
        }
    }
    for cell in &cells {
        cell.figures(plan, &mut section);
    }
    for mtu in [1500, 9000] {
        let of = |loss| cells.iter().find(|cell| cell.mtu == mtu && cell.offload == Offload::Nic && cell.loss == loss);
        let mut figure = Figure::new(format!("mtu {mtu}, 3 % loss beside no loss"), "Gbit/s")
            .against("no loss")
            .target(Target::ratio_at_least(0.7));
        for (lossy, clean) in
            of(30).iter().flat_map(|cell| &cell.samples).zip(of(0).iter().flat_map(|cell| &cell.samples))
        {
            let [value, ceiling] = [lossy, clean].map(|sample| gbits(plan.file, sample.arrived.seconds));
            figure.add_beside(value, ceiling, lossy.noise);
        }
        section.figures.push(figure);
    }
    section
}

/// The highest rate, in Mbit/s, at which one file arrives over a link of MTU 1500; None if at none.
pub fn top_rate(plan: &Plan) -> Option<u64> {
    let mut cell = Cell::new(plan, 1500, Offload::Kernel, 0);
    while cell.samples.is_empty() && cell.rate >= LAST_RATE {
        match transfer(&cell, plan) {
            // The rate it achieved if the setting did not limit it: with the symbols' overhead, a seventh more than the goodput.
            Ok(arrived) => return Some(cell.rate.min(mbits(gbits(plan.file, arrived.seconds) * 1.15))),
            Err(lost) => cell.slower(&lost),
        }
    }
    None
}

impl Cell {
    fn new(plan: &Plan, mtu: u16, offload: Offload, loss: u32) -> Self {
        Self { mtu, offload, loss, rate: plan.rate, samples: Vec::new(), failures: 0, last_failure: String::new() }
    }

    fn name(&self) -> String {
        let loss = if self.loss == 0 { "no loss".to_owned() } else { format!("{} % loss", self.loss / 10) };
        format!("mtu {}, {}, {loss}", self.mtu, self.offload.name())
    }

    fn repair(&self) -> &'static str {
        if self.loss == 0 { "5 %" } else { "10 %" }
    }

    fn wants(&self, plan: &Plan) -> bool {
        self.samples.len() < plan.repetitions && self.failures <= FAILURES && self.rate >= LAST_RATE
    }

    fn measure(&mut self, plan: &Plan, beside: &mut Beside) {
        let passes = beside.passes.cost(plan, &beside.link);
        let blast = blast(&beside.link, self.mtu, Kind::Plain, plan.blast).arrived;
        let (result, noise) = watched(|| transfer(self, plan));
        match result {
            Ok(arrived) => self.samples.push(Sample { arrived, blast, passes, noise }),
            Err(lost) => self.slower(&lost),
        }
    }

    /// Lowers the rate. Measurements at a rate at which not everything arrives do not count.
    fn slower(&mut self, lost: &Lost) {
        eprintln!("{} at {} Mbit/s: {} (sent at {:.2} Gbit/s)", self.name(), self.rate, lost.why, lost.sent);
        self.samples.clear();
        self.failures += 1;
        self.last_failure = format!("at {} Mbit/s: {}", self.rate, lost.why);
        self.rate = (self.rate * 9 / 10).min(mbits(lost.sent * 0.95));
    }

    fn figures(&self, plan: &Plan, section: &mut Section) {
        if self.samples.is_empty() {
            section.problems.push(format!("{}: arrived at no rate; {}", self.name(), self.last_failure));
            return;
        }
        let goodput_target = match (self.mtu, self.offload, self.loss) {
            (1500, Offload::Kernel, _) => Some(3.0),
            (9000, Offload::Kernel, _) => Some(0.65),
            (1500, Offload::Nic, 10 | 30) => Some(1.0),
            _ => None,
        };
        let is_default = self.mtu == 1500 && self.offload == Offload::Kernel;
        let mut goodput = Figure::new(self.name(), "Gbit/s").against(format!("blast {}", payload(self.mtu)));
        goodput.target = goodput_target.map(Target::ratio_at_least);
        goodput.note = self.note(plan);
        let mut costs = [("sender CPU", 1.2), ("receiver CPU", 0.9)].map(|(name, most)| {
            let mut figure = Figure::new(format!("  {name}"), "s/GB");
            figure.target = is_default.then_some(Target::at_most(most));
            figure
        });
        let mut sizes = ["sender peak RSS", "receiver peak RSS"]
            .map(|name| Figure::new(format!("  {name}"), "MiB").steady().target(Target::at_most(256.0)));
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let gigabytes = plan.file as f64 / 1e9;
        let mut both = Figure::new("  both, CPU", "s/GB").against("the passes alone");
        let mut passes = Series::default();
        for Sample { arrived, blast, passes: alone, noise } in &self.samples {
            goodput.add_beside(gbits(plan.file, arrived.seconds), *blast, *noise);
            both.add_beside((arrived.sender.cpu + arrived.receiver.cpu) / gigabytes, *alone, *noise);
            passes.0.push(*alone);
            for (used, (cost, size)) in [arrived.sender, arrived.receiver].iter().zip(costs.iter_mut().zip(&mut sizes))
            {
                cost.add(used.cpu / gigabytes, *noise);
                size.add(used.peak_rss, *noise);
            }
        }
        section.figures.push(goodput);
        section.figures.extend(costs);
        if self.offload == Offload::Kernel {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
            let most = processors as f64 * 8.0 / passes.median();
            both.note = format!(
                "hashing, coding, sealing, copying and the kernel's sockets, each alone: {processors} processors could move {most:.1} Gbit/s"
            );
            section.figures.push(both);
        }
        section.figures.extend(sizes);
    }

    fn note(&self, plan: &Plan) -> String {
        let best = self.samples.iter().map(|sample| gbits(plan.file, sample.arrived.seconds)).fold(0.0, f64::max);
        let mut note = format!("rate {} Mbit/s, repair {}", self.rate, self.repair());
        if mbits(best * 1.13) > self.rate * 95 / 100 {
            note.push_str(", which limits it");
        }
        if self.failures > 0 {
            note.push_str(&format!(
                "; {} did not arrive at higher rates, the last {}",
                self.failures, self.last_failure
            ));
        }
        note
    }
}

/// Transfers one file of random bytes through a fresh pair.
fn transfer(cell: &Cell, plan: &Plan) -> Result<Arrived, Lost> {
    let setup = Pair::setup().mtu(cell.mtu).gso(cell.offload == Offload::Kernel).on_tmpfs();
    let setup = if cell.loss == 0 { setup } else { setup.repair(cell.repair()) };
    let mut pair = setup.rate(&format!("{} Mbit/s", cell.rate)).lay();
    if cell.offload == Offload::Nic {
        wire::become_nic(&pair.link, cell.mtu);
        wire::lose(&pair.link, cell.loss);
    }
    let watch = Stopwatch::install(&pair.high.hook);
    pair.start_receiver();
    pair.start_sender();
    let image = tree::large(&pair.place("image"), plan.file, 1);
    let before = Snapshot::of(&image);
    let arrived = send(&pair, &watch, "image", Duration::from_secs(180))?;
    let after = Snapshot::of(&pair.high.inbox.join("default/00000001/image"));
    let differences = before.differences(&after);
    assert!(differences.is_empty(), "it did not arrive as it was dropped:\n{differences}");
    pair.stop_sender();
    pair.stop_receiver();
    Ok(arrived)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
fn mbits(gbits: f64) -> u64 {
    (gbits * 1e3) as u64
}
