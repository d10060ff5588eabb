//! How what was transmitted is let go.

use std::fs;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::journal::Sync;
use checkvalve_protocol::id::BundleId;

use super::rig::{Rig, channel};
use crate::bundles::Bundles;
use crate::engine::Now;
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
