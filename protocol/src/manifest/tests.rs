use std::collections::HashMap;

use super::*;
use crate::codec::CodecError;
use crate::limits::{MAX_ENTRIES, MAX_TRANSFER_LENGTH};
use crate::path::PathError;

const FILE: EntryKind = EntryKind::File { size: 5, mode: 0o644 };
const DIR: EntryKind = EntryKind::Directory { mode: 0o755 };

fn key() -> SigningKey {
    SigningKey::from_seed([7; 32])
}

fn trust() -> TrustStore {
    let mut trust = TrustStore::new();
    trust.insert(key().public(), "build farm");
    trust
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry { path: SafePath::new(path).unwrap(), mtime: Timestamp { secs: -1, nanos: 999_999_999 }, kind }
}

fn link(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::Symlink { target: LinkTarget::new(&SafePath::new(path).unwrap(), target).unwrap() })
}

fn announce(entries: Vec<Entry>) -> Announce {
    Announce {
        bundle: BundleId(0x0123_4567_89ab_cdef),
        channel: ChannelName::new("default").unwrap(),
        sequence: 7,
        name: entries.first().map(|e| e.path.as_bytes().to_vec()).unwrap_or_default(),
        created_ms: 1_700_000_000_000,
        symbol_size: 1_408,
        block_symbols: 128,
        entries: entries.into(),
    }
}

fn tree() -> Announce {
    announce(vec![
        entry("t", DIR),
        entry("t/a", DIR),
        entry("t/a/b\n'\u{1b}é", FILE),
        link("t/a/up", "../z"),
        entry("t/empty", EntryKind::Directory { mode: 0 }),
        entry("t/nothing", EntryKind::File { size: 0, mode: 0o600 }),
        entry("t/z", EntryKind::File { size: 1 << 40, mode: 0o777 }),
    ])
}

