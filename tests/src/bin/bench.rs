//! First figures of the pair on this machine: `checkvalve-bench` measures all, or the parts that are named.
#![forbid(unsafe_code)]

use std::time::Duration;

use checkvalve_tests::bench::{ceiling, latency, link};
use clap::{Parser, ValueEnum};

/// Measures the pair over a namespace link (root): needs the release binaries, and a machine with nothing else to do.
#[derive(Debug, Parser)]
#[command(name = "checkvalve-bench")]
struct Args {
    /// What to measure; everything when nothing is named.
    parts: Vec<Part>,
    /// Size of the file of `link`, in MiB.
    #[arg(long, default_value_t = 1024)]
    mebibytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A plain sendmmsg/recvmmsg blast over the same link.
    Ceiling,
    /// Whole daemons, one file from tmpfs to tmpfs, at the highest rate at which it arrives.
    Link,
    /// Rename into the spool to start of the hook, 4 KiB.
    Latency,
}

const RATES: [f64; 12] = [12.0, 10.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.0];

fn main() {
    let args = Args::parse();
    let wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    for mtu in [1500, 9000] {
        if wanted(Part::Ceiling) {
            let blast = ceiling::blast(mtu, Duration::from_secs(5));
            println!(
                "mtu {mtu}: blast, no coding: {:.2} Gbit/s arrived, {:.0} % were lost",
                blast.arrived,
                blast.lost * 100.0
            );
        }
        if wanted(Part::Link) {
            transfer(mtu, args.mebibytes << 20);
        }
    }
    if wanted(Part::Latency) {
        let took = latency::measure(4096, 100);
        println!("4 KiB, rename to hook: p50 {:.1?}, p99 {:.1?}", took[took.len() / 2], took[took.len() * 99 / 100]);
    }
}

fn transfer(mtu: u16, bytes: u64) {
    let Some(done) = link::fastest(mtu, true, bytes, &RATES) else {
        println!("mtu {mtu}: the file did not arrive at any rate");
        return;
    };
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let gigabytes = bytes as f64 / 1e9;
    println!(
        "mtu {mtu}: pair at rate {} Gbit/s: goodput {:.2} Gbit/s; CPU s/GB: sender {:.2}, receiver {:.2}; \
         peak RSS MiB: sender {}, receiver {}",
        done.rate,
        done.goodput,
        done.sender.cpu_seconds / gigabytes,
        done.receiver.cpu_seconds / gigabytes,
        done.sender.peak_rss >> 20,
        done.receiver.peak_rss >> 20,
    );
}
