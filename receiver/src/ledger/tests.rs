use std::sync::Arc;

use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_host::journal::{Journal, Sync};
use checkvalve_protocol::limits::{MAX_JUMP, MAX_SEQUENCE};

use super::arrival::Arrival;
use super::file::LedgerFile;
use super::*;

mod years;

fn channel() -> ChannelName {
    ChannelName::new("default").unwrap()
}

fn announced(id: u64, sequence: u64) -> Announced {
    Announced {
        id: BundleId(id),
        channel: channel(),
        sequence,
        name: b"a".to_vec(),
        bytes: 5,
        signer: Signer { key: KeyId([1; 8]), name: "ci".into() },
        digest: [7; 32],
    }
}

fn heard(id: u64, sequence: u64) -> Heard {
    let signer = Signer { key: KeyId([1; 8]), name: "ci".into() };
    let (id, name) = (BundleId(id), b"n".to_vec());
    Heard { signer, id, sequence, bytes: 9, name, on_wire: false, sent: true, withdrawn: false }
}

fn state(ledger: &mut Ledger, id: u64, state: State, now: u64) {
    ledger.change(BundleId(id), now, |e| e.arrival = Arrival::of(state, false)).unwrap();
}

#[test]
fn hooks_go_in_order_and_wait_for_what_is_missing() {
    let mut ledger = Ledger::new();
    ledger.announced(announced(1, 1), 0).unwrap();
    ledger.announced(announced(3, 3), 0).unwrap();
    state(&mut ledger, 3, State::Complete, 0);
    assert_eq!(ledger.next(&channel(), 0, None), Next::Blocked(1), "1 is being received");
    state(&mut ledger, 1, State::Complete, 0);
    assert_eq!(ledger.next(&channel(), 0, None), Next::Run(BundleId(1)));
    ledger.change_channel(&channel(), |c| c.pass(1));
    state(&mut ledger, 1, State::Installed, 0);
    assert_eq!(ledger.next(&channel(), 0, None), Next::Blocked(2), "nothing is known of 2");
    assert_eq!(ledger.next(&channel(), 10_000, None), Next::Blocked(2), "for ever");
    assert_eq!(ledger.next(&channel(), 10_000, Some(20_000)), Next::Blocked(2));
    assert_eq!(ledger.next(&channel(), 20_000, Some(20_000)), Next::Run(BundleId(3)), "waited long enough");
    assert_eq!(ledger.reject_unknown(&channel(), 2..=2), Some(2));
    assert_eq!(ledger.next(&channel(), 0, None), Next::Run(BundleId(3)), "given up");
    assert!(matches!(ledger.announced(announced(2, 2), 0), Err(Conflict::Over { .. })));
}

#[test]
fn each_ended_state_lets_the_next_one_go() {
    for ended in
        [State::Installed, State::Failed, State::Quarantined, State::Rejected, State::Withdrawn, State::Superseded]
    {
        let mut ledger = Ledger::new();
        ledger.announced(announced(1, 1), 0).unwrap();
        ledger.announced(announced(2, 2), 0).unwrap();
        state(&mut ledger, 2, State::Complete, 0);
        state(&mut ledger, 1, ended, 0);
        assert_eq!(ledger.next(&channel(), 0, None), Next::Run(BundleId(2)), "{ended:?}");
    }
}

#[test]
fn an_interrupted_or_postponed_hook_comes_before_later_ones() {
    let mut ledger = Ledger::new();
    for n in [1, 2] {
        ledger.announced(announced(n, n), 0).unwrap();
        state(&mut ledger, n, State::Complete, 0);
    }
    ledger.change_channel(&channel(), |c| c.pass(1));
    ledger.change(BundleId(1), 0, |e| {
        e.install();
        e.not_before_ms = 500;
    });
    assert_eq!(ledger.next(&channel(), 0, None), Next::Wait(500));
    assert_eq!(ledger.next(&channel(), 500, None), Next::Run(BundleId(1)));
}

