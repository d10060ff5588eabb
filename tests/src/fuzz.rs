//! Whatever reads bytes from outside, given any bytes at all: it may refuse them, and it may not panic, hold more memory than
//! it was given, or accept what is against its own rules.
//!
//! A test gives each of these the vectors, bent in many ways (`tests/tests/fuzz.rs`); libFuzzer searches on from there
//! (`tests/fuzz.sh`). A datagram, an announce or hashes are given here as who holds the keys could make them: what is not
//! authentic never gets further than its tag.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use checkvalve_protocol::admit::{Trust, Verdict, admit};
use checkvalve_protocol::beacon::{Beacon, MIN_BEACON_LEN};
use checkvalve_protocol::crypto::{LinkKey, PublicKey, SigningKey, TrustStore};
use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::limits::{HEADER_LEN, MAX_BEACON_LEN};
use checkvalve_protocol::manifest::{Announce, EntryKind, Hashes, signed};
use checkvalve_protocol::partition::{BlockSet, Oti};
use checkvalve_protocol::path::{PathRef, SafePath};
use checkvalve_protocol::receive::{DropReason, Limits, Origin, Reassembly, Sent, Wanted, recover};
use checkvalve_protocol::seal::{Opener, Sealer};
use checkvalve_protocol::ticket::{Data, Loss, Need, Subject, Ticket};
use checkvalve_protocol::time::Time;
use checkvalve_protocol::wire::{Content, Header, ObjectKind, Symbol, VERSION};

use crate::rng::Rng;

/// Something that reads bytes from outside.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Reads the bytes. Panics if an invariant is violated.
    pub read: fn(&[u8]),
    /// The folder or file of vectors to begin with.
    pub vectors: &'static str,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "datagrams", read: datagrams, vectors: "datagram" },
    Target { name: "announce", read: announce, vectors: "manifest" },
    Target { name: "hashes", read: hashes, vectors: "manifest" },
    Target { name: "beacon", read: beacon, vectors: "beacon" },
    Target { name: "ticket", read: ticket, vectors: "ticket" },
    Target { name: "keys", read: keys, vectors: "keys.toml" },
    Target { name: "paths", read: paths, vectors: "paths.toml" },
    Target { name: "records", read: records, vectors: "datagram" },
];

impl Target {
    /// The target of that name.
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.iter().copied().find(|target| target.name == name)
    }

    /// The seeds to begin with: the vectors, and some arbitrary bytes.
    ///
    /// # Panics
    /// When the vectors cannot be read.
    pub fn seeds(self) -> Vec<Vec<u8>> {
        let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/vectors").join(self.vectors);
        let mut files = vec![vectors.clone()];
        if vectors.is_dir() {
            files = fs::read_dir(vectors)
                .expect("a folder of vectors")
                .map(|file| file.expect("a vector").path())
                .collect();
            files.sort();
        }
        let mut seeds = vec![Vec::new(), vec![0; 300], Rng::new(1).bytes(2_000)];
        for file in files {
            let text = fs::read_to_string(&file).expect("a vector is text");
            let table: toml::Table = text.parse().expect("a vector is TOML");
            if self.name == "paths" {
                seeds.extend(
                    strings(&toml::Value::Table(table.clone())).iter().map(|to| format!("a/b/link\n{to}").into_bytes()),
                );
            }
            match (table.get("hex").and_then(toml::Value::as_str), table.get("text").and_then(toml::Value::as_str)) {
                (Some(hex), _) => seeds.push(self.seed(&unhex(hex))),
                (_, Some(text)) => seeds.push(text.as_bytes().to_vec()),
                _ => seeds.extend(strings(&toml::Value::Table(table)).into_iter().map(String::into_bytes)),
            }
        }
        seeds
    }

    /// A vector in the form that the target reads.
    fn seed(self, vector: &[u8]) -> Vec<u8> {
        match self.name {
            "datagrams" => [&[TAKE], vector].concat(),
            // Only the signed payload.
            "announce" | "hashes" | "beacon" => vector.get(signed::PREFIX_LEN..).unwrap_or_default().to_vec(),
            // The mark, the place, then bytes for the checksum, the present symbols, and their data.
            "records" => [&[0; 8], vector.get(..HEADER_LEN).unwrap_or_default(), &[1; 2_000]].concat(),
            _ => vector.to_vec(),
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default() as u8;
    digits.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn strings(value: &toml::Value) -> Vec<String> {
    match value {
        toml::Value::String(text) => vec![text.clone()],
        toml::Value::Array(all) => all.iter().flat_map(strings).collect(),
        toml::Value::Table(table) => table.values().flat_map(strings).collect(),
        _ => Vec::new(),
    }
}

/// Bytes that are taken from the front as they are needed, zeros when there are none left.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let some = self.some(N);
        out[..some.len()].copy_from_slice(some);
        out
    }

    fn some(&mut self, most: usize) -> &'a [u8] {
        let (some, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        some
    }

    fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }
}

