//! What a bundle is, signed: the *announce* before its data, the *hashes* after it. `SPEC.md` specifies the bytes.
//!
//! A value that was opened has passed every rule here and a trusted key's signature; nothing of one that did not
//! pass should reach a disk.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod entries;
mod error;
mod hashes;
pub mod raw;
mod rules;
pub mod signed;

use crate::codec::{self, Bytes};
use crate::crypto::{SigningKey, TrustStore};
use crate::extension;
use crate::id::{BundleId, ChannelName, KeyId};
use crate::limits::MAX_MANIFEST_LEN;
use crate::partition::Oti;
use crate::path::{LinkTarget, SafePath};
pub use entries::{Entries, EntryRef, Iter};
pub use error::{EntryError, ManifestError};
pub use hashes::{Hashes, MAX_REASON_LEN, Outcome};

/// What is known of a bundle before its data is read: the transport object of kind announce, once signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// The bundle, for ever.
    pub bundle: BundleId,
    /// Its channel.
    pub channel: ChannelName,
    /// Its number in the channel, from 1.
    pub sequence: u64,
    /// The name of what was dropped: one component, the path of the first entry.
    pub name: Vec<u8>,
    /// When the sender made this, in milliseconds since 1970 by its clock.
    pub created_ms: u64,
    /// T of the data object in bytes.
    pub symbol_size: u16,
    /// B of the data object in symbols.
    pub block_symbols: u16,
    /// The file, or the directory and all that is in it, in the order of [`SafePath`].
    pub entries: Entries,
}

/// One file, directory or symlink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is, the bundle's name first.
    pub path: SafePath,
    /// When it was last modified.
    pub mtime: Timestamp,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is. A mode is the lowest nine permission bits; others are refused. `T` is a [`LinkTarget`], or a
/// [`TargetRef`](crate::path::TargetRef) in an [`EntryRef`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind<T = LinkTarget> {
    /// A regular file.
    File {
        /// Its length in bytes.
        size: u64,
        /// Its permissions, at most `0o777`.
        mode: u16,
    },
    /// A directory, which may be empty.
    Directory {
        /// Its permissions, at most `0o777`.
        mode: u16,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: T,
    },
}

/// A point in time on the sender's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub secs: i64,
    /// Nanoseconds after that, below 10⁹.
    pub nanos: u32,
}

/// Where a regular file's contents are in the data object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSpan {
    /// Its index in [`Announce::entries`].
    pub entry: usize,
    /// Where it begins in the data object, in bytes.
    pub offset: u64,
    /// Its length in bytes, which may be 0.
    pub size: u64,
}

/// The first fields of an announce, for naming a bundle whose announce is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The bundle.
    pub bundle: BundleId,
    /// Its channel.
    pub channel: ChannelName,
    /// Its number in the channel; not checked, may be 0.
    pub sequence: u64,
    /// Its name; not checked, any bytes.
    pub name: Vec<u8>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// T of its data object; not checked.
    pub symbol_size: u16,
    /// B of its data object; not checked.
    pub block_symbols: u16,
}

/// A value whose signature a trusted key made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened<T> {
    /// The value.
    pub value: T,
    /// Whose signature it is.
    pub signer: KeyId,
    /// What the trust store calls that key.
    pub signer_name: String,
    /// The BLAKE3 of all the signed bytes.
    pub digest: [u8; 32],
}

impl Announce {
    /// Checks every rule of `SPEC.md` section "Announce rules". Time and memory are linear in the length of the paths.
    /// Errors: every [`ManifestError`] that is about an announce's content.
    pub fn check(&self) -> Result<(), ManifestError> {
        rules::check(self)
    }

    /// The data object's OTI. None: there is no data, or the announce was not checked.
    #[must_use]
    pub fn oti(&self) -> Option<Oti> {
        Oti::new(self.data_len(), self.symbol_size, self.block_symbols).ok()
    }

    /// Length of the data object in bytes: the sum of the files' sizes (saturating where the rules are broken).
    #[must_use]
    pub fn data_len(&self) -> u64 {
        self.files().fold(0, |sum, file| sum.saturating_add(file.size))
    }

