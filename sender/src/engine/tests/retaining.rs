//! How what was transmitted is kept, sent in turn by the carousel, and let go.

use std::fs;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::journal::Sync;
use checkvalve_protocol::id::BundleId;

use super::rig::{Rig, channel};
use crate::bundles::Bundles;
use crate::engine::{Now, Rules};
use crate::ledger::{BundleRecord, State};
use crate::work::Work;

/// Writes a ledger with `count` bundles that were transmitted and are still held.
fn transmitted(rig: &Rig, count: u64) {
    let disk = Arc::clone(&rig.disk) as Arc<dyn Disk>;
    let (mut bundles, _) = Bundles::open(&disk, &rig.path("state/ledger")).unwrap();
    let records = (1..=count).map(|sequence| {
        let id = BundleId::new(sequence, rig.signer());
        let home = rig.path("state/bundles/a").join(id.to_string());
        fs::create_dir_all(home.join("content")).unwrap();
        fs::write(home.join("content/f"), "f").unwrap();
        let record = BundleRecord::new(id, channel("a"), State::Transmitted);
        BundleRecord {
            sequence: Some(sequence),
            bytes: 1,
            retained_since_ms: Some(sequence),
            next_esi: 1,
            passes_done: 1,
            ..record
        }
    });
    let records: Vec<_> = records.collect();
    bundles.put_all(records, Sync::Yes).unwrap();
}

#[test]
fn thousands_are_let_go_in_a_few_steps_and_the_oldest_first() {
    let mut rig = Rig::closed();
    transmitted(&rig, 3_500);
    rig.retain_bytes = 200;
    rig.open();
    rig.disk.heal();
    let mut pieces = Vec::new();
    for _ in 0..20 {
        let now = rig.now;
        let actions = rig.engine().step(now);
        rig.engine().assert_consistent();
        let removals: Vec<_> = actions.work.into_iter().filter(|work| matches!(work, Work::Remove { .. })).collect();
        assert!(removals.len() <= 1);
        if !removals.is_empty() {
            // While one batch is being removed, no other begins.
            let later = Now { wall_ms: now.wall_ms + 61_000, mono_ms: now.mono_ms + 61_000 };
            let again = rig.engine().step(later);
            rig.now = later;
            assert!(again.wake_ms > later.mono_ms, "nothing turns in circles meanwhile");
            assert!(again.work.iter().all(|work| !matches!(work, Work::Remove { .. })));
        }
        for work in removals {
            let Work::Remove { homes } = &work else { continue };
            pieces.push(homes.len());
            let disk = Arc::clone(&rig.disk) as Arc<dyn Disk>;
            let (done, now) = (work.run(&disk), rig.now);
            rig.engine().done(done, now);
        }
    }
    assert_eq!(pieces, [1_000, 1_000, 1_000, 300]);
    let retained: Vec<_> = rig.bundles().into_iter().filter(|b| b.retained).filter_map(|b| b.sequence).collect();
    assert_eq!(retained, (3_301..=3_500).collect::<Vec<_>>());
    assert_eq!(fs::read_dir(rig.path("state/bundles/a")).unwrap().count(), 200);
    // One journal record for each bundle, and a sync for each batch, not for each bundle.
    let syncs = rig.disk.operations().iter().filter(|operation| operation.contains("sync_data")).count();
    assert!(syncs <= 12, "{syncs}");
}

#[test]
fn an_error_of_the_disk_at_any_step_of_it_is_waited_out() {
    let mut kinds = std::collections::BTreeSet::new();
    for nth in 0..60 {
        let mut rig = Rig::closed();
        transmitted(&rig, 6);
        rig.retain_bytes = 3;
        rig.open();
        rig.disk.heal();
        rig.disk.fail_once(nth, 28);
        rig.run(130_000);
        kinds.extend(rig.disk.operations().get(nth).copied());
        rig.disk.heal();
        // What could not be removed is removed after the next start.
        rig.open();
        rig.run(1_000);
        let retained: Vec<_> = rig.bundles().into_iter().filter(|b| b.retained).filter_map(|b| b.sequence).collect();
        assert_eq!(retained, [4, 5, 6], "{nth}");
        assert_eq!(fs::read_dir(rig.path("state/bundles/a")).unwrap().count(), 3, "{nth}");
        assert!(rig.engine().view().troubles.is_empty(), "{nth}");
    }
    assert!(kinds.contains("write_all_at") && kinds.contains("sync_data"), "{kinds:?}");
}

#[test]
fn the_carousel_turns_until_a_newer_one_was_sent() {
    let mut rig = Rig::closed();
    rig.retain_ms = 5_000;
    rig.rules.insert(channel("a"), Rules { carousel_ms: Some(10_000), ..Rules::default() });
    rig.open();
    rig.drop_file("a", "f", b"old");
    rig.drop_file("a", "other", b"o");
    rig.run(35_000);
    assert_eq!(rig.names().iter().filter(|n| **n == "f").count(), 4);
    rig.drop_file("a", "f", b"new");
    rig.run(100_000);
    let after: Vec<_> = rig.sent.iter().skip(8).filter(|s| s.name == "f").map(|s| s.sequence).collect();
    assert!(after.len() >= 10 && after.iter().all(|sequence| *sequence == 3), "{after:?}");
    assert!(!rig.bundles()[0].retained, "superseded, so it is retained like any other");
    assert!(rig.bundles()[1].retained && rig.bundles()[2].retained);
    // Without the rule nothing turns any more.
    rig.rules.insert(channel("a"), Rules::default());
    rig.open();
    let before = rig.sent.len();
    rig.run(100_000);
    assert_eq!(rig.sent.len(), before);
}

#[test]
fn a_turn_that_ends_after_a_newer_one_was_sent_is_the_last() {
    let mut rig = Rig::closed();
    rig.rules.insert(channel("a"), Rules { carousel_ms: Some(10_000), ..Rules::default() });
    rig.open();
    rig.drop_file("a", "f", b"old");
    rig.run(1_000);
    rig.running = false;
    rig.drop_file("a", "f", b"new");
    rig.run(15_000);
    let submitted: Vec<u64> = rig.jobs.iter().map(|job| job.order.sequence).collect();
    assert_eq!(submitted, [2, 1], "the newer one, and a turn of the older one");
    rig.finish_job(0);
    rig.finish_job(0);
    rig.running = true;
    let before = rig.sent.len();
    rig.run(100_000);
    let after: Vec<u64> = rig.sent[before..].iter().map(|sent| sent.sequence).collect();
    assert!(after.len() >= 9 && after.iter().all(|sequence| *sequence == 2), "{after:?}");
}
