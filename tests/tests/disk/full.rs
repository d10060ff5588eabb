//! A full disk on the high side: said so, survived, and mended by a resend.

use checkvalve_tests::mount::Mount;
use checkvalve_tests::pair::Pair;
use checkvalve_tests::{require_link, tree};

#[test]
fn a_full_disk_is_said_survived_and_mended() {
    require_link!();
    let mut pair = Pair::setup().rate("200 Mbit/s").lay();
    let disk = Mount::tmpfs(&pair.high.data, "64m");
    pair.make_high();
    tree::large(&pair.high.data.join("ballast"), 40 << 20, 1);
    pair.start_receiver();
    pair.start_sender();

    // Less than a channel may take of an empty disk, which is four fifths, and more than there is now.
    tree::large(&pair.place("image"), 30 << 20, 2);
    let image = pair.drop("image");
    pair.wait_sender_state(&image, &["transmitted"]);
    let lacking = pair.wait_state(&image, &["incomplete"]);
    let said = format!("{:#}", lacking.all);
    assert!(said.contains("room") || said.contains("space") || said.contains("full"), "the reason is not said: {said}");
    assert!(!pair.landed(&image, lacking.sequence).exists());

    // The daemon lives on: a small bundle arrives, and waits for its turn.
    let small = pair.drop_file("small", b"small");
    let waits = pair.wait_state(&small, &["complete"]);
    assert!(
        waits.all.get("waiting_for").is_some_and(|value| !value.is_null()),
        "it says what it waits for: {:#}",
        waits.all
    );

    std::fs::remove_file(pair.high.data.join("ballast")).unwrap();
    // The receiver looks at its disk ten times a second; nobody can type the next command sooner.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let resend = pair.sender_command(&["resend", &lacking.id]);
    assert!(resend.status.success(), "{}", String::from_utf8_lossy(&resend.stderr));
    for bundle in [&image, &small] {
        pair.wait_installed(bundle);
        pair.assert_identical(bundle);
    }
    let order: Vec<u64> = pair.hook_runs().iter().map(|run| run.sequence()).collect();
    assert_eq!(order, [1, 2]);
    pair.stop_receiver();
    drop(disk);
}
