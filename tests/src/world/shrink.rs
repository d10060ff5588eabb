//! Shortens a failing script.

use super::play::{Failure, run};
use super::script::{Options, Script};

/// Removes events and options one by one, as long as the script still fails in the same way. Returns the shortest script
/// found, and its failure.
pub fn shrink(script: &Script, failure: &Failure) -> (Script, Failure) {
    let (mut best, mut failure) = (script.clone(), failure.clone());
    let mut shorter = true;
    while shorter {
        shorter = false;
        for at in (0..best.events.len()).rev() {
            let mut less = best.clone();
            less.events.remove(at);
            if let Some(found) = fails(&less, &failure) {
                (best, failure, shorter) = (less, found, true);
            }
        }
        for (_, calm) in CALM {
            let mut less = best.clone();
            calm(&mut less.options);
            if less.options != best.options
                && let Some(found) = fails(&less, &failure)
            {
                (best, failure, shorter) = (less, found, true);
            }
        }
    }
    (best, failure)
}

fn fails(script: &Script, like: &Failure) -> Option<Failure> {
    run(script, &mut |_| ()).err().filter(|failure| kind(&failure.what) == kind(&like.what))
}

/// The words of a failure, without names, numbers and details.
fn kind(what: &str) -> String {
    let head = what.split(':').next().unwrap_or_default();
    let plain = |word: &&str| word.len() > 1 && word.chars().all(|c| c.is_ascii_lowercase());
    head.split_whitespace().filter(plain).collect::<Vec<_>>().join(" ")
}

/// Resets the option of this name to its default. False: there is no such option.
pub(super) fn calm(options: &mut Options, name: &str) -> bool {
    let found = CALM.iter().find(|(known, _)| *known == name);
    found.map(|(_, calm)| calm(options)).is_some()
}

/// The names of the options that differ from their defaults in `from` but not in `to`.
pub(super) fn calmed(from: &Options, to: &Options) -> Vec<&'static str> {
    let is_calmed = |calm: fn(&mut Options)| {
        let (mut a, mut b) = (from.clone(), to.clone());
        calm(&mut a);
        calm(&mut b);
        a != *from && b == *to
    };
    CALM.iter().filter(|(_, calm)| is_calmed(*calm)).map(|(name, _)| *name).collect()
}

type Calm = fn(&mut Options);

const CALM: [(&str, Calm); 19] = [
    ("loss", |o| o.loss = 0),
    ("burst", |o| o.burst = None),
    ("duplicate", |o| o.duplicate = 0),
    ("reorder", |o| o.reorder = 0),
    ("corrupt", |o| o.corrupt = 0),
    ("truncate", |o| o.truncate = 0),
    ("replay", |o| o.replay = 0),
    ("passes", |o| o.passes = 1),
    ("carousel", |o| o.carousel = false),
    ("mounts", |o| (o.spool_mounted, o.inbox_mounted) = (false, false)),
    ("hook", |o| o.hook = None),
    ("bad-hooks", |o| o.bad_hooks = 0),
    ("wait", |o| o.wait_for_missing_ms = None),
    ("memory", |o| o.little_memory = false),
    ("retained", |o| o.little_retained = false),
    ("fsync", |o| o.fsync_each = false),
    ("neighbour", |o| o.neighbour = false),
    ("lanes", |o| o.lanes = 1),
    ("encoders", |o| o.encoders = 1),
];