#[test]
fn no_hook_starts_for_what_is_judged_and_nothing_is_judged_whose_hook_runs() {
    let mut ledger = Ledger::new();
    ledger.announced(announced(1, 1), 0).unwrap();
    ledger.published(BundleId(1), &channel(), true, 0);
    assert!(ledger.suspend(BundleId(1)));
    assert_eq!(ledger.start_next(&channel(), 0, None), None);
    assert_eq!(ledger.reject(BundleId(1), 0), Err(Unchanged::Busy));
    assert!(!ledger.suspend(BundleId(1)), "once at a time");
    ledger.resume(BundleId(1));
    assert_eq!(ledger.run_now(BundleId(1), 0), Err(Unchanged::Busy), "it waits for its turn, not for its time");
    assert_eq!(ledger.start_next(&channel(), 0, None).map(|entry| entry.attempt), Some(1));
    assert!(!ledger.suspend(BundleId(1)));
    assert_eq!(ledger.reject(BundleId(1), 0), Err(Unchanged::Busy));
    assert_eq!(ledger.start_next(&channel(), 0, None), None, "it runs");
    ledger.not_started(BundleId(1), &channel(), 0, 500);
    assert_eq!(ledger.start_next(&channel(), 0, None), None, "not yet");
    ledger.run_now(BundleId(1), 0).unwrap();
    assert_eq!(ledger.start_next(&channel(), 0, None).map(|entry| entry.attempt), Some(2));
    ledger.hook_over(&channel());
    assert_eq!(ledger.reject(BundleId(1), 0).map(|entry| entry.state()), Ok(State::Installing));
    assert_eq!(ledger.reject(BundleId(1), 0), Err(Unchanged::Over(State::Rejected)));
    assert!(ledger.entry(BundleId(1)).unwrap().is_published(), "what is in the inbox stays there");
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_wait() {
    let mut ledger = Ledger::new();
    ledger.announced(announced(1, 1), 9_000).unwrap();
    ledger
        .change(BundleId(1), 9_000, |e| (e.arrival, e.not_before_ms) = (Arrival::of(State::Installing, true), 12_000));
    assert_eq!(ledger.next(&channel(), 9_000, None), Next::Wait(12_000));
    ledger.clock_went_back(500);
    assert_eq!(ledger.next(&channel(), 500, None), Next::Run(BundleId(1)));
    let entry = ledger.entry(BundleId(1)).unwrap();
    assert_eq!((entry.first_ms, entry.changed_ms), (500, 500));
}

#[test]
fn order_starts_with_the_first_on_the_wire() {
    let mut ledger = Ledger::new();
    ledger.announced(announced(50, 5), 0).unwrap();
    state(&mut ledger, 50, State::Complete, 0);
    assert_eq!(ledger.next(&channel(), 0, None), Next::Run(BundleId(50)), "1 to 4 were before our time");
    ledger.heard(&channel(), heard(40, 4), 0);
    assert!(ledger.entry(BundleId(40)).is_none(), "not missed: it was sent before our time");
    let on_wire = Heard { on_wire: true, sent: false, ..heard(30, 3) };
    ledger.heard(&channel(), on_wire, 0);
    assert_eq!(ledger.next(&channel(), 0, None), Next::Blocked(3), "sent again while we watch");
}

#[test]
fn what_was_not_on_the_wire_yet_when_first_heard_of_is_expected() {
    let mut ledger = Ledger::new();
    assert!(ledger.open_channel(&channel(), None));
    ledger.change_channel(&channel(), |c| c.hear(7, None));
    assert_eq!(ledger.channel(&channel()).unwrap().baseline(), Some(8));
    ledger.announced(announced(90, 9), 0).unwrap();
    assert_eq!(ledger.channel(&channel()).unwrap().gaps(0, 9), [(8, 8)], "8 was lost without a trace");
}

#[test]
fn gaps_are_ranges_however_long() {
    let mut ledger = Ledger::new();
    ledger.announced(announced(1, 1), 0).unwrap();
    ledger.allow(&channel(), MAX_SEQUENCE);
    ledger.announced(announced(2, MAX_SEQUENCE), 0).unwrap();
    assert_eq!(ledger.channel(&channel()).unwrap().gaps(0, 9), [(2, MAX_SEQUENCE - 1)]);
    state(&mut ledger, 2, State::Complete, 0);
    state(&mut ledger, 1, State::Installed, 0);
    assert_eq!(ledger.next(&channel(), 0, None), Next::Blocked(2));
}

#[test]
fn a_sequence_is_never_two_bundles() {
    let mut ledger = Ledger::new();
    ledger.announced(announced(1, 1), 0).unwrap();
    ledger.announced(announced(2, 1), 0).expect("an announce alone takes no sequence from another bundle");
    ledger.win(BundleId(2)).unwrap();
    ledger.change(BundleId(2), 0, Entry::complete);
    assert_eq!(ledger.win(BundleId(1)), Err(BundleId(2)));
    assert_eq!(ledger.at(&channel(), 1).unwrap().id, BundleId(2));
    assert_eq!(ledger.next(&channel(), 0, None), Next::Run(BundleId(2)));
    assert!(matches!(ledger.announced(announced(3, 1), 0), Err(Conflict::SequenceTaken { .. })));
    let other = Announced { digest: [8; 32], ..announced(2, 1) };
    assert_eq!(ledger.announced(other, 0), Err(Conflict::OtherAnnounce));
    ledger.announced(announced(2, 1), 0).expect("the same again is no conflict");
    ledger.heard(&channel(), heard(4, 1), 0);
    assert!(ledger.entry(BundleId(4)).is_none(), "a beacon does not outrank a signature");
}

#[test]
fn a_signature_outranks_a_beacon() {
    let mut ledger = Ledger::new();
    ledger.announced(announced(1, 1), 0).unwrap();
    ledger.heard(&channel(), heard(66, 2), 0);
    assert_eq!(ledger.at(&channel(), 2).unwrap().id, BundleId(66));
    ledger.announced(announced(2, 2), 0).unwrap();
    assert_eq!(ledger.at(&channel(), 2).unwrap().id, BundleId(2));
    assert!(ledger.entry(BundleId(66)).is_none());
}

#[test]
fn what_is_refused_or_held_is_bounded() {
    let mut ledger = Ledger::new();
    ledger.announced(announced(1, 1), 0).unwrap();
    let entry = |id| Entry { channel: Some(channel()), sequence: 1, ..Entry::new(BundleId(id), 0) };
    assert!((100..100 + REFUSED as u64).all(|id| ledger.refused(entry(id))));
    assert!(!ledger.refused(entry(5)));
    assert!((9_000..9_000 + HELD as u64).all(|id| ledger.hold(entry(id), Hold::Channels)));
    assert!(!ledger.hold(entry(6), Hold::Channels));
    assert_eq!(ledger.at(&channel(), 1).unwrap().id, BundleId(1));
    assert_eq!(ledger.next(&channel(), 0, None), Next::Blocked(1), "none of them blocks the channel");
}

#[test]
fn a_key_takes_some_of_the_channels_only() {
    let mut ledger = Ledger::new();
    let of = |id: u64, key: u8, name: String| {
        let signer = Signer { key: KeyId([key; 8]), name: "k".into() };
        Announced { channel: ChannelName::new(name).unwrap(), signer, ..announced(id, 1) }
    };
    let taken = (1..=100).filter(|&id| ledger.announced(of(id, 1, format!("a-{id}")), 0).is_ok()).count();
    assert_eq!(taken, CHANNELS_OF_KEY);
    ledger.announced(of(201, 2, "mine".into()), 0).expect("another key finds its place");
    let own = |name: &ChannelName| name.as_str().starts_with("a-");
    let open: Vec<ChannelName> = ledger.channels().map(|(name, _)| name.clone()).filter(own).collect();
    for name in open {
        ledger.change_channel(&name, |channel| channel.give_up(&(1..=1))).expect("a channel");
    }
    (1..=100).for_each(|id| ledger.forget(BundleId(id)));
    let next = of(300, 1, "next".into());
    assert_eq!(ledger.announced(next.clone(), 0), Err(Conflict::Channels), "those it opened are there for good");
    ledger.configure([next.channel.clone()]);
    ledger.announced(next, 0).expect("a channel of the config always has its place");
}

#[test]
fn bundles_under_way_are_bounded_in_each_channel() {
    let mut ledger = Ledger::new();
    for id in 1..=MOST_OPEN as u64 {
        ledger.announced(announced(id, id), 0).unwrap();
    }
    let next = MOST_OPEN as u64 + 1;
    assert_eq!(ledger.announced(announced(next, next), 0), Err(Conflict::Crowded));
    ledger.announced(announced(5, 5), 0).expect("one that is under way");
    let other = Announced { channel: ChannelName::new("other").unwrap(), ..announced(next, next) };
    ledger.announced(other, 0).expect("another channel");
    state(&mut ledger, 1, State::Complete, 0);
    ledger.announced(announced(9_999, next), 0).unwrap();
}

#[test]
fn a_jump_is_not_believed() {
    let mut ledger = Ledger::new();
    ledger.announced(announced(1, 500), 0).unwrap();
    ledger.announced(announced(2, 500 + MAX_JUMP), 0).unwrap();
    let jump = ledger.announced(announced(3, 501 + 2 * MAX_JUMP), 0);
    assert!(matches!(jump, Err(Conflict::Jump { newest, .. }) if newest == 500 + MAX_JUMP), "{jump:?}");
    ledger.heard(&channel(), heard(4, MAX_SEQUENCE), 0);
    assert!(ledger.entry(BundleId(4)).is_none());
    ledger.allow(&channel(), 501 + 2 * MAX_JUMP);
    ledger.announced(announced(3, 501 + 2 * MAX_JUMP), 0).unwrap();
}

#[test]
fn beacons_are_bounded() {
    let mut ledger = Ledger::new();
    ledger.announced(announced(1, 1), 0).unwrap();
    for n in 2..HEARD_ONLY as u64 + 100 {
        ledger.change_channel(&channel(), |channel| channel.begun(n));
        ledger.heard(&channel(), heard(n, n), 0);
    }
    assert_eq!(ledger.entries().count(), HEARD_ONLY + 1);
}

#[test]
fn survives_a_restart_and_forgets_no_failed_save() {
    let dir = crate::testing::dir();
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let path = dir.path().join("ledger");
    {
        let (file, _) = LedgerFile::open(&disk, &path).unwrap();
        let mut ledger = file.lock();
        ledger.announced(announced(1, 1), 0).unwrap();
        ledger.announced(announced(2, 2), 0).unwrap();
        ledger.announced(announced(4, 4), 0).unwrap();
        state(&mut ledger, 1, State::Installed, 3);
        ledger.change_channel(&channel(), |c| c.pass(1));
        ledger.seen(BundleId(77), 0);
        ledger.forget(BundleId(77));
        drop(ledger);
        file.save(Sync::Yes).unwrap();
        file.lock().forget(BundleId(2));
        file.save(Sync::No).unwrap();
    }
    let (file, damage) = LedgerFile::open(&disk, &path).unwrap();
    assert!(!damage.is_any(), "{damage:?}");
    let mut ledger = file.lock();
    assert_eq!(ledger.entries().count(), 2);
    assert_eq!(ledger.entry(BundleId(1)).unwrap().state(), State::Installed);
    assert_eq!(ledger.channel(&channel()).unwrap().passed(), 1);
    assert_eq!(ledger.open(), [BundleId(4)]);
    state(&mut ledger, 4, State::Complete, 9);
    assert_eq!(ledger.next(&channel(), 0, None), Next::Blocked(2));
}

#[test]
fn a_start_that_reached_the_disk_in_part_leaves_no_hook_behind() {
    let dir = crate::testing::dir();
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let path = dir.path().join("ledger");
    let (file, _) = LedgerFile::open(&disk, &path).unwrap();
    for n in [1, 2] {
        file.lock().announced(announced(n, n), 0).unwrap();
        file.lock().published(BundleId(n), &channel(), true, 0);
    }
    assert_eq!(file.lock().start_next(&channel(), 0, None).map(|entry| entry.id), Some(BundleId(1)));
    file.save(Sync::Yes).unwrap();
    let kept = std::fs::metadata(&path).unwrap().len() as usize;
    file.lock().change(BundleId(1), 1, Entry::installed);
    file.lock().hook_over(&channel());
    assert_eq!(file.lock().start_next(&channel(), 1, None).map(|entry| entry.id), Some(BundleId(2)));
    file.save(Sync::No).unwrap();
    drop(file);
    let whole = std::fs::read(&path).unwrap();
    let mut again = [0; 3];
    for len in kept..=whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        let (file, _) = LedgerFile::open(&disk, &path).unwrap();
        let mut ledger = file.lock();
        assert!(ledger.settle_turns(2).is_empty());
        let first = ledger.start_next(&channel(), 2, None).unwrap();
        again[first.sequence as usize] += 1;
        let state = ledger.entry(BundleId(1)).unwrap().state();
        assert_eq!(state == State::Installing, first.sequence == 1, "{len} of {} bytes: {state:?}", whole.len());
    }
    assert!(again[1] > 0 && again[2] > 0, "{again:?}");
}

