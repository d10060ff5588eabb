//! File systems that become read-only, by hand or as ext4 makes itself after an error, and ones that are from the start.

use checkvalve_tests::mount::Mount;
use checkvalve_tests::pair::Pair;
use checkvalve_tests::shell::sh;
use checkvalve_tests::{require_images, require_link, tree};

use super::reason;

/// By hand, while something waits to be claimed: it stays in the spool, status says why, and it goes when the spool may be
/// written to again.
#[test]
fn a_spool_that_becomes_read_only_keeps_what_was_dropped() {
    require_link!();
    let mut pair = Pair::setup().sender("settle", "3 s").lay();
    let disk = Mount::tmpfs(&pair.low.spool.clone(), "64m");
    std::fs::create_dir(pair.low.spool.join("default")).unwrap();
    pair.start_receiver();
    pair.start_sender();
    // Written in place, it is claimed only when it was quiet for a while.
    let (place, spooled) = (pair.place("image"), pair.low.spool.join("default/image"));
    tree::large(&place, 5 << 20, 3);
    std::fs::copy(&place, &spooled).unwrap();
    disk.remount("ro");
    let waiting = pair.wait_for("the sender to say why it waits", || {
        let status = pair.sender_status()?.0;
        let waiting = status["spool"]["waiting"][0].clone();
        (waiting["problem"] == true).then_some(waiting)
    });
    assert!(waiting["why"].as_str().unwrap().contains("Read-only file system"), "{waiting}");
    assert!(pair.log_of("sender").contains("cannot be claimed"));
    disk.remount("rw");
    pair.wait_for("it to be installed", || {
        let found = pair.receiver_status()?.find("default", "image")?;
        (found.state == "installed").then_some(())
    });
    let landed = std::fs::read(pair.high.inbox.join("default/00000001/image")).unwrap();
    assert!(landed == std::fs::read(&place).unwrap());
    assert!(!spooled.exists());
    pair.stop_sender();
}

/// As ext4 does on an error: everything that is open cannot be written to any more. The receiver goes on and says so; after
/// a check of the file system and a restart a ticket brings the rest.
#[test]
fn a_high_side_that_becomes_read_only_says_so_and_completes_after_a_check() {
    require_images!();
    let mut pair = Pair::setup().rate("60 Mbit/s").lay();
    let disk = Mount::image(&pair.high.data.clone(), &pair.dir.path().join("image"), 256);
    pair.make_high();
    pair.start_receiver();
    pair.start_sender();
    let first = pair.drop_file("first", b"before");
    pair.wait_installed(&first);
    tree::large(&pair.place("image"), 30 << 20, 4);
    let image = pair.drop("image");
    pair.wait_for("some of it to arrive", || {
        let found = pair.receiver_status()?.find("default", "image")?;
        (found.all["received"].as_u64()? > 4 << 20).then_some(())
    });
    disk.remount("abort");
    pair.wait_state(&image, &["incomplete"]);
    assert!(reason(&pair, &image).contains("Read-only file system"), "{}", reason(&pair, &image));
    let log = pair.log_of("receiver");
    assert!(log.contains("Read-only file system"), "{log}");
    assert!(log.lines().count() < 200, "it is said, and not for each block:\n{log}");
    pair.assert_identical(&first);
    assert!(!pair.landed(&image, 2).exists());

    pair.stop_receiver();
    disk.unmount();
    disk.check();
    disk.mount();
    pair.start_receiver();
    let lacking = pair.wait_state(&image, &["incomplete", "missing"]);
    assert!(lacking.all["ticket"].is_string(), "{}", lacking.all);
    super::carry_tickets(&pair);
    pair.wait_installed(&image);
    pair.assert_identical(&image);
    pair.assert_identical(&first);
}

/// The same on the low side: what was claimed is sent, what is dropped later waits, nothing is lost.
#[test]
fn a_low_side_that_becomes_read_only_loses_nothing() {
    require_images!();
    let mut pair = Pair::setup().rate("60 Mbit/s").lay();
    let at = pair.dir.path().join("low-disk");
    let disk = Mount::image(&at, &pair.dir.path().join("image"), 256);
    pair.move_low(&at);
    pair.start_receiver();
    pair.start_sender();
    for name in ["one", "two"] {
        tree::large(&pair.place(name), 20 << 20, 5);
    }
    // What was not on the disk before, a file system that fails may lose.
    sh(&format!("sync --file-system {}", at.display()));
    let one = pair.drop("one");
    let two = pair.drop("two");
    pair.wait_state(&one, &["receiving"]);
    disk.remount("abort");
    // Both are read to their end; that they were sent cannot be written down, which is said.
    pair.wait_installed(&one);
    let troubles = pair.wait_for("the sender to say it", || {
        let troubles = pair.sender_status()?.0["troubles"].clone();
        troubles.to_string().contains("Read-only file system").then_some(troubles)
    });
    assert!(troubles.to_string().contains("ledger"), "{troubles}");
    pair.stop_sender();
    disk.unmount();
    disk.check();
    disk.mount();
    pair.start_sender();
    for bundle in [&one, &two] {
        pair.wait_sender_state(bundle, &["transmitted"]);
        pair.wait_installed(bundle);
        pair.assert_identical(bundle);
    }
    assert_eq!(pair.hook_runs().len(), 2, "sent twice, delivered once");
}

/// From the start: one line with the config's key, exit 78, and what was dropped stays.
#[test]
fn read_only_directories_are_refused_at_start() {
    require_link!();
    let mut pair = Pair::setup().lay();
    let data = Mount::tmpfs(&pair.high.data.clone(), "64m");
    pair.make_high();
    data.remount("ro");
    let (code, said) = pair.refuses_to_start("receiver");
    assert!(said.contains("inbox") && said.contains("read-only file system"), "{said}");
    assert_eq!((code, said.trim().lines().count()), (Some(78), 1), "{said}");
    data.remount("rw");
    let spool = Mount::tmpfs(&pair.low.spool.clone(), "64m");
    std::fs::create_dir(pair.low.spool.join("default")).unwrap();
    std::fs::write(pair.low.spool.join("default/kept"), b"kept").unwrap();
    spool.remount("ro");
    let (code, said) = pair.refuses_to_start("sender");
    assert!(said.contains("spool") && said.contains("read-only file system"), "{said}");
    assert_eq!((code, said.trim().lines().count()), (Some(78), 1), "{said}");
    spool.remount("rw");
    pair.start_receiver();
    pair.start_sender();
    pair.wait_for("what waited to be installed", || {
        (pair.receiver_status()?.find("default", "kept")?.state == "installed").then_some(())
    });
    assert_eq!(std::fs::read(pair.high.inbox.join("default/00000001/kept")).unwrap(), b"kept");
    pair.stop_receiver();
    pair.stop_sender();
}
