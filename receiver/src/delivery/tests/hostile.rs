//! Signed by a trusted key, and hostile all the same.

use checkvalve_protocol::codec::Bytes;
use checkvalve_protocol::manifest::raw::{RawAnnounce, RawEntry, RawHead, RawKind};

use super::*;

fn file(path: &[u8]) -> RawEntry<'_> {
    RawEntry { path: Bytes(path), secs: 0, nanos: 0, kind: RawKind::File { size: 3, mode: 0o644 } }
}

fn directory(path: &[u8]) -> RawEntry<'_> {
    RawEntry { path: Bytes(path), secs: 0, nanos: 0, kind: RawKind::Directory { mode: 0o755 } }
}

fn symlink<'a>(path: &'a [u8], target: &'a [u8]) -> RawEntry<'a> {
    RawEntry { path: Bytes(path), secs: 0, nanos: 0, kind: RawKind::Symlink { target: Bytes(target) } }
}

#[test]
fn no_hostile_manifest_writes_anything_outside() {
    let long = [b"t/".as_slice(), &[b'a'; 4_095]].concat();
    let cases: Vec<(&str, Vec<RawEntry<'_>>)> = vec![
        ("path-dotdot", vec![file(b"../x")]),
        ("path-dotdot", vec![directory(b"t"), file(b"t/../../x")]),
        ("path-absolute", vec![file(b"/x")]),
        ("path-empty-component", vec![directory(b"t"), file(b"t//b")]),
        ("path-dot", vec![directory(b"t"), file(b"t/./b")]),
        ("path-nul", vec![directory(b"t"), file(b"t/a\0b")]),
        ("path-too-long", vec![directory(b"t"), file(&long)]),
        ("path-name-too-long", vec![directory(b"t"), file(&long[..300])]),
        ("target-outside", vec![directory(b"t"), symlink(b"t/a", b"../../x")]),
        ("target-absolute", vec![directory(b"t"), symlink(b"t/a", b"/etc")]),
        ("target-outside", vec![directory(b"t"), symlink(b"t/a", b"b/../../..")]),
        ("through-symlink", vec![directory(b"t"), symlink(b"t/a", b"."), file(b"t/a/b")]),
        ("duplicate", vec![directory(b"t"), file(b"t/a"), file(b"t/a")]),
        ("inside-file", vec![directory(b"t"), file(b"t/a"), file(b"t/a/b")]),
        ("mode", vec![RawEntry { kind: RawKind::File { size: 3, mode: 0o4755 }, ..file(b"t") }]),
    ];
    for (rule, entries) in cases {
        let bench = Bench::new();
        let delivery = bench.open();
        let name = if entries.len() == 1 { entries[0].path } else { Bytes(b"t") };
        let head = RawHead {
            bundle: own(1).0,
            channel: "default",
            sequence: 1,
            name,
            created_ms: 0,
            symbol_size: 64,
            block_symbols: 8,
        };
        let payload = RawAnnounce { head, entries }.encode();
        let announce = signed::seal(signed::ANNOUNCE, &payload, &key());
        manifest(&delivery, own(1), ObjectKind::Announce, &announce).unwrap();
        let sample = Sample::file(1, 1, 3);
        data(&delivery, &sample, 0..1).unwrap();
        hashes(&delivery, &sample).unwrap();
        work(&delivery);
        let found = bench.reason(&sample);
        assert_eq!(found["rule"], rule, "{found}");
        assert_eq!(state(&delivery, &sample), Some(State::Quarantined));
        assert!(!bench.settings.inbox.join("default").exists());
        assert!(!Path::new("/x").exists());
        bench.assert_contained();
    }
}

#[test]
fn a_name_that_is_hostile_to_logs_and_paths_is_kept_as_it_is() {
    let name = "-rf \u{1b}[31m\n\"'$(id) é";
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let kind = checkvalve_protocol::manifest::EntryKind::File { size: 3, mode: 0o600 };
    let sample = Sample::new(1, 1, name, vec![crate::testing::entry(name, kind)]);
    send(&delivery, &sample);
    sample.assert_at(&bench.inbox(1));
    let due = delivery.due_hooks(0);
    assert_eq!(crate::hook::path(&due[0]), bench.inbox(1).join(name));
    assert!(!delivery.status(0).bundles[0].name.contains(['\n', '\u{1b}']));
}

