//! What the ledger's journal says, in its present version.
//!
//! A layout is never changed, not even at its end, nor is one of the types from elsewhere that are in it. What is to be
//! different gets the next version in [`SCHEMA`]: the old types move to a module `v1` with a `From` that makes the present ones
//! of them, [`decode`] gets an arm for them, and `tests/records` a file of the new layout beside the old one. The journal is
//! rewritten when it is opened.

use checkvalve_host::journal::{MAX_RECORD, Schema};
use checkvalve_protocol::beacon::order::Known;
use checkvalve_protocol::codec::{self, CodecError};
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};
use serde::{Deserialize, Serialize};

use super::Entry;
use super::channel::Saved;

/// The records of this ledger.
pub(in crate::ledger) const SCHEMA: Schema = Schema::new(b"ledger", 1);

/// One record: all that is known of one thing.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Record {
    Entry(Entry),
    Forget(BundleId),
    Channel(ChannelName, Saved),
    Sender(KeyId, Known),
}

/// Reads a record of a version up to that of [`SCHEMA`]. Errors: it does not hold one.
pub(super) fn decode(version: u8, bytes: &[u8]) -> Result<Record, CodecError> {
    match version {
        1 => codec::decode(bytes, MAX_RECORD),
        other => unreachable!("the journal refuses version {other}"),
    }
}

#[cfg(test)]
mod tests;
