//! `checkvalve-sim`: plays scripts of the simulated pair on all cores, and shrinks those that fail.

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use checkvalve_tests::world::{Failure, Line, Options, Script, Stats, run, shrink};
use clap::{Parser, ValueEnum};
use rustix::time::{ClockId, clock_gettime};

/// A run allocates and frees all the time, which glibc's allocator takes long for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Plays whole transfers over a simulated line, disks and clocks, and checks what must hold.
#[derive(Parser)]
struct Args {
    /// The first seed; the environment's SEED replays that one alone.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, one after the other.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Only seeds without forged datagrams, or only those with them; others are passed over and not counted.
    #[arg(long)]
    only: Option<Only>,
    /// How many are played at once; by default, one for each core.
    #[arg(long)]
    jobs: Option<usize>,
    /// Events to keep of one seed's script, by number: `2,5`.
    #[arg(long)]
    keep: Option<String>,
    /// Options of it to put back to their defaults: `loss,burst`.
    #[arg(long)]
    calm: Option<String>,
    /// Tell each step, of one seed after the other.
    #[arg(long)]
    steps: bool,
    /// Print a failure as it is, without looking for a shorter script.
    #[arg(long)]
    no_shrink: bool,
    /// Go on after a failure, to so many.
    #[arg(long, default_value_t = 1)]
    failures: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Only {
    Honest,
    Hostile,
}

/// What came of the seeds so far.
#[derive(Default)]
struct Sum {
    seeds: u64,
    failures: u64,
    stats: Stats,
}

impl Args {
    fn jobs(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, Into::into);
        if self.steps { 1 } else { self.jobs.unwrap_or_else(cores).max(1) }
    }

    fn script(&self, seed: u64) -> Script {
        let mut text = seed.to_string();
        for (word, value) in [("keep", &self.keep), ("calm", &self.calm)] {
            if let Some(value) = value {
                text += &format!(" {word}={value}");
            }
        }
        let line: Line = text.parse().unwrap_or_else(|error| panic!("{error}"));
        line.script()
    }

    fn wants(&self, script: &Script) -> bool {
        self.only.is_none_or(|only| matches!(only, Only::Hostile) == script.is_hostile())
    }

    /// Plays one script after the other until there are no more, or enough of them failed.
    fn play(&self, scripts: &Mutex<impl Iterator<Item = Script>>, sum: &Mutex<Sum>) {
        let lock = || sum.lock().unwrap_or_else(PoisonError::into_inner);
        while lock().failures < self.failures
            && let Some(script) = { scripts.lock().unwrap_or_else(PoisonError::into_inner).next() }
        {
            let result = self.play_one(&script);
            let mut sum = lock();
            sum.seeds += 1;
            match result {
                Ok(stats) => sum.stats += stats,
                Err(()) => sum.failures += 1,
            }
        }
    }

    fn play_one(&self, script: &Script) -> Result<Stats, ()> {
        let mut tell = |text: &str| {
            if self.steps {
                println!("{text}");
            }
        };
        if self.steps {
            println!("{:#?}", script.options);
        }
        match run(script, &mut tell) {
            Ok(stats) => {
                if self.steps {
                    println!("{stats:?}");
                }
                Ok(stats)
            }
            Err(failure) => {
                println!("seed {} fails at {} ms: {}", script.seed, failure.at_ms, failure.what);
                if !self.no_shrink {
                    report(script, &failure);
                }
                Err(())
            }
        }
    }
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
    let scripts = (first..).map(|seed| args.script(seed)).filter(|script| replay.is_some() || args.wants(script));
    let scripts = Mutex::new(scripts.take(usize::try_from(count).expect("a number of seeds")));
    let (begun, jobs, sum) = (Instant::now(), args.jobs(), Mutex::new(Sum::default()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| args.play(&scripts, &sum));
        }
    });
    let Sum { seeds, failures, stats } = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let transfers_a_minute = |seconds: f64| stats.published as f64 / seconds * 60.0;
    let (elapsed, cpu) = (begun.elapsed().as_secs_f64(), cpu_time().as_secs_f64());
    println!(
        "{seeds} seeds from {first}: {} bundles dropped, {} published, {} crashes, {} tickets, {:.1} simulated hours, trace {:016x}; {failures} failures",
        stats.dropped,
        stats.published,
        stats.crashes,
        stats.tickets,
        stats.lasted_ms as f64 / 3.6e6,
        stats.trace,
    );
    println!(
        "{elapsed:.1} s, {jobs} at once: {:.0} transfers a minute; {cpu:.1} s of one core: {:.0} transfers a minute",
        transfers_a_minute(elapsed),
        transfers_a_minute(cpu),
    );
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How long the cores have worked on this process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("a time since the start")
}

fn report(script: &Script, failure: &Failure) {
    let (short, failure) = shrink(script, failure);
    let line = Line::of(&short);
    println!("shrunk: {line}\n  {}", failure.what);
    for event in &short.events {
        println!("  [{}] at {} ms: {:?}", event.number, event.at_ms, event.what);
    }
    if short.options != Options::default() {
        println!("  {:?}", short.options);
    }
    let keep = line.keep.map_or(String::new(), |keep| {
        let keep: Vec<String> = keep.iter().map(ToString::to_string).collect();
        format!(" --keep {}", keep.join(","))
    });
    let calm = if line.calm.is_empty() { String::new() } else { format!(" --calm {}", line.calm.join(",")) };
    println!("replay: checkvalve-sim --steps --seed {}{keep}{calm}", line.seed);
}
