//! What counts of what is signed, and what becomes of content that was not signed so.

use super::*;

#[test]
fn what_is_not_rightly_signed_changes_nothing() {
    let sample = Sample::tree(7, 1, &[600, 30]);
    let mallory = SigningKey::from_seed([9; 32]);
    let unsigned = signed::seal_unsigned(signed::parse(&sample.signed()).unwrap().payload);
    let mut tampered = sample.signed();
    *tampered.last_mut().unwrap() ^= 1;
    let mut hashes = sample.hashes();
    hashes[50] ^= 1;
    let wrong_key = sample.announce.sign(&mallory).unwrap();
    let cases = [
        ("unsigned", Some(unsigned), None),
        ("unknown-key", Some(wrong_key), None),
        ("bad-signature", Some(tampered), None),
        ("bad-signature", None, Some(hashes)),
        ("container", None, Some(b"rubbish".to_vec())),
        ("other-bundle", Some(Sample::tree(8, 1, &[600, 30]).signed()), None),
        ("other-announce", None, Some(Sample::tree(7, 2, &[600, 30]).hashes())),
    ];
    for (rule, bad_announce, bad_hashes) in cases {
        for first in [true, false] {
            let bench = Bench::new().with_hook(None);
            let delivery = bench.open();
            let bring = |kind, bytes: &Option<Vec<u8>>| {
                if let Some(bytes) = bytes {
                    let taken = manifest(&delivery, sample.id(), kind, bytes);
                    assert!(matches!(taken, Err(StoreError::Refused) | Ok(())), "{taken:?}");
                }
            };
            if first {
                bring(ObjectKind::Announce, &bad_announce);
                announce(&delivery, &sample).unwrap();
            } else {
                announce(&delivery, &sample).unwrap();
                bring(ObjectKind::Announce, &bad_announce);
            }
            bring(ObjectKind::Hashes, &bad_hashes);
            work(&delivery);
            assert_ne!(state(&delivery, &sample), Some(State::Quarantined), "{rule}");
            send(&delivery, &sample);
            assert_eq!(state(&delivery, &sample), Some(State::Complete), "{rule}");
            sample.assert_at(&bench.inbox(1));
            assert_eq!(delivery.due_hooks(0).len(), 1, "{rule}");
            let counted = delivery.status(0).discarded.get(rule).copied().unwrap_or(0);
            assert!(counted > 0 || !first, "{rule}: {:?}", delivery.status(0).discarded);
            assert!(!bench.settings.quarantine.join("default").exists());
        }
    }
}

#[test]
fn what_is_signed_wrong_is_quarantined_until_somebody_retries() {
    let sample = Sample::tree(7, 1, &[600, 30]);
    let fewer = sample.hashes_as(HashesOutcome::Complete { files: vec![[0; 32]] });
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    announce(&delivery, &sample).unwrap();
    data(&delivery, &sample, 0..sample.oti().blocks()).unwrap();
    manifest(&delivery, sample.id(), ObjectKind::Hashes, &fewer).unwrap();
    work(&delivery);
    assert_eq!(state(&delivery, &sample), Some(State::Quarantined));
    assert!(!bench.inbox(1).exists() && delivery.due_hooks(0).is_empty());
    assert_eq!(bench.reason(&sample)["rule"], "hash-count");
    assert!(delivery.store.all().is_empty());
    assert_eq!(bench.audit().last().unwrap()["event"], "quarantined");
    // The next one is not held up.
    let next = Sample::file(20, 2, 10);
    send(&delivery, &next);
    assert_eq!(delivery.due_hooks(0).len(), 1);
    // It is not taken again, unless an operator says so.
    send(&delivery, &sample);
    assert_eq!(state(&delivery, &sample), Some(State::Quarantined));
    delivery.retry(&"default/1".parse().unwrap()).unwrap();
    assert_eq!(state(&delivery, &sample), Some(State::Missing));
    send(&delivery, &sample);
    sample.assert_at(&bench.inbox(1));
    assert!(!bench.settings.quarantine.join(format!("default/00000001-{}", sample.id())).exists());
}

#[test]
fn content_that_does_not_match_is_received_again() {
    for spoilt in [0, 1_500, 2_999] {
        let sample = Sample::tree(7, 1, &[1_000, 1_000, 1_000]);
        let mut other = sample.clone();
        other.data[spoilt] ^= 1;
        let bench = Bench::new().with_hook(None);
        let delivery = bench.open();
        announce(&delivery, &sample).unwrap();
        data(&delivery, &other, 0..sample.oti().blocks()).unwrap();
        hashes(&delivery, &sample).unwrap();
        work(&delivery);
        assert!(!bench.inbox(1).exists() && delivery.due_hooks(0).is_empty());
        let entry = delivery.ledger.lock().entry(sample.id()).cloned().unwrap();
        assert!(entry.state().is_open() && entry.spoilt == 1, "{entry:?}");
        assert_eq!(bench.audit().last().unwrap()["event"], "spoilt");
        assert_eq!(delivery.lost(), [(sample.id(), crate::sink::Lost::All)], "the data plane asks again");
        // Only what touches the file that was spoilt has to come again; also after a restart.
        drop(delivery);
        let delivery = bench.open();
        let Want::Yes { have, .. } = delivery.want(sample.id(), ObjectKind::Data, &sample.oti()) else { panic!() };
        assert!(have.len() >= 2, "{have:?}");
        send(&delivery, &sample);
        sample.assert_at(&bench.inbox(1));
        assert_eq!(delivery.due_hooks(0).len(), 1);
    }
}

