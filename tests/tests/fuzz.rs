//! Feeds every parser of outside bytes all test vectors, and many mutations of each, derived from one seed.
//!
//! `CHECKVALVE_FUZZ_SEED` and `CHECKVALVE_FUZZ_ROUNDS` try others and more; `tests/fuzz.sh` searches with libFuzzer.

use std::panic::{AssertUnwindSafe, catch_unwind};

use checkvalve_tests::fuzz::{TARGETS, Target};
use checkvalve_tests::rng::Rng;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().map_or(usual, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Changes, cuts or repeats some bytes, or inserts another seed.
fn bend(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    let place = |len: usize, rng: &mut Rng| rng.below(len as u64 + 1) as usize;
    for _ in 0..=rng.below(4) {
        let at = place(bytes.len(), rng);
        match rng.below(8) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.next_u64() as u8),
            2 => drop(bytes.drain(at..(at + place(16, rng)).min(bytes.len()))),
            3 => bytes.extend_from_within(at..),
            4 => bytes.splice(at..at, seeds[place(seeds.len() - 1, rng)].iter().copied()).for_each(drop),
            // Values at which lengths and numbers are most likely to break.
            5 => bytes.splice(at..at, [[0, 0xff, 0xfb, 0xfc, 0xfd, 0x7f, 0x80, b'/'][place(7, rng)]; 4]).for_each(drop),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << rng.below(8);
                }
            }
        }
    }
    bytes.truncate(16 << 10);
}

fn read(target: Target, bytes: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.read)(bytes))).is_err() {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{} cannot take {} bytes: {hex}", target.name, bytes.len());
    }
}

fn try_out(name: &str) {
    let target = Target::named(name).expect("a target");
    let (seed, rounds) = (number("CHECKVALVE_FUZZ_SEED", 1), number("CHECKVALVE_FUZZ_ROUNDS", 20_000));
    let (seeds, mut rng) = (target.seeds(), Rng::new(seed));
    seeds.iter().for_each(|bytes| read(target, bytes));
    for _ in 0..rounds {
        let mut bytes = seeds[rng.below(seeds.len() as u64) as usize].clone();
        bend(&mut bytes, &seeds, &mut rng);
        read(target, &bytes);
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                try_out(stringify!($name));
            }
        )*

        #[test]
        fn every_target_has_its_test() {
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), [$(stringify!($name)),*]);
        }
    };
}

targets! { datagrams announce hashes beacon ticket keys paths records }
