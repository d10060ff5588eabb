//! What a receiver does with bundles that no honest sender makes: signed manifests that break the rules, bundles that
//! nobody or the wrong key signed, and such as were changed afterwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkvalve_protocol::codec::Bytes;
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::manifest::raw::{RawEntry, RawKind};
use checkvalve_tests::pair::Pair;
use checkvalve_tests::pair::forge::Forger;
use checkvalve_tests::require_link;
use checkvalve_tests::sim::Bundle;
use checkvalve_tests::sim::bundle::{Signer, directory_entry, file_entry, symlink_entry};
use checkvalve_tests::snapshot::Snapshot;
use serde_json::Value;

/// Every `reason.json` in the quarantine, by bundle id as in its directory's name.
fn reasons(pair: &Pair) -> BTreeMap<PathBuf, Value> {
    let nodes = Snapshot::of(&pair.high.quarantine).0.into_keys();
    let found = nodes.filter(|path| path.ends_with("reason.json")).map(|path| {
        let text = std::fs::read_to_string(pair.high.quarantine.join(&path)).unwrap();
        (path.clone(), serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}: {text}")))
    });
    found.collect()
}

/// Waits for the reason that the bundle with this id was refused with.
fn reason(pair: &Pair, id: u64) -> String {
    let id = format!("{id:016x}");
    let found = pair.wait_for(&format!("a reason.json for {id}"), || {
        reasons(pair).into_iter().find(|(path, _)| path.to_string_lossy().contains(&id))
    });
    format!("{:#}", found.1)
}

/// Everything on the high side but what the receiver may write.
fn outside(pair: &Pair) -> Snapshot {
    let mut nodes = Snapshot::of(pair.dir.path()).0;
    let own = ["high/data", "high/log", "high/control.sock", "high", "high/runs"];
    nodes.retain(|path, _| !path.starts_with("high/data") && !own.iter().any(|own| path == Path::new(own)));
    Snapshot(nodes)
}

fn published(pair: &Pair) -> Vec<PathBuf> {
    pair.inbox().into_iter().filter(|path| path.components().count() > 2).collect()
}

#[test]
fn signed_manifests_that_break_the_rules_are_quarantined() {
    require_link!();
    let mut pair = Pair::setup().lay();
    pair.start_receiver();
    let mut forger = Forger::new(&pair, 1);
    let before = outside(&pair);

    let long = [b"n/".as_slice(), &b"d/".repeat(2047), b"x"].concat();
    assert_eq!(long.len(), 4097);
    let setuid = RawEntry { kind: RawKind::File { size: 1, mode: 0o4755 }, ..file_entry(b"n/f", 1) };
    let setgid = RawEntry { kind: RawKind::Directory { mode: 0o2755 }, ..directory_entry(b"n/d") };
    let root = directory_entry(b"n");
    let cases: Vec<(&str, &[u8], Vec<RawEntry<'_>>)> = vec![
        ("path-dotdot", b"..", vec![directory_entry(b".."), file_entry(b"../x", 1)]),
        ("path-dotdot", b"n", vec![root, file_entry(b"n/../../x", 1)]),
        ("path-absolute", b"n", vec![root, file_entry(b"/x", 1)]),
        ("path-empty-component", b"n", vec![root, directory_entry(b"n/a"), file_entry(b"n/a//b", 1)]),
        ("path-dot", b"n", vec![root, directory_entry(b"n/a"), file_entry(b"n/a/./b", 1)]),
        ("path-nul", b"n", vec![root, file_entry(b"n/a\0b", 1)]),
        ("path-empty", b"", vec![file_entry(b"", 1)]),
        ("path-too-long", b"n", vec![root, file_entry(&long, 1)]),
        ("target-outside", b"n", vec![root, symlink_entry(b"n/l", b"../../../../etc/passwd")]),
        ("target-absolute", b"n", vec![root, symlink_entry(b"n/l", b"/etc/passwd")]),
        (
            "through-symlink",
            b"n",
            vec![root, directory_entry(b"n/d"), symlink_entry(b"n/l", b"d"), file_entry(b"n/l/x", 1)],
        ),
        ("duplicate", b"n", vec![root, file_entry(b"n/x", 1), file_entry(b"n/x", 1)]),
        ("inside-file", b"n", vec![root, file_entry(b"n/f", 1), file_entry(b"n/f/x", 1)]),
        ("mode", b"n", vec![root, setuid]),
        ("mode", b"n", vec![root, setgid]),
        ("other-root", b"n", vec![root, file_entry(b"other", 1)]),
        ("parent-missing", b"n", vec![root, file_entry(b"n/a/b", 1)]),
        ("name", b"m", vec![root]),
        ("no-entries", b"n", vec![]),
        ("data-too-long", b"n", vec![root, file_entry(b"n/f", u64::MAX)]),
    ];
    for (number, (rule, name, entries)) in cases.iter().enumerate() {
        let id = 0x1000 + number as u64;
        let files = entries.iter().filter(|entry| matches!(entry.kind, RawKind::File { .. })).count();
        let signer = Signer::Key(&forger.key);
        let bundle = Bundle::by_hand(id, number as u64 + 1, name, entries, vec![b'x'; files], &signer);
        forger.transmit(&bundle, 0);
        let reason = reason(&pair, id);
        assert!(reason.contains(rule), "case {number}, {rule}: the reason is {reason}");
    }
    assert_eq!(outside(&pair).differences(&before), "", "something was written outside");
    assert_eq!(published(&pair), [] as [PathBuf; 0], "something was published");
    assert_eq!(pair.hook_runs().len(), 0, "a hook ran");

    let good = Bundle::file(0x2000, cases.len() as u64 + 1, "good", b"good".to_vec(), &Signer::Key(&forger.key));
    forger.transmit(&good, 0);
    pair.wait_for("an honest bundle after all these", || (pair.hook_runs().len() == 1).then_some(()));
}

