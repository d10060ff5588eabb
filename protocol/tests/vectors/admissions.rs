//! What a receiver believes: announces and hashes under the id they came with, and the verdict.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use checkvalve_protocol::admit::{Verdict, admit};
use checkvalve_protocol::codec::Bytes;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::manifest::raw::{RawAnnounce, RawEntry, RawHashes, RawHead, RawKind, RawOutcome};
use checkvalve_protocol::manifest::signed;
use toml::Table;

use crate::cases::{bundle, hex, policy, signer, unhex};

/// Verdict and rule of a file.
pub(crate) fn judge(file: &Table) -> (&'static str, &'static str) {
    let text = |key: &str| file[key].as_str().unwrap();
    let hashes = file.get("hashes").map(|hashes| unhex(hashes.as_str().unwrap()));
    match admit(text("bundle").parse().unwrap(), &unhex(text("announce")), hashes.as_deref(), &policy()) {
        Ok(_) => ("admitted", "ok"),
        Err(verdict) => {
            let word = match verdict {
                Verdict::Discard(_) => "discard",
                Verdict::Unknown { .. } => "unknown",
                Verdict::Refuse { .. } => "refuse",
            };
            (word, verdict.error().rule())
        }
    }
}

fn announce(bundle: BundleId, channel: &str, sequence: u64, by: &str) -> Vec<u8> {
    let head = RawHead {
        bundle: bundle.0,
        channel,
        sequence,
        name: Bytes(b"t"),
        created_ms: 1_700_000_000_123,
        symbol_size: 1_408,
        block_symbols: 128,
    };
    let file = RawKind::File { size: 5, mode: 0o644 };
    let entry = RawEntry { path: Bytes(b"t"), secs: 1_700_000_000, nanos: 0, kind: file };
    signed::seal(signed::ANNOUNCE, &RawAnnounce { head, entries: vec![entry] }.encode(), &signer(by))
}

fn hashes(bundle: BundleId, announce: &[u8], outcome: RawOutcome<'_>, by: &str) -> Vec<u8> {
    let announce = *blake3::hash(announce).as_bytes();
    signed::seal(signed::HASHES, &RawHashes { bundle: bundle.0, announce, outcome }.encode(), &signer(by))
}

fn files(count: usize) -> RawOutcome<'static> {
    RawOutcome::Complete { files: Cow::Owned(vec![*blake3::hash(b"hello").as_bytes(); count]) }
}

/// Each file's name and text.
pub(crate) fn files_text() -> Vec<(String, String)> {
    let own = bundle();
    let neighbours = BundleId::new(0x77, signer("neighbour").public().id());
    let strangers = BundleId::new(0x88, signer("stranger").public().id());
    let good = announce(own, "default", 1, "trusted");
    let mut made = Vec::new();
    let mut add = |name: &str, under: BundleId, announce: &[u8], hashes: Option<&[u8]>, why: &str| {
        let mut text = format!("why = \"{why}\"\nbundle = \"{under}\"\n");
        let mut put = |key: &str, bytes: &[u8]| {
            let _ = writeln!(text, "{key} = \"\"\"");
            for line in bytes.chunks(48) {
                let _ = writeln!(text, "{}", hex(line));
            }
            text.push_str("\"\"\"\n");
        };
        put("announce", announce);
        if let Some(hashes) = hashes {
            put("hashes", hashes);
        }
        let file: Table = text.parse().unwrap();
        let (verdict, expect) = judge(&file);
        made.push((format!("admit/{name}.toml"), format!("verdict = \"{verdict}\"\nexpect = \"{expect}\"\n{text}")));
    };
    let complete = hashes(own, &good, files(1), "trusted");
    add("good", own, &good, Some(&complete), "an announce and the hashes that belong to it");
    let other = announce(neighbours, "other", 1, "neighbour");
    add("good-own-channel", neighbours, &other, None, "the only key that may sign for channel other");
    let anywhere = announce(neighbours, "default", 1, "neighbour");
    add("good-any-channel", neighbours, &anywhere, None, "a channel that names no keys is open to every trusted key");
    let withdrawn = hashes(own, &good, RawOutcome::Withdrawn { reason: "it changed" }, "trusted");
    add("good-withdrawal", own, &good, Some(&withdrawn), "a withdrawal that belongs to the announce");
    let not_its = announce(own, "other", 1, "trusted");
    add("not-for-channel", own, &not_its, None, "a trusted key that may not sign for channel other");
    let stranger = announce(strangers, "default", 1, "stranger");
    add("unknown-key", strangers, &stranger, None, "a key that is not trusted");
    let foreign = announce(own, "default", 1, "neighbour");
    add("foreign-bundle", own, &foreign, None, "a trusted key speaks of the bundle of another");
    let elsewhere = BundleId(own.0 ^ 1 << 40);
    add("other-bundle", elsewhere, &good, None, "a good announce under the id of another bundle");
    let foreign = hashes(own, &good, files(1), "neighbour");
    add("hashes-foreign", own, &good, Some(&foreign), "hashes by another trusted key than the bundle's");
    let foreign = hashes(own, &good, RawOutcome::Withdrawn { reason: "gone" }, "neighbour");
    add("withdrawal-foreign", own, &good, Some(&foreign), "a withdrawal by another trusted key than the bundle's");
    let another = hashes(own, &announce(own, "default", 2, "trusted"), files(1), "trusted");
    add("hashes-of-another-announce", own, &good, Some(&another), "hashes of another announce of the bundle");
    let another = hashes(own, b"", RawOutcome::Withdrawn { reason: "gone" }, "trusted");
    add("withdrawal-of-another-announce", own, &good, Some(&another), "a withdrawal of another announce of the bundle");
    let moved = hashes(elsewhere, &good, files(1), "trusted");
    add("hashes-of-another-bundle", own, &good, Some(&moved), "hashes of another bundle of the same key");
    let two = hashes(own, &good, files(2), "trusted");
    add("hash-count", own, &good, Some(&two), "two hashes for one file, rightly signed: refused for good");
    let zero = announce(own, "default", 0, "trusted");
    add("broken-rule", own, &zero, None, "sequence 0, rightly signed: refused for good");
    let zero = announce(own, "default", 0, "stranger");
    add("broken-rule-unknown-key", own, &zero, None, "sequence 0, signed by nobody who counts");
    made
}

pub(crate) fn all() -> BTreeMap<String, String> {
    files_text().into_iter().collect()
}
