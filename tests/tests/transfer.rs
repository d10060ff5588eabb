//! Real trees over the real link, at every loss that the pair is designed for. Everything arrives unchanged, and nothing goes
//! back.

use checkvalve_tests::link::Loss;
use checkvalve_tests::pair::Pair;
use checkvalve_tests::pair::setup::Setup;
use checkvalve_tests::{require_link, tree};

const GIB: u64 = 1 << 30;
const RSS_LIMIT: u64 = 200 << 20;

#[test]
fn without_loss() {
    require_link!();
    everything_arrives(Pair::setup());
}

#[test]
fn at_one_percent_loss() {
    require_link!();
    everything_arrives(Pair::setup().gso(false).loss(Loss::Random(10)).repair("8 %"));
}

#[test]
fn at_five_percent_loss() {
    require_link!();
    everything_arrives(Pair::setup().gso(false).loss(Loss::Random(50)).repair("15 %"));
}

#[test]
fn with_bursts_of_200_every_20000_at_default_settings() {
    require_link!();
    everything_arrives(Pair::setup().gso(false).loss(Loss::Burst { every: 20_000, length: 200 }));
}

#[test]
fn with_jumbo_frames() {
    require_link!();
    let mut pair = Pair::setup().mtu(9000).gso(false).loss(Loss::Random(10)).repair("10 %").start();
    tree::odd(&pair.place("release"), 500, 9000);
    let release = pair.drop("release");
    pair.wait_installed(&release);
    pair.assert_identical(&release);
    one_way(&mut pair);
}

/// Sends a tree of 5,000 odd files, a file of 0 bytes, and a file of 1 GiB through one pair.
fn everything_arrives(setup: Setup) {
    let lossy = !format!("{setup:?}").contains("loss: None");
    let mut pair = setup.on_tmpfs().start();
    tree::odd(&pair.place("release"), 5_000, 1);
    tree::file(&pair.place("empty"), b"", 0o600);
    tree::large(&pair.place("image"), GIB, 2);
    let bundles = ["release", "empty", "image"].map(|name| pair.drop(name));
    assert!(
        bundles[0].before.len() > 5_050 && bundles[0].before.bytes() > 10 << 20,
        "the tree is as large as it should be"
    );

    for (number, bundle) in bundles.iter().enumerate() {
        let arrived = pair.wait_installed(bundle);
        assert_eq!(arrived.sequence, number as u64 + 1, "bundles keep the order in which they were dropped");
        assert_eq!(arrived.bytes, bundle.before.bytes());
        pair.assert_identical(bundle);
    }
    let order: Vec<u64> = pair.hook_runs().iter().map(|run| run.sequence()).collect();
    assert_eq!(order, [1, 2, 3], "the hook ran once for each bundle, in order");
    assert_eq!(pair.link.lost() > 0, lossy, "the link lost what it was told to lose");
    one_way(&mut pair);
}

/// Stops the daemons. Checks that the high side never tried to transmit, and that memory use stayed flat.
fn one_way(pair: &mut Pair) {
    let (sender, receiver) = (pair.stop_sender().usage, pair.stop_receiver().usage);
    println!("sender {sender:?}, receiver {receiver:?}, {} frames", pair.link.high_received());
    assert!(sender.peak_rss < RSS_LIMIT, "the sender's peak is {} MiB", sender.peak_rss >> 20);
    assert!(receiver.peak_rss < RSS_LIMIT, "the receiver's peak is {} MiB", receiver.peak_rss >> 20);
    assert_eq!(pair.link.high_transmitted(), 0, "frames that the receiver's interface transmitted");
    assert_eq!(pair.link.high_stopped(), 0, "frames that the receiver's side tried to transmit");
}
