//! The simulated pair: seeds that once failed, then fresh ones for a while.
//!
//! `SEED=n` plays only that seed. `CHECKVALVE_SIM_SECONDS` sets how long fresh seeds are played (default 75).
//! `checkvalve-sim` plays a given number of seeds on all cores.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use checkvalve_tests::world::{Line, Script, Stats, read_seeds, run, shrink};

/// A run allocates and frees all the time, which glibc's allocator takes long for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Plays a script. If it fails, finds a shorter one and prints how to replay it.
fn play(script: &Script) -> Stats {
    run(script, &mut |_| ()).unwrap_or_else(|failure| {
        let (short, failure) = shrink(script, &failure);
        let events: Vec<String> = short.events.iter().map(|event| format!("\n  {event:?}")).collect();
        panic!("seed line `{}`: {}{}\n  {:?}", Line::of(&short), failure.what, events.concat(), short.options);
    })
}

#[test]
fn seeds_that_once_failed() {
    let lines = read_seeds(&Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds"));
    assert!(!lines.is_empty());
    for line in lines {
        play(&line.script());
    }
}

#[test]
fn fresh_seeds() {
    if let Ok(seed) = std::env::var("SEED") {
        play(&Script::of(seed.parse().expect("SEED is a number")));
        return;
    }
    let seconds = std::env::var("CHECKVALVE_SIM_SECONDS").map_or(75, |s| s.parse().expect("a number of seconds"));
    let base = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let base = u64::try_from(base).expect("a time of our days") * 1_000;
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut seeds, mut published) = (0, 0);
    while Instant::now() < end {
        published += play(&Script::of(base + seeds)).published;
        seeds += 1;
    }
    println!("{seeds} seeds from {base}, {published} bundles published");
    assert!(seeds == 0 || published > seeds / 2, "almost nothing is published");
}

#[test]
fn a_seed_replays() {
    let is_forged = |seed: &u64| Script::of(*seed).is_hostile();
    let forged = (200..).filter(is_forged).take(3);
    for seed in [3, 14, 159].into_iter().chain(forged) {
        let mut told = [Vec::new(), Vec::new()];
        let stats = told.each_mut().map(|lines| {
            run(&Script::of(seed), &mut |line| lines.push(line.to_owned())).map_err(|failure| failure.what)
        });
        assert_eq!(told[0], told[1], "seed {seed}");
        assert_eq!(stats[0], stats[1], "seed {seed}");
    }
}
