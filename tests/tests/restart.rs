//! Daemons that start late, stop, and are killed. Their start order does not matter, and no partial bundle is ever visible.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use checkvalve_tests::pair::{Dropped, Pair};
use checkvalve_tests::snapshot::Snapshot;
use checkvalve_tests::{require_link, tree};

const MIB: u64 = 1 << 20;

#[test]
fn a_receiver_two_seconds_late_gets_all_in_two_passes() {
    require_link!();
    let mut pair = Pair::setup().rate("200 Mbit/s").passes(2).without_receiver().start();
    tree::large(&pair.place("image"), 100 * MIB, 1);
    tree::odd(&pair.place("release"), 200, 2);
    let image = pair.drop("image");
    pair.wait_sender_state(&image, &["transmitting"]);
    std::thread::sleep(Duration::from_secs(2));
    pair.start_receiver();
    let release = pair.drop("release");
    for bundle in [&image, &release] {
        pair.wait_installed(bundle);
        pair.assert_identical(bundle);
    }
    assert_eq!(pair.hook_runs().len(), 2, "two passes, one installation each");
}

#[test]
fn the_carousel_brings_what_a_receiver_was_too_late_for() {
    require_link!();
    let setup = Pair::setup().sender("channel.default.carousel", "2 s").without_receiver();
    let mut pair = setup.start();
    let first = pair.drop_file("licence", b"the first");
    pair.wait_sender_state(&first, &["transmitted"]);
    let other = pair.drop_file("trust", b"a key");
    pair.wait_sender_state(&other, &["transmitted"]);
    let newer = pair.drop_file("licence", b"the second");
    pair.wait_sender_state(&newer, &["transmitted"]);
    pair.start_receiver();
    // Without any ticket or command, the carousel brings current bundles, but not replaced ones.
    let landed = |pair: &Pair, sequence: u64| pair.high.inbox.join(format!("default/{sequence:08}"));
    pair.wait_for("the carousel to bring both", || {
        (landed(&pair, 2).exists() && landed(&pair, 3).exists()).then_some(())
    });
    assert_eq!(std::fs::read(landed(&pair, 2).join("trust")).unwrap(), b"a key");
    assert_eq!(std::fs::read(landed(&pair, 3).join("licence")).unwrap(), b"the second");
    std::thread::sleep(Duration::from_secs(5));
    assert!(!landed(&pair, 1).exists());
    assert_eq!(pair.link.high_transmitted(), 0);
}

#[test]
fn any_order_of_restarts_will_do() {
    require_link!();
    let mut pair = Pair::setup().start();
    let mut number = 0;
    let mut next_arrives = |pair: &Pair| {
        number += 1;
        let bundle = pair.drop_file(&format!("bundle-{number}"), format!("content {number}").as_bytes());
        pair.wait_installed(&bundle);
        pair.assert_identical(&bundle);
    };
    next_arrives(&pair);

    pair.stop_sender();
    pair.start_sender();
    next_arrives(&pair);

    pair.stop_receiver();
    pair.start_receiver();
    next_arrives(&pair);

    pair.stop_sender();
    pair.stop_receiver();
    pair.start_sender();
    pair.start_receiver();
    next_arrives(&pair);

    pair.stop_receiver();
    pair.stop_sender();
    pair.start_receiver();
    pair.start_sender();
    next_arrives(&pair);

    pair.kill_sender();
    pair.start_sender();
    next_arrives(&pair);

    pair.kill_receiver();
    pair.start_receiver();
    next_arrives(&pair);

    let order: Vec<u64> = pair.hook_runs().iter().map(|run| run.sequence()).collect();
    assert_eq!(order, [1, 2, 3, 4, 5, 6, 7], "sequence numbers go on over restarts, without a gap");
}

#[test]
fn a_bundle_waits_in_the_spool_while_the_sender_is_down() {
    require_link!();
    let mut pair = Pair::setup().start();
    pair.stop_sender();
    let bundle = pair.drop_file("waits", b"for the sender");
    pair.start_sender();
    pair.wait_installed(&bundle);
    pair.assert_identical(&bundle);
}