/// First byte of a step of [`datagrams`] whose rest is a datagram.
const TAKE: u8 = 0;

/// Bytes that the receiver may hold in [`datagrams`], objects that it may know of bundles that somebody signed for, and of others, and
/// blocks that it may have under way.
const MEMORY: u64 = 64 << 10;
const OBJECTS: usize = 4;
const UNSIGNED: usize = 2;
const BLOCKS: usize = 16;

/// A receiver, and what it is asked to do: each step is a byte that says what, and what is needed for it.
///
/// It holds no more than its memory and one block, knows no more objects than it may, and only gives out blocks that have enough
/// symbols or were taken out on purpose.
fn datagrams(bytes: &[u8]) {
    let limits = Limits {
        objects: OBJECTS,
        unsigned_objects: UNSIGNED,
        announces: UNSIGNED,
        open_blocks: BLOCKS,
        idle: Duration::from_secs(2),
        ask_again: Duration::from_secs(1),
        ..Limits::new(MEMORY)
    };
    let (mut input, mut now, mut counter) = (Input(bytes), Time::ZERO, 0);
    let (mut receiver, mut opener, plans) = (Reassembly::new(limits), Opener::new(None), Plans::new());
    let sealer = Sealer::new(None, SessionId(7));
    let mut want = |symbol: &Symbol| match symbol.bundle.0 {
        5 => Wanted::No(DropReason::Refused),
        1 => Wanted::Yes {
            have: std::iter::once(0..symbol.sbn).collect(),
            parked: vec![(symbol.sbn, 1)],
            origin: Origin::Signed,
        },
        // Some bundles are unsigned until they are vouched for.
        other => {
            let origin =
                [Origin::Signed, Origin::Named, Origin::Unknown][(other.saturating_sub(2) / 2).min(2) as usize];
            Wanted::Yes { have: BlockSet::new(), parked: Vec::new(), origin }
        }
    };
    while !input.0.is_empty() {
        match input.byte() {
            TAKE => {
                let len = input.0.len();
                let _ = receiver.take(now, &mut opener, &mut input.some(len).to_vec());
            }
            1..=239 => {
                let [bundle, sbn, esi] = input.bytes();
                // One object per bundle, mostly with many blocks. For small blocks, some repair symbols come first.
                let (size, most) = (64 << (bundle % 6 / 2), u16::from(bundle % 6) * 6 + 2);
                let length = if bundle % 6 == 0 { 700 } else { 1 << 20 };
                let oti = Oti::new(length, size, most).expect("a possible object");
                let kind = [ObjectKind::Data, ObjectKind::Data, ObjectKind::Announce, ObjectKind::Hashes];
                let symbol = Symbol {
                    bundle: BundleId(u64::from(bundle % 6)),
                    kind: kind[usize::from(bundle % 4)],
                    sbn: u32::from(sbn) % oti.blocks(),
                    esi: u32::from(esi) % (2 * u32::from(most)),
                    oti,
                };
                let esi = symbol.esi;
                counter += 1;
                let header = Header { sealed: false, session: SessionId(7), counter, content: Content::Symbol(symbol) };
                // All symbols of one place must have the same bytes, or the decoder would rightly find contradictions.
                let payload = vec![u8::from(esi != 0); usize::from(size)];
                let mut datagram = vec![0; sealer.datagram_len(payload.len())];
                sealer.seal(&header, &payload, &mut datagram);
                let _ = receiver.take(now, &mut opener, &mut datagram);
            }
            240..=241 => receiver.forget(BundleId(input.byte().into())),
            242..=243 => receiver.vouch(now, BundleId(input.byte().into())),
            244..=245 => {
                let by = BundleId(input.byte().into()).tag();
                receiver.sent(SessionId(7), Sent { by, datagrams: u64::from_be_bytes(input.bytes()) });
            }
            246..=247 => receiver.park_all(),
            _ => {
                now = now + Duration::from_millis(u64::from(input.byte()) * 20);
                receiver.handle_timeout(now);
            }
        }
        // Most are answered at once; some wait while other things happen.
        if counter % 8 != 7 {
            receiver.answer_all(now, &mut want);
        }
        while let Some(mut block) = receiver.poll_complete() {
            assert!(
                block.received() >= u32::from(block.symbols()) || block.has_parked(),
                "{block:?} came out too early"
            );
            match input.byte() % 5 {
                0 => receiver.failed(now, block),
                1 => receiver.undecodable(now, block),
                2 => receiver.discarded(block),
                _ if block.has_parked() || block.decode(&plans).is_err() => receiver.undecodable(now, block),
                _ => {
                    assert_eq!(Some(block.data().len()), block.oti().block_len(block.sbn()));
                    receiver.stored(block);
                }
            }
        }
        while let Some(block) = receiver.poll_parked() {
            let symbols = u32::try_from(block.received_symbols().count()).expect("a block is small");
            if input.byte().is_multiple_of(2) { receiver.parked(now, block, symbols) } else { receiver.recycle(block) }
        }
        while receiver.poll_expired().is_some() {}
        let most = MEMORY + 32 * 256 + (HEADER_LEN as u64 + 256) * 8;
        let usage = receiver.usage();
        assert!(receiver.memory() <= most, "it holds {} bytes", receiver.memory());
        assert!(usage.unsigned_memory <= usage.memory, "{usage:?}");
        assert!(usage.unsigned_objects <= 2 * UNSIGNED, "it knows too many objects that nobody signed for: {usage:?}");
        // The objects of a vouched bundle were known already.
        assert!(usage.objects <= OBJECTS + 4 * UNSIGNED, "it knows too many objects: {usage:?}");
        assert!(usage.open_blocks <= BLOCKS, "too many blocks are under way: {usage:?}");
        for tally in receiver.tally() {
            assert!(tally.received <= tally.sent && tally.longest_burst <= tally.sent, "{tally:?}");
        }
    }
}

