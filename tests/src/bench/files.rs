//! The part `files`: many small files in one bundle, on a real disk, beside a plain loop that creates the same files.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::noise::watched;
use super::report::{Figure, Section, Target};
use super::stopwatch::Stopwatch;
use super::transfer::{Arrived, Lost, send};
use super::{Plan, disk};
use crate::pair::Pair;
use crate::rng::Rng;
use crate::snapshot::Snapshot;

const FILE: usize = 4 << 10;
const IN_A_DIRECTORY: usize = 1_000;
/// Rates that are tried one after another, in Mbit/s.
const RATES: [u64; 6] = [4_000, 2_500, 1_500, 900, 500, 250];

/// How contents are made durable: the receiver's `durability`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durability {
    Syncfs,
    Fsync,
}

/// The part `files`.
pub fn run(plan: &Plan) -> Section {
    let many = if plan.quick { 10_000 } else { 100_000 };
    let about = format!("files of 4 KiB in one bundle, rename to hook, on {}", disk::describe(&std::env::temp_dir()));
    let mut section = Section { name: "files", about, ..Section::default() };
    // A sync of each takes long: fewer are enough to know the rate.
    let cases = [(Durability::Syncfs, many, plan.repetitions.min(3)), (Durability::Fsync, many / 5, 1)];
    for (durability, count, repetitions) in cases {
        let name = durability.name();
        let mut figure =
            Figure::new(format!("durability = \"{name}\", {count} files"), "files/s").against("a plain loop");
        if durability == Durability::Syncfs {
            figure.target = Some(Target::at_least(25_000.0));
        }
        let mut sizes = ["sender peak RSS", "receiver peak RSS"]
            .map(|name| Figure::new(format!("  {name}"), "MiB").steady().target(Target::at_most(256.0)));
        for _ in 0..repetitions {
            let alone = if durability == Durability::Fsync { count / 4 } else { count };
            let ceiling = plain(alone, durability);
            let (result, noise) = watched(|| transfer(count, durability, &mut figure.note));
            match result {
                Ok(arrived) => {
                    #[expect(clippy::cast_precision_loss, reason = "a count")]
                    figure.add_beside(count as f64 / arrived.seconds, ceiling, noise);
                    for (size, used) in sizes.iter_mut().zip([arrived.sender, arrived.receiver]) {
                        size.add(used.peak_rss, noise);
                    }
                }
                Err(lost) => section.problems.push(format!("{name}: arrived at no rate: {}", lost.why)),
            }
        }
        section.figures.push(figure);
        section.figures.extend(sizes);
    }
    section
}

impl Durability {
    fn name(self) -> &'static str {
        match self {
            Self::Syncfs => "syncfs",
            Self::Fsync => "fsync",
        }
    }
}

/// Transfers the tree at the highest of [`RATES`] at which it arrives.
fn transfer(count: usize, durability: Durability, note: &mut String) -> Result<Arrived, Lost> {
    let mut last = Lost { sent: 0.0, why: String::new() };
    for rate in RATES {
        let setup = Pair::setup().rate(&format!("{rate} Mbit/s")).receiver("durability", durability.name());
        let mut pair = setup.lay();
        let watch = Stopwatch::install(&pair.high.hook);
        pair.start_receiver();
        pair.start_sender();
        let root = pair.place("tree");
        make(&root, count, None);
        let before = Snapshot::of(&root);
        match send(&pair, &watch, "tree", Duration::from_secs(1_200)) {
            Ok(arrived) => {
                let after = Snapshot::of(&pair.high.inbox.join("default/00000001/tree"));
                let differences = before.differences(&after);
                assert!(differences.is_empty(), "it did not arrive as it was dropped:\n{differences}");
                *note = format!("rate {rate} Mbit/s");
                return Ok(arrived);
            }
            Err(lost) => {
                eprintln!("files, {} at {rate} Mbit/s: {}", durability.name(), lost.why);
                last = lost;
            }
        }
    }
    Err(last)
}

/// Files a second of a plain loop that creates them and makes them durable in the same way.
#[expect(clippy::cast_precision_loss, reason = "a count")]
fn plain(count: usize, durability: Durability) -> f64 {
    let dir = tempfile::Builder::new().prefix("cv-").tempdir().expect("a directory can be made");
    let started = Instant::now();
    make(&dir.path().join("tree"), count, Some(durability));
    count as f64 / started.elapsed().as_secs_f64()
}

/// Makes `count` files in directories of 1,000.
fn make(root: &Path, count: usize, durable: Option<Durability>) {
    let mut bytes = Rng::new(1).bytes(FILE);
    let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all()).expect("what was made can be synced");
    for directory in 0..count.div_ceil(IN_A_DIRECTORY) {
        let path = root.join(format!("d{directory:04}"));
        std::fs::create_dir_all(&path).expect("a directory can be made");
        for number in directory * IN_A_DIRECTORY..count.min((directory + 1) * IN_A_DIRECTORY) {
            bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
            let mut file = File::create_new(path.join(format!("f{number:06}"))).expect("a file can be made");
            file.write_all(&bytes).expect("there is space");
            if durable == Some(Durability::Fsync) {
                file.sync_all().expect("the disk takes it");
            }
        }
        if durable == Some(Durability::Fsync) {
            sync(&path);
        }
    }
    match durable {
        Some(Durability::Fsync) => sync(root),
        Some(Durability::Syncfs) => {
            rustix::fs::syncfs(File::open(root).expect("it is there")).expect("the disk takes it");
        }
        None => {}
    }
}
