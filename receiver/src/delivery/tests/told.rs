//! What people are told: each alarm names its bundle and the command that mends it.

use std::collections::{BTreeMap, BTreeSet};

use checkvalve_host::disk::Free;
use checkvalve_host::json::Stamp;

use super::*;
use crate::control::{LinkView, alarms as told};
use crate::sink::ObjectProgress;

/// The text of each alarm of a code.
fn alarmed(delivery: &Delivery, code: alarms::Code) -> Vec<String> {
    let told = told::of(&delivery.status(0), &LinkView::default(), delivery.noted(0));
    told.into_iter().filter(|alarm| alarm.code == code).map(|alarm| alarm.text).collect()
}

/// The hook of this bundle has written something.
fn write_log(bench: &Bench, sample: &Sample, attempt: u32) -> String {
    let name = format!("logs/default/{:08}-{}.install.{attempt}.log", sample.announce.sequence, sample.id());
    let path = bench.settings.state.join(&name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, b"no licence").unwrap();
    name
}

#[track_caller]
fn assert_told(delivery: &Delivery, code: alarms::Code, words: &[&str]) {
    let texts = alarmed(delivery, code);
    assert_eq!(texts.len(), 1, "{texts:?}");
    for word in words {
        assert!(texts[0].contains(word), "{word}: {texts:?}");
    }
}

#[test]
fn a_hook_that_asks_for_ever_is_an_alarm_and_runs_at_once_when_somebody_says_so() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let which: Which = "default/1".parse().unwrap();
    (0..3).for_each(|n| send(&delivery, &samples()[n]));
    let first = delivery.due_hooks(0);
    assert_eq!(delivery.retry(&which), Err(DecideError::Running));
    delivery.hook_ended(&first[0], &Outcome::Again, 0);
    assert!(alarmed(&delivery, alarms::Code::HookAgain).is_empty(), "once may be by design");
    let second = delivery.due_hooks(1_000);
    delivery.hook_ended(&second[0], &Outcome::NotStarted("/hook: No such file".into()), 1_000);
    assert!(!alarmed(&delivery, alarms::Code::HookAgain)[0].contains(".log"), "there is none");
    let log = write_log(&bench, &samples()[0], 2);
    let words =
        ["default/1", "2 attempts", "No such file", "2 later bundles", &log, "retry default/1", "reject default/1"];
    assert_told(&delivery, alarms::Code::HookAgain, &words);
    let status = delivery.status(1_000);
    let waits: Vec<_> = status.bundles.iter().map(|bundle| (bundle.sequence, bundle.waiting_for)).collect();
    assert_eq!(waits, [(3, Some(1)), (2, Some(1)), (1, None)]);
    assert_eq!(status.channels[0].blocked_by, Some(1));
    assert!(delivery.due_hooks(1_001).is_empty(), "it waits");
    delivery.retry(&which).unwrap();
    let third = delivery.due_hooks(1_001);
    assert_told(&delivery, alarms::Code::HookAgain, &["default/1", "2 attempts", "Another one is running"]);
    delivery.hook_ended(&third[0], &Outcome::Interrupted, 1_001);
    assert!(alarmed(&delivery, alarms::Code::HookAgain).is_empty(), "that says nothing of the hook");
    let third = delivery.due_hooks(1_001);
    assert_eq!((third[0].sequence, third[0].attempt), (1, 4));
    delivery.hook_ended(&third[0], &Outcome::Done, 1_001);
    assert!(alarmed(&delivery, alarms::Code::HookAgain).is_empty());
}

#[test]
fn what_a_hook_refused_is_an_alarm_until_somebody_decides() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let refuse = || {
        let run = delivery.due_hooks(0);
        delivery.hook_ended(&run[0], &Outcome::Quarantine(65), 0);
    };
    send(&delivery, &samples()[0]);
    refuse();
    write_log(&bench, &samples()[0], 1);
    let words = ["default/1", "exit 65", ".install.1.log", "retry default/1", "reject default/1"];
    assert_told(&delivery, alarms::Code::Quarantined, &words);
    delivery.retry(&"default/1".parse().unwrap()).unwrap();
    assert!(alarmed(&delivery, alarms::Code::Quarantined).is_empty());
    refuse();
    delivery.reject(&"default/1".parse().unwrap()).unwrap();
    assert!(alarmed(&delivery, alarms::Code::Quarantined).is_empty());
    // A later one that is installed makes it void.
    send(&delivery, &samples()[1]);
    refuse();
    send(&delivery, &samples()[2]);
    let run = delivery.due_hooks(0);
    assert_eq!(alarmed(&delivery, alarms::Code::Quarantined).len(), 1);
    delivery.hook_ended(&run[0], &Outcome::Done, 0);
    assert!(alarmed(&delivery, alarms::Code::Quarantined).is_empty());
}

