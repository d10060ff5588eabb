//! The part `latency`: from the rename into the spool to the start of the hook, an idle pair with its default config.

use std::time::Duration;

use checkvalve_protocol::transmit::{Link, Parameters};

use super::Plan;
use super::noise::watched;
use super::report::{Figure, Section, Target};
use super::stats::Series;
use super::stopwatch::Stopwatch;
use super::transfer::send;
use crate::pair::Pair;
use crate::rng::Rng;
use crate::tree;

/// The rate that the harness configures, in bit/s.
const RATE: u64 = 900_000_000;

/// The part `latency`.
pub fn run(plan: &Plan) -> Section {
    let about =
        "rename to hook, idle pair, default config, 900 Mbit/s, tmpfs; floor: the hook's own start, and the wire";
    let mut section = Section { name: "latency", about: about.to_owned(), ..Section::default() };
    let small = if plan.quick { 40 } else { 200 };
    let large = if plan.quick { 10 } else { 50 };
    let repetitions = if plan.quick { 1 } else { 3 };
    // The targets of 4 KiB, in ms.
    for (name, size, count, targets) in
        [("4 KiB", 4 << 10, small, Some([8.0, 40.0])), ("10 MiB", 10 << 20, large, None)]
    {
        let figure = |what: &str| Figure::new(format!("{name}, {what}"), "ms").against("floor");
        let mut figures = [figure("p50"), figure(&format!("p99 of {count}"))];
        let mut first = figure("the first after the start");
        for (figure, at_most) in figures.iter_mut().zip(targets.into_iter().flatten()) {
            figure.target = Some(Target::at_most(at_most));
        }
        for round in 0..repetitions {
            let ((took, floor), noise) = watched(|| measure(size, count, round));
            let Some((&earliest, later)) = took.split_first() else { continue };
            let later = Series(later.to_vec());
            first.add_beside(earliest, floor, noise);
            for (figure, share) in figures.iter_mut().zip([0.5, 0.99]) {
                figure.add_beside(later.percentile(share), floor, noise);
            }
            if took.len() <= count {
                section.problems.push(format!("{name}: only {} of {} arrived", took.len(), count + 1));
            }
        }
        section.figures.extend(figures);
        section.figures.push(first);
    }
    section
}

/// Drops one file and then `count` more, one after another. Returns how long each of them took, and the floor, in ms.
fn measure(size: u64, count: usize, seed: u64) -> (Vec<f64>, f64) {
    let mut pair = Pair::setup().on_tmpfs().lay();
    let watch = Stopwatch::install(&pair.high.hook);
    let starts = Series((0..20).map(|_| watch.cost().as_secs_f64() * 1e3).collect());
    pair.start_receiver();
    pair.start_sender();
    std::thread::sleep(Duration::from_millis(500));
    let (mut took, mut rng) = (Vec::new(), Rng::new(seed));
    for number in 0..=count {
        let name = format!("file-{number}");
        tree::large(&pair.place(&name), size, number as u64);
        match send(&pair, &watch, &name, Duration::from_secs(20)) {
            Ok(arrived) => took.push(arrived.seconds * 1e3),
            Err(lost) => eprintln!("latency: {name}: {}", lost.why),
        }
        // Out of step with everything that the daemons do ten times a second.
        std::thread::sleep(Duration::from_millis(30 + rng.below(100)));
    }
    (took, starts.median() + wire_ms(size))
}

/// How long the data alone takes on the wire, in ms.
#[expect(clippy::cast_precision_loss, reason = "a size")]
fn wire_ms(size: u64) -> f64 {
    let link = Link { mtu: 1500, rate: RATE, repair: 0.05, burst: Duration::from_millis(10), memory: 128 << 20 };
    let parameters = Parameters::derive(&link).expect("a usual link");
    size as f64 / parameters.goodput() * 1e3
}
