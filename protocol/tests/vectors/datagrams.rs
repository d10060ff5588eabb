//! Datagrams: sealed ones under the link key of `keys.toml`, and those of an insecure link.

use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::receive::DropReason;
use checkvalve_protocol::seal::{Opener, Sealer};
use checkvalve_protocol::wire::{Content, Header, ObjectKind, Symbol};
use toml::{Table, Value};

use crate::cases::{Case, hex};

pub(crate) const LINK_KEY: [u8; 32] = [b'l'; 32];
const SESSION: SessionId = SessionId(0x0102_0304_0506_0708);

/// Opens `bytes` as a receiver of such a link would; the rule broken, or what was read.
pub(crate) fn open(bytes: &[u8], sealed: bool) -> (&'static str, Option<Table>) {
    let mut opener = Opener::new(sealed.then_some(LINK_KEY));
    let mut bytes = bytes.to_vec();
    match opener.open(&mut bytes) {
        Ok((header, payload)) => ("ok", Some(describe(&header, payload))),
        Err(error) => (DropReason::from(error).name(), None),
    }
}

fn describe(header: &Header, payload: &[u8]) -> Table {
    let mut table = Table::new();
    let mut put = |key: &str, value: Value| drop(table.insert(key.into(), value));
    put("session", header.session.to_string().into());
    put("counter", header.counter.to_string().into());
    put("payload", hex(payload).into());
    match header.content {
        Content::Beacon => put("kind", "beacon".into()),
        Content::Symbol(s) => {
            put("kind", format!("{:?}", s.kind).to_lowercase().into());
            put("bundle", s.bundle.to_string().into());
            put("sbn", i64::from(s.sbn).into());
            put("esi", i64::from(s.esi).into());
            put("transfer_length", i64::try_from(s.oti.transfer_length()).unwrap().into());
            put("symbol_size", i64::from(s.oti.symbol_size()).into());
            put("max_block_symbols", i64::from(s.oti.max_block_symbols()).into());
        }
    }
    table
}

fn symbol(kind: ObjectKind, sbn: u32, esi: u32) -> Content {
    let oti = Oti::new(1_000_000, 64, 256).unwrap();
    Content::Symbol(Symbol { bundle: BundleId(0xb00d_1e00_0000_0001), kind, sbn, esi, oti })
}

