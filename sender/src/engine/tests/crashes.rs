//! The disk fails, or the process ends, at every single step of a scene; and the end is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use checkvalve_protocol::beacon::RecentState;

use super::rig::{Rig, channel};
use crate::engine::{BundleState, Rules};

const GOOD: [(&str, &str); 3] = [("one", "1"), ("two", "22"), ("three", "")];

/// Three bundles that can be sent, one that cannot, two passes, a resend, retention.
fn prepared() -> Rig {
    let mut rig = Rig::closed();
    rig.rules = [(channel("a"), Rules { passes: 2, ..Rules::default() })].into();
    rig.open();
    rig
}

fn dropped(rig: &mut Rig) {
    fs::create_dir(rig.path("place/bad")).unwrap();
    std::os::unix::fs::symlink("/", rig.path("place/bad/l")).unwrap();
    rig.drop_file("a", "one", b"1");
    rig.drop_in("a", "bad", "bad");
    rig.drop_file("a", "two", b"22");
    rig.drop_file("a", "three", b"");
}

/// What must hold however it went.
fn check(rig: &mut Rig, context: &str) {
    // Every bundle that can be sent was, at least twice over, and under one sequence only.
    let mut by_sequence: BTreeMap<u64, BTreeSet<[u8; 32]>> = BTreeMap::new();
    let mut by_name: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for sent in &rig.sent {
        assert!(sent.hashes.is_some(), "{context}: {sent:?}");
        by_sequence.entry(sent.sequence).or_default().insert(sent.announce);
        by_name.entry(sent.name.clone()).or_default().insert(sent.sequence);
    }
    assert!(by_sequence.values().all(|announces| announces.len() == 1), "{context}: a sequence was used twice");
    assert_eq!(by_sequence.keys().copied().collect::<Vec<_>>(), [1, 2, 3], "{context}: no gaps");
    for (name, _) in GOOD {
        assert_eq!(by_name.get(name).map(BTreeSet::len), Some(1), "{context}: {name}");
        assert!(rig.sent.iter().filter(|s| s.name == name).count() >= 2, "{context}: {name} in two passes");
    }
    // No ESI of a bundle was sent twice.
    for (sequence, _) in by_sequence {
        let mut esis: Vec<_> = rig.sent.iter().filter(|s| s.sequence == sequence).map(|s| s.esis.clone()).collect();
        esis.sort_by_key(|range| range.start);
        assert!(esis.windows(2).all(|w| w[0].end <= w[1].start), "{context}: {esis:?}");
    }
    // What cannot be sent is given back, with its reason.
    let failed = rig.failed("a");
    assert!(failed.contains("bad"), "{context}: {failed:?}");
    assert_eq!(failed.iter().filter(|name| !name.ends_with(".reason")).count(), 1, "{context}: {failed:?}");
    assert!(failed.iter().any(|name| name.ends_with(".reason")), "{context}");
    let states = rig.states();
    let transmitted = states.iter().filter(|s| s.3 == BundleState::Transmitted).count();
    assert_eq!(transmitted, 3, "{context}: {states:?}");
    for (name, content) in GOOD {
        let id = rig.bundles().iter().find(|b| b.name == name).unwrap().id.to_string();
        let held = rig.path("state/bundles/a").join(id).join("content").join(name);
        assert_eq!(fs::read_to_string(held).unwrap(), content, "{context}");
    }
}

#[test]
fn an_error_of_the_disk_at_any_step_is_waited_out() {
    for errno in [28, 5] {
        let mut nth = 0;
        loop {
            let mut rig = prepared();
            dropped(&mut rig);
            rig.disk.heal();
            rig.disk.fail_once(nth, errno);
            rig.run(30_000);
            let steps = rig.disk.operations().len();
            rig.operation = rig.disk.operations().get(nth).copied().unwrap_or_default();
            rig.disk.heal();
            let context = format!("errno {errno} at step {nth}");
            // An error of reading a file is that bundle's, and it is told; nothing else may come of it.
            if rig.failed("a").len() > 2 || rig.sent.iter().any(|s| s.hashes.is_none()) {
                let states = rig.states();
                let failed = states.iter().filter(|s| s.3 == BundleState::Failed).count();
                let transmitted = states.iter().filter(|s| s.3 == BundleState::Transmitted).count();
                assert!(failed <= 2 && failed + transmitted == 4, "{context}: {states:?}");
                assert_eq!(rig.failed("a").len(), 2 * failed, "{context}");
                let read = ["open_read", "read_at", "meta", "lstat", "read_dir", "read_link"];
                assert!(read.contains(&rig.operation), "{context}: {}", rig.operation);
            } else {
                check(&mut rig, &context);
            }
            if nth > steps {
                break;
            }
            nth += 1;
        }
        assert!(nth > 50);
    }
}

#[test]
fn an_end_of_the_process_at_any_step_leads_to_the_same_end() {
    let mut nth = 0;
    loop {
        let mut rig = prepared();
        dropped(&mut rig);
        rig.disk.heal();
        // From there on nothing reaches the disk any more, as if the process had been killed.
        rig.disk.fail_from(nth, 5);
        rig.run_dying();
        let steps = rig.disk.operations().len();
        rig.disk.heal();
        rig.open();
        rig.run(30_000);
        rig.open();
        rig.run(30_000);
        check(&mut rig, &format!("killed at step {nth}"));
        if nth > steps {
            break;
        }
        nth += 1;
    }
    assert!(nth > 50);
}