    /// The regular files in the order in which their contents make up the data object.
    pub fn files(&self) -> impl Iterator<Item = FileSpan> {
        let mut next: u64 = 0;
        self.entries.iter().enumerate().filter_map(move |(entry, e)| match e.kind {
            EntryKind::File { size, .. } => {
                let offset = next;
                next = next.saturating_add(size);
                Some(FileSpan { entry, offset, size })
            }
            EntryKind::Directory { .. } | EntryKind::Symlink { .. } => None,
        })
    }

    /// Checks, encodes and signs. Errors: as [`Announce::check`], and [`ManifestError::TooLong`].
    pub fn sign(&self, key: &SigningKey) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let head = raw::RawHead {
            bundle: self.bundle.0,
            channel: self.channel.as_str(),
            sequence: self.sequence,
            name: Bytes(&self.name),
            created_ms: self.created_ms,
            symbol_size: self.symbol_size,
            block_symbols: self.block_symbols,
        };
        let payload = raw::RawAnnounce { head, entries: raw::CheckedEntries(&self.entries) }.encode_with(&[]);
        signed::within_limit(signed::seal(signed::ANNOUNCE, &payload, key))
    }

    /// Opens what [`Announce::sign`] made. The signature is checked before anything is decoded.
    ///
    /// Errors: [`ManifestError::TooLong`], `Container`, `Unsigned`, `UnknownKey`, `BadSignature`; then what decoding and the
    /// rules find, and those come from a bundle that a trusted key signed.
    pub fn open(bytes: &[u8], trust: &TrustStore) -> Result<Opened<Self>, ManifestError> {
        let envelope = signed::open(signed::ANNOUNCE, bytes, trust)?;
        Ok(Opened {
            value: Self::decode(envelope.payload)?,
            signer: envelope.signer,
            signer_name: envelope.signer_name,
            digest: blake3::hash(bytes).into(),
        })
    }

    /// Decodes and checks without any trust in what comes out: for the reason that is written of a refused bundle.
    /// Errors: as [`Announce::open`], without those of the signature.
    pub fn peek(bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::decode(signed::parse(bytes)?.payload)
    }

    /// Decodes the first fields alone, without any trust: names a bundle whose entries break the rules.
    /// Errors: [`ManifestError::TooLong`], `Container`, `Codec`, `Channel`.
    pub fn peek_head(bytes: &[u8]) -> Result<Head, ManifestError> {
        Head::decode(signed::parse(bytes)?.payload)
    }

    /// Of a payload whose signature was checked, or will never count.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, ManifestError> {
        let (decoded, used): (raw::RawAnnounce<'_, raw::Decoded>, _) = codec::decode_prefix(payload, MAX_MANIFEST_LEN)?;
        let head = Head::new(&decoded.head)?;
        let entries = decoded.entries.0?;
        extension::check(payload.get(used..).unwrap_or_default())?;
        let announce = Self {
            bundle: head.bundle,
            channel: head.channel,
            sequence: head.sequence,
            name: head.name,
            created_ms: head.created_ms,
            symbol_size: head.symbol_size,
            block_symbols: head.block_symbols,
            entries,
        };
        announce.check()?;
        Ok(announce)
    }
}

impl Head {
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, ManifestError> {
        let (head, _) = codec::decode_prefix::<raw::RawHead<'_>>(payload, MAX_MANIFEST_LEN)?;
        Self::new(&head)
    }

    fn new(raw: &raw::RawHead<'_>) -> Result<Self, ManifestError> {
        Ok(Self {
            bundle: BundleId(raw.bundle),
            channel: ChannelName::new(raw.channel).map_err(|_| ManifestError::Channel)?,
            sequence: raw.sequence,
            name: raw.name.0.to_vec(),
            created_ms: raw.created_ms,
            symbol_size: raw.symbol_size,
            block_symbols: raw.block_symbols,
        })
    }
}

#[cfg(test)]
mod tests;
