//! Hashes: good ones, and one for every rule that may be broken.

use std::borrow::Cow;

use checkvalve_protocol::codec;
use checkvalve_protocol::limits::MAX_ENTRIES;
use checkvalve_protocol::manifest::raw::{RawHashes, RawOutcome};
use checkvalve_protocol::manifest::{Hashes, MAX_REASON_LEN, Opened, Outcome, signed};
use toml::{Table, Value};

use crate::announces;
use crate::cases::{Case, bundle, fields, hex, signer, trust};

/// What was read, every field of it.
pub(crate) fn describe(opened: &Opened<Hashes>) -> Table {
    let mut table = fields([
        ("bundle", Value::String(opened.value.bundle.to_string())),
        ("announce", Value::String(hex(&opened.value.announce))),
        ("signer", Value::String(opened.signer.to_string())),
    ]);
    let (name, value) = match &opened.value.outcome {
        Outcome::Complete { files } => ("files", Value::Array(files.iter().map(|f| Value::String(hex(f))).collect())),
        Outcome::Withdrawn { reason } => ("withdrawn", Value::String(reason.clone())),
    };
    table.insert(name.to_owned(), value);
    table
}

/// The hashes of the announce in `good-tree.toml`; its files hold zeros only, where they hold anything.
pub(crate) fn good() -> Vec<u8> {
    let empty = *blake3::hash(b"").as_bytes();
    let files = vec![empty, *blake3::hash(b"hello").as_bytes(), [0xab; 32]];
    seal(&of_good_tree(RawOutcome::Complete { files: Cow::Owned(files) }).encode())
}

pub(crate) fn of_good_tree(outcome: RawOutcome<'_>) -> RawHashes<'_> {
    let announce = *blake3::hash(&announces::good_tree()).as_bytes();
    RawHashes { bundle: bundle().0, announce, outcome }
}

fn seal(payload: &[u8]) -> Vec<u8> {
    signed::seal(signed::HASHES, payload, &signer("trusted"))
}

fn case(name: &str, expect: &'static str, why: &str, bytes: Vec<u8>) -> Case {
    let value = (expect == "ok").then(|| describe(&Hashes::open(&bytes, &trust()).unwrap()));
    Case { file: format!("manifest/{name}.toml"), kind: "hashes", expect, why: why.to_owned(), bytes, value }
}

pub(crate) fn cases() -> Vec<Case> {
    let none = of_good_tree(RawOutcome::Complete { files: Cow::Borrowed(&[]) }).encode();
    // The outcome's tag, the number of hashes and that of extensions are a byte each.
    let before_tag = &none[..none.len() - 3];
    let before_count = &none[..none.len() - 2];
    let withdrawn = |reason: &str| seal(&of_good_tree(RawOutcome::Withdrawn { reason }).encode());
    let content = |name: &str, expect, why: &str, payload: &[u8]| case(name, expect, why, seal(payload));
    let count = |n: u64| [before_count, &codec::encode(&n)].concat();
    let too_many = [count(MAX_ENTRIES as u64 + 1), vec![0; 32]].concat();
    let good_payload = &good()[76..];
    vec![
        case("good-hashes", "ok", "the hashes of the announce in good-tree.toml, a hash a file", good()),
        case(
            "good-hashes-withdrawn",
            "ok",
            "the bundle of good-tree.toml could not be read as announced",
            withdrawn("t/z: changed while it was read"),
        ),
        case("hashes-unsigned", "unsigned", "key id and signature are all zero", signed::seal_unsigned(&none)),
        case(
            "hashes-wrong-key",
            "unknown-key",
            "signed by a key that is not trusted",
            signed::seal(signed::HASHES, &none, &signer("stranger")),
        ),
        case("announce-as-hashes", "bad-signature", "a good announce where hashes should be", announces::good_tree()),
        content("hashes-truncated", "truncated", "the last byte is missing", &good_payload[..good_payload.len() - 1]),
        content(
            "hashes-trailing-bytes",
            "trailing-bytes",
            "a byte after the extensions",
            &[&none, [0].as_slice()].concat(),
        ),
        content(
            "hashes-extension-critical",
            "critical-extension",
            "an extension with an odd tag",
            &of_good_tree(RawOutcome::Withdrawn { reason: "" }).encode_with(&[(1, b"")]),
        ),
        content("hashes-declared-most", "truncated", "as many hashes as may be, and none is there", &count(1 << 20)),
        content("hashes-declared-huge", "truncated", "2^64 - 1 hashes are declared, one is there", &{
            [count(u64::MAX), vec![0; 32]].concat()
        }),
        content("hashes-declared-over", "truncated", "more hashes are declared than may be", &too_many),
        content("hashes-outcome-unknown", "value", "an outcome of kind 2", &[before_tag, &[2, 0, 0]].concat()),
        content("hashes-reason-not-utf8", "utf8", "a reason that is not UTF-8", &[before_tag, &[1, 1, 0xff]].concat()),
        case(
            "hashes-reason-long",
            "reason-too-long",
            "a reason of 1,025 bytes",
            withdrawn(&"x".repeat(MAX_REASON_LEN + 1)),
        ),
    ]
}