fn broken(entries: Vec<Entry>) -> (usize, EntryError) {
    match announce(entries).check() {
        Err(ManifestError::Entry { index, error }) => (index, error),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_announce_reads_what_it_writes() {
    for announce in [tree(), announce(vec![entry("f", FILE)]), announce(vec![entry("d", DIR)])] {
        let bytes = announce.sign(&key()).unwrap();
        let opened = Announce::open(&bytes, &trust()).unwrap();
        assert_eq!(opened.value, announce);
        assert_eq!((opened.signer, opened.signer_name.as_str()), (key().public().id(), "build farm"));
        assert_eq!(opened.digest, *blake3::hash(&bytes).as_bytes());
        assert_eq!(Announce::peek(&bytes).as_ref(), Ok(&announce));
        let head = Announce::peek_head(&bytes).unwrap();
        assert_eq!((head.bundle, head.sequence, head.name), (announce.bundle, 7, announce.name));
    }
}

#[test]
fn files_lie_end_to_end_in_the_data_object() {
    let spans: Vec<_> = tree().files().map(|f| (f.entry, f.offset, f.size)).collect();
    assert_eq!(spans, [(2, 0, 5), (5, 5, 0), (6, 5, 1 << 40)]);
    assert_eq!(tree().data_len(), (1 << 40) + 5);
}

#[test]
fn hashes_belong_to_one_announce() {
    let announce = Announce::open(&tree().sign(&key()).unwrap(), &trust()).unwrap();
    let open = |hashes: &Hashes, key: &SigningKey| {
        let mut trust = trust();
        trust.insert(key.public(), "other");
        Hashes::open(&hashes.sign(key).unwrap(), &trust).unwrap()
    };
    let files = vec![[1; 32], [2; 32], [3; 32]];
    let outcome = Outcome::Complete { files };
    let good = Hashes { bundle: announce.value.bundle, announce: announce.digest, outcome };
    let opened = open(&good, &key());
    assert_eq!((&opened.value, opened.belongs_to(&announce)), (&good, Ok(())));
    let withdrawn = Hashes { outcome: Outcome::withdrawn("t/z: vanished"), ..good.clone() };
    assert_eq!(open(&withdrawn, &key()).belongs_to(&announce), Ok(()));

    let other = Hashes { bundle: BundleId(1), ..good.clone() };
    assert_eq!(open(&other, &key()).belongs_to(&announce), Err(ManifestError::OtherBundle));
    let other = Hashes { announce: [0; 32], ..good.clone() };
    assert_eq!(open(&other, &key()).belongs_to(&announce), Err(ManifestError::OtherAnnounce));
    let stranger = SigningKey::from_seed([8; 32]);
    let error = ManifestError::OtherSigner(stranger.public().id());
    assert_eq!(open(&good, &stranger).belongs_to(&announce), Err(error));
    let fewer = Hashes { outcome: Outcome::Complete { files: vec![[1; 32]; 2] }, ..good };
    let error = ManifestError::HashCount { hashes: 2, files: 3 };
    assert_eq!(open(&fewer, &key()).belongs_to(&announce), Err(error));
}

#[test]
fn a_reason_is_cut_at_a_character() {
    let Outcome::Withdrawn { reason } = Outcome::withdrawn(&"é".repeat(1_000)) else { panic!() };
    assert_eq!(reason, "é".repeat(512));
    let long = Outcome::Withdrawn { reason: "x".repeat(MAX_REASON_LEN + 1) };
    let hashes = Hashes { bundle: BundleId(1), announce: [0; 32], outcome: long };
    assert_eq!(hashes.sign(&key()), Err(ManifestError::ReasonTooLong(MAX_REASON_LEN + 1)));
}

#[test]
fn only_a_trusted_key_in_its_role_is_believed() {
    let bytes = tree().sign(&key()).unwrap();
    let payload = signed::parse(&bytes).unwrap().payload.to_vec();
    let open = |bytes: &[u8]| Announce::open(bytes, &trust()).unwrap_err();
    assert_eq!(open(&signed::seal_unsigned(&payload)), ManifestError::Unsigned);
    let stranger = SigningKey::from_seed([8; 32]);
    let error = ManifestError::UnknownKey(stranger.public().id());
    assert_eq!(open(&signed::seal(signed::ANNOUNCE, &payload, &stranger)), error);
    assert_eq!(open(&signed::seal(signed::HASHES, &payload, &key())), ManifestError::BadSignature);
    let hashes = Hashes { bundle: BundleId(1), announce: [0; 32], outcome: Outcome::withdrawn("") };
    let hashes = hashes.sign(&key()).unwrap();
    assert_eq!(open(&hashes), ManifestError::BadSignature);
    assert_eq!(Hashes::open(&bytes, &trust()), Err(ManifestError::BadSignature));
    let named_otherwise = [signed::MAGIC.as_slice(), &[0; 8], &bytes[12..]].concat();
    assert_eq!(open(&named_otherwise), ManifestError::UnknownKey(KeyId([0; 8])));
}

#[test]
fn no_bit_may_change_and_no_byte_be_missing() {
    let bytes = tree().sign(&key()).unwrap();
    for bit in 0..8 * bytes.len() {
        let mut forged = bytes.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(Announce::open(&forged, &trust()).is_err(), "bit {bit}");
        let _ = Announce::peek(&forged);
        let _ = Announce::peek_head(&forged);
    }
    let payload = signed::parse(&bytes).unwrap().payload;
    for len in 0..bytes.len() {
        assert!(Announce::open(&bytes[..len], &trust()).is_err());
    }
    for len in 0..payload.len() {
        let cut = signed::seal(signed::ANNOUNCE, &payload[..len], &key());
        assert_eq!(Announce::open(&cut, &trust()), Err(CodecError::Truncated.into()), "{len}");
    }
    let longer = signed::seal(signed::ANNOUNCE, &[payload, &[0]].concat(), &key());
    assert_eq!(Announce::open(&longer, &trust()), Err(CodecError::Trailing(1).into()));
    assert_eq!(
        Announce::open(&vec![0; MAX_MANIFEST_LEN + 1], &trust()),
        Err(ManifestError::TooLong(MAX_MANIFEST_LEN + 1))
    );
}

/// A trusted key can sign anything: whatever is decoded holds by the rules, and is encoded again as it was.
#[test]
fn a_forged_payload_is_refused_or_sound() {
    let bytes = tree().sign(&key()).unwrap();
    let payload = signed::parse(&bytes).unwrap().payload;
    let mut accepted = 0;
    for at in 0..payload.len() {
        for value in 0..=255 {
            let mut forged = payload.to_vec();
            forged[at] = value;
            if let Ok(read) = Announce::peek(&signed::seal_unsigned(&forged)) {
                assert_eq!(read.check(), Ok(()));
                let again = read.sign(&key()).unwrap();
                assert_eq!(Announce::peek(&again), Ok(read));
                accepted += 1;
            }
        }
    }
    assert!(accepted > 1_000, "{accepted}");
}

#[test]
fn a_tree_has_one_root_and_every_directory_is_listed() {
    let root = entry("t", DIR);
    let cases = [
        (vec![root.clone(), entry("t/a/b", FILE)], 1, EntryError::ParentMissing),
        (vec![root.clone(), entry("t/a", DIR), entry("t/b/c", FILE)], 2, EntryError::ParentMissing),
        (vec![root.clone(), entry("t/a", DIR), entry("t/a/b/c", FILE)], 2, EntryError::ParentMissing),
        (vec![root.clone(), entry("t/a", FILE), entry("t/a/b", FILE)], 2, EntryError::InsideFile),
        (vec![root.clone(), entry("t/a", FILE), entry("t/a/b/c", FILE)], 2, EntryError::InsideFile),
        (vec![entry("t", FILE), entry("t/a", FILE)], 1, EntryError::InsideFile),
        (vec![root.clone(), link("t/l", "."), entry("t/l/x", FILE)], 2, EntryError::ThroughSymlink),
        (vec![root.clone(), link("t/l", "."), entry("t/l/x/y", FILE)], 2, EntryError::ThroughSymlink),
        (vec![root.clone(), entry("u", FILE)], 1, EntryError::OtherRoot),
        (vec![root.clone(), entry("t!/a", FILE)], 1, EntryError::OtherRoot),
        (vec![root.clone(), root.clone()], 1, EntryError::Duplicate),
        (vec![root.clone(), entry("t/a", FILE), link("t/a", ".")], 2, EntryError::Duplicate),
        (vec![root.clone(), entry("t/a", FILE), entry("t/b", FILE), entry("t/a", FILE)], 3, EntryError::Order),
        (vec![root.clone(), entry("t/b", FILE), entry("t/a", FILE)], 2, EntryError::Order),
        (vec![root.clone(), entry("t/a", FILE), root.clone()], 2, EntryError::Order),
    ];
    for (entries, index, error) in cases {
        assert_eq!(broken(entries.clone()), (index, error), "{entries:?}");
    }
}

#[test]
fn an_entry_holds_by_itself() {
    for mode in [0o1000, 0o2000, 0o4000, 0o4755, 0o10_644, u16::MAX] {
        let file = EntryKind::File { size: 0, mode };
        assert_eq!(broken(vec![entry("t", file)]), (0, EntryError::Mode(mode)));
        assert_eq!(broken(vec![entry("t", EntryKind::Directory { mode })]), (0, EntryError::Mode(mode)));
    }
    let mut late = entry("t", DIR);
    late.mtime.nanos = 1_000_000_000;
    assert_eq!(broken(vec![late]), (0, EntryError::Nanos(1_000_000_000)));
    let deep = LinkTarget::new(&SafePath::new("t/a/b/l").unwrap(), "../..").unwrap();
    let moved = entry("t/l", EntryKind::Symlink { target: deep.clone() });
    assert_eq!(broken(vec![entry("t", DIR), moved]), (1, EntryError::Target(PathError::Outside)));
    let root = entry("t", EntryKind::Symlink { target: deep });
    assert_eq!(broken(vec![root]), (0, EntryError::Target(PathError::Outside)));
}

#[test]
fn the_whole_holds_together() {
    let with = |change: fn(&mut Announce)| {
        let mut announce = tree();
        change(&mut announce);
        announce.sign(&key()).unwrap_err()
    };
    assert_eq!(with(|a| a.sequence = 0), ManifestError::SequenceZero);
    assert_eq!(with(|a| a.entries = Entries::new()), ManifestError::NoEntries);
    assert_eq!(with(|a| a.name = b"u".to_vec()), ManifestError::Name);
    assert_eq!(with(|a| a.name.clear()), ManifestError::Name);
    assert_eq!(with(|a| a.entries = a.entries.iter().skip(1).map(EntryRef::to_entry).collect()), ManifestError::Name);
    assert_eq!(announce(vec![entry("t/a", FILE)]).check(), Err(ManifestError::Name));
    let sized = |sizes: &[u64]| {
        let files = sizes.iter().zip(["t/a", "t/b", "t/c"]);
        let files = files.map(|(&size, path)| entry(path, EntryKind::File { size, mode: 0 }));
        announce([entry("t", DIR)].into_iter().chain(files).collect()).check()
    };
    assert_eq!(sized(&[MAX_TRANSFER_LENGTH - 1, 0, 1]), Ok(()));
    assert_eq!(sized(&[MAX_TRANSFER_LENGTH, 1]), Err(ManifestError::DataTooLong));
    assert_eq!(sized(&[u64::MAX, 1]), Err(ManifestError::DataTooLong));
    assert_eq!(sized(&[u64::MAX, u64::MAX, 2]), Err(ManifestError::DataTooLong));
}

#[test]
fn declared_counts_reserve_nothing() {
    let mut payload = raw::RawAnnounce { head: head(), entries: Vec::<raw::RawEntry<'_>>::new() }.encode();
    // The number of entries, and that of extensions.
    payload.truncate(payload.len() - 2);
    for declared in [MAX_ENTRIES as u64, MAX_ENTRIES as u64 + 1, u64::from(u32::MAX), u64::MAX] {
        let forged = [payload.clone(), codec::encode(&declared)].concat();
        let error = Announce::peek(&signed::seal_unsigned(&forged)).unwrap_err();
        let expected =
            if declared > MAX_ENTRIES as u64 { ManifestError::TooManyEntries } else { CodecError::Truncated.into() };
        assert_eq!(error, expected, "{declared}");
    }
}

fn head() -> raw::RawHead<'static> {
    let (symbol_size, block_symbols) = (64, 8);
    raw::RawHead {
        bundle: 1,
        channel: "default",
        sequence: 1,
        name: Bytes(b"t"),
        created_ms: 0,
        symbol_size,
        block_symbols,
    }
}

/// The one-pass walk agrees with looking every path up in a table, on trees made at random and then spoiled.
#[test]
fn the_walk_agrees_with_a_table() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % n as u64).unwrap()
    };
    let (mut sound, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut entries = vec![entry("t", DIR)];
        for _ in 0..below(7) {
            let depth = 1 + below(3);
            let parts: Vec<_> = (0..depth).map(|_| ["a", "b", "a!", "a\u{1}"][below(4)]).collect();
            let kind = [FILE, DIR, DIR, DIR][below(4)].clone();
            let path = format!("t/{}", parts.join("/"));
            entries.push(if below(9) == 0 { link(&path, ".") } else { entry(&path, kind) });
        }
        if below(4) != 0 {
            entries.sort_by(|a, b| a.path.cmp(&b.path));
        }
        if below(3) != 0 {
            entries.dedup_by(|a, b| a.path == b.path);
        }
        let kinds: HashMap<_, _> = entries.iter().map(|e| (e.path.clone(), e.kind.clone())).collect();
        let parents = entries.iter().skip(1).all(|e| {
            let parent = e.path.parent().and_then(|p| kinds.get(&p));
            matches!(parent, Some(EntryKind::Directory { .. }))
        });
        let table = kinds.len() == entries.len() && parents && entries.is_sorted_by(|a, b| a.path < b.path);
        let walk = announce(entries.clone()).check();
        assert_eq!(walk.is_ok(), table, "{walk:?} {entries:?}");
        if table { sound += 1 } else { refused += 1 }
    }
    assert!(sound > 1_000 && refused > 1_000, "{sound} {refused}");
}
