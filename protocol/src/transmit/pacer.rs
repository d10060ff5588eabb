//! A token bucket over bytes on the wire.

use std::time::Duration;

use crate::time::Time;

/// What a caller that overslept may catch up at once, unless it asks for another bucket.
pub const BUCKET: Duration = Duration::from_millis(1);
/// Most that leaves in one system call, as time at the link's rate: a slow device's buffer is not overrun.
pub const QUANTUM: Duration = Duration::from_micros(500);

/// Says when the next datagrams may leave so that `rate` is kept: over any span, no more than `rate` × span plus one
/// bucket leaves.
#[derive(Debug, Clone)]
pub struct Pacer {
    rate: u64,
    bucket: Duration,
    /// When what was sent so far will have left a wire of `rate`.
    clear: Time,
}

impl Pacer {
    /// `rate` in bit/s, not 0; `bucket` is how much time that the caller slept through may be caught up at once.
    #[must_use]
    pub fn new(rate: u64, bucket: Duration) -> Self {
        assert!(rate > 0, "a link has a rate");
        Self { rate, bucket, clear: Time::ZERO }
    }

    /// None: send now. Otherwise call again at that time.
    #[must_use]
    pub fn wait(&self, now: Time) -> Option<Time> {
        (self.clear > now).then_some(self.clear)
    }

    /// `bytes` on the wire leave now.
    pub fn charge(&mut self, now: Time, bytes: usize) {
        let earliest = now - self.bucket;
        let from = self.clear.max(earliest);
        let nanos = (bytes as u128 * 8_000_000_000).div_ceil(u128::from(self.rate));
        self.clear = from + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    }

    /// Most bytes that should leave in one system call: [`QUANTUM`]'s worth.
    #[must_use]
    pub fn quantum(&self) -> usize {
        let bits = u128::from(self.rate) * QUANTUM.as_nanos() / 1_000_000_000;
        usize::try_from(bits / 8).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends 1,538-byte datagrams with a caller that always wakes `late` after it should; returns departures.
    fn run(rate: u64, late: u64, seconds: u64) -> Vec<(u64, usize)> {
        let mut pacer = Pacer::new(rate, Duration::from_millis(1));
        let (mut now, mut sent) = (Time(5_000_000), Vec::new());
        while now.0 < seconds * 1_000_000_000 {
            match pacer.wait(now) {
                Some(at) => now = Time(at.0 + late),
                None => {
                    pacer.charge(now, 1_538);
                    sent.push((now.0, 1_538));
                }
            }
        }
        sent
    }

    #[test]
    fn keeps_the_rate_and_bounds_every_window() {
        for rate in [1_000_000, 100_000_000, 900_000_000, 10_000_000_000] {
            for late in [0, 60_000, 400_000] {
                let sent = run(rate, late, 2);
                let bits = sent.iter().map(|(_, b)| b * 8).sum::<usize>() as f64;
                let seconds = 1.995;
                assert!(bits >= rate as f64 * seconds * 0.985, "{rate} bit/s, {late} ns late: {bits}");
                assert!(
                    bits <= rate as f64 * (seconds + 0.001) + 1_538.0 * 8.0,
                    "{rate} bit/s, {late} ns late: {bits}"
                );
                let window = 10_000_000;
                let allowed = rate as f64 * 0.011 / 8.0 + 2.0 * 1_538.0;
                let (mut from, mut bytes) = (0, 0);
                for (i, &(at, len)) in sent.iter().enumerate() {
                    bytes += len;
                    while sent[from].0 + window < at {
                        bytes -= sent[from].1;
                        from += 1;
                    }
                    assert!(bytes as f64 <= allowed, "{rate} bit/s: {bytes} bytes in 10 ms at {i}");
                }
            }
        }
    }
}
