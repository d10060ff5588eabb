//! Announces: good ones, and one for every rule that may be broken.

use checkvalve_protocol::codec::{self, Bytes};
use checkvalve_protocol::extension::RawExtension;
use checkvalve_protocol::limits::{
    MAX_BLOCK_SYMBOLS, MAX_ENTRIES, MAX_EXTENSION_LEN, MAX_NAME_LEN, MAX_PATH_DEPTH, MAX_PATH_LEN, MAX_SEQUENCE,
    MAX_SYMBOL_SIZE, MAX_TRANSFER_LENGTH,
};
use checkvalve_protocol::manifest::raw::{RawAnnounce, RawEntry, RawHead, RawKind};
use checkvalve_protocol::manifest::{Announce, EntryKind, Opened, signed};
use toml::{Table, Value};

use crate::cases::{Case, bundle, fields, hex, number, signer};

pub(crate) type Raw<'a> = RawAnnounce<'a, Vec<RawEntry<'a>>>;

const FILE: RawKind<'_> = RawKind::File { size: 5, mode: 0o644 };
const DIR: RawKind<'_> = RawKind::Directory { mode: 0o755 };

pub(crate) fn cases() -> Vec<Case> {
    [good(), unsigned(), encoding(), fields_of_its_own(), paths(), symlinks(), trees()].concat()
}

/// What was read, every field of it.
pub(crate) fn describe(opened: &Opened<Announce>) -> Table {
    let announce = &opened.value;
    let entries = announce.entries.iter().map(|entry| {
        let mut table = fields([
            ("path", Value::String(hex(entry.path.as_bytes()))),
            ("mtime_secs", Value::Integer(entry.mtime.secs)),
            ("mtime_nanos", Value::Integer(entry.mtime.nanos.into())),
        ]);
        table.extend(match &entry.kind {
            EntryKind::File { size, mode } => {
                fields([("kind", "file".into()), ("size", number(*size)), ("mode", Value::Integer((*mode).into()))])
            }
            EntryKind::Directory { mode } => {
                fields([("kind", "directory".into()), ("mode", Value::Integer((*mode).into()))])
            }
            EntryKind::Symlink { target } => {
                fields([("kind", "symlink".into()), ("target", Value::String(hex(target.as_bytes())))])
            }
        });
        Value::Table(table)
    });
    fields([
        ("bundle", Value::String(announce.bundle.to_string())),
        ("channel", Value::String(announce.channel.to_string())),
        ("sequence", number(announce.sequence)),
        ("name", Value::String(hex(&announce.name))),
        ("created_ms", number(announce.created_ms)),
        ("symbol_size", number(announce.symbol_size.into())),
        ("block_symbols", number(announce.block_symbols.into())),
        ("signer", Value::String(opened.signer.to_string())),
        ("digest", Value::String(hex(&opened.digest))),
        ("data_len", number(announce.data_len())),
        ("entries", Value::Array(entries.collect())),
    ])
}

fn entry<'a>(path: &'a (impl AsRef<[u8]> + ?Sized), kind: RawKind<'a>) -> RawEntry<'a> {
    RawEntry { path: Bytes(path.as_ref()), secs: 1_700_000_000, nanos: 123_456_789, kind }
}

fn link<'a>(path: &'a str, target: &'a (impl AsRef<[u8]> + ?Sized)) -> RawEntry<'a> {
    entry(path, RawKind::Symlink { target: Bytes(target.as_ref()) })
}

/// An announce of these entries, the bundle's name being `t`.
fn announce(entries: Vec<RawEntry<'_>>) -> Raw<'_> {
    let head = RawHead {
        bundle: bundle().0,
        channel: "default",
        sequence: 7,
        name: Bytes(b"t"),
        created_ms: 1_700_000_000_123,
        symbol_size: 1_408,
        block_symbols: 128,
    };
    RawAnnounce { head, entries }
}

/// The same with the bundle's directory before them.
fn tree<'a>(entries: impl IntoIterator<Item = RawEntry<'a>>) -> Raw<'a> {
    announce([entry("t", DIR)].into_iter().chain(entries).collect())
}

