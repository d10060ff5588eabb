//! What the journal's records say, in their present version.
//!
//! A layout is never changed, not even at its end, nor is one of the types from elsewhere that are in it. What is to be
//! different gets the next version in [`SCHEMA`]: the old types move to a module `v1` with a `From` that makes the present ones
//! of them, [`decode`] gets an arm for them, and `tests/records` a file of the new layout beside the old one. The journal is
//! rewritten when it is opened. The version covers also the files `hashes` of the bundles that are held.

use checkvalve_host::journal::Schema;
use checkvalve_protocol::beacon::Epoch;
use checkvalve_protocol::codec::{self, CodecError};
use checkvalve_protocol::id::{BundleId, ChannelName};
use serde::{Deserialize, Serialize};

/// The records of this ledger.
pub(super) const SCHEMA: Schema = Schema::new(b"sender", 1);
/// Most bytes of an encoded record.
const MAX_LINE: usize = 1 << 20;

/// Reads a record of a version up to that of [`SCHEMA`]. Errors: it does not hold one.
pub(super) fn decode(version: u8, bytes: &[u8]) -> Result<Line, CodecError> {
    match version {
        1 => codec::decode(bytes, MAX_LINE),
        other => unreachable!("the journal refuses version {other}"),
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// The ledger's clock when it was written.
    pub(super) uptime_ms: u64,
    pub(super) change: Change,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A session with this number began.
    Session(u64),
    /// Only the time.
    Uptime,
    /// Sequences up to `last` are used up.
    Channel {
        /// The channel.
        name: ChannelName,
        /// The newest sequence that it has given out.
        last: u64,
    },
    /// All that is known of a bundle.
    Bundle(Box<BundleRecord>),
    /// A bundle is no longer remembered; its sequence stays used up.
    Forget(BundleId),
    /// A new epoch began: sessions are counted from 1 again.
    Epoch(Epoch),
}

/// All that the ledger knows of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleRecord {
    /// The bundle.
    pub id: BundleId,
    /// Its channel.
    pub channel: ChannelName,
    /// Its number in the channel, from 1. None: refused before it had one.
    pub sequence: Option<u64>,
    /// The name of what was dropped; any bytes.
    #[serde(with = "codec::bytes")]
    pub name: Vec<u8>,
    /// The inode of what was dropped, by which `send --wait` knows it again.
    pub inode: u64,
    /// When it was claimed, in milliseconds since 1970.
    pub claimed_ms: u64,
    /// Length of its data in bytes.
    pub bytes: u64,
    /// Files, directories and symlinks in it.
    pub entries: u64,
    /// How far it has come.
    pub state: State,
    /// BLAKE3 of the signed announce.
    pub announce: [u8; 32],
    /// [`Plan::fingerprint`](crate::bundle::Plan::fingerprint) of the files as they were announced, or as they were when
    /// their hashes were last proven.
    pub fingerprint: [u8; 32],
    /// BLAKE3 over the files' hashes, once all was read.
    pub hashes: Option<[u8; 32]>,
    /// T in bytes and B in symbols: a bundle keeps them, or its symbols would not fit together.
    pub symbol_size: u16,
    /// See `symbol_size`.
    pub block_symbols: u16,
    /// ESIs below this may have been used; 0 before the first transmission.
    pub next_esi: u32,
    /// Passes that are over.
    pub passes_done: u32,
    /// Transmissions that are over: passes, carousel turns and resends.
    pub sent: u32,
    /// When the next pass or carousel turn is due, on the ledger's clock.
    pub due_ms: Option<u64>,
    /// Resends that were asked for and are not over.
    pub resends: Vec<Resend>,
    /// When the last pass was over, in milliseconds since 1970.
    pub transmitted_ms: Option<u64>,
    /// The same on the ledger's clock, for retention.
    pub retained_since_ms: Option<u64>,
    /// Whether its content is held.
    pub held: bool,
}

/// How far a bundle has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It has a sequence and waits for its first pass, or for the next.
    Queued,
    /// Its first pass began.
    Transmitting,
    /// Its last pass is over.
    Transmitted,
    /// It will not come (any more), for this reason. With a sequence it is withdrawn.
    Failed(String),
}

/// A part of a bundle that is to be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resend {
    /// First block, and the one after the last, in order; empty: all of them.
    pub ranges: Vec<(u32, u32)>,
    /// How many symbols of each block of the range at the same place to send; None: as many as the block has and the
    /// usual repair.
    pub symbols: Vec<Option<u32>>,
    /// When it was asked for, in milliseconds since 1970.
    pub asked_ms: u64,
}

impl BundleRecord {
    /// A bundle of which nothing is known yet.
    #[must_use]
    pub fn new(id: BundleId, channel: ChannelName, state: State) -> Self {
        Self {
            id,
            channel,
            sequence: None,
            name: Vec::new(),
            inode: 0,
            claimed_ms: 0,
            bytes: 0,
            entries: 0,
            state,
            announce: [0; 32],
            fingerprint: [0; 32],
            hashes: None,
            symbol_size: 0,
            block_symbols: 0,
            next_esi: 0,
            passes_done: 0,
            sent: 0,
            due_ms: None,
            resends: Vec::new(),
            transmitted_ms: None,
            retained_since_ms: None,
            held: true,
        }
    }

    /// `transmitting`: its first pass begins. Of a later one nothing changes.
    pub fn begin(&mut self) {
        if self.state == State::Queued {
            self.state = State::Transmitting;
        }
    }

    /// `transmitted`: its last pass is over, or no other can follow. `at_ms` is when, in milliseconds since 1970, if that is known;
    /// `uptime_ms` is now, on the ledger's clock.
    pub fn end(&mut self, at_ms: Option<u64>, uptime_ms: u64) {
        self.state = State::Transmitted;
        self.due_ms = None;
        self.transmitted_ms = at_ms.or(self.transmitted_ms);
        self.retained_since_ms = Some(uptime_ms);
    }

    /// `failed`: it will not come (any more).
    pub fn give_up(&mut self, reason: String) {
        self.state = State::Failed(reason);
        self.due_ms = None;
        self.resends.clear();
    }

    /// Whether nothing more will happen to it: not held, and transmitted or failed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !self.held && matches!(self.state, State::Transmitted | State::Failed(_))
    }

    /// Whether it failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed(_))
    }

    /// Whether its first pass, or one of several, is still to come.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        matches!(self.state, State::Queued | State::Transmitting)
    }
}

#[cfg(test)]
mod tests;
