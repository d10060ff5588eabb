//! A ledger that says impossible things ends nothing.

use std::fs;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::journal::Sync;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::ticket::{Data, Loss, Need, Subject, Ticket};

use super::rig::{Rig, channel};
use crate::bundles::Bundles;
use crate::engine::Rules;
use crate::ledger::{BundleRecord, Resend, State};

/// With each number as large as it can be, or 0.
fn record(id: BundleId, sequence: u64, state: State, large: bool) -> BundleRecord {
    let n = |large_one: u64| if large { large_one } else { 0 };
    let (long, short) = (n(u64::MAX), u32::try_from(n(u32::MAX.into())).unwrap());
    let size = u16::try_from(n(u16::MAX.into())).unwrap();
    BundleRecord {
        sequence: Some(sequence),
        name: b"f".to_vec(),
        inode: long,
        claimed_ms: long,
        bytes: long,
        entries: long,
        symbol_size: size,
        block_symbols: size,
        next_esi: short,
        passes_done: short,
        sent: short,
        due_ms: Some(long),
        resends: vec![Resend { ranges: vec![(7, 3), (0, u32::MAX)], symbols: vec![Some(short)], asked_ms: long }],
        transmitted_ms: Some(long),
        retained_since_ms: Some(long),
        ..BundleRecord::new(id, channel("a"), state)
    }
}

#[test]
fn numbers_at_their_ends_do_no_harm() {
    for large in [false, true] {
        let mut rig = Rig::closed();
        rig.rules.insert(
            channel("a"),
            Rules { passes: 3, pass_interval_ms: u64::MAX, carousel_ms: Some(u64::MAX), priority: 0 },
        );
        let disk = Arc::clone(&rig.disk) as Arc<dyn Disk>;
        let (mut bundles, _) = Bundles::open(&disk, &rig.path("state/ledger")).unwrap();
        bundles.run_for(if large { u64::MAX } else { 0 });
        let states = [State::Queued, State::Transmitting, State::Transmitted, State::Failed("x".to_owned())];
        let mut ids = Vec::new();
        for (state, sequence) in states.into_iter().cycle().take(8).zip(1..) {
            let id = BundleId::new(sequence, rig.signer());
            let home = rig.path("state/bundles/a").join(id.to_string());
            fs::create_dir_all(home.join("content")).unwrap();
            fs::write(home.join("content/f"), "f").unwrap();
            let one = record(id, sequence, state, large);
            // Some of them as they are transmitted usually, so that they come further.
            let one = if sequence > 4 {
                BundleRecord { symbol_size: 1_408, block_symbols: 256, bytes: 1, ..one }
            } else {
                one
            };
            bundles.put(one, Sync::Yes).unwrap();
            ids.push(id);
        }
        drop(bundles);
        rig.open();
        for id in ids {
            let data = Data::of_blocks([(0, Need::Symbols(1_024))]);
            let subject = Subject::Bundle { bundle: id, announce: true, hashes: true, data };
            let now = rig.now;
            let ticket = Ticket::new(subject, Loss::UNKNOWN).unwrap();
            drop(rig.engine().resend_ticket(&ticket, true, now));
            drop(rig.engine().resend_ticket(&ticket, false, now));
            drop(rig.engine().resend(&id.to_string(), &[(0..u32::MAX, Some(u32::MAX))], now));
        }
        rig.run(200_000);
        drop((rig.engine().view(), rig.engine().beacon(), rig.engine().summary()));
        rig.drop_file("a", "next", b"n");
        rig.run(1_000);
        assert_eq!(rig.sent.last().map(|s| (s.name.as_str(), s.sequence)), Some(("next", 9)));
        rig.open();
        rig.run(1_000);
    }
}