pub(crate) fn good_tree() -> Vec<u8> {
    let before_1970 = RawEntry { secs: -1, nanos: 999_999_999, ..entry(b"t/caf\xc3\xa9\n\xff", FILE) };
    let payload = tree([
        entry("t/a dir", DIR),
        entry("t/a dir/empty", RawKind::File { size: 0, mode: 0 }),
        link("t/a dir/up", "../z"),
        before_1970,
        entry("t/none", RawKind::Directory { mode: 0o700 }),
        entry("t/z", RawKind::File { size: 1 << 33, mode: 0o777 }),
    ]);
    signed::seal(signed::ANNOUNCE, &payload.encode(), &signer("trusted"))
}

fn case(name: &str, expect: &'static str, why: &str, bytes: Vec<u8>) -> Case {
    let value = (expect == "ok").then(|| describe(&Announce::open(&bytes, &crate::cases::trust()).unwrap()));
    Case { file: format!("manifest/{name}.toml"), kind: "announce", expect, why: why.to_owned(), bytes, value }
}

/// A case that a trusted key signed: nothing but its content is wrong.
fn content(name: &str, expect: &'static str, why: &str, raw: &Raw<'_>) -> Case {
    payload(name, expect, why, &raw.encode())
}

fn payload(name: &str, expect: &'static str, why: &str, payload: &[u8]) -> Case {
    case(name, expect, why, signed::seal(signed::ANNOUNCE, payload, &signer("trusted")))
}

fn good() -> Vec<Case> {
    let longest = format!("t/{}", vec!["n".repeat(MAX_NAME_LEN - 1); 16].join("/"));
    let longest = &longest[..MAX_PATH_LEN - 20];
    let dirs: Vec<_> = longest.match_indices('/').skip(1).map(|(at, _)| entry(&longest[..at], DIR)).collect();
    let inside = [link("t/l", "./a//b/."), entry("t/m", DIR), link("t/m/l", "..")];
    let large = RawKind::File { size: MAX_TRANSFER_LENGTH, mode: 0o444 };
    let mut far = announce(vec![entry("t", large)]);
    let (bundle, symbol_size, block_symbols) = (bundle().0 | !0 << 24, MAX_SYMBOL_SIZE, MAX_BLOCK_SYMBOLS);
    far.head = RawHead { bundle, sequence: MAX_SEQUENCE, created_ms: u64::MAX, symbol_size, block_symbols, ..far.head };
    far.head.channel = "a_b-9";
    vec![
        case("good-tree", "ok", "files, directories and a symlink; names of any bytes, times before 1970", good_tree()),
        content("good-file", "ok", "a bundle that is one file", &announce(vec![entry("t", FILE)])),
        content("good-empty-directory", "ok", "a bundle that is one empty directory has no data", &tree([])),
        content("good-largest", "ok", "the largest numbers that every field may hold", &far),
        content("good-symlinks", "ok", "`.` and empty components in a target are harmless", &tree(inside)),
        payload(
            "good-extensions",
            "ok",
            "extensions with even tags are skipped",
            &tree([]).encode_with(&[(0, b"anything"), (4_000_000_000, b"")]),
        ),
        content("good-long-path", "ok", "a path of nearly 4,096 bytes", &tree(dirs)),
    ]
}

fn unsigned() -> Vec<Case> {
    let payload = announce(vec![entry("t", FILE)]).encode();
    let good = signed::seal(signed::ANNOUNCE, &payload, &signer("trusted"));
    let as_hashes = signed::seal(signed::HASHES, &payload, &signer("trusted"));
    let stranger = signed::seal(signed::ANNOUNCE, &payload, &signer("stranger"));
    let borrowed_id = [&good[..12], &stranger[12..]].concat();
    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let last = good.len() - 1;
    vec![
        case("unsigned", "unsigned", "key id and signature are all zero", signed::seal_unsigned(&payload)),
        case("wrong-key", "unknown-key", "signed by a key that is not trusted", stranger),
        case("wrong-key-under-trusted-id", "bad-signature", "another key's signature, a trusted key's id", borrowed_id),
        case("bad-signature", "bad-signature", "one bit of the signature is flipped", changed(12)),
        case("tampered-payload", "bad-signature", "one bit of the payload is flipped", changed(last)),
        case("wrong-domain", "bad-signature", "an announce's payload signed in the role of hashes", as_hashes),
        case("hashes-as-announce", "bad-signature", "good hashes where an announce should be", crate::hashes::good()),
        case("wrong-magic", "container", "begins with CVS3 instead of CVS2", changed(3)),
        case("no-payload-no-signature", "container", "ends inside the signature", good[..75].to_vec()),
        case("empty", "container", "an object of no bytes at all", vec![]),
    ]
}