#[test]
fn what_keys_lost_is_no_alarm_for_an_operator_who_took_their_trust() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    send(&delivery, &samples()[0]);
    delivery.set_trust(Trust::default(), 0).unwrap();
    assert_eq!(state(&delivery, &samples()[0]), Some(State::Quarantined));
    assert!(alarmed(&delivery, alarms::Code::Quarantined).is_empty());
}

#[test]
fn many_alarms_of_one_kind_are_some_and_a_count() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    for n in 1..=9 {
        send(&delivery, &Sample::file(n, n, 50));
        let run = delivery.due_hooks(0);
        delivery.hook_ended(&run[0], &Outcome::Failed("exit 1".into()), 0);
    }
    let texts = alarmed(&delivery, alarms::Code::Failed);
    assert!(texts.len() == 6 && texts[5].contains("and 4 more"), "{texts:?}");
    assert!(texts[0].starts_with("default/1:") && texts[4].starts_with("default/5:"), "the oldest first: {texts:?}");
}

#[test]
fn what_is_held_needs_no_second_adoption() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    send(&delivery, &Sample::file(1, 1, 100));
    let (far, second) = (Sample::file(2, 90_000, 100), Sample::file(3, 1, 200));
    announce(&delivery, &far).unwrap();
    announce(&delivery, &second).unwrap();
    work(&delivery);
    let text = |sample: &Sample| {
        let status = delivery.status(delivery.clock.now());
        let bundle = status.bundles.into_iter().find(|bundle| bundle.id == sample.id().to_string());
        bundle.and_then(|bundle| bundle.reason).unwrap()
    };
    // Nobody is heard: it is not known whether the sender is mended.
    assert!(text(&far).contains("adopt --epoch") && text(&far).contains("reject default/90000"), "{}", text(&far));
    assert!(text(&second).contains("unless the sender got a new epoch since"), "{}", text(&second));
    // It still says that 90000 is its newest.
    delivery.tick(10_000);
    hear(&delivery, 10_000, 90_000, vec![], None);
    assert!(text(&far).contains("adopt --epoch"), "{}", text(&far));
    // It does not any more, and goes on.
    hear(&delivery, 10_100, 2, vec![], None);
    for sample in [&far, &second] {
        assert!(
            text(sample).contains("`checkvalve-receiver reject ") && !text(sample).contains("--epoch"),
            "{}",
            text(sample)
        );
    }
    assert!(text(&far).contains("far above 2,"), "{}", text(&far));
    assert!(text(&second).contains("if it did not come under another number"), "{}", text(&second));
}

#[test]
fn the_limit_that_keeps_a_bundle_out_is_named() {
    let quota = |delivery: &Delivery, bytes| {
        let share = space::Share { bytes, ..space::Share::ALL };
        delivery.store.space().set_share(&default_channel(), share);
    };
    let bench = Bench::new();
    let delivery = bench.open();
    let sample = Sample::file(1, 1, 500_000);
    delivery.tick(1_000);
    announce(&delivery, &sample).unwrap();
    work(&delivery);
    quota(&delivery, 8_192);
    assert_eq!(delivery.want(sample.id(), ObjectKind::Data, &sample.oti()), Want::Refuse(RefuseReason::NoRoom));
    delivery.tick(20_000);
    quota(&delivery, 8_192);
    assert_told(
        &delivery,
        alarms::Code::NoRoom,
        &["default/1", "set `channel.default.quota` to 489 KiB at least", "ticket default/1"],
    );
    let bound = |delivery: &Delivery| delivery.status(0).bundles[0].bound;
    assert_eq!(bound(&delivery), Some(space::Bound::Channel));
    quota(&delivery, u64::MAX);
    assert_eq!(bound(&delivery), Some(space::Bound::Passed));
    assert_told(&delivery, alarms::Code::NoRoom, &["there is room now", "ticket default/1"]);
    let reason = delivery.status(0).bundles[0].reason.clone().unwrap();
    assert!(reason.starts_with("there was no room in staging, and there is again; lacks"), "{reason}");
    delivery.store.space().refresh(Free { bytes: 100_000, files: u64::MAX });
    assert_eq!(bound(&delivery), Some(space::Bound::Disk));
    assert_told(&delivery, alarms::Code::NoRoom, &["97.7 KiB free", "`reserve`", "free 391 KiB at least"]);
}

#[test]
fn the_limit_of_files_is_named() {
    let mut bench = Bench::new();
    bench.settings.space.files = 30;
    let delivery = bench.open();
    let sample = Sample::tree(1, 1, &[10; 40]);
    delivery.tick(1_000);
    announce(&delivery, &sample).unwrap();
    work(&delivery);
    delivery.tick(40_000);
    assert_told(&delivery, alarms::Code::NoRoom, &["default/1", "`limits.files`"]);
    assert_eq!(delivery.status(0).bundles[0].bound, Some(space::Bound::Files));
}