/// The key that the vectors' receiver trusts, so that the bundles in them are its own.
fn signer() -> (SigningKey, TrustStore) {
    let key = SigningKey::from_seed(*b"tttttttttttttttttttttttttttttttt");
    let mut trust = TrustStore::new();
    trust.insert(key.public(), "fuzz");
    (key, trust)
}

/// The payload of an announce, signed. One that is accepted keeps its own rules, and is the same when signed again.
fn announce(bytes: &[u8]) {
    let (key, trust) = signer();
    let _ = Announce::open(bytes, &trust);
    let _ = Announce::peek_head(bytes);
    let sealed = signed::seal(signed::ANNOUNCE, bytes, &key);
    assert_eq!(Announce::peek(&sealed).ok(), Announce::open(&sealed, &trust).ok().map(|opened| opened.value));
    counts(&sealed, &trust);
    let Ok(opened) = Announce::open(&sealed, &trust) else { return };
    let announce = opened.value;
    announce.check().expect("what was opened keeps the rules");
    let again = announce.sign(&key).expect("what was opened can be signed");
    assert_eq!(Announce::open(&again, &trust).expect("and opened again").value, announce);
    let mut end = 0;
    for span in announce.files() {
        assert_eq!(span.offset, end, "files lie one behind the other");
        end += span.size;
    }
    assert_eq!(end, announce.data_len());
    let mut directories = BTreeSet::new();
    for entry in &announce.entries {
        assert_eq!(entry.path.root(), announce.name, "everything is in the bundle");
        let parent = entry.path.parent_bytes();
        assert!(parent.is_none_or(|parent| directories.contains(parent)), "its directory comes first, and is one");
        if matches!(entry.kind, EntryKind::Directory { .. }) {
            directories.insert(entry.path.as_bytes().to_vec());
        }
        if let EntryKind::Symlink { target } = &entry.kind {
            stays_inside(entry.path, target.as_bytes());
        }
    }
}