fn encoding() -> Vec<Case> {
    let whole = announce(vec![entry("t", FILE)]).encode();
    let none = announce(vec![]).encode();
    // The number of entries and that of extensions are a byte each.
    let before_count = &none[..none.len() - 2];
    let with_extensions = |extensions: &[RawExtension<'_>]| announce(vec![entry("t", FILE)]).encode_with(extensions);
    let many: Vec<RawExtension<'_>> = (0..33).map(|n| (n * 2, &b""[..])).collect();
    let long = [7; MAX_EXTENSION_LEN + 1];
    let before_path = [before_count, &[1]].concat();
    let file = &codec::encode(&entry("t", FILE));
    let with = |parts: &[&[u8]]| parts.concat();
    let path = &file[..2];
    let huge = codec::encode(&u64::MAX);
    let mut slash = announce(vec![]);
    slash.head.channel = "/";
    let slash = slash.encode();
    let reserved = |tag: u8| [&[tag], [0xff; 16].as_slice()].concat();
    vec![
        payload("no-payload", "truncated", "a signature over no payload", &[]),
        payload("truncated", "truncated", "the last byte is missing", &whole[..whole.len() - 1]),
        payload("trailing-bytes", "trailing-bytes", "a byte after the extensions", &with(&[&whole, &[0]])),
        payload("extensions-missing", "truncated", "nothing follows the entries", &whole[..whole.len() - 1]),
        payload(
            "extension-critical",
            "critical-extension",
            "an extension with an odd tag, which nobody knows",
            &with_extensions(&[(0, b""), (7, b"now")]),
        ),
        payload("extension-order", "extension-order", "tag 4 after tag 4", &with_extensions(&[(4, b""), (4, b"")])),
        payload("extension-long", "extension-too-long", "an extension of 4,097 bytes", &with_extensions(&[(0, &long)])),
        payload("extensions-33", "too-many-extensions", "33 extensions", &with_extensions(&many)),
        payload(
            "extensions-declared-huge",
            "too-many-extensions",
            "2^64 - 1 extensions are declared: nothing may be reserved for them",
            &with(&[&whole[..whole.len() - 1], &huge]),
        ),
        payload(
            "channel-before-entries-too-many",
            "channel",
            "more entries are declared than may be, in a channel named `/`: the channel comes first",
            &with(&[&slash[..slash.len() - 2], &huge]),
        ),
        payload(
            "path-before-extensions",
            "path-absolute",
            "an absolute path, and a critical extension after it",
            &announce(vec![entry("/t", FILE)]).encode_with(&[(7, b"")]),
        ),
        payload("entries-none", "no-entries", "an announce of no entries", &none),
        payload("entries-declared", "truncated", "one entry is declared and none is there", &before_path),
        payload(
            "entries-declared-most",
            "truncated",
            "as many entries as may be are declared and none is there",
            &with(&[before_count, &codec::encode(&(MAX_ENTRIES as u64))]),
        ),
        payload(
            "entries-declared-too-many",
            "too-many-entries",
            "more entries are declared than may be",
            &with(&[before_count, &codec::encode(&(MAX_ENTRIES as u64 + 1))]),
        ),
        payload(
            "entries-declared-huge",
            "too-many-entries",
            "2^64 - 1 entries are declared: nothing may be reserved for them",
            &with(&[before_count, &huge]),
        ),
        payload(
            "path-declared-huge",
            "truncated",
            "a path of 2^64 - 1 bytes is declared: nothing may be reserved for it",
            &with(&[&before_path, &huge]),
        ),
        payload(
            "path-declared-gigabyte",
            "truncated",
            "a path of 2^30 bytes is declared: nothing may be reserved for it",
            &with(&[&before_path, &codec::encode(&(1_u64 << 30)), b"t"]),
        ),
        payload(
            "channel-declared-huge",
            "truncated",
            "a channel's name of 2^64 - 1 bytes is declared",
            &with(&[&none[..9], &huge]),
        ),
        payload(
            "integer-too-wide",
            "integer",
            "the number of entries has the 128-bit marker",
            &with(&[before_count, &reserved(254)]),
        ),
        payload(
            "integer-reserved",
            "integer",
            "the number of entries has the reserved marker 255",
            &with(&[before_count, &reserved(255)]),
        ),
        payload(
            "mode-too-wide",
            "integer",
            "a mode is written as a 32-bit integer",
            &with(&[&before_path, &file[..file.len() - 3], &[252, 0xa4, 1, 0, 0], &[0]]),
        ),
        payload(
            "kind-unknown",
            "value",
            "an entry of kind 3",
            &with(&[&before_path, path, &codec::encode(&(0_i64, 0_u32, 3_u32))]),
        ),
        payload(
            "channel-not-utf8",
            "utf8",
            "the channel's name is not UTF-8",
            &with(&[&none[..10], b"\xff", &none[11..]]),
        ),
    ]
}

fn fields_of_its_own() -> Vec<Case> {
    let head = announce(vec![]).head;
    let with = |head: RawHead<'static>| RawAnnounce { head, entries: vec![entry("t", FILE)] };
    let sizes = |sizes: &[u64]| {
        let files = sizes.iter().zip(["t/a", "t/b", "t/c"]);
        tree(files.map(|(&size, path)| entry(path, RawKind::File { size, mode: 0o644 })).collect::<Vec<_>>())
    };
    let file = |mode: u16| announce(vec![entry("t", RawKind::File { size: 0, mode })]);
    let late = RawEntry { nanos: 1_000_000_000, ..entry("t", FILE) };
    vec![
        content(
            "sequence-too-large",
            "sequence-too-large",
            "2^53, which JSON does not hold exactly",
            &with(RawHead { sequence: MAX_SEQUENCE + 1, ..head }),
        ),
        content("oti-symbol-size", "oti", "T of 65 bytes", &with(RawHead { symbol_size: 65, ..head })),
        content("oti-no-block", "oti", "B of 0 symbols", &with(RawHead { block_symbols: 0, ..head })),
        content(
            "oti-empty",
            "oti",
            "T of 0 bytes, also where there is no data",
            &RawAnnounce { head: RawHead { symbol_size: 0, ..head }, entries: vec![entry("t", DIR)] },
        ),
        content(
            "oti-blocks",
            "oti",
            "2^44 bytes in symbols of 64 bytes and blocks of one symbol would be 2^38 blocks",
            &RawAnnounce {
                head: RawHead { symbol_size: 64, block_symbols: 1, ..head },
                entries: vec![entry("t", RawKind::File { size: MAX_TRANSFER_LENGTH, mode: 0o644 })],
            },
        ),
        content("sequence-zero", "sequence-zero", "sequences begin at 1", &with(RawHead { sequence: 0, ..head })),
        content("channel-empty", "channel", "a channel without a name", &with(RawHead { channel: "", ..head })),
        content("channel-dotdot", "channel", "a channel named `..`", &with(RawHead { channel: "..", ..head })),
        content("channel-slash", "channel", "a channel named `a/b`", &with(RawHead { channel: "a/b", ..head })),
        content("channel-upper", "channel", "a channel with a capital", &with(RawHead { channel: "Default", ..head })),
        content(
            "channel-long",
            "channel",
            "a channel's name of 33 bytes",
            &with(RawHead { channel: "abcdefghijklmnopqrstuvwxyz0123456", ..head }),
        ),
        content("name-mismatch", "name", "the name is `u`, the file `t`", &with(RawHead { name: Bytes(b"u"), ..head })),
        content("name-empty", "name", "no name, and a file `t`", &with(RawHead { name: Bytes(b""), ..head })),
        content("name-of-two", "name", "the first entry is not the bundle itself", &announce(vec![entry("t/a", FILE)])),
        content("mode-setuid", "mode", "a file with the setuid bit", &file(0o4755)),
        content("mode-setgid", "mode", "a file with the setgid bit", &file(0o2755)),
        content(
            "mode-sticky",
            "mode",
            "a directory with the sticky bit",
            &announce(vec![entry("t", RawKind::Directory { mode: 0o1777 })]),
        ),
        content("mode-file-type", "mode", "a mode with the bits of a file type", &file(0o777 | 0o100_000_u16)),
        content("nanoseconds", "nanoseconds", "10^9 nanoseconds are a second", &announce(vec![late])),
        content("size-over", "data-too-long", "one file of a byte more than 2^44", &sizes(&[MAX_TRANSFER_LENGTH + 1])),
        content("sizes-over", "data-too-long", "two files of 2^44 + 1 bytes in all", &sizes(&[MAX_TRANSFER_LENGTH, 1])),
        content("sizes-overflow", "data-too-long", "sizes whose sum is 5 modulo 2^64", &sizes(&[u64::MAX, 6])),
        content(
            "sizes-overflow-twice",
            "data-too-long",
            "sizes whose sum passes 2^64 twice",
            &sizes(&[u64::MAX, u64::MAX, 7]),
        ),
    ]
}

fn paths() -> Vec<Case> {
    let alone = |name: &str, expect, why: &str, path: &[u8]| content(name, expect, why, &tree([entry(path, FILE)]));
    let as_name = |name: &str, expect, why: &str, path: &'static [u8]| {
        let mut raw = announce(vec![entry(path, FILE)]);
        raw.head.name = Bytes(path);
        content(name, expect, why, &raw)
    };
    let name_too_long = format!("t/{}", "n".repeat(MAX_NAME_LEN + 1));
    let too_long = format!("t/{}", vec!["n".repeat(240); 17].join("/"));
    let too_long = &too_long.as_bytes()[..MAX_PATH_LEN + 1];
    let too_deep = vec!["t"; MAX_PATH_DEPTH + 1].join("/");
    vec![
        alone("path-dotdot", "path-dotdot", "path `../x`", b"../x"),
        alone("path-dotdot-inside", "path-dotdot", "path `t/../x` is refused, not resolved", b"t/../x"),
        alone("path-dotdot-last", "path-dotdot", "path `t/..`", b"t/.."),
        alone("path-absolute", "path-absolute", "path `/x`", b"/x"),
        alone("path-absolute-etc", "path-absolute", "path `/etc/passwd`", b"/etc/passwd"),
        alone("path-double-slash", "path-empty-component", "path `t//b`", b"t//b"),
        alone("path-slash-at-end", "path-empty-component", "path `t/b/`", b"t/b/"),
        alone("path-dot", "path-dot", "path `t/./b`", b"t/./b"),
        alone("path-empty", "path-empty", "a path of no bytes", b""),
        alone("path-nul", "path-nul", "a NUL byte in a path", b"t/a\0b"),
        alone("path-nul-last", "path-nul", "a NUL byte at the end of a path", b"t/a\0"),
        alone("path-4097-bytes", "path-too-long", "a path of 4,097 bytes", too_long),
        alone("path-name-256-bytes", "path-name-too-long", "a component of 256 bytes", name_too_long.as_bytes()),
        alone("path-too-deep", "path-too-deep", "a path of 129 components", too_deep.as_bytes()),
        as_name("name-dotdot", "path-dotdot", "a bundle named `..`", b".."),
        as_name("name-dot", "path-dot", "a bundle named `.`", b"."),
        as_name("name-absolute", "path-absolute", "a bundle named `/`", b"/"),
        as_name("name-slash", "name", "a bundle named `t/a`", b"t/a"),
    ]
}

