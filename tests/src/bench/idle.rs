//! The part `idle`: what a pair costs that has nothing to do but beacons.

use std::time::{Duration, Instant};

use super::Plan;
use super::noise::watched;
use super::report::{Figure, Section, Target};
use crate::daemon::Daemon;
use crate::pair::Pair;

/// The part `idle`.
pub fn run(plan: &Plan) -> Section {
    let seconds = if plan.quick { 4 } else { 20 };
    let about = format!("default config, nothing to send but beacons, {seconds} s");
    let mut section = Section { name: "idle", about, ..Section::default() };
    let pair = Pair::setup().on_tmpfs().start();
    std::thread::sleep(Duration::from_secs(2));
    let mut rows = ["sender", "receiver"].map(|name| {
        let cpu = Figure::new(format!("{name} CPU"), "% of a core").target(Target::at_most(0.5));
        (cpu, Figure::new(format!("{name} RSS"), "MiB").steady())
    });
    for _ in 0..plan.repetitions.min(3) {
        let daemons = [pair.sender(), pair.receiver()];
        let ((before, after, elapsed), noise) = watched(|| {
            let (before, started) = (daemons.map(busy), Instant::now());
            std::thread::sleep(Duration::from_secs(seconds));
            (before, daemons.map(busy), started.elapsed().as_secs_f64())
        });
        for (at, (cpu, rss)) in rows.iter_mut().enumerate() {
            cpu.add((after[at] - before[at]) / elapsed * 100.0, noise);
            #[expect(clippy::cast_precision_loss, reason = "a size in memory")]
            rss.add(daemons[at].usage().rss as f64 / f64::from(1 << 20), noise);
        }
    }
    section.figures.extend(rows.into_iter().flat_map(|(cpu, rss)| [cpu, rss]));
    section
}

/// Seconds that a daemon's threads have run, to the nanosecond where the kernel counts so (`schedstat`).
fn busy(daemon: &Daemon) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).into_iter().flatten().flatten();
    let ran = threads.filter_map(|thread| {
        let shown = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        shown.split_whitespace().next()?.parse::<f64>().ok()
    });
    let nanos: f64 = ran.sum();
    if nanos > 0.0 { nanos / 1e9 } else { daemon.usage().cpu_seconds }
}
