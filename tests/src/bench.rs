//! First figures: how fast the pair is beside what the same link carries with no coding at all.

pub mod ceiling;
pub mod latency;
pub mod link;

/// Gbit/s of so many bytes in so many seconds.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub fn gbits(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 * 8e-9 / seconds
}
