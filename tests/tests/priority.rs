//! Channels: urgent bundles go first, and channels of equal priority share the wire.

use checkvalve_tests::pair::Pair;
use checkvalve_tests::{require_link, tree};

const MIB: u64 = 1 << 20;

#[test]
fn what_is_urgent_overtakes_a_large_bundle_that_goes_on_after_it() {
    require_link!();
    let pair = Pair::setup().rate("100 Mbit/s").on_tmpfs().sender("channel.urgent.priority", 10).start();
    tree::large(&pair.place("image"), 80 * MIB, 1);
    let image = pair.drop("image");
    pair.wait_state(&image, &["receiving"]);
    for number in 0..3 {
        tree::file(&pair.place("licence"), format!("licence {number}").as_bytes(), 0o644);
        let begun = std::time::Instant::now();
        let licence = pair.drop_into("urgent", "licence");
        let landed = pair.high.inbox.join("urgent").join(format!("{:08}", number + 1)).join("licence");
        pair.wait_for("the licence", || landed.exists().then_some(()));
        println!("{} in {:?}", licence.name, begun.elapsed());
        assert_eq!(pair.receiver_status().unwrap().find("default", "image").unwrap().state, "receiving");
        assert_eq!(pair.sender_status().unwrap().find("default", "image").unwrap().state, "transmitting");
    }
    pair.wait_installed(&image);
    pair.assert_identical(&image);
}

#[test]
fn channels_of_equal_priority_share_the_wire() {
    require_link!();
    let pair = Pair::setup().rate("100 Mbit/s").on_tmpfs().sender("channel.second.priority", 0).start();
    tree::large(&pair.place("image"), 60 * MIB, 1);
    let image = pair.drop("image");
    pair.wait_state(&image, &["receiving"]);
    tree::large(&pair.place("half"), 20 * MIB, 2);
    let half = pair.drop_into("second", "half");
    // If it had to wait for the image, it would arrive last.
    pair.wait_state(&half, &["complete", "installed"]);
    assert_eq!(pair.receiver_status().unwrap().find("default", "image").unwrap().state, "receiving");
    pair.wait_installed(&image);
    pair.assert_identical(&image);
    pair.assert_identical(&half);
}
