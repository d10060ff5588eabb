//! Which key counts for what, and what beacons say of a sender.

use super::*;

#[test]
fn keys_that_are_trusted_later_or_no_more_count_at_once() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let (done, waits, half, unknown) =
        (Sample::file(1, 1, 900), Sample::file(2, 2, 900), Sample::file(3, 3, 900), Sample::file(4, 4, 900));
    send(&delivery, &done);
    let run = delivery.due_hooks(0);
    delivery.hook_ended(&run[0], &Outcome::Done, 0);
    send(&delivery, &waits);
    announce(&delivery, &half).unwrap();
    data(&delivery, &half, 0..1).unwrap();
    work(&delivery);
    let judged = delivery.set_trust(Trust::default(), 5).unwrap();
    assert_eq!((judged.trusted, judged.refused.as_slice()), (0, &["default/2".to_owned(), "default/3".to_owned()][..]));
    assert_eq!(state(&delivery, &done), Some(State::Installed), "what is installed stays");
    assert!(!bench.inbox(2).exists() && delivery.due_hooks(0).is_empty());
    assert_eq!(bench.reason(&waits)["rule"], "unknown-key");
    // What comes now changes nothing, but is an alarm.
    assert!(matches!(announce(&delivery, &unknown), Err(StoreError::Refused)));
    assert_eq!(state(&delivery, &unknown), None);
    assert!(delivery.noted(0).iter().any(|alarm| alarm.code == alarms::Code::UnknownKey));

    let mut judged = delivery.set_trust(Trust::new(trust()), 6).unwrap();
    judged.admitted.sort();
    assert_eq!(judged.admitted, ["default/2", "default/3", "default/4"]);
    assert!(delivery.noted(0).is_empty());
    work(&delivery);
    waits.assert_at(&bench.inbox(2));
    assert_eq!(state(&delivery, &unknown), Some(State::Receiving), "its announce is known");
    for sample in [&half, &unknown] {
        send(&delivery, sample);
        sample.assert_at(&bench.inbox(sample.announce.sequence));
    }
    assert_eq!(install_next(&delivery, 3), [2, 3, 4]);
}

#[test]
fn a_key_that_may_not_sign_for_a_channel_does_nothing_there() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let neighbour = SigningKey::from_seed([5; 32]);
    let mut allowed = Trust::new(trust());
    allowed.keys.insert(neighbour.public(), "neighbour");
    let mut only = allowed.clone();
    only.signers.insert(default_channel(), [key().public().id()].into());
    delivery.set_trust(only, 5).unwrap();
    let mut sample = Sample::file(1, 1, 100);
    sample.announce.bundle = BundleId::new(1, neighbour.public().id());
    let announce = sample.announce.sign(&neighbour).unwrap();
    assert!(matches!(manifest(&delivery, sample.id(), ObjectKind::Announce, &announce), Err(StoreError::Refused)));
    assert_eq!(state(&delivery, &sample), None);
    // Nor do its beacons.
    let mut says = beacon(9_000, vec![], None);
    says.channel.as_mut().unwrap().recent =
        vec![Recent { bundle: sample.id(), ..recent(1, 1, RecentState::Transmitted) }];
    assert!(hear_of(&delivery, 5, &says, &neighbour), "that it lives is its own to say");
    assert_eq!(delivery.ledger.lock().channel(&default_channel()).unwrap().newest(), 0);
    // Until it may.
    let judged = delivery.set_trust(allowed, 6).unwrap();
    assert_eq!(judged.admitted, ["default/1"]);
}