fn symlinks() -> Vec<Case> {
    let to = |name: &str, expect, why: &str, target: &str| content(name, expect, why, &tree([link("t/l", target)]));
    let nested = |name: &str, why: &str, target: &str| {
        content(name, "target-outside", why, &tree([entry("t/d", DIR), link("t/d/l", target)]))
    };
    vec![
        to("symlink-absolute", "target-absolute", "a symlink to `/etc/passwd`", "/etc/passwd"),
        to("symlink-dotdot", "target-outside", "a symlink in the bundle's directory to `..`", ".."),
        to("symlink-outside", "target-outside", "a symlink to `../x`", "../x"),
        to("symlink-outside-and-back", "target-outside", "`../t/x` leaves the bundle on its way", "../t/x"),
        to("symlink-name-dotdot", "target-outside", "`a/../..`: `..` after a name", "a/../.."),
        to("symlink-name-dotdot-inside", "target-outside", "`a/..`: `a` could be a symlink itself", "a/.."),
        to("symlink-dot-dotdot", "target-outside", "`./../x`: `.` does not hide `..`", "./../x"),
        to("symlink-empty", "target-empty", "a symlink to nothing", ""),
        to("symlink-nul", "target-nul", "a NUL byte in a target", "a\0b"),
        to("symlink-4096-bytes", "target-too-long", "a target of 4,096 bytes", &"t".repeat(MAX_PATH_LEN)),
        nested("symlink-deeper-outside", "`../..` from one directory down", "../.."),
        nested("symlink-deeper-outside-by-name", "`../x/../..` from one directory down", "../x/../.."),
        content("symlink-alone", "target-outside", "a bundle that is a symlink", &announce(vec![link("t", "x")])),
        content(
            "symlink-then-file-through-it",
            "through-symlink",
            "a symlink `t/l`, then a file `t/l/x`",
            &tree([link("t/l", "."), entry("t/l/x", FILE)]),
        ),
        content(
            "symlink-then-file-deep-through-it",
            "through-symlink",
            "a symlink `t/l`, then a file `t/l/x/y` whose directory is not listed",
            &tree([link("t/l", "."), entry("t/l/x/y", FILE)]),
        ),
        content(
            "symlink-then-directory-in-its-place",
            "duplicate",
            "a symlink `t/l`, then a directory `t/l` and a file in it",
            &tree([link("t/l", "."), entry("t/l", DIR), entry("t/l/x", FILE)]),
        ),
        content(
            "symlink-after-directory-in-its-place",
            "duplicate",
            "a directory `t/l`, then a symlink `t/l`, then a file `t/l/x`",
            &tree([entry("t/l", DIR), link("t/l", "."), entry("t/l/x", FILE)]),
        ),
    ]
}

