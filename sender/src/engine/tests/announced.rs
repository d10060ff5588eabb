//! What is announced of a bundle, and stays so: its symbols, its key, its number.

use std::fs;

use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::limits::MAX_SEQUENCE;
use checkvalve_protocol::manifest::Announce;

use super::rig::{Rig, channel, names};
use crate::bundles::Bundles;
use crate::engine::BundleState;

/// Three bundles, of which the first two have begun.
fn begun(mtu: u16) -> Rig {
    let mut rig = Rig::closed();
    rig.mtu = mtu;
    rig.open();
    rig.running = false;
    for name in ["begun", "also", "queued"] {
        rig.drop_file("a", name, name.as_bytes());
    }
    rig.run(100);
    assert_eq!(rig.jobs.len(), 2);
    rig.running = true;
    rig
}

fn announced(rig: &Rig, id: &str) -> Announce {
    Announce::peek(&fs::read(rig.path("state/bundles/a").join(id).join("announce")).unwrap()).unwrap()
}

#[test]
fn symbols_are_announced_anew_only_before_the_first_is_sent() {
    for (before, after, kept) in [(1_500, 9_000, true), (9_000, 1_500, false), (1_500, 1_500, true)] {
        let mut rig = begun(before);
        let ids: Vec<_> = rig.bundles().iter().map(|b| b.id.to_string()).collect();
        rig.mtu = after;
        let (old, new) = (announced(&rig, &ids[2]), rig.parameters());
        rig.open();
        rig.run(100);
        let sent: Vec<_> = rig.sent.iter().map(|s| (s.sequence, s.bundle.to_string(), s.symbol_size)).collect();
        let last = sent.last().unwrap();
        assert_eq!(last, &(3, ids[2].clone(), new.symbol_size()), "the same id and sequence");
        let expected = Announce { symbol_size: new.symbol_size(), block_symbols: new.block_symbols(), ..old.clone() };
        assert_eq!(announced(&rig, &ids[2]), expected);
        assert_eq!(sent.len(), if kept { 3 } else { 1 });
        assert!(sent[..sent.len() - 1].iter().all(|s| s.2 == old.symbol_size));
        // From then on it keeps them.
        rig.mtu = 9_216;
        let now = {
            rig.open();
            rig.now
        };
        rig.engine().resend("a/3", &[], now).unwrap();
        rig.run(100);
        let again = rig.sent.last().unwrap();
        assert_eq!((again.symbol_size, again.knew_hashes), (new.symbol_size(), true));
    }
}

#[test]
fn an_end_while_it_is_announced_anew_does_no_harm() {
    let mut nth = 0;
    loop {
        let mut rig = begun(9_000);
        rig.mtu = 1_500;
        rig.open();
        rig.disk.heal();
        rig.disk.fail_from(nth, 5);
        rig.running = false;
        rig.run(2_000);
        let steps = rig.disk.operations().len();
        rig.disk.heal();
        rig.running = true;
        rig.open();
        rig.run(30_000);
        let queued = rig.states().into_iter().find(|s| s.2 == "queued").unwrap();
        assert_eq!((queued.1, queued.3), (Some(3), BundleState::Transmitted), "step {nth}");
        if nth > steps.min(60) {
            break;
        }
        nth += 1;
    }
}

#[test]
fn nothing_is_said_of_bundles_of_another_key() {
    let mut rig = begun(1_500);
    rig.drop_file("a", "claimed", b"claimed");
    rig.drop_file("b", "sent", b"sent");
    let now = rig.now;
    // Claimed, and not planned any more.
    drop(rig.engine().step(now));
    rig.key = 2;
    rig.open();
    rig.run(100);
    let ours = SigningKey::from_seed([2; 32]).public().id().tag();
    let states = rig.states();
    let failed: Vec<_> = states.iter().filter(|s| s.3 == BundleState::Failed).map(|s| s.2.as_str()).collect();
    assert_eq!(failed, ["begun", "also", "queued"]);
    let reason = fs::read_to_string(rig.path("spool/a/.failed/queued.reason")).unwrap();
    assert_eq!(reason, "it was announced with another signing key than the present one; drop it again\n");
    assert!(rig.withdrew.is_empty(), "nobody would believe it");
    // What had no sequence yet is a bundle of this key.
    let sent: Vec<_> = rig.sent.iter().map(|s| (s.sequence, s.name.as_str(), s.bundle.tag() == ours)).collect();
    assert_eq!(sent, [(4, "claimed", true), (1, "sent", true)]);
    for state in rig.engine().beacon() {
        assert!(state.recent.iter().all(|recent| recent.bundle.tag() == ours), "{state:?}");
        assert_eq!(state.recent.len(), 1);
    }
}

#[test]
fn after_the_last_sequence_there_is_none() {
    let mut rig = Rig::new();
    rig.engine = None;
    let disk = std::sync::Arc::clone(&rig.disk) as std::sync::Arc<dyn checkvalve_host::disk::Disk>;
    let (mut bundles, _) = Bundles::open(&disk, &rig.path("state/ledger")).unwrap();
    bundles.skip_to(&channel("a"), MAX_SEQUENCE - 1).unwrap();
    drop(bundles);
    rig.open();
    for name in ["last", "beyond"] {
        rig.drop_file("a", name, b"");
        rig.run(100);
    }
    rig.drop_file("b", "other", b"");
    rig.run(100);
    let sent: Vec<_> = rig.sent.iter().map(|s| (s.sequence, s.name.as_str())).collect();
    assert_eq!(sent, [(MAX_SEQUENCE, "last"), (1, "other")]);
    assert_eq!(names(&rig.path("spool/a/.failed")), ["beyond".to_owned(), "beyond.reason".to_owned()].into());
    let reason = fs::read_to_string(rig.path("spool/a/.failed/beyond.reason")).unwrap();
    assert!(reason.contains("has given out its last sequence, 9007199254740991"), "{reason}");
}
