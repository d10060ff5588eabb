//! What is missing or incomplete, and what is said of that.

use super::*;

#[test]
fn what_was_sent_and_never_arrived_is_missing_by_name() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let bundles: Vec<Sample> = (1..=4).map(|n| Sample::file(n, n, 100)).collect();
    send(&delivery, &bundles[0]);
    let first = delivery.due_hooks(0);
    delivery.hook_ended(&first[0], &Outcome::Done, 0);
    let sent = vec![recent(4, 4, RecentState::Queued), recent(3, 3, RecentState::Transmitted)];
    hear(&delivery, 2_000, 4, sent, None);
    delivery.tick(2_000);
    delivery.tick(6_900);
    let rows = |delivery: &Delivery| -> Vec<(u64, String, &'static str)> {
        let status = delivery.status(6_900);
        status.bundles.into_iter().map(|b| (b.sequence, b.id, b.state.as_str())).collect()
    };
    let id = |id| own(id).to_string();
    let expected = [(3, id(3), "missing"), (2, String::new(), "missing"), (1, id(1), "installed")];
    assert_eq!(rows(&delivery), expected, "of 2 not even the id is known; 4 was not sent yet");
    send(&delivery, &bundles[3]);
    assert!(delivery.due_hooks(0).is_empty());
    let status = delivery.status(0);
    assert_eq!(status.bundles[0].waiting_for, Some(2));
    assert_eq!(status.channels[0].blocked_by, Some(2));
    delivery.reject(&"default/2".parse().unwrap()).unwrap();
    send(&delivery, &bundles[2]);
    assert_eq!(install_next(&delivery, 2), [3, 4]);
    send(&delivery, &bundles[1]);
    assert!(!bench.inbox(2).exists(), "given up");
}

#[test]
fn incomplete_says_what_is_lacking_and_a_second_pass_mends_it() {
    let bench = Bench::new();
    let delivery = bench.open();
    let sample = &samples()[0];
    delivery.tick(1_000);
    announce(&delivery, sample).unwrap();
    data(&delivery, sample, 0..4).unwrap();
    delivery.tick(2_000);
    assert_eq!(state(&delivery, sample), Some(State::Receiving));
    hear(&delivery, 2_500, 1, vec![recent(1, 1, RecentState::Transmitted)], None);
    delivery.tick(3_000);
    assert_eq!(state(&delivery, sample), Some(State::Incomplete));
    assert_eq!(reason(&delivery, sample), "lacks 2952 of 5000 bytes, its hashes");
    delivery.tick(40_000);
    data(&delivery, sample, 4..6).unwrap();
    hear(&delivery, 40_000, 1, vec![], Some((1, 1)));
    delivery.tick(40_500);
    assert_eq!(state(&delivery, sample), Some(State::Receiving), "while it is on the wire again");
    send(&delivery, sample);
    sample.assert_at(&bench.inbox(1));
}

#[test]
fn silence_makes_incomplete_without_any_beacon() {
    let bench = Bench::new();
    let delivery = bench.open();
    let sample = &samples()[0];
    delivery.tick(1_000);
    announce(&delivery, sample).unwrap();
    data(&delivery, sample, 0..4).unwrap();
    delivery.tick(9_000);
    assert_eq!(state(&delivery, sample), Some(State::Receiving));
    delivery.tick(12_000);
    assert_eq!(state(&delivery, sample), Some(State::Incomplete));
    assert!(reason(&delivery, sample).contains("its hashes"), "{}", reason(&delivery, sample));
}

#[test]
fn data_that_nobody_signed_for_is_no_bundle_and_goes() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let sample = &samples()[0];
    delivery.tick(1_000);
    data(&delivery, sample, 0..4).unwrap();
    delivery.tick(9_000);
    assert!(state(&delivery, sample).is_none() && delivery.status(9_000).bundles.is_empty());
    // A beacon names it: it lacks its announce.
    hear(&delivery, 9_400, 1, vec![], Some((1, 1)));
    hear(&delivery, 9_500, 1, vec![recent(1, 1, RecentState::Transmitted)], None);
    delivery.tick(60_000);
    assert_eq!(state(&delivery, sample), Some(State::Incomplete));
    assert!(reason(&delivery, sample).contains("its announce"), "{}", reason(&delivery, sample));
    send(&delivery, sample);
    sample.assert_at(&bench.inbox(1));
    // Nobody ever speaks of this one.
    let stray = Sample::file(9, 9, 5_000);
    data(&delivery, &stray, 0..4).unwrap();
    assert_eq!(delivery.store.all().len(), 1);
    delivery.tick(90_000);
    drop(delivery);
    let delivery = bench.open();
    assert_eq!(delivery.store.all().len(), 1, "it may still be announced");
    delivery.tick(1_000 + 41_000);
    assert!(delivery.store.all().is_empty());
}

#[test]
fn tickets_and_status_count_ranges_not_blocks() {
    let bench = Bench::new();
    let delivery = bench.open();
    delivery.tick(1_000);
    let mut sample = Sample::file(1, 1, 0);
    let kind = checkvalve_protocol::manifest::EntryKind::File { size: 64 * u64::from(u32::MAX), mode: 0o600 };
    sample.announce.entries = vec![crate::testing::entry("one file", kind)].into();
    sample.announce.block_symbols = 1;
    announce(&delivery, &sample).unwrap();
    let oti = Oti::new(64 * u64::from(u32::MAX), 64, 1).unwrap();
    let stored = [0, 5, 1 << 31, u32::MAX - 1];
    for sbn in stored {
        delivery.block(sample.id(), ObjectKind::Data, &oti, sbn, &[1; 64]).unwrap();
    }
    delivery.tick(100_000);
    assert_eq!(state(&delivery, &sample), Some(State::Incomplete));
    for _ in 0..50 {
        let tickets = delivery.tickets(&[], &|_| Loss::of(1, 100), 40, &|_| vec![(7, 1), (u32::MAX, 9)]).unwrap();
        assert_eq!(tickets[0].symbols_lacking, Some(u64::from(u32::MAX) - stored.len() as u64));
        let mut status = delivery.status(100_000);
        delivery.count_lacking(&mut status, &|_| Vec::new());
        let lacking = status.bundles[0].lacking.as_ref().unwrap();
        assert_eq!(lacking.blocks, u32::MAX - stored.len() as u32);
    }
    // A datagram that is not signed cannot say how a bundle is cut.
    let junk = Oti::new(64 * u64::from(u32::MAX), 128, 1).unwrap();
    assert_eq!(delivery.want(sample.id(), ObjectKind::Data, &junk), Want::Refuse(RefuseReason::Length));
}
