//! A disk that stands still for seconds: an ext4 that is frozen, so that whoever writes to it waits in the kernel.

use std::time::{Duration, Instant};

use checkvalve_tests::mount::Mount;
use checkvalve_tests::pair::Pair;
use checkvalve_tests::{require_images, tree};

/// How long the disk stands still.
const STILL: Duration = Duration::from_secs(6);

#[test]
fn a_high_disk_that_stands_still_for_seconds_never_stalls_the_socket() {
    require_images!();
    let mut pair = Pair::setup().rate("40 Mbit/s").lay();
    let disk = Mount::image(&pair.high.data.clone(), &pair.dir.path().join("image"), 256);
    pair.make_high();
    pair.start_receiver();
    pair.start_sender();
    tree::large(&pair.place("image"), 50 << 20, 9);
    let image = pair.drop("image");
    pair.wait_for("some of it to arrive", || {
        let found = pair.receiver_status()?.find("default", "image")?;
        (found.all["received"].as_u64()? > 2 << 20).then_some(())
    });
    let datagrams = |pair: &Pair| pair.receiver_status().unwrap().0["link"]["datagrams"].as_u64().unwrap();
    let before = datagrams(&pair);
    let frozen = disk.freeze();
    std::thread::scope(|scope| {
        // In a thread of its own: it would wait for ever where it waits for the disk.
        let asked = scope.spawn(|| {
            std::thread::sleep(STILL / 2);
            let begun = Instant::now();
            pair.receiver_status().expect("it answers").0["link"]["memory"]
                .as_u64()
                .map(|memory| (memory, begun.elapsed()))
        });
        std::thread::sleep(STILL);
        drop(frozen);
        let (memory, took) = asked.join().expect("no panic").expect("a number");
        assert!(took < STILL / 3, "status waited {took:?} for the disk");
        assert!(memory > 4 << 20, "{memory} bytes wait in memory");
    });
    let after = datagrams(&pair);
    // About 3,300 a second.
    assert!(after - before > 12_000, "{} datagrams in {STILL:?}", after - before);
    let installed = pair.wait_installed(&image);
    pair.assert_identical(&image);
    let link = pair.receiver_status().unwrap().0["link"].clone();
    assert_eq!(link["minute"]["lost_kernel"], 0, "{link}");
    assert_eq!(link["blocks_lost"], 0, "{link}");
    assert!(installed.all["ticket"].is_null());
    eprintln!("{} datagrams in {STILL:?} of a frozen disk, none lost in the kernel", after - before);
    pair.stop_receiver();
}

#[test]
fn a_low_disk_that_stands_still_for_seconds_holds_up_and_loses_nothing() {
    require_images!();
    let mut pair = Pair::setup().rate("40 Mbit/s").lay();
    let at = pair.dir.path().join("low-disk");
    let disk = Mount::image(&at, &pair.dir.path().join("image"), 256);
    pair.move_low(&at);
    pair.start_receiver();
    pair.start_sender();
    tree::large(&pair.place("image"), 10 << 20, 10);
    let next = pair.place("next");
    tree::file(&next, b"next", 0o644);
    let image = pair.drop("image");
    let next = pair.drop("next");
    pair.wait_state(&image, &["receiving"]);
    let (frozen, begun) = (disk.freeze(), Instant::now());
    // What is being sent is only read, and arrives while nothing can be written on the low side.
    pair.wait_installed(&image);
    assert!(begun.elapsed() < Duration::from_secs(60));
    std::thread::sleep(STILL.saturating_sub(begun.elapsed()));
    drop(frozen);
    for bundle in [&image, &next] {
        pair.wait_sender_state(bundle, &["transmitted"]);
        pair.wait_installed(bundle);
        pair.assert_identical(bundle);
    }
    pair.stop_sender();
}