fn trees() -> Vec<Case> {
    let (a, b) = (entry("t/a", FILE), entry("t/b", FILE));
    vec![
        content("duplicate", "duplicate", "`t/a` twice, side by side", &tree([a, a])),
        content("duplicate-apart", "order", "`t/a` twice, with `t/b` between", &tree([a, b, a])),
        content("duplicate-root", "duplicate", "the bundle's directory twice", &tree([entry("t", DIR)])),
        content("duplicate-root-last", "order", "the bundle's directory again at the end", &tree([a, entry("t", DIR)])),
        content("order", "order", "`t/b` before `t/a`", &tree([b, a])),
        content(
            "order-of-walk",
            "order",
            "`t/a!` before `t/a/x`: a directory's content comes right after it",
            &tree([entry("t/a", DIR), entry("t/a!", FILE), entry("t/a/x", FILE)]),
        ),
        content("parent-missing", "parent-missing", "`t/a/b` without `t/a`", &tree([entry("t/a/b", FILE)])),
        content(
            "parent-after-child",
            "parent-missing",
            "`t/a/b` before `t/a`",
            &tree([entry("t/a/b", FILE), entry("t/a", DIR)]),
        ),
        content(
            "file-as-directory",
            "inside-file",
            "a file `t/a`, then a file `t/a/b`",
            &tree([a, entry("t/a/b", FILE)]),
        ),
        content(
            "file-as-root",
            "inside-file",
            "the bundle is a file with a file in it",
            &announce(vec![entry("t", FILE), a]),
        ),
        content("second-root", "other-root", "a second tree beside the bundle's", &tree([entry("u", DIR)])),
        content(
            "second-file",
            "other-root",
            "a bundle of two files side by side",
            &announce(vec![entry("t", FILE), entry("u", FILE)]),
        ),
    ]
}
