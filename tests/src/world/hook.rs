//! The simulated install hook: how long it runs, and how it ends.

use std::time::Duration;

use checkvalve_receiver::delivery::HookRun;
use checkvalve_receiver::hook::Outcome;

use super::script::Options;
use crate::rng::Rng;

/// A running hook.
pub(super) struct Running {
    pub(super) run: HookRun,
    pub(super) ends_ns: u64,
    pub(super) outcome: Outcome,
}

impl Running {
    /// Starts an attempt. Its length and outcome depend only on the seed, the bundle and the attempt.
    pub(super) fn start(run: HookRun, now_ns: u64, seed: u64, options: &Options) -> Self {
        let mut rng =
            Rng::new(seed ^ (run.sequence << 8) ^ u64::from(run.attempt) ^ (run.channel.as_str().len() as u64) << 40);
        let lasts_ms = [1, 50, 400, 3_000][usize::try_from(rng.below(4)).expect("small")];
        let outcome = if !rng.chance(options.bad_hooks) {
            Outcome::Done
        } else {
            match rng.below(8) {
                0..4 => Outcome::Again,
                4 => Outcome::Quarantine(65),
                5 => Outcome::Failed("exit 1".into()),
                6 => Outcome::NotStarted("no such file".into()),
                _ => Outcome::TimedOut(Duration::from_secs(5)),
            }
        };
        Self { run, ends_ns: now_ns + lasts_ms * 1_000_000, outcome }
    }
}