/// Whether a receiver believes an announce: only what can be opened, under its own id, by the key of that id; what is unsigned never.
fn counts(sealed: &[u8], trust: &TrustStore) {
    let believed = Trust::new(trust.clone());
    let head = Announce::peek_head(sealed).ok();
    let bundle = head.map_or(BundleId(0), |head| head.bundle);
    let named = trust.by_tag(bundle.tag()).is_some();
    match (Announce::open(sealed, trust), admit(bundle, sealed, None, &believed)) {
        (Ok(opened), Ok(admitted)) => {
            assert!(named && admitted.outcome.is_none());
            assert_eq!(admitted.announce, opened);
        }
        (Err(error), Err(Verdict::Refuse { error: found, .. })) => {
            assert!(named);
            assert_eq!(error, found);
        }
        (_, Err(Verdict::Discard(_))) => assert!(!named, "it is of the key that signed it"),
        (opened, verdict) => panic!("{opened:?} and {verdict:?}"),
    }
    assert!(
        matches!(admit(BundleId(!bundle.0), sealed, None, &believed), Err(Verdict::Discard(_))),
        "of another bundle"
    );
    let payload = sealed.get(signed::PREFIX_LEN..).unwrap_or_default();
    assert!(matches!(admit(bundle, &signed::seal_unsigned(payload), None, &believed), Err(Verdict::Discard(_))));
}

/// Follows the target from the directory of the symlink. A name may be that of another symlink, so `..` may not follow one.
fn stays_inside(link: PathRef<'_>, target: &[u8]) {
    assert!(target.first() != Some(&b'/') && !target.contains(&0));
    let (mut depth, mut named) = (link.depth() - 1, false);
    for component in target.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                assert!(!named && depth > 1, "{link:?} may lead out of its bundle");
                depth -= 1;
            }
            _ => named = true,
        }
    }
    assert!(depth > 0, "{link:?} is the bundle itself");
}

/// The payload of hashes, signed.
fn hashes(bytes: &[u8]) {
    let (key, trust) = signer();
    let _ = Hashes::open(bytes, &trust);
    let Ok(opened) = Hashes::open(&signed::seal(signed::HASHES, bytes, &key), &trust) else { return };
    let again = opened.value.sign(&key).expect("what was opened can be signed");
    assert_eq!(Hashes::open(&again, &trust).expect("and opened again").value, opened.value);
}

/// The payload of a beacon, signed. One that is accepted is the same when signed again, and what has to be left out of it is no fault.
fn beacon(bytes: &[u8]) {
    let (key, trust) = signer();
    let _ = Beacon::open(bytes, &trust);
    let Ok(opened) = Beacon::open(&signed::seal(signed::BEACON, bytes, &key), &trust) else { return };
    let beacon = opened.value;
    let open = |signed: &[u8]| Beacon::open(signed, &trust).map(|opened| opened.value);
    let whole = beacon.sign(&key, usize::MAX);
    // Signing again may encode numbers in fewer bytes, but never in more.
    assert!(whole.len() <= signed::PREFIX_LEN + bytes.len());
    assert_eq!(open(&whole).as_ref(), Ok(&beacon), "the same when signed again");
    for limit in [0, MIN_BEACON_LEN, 256, 1_000, whole.len() - 1, whole.len(), MAX_BEACON_LEN] {
        let signed = beacon.sign(&key, limit);
        assert!(signed.len() <= limit.max(MIN_BEACON_LEN), "{} bytes do not fit into {limit}", signed.len());
        let less = open(&signed).expect("what was left out is no fault");
        let recent = |beacon: &Beacon| beacon.channel.as_ref().map_or(0, |channel| channel.recent.len());
        assert!(recent(&less) <= recent(&beacon));
        let bare = |beacon: &Beacon| Beacon { on_wire: None, channel: None, ..beacon.clone() };
        assert_eq!(bare(&less), bare(&beacon), "of what is never left out nothing is lost");
    }
    // The beacon does not count in another session, and it mentions no bundle of another key.
    let trust = Trust::new(trust);
    assert_eq!(trust.hear(beacon.session, &whole).map(|opened| opened.value).as_ref(), Ok(&beacon));
    trust.hear(SessionId(!beacon.session.0), &whole).expect_err("it is of another session");
    let recent = beacon.channel.iter().flat_map(|channel| channel.recent.iter().map(|recent| recent.bundle));
    for bundle in recent.chain(beacon.on_wire.iter().map(|on_wire| on_wire.bundle)) {
        assert_eq!(bundle.tag(), key.public().id().tag());
    }
}