#[test]
fn what_is_here_already_needs_no_room_and_room_that_is_back_is_told() {
    let bench = Bench::new();
    let delivery = bench.open();
    let sample = Sample::file(1, 1, 500_000);
    delivery.tick(1_000);
    announce(&delivery, &sample).unwrap();
    work(&delivery);
    data(&delivery, &sample, 0..sample.oti().blocks() / 2).unwrap();
    let space = delivery.store.space();
    let bound = || delivery.status(0).bundles[0].bound;
    space.refresh(Free { bytes: 100_000, files: u64::MAX });
    space.refresh(Free { bytes: 0, files: u64::MAX });
    assert_eq!(delivery.want(sample.id(), ObjectKind::Data, &sample.oti()), Want::Refuse(RefuseReason::NoRoom));
    delivery.tick(20_000);
    space.refresh(Free { bytes: 100_000, files: u64::MAX });
    assert_eq!(bound(), Some(space::Bound::Disk));
    // Half of it is here: the other half fits.
    space.refresh(Free { bytes: 300_000, files: u64::MAX });
    assert_eq!(bound(), Some(space::Bound::Passed));
}

#[test]
fn commands_mean_one_bundle_where_several_have_a_number() {
    let bench = Bench::new();
    let delivery = bench.open();
    let (first, second) = (Sample::file(1, 1, 5_000), Sample::file(2, 1, 6_000));
    send(&delivery, &first);
    assert_eq!(delivery.status(0).bundles[0].handle, "default/1");
    announce(&delivery, &second).unwrap();
    work(&delivery);
    let handles: BTreeSet<String> = delivery.status(0).bundles.into_iter().map(|bundle| bundle.handle).collect();
    assert_eq!(handles, BTreeSet::from([first.id().to_string(), second.id().to_string()]));
    let texts = alarmed(&delivery, alarms::Code::Held);
    assert!(texts.len() == 1 && texts[0].contains(&format!("reject {}", second.id())), "{texts:?}");
}

#[test]
fn missing_bundles_are_asked_for_together() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    send(&delivery, &Sample::file(1, 1, 100));
    // Of the last five the id is known, of those between not even that; of 20 something came.
    let recents = (16..=20).rev().map(|n| recent(n, n, RecentState::Transmitted)).collect();
    hear(&delivery, 2_000, 20, recents, None);
    announce(&delivery, &Sample::file(20, 20, 100)).unwrap();
    work(&delivery);
    delivery.tick(2_000);
    delivery.tick(20_000);
    let tickets = delivery.tickets(&[], &|_| Loss::UNKNOWN, 40, &|_| Vec::new()).unwrap();
    let names: Vec<&str> = tickets.iter().map(|ticket| ticket.bundle.as_str()).collect();
    assert_eq!(names, ["default/20", "default/2 to default/19"]);
    assert!(delivery.receiving().is_empty());
    // One is coming: what it will lack is not known yet.
    let other = Sample::file(77, 18, 100);
    announce(&delivery, &other).unwrap();
    delivery.tick(20_500);
    assert_eq!(delivery.receiving(), ["default/18"]);
    let tickets = delivery.tickets(&[], &|_| Loss::UNKNOWN, 40, &|_| Vec::new()).unwrap();
    let names: Vec<&str> = tickets.iter().map(|ticket| ticket.bundle.as_str()).collect();
    assert_eq!(names, ["default/20", "default/2 to default/17", "default/19"]);
}

#[test]
fn what_somebody_else_sends_of_a_bundle_is_no_part_of_it() {
    let bench = Bench::new();
    let delivery = bench.open();
    send(&delivery, &samples()[0]);
    delivery.tick(1_000);
    let oti = Oti::new(5_000, 64, 8).unwrap();
    assert!(matches!(delivery.want(own(2), ObjectKind::Data, &oti), Want::Yes { .. }));
    delivery.block(own(2), ObjectKind::Data, &oti, 0, &[0; 512]).unwrap();
    hear(&delivery, 1_100, 2, vec![], Some((2, 2)));
    hear(&delivery, 1_200, 2, vec![recent(2, 2, RecentState::Transmitted)], None);
    for (length, blocks_total, lacking) in [(5_000, 10, None), (77, 1, Some(1))] {
        let progress = ObjectProgress { length, blocks_total, ..ObjectProgress::default() };
        delivery.progress(own(2), ObjectKind::Data, progress);
        let rows = delivery.status(1_300).bundles;
        let row = rows.iter().find(|row| row.id == own(2).to_string()).unwrap();
        assert_eq!((row.bytes, row.received, row.lacking.map(|l| l.blocks_total)), (77, 0, lacking));
    }
}

