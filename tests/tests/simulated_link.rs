//! Complete sessions over the simulated line. `SEED=n` replays one seed of every test.

use std::time::Duration;

use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::receive::DropReason;
use checkvalve_protocol::transmit::{Link, Parameters};
use checkvalve_tests::rng::Rng;
use checkvalve_tests::sim::bundle::Signer;
use checkvalve_tests::sim::{Bundle, High, Line, Low, Shape};

const KEY: [u8; 32] = [7; 32];
const MEMORY: u64 = 64 << 20;

fn parameters(mtu: u16, repair: f64) -> Parameters {
    let burst = Duration::from_millis(10);
    Parameters::derive(&Link { mtu, rate: 900_000_000, repair, burst, memory: MEMORY }).unwrap()
}

fn bundle(seed: u64, len: usize) -> Bundle {
    let key = SigningKey::from_seed([1; 32]);
    Bundle::file(BundleId::new(seed, key.public().id()), 1, "file", Rng::new(seed).bytes(len), &Signer::Key(&key))
}

fn seeds(count: u64) -> Vec<u64> {
    std::env::var("SEED").map_or_else(|_| (1..=count).collect(), |seed| vec![seed.parse().expect("SEED is a number")])
}

/// Sends one pass and returns the receiver.
fn one_pass(seed: u64, len: usize, parameters: Parameters, shape: Shape) -> (Bundle, High, Line) {
    let bundle = bundle(seed, len);
    let mut line = Line::new(shape, seed);
    let mut high = High::new(KEY, MEMORY);
    high.receive(line.carry(Low::new(&KEY, seed, parameters).transmit(&bundle, 0)));
    (bundle, high, line)
}

#[test]
fn every_size_arrives_without_loss_and_nothing_is_decoded() {
    for mtu in [576, 1500, 9000] {
        for len in [0, 1, 1407, 1408, 1409, 4096, 256 * 1408, 256 * 1408 + 1, 3_000_000] {
            let (bundle, high, _) = one_pass(len as u64, len, parameters(mtu, 0.05), Shape::default());
            assert!(high.has(&bundle), "{len} bytes at MTU {mtu}");
            let usage = high.usage();
            assert_eq!((high.decoded, usage.open_blocks), (0, 0), "{len} bytes at MTU {mtu}");
            // No blocks are left, and what is kept per object is smaller than a symbol.
            assert!(usage.memory <= usage.objects as u64 * 1_024, "{len} bytes at MTU {mtu}: {usage:?}");
        }
    }
}

#[test]
fn random_loss_within_the_repair_is_mended() {
    for seed in seeds(20) {
        for (loss, repair) in [(10, 0.08), (50, 0.15)] {
            let shape = Shape { loss, ..Shape::default() };
            let (bundle, high, line) = one_pass(seed, 4_000_000, parameters(1500, repair), shape);
            assert!(high.has(&bundle), "seed {seed}: {} lost at {loss} in 1,000, repair {repair}: {high:?}", line.lost);
            assert!(high.decoded > 0);
        }
    }
}

#[test]
fn a_burst_is_mended_wherever_it_falls() {
    // 10 ms at 900 Mbit/s are 731 datagrams. No object gets two bursts.
    let parameters = parameters(1500, 0.05);
    for len in [0, 4096, 200_000, 2_000_000] {
        let bundle = bundle(len as u64, len);
        let sent = Low::new(&KEY, 9, parameters).transmit(&bundle, 0);
        let step = (sent.len() / 25).max(1);
        for from in (0..sent.len()).step_by(step) {
            let start = sent[from].0;
            let end = start + Duration::from_millis(10);
            let arrived = sent.iter().filter(|(at, _)| *at < start || *at >= end).cloned().collect();
            let mut high = High::new(KEY, MEMORY);
            high.receive(arrived);
            assert!(high.has(&bundle), "{len} bytes, a burst from datagram {from} of {}", sent.len());
        }
    }
}

#[test]
fn two_hundred_lost_in_a_row_every_twenty_thousand() {
    let shape = Shape { burst: Some((20_000, 200)), ..Shape::default() };
    let (bundle, high, line) = one_pass(3, 60_000_000, parameters(1500, 0.05), shape);
    assert_eq!(line.lost, 600, "three bursts");
    assert!(high.has(&bundle), "{high:?}");
}