#[test]
fn beacons_that_are_not_news_do_nothing_but_alarm() {
    let bench = Bench::new();
    let delivery = bench.open();
    delivery.tick(1_000);
    let codes = |delivery: &Delivery| delivery.noted(1_000).iter().map(|alarm| alarm.code).collect::<Vec<_>>();
    let first = beacon(3, vec![], None);
    assert!(hear_of(&delivery, 1_000, &first, &key()));
    assert!(!hear_of(&delivery, 1_000, &first, &key()), "it was recorded");
    let unsigned = signed::seal_unsigned(b"anything");
    assert!(delivery.beacon(1_000, SessionId(1), &unsigned).is_none());
    let stranger = SigningKey::from_seed([9; 32]);
    assert!(!hear_of(&delivery, 1_000, &Beacon { channel: None, ..beacon(0, vec![], None) }, &stranger));
    assert_eq!(codes(&delivery), [alarms::Code::UnknownKey], "somebody names it");
    delivery.alarms.clear(alarms::Code::UnknownKey, &stranger.public().id().to_string());
    // Another state under the same number.
    let epoch = Epoch { number: 1, id: EpochId(99) };
    assert!(!hear_of(&delivery, 1_000, &Beacon { epoch, ..beacon(1, vec![], None) }, &key()));
    assert_eq!(codes(&delivery), [alarms::Code::AnotherState]);
    let text = delivery.noted(1_000)[0].text.clone();
    assert!(text.contains("checkvalve-sender adopt --epoch 2 --sequences default=3"), "{text}");
    // A session goes on although another began; after a restart, too.
    let second = Beacon { session_number: 2, session: SessionId(2), ..beacon(3, vec![], None) };
    assert!(hear_of(&delivery, 1_000, &second, &key()));
    delivery.tick_last(1_000);
    drop(delivery);
    let delivery = bench.open();
    for _ in 0..3 {
        assert!(!hear_of(&delivery, 1_000, &beacon(3, vec![], None), &key()));
    }
    assert_eq!(codes(&delivery), [alarms::Code::TwoSenders]);
    // The operator's mend: a new epoch.
    let adopted = Epoch { number: 2, id: EpochId(100) };
    let mended = Beacon { epoch: adopted, session: SessionId(3), ..beacon(3, vec![], None) };
    assert!(hear_of(&delivery, 1_000, &mended, &key()));
    assert!(codes(&delivery).is_empty());
    // An older copy of the state.
    let behind = Beacon { epoch: adopted, session: SessionId(3), ..beacon(2, vec![], None) };
    assert!(hear_of(&delivery, 1_000, &behind, &key()));
    assert_eq!(codes(&delivery), [alarms::Code::OlderState]);
}

