//! The parts `size` and `steady`, on a real disk: memory does not grow with the bundle, and a long transfer loses nothing.

use std::fs::File;
use std::time::Duration;

use super::noise::watched;
use super::report::{Figure, Section, Target};
use super::stopwatch::Stopwatch;
use super::transfer::{Arrived, Lost, count, send};
use super::{Plan, disk, link};
use crate::pair::Pair;

/// Bytes that stay free on the disk.
const SPARE: u64 = 5_000_000_000;

/// The part `size`: peak RSS of a small and a large bundle.
pub fn run_size(plan: &Plan) -> Section {
    let (small, large, rate) =
        if plan.quick { (1_000_000_000, 3_000_000_000, 1_500) } else { (2_000_000_000, 20_000_000_000, 1_500) };
    let gigabytes = |bytes: u64| format!("{} GB", bytes as f64 / 1e9);
    let about = format!("peak RSS of one file of zeros at {rate} Mbit/s, on {}", disk::describe(&std::env::temp_dir()));
    let mut section = Section { name: "size", about, ..Section::default() };
    let mut of_small = None;
    for bytes in [small, large] {
        let (result, noise) = watched(|| zeros(bytes, rate, "syncfs"));
        let arrived = match result {
            Ok((arrived, _)) => arrived,
            Err(lost) => {
                section.problems.push(format!("{}: {}", gigabytes(bytes), lost.why));
                continue;
            }
        };
        let rss = [arrived.sender.peak_rss, arrived.receiver.peak_rss];
        for (at, name) in ["sender", "receiver"].into_iter().enumerate() {
            let mut figure = Figure::new(format!("{}, {name}", gigabytes(bytes)), "MiB").steady();
            figure.target = Some(Target::at_most(256.0));
            figure.add(rss[at], noise);
            section.figures.push(figure);
            if let Some(of_small) = of_small {
                let _: [f64; 2] = of_small;
                // It must not be larger, apart from the variation of the allocator.
                let mut figure = Figure::new("  beside the smaller", "MiB").against(gigabytes(small)).steady();
                figure.target = Some(Target::ratio_at_most(1.05));
                figure.add_beside(rss[at], of_small[at], noise);
                section.figures.push(figure);
            }
        }
        of_small = Some(rss);
    }
    section
}

/// The part `steady`: half the top rate for a minute, the store on a real disk with an fsync a file.
pub fn run_steady(plan: &Plan) -> Section {
    let seconds = if plan.quick { 5 } else { 60 };
    let about = format!(
        "half the top rate for {seconds} s, durability = \"fsync\", on {}",
        disk::describe(&std::env::temp_dir())
    );
    let mut section = Section { name: "steady", about, ..Section::default() };
    let Some(top) = link::top_rate(plan) else {
        section.problems.push("no rate at which a file arrives".to_owned());
        return section;
    };
    let rate = top / 2;
    // As much as that rate carries, minus an overhead of a seventh.
    let bytes = rate * 125_000 * seconds * 100 / 115;
    let (result, noise) = watched(|| zeros(bytes, rate, "fsync"));
    match result {
        Ok((arrived, drops)) => {
            let mut dropped = Figure::new(format!("dropped by the kernel at {rate} Mbit/s"), "datagrams").steady();
            dropped.target = Some(Target::at_most(0.0));
            #[expect(clippy::cast_precision_loss, reason = "a count")]
            dropped.add(drops as f64, noise);
            let mut took = Figure::new("rename to hook", "s").against("at that rate");
            #[expect(clippy::cast_precision_loss, reason = "a time")]
            took.add_beside(arrived.seconds, seconds as f64, noise);
            section.figures.extend([dropped, took]);
        }
        Err(lost) => section.problems.push(format!("at {rate} Mbit/s: {}", lost.why)),
    }
    section
}

/// Transfers a file of zeros, which takes no room where it is dropped; and the kernel's drops.
fn zeros(bytes: u64, mbits: u64, durability: &str) -> Result<(Arrived, u64), Lost> {
    if disk::free(&std::env::temp_dir()) < bytes + SPARE {
        return Err(Lost { sent: 0.0, why: format!("the disk has no room for {bytes} bytes and {SPARE} more") });
    }
    let setup = Pair::setup().rate(&format!("{mbits} Mbit/s")).receiver("durability", durability);
    let mut pair = setup.lay();
    let watch = Stopwatch::install(&pair.high.hook);
    pair.start_receiver();
    pair.start_sender();
    let file = File::create(pair.place("zeros")).expect("a file can be made");
    file.set_len(bytes).expect("a file may be sparse");
    let patience = Duration::from_secs(60 + bytes / (mbits * 125_000) * 4);
    let arrived = send(&pair, &watch, "zeros", patience)?;
    let landed = std::fs::metadata(pair.high.inbox.join("default/00000001/zeros")).map_or(0, |found| found.len());
    assert_eq!(landed, bytes, "it did not arrive as it was dropped");
    let drops = pair.receiver_status().map_or(0, |status| count(&status.0, "kernel_drops"));
    Ok((arrived, drops))
}
