//! Sends one bundle through a running pair: how long that takes, what it costs, or why it failed.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::gbits;
use super::stopwatch::Stopwatch;
use crate::daemon::{Daemon, Usage};
use crate::link::INTERFACE;
use crate::pair::Pair;

/// The interval between two looks at the hook's notes. The hook itself records the time.
const LOOK: Duration = Duration::from_millis(5);
/// How long nothing must be sent before the receiver is asked for its status, which takes processor time.
const SILENCE: Duration = Duration::from_millis(700);
/// The most bytes that count as beacons rather than data.
const BEACONS: u64 = 10_000;

/// What one daemon used for a transfer.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// Processor time, user and system, in seconds.
    pub cpu: f64,
    /// Largest resident set since the daemon started, in MiB.
    pub peak_rss: f64,
}

/// A bundle whose hook was started.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// From right before the rename into the spool to the start of the hook.
    pub seconds: f64,
    /// The sender's use.
    pub sender: Used,
    /// The receiver's.
    pub receiver: Used,
}

/// A bundle that did not arrive.
#[derive(Clone, Debug)]
pub struct Lost {
    /// How fast it was sent, in Gbit/s on the veth.
    pub sent: f64,
    /// Why it did not arrive, according to the receiver.
    pub why: String,
}

/// Renames what was made at [`Pair::place`] into the spool and waits for its hook, at most `patience`.
///
/// # Errors
/// [`Lost`] when it did not arrive.
///
/// # Panics
/// When a daemon has ended.
pub fn send(pair: &Pair, watch: &Stopwatch, name: &str, patience: Duration) -> Result<Arrived, Lost> {
    let before = (pair.sender().usage(), pair.receiver().usage());
    let wire = Counter::of(pair.sender());
    let (base, started, clock) = (wire.transmitted(), SystemTime::now(), Instant::now());
    put(pair, name);
    let (mut sent, mut grew, mut asked) = (base, Duration::ZERO, Duration::ZERO);
    loop {
        std::thread::sleep(LOOK);
        if let Some(at) = watch.started(name) {
            let seconds = at.duration_since(started).unwrap_or_default().as_secs_f64();
            let [sender, receiver] = [(pair.sender(), before.0), (pair.receiver(), before.1)].map(used);
            return Ok(Arrived { seconds, sender, receiver });
        }
        let (now, elapsed) = (wire.transmitted(), clock.elapsed());
        if now > sent + BEACONS {
            (sent, grew) = (now, elapsed);
        }
        let lost = |why: String| Lost { sent: gbits(sent - base, grew.as_secs_f64().max(1e-3)), why };
        if elapsed > patience {
            return Err(lost(format!("not there after {:.0} s", elapsed.as_secs_f64())));
        }
        if elapsed > grew + SILENCE && elapsed > asked + SILENCE {
            asked = elapsed;
            if let Some(why) = ended_badly(pair, name) {
                return Err(lost(why));
            }
        }
    }
}

/// Renames what was made at [`Pair::place`] into the spool, without looking at it as [`Pair::drop`] does.
///
/// # Panics
/// When it is not there.
pub fn put(pair: &Pair, name: &str) {
    std::fs::rename(pair.place(name), pair.low.spool.join("default").join(name)).expect("it is there, and the spool");
}

/// The sum of all numbers of that name in a status, wherever they are.
pub fn count(status: &Value, key: &str) -> u64 {
    match status {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| if name == key { value.as_u64().unwrap_or(0) } else { count(value, key) })
            .sum(),
        Value::Array(values) => values.iter().map(|value| count(value, key)).sum(),
        _ => 0,
    }
}

/// Why the bundle will not arrive; None while it still may.
fn ended_badly(pair: &Pair, name: &str) -> Option<String> {
    let status = pair.receiver_status()?;
    let bundles = status.0["bundles"].as_array()?;
    let found = bundles.iter().find(|bundle| bundle["name"] == name)?;
    let state = found["state"].as_str()?;
    let reason = found["reason"].as_str().unwrap_or_default();
    let bad = ["incomplete", "missing", "failed", "quarantined", "rejected", "withdrawn", "held"].contains(&state);
    let of = |key| count(&status.0, key);
    bad.then(|| {
        format!(
            "{state}: {reason} (dropped by the kernel {}, by the daemon {}; blocks lost for want of memory {})",
            of("kernel_drops"),
            status.0["link"]["dropped"],
            of("blocks_lost"),
        )
    })
}

fn used((daemon, before): (&Daemon, Usage)) -> Used {
    let now = daemon.usage();
    #[expect(clippy::cast_precision_loss, reason = "a size in memory")]
    let peak_rss = now.peak_rss as f64 / f64::from(1 << 20);
    Used { cpu: now.cpu_seconds - before.cpu_seconds, peak_rss }
}

/// The bytes that a daemon's end of the link has transmitted.
struct Counter(PathBuf);

impl Counter {
    fn of(daemon: &Daemon) -> Self {
        Self(format!("/proc/{}/net/dev", daemon.pid()).into())
    }

    fn transmitted(&self) -> u64 {
        let shown = std::fs::read_to_string(&self.0).expect("a running daemon has a network");
        parse_transmitted(&shown)
    }
}

/// Field 9 of the interface's line (proc(5)): bytes transmitted.
fn parse_transmitted(shown: &str) -> u64 {
    let line = shown.lines().find_map(|line| line.trim_start().strip_prefix(INTERFACE)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().nth(8)?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_wherever_they_are() {
        let status = serde_json::json!({ "link": { "kernel_drops": 3, "lanes": [{ "kernel_drops": 4 }] }, "x": 1 });
        assert_eq!(count(&status, "kernel_drops"), 7);
        assert_eq!(count(&status, "none"), 0);
    }

    #[test]
    fn reads_the_interface_s_counter() {
        let shown =
            "Inter-|   Receive\n face |bytes\n    lo: 1 2 3 4 5 6 7 8 9 10\ndiode0: 10 20 0 0 0 0 0 0 4242 50 0 0\n";
        assert_eq!(parse_transmitted(shown), 4242);
        assert_eq!(parse_transmitted(""), 0);
    }
}