#[test]
fn refused_bundles_cannot_fill_the_quarantine() {
    let bench = Bench::new();
    let delivery = bench.open();
    for id in 0..crate::ledger::REFUSED as u64 + 20 {
        // Rightly signed, and of no entries.
        let (bundle, symbol_size, block_symbols) = (own(1_000 + id), 64, 8);
        let head = RawHead {
            bundle: bundle.0,
            channel: "default",
            sequence: 7,
            name: Bytes(b"t"),
            created_ms: 0,
            symbol_size,
            block_symbols,
        };
        let payload = RawAnnounce { head, entries: Vec::<RawEntry<'_>>::new() }.encode();
        manifest(&delivery, bundle, ObjectKind::Announce, &signed::seal(signed::ANNOUNCE, &payload, &key())).unwrap();
    }
    let kept = std::fs::read_dir(bench.settings.quarantine.join("default")).unwrap().count();
    assert_eq!(kept, crate::ledger::REFUSED);
    assert!(delivery.noted(0).iter().any(|alarm| alarm.code == alarms::Code::QuarantineFull));
    let sample = Sample::file(1, 1, 100);
    send(&delivery, &sample);
    sample.assert_at(&bench.inbox(1));
}

#[test]
fn what_is_refused_and_then_comes_rightly_cannot_fill_the_quarantine() {
    let bench = Bench::new();
    let delivery = bench.open();
    announce(&delivery, &Sample::file(1, 1, 100)).unwrap();
    let kept = || std::fs::read_dir(bench.settings.quarantine.join("default")).unwrap().count();
    let most = crate::ledger::REFUSED as u64;
    let new = |n| crate::ledger::Entry::new(own(5_000 + n), 0);
    let wrong = |n| {
        let mut entry: crate::ledger::Entry = new(n);
        (entry.channel, entry.sequence) = (Some(default_channel()), n);
        entry
    };
    for n in 2..most + 50 {
        delivery.ledger.lock().refused(wrong(n));
        delivery.refusing.quarantine(own(5_000 + n), &refusing::Refusal::new("path-empty", ""), Some(b"announce"));
        announce(&delivery, &Sample::file(n, n, 100)).unwrap();
        assert!(delivery.ledger.lock().entry(own(5_000 + n)).is_none(), "it gave way");
    }
    assert_eq!(kept() as u64, most);
    while delivery.forgetting.prune() {}
    assert_eq!(kept(), 0);
}

#[test]
fn another_announce_of_the_same_bundle_changes_nothing() {
    let bench = Bench::new();
    let first = Sample::file(1, 1, 2_000);
    let other = Sample::file(1, 2, 2_000);
    {
        let delivery = bench.open();
        announce(&delivery, &first).unwrap();
        work(&delivery);
        let path = delivery.store.get(first.id()).unwrap().object(ObjectKind::Announce);
        drop(delivery);
        std::fs::remove_file(path).unwrap();
    }
    let delivery = bench.open();
    assert!(matches!(announce(&delivery, &other), Err(StoreError::Refused)));
    assert_eq!(state(&delivery, &first), Some(State::Receiving));
    send(&delivery, &first);
    first.assert_at(&bench.inbox(1));
}

#[test]
fn what_a_key_left_unfinished_gives_way_to_what_another_sends() {
    let mut bench = Bench::new();
    bench.settings.space.quota = 1 << 20;
    let delivery = bench.open();
    let neighbour = SigningKey::from_seed([9; 32]);
    let mut trusted = trust();
    assert!(trusted.insert(neighbour.public(), "neighbour"));
    delivery.set_trust(Trust::new(trusted), 1_000).unwrap();
    delivery.tick(1_000);
    let left: Vec<Sample> = (1..=3)
        .map(|n| {
            let mut sample = Sample::file(n, n, 200_000);
            sample.announce.bundle = BundleId::new(n, neighbour.public().id());
            let signed = sample.announce.sign(&neighbour).unwrap();
            manifest(&delivery, sample.id(), ObjectKind::Announce, &signed).unwrap();
            work(&delivery);
            data(&delivery, &sample, 0..sample.oti().blocks()).unwrap();
            delivery.tick(1_000 + n);
            sample
        })
        .collect();
    work(&delivery);
    let stored = |sample: &Sample| delivery.store.get(sample.id()).map_or(0, |staged| staged.fill().1);
    let honest = Sample::file(4, 4, 500_000);
    let bring = || {
        announce(&delivery, &honest).unwrap();
        work(&delivery);
        drop(data(&delivery, &honest, 0..honest.oti().blocks()));
    };
    // What is on its way stays, whoever sends it.
    delivery.tick(5_000);
    bring();
    delivery.tick(5_300);
    assert!(left.iter().all(|sample| stored(sample) > 0));
    // It does not come any more: the newest goes, and no more than that.
    delivery.tick(20_000);
    bring();
    delivery.tick(20_300);
    assert_eq!(left.iter().map(|sample| stored(sample) > 0).collect::<Vec<_>>(), [true, true, false]);
    assert!(reason(&delivery, &left[2]).contains("bundles of another key"), "{}", reason(&delivery, &left[2]));
    delivery.tick(20_600);
    send(&delivery, &honest);
    honest.assert_at(&bench.inbox(4));
    assert_eq!(left.iter().filter(|sample| stored(sample) > 0).count(), 2);
    // One key does not make room for itself, nor from what is not beyond its share.
    delivery.tick(40_000);
    let second = Sample::file(5, 5, 900_000);
    announce(&delivery, &second).unwrap();
    work(&delivery);
    drop(data(&delivery, &second, 0..second.oti().blocks()));
    delivery.tick(40_300);
    assert_eq!(left.iter().filter(|sample| stored(sample) > 0).count(), 2, "half of the quota is theirs");
}
