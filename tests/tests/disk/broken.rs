//! Errors of a real device: an ext4 in an image whose own disk is full (writing fails when the kernel writes back, so that
//! nobody but a sync is told), or whose image was cut off (reading fails).

use checkvalve_tests::mount::Mount;
use checkvalve_tests::pair::Pair;
use checkvalve_tests::shell::sh;
use checkvalve_tests::{require_images, tree};

use super::{carry_tickets, reason};

#[test]
fn a_device_that_takes_no_writes_is_told_by_the_sync_and_nothing_is_published() {
    require_images!();
    let mut pair = Pair::setup().rate("200 Mbit/s").lay();
    let below = Mount::tmpfs(&pair.dir.path().join("below"), "96m");
    let disk = Mount::image(&pair.high.data.clone(), &pair.dir.path().join("below/image"), 200);
    pair.make_high();
    pair.start_receiver();
    pair.start_sender();
    let first = pair.drop_file("first", b"before");
    pair.wait_installed(&first);
    sh(&format!("sync --file-system {}", pair.high.data.display()));
    let free = checkvalve_tests::bench::disk::free(&pair.dir.path().join("below"));
    let ballast = pair.dir.path().join("below/ballast");
    tree::large(&ballast, free.saturating_sub(8 << 20), 11);

    tree::large(&pair.place("image"), 30 << 20, 12);
    let image = pair.drop("image");
    pair.wait_state(&image, &["incomplete"]);
    let said = reason(&pair, &image);
    assert!(said.contains("sync failed") || said.contains("Input/output error"), "{said}");
    assert!(!pair.landed(&image, 2).exists());
    eprintln!("while the device took no writes: {said}");

    std::fs::remove_file(ballast).unwrap();
    for _ in 0..5 {
        pair.wait_sender_state(&image, &["transmitted"]);
        let now = pair.wait_state(&image, &["incomplete", "missing", "installed"]);
        if now.state == "installed" {
            break;
        }
        if now.all["ticket"].is_string() {
            carry_tickets(&pair);
        }
        std::thread::sleep(std::time::Duration::from_secs(6));
    }
    pair.wait_installed(&image);
    pair.assert_identical(&image);
    pair.assert_identical(&first);
    pair.stop_receiver();
    drop((disk, below));
}

#[test]
fn a_device_that_gives_no_reads_fails_the_bundle_by_name_and_keeps_it() {
    require_images!();
    let mut pair = Pair::setup().rate("200 Mbit/s").lay();
    let (at, image) = (pair.dir.path().join("low-disk"), pair.dir.path().join("image"));
    let disk = Mount::image(&at, &image, 64);
    pair.move_low(&at);
    std::fs::create_dir(pair.low.spool.join("default")).unwrap();
    // Most of the file is in the part of the device that will not be there.
    tree::large(&pair.place("image"), 40 << 20, 13);
    let broken = pair.drop("image");
    // Mounted anew, nothing of it is in memory.
    disk.unmount();
    disk.mount();
    std::fs::File::options().write(true).open(&image).unwrap().set_len(30 << 20).unwrap();
    pair.start_receiver();
    pair.start_sender();
    let failed = pair.wait_sender_state(&broken, &["failed"]);
    assert!(failed.all["reason"].as_str().unwrap().contains("Input/output error"), "{}", failed.all);
    let withdrawn = pair.wait_state(&broken, &["withdrawn"]);
    assert!(reason(&pair, &broken).contains("Input/output error"), "{}", withdrawn.all);
    let kept = pair.low.spool.join("default/.failed/image");
    assert_eq!(std::fs::metadata(&kept).unwrap().len(), 40 << 20, "what was dropped is there");
    assert!(kept.with_extension("reason").exists());
    // The channel goes on, also for the hook.
    let next = pair.drop_file("next", b"next");
    pair.wait_installed(&next);
    pair.assert_identical(&next);
    pair.stop_sender();
    drop(disk);
}