#[test]
fn unsigned_wrongly_signed_and_changed_bundles_are_quarantined() {
    require_link!();
    let mut pair = Pair::setup().lay();
    pair.start_receiver();
    let mut forger = Forger::new(&pair, 2);
    let stranger = SigningKey::from_seed([66; 32]);
    let make = |id: u64, signer: &Signer<'_>| Bundle::file(id, id - 0x2fff, "file", b"content".to_vec(), signer);

    for (id, bundle, rule) in [
        (0x3000, make(0x3000, &Signer::Nobody), "unsigned"),
        (0x3001, make(0x3001, &Signer::Key(&stranger)), "unknown-key"),
        (0x3002, make(0x3002, &Signer::Tampered(&forger.key)), "bad-signature"),
    ] {
        forger.transmit(&bundle, 0);
        let reason = reason(&pair, id);
        assert!(reason.contains(rule), "{rule}: the reason is {reason}");
    }

    // A good announce, then data that does not hash to what was signed.
    let mut changed = make(0x3003, &Signer::Key(&forger.key));
    changed.data[0] ^= 1;
    forger.transmit(&changed, 0);
    let reason_given = reason(&pair, 0x3003);
    assert!(reason_given.contains("\"rule\": \"content\""), "the reason is {reason_given}");
    assert!(reason_given.contains("file does not have"), "the reason names the file: {reason_given}");

    // A good announce, and the hashes that go with another one.
    let mut mixed = make(0x3004, &Signer::Key(&forger.key));
    mixed.hashes = Bundle::file(0x3004, 9, "other", b"content".to_vec(), &Signer::Key(&forger.key)).hashes;
    forger.transmit(&mixed, 0);
    let reason_given = reason(&pair, 0x3004);
    assert!(reason_given.contains("other-announce"), "the reason is {reason_given}");

    assert_eq!(pair.hook_runs().len(), 0, "a hook ran");
    assert_eq!(published(&pair), [] as [PathBuf; 0], "something was published");
    for bundle in pair.receiver_status().unwrap().bundles() {
        assert_eq!(bundle.state, "quarantined", "{:#}", bundle.all);
    }
}

#[test]
fn an_entry_that_is_valid_in_every_odd_way_is_accepted() {
    require_link!();
    let mut pair = Pair::setup().lay();
    pair.start_receiver();
    let mut forger = Forger::new(&pair, 3);
    // What the rules allow at their edges: so that the cases above fail for their own rule and nothing else.
    let entries = [
        directory_entry(b"n"),
        RawEntry { path: Bytes(b"n/ ..."), ..file_entry(b"", 3) },
        symlink_entry(b"n/a", b"b/../c").to_owned(),
        directory_entry(b"n/b"),
        symlink_entry(b"n/b/up", b"../a"),
    ];
    // `b/../c` goes up after a name, which is refused; the rest is accepted once it is gone.
    let refused = Bundle::by_hand(0x4000, 1, b"n", &entries, b"abc".to_vec(), &Signer::Key(&forger.key));
    forger.transmit(&refused, 0);
    let given = reason(&pair, 0x4000);
    assert!(given.contains("target-outside"), "the reason is {given}");
    let kept: Vec<RawEntry<'_>> = entries.iter().filter(|entry| entry.path.0 != b"n/a").copied().collect();
    let accepted = Bundle::by_hand(0x4001, 2, b"n", &kept, b"abc".to_vec(), &Signer::Key(&forger.key));
    forger.transmit(&accepted, 0);
    pair.wait_for("the bundle to be installed", || (pair.hook_runs().len() == 1).then_some(()));
    let landed = pair.high.inbox.join("default/00000002/n");
    assert_eq!(std::fs::read(landed.join(" ...")).unwrap(), b"abc");
    assert_eq!(std::fs::read_link(landed.join("b/up")).unwrap(), Path::new("../a"));
}