fn datagram(sealed: bool, counter: u64, content: Content) -> Vec<u8> {
    let payload: Vec<u8> = (0..64).collect();
    let sealer = Sealer::new(sealed.then_some(&LINK_KEY), SESSION);
    let mut out = vec![0; sealer.datagram_len(payload.len())];
    sealer.seal(&Header { sealed, session: SESSION, counter, content }, &payload, &mut out);
    out
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, sealed: bool, expect: &'static str, why: &str, bytes: Vec<u8>| {
        let kind = if sealed { "datagram" } else { "insecure-datagram" };
        let (_, value) = open(&bytes, sealed);
        let file = format!("datagram/{name}.toml");
        cases.push(Case { file, kind, expect, why: why.into(), bytes, value });
    };
    let data = symbol(ObjectKind::Data, 3, 300);
    let good = datagram(true, 5, data);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    add("good-announce", true, "ok", "a source symbol", datagram(true, 0, symbol(ObjectKind::Announce, 0, 0)));
    add("good-data", true, "ok", "a repair symbol", good.clone());
    add("good-hashes", true, "ok", "the last ESI", datagram(true, 6, symbol(ObjectKind::Hashes, 61, 0xff_ffff)));
    add(
        "good-beacon",
        true,
        "ok",
        "a payload of 64 bytes that is no beacon's content",
        datagram(true, 7, Content::Beacon),
    );
    add("good-counter-largest", true, "ok", "every counter is a nonce", datagram(true, u64::MAX, data));
    add("good-insecure", false, "ok", "a CRC-32 in the tag's place", datagram(false, 5, data));
    add("empty", true, "short", "no bytes at all", Vec::new());
    add("header-only", true, "short", "the header and no tag", good[..48].to_vec());
    add("tag-short", true, "short", "15 bytes after the header", good[..63].to_vec());
    add("magic", true, "magic", "another protocol's first byte", with(0, b'X'));
    add("version-0", true, "version", "version 0", with(2, 0));
    add("version-1", true, "version", "version 1, which is gone", with(2, 1));
    add("kind-0", true, "kind", "there is no kind 0", with(3, 0));
    add("kind-8", true, "kind", "there is no kind 8", with(3, 8));
    add("kind-5", true, "reserved", "kind 5 is reserved for trust files", with(3, 5));
    add("kind-6", true, "reserved", "kind 6 is reserved for calibration", with(3, 6));
    add("kind-7", true, "reserved", "kind 7 is reserved for streams", with(3, 7));
    add("beacon-with-place", true, "place", "a beacon with a bundle id", with(3, 4));
    add("sbn-too-large", true, "place", "block 62 of 62", with(31, 62));
    add("length-zero", true, "reserved", "an object of no known length", {
        let mut bytes = good.clone();
        bytes[36..44].fill(0);
        bytes
    });
    add("blocks-too-many", true, "place", "2^44 bytes in blocks of one symbol of 64 bytes: 2^38 blocks", {
        let mut bytes = good.clone();
        bytes[36..44].copy_from_slice(&(1_u64 << 44).to_be_bytes());
        bytes[46..48].copy_from_slice(&1_u16.to_be_bytes());
        bytes
    });
    add("beacon-too-long", true, "place", "a beacon of 9,217 bytes", {
        let mut bytes = datagram(true, 7, Content::Beacon);
        bytes.resize(48 + 9_217 + 16, 0);
        bytes
    });
    add("place-before-mode", true, "place", "an impossible place, in the other mode", with(3, 0x80 | 1));
    add("mode-before-key", false, "mode", "sealed under another link key, on a link without one", with(32, 1));
    add("key-before-tag", true, "key", "under another link key, as the header says", with(32, 1));
    add("short-before-magic", true, "short", "nothing right, but too short", vec![b'X'; 63]);
    add("short-insecure", false, "short", "a header and three bytes", datagram(false, 5, data)[..51].to_vec());
    add("length-too-large", true, "place", "an object of more than 2^44 bytes", with(36, 1));
    add("symbol-size-odd", true, "place", "T of 65 bytes", with(45, 65));
    add("symbol-size-other", true, "place", "T of 128 bytes with a payload of 64", with(45, 128));
    add("block-length-zero", true, "place", "B of 0 symbols", with(46, 0));
    add("block-length-too-large", true, "place", "B of 1,280 symbols", with(46, 5));
    add("payload-short", true, "place", "a payload of T - 1 bytes", good[..good.len() - 1].to_vec());
    add("counter-changed", true, "tag", "the counter is not the one that was sealed", with(19, 6));
    add("session-changed", true, "tag", "another session has another key", with(11, 9));
    add("payload-changed", true, "tag", "a bit of the payload", with(60, 0xff));
    add("tag-changed", true, "tag", "the last byte of the tag", with(good.len() - 1, good[good.len() - 1] ^ 1));
    add("other-key", true, "key", "sealed under another link key", {
        let sealer = Sealer::new(Some(&[b'o'; 32]), SESSION);
        let mut out = vec![0; good.len()];
        let header = Header { sealed: true, session: SESSION, counter: 5, content: data };
        sealer.seal(&header, &[0; 64], &mut out);
        out
    });
    add("other-key-same-byte", true, "tag", "under another link key, whose id begins with the same byte", {
        let mut bytes = good.clone();
        bytes[48..].fill(0x5a);
        bytes
    });
    add("insecure-on-sealed", true, "mode", "a CRC-32 on a link with a key", datagram(false, 5, data));
    add("sealed-on-insecure", false, "mode", "a tag on a link without a key", good.clone());
    let mut crc = datagram(false, 5, data);
    crc[60] ^= 1;
    add("insecure-crc", false, "tag", "a bit of the payload, on a link without a key", crc);
    cases
}
