//! Kills either side at random moments and cuts the link while bundles are on the wire. Then an operator carries tickets until
//! nothing is missing.
//!
//! `SEED=n` replays the moments, as far as two processes can be replayed. `CHECKVALVE_KILLS` sets the number of kills for each
//! side (default 50).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use checkvalve_tests::link::Loss;
use checkvalve_tests::pair::{Dropped, Pair};
use checkvalve_tests::rng::Rng;
use checkvalve_tests::{require_link, tree};

const MIB: u64 = 1 << 20;
/// How many bundles are sent while a side is being killed.
const BUNDLES: usize = 10;

#[derive(Clone, Copy)]
enum Side {
    Sender,
    Receiver,
}

#[test]
fn a_sender_killed_fifty_times() {
    require_link!();
    killed(Side::Sender);
}

#[test]
fn a_receiver_killed_fifty_times() {
    require_link!();
    killed(Side::Receiver);
}

#[test]
fn outages_from_a_tenth_of_a_second_to_twenty() {
    require_link!();
    let pair = slow_pair();
    let first = pair.drop_file("first", b"so that the channel is known");
    pair.wait_installed(&first);
    let mut bundles = vec![first];
    for (number, ms) in [100, 300, 1_000, 3_000, 8_000, 20_000].into_iter().enumerate() {
        let bundle = drop_one(&pair, number);
        pair.wait_sender_state(&bundle, &["transmitting", "transmitted"]);
        pair.link.set_loss(Loss::Random(1_000));
        std::thread::sleep(Duration::from_millis(ms));
        pair.link.set_loss(Loss::None);
        bundles.push(bundle);
    }
    all_arrive(&pair, &bundles);
}

#[test]
fn a_killed_receiver_goes_on_with_what_it_had() {
    require_link!();
    // About two hundred blocks are under way at any moment. Later symbols alone could complete hardly any of them.
    let mut pair = Pair::setup().rate("100 Mbit/s").sender("fec.burst", "200 ms").on_tmpfs().start();
    tree::large(&pair.place("image"), 40 * MIB, 1);
    let image = pair.drop("image");
    for _ in 0..3 {
        pair.wait_state(&image, &["receiving"]);
        std::thread::sleep(Duration::from_millis(700));
        pair.with_sender_paused(|pair| {
            // Datagrams in the kernel's buffers are lost with the socket.
            std::thread::sleep(Duration::from_millis(300));
            pair.kill_receiver();
            pair.start_receiver();
        });
    }
    pair.wait_installed(&image);
    pair.assert_identical(&image);
    let log = std::fs::read_to_string(&pair.high.log).expect("the receiver's log");
    assert_eq!(log.matches("going on with blocks").count(), 3, "{log}");
}

/// Kills one side at random moments while ten bundles are sent, and cuts the link from time to time.
fn killed(side: Side) {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").subsec_nanos();
    let seed = std::env::var("SEED").map_or_else(|_| u64::from(now()), |seed| seed.parse().expect("a number"));
    let kills = std::env::var("CHECKVALVE_KILLS").map_or(50, |kills| kills.parse().expect("a number"));
    println!("SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut pair = slow_pair();
    let first = pair.drop_file("first", b"so that the channel is known");
    pair.wait_installed(&first);
    let mut bundles = vec![first];
    for kill in 0..kills {
        while (bundles.len() - 1) * kills <= kill * BUNDLES {
            bundles.push(drop_one(&pair, bundles.len()));
        }
        std::thread::sleep(Duration::from_millis(rng.below(600)));
        let outage = rng.chance(100).then(|| Duration::from_millis(100 + rng.below(1_900)));
        if let Some(outage) = outage {
            pair.link.set_loss(Loss::Random(1_000));
            std::thread::sleep(outage);
        }
        match side {
            Side::Sender => pair.kill_sender(),
            Side::Receiver => pair.kill_receiver(),
        }
        std::thread::sleep(Duration::from_millis(rng.below(300)));
        if outage.is_some() {
            pair.link.set_loss(Loss::None);
        }
        match side {
            Side::Sender => pair.start_sender(),
            Side::Receiver => pair.start_receiver(),
        }
    }
    all_arrive(&pair, &bundles);
}

/// A pair that needs some seconds for a bundle.
fn slow_pair() -> Pair {
    Pair::setup().rate("100 Mbit/s").on_tmpfs().start()
}

fn drop_one(pair: &Pair, number: usize) -> Dropped {
    let name = format!("bundle-{number}");
    if number.is_multiple_of(3) {
        tree::odd(&pair.place(&name), 200, number as u64);
    } else {
        tree::large(&pair.place(&name), 20 * MIB + 4_321 * number as u64, number as u64);
    }
    pair.drop(&name)
}

/// Carries tickets until all bundles are installed. Checks that they are identical to the drops, and that each hook ran once, in
/// order.
fn all_arrive(pair: &Pair, bundles: &[Dropped]) {
    for bundle in bundles {
        pair.wait_sender_state(bundle, &["transmitted"]);
    }
    pair.wait_for("tickets to bring all that is lacking", || {
        std::thread::sleep(Duration::from_millis(500));
        let status = pair.receiver_status()?;
        let of = |bundle: &Dropped| status.find(&bundle.channel, &bundle.name);
        if bundles.iter().all(|bundle| of(bundle).is_some_and(|found| found.state == "installed")) {
            return Some(());
        }
        let said = pair.receiver_command(&["ticket", "--all"]);
        let said = String::from_utf8(said.stdout).expect("a ticket is text");
        if said.lines().any(|line| !line.starts_with('#') && line.len() > 20) {
            let resend = pair.sender_command_with(&["resend", "--ticket", "-", "--wait"], &said);
            assert!(resend.status.success(), "{said}\n{}", String::from_utf8_lossy(&resend.stderr));
        }
        None
    });
    for bundle in bundles {
        pair.assert_identical(bundle);
    }
    let runs = pair.hook_runs();
    // A receiver that is killed while a hook runs cannot know how it ended. It runs the hook again, as another attempt.
    let first: Vec<u64> = runs
        .iter()
        .filter(|run| run.var("ATTEMPT") == "1")
        .map(checkvalve_tests::pair::hook::HookRun::sequence)
        .collect();
    let all: Vec<u64> = (1..=bundles.len() as u64).collect();
    assert_eq!(first, all, "each hook ran once, in order");
    assert_eq!(pair.link.high_transmitted(), 0);
}
