//! How near the repair came to its end.

use super::*;

/// Receives all of a transmission, but for the datagrams that are `lost`. Of its data the blocks in `refused` are, and what comes while so
/// many are complete. Gives the margin once all has settled.
fn margin_after(refused: std::ops::Range<u32>, lost: impl Fn(usize) -> bool) -> Option<i32> {
    let parameters = parameters(0.1, 10);
    let bytes = data(4 << 20);
    let mut high = Reassembly::new(Limits { ask_again: Duration::ZERO, ..limits(64 << 20) });
    let (mut opener, plans) = (Opener::new(Some(KEY)), Plans::new());
    let (mut blocks, mut last) = (0, Time::ZERO);
    for (number, (now, datagram)) in transmit(&parameters, 1, &bytes, 0).into_iter().enumerate() {
        last = now;
        if lost(number) {
            continue;
        }
        let is_full = refused.contains(&blocks) && (blocks > 0 || number < 400);
        let want = |symbol: &Symbol| match symbol.kind {
            ObjectKind::Data if is_full => Wanted::No(DropReason::Room),
            _ => Wanted::Yes { have: BlockSet::new(), parked: Vec::new(), origin: Origin::Signed },
        };
        let mut datagram = datagram.clone();
        high.take(now, &mut opener, &mut datagram).unwrap();
        high.answer_all(now, want);
        while let Some(mut block) = high.poll_complete() {
            if block.decode(&plans).is_err() {
                high.undecodable(now, block);
                continue;
            }
            let is_data = block.kind() == ObjectKind::Data;
            if is_data && refused.contains(&(blocks + 1)) {
                high.failed(now, block);
            } else {
                high.stored(block);
            }
            blocks += u32::from(is_data);
        }
    }
    assert!(blocks > 0);
    // The last blocks settle, and those that lack something are parked.
    for step in 1..=20 {
        high.handle_timeout(last + Duration::from_secs(step));
        while let Some(block) = high.poll_parked() {
            high.parked(last, block, 1);
        }
    }
    high.tally().iter().find_map(|tally| tally.margin)
}

#[test]
fn all_of_the_repair_is_to_spare_without_loss() {
    assert_eq!(margin_after(0..0, |_| false), Some(1_000));
}

#[test]
fn loss_takes_from_the_margin() {
    let margin = margin_after(0..0, |number| number % 20 == 7).unwrap();
    assert!((100..900).contains(&margin), "{margin}");
    assert!(margin_after(0..0, |number| number % 4 == 1).unwrap() < 0);
}

#[test]
fn what_finds_no_room_is_not_the_links_loss() {
    for first in [1, 2, 6] {
        assert_eq!(margin_after(first..u32::MAX, |_| false), None, "refused from block {first} on");
    }
}

#[test]
fn what_found_no_room_at_first_is_not_the_links_loss() {
    assert_eq!(margin_after(0..1, |_| false), None);
}