#[test]
fn silence_is_told_by_what_comes_instead() {
    let bench = Bench::new();
    let delivery = bench.open();
    let text = |link: &LinkView, now_ms: u64| {
        let told = told::of(&delivery.status(now_ms), link, delivery.noted(now_ms));
        told.into_iter().map(|alarm| alarm.text).find(|text| text.starts_with("no beacon")).unwrap()
    };
    let dropped = |reason: &str| BTreeMap::from([(reason.to_owned(), 7)]);
    let lately = |reason| LinkView { dropped_lately: dropped(reason), ..LinkView::default() };
    assert!(text(&LinkView { dropped: dropped("key"), ..LinkView::default() }, 1_000).contains("another link key"));
    delivery.tick(1_000);
    hear(&delivery, 1_000, 1, vec![], None);
    for (reason, words) in [
        ("key", "copy `keys.link`"),
        ("mode", "set `link.insecure` alike"),
        ("version", "the same release"),
        ("place", "compare `mtu`"),
        ("beacon", "`checkvalve-receiver trust list`"),
        ("duplicate", "the sender or the link is down"),
    ] {
        let text = text(&lately(reason), 10_000);
        assert!(text.starts_with("no beacon for 9.0 s") && text.contains(words), "{text}");
    }
    // That is over.
    assert!(text(&LinkView { dropped: dropped("key"), ..LinkView::default() }, 10_000).contains("link is down"));
    let sealed = LinkView { last_heard_at: Some(Stamp(9_000)), ..LinkView::default() };
    assert!(text(&sealed, 10_000).contains("none is a beacon that counts"));
    let flood = LinkView { dropped_lately: [("beacon".to_owned(), 5_000)].into(), ..LinkView::default() };
    let text = text(&flood, 10_000);
    assert!(text.contains("5000 beacons that do not count") && !text.contains("trust"), "{text}");
}

#[test]
fn what_keeps_bundles_out_of_the_inbox_is_one_alarm_with_what_mends_it() {
    let bench = Bench::new();
    let delivery = bench.open();
    std::fs::write(bench.settings.inbox.join("default"), b"").unwrap();
    samples()[..2].iter().for_each(|sample| send(&delivery, sample));
    delivery.tick(20_000);
    let place = bench.settings.inbox.join("default").display().to_string();
    let words = ["default/1, default/2", "Not a directory", &format!("mv {place} {place}.away"), "install -d -o "];
    assert_told(&delivery, alarms::Code::CannotPublish, &words);
    assert!(reason(&delivery, &samples()[0]).contains("once that is mended"));
    std::fs::remove_file(place).unwrap();
    delivery.tick(30_000);
    work(&delivery);
    assert!(alarmed(&delivery, alarms::Code::CannotPublish).is_empty());
    samples()[0].assert_at(&bench.inbox(1));
}

#[test]
fn clocks_that_are_far_apart_do_not_wrap() {
    let bench = Bench::new();
    let delivery = bench.open();
    delivery.tick(5_000);
    for (clock_ms, offset) in [(u64::MAX, i64::MAX), (0, -5_000), (6_000, 1_000)] {
        assert!(hear_of(&delivery, 5_000, &Beacon { clock_ms, ..beacon(1, vec![], None) }, &key()));
        assert_eq!(delivery.status(5_000).sender.clock_offset_ms, offset);
    }
}

#[test]
fn what_one_lost_state_reused_is_one_alarm() {
    let bench = Bench::new();
    let delivery = bench.open();
    (1..=3).for_each(|n| send(&delivery, &Sample::file(n, n, 100)));
    (1..=3).for_each(|n| send(&delivery, &Sample::file(10 + n, n, 50)));
    let words = ["default/1 is held", "So are later ones", "default/2 (`checkvalve-receiver reject ", "default/3 ("];
    assert_told(&delivery, alarms::Code::Held, &words);
}

#[test]
fn a_state_that_cannot_be_written_is_an_alarm_until_it_can() {
    const EACCES: i32 = 13;
    let bench = Bench::new();
    let delivery = bench.open();
    hear(&delivery, 1_000, 1, vec![], None);
    bench.disk.fail_from(0, EACCES);
    delivery.tick(2_000);
    let texts = alarmed(&delivery, alarms::Code::CannotPublish);
    assert!(texts.len() == 2 && texts[0].starts_with("the ledger cannot be used"), "{texts:?}");
    assert!(texts[0].contains("Permission denied") && texts[0].contains("chown "), "{texts:?}");
    bench.disk.heal();
    delivery.tick(3_000);
    assert!(alarmed(&delivery, alarms::Code::CannotPublish).is_empty());
}