#[test]
fn a_killed_receiver_is_completed_by_a_second_pass() {
    require_link!();
    let mut pair = Pair::setup().rate("200 Mbit/s").passes(2).start();
    let (image, watcher) = kill_midway(&mut pair);
    pair.wait_installed(&image);
    watcher.saw_only_the_whole(&pair, &image);
}

#[test]
fn a_killed_receiver_is_completed_by_a_resend() {
    require_link!();
    let mut pair = Pair::setup().rate("200 Mbit/s").start();
    let (image, watcher) = kill_midway(&mut pair);
    pair.wait_sender_state(&image, &["transmitted"]);
    let lacking = pair.wait_state(&image, &["incomplete"]);
    assert_eq!(pair.inbox().iter().filter(|path| path.ends_with("image")).count(), 0, "nothing is published yet");

    let resend = pair.sender_command(&["resend", &format!("default/{}", lacking.sequence)]);
    assert!(resend.status.success(), "resend: {}", String::from_utf8_lossy(&resend.stderr));
    pair.wait_installed(&image);
    watcher.saw_only_the_whole(&pair, &image);

    // A second resend, by id. The receiver has the bundle already and delivers nothing twice.
    let before = pair.sender_status().unwrap();
    assert!(pair.sender_command(&["resend", &lacking.id]).status.success());
    pair.wait_for("the second resend to be on the wire", || {
        (pair.sender_status()?.0 != before.0 && pair.sender_status()?.find("default", "image")?.state == "transmitted")
            .then_some(())
    });
    let after = pair.drop_file("after", b"the resend");
    pair.wait_installed(&after);
    let order: Vec<u64> = pair.hook_runs().iter().map(|run| run.sequence()).collect();
    assert_eq!(order, [1, 2], "each bundle was installed once");
}

#[test]
fn a_killed_sender_goes_on_with_what_it_had() {
    require_link!();
    let mut pair = Pair::setup().rate("200 Mbit/s").start();
    tree::large(&pair.place("image"), 60 * MIB, 3);
    let image = pair.drop("image");
    pair.wait_sender_state(&image, &["transmitting"]);
    std::thread::sleep(Duration::from_millis(1200));
    let waiting = pair.drop_file("waiting", b"its turn");
    pair.wait_sender_state(&waiting, &["queued"]);
    pair.kill_sender();
    pair.start_sender();
    for (sequence, bundle) in [(1, &image), (2, &waiting)] {
        assert_eq!(pair.wait_installed(bundle).sequence, sequence);
        pair.assert_identical(bundle);
    }
}

/// Drops an image of 60 MiB, kills the receiver half way, and starts it again.
fn kill_midway(pair: &mut Pair) -> (Dropped, Watcher) {
    let watcher = Watcher::start(pair.high.inbox.clone());
    tree::large(&pair.place("image"), 60 * MIB, 3);
    let image = pair.drop("image");
    pair.wait_state(&image, &["receiving"]);
    std::thread::sleep(Duration::from_millis(1000));
    pair.kill_receiver();
    pair.start_receiver();
    (image, watcher)
}

/// Watches the inbox continuously, as a reader might, and keeps the first thing it sees under each path.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Option<Snapshot>>,
}

impl Watcher {
    fn start(inbox: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let first = inbox.join("default/00000001");
            while !stopped.load(Ordering::Relaxed) {
                if first.symlink_metadata().is_ok() {
                    return Some(Snapshot::of(&first.join("image")));
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            None
        });
        Self { stop, thread }
    }

    fn saw_only_the_whole(self, pair: &Pair, bundle: &Dropped) {
        std::thread::sleep(Duration::from_millis(100));
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("the inbox can be read").expect("the bundle is in the inbox");
        assert_eq!(bundle.before.differences(&seen), "", "what a reader saw first was not the whole bundle");
        pair.assert_identical(bundle);
    }
}