/// Text that somebody typed, and a ticket of the ranges that the bytes say. A text has one content and a content one text.
fn ticket(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Ticket::parse_all(text);
        if let Ok(ticket) = Ticket::parse(text) {
            let again = ticket.to_text().expect("what was read has a text");
            assert_eq!(Ticket::parse(&again).as_ref(), Ok(&ticket));
            let symbols = |text: &str| -> String { text.chars().filter(char::is_ascii_alphanumeric).collect() };
            assert_eq!(symbols(&ticket.to_text().unwrap_or_default()), symbols(&again));
            assert!(!ticket.explain().is_empty());
        }
    }
    let mut input = Input(bytes);
    let [flags, lost] = input.bytes();
    let bundle = BundleId(u64::from_be_bytes(input.bytes()));
    let mut blocks = Vec::new();
    while let [_, _, ..] = input.0 {
        let sbn = u32::from(u16::from_be_bytes(input.bytes()));
        let need = u16::from(input.byte());
        blocks.push((sbn, if need == 0 { Need::Whole } else { Need::Symbols(need) }));
    }
    let data = if flags & 4 == 0 { Data::of_blocks(blocks) } else { Data::All };
    let subject = Subject::Bundle { bundle, announce: flags & 1 != 0, hashes: flags & 2 != 0, data };
    let Ok(ticket) = Ticket::new(subject, Loss::of(lost.into(), 255)) else { return };
    let oti = Oti::new(1 << 36, 1_408, 256).expect("a usual object");
    let (fitted, _) = ticket.fit(&oti, 40);
    for ticket in [ticket, fitted] {
        let Some(text) = ticket.to_text() else { continue };
        assert_eq!(Ticket::parse(&text).as_ref(), Ok(&ticket), "{text}");
    }
}

/// Files of keys.
fn keys(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(key) = LinkKey::from_text(text) {
        assert_eq!(LinkKey::from_text(&key.to_text()).expect("its own text").as_bytes(), key.as_bytes());
    }
    if let Ok(key) = SigningKey::from_text(text) {
        let again = SigningKey::from_text(&key.to_text()).expect("its own text");
        assert_eq!(again.public().as_bytes(), key.public().as_bytes());
    }
    if let Ok((key, comment)) = PublicKey::from_text(text) {
        let again = PublicKey::from_text(&key.to_text(&comment)).expect("its own text");
        assert_eq!((again.0.as_bytes(), &again.1), (key.as_bytes(), &comment));
        assert!(!comment.chars().any(char::is_control));
    }
}

/// Paths: one that is accepted stays below where it is put.
fn paths(bytes: &[u8]) {
    let (path, target) = match bytes.iter().position(|&byte| byte == b'\n') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, bytes),
    };
    let Ok(path) = SafePath::new(path) else { return };
    assert!(path.as_path().components().all(|component| matches!(component, std::path::Component::Normal(_))));
    assert_eq!(path.components().count(), path.depth());
    if let Ok(target) = checkvalve_protocol::path::LinkTarget::new(&path, target) {
        stays_inside(path.view(), target.as_bytes());
    }
}

/// Memory that a killed receiver left behind. Marks and checksums are made right: what is not gets nowhere.
fn records(bytes: &[u8]) {
    let mut extents: Vec<Vec<u8>> = bytes.chunks((bytes.len() / 3).max(512)).map(<[u8]>::to_vec).collect();
    for extent in extents.iter_mut().filter(|extent| extent.len() >= 60) {
        let mark: &[u8; 8] = if extent[0].is_multiple_of(2) { b"cvsource" } else { b"cvrepair" };
        extent[..8].copy_from_slice(mark);
        let kind = extent[11] % 4;
        extent[8..12].copy_from_slice(&[b'C', b'V', VERSION, kind]);
        let checksum = crc32fast::hash(&extent[8..56]);
        extent[56..60].copy_from_slice(&checksum.to_le_bytes());
    }
    for block in recover(extents.iter().map(Vec::as_slice)) {
        assert!(block.received() > 0, "a block of nothing");
        assert_eq!(Some(block.data().len()), block.oti().block_len(block.sbn()));
        let (symbols, size) = (block.received_symbols().count(), usize::from(block.oti().symbol_size()));
        assert_eq!(symbols, block.received() as usize);
        assert!(block.received_symbols().all(|(_, symbol)| symbol.len() == size));
    }
}
