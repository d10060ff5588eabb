//! The bench: every figure beside its ceiling, measured in the same run. `tests/BENCH.md` says how to read them.
//!
//! Each part is a module with a `run` that returns a [`report::Section`]. What is compared is measured in turns, since
//! the speed of a shared machine drifts, and every measurement says how quiet the machine was ([`noise`]).

pub mod burst;
pub mod ceiling;
pub mod curve;
pub mod disk;
pub mod endure;
pub mod files;
pub mod idle;
pub mod inner;
pub mod latency;
pub mod link;
pub mod noise;
pub mod pacing;
pub mod report;
pub mod stats;
pub mod stopwatch;
pub mod transfer;
pub mod wire;

use std::time::Duration;

/// How much to measure. What needs a real disk uses that of `TMPDIR`.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whether a short run was asked for: fewer cases, smaller bundles.
    pub quick: bool,
    /// How often each thing is measured.
    pub repetitions: usize,
    /// How long a blast lasts.
    pub blast: Duration,
    /// How long in-process work is measured at once.
    pub spell: Duration,
    /// Bytes of the file of `link`.
    pub file: u64,
    /// The rate that `link` begins with, in Mbit/s.
    pub rate: u64,
    /// Where `curve` draws its pictures.
    pub pictures: Option<std::path::PathBuf>,
}

/// Gbit/s of so many bytes in so many seconds.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub fn gbits(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 * 8e-9 / seconds
}

/// The largest UDP payload over IPv4 that `mtu` allows, in bytes.
pub fn payload(mtu: u16) -> usize {
    usize::from(mtu) - 28
}