/// A bundle of which one file was spoilt on the way, and how it came.
fn spoilt(bench: &Bench) -> (Delivery, Sample, Sample) {
    let sample = Sample::tree(7, 1, &[1_000, 1_000, 1_000]);
    let mut other = sample.clone();
    other.data[1_500] ^= 1;
    let delivery = bench.open();
    delivery.tick(1_000);
    announce(&delivery, &sample).unwrap();
    data(&delivery, &other, 0..sample.oti().blocks()).unwrap();
    hashes(&delivery, &sample).unwrap();
    work(&delivery);
    (delivery, sample, other)
}

/// The audit trail is kept for ever, and whoever has the link key may go on.
#[test]
fn spoiling_that_goes_on_makes_the_trail_longer_ever_more_rarely() {
    let bench = Bench::new().with_hook(None);
    let (delivery, sample, other) = spoilt(&bench);
    for _ in 1..9 {
        data(&delivery, &other, 0..sample.oti().blocks()).unwrap();
        work(&delivery);
    }
    assert_eq!(delivery.ledger.lock().entry(sample.id()).unwrap().spoilt, 9);
    let noted = bench.audit().iter().filter(|line| line["event"] == "spoilt").count();
    assert_eq!(noted, 4, "the first, second, fourth and eighth time");
}

#[test]
fn what_comes_after_spoilt_content_is_thrown_away_when_the_link_is_silent() {
    let bench = Bench::new().with_hook(None);
    let (delivery, sample, other) = spoilt(&bench);
    assert_eq!(delivery.lost(), [(sample.id(), crate::sink::Lost::All)]);
    let have = |delivery: &Delivery| match delivery.want(sample.id(), ObjectKind::Data, &sample.oti()) {
        Want::Yes { have, .. } => have.iter().flatten().collect::<Vec<u32>>(),
        other => panic!("{other:?}"),
    };
    let good = have(&delivery);
    let bad: Vec<u32> = (0..sample.oti().blocks()).filter(|sbn| !good.contains(sbn)).collect();
    assert!(bad.len() > 1, "{bad:?}");
    // He sends on.
    delivery.tick(2_000);
    data(&delivery, &other, bad[0]..bad[0] + 1).unwrap();
    work(&delivery);
    assert_eq!(have(&delivery).len(), good.len() + 1, "nobody knows yet what that is");
    delivery.tick(40_000);
    assert_eq!(state(&delivery, &sample), Some(State::Receiving), "no ticket counts what is to be thrown away");
    work(&delivery);
    assert_eq!(have(&delivery), good, "what was proven stays");
    delivery.tick(40_300);
    assert_eq!(state(&delivery, &sample), Some(State::Incomplete));
    assert_eq!(delivery.lost(), [(sample.id(), crate::sink::Lost::All)], "the data plane forgets what it has");
    // What comes then stays, however long the link is silent.
    data(&delivery, &sample, bad[0]..bad[0] + 1).unwrap();
    delivery.tick(90_000);
    work(&delivery);
    assert_eq!(have(&delivery).len(), good.len() + 1);
    assert!(delivery.noted(0).iter().any(|alarm| alarm.code == alarms::Code::Spoilt));
    send(&delivery, &sample);
    sample.assert_at(&bench.inbox(1));
    assert!(delivery.noted(0).iter().all(|alarm| alarm.code != alarms::Code::Spoilt), "it is over");
}

#[test]
fn a_ticket_asks_for_all_that_may_be_spoilt_once() {
    let bench = Bench::new().with_hook(None);
    let (delivery, sample, other) = spoilt(&bench);
    delivery.tick(40_000);
    work(&delivery);
    let lacks = |partial: &[(u32, u32)]| {
        let partial = partial.to_vec();
        let ticket = delivery.tickets(&["default/1".into()], &|_| Loss::UNKNOWN, 40, &move |_| partial.clone());
        ticket.unwrap()[0].symbols_lacking.unwrap()
    };
    // He goes on now and then: the data plane has some symbols of a block.
    let bad: Vec<u32> = (1..=3).collect();
    data(&delivery, &other, bad[0]..bad[0] + 1).unwrap();
    let all = lacks(&[(bad[1], 1)]);
    assert_eq!(all, 24, "three blocks of eight symbols");
    // What the ticket brought counts for the next one.
    data(&delivery, &sample, bad[0]..bad[0] + 1).unwrap();
    assert_eq!(lacks(&[(bad[1], 1)]), all - 8 - 7);
    data(&delivery, &sample, 0..sample.oti().blocks()).unwrap();
    work(&delivery);
    sample.assert_at(&bench.inbox(1));
}

#[test]
fn what_was_spoilt_and_came_again_rightly_stays_whatever_the_disk_says() {
    for (queued, right) in [(false, true), (true, true), (true, false)] {
        let bench = Bench::new().with_hook(None);
        let (delivery, sample, _) = spoilt(&bench);
        if queued {
            delivery.tick(40_000); // it is to be thrown away
        }
        // All of it comes again before a worker gets to that, or some of it.
        let blocks = sample.oti().blocks();
        let expected = u64::from(blocks - u32::from(!right));
        data(&delivery, &sample, (0..blocks).filter(|&sbn| right || sbn != 2)).unwrap();
        delivery.tick(40_100);
        let have = || match delivery.want(sample.id(), ObjectKind::Data, &sample.oti()) {
            Want::Yes { have, .. } => have.len(),
            _ => blocks.into(),
        };
        std::fs::remove_dir_all(&bench.settings.inbox).unwrap();
        work(&delivery);
        assert_eq!(have(), expected);
        delivery.tick(90_000);
        work(&delivery);
        assert_eq!(have() == expected, right, "what is whole and right stays");
        std::fs::create_dir(&bench.settings.inbox).unwrap();
        data(&delivery, &sample, 0..blocks).unwrap();
        delivery.tick(100_000);
        work(&delivery);
        sample.assert_at(&bench.inbox(1));
    }
}
