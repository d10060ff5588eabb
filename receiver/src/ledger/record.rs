//! The records of the ledger's journal, in their current version.
//!
//! Never change a layout, not even by adding to its end, nor any type from elsewhere that is part of it. For a new layout, raise
//! the version in [`SCHEMA`], move the old types to a module `v1` with a `From` that converts them to the current ones, add an
//! arm for them to [`decode`], and add a file of the new layout to `tests/records` beside the old one. Opening an older journal
//! rewrites it.

use checkvalve_host::journal::{MAX_RECORD, Schema};
use checkvalve_protocol::beacon::order::Known;
use checkvalve_protocol::codec::{self, CodecError};
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};
use serde::{Deserialize, Serialize};

use super::arrival::Arrival;
use super::channel::Saved;
use super::{Entry, Hold, Signer, Standing, State};

/// The records of this ledger.
pub(in crate::ledger) const SCHEMA: Schema = Schema::new(b"ledger", 2);

/// One record: everything known about one thing.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Record {
    Entry(SavedEntry),
    Forget(BundleId),
    Channel(ChannelName, Saved),
    Sender(KeyId, Known),
}

/// An [`Entry`], with the state that people see and whether it is in the inbox.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct SavedEntry {
    pub(super) id: BundleId,
    pub(super) channel: Option<ChannelName>,
    pub(super) sequence: u64,
    pub(super) name: Vec<u8>,
    pub(super) bytes: u64,
    pub(super) state: State,
    pub(super) standing: Standing,
    pub(super) signer: Option<Signer>,
    pub(super) announce: Option<[u8; 32]>,
    pub(super) hold: Option<Hold>,
    pub(super) rule: Option<String>,
    pub(super) spoilt: u32,
    pub(super) reason: Option<String>,
    pub(super) sent: bool,
    pub(super) published: bool,
    pub(super) attempt: u32,
    pub(super) not_before_ms: u64,
    pub(super) first_ms: u64,
    pub(super) changed_ms: u64,
}

impl From<&Entry> for SavedEntry {
    fn from(entry: &Entry) -> Self {
        Self {
            id: entry.id,
            channel: entry.channel.clone(),
            sequence: entry.sequence,
            name: entry.name.clone(),
            bytes: entry.bytes,
            state: entry.state(),
            standing: entry.standing,
            signer: entry.signer.clone(),
            announce: entry.announce,
            hold: entry.hold.clone(),
            rule: entry.rule.clone(),
            spoilt: entry.spoilt,
            reason: entry.reason.clone(),
            sent: entry.sent,
            published: entry.is_published(),
            attempt: entry.attempt,
            not_before_ms: entry.not_before_ms,
            first_ms: entry.first_ms,
            changed_ms: entry.changed_ms,
        }
    }
}

impl From<SavedEntry> for Entry {
    fn from(saved: SavedEntry) -> Self {
        Self {
            id: saved.id,
            channel: saved.channel,
            sequence: saved.sequence,
            name: saved.name,
            bytes: saved.bytes,
            arrival: Arrival::of(saved.state, saved.published),
            standing: saved.standing,
            signer: saved.signer,
            announce: saved.announce,
            hold: saved.hold,
            rule: saved.rule,
            spoilt: saved.spoilt,
            reason: saved.reason,
            sent: saved.sent,
            attempt: saved.attempt,
            not_before_ms: saved.not_before_ms,
            first_ms: saved.first_ms,
            changed_ms: saved.changed_ms,
        }
    }
}

/// Decodes a record of any version up to that of [`SCHEMA`]. Errors: the bytes are not a record.
pub(super) fn decode(version: u8, bytes: &[u8]) -> Result<Record, CodecError> {
    match version {
        1 => codec::decode(bytes, MAX_RECORD).map(v1::Record::into),
        2 => codec::decode(bytes, MAX_RECORD),
        other => unreachable!("the journal refuses version {other}"),
    }
}

/// Version 1: without [`Saved::opened_by`].
mod v1 {
    use super::{BundleId, ChannelName, Deserialize, KeyId, Known, SavedEntry};

    #[derive(Deserialize)]
    pub(super) enum Record {
        Entry(SavedEntry),
        Forget(BundleId),
        Channel(ChannelName, Saved),
        Sender(KeyId, Known),
    }

    #[derive(Deserialize)]
    pub(super) struct Saved {
        baseline: Option<u64>,
        passed: u64,
        floor: u64,
        newest: u64,
        begun: u64,
        rejected: Vec<(u64, u64)>,
    }

    impl From<Record> for super::Record {
        fn from(record: Record) -> Self {
            match record {
                Record::Entry(entry) => Self::Entry(entry),
                Record::Forget(id) => Self::Forget(id),
                Record::Channel(name, saved) => Self::Channel(name, saved.into()),
                Record::Sender(key, known) => Self::Sender(key, known),
            }
        }
    }

    impl From<Saved> for super::Saved {
        fn from(saved: Saved) -> Self {
            Self {
                baseline: saved.baseline,
                passed: saved.passed,
                floor: saved.floor,
                newest: saved.newest,
                begun: saved.begun,
                rejected: saved.rejected,
                opened_by: None,
            }
        }
    }
}

#[cfg(test)]
mod tests;