#[test]
fn a_key_that_is_refused_is_an_alarm_as_long_as_it_is() {
    const MINUTE: u64 = 60_000;
    let bench = Bench::new();
    let delivery = bench.open();
    let neighbour = SigningKey::from_seed([5; 32]);
    let mut trusted = Trust::new(trust());
    trusted.keys.insert(neighbour.public(), "x) \"is (trusted");
    trusted.signers.insert(default_channel(), [key().public().id()].into());
    delivery.set_trust(trusted.clone(), 0).unwrap();
    let texts = |minute: u64| -> Vec<String> {
        let unknown = |alarm: &Alarm| alarm.code == alarms::Code::UnknownKey;
        delivery.noted(minute * MINUTE).into_iter().filter(unknown).map(|alarm| alarm.text).collect()
    };
    let mut sample = Sample::file(1, 1, 100);
    let stranger = SigningKey::from_seed([9; 32]);
    let at = |minute: u64| delivery.tick(minute * MINUTE);
    // By its beacons alone.
    at(1);
    hear_of(&delivery, MINUTE, &Beacon { channel: None, ..beacon(0, vec![], None) }, &stranger);
    assert!(hear_of(&delivery, MINUTE, &beacon(1, vec![], None), &neighbour));
    let told = texts(1);
    assert!(told.len() == 2 && told.iter().any(|text| text.contains("trust add FILE.pub")), "{told:?}");
    assert!(told.iter().any(|text| text.contains(r#"("x) \"is (trusted") speaks of channel default"#)), "{told:?}");
    assert_eq!(delivery.status(MINUTE).discarded[NOT_ITS], 1);
    // By its announce, which says more and comes again and again; then by its beacons alone.
    sample.announce.bundle = BundleId::new(1, neighbour.public().id());
    let announce = sample.announce.sign(&neighbour).unwrap();
    for minute in [2, 6] {
        at(minute);
        assert!(manifest(&delivery, sample.id(), ObjectKind::Announce, &announce).is_err());
        assert!(texts(minute + 4).iter().any(|text| text.contains("default/1 (\"one file\")")), "{:?}", texts(6));
    }
    at(10);
    assert!(hear_of(&delivery, 10 * MINUTE, &beacon(1, vec![], None), &neighbour));
    assert!(texts(14)[0].contains("default/1 (\"one file\")") && texts(16).is_empty());
    // Another key counts: that changes nothing for this one, until it counts, too.
    at(11);
    delivery.set_trust(trusted.clone(), 11 * MINUTE).unwrap();
    assert_eq!(texts(11).len(), 1);
    trusted.signers.clear();
    delivery.set_trust(trusted, 11 * MINUTE).unwrap();
    assert!(texts(11).is_empty());
}

#[test]
fn beacons_that_know_less_are_an_alarm_only_if_they_were_made_later() {
    let bench = Bench::new();
    let delivery = bench.open();
    let is_alarm =
        |delivery: &Delivery| delivery.noted(1_000).iter().any(|alarm| alarm.code == alarms::Code::OlderState);
    let recorded: Vec<Beacon> = (0..3).map(|_| beacon(4, vec![], None)).collect();
    let names = beacon(5, vec![], None);
    // They are judged late: the announce came before them.
    announce(&delivery, &Sample::file(5, 5, 100)).unwrap();
    assert!(hear_of(&delivery, 1_000, &recorded[0], &key()) && !is_alarm(&delivery));
    delivery.tick(2_000);
    assert!(hear_of(&delivery, 2_000, &names, &key()));
    delivery.tick(4_000);
    // After a kill the counters of the last minute are not known any more.
    drop(delivery);
    let delivery = bench.open();
    assert!(hear_of(&delivery, 5_000, &recorded[1], &key()), "it counts as news");
    assert!(!is_alarm(&delivery), "{:?}", delivery.noted(5_000));
    // Nor with another key that the same sender had before.
    let old = SigningKey::from_seed([5; 32]);
    let mut both = Trust::new(trust());
    both.keys.insert(old.public(), "old");
    delivery.set_trust(both, 5_000).unwrap();
    assert!(hear_of(&delivery, 5_000, &recorded[2], &old) && !is_alarm(&delivery));
    let second = Beacon { clock_ms: 1, ..beacon(4, vec![], None) };
    assert!(hear_of(&delivery, 5_000, &second, &old) && is_alarm(&delivery), "two senders use one channel");
    delivery.alarms.clear(alarms::Code::OlderState, "default");
    // An older copy goes on, with whatever clock.
    let restored = Beacon { session_number: 2, session: SessionId(2), counter: 1, ..beacon(4, vec![], None) };
    assert!(hear_of(&delivery, 5_000, &restored, &key()) && is_alarm(&delivery));
    // What is not readable is as good as nothing.
    drop(delivery);
    std::fs::write(bench.settings.state.join("named.json"), b"{").unwrap();
    let delivery = bench.open();
    assert!(hear_of(&delivery, 5_000, &Beacon { counter: 2, ..restored }, &key()) && !is_alarm(&delivery));
}

#[test]
fn what_beacons_tell_of_unknown_channels_keeps_nobody_out() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    for n in 0..100 {
        let name = ChannelName::new(format!("junk-{n}")).unwrap();
        let mut says = beacon(1, vec![], None);
        says.channel = Some(ChannelState { name, priority: 0, newest: 1, recent: vec![] });
        hear_of(&delivery, 1_000, &says, &key());
    }
    drop(delivery);
    let delivery = bench.open();
    send(&delivery, &samples()[0]);
    samples()[0].assert_at(&bench.inbox(1));
    // Of channels that are not in the config, some.
    let mut held = 0;
    for n in 0..70_u64 {
        let mut sample = Sample::file(100 + n, 1, 10);
        sample.announce.channel = ChannelName::new(format!("new-{n}")).unwrap();
        send(&delivery, &sample);
        held += u32::from(state(&delivery, &sample) == Some(State::Held));
    }
    assert_eq!(held, 54);
}

#[test]
fn what_is_to_be_adopted_can_be() {
    let bench = Bench::new();
    let delivery = bench.open();
    let other = ChannelName::new("other").unwrap();
    let mut only = Trust::new(trust());
    only.signers.insert(other.clone(), [].into());
    let says = |name: &ChannelName| ChannelState { name: name.clone(), priority: 0, newest: 3, recent: vec![] };
    let mut of_other = beacon(3, vec![], None);
    of_other.channel = Some(says(&other));
    for sequence in [1, 2] {
        let mut sample = Sample::file(sequence, 1, 10);
        sample.announce.channel = [default_channel(), other.clone()][sequence as usize - 1].clone();
        send(&delivery, &sample);
    }
    assert!(
        hear_of(&delivery, 1_000, &of_other, &key()) && hear_of(&delivery, 1_000, &beacon(3, vec![], None), &key())
    );
    let adopt = || delivery.hearing.words.adopt_command(Some(key().public().id()));
    assert!(adopt().contains("--epoch 2 --sequences default=3,other=3"), "{}", adopt());
    delivery.set_trust(only, 1_000).unwrap();
    assert!(adopt().ends_with("--epoch 2 --sequences default=3`"), "{}", adopt());
    let last = Epoch { number: (1 << 53) - 1, id: EpochId(5) };
    assert!(hear_of(&delivery, 1_000, &Beacon { epoch: last, ..beacon(3, vec![], None) }, &key()));
    assert!(adopt().contains("keygen signing") && !adopt().contains("adopt"), "{}", adopt());
}

#[test]
fn keys_that_are_not_read_again_are_an_alarm_until_they_are() {
    let bench = Bench::new();
    let delivery = bench.open();
    delivery.trust_is_read(Some("`x.pub`: others may write it; `chmod go-w x.pub`"));
    let told = delivery.noted(u64::MAX / 2);
    assert!(told[0].code == alarms::Code::TrustNotRead && told[0].text.contains("chmod go-w"), "{told:?}");
    delivery.trust_is_read(None);
    assert!(delivery.noted(0).is_empty());
}

#[test]
fn a_retry_says_what_it_did_however_soon_the_hook_runs() {
    let bench = Bench::new().with_hook(None);
    let delivery = Arc::new(bench.open());
    send(&delivery, &samples()[0]);
    let run = delivery.due_hooks(0);
    delivery.hook_ended(&run[0], &Outcome::Quarantine(65), 0);
    let at_once = Arc::downgrade(&delivery);
    delivery.set_waker(Box::new(move || {
        if let Some(delivery) = at_once.upgrade() {
            delivery.due_hooks(0);
        }
    }));
    let said = delivery.retry(&"default/1".parse().unwrap()).unwrap();
    assert_eq!(state(&delivery, &samples()[0]), Some(State::Installing));
    assert_eq!(said, "default/1 is in the inbox again, and its hook runs in its turn");
}

/// With a sync for each step of each bundle, a thousand take half a minute.
#[test]
fn many_bundles_of_a_key_that_is_trusted_no_more_are_refused_at_once() {
    let bench = Bench::new();
    let delivery = bench.open();
    let samples: Vec<Sample> = (1..=300).map(|n| Sample::file(n, n, 900)).collect();
    for sample in &samples {
        announce(&delivery, sample).unwrap();
        data(&delivery, sample, 0..1).unwrap();
    }
    work(&delivery);
    bench.disk.heal();
    let judged = delivery.set_trust(Trust::default(), 5).unwrap();
    assert_eq!(judged.refused.len(), 300);
    let syncs = bench.disk.operations().iter().filter(|operation| operation.starts_with("sync")).count();
    assert!((3..30).contains(&syncs), "{syncs} syncs");
    assert!(samples.iter().all(|sample| bench.reason(sample)["rule"] == "unknown-key"));
    let told = bench.audit().iter().filter(|line| line["event"] == "quarantined").count();
    assert_eq!(told, 300);
    work(&delivery);
    assert!(delivery.store.all().is_empty());
    bench.disk.heal();
    let judged = delivery.set_trust(Trust::new(trust()), 6).unwrap();
    assert_eq!(judged.admitted.len(), 300);
    let syncs = bench.disk.operations().iter().filter(|operation| **operation == "sync_data").count();
    assert!(syncs < 10, "{syncs} syncs of the trail and the ledger");
}