#[test]
fn a_hook_whose_end_was_lost_does_not_run_after_a_newer_one() {
    let mut ledger = Ledger::new();
    for n in [1, 2] {
        ledger.announced(announced(n, n), 0).unwrap();
    }
    state(&mut ledger, 1, State::Installing, 0);
    state(&mut ledger, 2, State::Installed, 0);
    ledger.change_channel(&channel(), |channel| channel.pass(2));
    assert_eq!(ledger.settle_turns(3).iter().map(|entry| entry.id).collect::<Vec<_>>(), [BundleId(1)]);
    let entry = ledger.entry(BundleId(1)).unwrap();
    assert_eq!((entry.state(), entry.changed_ms), (State::Failed, 3));
    assert!(entry.reason.as_deref().unwrap_or_default().ends_with("sequence 2 is installed since"));
    assert_eq!(ledger.next(&channel(), 3, None), Next::Idle);
}

#[test]
fn a_record_that_means_nothing_is_damage() {
    let dir = crate::testing::dir();
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let path = dir.path().join("ledger");
    let (mut journal, _) = Journal::open(&disk, &path, record::SCHEMA).unwrap();
    journal.append_all(&[vec![0xff; 9]], Sync::Yes).unwrap();
    drop(journal);
    let (_, damage) = LedgerFile::open(&disk, &path).unwrap();
    assert_eq!(damage.unreadable, 1);
    assert!(damage.is_any());
}

#[test]
fn old_history_is_forgotten_but_stays_over() {
    let mut ledger = Ledger::new();
    for n in 1..=HISTORY as u64 + 5 {
        ledger.announced(announced(n, n), 0).unwrap();
        state(&mut ledger, n, State::Installed, 0);
    }
    assert_eq!(ledger.prune(usize::MAX).len(), 5);
    assert!(ledger.entry(BundleId(5)).is_none());
    assert!(matches!(ledger.announced(announced(5, 5), 0), Err(Conflict::Over { .. })));
    assert!(ledger.prune(usize::MAX).is_empty());
}