#[test]
fn an_end_of_the_process_while_it_starts_does_no_harm() {
    let mut nth = 0;
    loop {
        let mut rig = prepared();
        dropped(&mut rig);
        rig.disk.heal();
        rig.disk.fail_from(60, 5);
        rig.run_dying();
        rig.disk.heal();
        rig.disk.fail_from(nth, 5);
        let opened = rig.try_open();
        let steps = rig.disk.operations().len();
        rig.disk.heal();
        rig.open();
        rig.run(30_000);
        check(&mut rig, &format!("killed at step {nth} of starting"));
        if opened && nth > steps {
            break;
        }
        nth += 1;
    }
    assert!(nth > 10);
}

#[test]
fn a_ledger_that_is_lost_or_damaged_is_rebuilt_from_what_is_held() {
    let mut rig = prepared();
    dropped(&mut rig);
    rig.run(30_000);
    let before: Vec<_> = rig.states().into_iter().filter(|s| s.1.is_some()).collect();
    let ledger = rig.path("state/ledger");
    let whole = fs::read(&ledger).unwrap();
    let lost_at = |at: usize| {
        let mut bytes = whole.clone();
        let end = (at + 40).min(bytes.len());
        bytes[at..end].fill(0xaa);
        bytes
    };
    let damaged = (8..whole.len()).step_by(97).map(lost_at).chain([Vec::new()]);
    for (round, bytes) in damaged.enumerate() {
        rig.engine = None;
        fs::write(&ledger, bytes).unwrap();
        rig.sent.clear();
        rig.open();
        rig.run(30_000);
        let after: Vec<_> = rig.states().into_iter().filter(|s| s.1.is_some()).collect();
        assert_eq!(after, before, "round {round}");
        assert!(rig.sent.iter().all(|s| s.esis.start > 0), "whatever is sent again is repair");
        rig.drop_file("a", "next", b"n");
        rig.run(30_000);
        assert_eq!(rig.sent.last().map(|s| s.sequence), Some(4), "round {round}");
        // Back to three.
        rig.engine = None;
        let id = rig.sent.last().unwrap().bundle.to_string();
        fs::remove_dir_all(rig.path("state/bundles/a").join(id)).unwrap();
    }
}

#[test]
fn nobody_hears_of_a_withdrawal_that_the_ledger_does_not_take() {
    let mut rig = Rig::new();
    rig.running = false;
    rig.drop_file("a", "f", b"content");
    rig.run(100);
    // The disk goes: the file cannot be read, and that cannot be written down.
    rig.disk.fail_from(0, 5);
    rig.finish_job(0);
    rig.running = true;
    rig.run(5_000);
    assert_eq!(rig.states()[0].3, BundleState::Failed, "people are told at once");
    assert!(rig.withdrew.is_empty());
    assert_ne!(rig.engine().beacon()[0].recent[0].state, RecentState::Withdrawn);
    // The process ends before the disk is back. Nothing is known of it any more, on either side, and it is sent.
    rig.disk.heal();
    rig.open();
    rig.run(5_000);
    assert_eq!(rig.states()[0].3, BundleState::Transmitted);
    assert!(rig.withdrew.is_empty() && rig.sent.last().unwrap().hashes.is_some());
}

#[test]
fn what_the_other_side_was_told_to_be_withdrawn_is_never_sent() {
    for told in [false, true] {
        let mut rig = Rig::new();
        rig.running = false;
        rig.drop_file("a", "f", b"content");
        rig.run(100);
        let id = rig.jobs[0].order.bundle;
        rig.disk.fail_once(0, 5);
        rig.finish_job(0);
        rig.disk.heal();
        rig.run(100);
        assert_eq!(rig.jobs.len(), 1, "the withdrawal");
        assert!(rig.jobs[0].order.withdrawn.is_some() && rig.jobs[0].order.first_esi >= rig.sent[0].esis.end);
        // The reason goes first: after a beacon's word the other side would not take it any more.
        assert_eq!(rig.engine().beacon()[0].recent[0].state, RecentState::Transmitting);
        if told {
            rig.finish_job(0);
            assert_eq!(rig.withdrew, [id]);
            assert_eq!(rig.engine().beacon()[0].recent[0].state, RecentState::Withdrawn);
        }
        // Stopped, with the withdrawal on the wire or over.
        rig.running = true;
        rig.open();
        rig.run(30_000);
        assert!(rig.sent.iter().all(|sent| sent.hashes.is_none()), "told {told}: {:?}", rig.sent);
        assert_eq!(rig.states()[0].3, BundleState::Failed);
        assert_eq!(rig.engine().beacon()[0].recent[0].state, RecentState::Withdrawn);
        assert_eq!(fs::read(rig.path("spool/a/.failed/f")).unwrap(), b"content");
    }
}

impl Rig {
    /// Runs for a while in which the disk may go.
    fn run_dying(&mut self) {
        for _ in 0..200 {
            let now = self.now;
            let actions = self.engine().step(now);
            self.engine().assert_consistent();
            self.jobs.extend(actions.jobs);
            let disk = std::sync::Arc::clone(&self.disk) as std::sync::Arc<dyn checkvalve_host::disk::Disk>;
            for work in actions.work {
                let done = work.run(&disk);
                self.engine().done(done, now);
            }
            while !self.jobs.is_empty() {
                let before = self.sent.len();
                self.finish_job(0);
                // What a dead process reads is sent by nobody.
                if self.sent.len() > before && self.sent[before].hashes.is_none() {
                    self.sent.truncate(before);
                }
            }
            self.pass(10);
        }
    }
}