#[test]
fn order_and_doubles_do_not_matter() {
    for seed in seeds(10) {
        let late = Duration::from_millis(5);
        let shape = Shape { duplicate: 300, reorder: 500, late, ..Shape::default() };
        let (bundle, high, _) = one_pass(seed, 3_000_000, parameters(1500, 0.05), shape);
        assert!(high.has(&bundle), "seed {seed}: {high:?}");
        let [doubles, surplus] = [DropReason::Duplicate, DropReason::Surplus].map(|reason| high.drops.get(reason));
        assert!(doubles > 0, "a block that has a symbol does not take it again");
        let rest: u64 = high.drops.iter().map(|(_, count)| count).sum::<u64>() - doubles - surplus;
        assert_eq!(rest, 0, "seed {seed}: {high:?}");
    }
}

#[test]
fn damaged_datagrams_are_lost_datagrams() {
    for seed in seeds(10) {
        let shape = Shape { corrupt: 20, truncate: 20, ..Shape::default() };
        let (bundle, high, line) = one_pass(seed, 3_000_000, parameters(1500, 0.15), shape);
        assert!(high.has(&bundle), "seed {seed}: {high:?}");
        let rejected = [DropReason::Short, DropReason::Magic, DropReason::Version, DropReason::Kind];
        let rejected = rejected.into_iter().chain([DropReason::Place, DropReason::Reserved, DropReason::Mode]);
        let rejected = rejected.chain([DropReason::Key, DropReason::Session, DropReason::Tag]);
        let rejected: u64 = rejected.map(|reason| high.drops.get(reason)).sum();
        assert_eq!(rejected, u64::from(line.damaged), "each damaged datagram is refused, and no other");
    }
}

#[test]
fn passes_add_up_whatever_each_of_them_lost() {
    for seed in seeds(10) {
        let bundle = bundle(seed, 2_000_000);
        let mut line = Line::new(Shape { loss: 400, ..Shape::default() }, seed);
        let mut high = High::new(KEY, MEMORY);
        // In each pass, 60 % of 105 % arrives: one pass is never enough, two always are.
        for (pass, complete) in [(0, false), (1, true)] {
            // Each pass has its own session, as after a restart of the sender.
            let mut low = Low::new(&KEY, seed * 10 + u64::from(pass), parameters(1500, 0.05));
            high.receive(line.carry(low.transmit(&bundle, pass)));
            assert_eq!(high.has(&bundle), complete, "seed {seed} after pass {pass}: {high:?}");
        }
    }
}

#[test]
fn whatever_the_line_does_nothing_wrong_comes_out() {
    for seed in seeds(40) {
        let mut rng = Rng::new(seed);
        let mut up_to = |most: u64| u32::try_from(rng.below(most + 1)).unwrap();
        let shape = Shape {
            loss: up_to(300),
            burst: (up_to(2) == 0).then(|| (1000 + up_to(5000), up_to(600))),
            duplicate: up_to(200),
            reorder: up_to(500),
            late: Duration::from_micros(u64::from(up_to(20_000))),
            corrupt: up_to(50),
            truncate: up_to(50),
        };
        let len = [0, 1, 5000, 400_000, 1_500_000][up_to(4) as usize];
        let (bundle, mut high, mut line) = one_pass(seed, len, parameters(1500, 0.05), shape);
        let mut low = Low::new(&KEY, !seed, parameters(1500, 0.05));
        // A small bundle's first passes may all fall into one burst.
        for pass in 1..100 {
            if high.has(&bundle) {
                break;
            }
            high.receive(line.carry(low.transmit(&bundle, pass)));
        }
        assert!(high.has(&bundle), "seed {seed}, {shape:?}: not after a hundred passes: {high:?}");
        assert!(high.usage().memory <= MEMORY);
    }
}

#[test]
fn a_seed_replays() {
    let shape = Shape {
        loss: 100,
        duplicate: 100,
        reorder: 300,
        late: Duration::from_millis(1),
        corrupt: 10,
        ..Shape::default()
    };
    let drops = || one_pass(5, 1_000_000, parameters(1500, 0.05), shape).1.drops;
    assert_eq!(drops(), drops());
}
