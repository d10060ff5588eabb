//! Bundles that no honest sender makes. The receiver quarantines signed manifests that break the rules, ignores objects that
//! nobody or the wrong key signed, and asks again for data that was changed on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use checkvalve_protocol::codec::Bytes;
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::manifest::raw::{RawEntry, RawKind};
use checkvalve_protocol::manifest::{Hashes, Outcome};
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

/// The id of a bundle of this key.
fn id(number: u64, key: &SigningKey) -> BundleId {
    BundleId::new(number, key.public().id())
}

/// How many signed objects were discarded because of this rule.
fn discarded(pair: &Pair, rule: &str) -> u64 {
    let status = pair.receiver_status().expect("the receiver answers");
    status.0["discarded"][rule].as_u64().unwrap_or(0)
}

/// How many datagrams were dropped for this reason.
fn drops(pair: &Pair, reason: &str) -> u64 {
    let status = pair.receiver_status().expect("the receiver answers");
    status.0["link"]["dropped"][reason].as_u64().unwrap_or_else(|| panic!("no count of {reason} in {:#}", status.0))
}

/// Code and text of each alarm.
fn alarms(pair: &Pair) -> Vec<(String, String)> {
    pair.receiver_status().expect("the receiver answers").alarms()
}

/// Waits for the reason why the bundle with this id was refused.
fn reason(pair: &Pair, id: BundleId) -> String {
    let id = id.to_string();
    let found = pair.wait_for(&format!("a reason.json for {id}"), || {
        reasons(pair).into_iter().find(|(path, _)| path.to_string_lossy().contains(&id))
    });
    format!("{:#}", found.1)
}

/// Everything on the high side that the receiver may not write.
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
        let id = id(0x1000 + number as u64, &forger.key);
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

    let (id, signer) = (id(0x2000, &forger.key), Signer::Key(&forger.key));
    let good = Bundle::file(id, cases.len() as u64 + 1, "good", b"good".to_vec(), &signer);
    forger.transmit(&good, 0);
    pair.wait_for("an honest bundle after all these", || (pair.hook_runs().len() == 1).then_some(()));
}

#[test]
fn what_is_not_rightly_signed_changes_nothing() {
    require_link!();
    let mut pair = Pair::setup().lay();
    pair.start_receiver();
    let mut forger = Forger::new(&pair, 2);
    let stranger = SigningKey::from_seed([66; 32]);
    let key = Arc::clone(&forger.key);
    let trusted = || id(0x3000, &key);
    let make = |id: BundleId, signer: &Signer<'_>| Bundle::file(id, 1, "file", b"content".to_vec(), signer);

    for (bundle, rule, dropped) in [
        (make(trusted(), &Signer::Nobody), "unsigned", false),
        (make(trusted(), &Signer::Tampered(&forger.key)), "bad-signature", false),
        (make(trusted(), &Signer::Key(&stranger)), "unknown-key", false),
        (make(id(0x3000, &stranger), &Signer::Key(&stranger)), "unknown-key", true),
        (make(id(0x3000, &stranger), &Signer::Key(&forger.key)), "foreign-bundle", true),
    ] {
        let (before, unwanted) = (discarded(&pair, rule), drops(&pair, "signer"));
        forger.transmit(&bundle, 0);
        pair.wait_for(rule, || (discarded(&pair, rule) > before).then_some(()));
        if dropped {
            pair.wait_for("its data to be dropped", || (drops(&pair, "signer") > unwanted).then_some(()));
        }
    }
    let alarms = alarms(&pair);
    let stranger = stranger.public().id().to_string();
    let about = alarms.iter().find(|(code, _)| code == "unknown-key").unwrap_or_else(|| panic!("{alarms:?}"));
    assert!(about.1.contains(&stranger) && about.1.contains("default/1 (\"file\")"), "{about:?}");

    assert_eq!(reasons(&pair), BTreeMap::new());
    assert_eq!(pair.hook_runs().len(), 0, "a hook ran");
    assert_eq!(published(&pair), [] as [PathBuf; 0], "something was published");
    let status = pair.receiver_status().unwrap();
    assert!(status.bundles().is_empty(), "{:#}", status.0);

    // The forged bundle with the same id does not keep the honest one out.
    forger.transmit(&make(trusted(), &Signer::Key(&forger.key)), 0);
    pair.wait_for("the honest bundle", || (pair.hook_runs().len() == 1).then_some(()));
    assert_eq!(std::fs::read(pair.high.inbox.join("default/00000001/file")).unwrap(), b"content");
}

