//! A bundle as its three objects, made by hand.

use checkvalve_protocol::codec::Bytes;
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::manifest::raw::{RawAnnounce, RawEntry, RawHashes, RawHead, RawKind, RawOutcome};
use checkvalve_protocol::manifest::signed;
use checkvalve_protocol::wire::ObjectKind;

/// T of the data of a hand-made bundle, as its announce has it: that of a link with MTU 1500.
pub const SYMBOL_SIZE: u16 = 1_408;
/// B of it.
pub const BLOCK_SYMBOLS: u16 = 256;

/// The objects that go over the line for one bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Its id.
    pub id: BundleId,
    /// The signed announce.
    pub announce: Vec<u8>,
    /// The data.
    pub data: Vec<u8>,
    /// The signed hashes.
    pub hashes: Vec<u8>,
}

/// Who signs a hand-made bundle, and how.
#[derive(Debug)]
pub enum Signer<'a> {
    /// This key signs exactly what is sent.
    Key(&'a SigningKey),
    /// This key signs, but afterwards a byte of the payload is changed.
    Tampered(&'a SigningKey),
    /// Nobody.
    Nobody,
}

impl Bundle {
    /// One regular file called `name` in channel `default`. `id` is [`BundleId::new`] of an honest sender's key.
    pub fn file(id: BundleId, sequence: u64, name: &str, data: Vec<u8>, signer: &Signer<'_>) -> Self {
        let entry = file_entry(name.as_bytes(), data.len() as u64);
        Self::by_hand(id, sequence, name.as_bytes(), &[entry], data, signer)
    }

    /// A bundle with arbitrary entries, even entries that break the rules. The hashes match the files that `entries` describe.
    pub fn by_hand(
        id: BundleId,
        sequence: u64,
        name: &[u8],
        entries: &[RawEntry<'_>],
        data: Vec<u8>,
        signer: &Signer<'_>,
    ) -> Self {
        let head = RawHead {
            bundle: id.0,
            channel: "default",
            sequence,
            name: Bytes(name),
            created_ms: 1_700_000_000_000,
            symbol_size: SYMBOL_SIZE,
            block_symbols: BLOCK_SYMBOLS,
        };
        let announce = sign(signed::ANNOUNCE, RawAnnounce { head, entries: entries.to_vec() }.encode(), signer);
        let mut rest = &data[..];
        let mut files = Vec::new();
        for entry in entries {
            if let RawKind::File { size, .. } = entry.kind {
                let (file, after) = rest.split_at(rest.len().min(usize::try_from(size).unwrap_or(usize::MAX)));
                files.push(*blake3::hash(file).as_bytes());
                rest = after;
            }
        }
        let outcome = RawOutcome::Complete { files: files.into() };
        let payload = RawHashes { bundle: id.0, announce: *blake3::hash(&announce).as_bytes(), outcome }.encode();
        let hashes = sign(signed::HASHES, payload, signer);
        Self { id, announce, data, hashes }
    }

    /// The bytes of one of its objects.
    pub fn object(&self, kind: ObjectKind) -> &[u8] {
        match kind {
            ObjectKind::Announce => &self.announce,
            ObjectKind::Data => &self.data,
            ObjectKind::Hashes => &self.hashes,
        }
    }
}

/// A regular file of mode 0644.
pub fn file_entry(path: &[u8], size: u64) -> RawEntry<'_> {
    RawEntry { path: Bytes(path), secs: 1_600_000_000, nanos: 5, kind: RawKind::File { size, mode: 0o644 } }
}

/// A directory of mode 0755.
pub fn directory_entry(path: &[u8]) -> RawEntry<'_> {
    RawEntry { path: Bytes(path), secs: 1_600_000_000, nanos: 5, kind: RawKind::Directory { mode: 0o755 } }
}

/// A symlink.
pub fn symlink_entry<'a>(path: &'a [u8], target: &'a [u8]) -> RawEntry<'a> {
    RawEntry { path: Bytes(path), secs: 1_600_000_000, nanos: 5, kind: RawKind::Symlink { target: Bytes(target) } }
}

fn sign(domain: &'static [u8], payload: Vec<u8>, signer: &Signer<'_>) -> Vec<u8> {
    match signer {
        Signer::Key(key) => signed::seal(domain, &payload, key),
        Signer::Nobody => signed::seal_unsigned(&payload),
        Signer::Tampered(key) => {
            let mut bytes = signed::seal(domain, &payload, key);
            // The last byte is a digit of a time, a size or a hash: the payload still decodes.
            *bytes.last_mut().expect("a signed object is not empty") ^= 1;
            bytes
        }
    }
}
