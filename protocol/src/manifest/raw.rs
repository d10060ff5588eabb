//! The content of manifests as it is encoded, before any rule: every field may hold anything.
//!
//! Public so that tests of a receiver can make what no sender would. Fields are in the order of their bytes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Entries, EntryError, EntryKind, EntryRef, ManifestError, Timestamp};
use crate::codec::{self, Bytes};
use crate::extension::{self, RawExtension};
use crate::limits::MAX_ENTRIES;
use crate::path::{PathRef, TargetRef};

/// An announce; `E` is a sequence of [`RawEntry`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RawAnnounce<'a, E> {
    /// All but the entries.
    #[serde(borrow)]
    pub head: RawHead<'a>,
    /// The entries.
    pub entries: E,
}

/// The first fields of an announce.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RawHead<'a> {
    /// The bundle's id.
    pub bundle: u64,
    /// The channel's name.
    pub channel: &'a str,
    /// The number in the channel.
    pub sequence: u64,
    /// The bundle's name.
    #[serde(borrow)]
    pub name: Bytes<'a>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// T of the data object.
    pub symbol_size: u16,
    /// B of the data object.
    pub block_symbols: u16,
}

/// One entry.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RawEntry<'a> {
    /// The path.
    #[serde(borrow)]
    pub path: Bytes<'a>,
    /// Modification time, seconds since 1970.
    pub secs: i64,
    /// Nanoseconds after that.
    pub nanos: u32,
    /// What it is.
    #[serde(borrow)]
    pub kind: RawKind<'a>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum RawKind<'a> {
    /// Tag 0.
    File {
        /// Bytes.
        size: u64,
        /// Permissions.
        mode: u16,
    },
    /// Tag 1.
    Directory {
        /// Permissions.
        mode: u16,
    },
    /// Tag 2.
    Symlink {
        /// Where it points.
        #[serde(borrow)]
        target: Bytes<'a>,
    },
}

/// Hashes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RawHashes<'a> {
    /// The bundle's id.
    pub bundle: u64,
    /// BLAKE3 of the signed announce.
    pub announce: [u8; 32],
    /// How reading the bundle ended.
    #[serde(borrow)]
    pub outcome: RawOutcome<'a>,
}

/// How reading a bundle ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RawOutcome<'a> {
    /// Tag 0.
    Complete {
        /// BLAKE3 of each file.
        files: Cow<'a, [[u8; 32]]>,
    },
    /// Tag 1.
    Withdrawn {
        /// For people.
        reason: &'a str,
    },
}

impl<E: Serialize> RawAnnounce<'_, E> {
    /// The payload of a signed announce.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.encode_with(&[])
    }

    /// The same with extensions.
    #[must_use]
    pub fn encode_with(&self, extensions: &[RawExtension<'_>]) -> Vec<u8> {
        with_extensions(self, extensions)
    }
}

impl RawHashes<'_> {
    /// The payload of signed hashes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.encode_with(&[])
    }

    /// The same with extensions.
    #[must_use]
    pub fn encode_with(&self, extensions: &[RawExtension<'_>]) -> Vec<u8> {
        with_extensions(self, extensions)
    }
}

fn with_extensions<T: Serialize>(fields: &T, extensions: &[RawExtension<'_>]) -> Vec<u8> {
    let mut payload = codec::encode(fields);
    payload.extend(extension::encode(extensions));
    payload
}

impl<'a> From<EntryRef<'a>> for RawEntry<'a> {
    fn from(entry: EntryRef<'a>) -> Self {
        let kind = match entry.kind {
            EntryKind::File { size, mode } => RawKind::File { size, mode },
            EntryKind::Directory { mode } => RawKind::Directory { mode },
            EntryKind::Symlink { target } => RawKind::Symlink { target: Bytes(target.as_bytes()) },
        };
        let Timestamp { secs, nanos } = entry.mtime;
        Self { path: Bytes(entry.path.as_bytes()), secs, nanos, kind }
    }
}

impl<'a> TryFrom<RawEntry<'a>> for EntryRef<'a> {
    type Error = EntryError;

    fn try_from(raw: RawEntry<'a>) -> Result<Self, EntryError> {
        let path = PathRef::new(raw.path.0).map_err(EntryError::Path)?;
        let kind = match raw.kind {
            RawKind::File { size, mode } => EntryKind::File { size, mode },
            RawKind::Directory { mode } => EntryKind::Directory { mode },
            RawKind::Symlink { target } => {
                EntryKind::Symlink { target: TargetRef::new(path, target.0).map_err(EntryError::Target)? }
            }
        };
        Ok(Self { path, mtime: Timestamp { secs: raw.secs, nanos: raw.nanos }, kind })
    }
}

/// Entries on their way out.
pub(super) struct CheckedEntries<'a>(pub(super) &'a Entries);

impl Serialize for CheckedEntries<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.0.iter().map(RawEntry::from))
    }
}

/// Entries on their way in: each becomes its checked form at once, and the first that cannot ends it.
pub(super) struct Decoded(pub(super) Result<Entries, ManifestError>);

impl<'de> Deserialize<'de> for Decoded {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_seq(Collect).map(Self)
    }
}

struct Collect;

impl<'de> Visitor<'de> for Collect {
    type Value = Result<Entries, ManifestError>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        if seq.size_hint().is_none_or(|declared| declared > MAX_ENTRIES) {
            return Ok(Err(ManifestError::TooManyEntries));
        }
        let mut entries = Entries::new();
        while let Some(raw) = seq.next_element::<RawEntry<'de>>()? {
            match EntryRef::try_from(raw) {
                Ok(entry) => entries.add(entry),
                Err(error) => return Ok(Err(ManifestError::Entry { index: entries.len(), error })),
            }
        }
        Ok(Ok(entries))
    }
}