#[test]
fn what_was_changed_on_the_way_comes_again() {
    require_link!();
    let mut pair = Pair::setup().lay();
    pair.start_receiver();
    let mut forger = Forger::new(&pair, 4);
    let key = Arc::clone(&forger.key);
    let make = |number: u64, sequence: u64, name: &str| {
        Bundle::file(id(number, &key), sequence, name, b"content".to_vec(), &Signer::Key(&key))
    };
    let find = |pair: &Pair, name: &str| pair.receiver_status()?.find("default", name);

    // A good announce, then data that does not hash to what was signed.
    let good = make(0x3003, 1, "file");
    let mut changed = good.clone();
    changed.data[0] ^= 1;
    forger.transmit(&changed, 0);
    let found = pair.wait_for("the wrong data to be thrown away", || {
        find(&pair, "file").filter(|bundle| bundle.all["spoilt"].as_u64() == Some(1))
    });
    assert!(["receiving", "incomplete"].contains(&found.state.as_str()), "{:#}", found.all);
    let alarms = alarms(&pair);
    assert!(alarms.iter().any(|(code, text)| code == "spoilt" && text.contains("default/1")), "{alarms:?}");
    assert_eq!(pair.hook_runs().len(), 0, "a hook ran");
    // The receive threads hear of it ten times a second, long before an operator could ask for it again.
    std::thread::sleep(Duration::from_millis(300));
    forger.transmit(&good, 1);
    pair.wait_for("what was signed", || (pair.hook_runs().len() == 1).then_some(()));
    assert_eq!(std::fs::read(pair.high.inbox.join("default/00000001/file")).unwrap(), b"content");

    // A good announce, and the hashes that go with another one.
    let good = make(0x3004, 2, "mixed");
    let mut mixed = good.clone();
    mixed.hashes = make(0x3004, 9, "other").hashes;
    let before = discarded(&pair, "other-announce");
    forger.transmit(&mixed, 0);
    pair.wait_for("hashes of another announce", || (discarded(&pair, "other-announce") > before).then_some(()));
    let found = find(&pair, "mixed").unwrap();
    assert!(["receiving", "incomplete"].contains(&found.state.as_str()), "{:#}", found.all);
    std::thread::sleep(Duration::from_millis(300));
    forger.transmit(&good, 1);
    pair.wait_for("its own hashes", || (pair.hook_runs().len() == 2).then_some(()));
    assert_eq!(reasons(&pair), BTreeMap::new());
}

#[test]
fn rightly_signed_hashes_that_do_not_fit_are_refused() {
    require_link!();
    let mut pair = Pair::setup().lay();
    pair.start_receiver();
    let mut forger = Forger::new(&pair, 5);
    let mut bundle = Bundle::file(id(0x3005, &forger.key), 1, "file", b"content".to_vec(), &Signer::Key(&forger.key));
    let announce = *blake3::hash(&bundle.announce).as_bytes();
    let hashes = Hashes { bundle: bundle.id, announce, outcome: Outcome::Complete { files: vec![[7; 32]; 2] } };
    bundle.hashes = hashes.sign(&forger.key).unwrap();
    forger.transmit(&bundle, 0);
    let given = reason(&pair, bundle.id);
    assert!(given.contains("\"rule\": \"hash-count\""), "the reason is {given}");
    let found = pair.receiver_status().unwrap().find("default", "file").unwrap();
    assert_eq!((found.state.as_str(), &found.all["code"]), ("quarantined", &Value::from("hash-count")));
    assert_eq!(pair.hook_runs().len(), 0, "a hook ran");
}

#[test]
fn an_entry_that_is_valid_in_every_odd_way_is_accepted() {
    require_link!();
    let mut pair = Pair::setup().lay();
    pair.start_receiver();
    let mut forger = Forger::new(&pair, 3);
    // The extremes that the rules allow. They show that each case above fails because of its own rule only.
    let entries = [
        directory_entry(b"n"),
        RawEntry { path: Bytes(b"n/ ..."), ..file_entry(b"", 3) },
        symlink_entry(b"n/a", b"b/../c").to_owned(),
        directory_entry(b"n/b"),
        symlink_entry(b"n/b/up", b"../a"),
    ];
    // `b/../c` goes up after a name, which is refused. Without it, everything else is accepted.
    let make = |number: u64, sequence: u64, entries: &[RawEntry<'_>]| {
        let (id, signer) = (id(number, &forger.key), Signer::Key(&forger.key));
        Bundle::by_hand(id, sequence, b"n", entries, b"abc".to_vec(), &signer)
    };
    let refused = make(0x4000, 1, &entries);
    let kept: Vec<RawEntry<'_>> = entries.iter().filter(|entry| entry.path.0 != b"n/a").copied().collect();
    let accepted = make(0x4001, 2, &kept);
    forger.transmit(&refused, 0);
    let given = reason(&pair, refused.id);
    assert!(given.contains("target-outside"), "the reason is {given}");
    forger.transmit(&accepted, 0);
    pair.wait_for("the bundle to be installed", || (pair.hook_runs().len() == 1).then_some(()));
    let landed = pair.high.inbox.join("default/00000002/n");
    assert_eq!(std::fs::read(landed.join(" ...")).unwrap(), b"abc");
    assert_eq!(std::fs::read_link(landed.join("b/up")).unwrap(), Path::new("../a"));
}
