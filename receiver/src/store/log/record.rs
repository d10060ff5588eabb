//! What the journal of staging says, in its present version.
//!
//! A layout is never changed, not even at its end. What is to be different gets the next version in [`SCHEMA`]: the old types
//! move to a module `v1` with a `From` that makes the present ones of them, [`decode`] gets an arm for them, and
//! `tests/records` a file of the new layout beside the old one. The journal is rewritten each time it is opened.
//!
//! The version is that of all of staging: the directories of the bundles and the files in them, too, which have none of
//! their own. So an older program that refuses the journal leaves them alone.

use checkvalve_host::journal::{MAX_RECORD, Schema};
use checkvalve_protocol::codec::{self, CodecError};
use serde::{Deserialize, Serialize};

use super::BootId;

/// The records of this journal.
pub(super) const SCHEMA: Schema = Schema::new(b"stored", 1);

/// Reads a record of a version up to that of [`SCHEMA`]. Errors: it does not hold one.
pub(super) fn decode(version: u8, bytes: &[u8]) -> Result<Record, CodecError> {
    match version {
        1 => codec::decode(bytes, MAX_RECORD),
        other => unreachable!("the journal refuses version {other}"),
    }
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// From here on, the kernel is this one.
    Boot(BootId),
    Length {
        id: u64,
        length: u64,
    },
    /// Bytes in their files. If they were in the flat file before, they moved.
    Tree {
        id: u64,
        start: u64,
        end: u64,
    },
    /// Bytes in the flat file.
    Flat {
        id: u64,
        start: u64,
        end: u64,
    },
    /// All of the first so many records would survive a power cut.
    Checkpoint {
        records: u64,
    },
    /// Nothing is stored of the bundle.
    Forget {
        id: u64,
    },
    /// A sync failed: only what a checkpoint covers is there.
    Unsynced,
    /// Bytes that were stored are not any more, nor would a power cut leave them.
    Lost {
        id: u64,
        start: u64,
        end: u64,
    },
}

#[cfg(test)]
mod tests;
