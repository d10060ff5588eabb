//! `checkvalve-sim`: plays scripts of the simulated pair, and shrinks one that fails.

use std::process::ExitCode;
use std::time::Instant;

use checkvalve_tests::world::{Line, Script, Stats, run, shrink};
use clap::Parser;

/// Plays whole transfers over a simulated line, disks and clocks, and checks what must hold.
#[derive(Parser)]
struct Args {
    /// The first seed; the environment's SEED replays that one alone.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, one after the other.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Events to keep of one seed's script, by number: `2,5`.
    #[arg(long)]
    keep: Option<String>,
    /// Options of it to put back to their defaults: `loss,burst`.
    #[arg(long)]
    calm: Option<String>,
    /// Tell each step.
    #[arg(long)]
    steps: bool,
    /// Print a failure as it is, without looking for a shorter script.
    #[arg(long)]
    no_shrink: bool,
    /// Go on after a failure, to so many.
    #[arg(long, default_value_t = 1)]
    failures: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    std::panic::set_hook(Box::new(|info| {
        if !info.payload().is::<checkvalve_tests::simdisk::PowerCut>() {
            eprintln!("{info}");
        }
    }));
    let replay: Option<u64> = std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let (first, count) = replay.map_or((args.seed, args.count), |seed| (seed, 1));
    let begun = Instant::now();
    let (mut sum, mut failures) = (Stats::default(), 0);
    for seed in first..first + count {
        let mut text = seed.to_string();
        for (word, value) in [("keep", &args.keep), ("calm", &args.calm)] {
            if let Some(value) = value {
                text += &format!(" {word}={value}");
            }
        }
        let line: Line = text.parse().unwrap_or_else(|error| panic!("{error}"));
        let script = line.script();
        if args.steps {
            println!("{:#?}", script.options);
        }
        match run(&script, &mut |text| {
            if args.steps {
                println!("{text}")
            }
        }) {
            Ok(stats) => {
                sum.dropped += stats.dropped;
                sum.published += stats.published;
                sum.crashes += stats.crashes;
                sum.tickets += stats.tickets;
                sum.lasted_ms += stats.lasted_ms;
                if args.steps {
                    println!("{stats:?}");
                }
            }
            Err(failure) => {
                println!("seed {seed} fails at {} ms: {}", failure.at_ms, failure.what);
                failures += 1;
                if !args.no_shrink {
                    report(&script, &failure);
                }
                if failures >= args.failures {
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    println!(
        "{count} seeds from {first}: {} bundles dropped, {} published, {} crashes, {} tickets, {:.1} simulated hours; {:.0} transfers a minute; {failures} failures",
        sum.dropped,
        sum.published,
        sum.crashes,
        sum.tickets,
        sum.lasted_ms as f64 / 3.6e6,
        sum.published as f64 / minutes,
    );
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(script: &Script, failure: &checkvalve_tests::world::Failure) {
    let (short, failure) = shrink(script, failure);
    let line = Line::of(&short);
    println!("shrunk: {line}\n  {}", failure.what);
    for event in &short.events {
        println!("  [{}] at {} ms: {:?}", event.number, event.at_ms, event.what);
    }
    let default = checkvalve_tests::world::Options::default();
    if short.options != default {
        println!("  {:?}", short.options);
    }
    let keep = line.keep.map_or(String::new(), |keep| {
        let keep: Vec<String> = keep.iter().map(ToString::to_string).collect();
        format!(" --keep {}", keep.join(","))
    });
    let calm = if line.calm.is_empty() { String::new() } else { format!(" --calm {}", line.calm.join(",")) };
    println!("replay: checkvalve-sim --steps --seed {}{keep}{calm}", line.seed);
}
