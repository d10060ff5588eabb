//! The bench: `checkvalve-bench all`, or the parts that are named.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use checkvalve_tests::bench::report::Section;
use checkvalve_tests::bench::{
    Plan, burst, ceiling, curve, disk, endure, files, idle, inner, latency, link, pacing, stopwatch,
};
use checkvalve_tests::skip;
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

/// Measures the pair beside what the machine can do, in the same run. Needs root (network namespaces), ip, nft, ethtool,
/// the release binaries, and a machine with nothing else to do: figures of a busy one are marked as noisy.
#[derive(Debug, Parser)]
#[command(name = "checkvalve-bench")]
struct Args {
    /// What to measure.
    #[arg(required = true)]
    parts: Vec<Part>,
    /// A short run: fewer repetitions, smaller bundles, fewer cases.
    #[arg(long)]
    quick: bool,
    /// Leaves out a part of `all`; may be given several times.
    #[arg(long, value_name = "PART")]
    skip: Vec<Part>,
    /// How often each thing is measured [default: 5, or 3 with --quick].
    #[arg(long)]
    repetitions: Option<usize>,
    /// Size of the file of `link`, in MiB [default: 1024, or 256 with --quick].
    #[arg(long)]
    mebibytes: Option<u64>,
    /// The rate that `link` begins with, in Mbit/s; by default one that limits nothing.
    #[arg(long, default_value_t = 20_000)]
    rate: u64,
    /// Where `curve` draws its pictures (loss.svg, burst.svg) and writes their tables (loss.md).
    #[arg(long, value_name = "DIRECTORY")]
    pictures: Option<PathBuf>,
    /// Where to write all figures as JSON; rewritten after each part.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Every one of the following.
    All,
    /// Plain blasts over the link: sendmmsg and recvmmsg, UDP_SEGMENT and UDP_GRO.
    Ceiling,
    /// RaptorQ, one core.
    Codec,
    /// AES-256-GCM, one core.
    Seal,
    /// BLAKE3, one core.
    Hash,
    /// Whole daemons, one file: goodput, processor time, memory; by MTU, offload and loss.
    Link,
    /// Rename into the spool to the start of the hook.
    Latency,
    /// Many small files in one bundle, on a real disk.
    Files,
    /// The longest outage that a bundle survives.
    Burst,
    /// How often a bundle completes in one pass, by loss and by repair; simulated.
    Curve,
    /// What an idle pair costs.
    Idle,
    /// How exactly the rate is kept.
    Pacing,
    /// Peak RSS by size of the bundle, on a real disk (25 GB of room).
    Size,
    /// Half the top rate for a minute, on a real disk: nothing is dropped.
    Steady,
}

fn main() -> ExitCode {
    // First of all: when this is the hook, the time counts.
    if stopwatch::run_as_hook(SystemTime::now()) {
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    let plan = args.plan();
    let (started, mut sections) = (Instant::now(), Vec::new());
    let machine = machine();
    println!("{} processors, {}; {}", machine["processors"], text(&machine["model"]), text(&machine["kernel"]));
    if cfg!(debug_assertions) {
        println!("This is no release build: the figures of ceiling, codec, seal and hash mean nothing.");
    }
    let links = skip::can_link();
    for part in Part::value_variants().iter().copied().filter(|part| args.wants(*part)) {
        let section = match &links {
            Err(reason) if part.needs_link() => {
                Section { name: part.name(), problems: vec![reason.clone()], ..Section::default() }
            }
            _ => part.run(&plan),
        };
        println!("{}", section.table());
        sections.push(section);
        if let Some(out) = &args.out {
            let result = json!({
                "started_unix": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()) - started.elapsed().as_secs(),
                "seconds": started.elapsed().as_secs_f64(),
                "quick": plan.quick,
                "repetitions": plan.repetitions,
                "machine": machine,
                "sections": sections.iter().map(Section::json).collect::<Vec<_>>(),
            });
            if let Err(error) = std::fs::write(out, format!("{result:#}\n")) {
                eprintln!("{}: {error}", out.display());
                return ExitCode::FAILURE;
            }
        }
    }
    println!("\n{:.0} s", started.elapsed().as_secs_f64());
    let failed = sections.iter().any(|section| !section.problems.is_empty());
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

impl Args {
    fn plan(&self) -> Plan {
        let (repetitions, mebibytes) = if self.quick { (3, 256) } else { (5, 1_024) };
        Plan {
            quick: self.quick,
            repetitions: self.repetitions.unwrap_or(repetitions).max(1),
            blast: Duration::from_millis(if self.quick { 400 } else { 1_500 }),
            spell: Duration::from_millis(if self.quick { 100 } else { 400 }),
            file: self.mebibytes.unwrap_or(mebibytes).max(1) << 20,
            rate: self.rate,
            pictures: self.pictures.clone(),
        }
    }

    fn wants(&self, part: Part) -> bool {
        let named = self.parts.contains(&part) || self.parts.contains(&Part::All);
        part != Part::All && named && !self.skip.contains(&part)
    }
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Ceiling => "ceiling",
            Self::Codec => "codec",
            Self::Seal => "seal",
            Self::Hash => "hash",
            Self::Link => "link",
            Self::Latency => "latency",
            Self::Files => "files",
            Self::Burst => "burst",
            Self::Curve => "curve",
            Self::Idle => "idle",
            Self::Pacing => "pacing",
            Self::Size => "size",
            Self::Steady => "steady",
        }
    }

    fn needs_link(self) -> bool {
        !matches!(self, Self::Codec | Self::Seal | Self::Hash | Self::Curve)
    }

    /// Measures. A part that fails is a problem of that part, not of the others.
    fn run(self, plan: &Plan) -> Section {
        let run = match self {
            Self::All => unreachable!("it stands for the others"),
            Self::Ceiling => ceiling::run,
            Self::Codec => inner::codec,
            Self::Seal => inner::seal,
            Self::Hash => inner::hash,
            Self::Link => link::run,
            Self::Latency => latency::run,
            Self::Files => files::run,
            Self::Burst => burst::run,
            Self::Curve => curve::run,
            Self::Idle => idle::run,
            Self::Pacing => pacing::run,
            Self::Size => endure::run_size,
            Self::Steady => endure::run_steady,
        };
        catch_unwind(AssertUnwindSafe(|| run(plan))).unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
            Section { name: self.name(), problems: vec![said.unwrap_or_default()], ..Section::default() }
        })
    }
}

/// What the figures are of.
fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo");
    let model =
        model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, name)| name.trim());
    json!({
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "model": model,
        "kernel": format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        "disk": disk::describe(&std::env::temp_dir()),
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("unknown processor")
}
