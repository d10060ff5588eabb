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

use super::Entry;
use super::channel::Saved;

/// The records of this ledger.
pub(in crate::ledger) const SCHEMA: Schema = Schema::new(b"ledger", 1);

/// One record: everything known about one thing.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Record {
    Entry(Entry),
    Forget(BundleId),
    Channel(ChannelName, Saved),
    Sender(KeyId, Known),
}

/// Decodes a record of any version up to that of [`SCHEMA`]. Errors: the bytes are not a record.
pub(super) fn decode(version: u8, bytes: &[u8]) -> Result<Record, CodecError> {
    match version {
        1 => codec::decode(bytes, MAX_RECORD),
        other => unreachable!("the journal refuses version {other}"),
    }
}

#[cfg(test)]
mod tests;
