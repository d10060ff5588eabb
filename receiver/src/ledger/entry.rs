//! What the ledger knows about a bundle, and what the rest of the receiver reports to it.
//!
//! [`State`], [`Hold`], [`Standing`] and [`Signer`] are saved in this layout. `ledger/record.rs` says how it may change.

use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};
use checkvalve_protocol::limits::{MAX_CHANNELS, MAX_JUMP};
use serde::{Deserialize, Serialize};

use super::arrival::Arrival;

/// The state of a bundle.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its datagrams are arriving, or are about to.
    Receiving,
    /// Its transmission ended or fell silent, and something is missing.
    Incomplete,
    /// It was transmitted, and nothing of it arrived.
    Missing,
    /// It is not what a trusted key signed, or its hook refused it.
    Quarantined,
    /// Published. Without a hook this is the end; with one it waits for its turn.
    Complete,
    /// Its hook runs, or is to run again.
    Installing,
    /// Its hook succeeded.
    Installed,
    /// Its hook failed; it is still in the inbox.
    Failed,
    /// The sender gave it up: it changed while it was read, or vanished.
    Withdrawn,
    /// An operator gave it up here.
    Rejected,
    /// It was published after a later bundle had gone to the hook, so it is never installed.
    Superseded,
    /// It is correctly signed, but its place in the channel is suspicious, so it waits for an operator.
    Held,
}

/// Why a bundle is held. Nothing of it is received until an operator allows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Hold {
    /// Its sequence is more than [`MAX_JUMP`] above the newest.
    Jump {
        /// The newest sequence at that time.
        newest: u64,
    },
    /// There is no room for another channel.
    Channels,
    /// Another bundle has its sequence.
    Sequence {
        /// That bundle.
        holder: BundleId,
    },
}

impl State {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 12] = [
        Self::Receiving,
        Self::Incomplete,
        Self::Missing,
        Self::Quarantined,
        Self::Complete,
        Self::Installing,
        Self::Installed,
        Self::Failed,
        Self::Withdrawn,
        Self::Rejected,
        Self::Superseded,
        Self::Held,
    ];

    /// Whether the bundle is finished: nothing more is received or run for it.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(
            self,
            Self::Quarantined | Self::Installed | Self::Failed | Self::Withdrawn | Self::Rejected | Self::Superseded
        )
    }

    /// Whether the bundle still has to be received.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Receiving | Self::Incomplete | Self::Missing)
    }

    /// Whether the bundle lacks something that will not come without a resend.
    #[must_use]
    pub fn is_lacking(self) -> bool {
        matches!(self, Self::Incomplete | Self::Missing)
    }

    /// Its name in `status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Receiving => "receiving",
            Self::Incomplete => "incomplete",
            Self::Missing => "missing",
            Self::Quarantined => "quarantined",
            Self::Complete => "complete",
            Self::Installing => "installing",
            Self::Installed => "installed",
            Self::Failed => "failed",
            Self::Withdrawn => "withdrawn",
            Self::Rejected => "rejected",
            Self::Superseded => "superseded",
            Self::Held => "held",
        }
    }
}

impl Hold {
    /// Its name for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Jump { .. } => "sequence-jump",
            Self::Channels => "too-many-channels",
            Self::Sequence { .. } => "sequence-reused",
        }
    }
}

/// The source that vouches for an entry. Later variants outrank earlier ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Standing {
    /// An accepted beacon.
    Heard,
    /// An accepted announce.
    Signed,
}

/// The key that signed a bundle.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Signer {
    /// The key.
    pub key: KeyId,
    /// The operator's name for it.
    pub name: String,
}

/// One bundle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The bundle.
    pub id: BundleId,
    /// Its channel; None while unknown.
    pub channel: Option<ChannelName>,
    /// Its number in the channel, from 1; 0 while unknown.
    pub sequence: u64,
    /// Its name as bytes; empty while unknown.
    pub name: Vec<u8>,
    /// Sum of its files' sizes in bytes; 0 while unknown.
    pub bytes: u64,
    /// How far it has come.
    pub(super) arrival: Arrival,
    /// Where this knowledge comes from.
    pub standing: Standing,
    /// The key that signed it.
    pub signer: Option<Signer>,
    /// BLAKE3 of the signed announce.
    pub announce: Option<[u8; 32]>,
    /// Why it is held.
    pub hold: Option<Hold>,
    /// The rule that put it into quarantine.
    pub rule: Option<String>,
    /// How often its content was discarded because it did not match its hashes.
    pub spoilt: u32,
    /// Why it is in this state, for people.
    pub reason: Option<String>,
    /// The sender says that its transmission has ended.
    pub sent: bool,
    /// How often its hook was started.
    pub attempt: u32,
    /// Its hook is not started again before this, in Unix milliseconds.
    pub not_before_ms: u64,
    /// When the receiver first heard of it, in Unix milliseconds.
    pub first_ms: u64,
    /// When its state changed last, in Unix milliseconds.
    pub changed_ms: u64,
}

/// What an accepted announce says about a bundle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    /// The bundle.
    pub id: BundleId,
    /// Its channel.
    pub channel: ChannelName,
    /// Its number in the channel, from 1.
    pub sequence: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// Sum of its files' sizes in bytes.
    pub bytes: u64,
    /// Who signed it.
    pub signer: Signer,
    /// BLAKE3 of the signed announce.
    pub digest: [u8; 32],
}

/// Why a signed announce is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The same bundle id was announced with other contents.
    #[error("the bundle was announced before with other contents")]
    OtherAnnounce,
    /// The sequence belongs to another bundle that is published, or too many bundles claim it.
    #[error("sequence {sequence} of channel {channel} is bundle {holder} already")]
    SequenceTaken {
        /// The channel.
        channel: ChannelName,
        /// The number in it.
        sequence: u64,
        /// The bundle that has the sequence.
        holder: BundleId,
    },
    /// The bundle, or whatever has its sequence, has already ended.
    #[error("sequence {sequence} of channel {channel} has come to an end already")]
    Over {
        /// The channel.
        channel: ChannelName,
        /// The number in it.
        sequence: u64,
    },
    /// The config does not name the channel, and its key has opened as many of that kind as it may, or all keys have.
    #[error(
        "the config does not name its channel, and its key has opened {} of that kind already, or all keys {MAX_CHANNELS}",
        super::CHANNELS_OF_KEY
    )]
    Channels,
    /// [`super::MOST_OPEN`] announced bundles of the channel are under way.
    #[error("{} bundles of the channel are under way already", super::MOST_OPEN)]
    Crowded,
    /// The sequence is more than [`MAX_JUMP`] above the newest.
    #[error("sequence {sequence} of channel {channel} is more than {MAX_JUMP} above the newest, {newest}")]
    Jump {
        /// The channel.
        channel: ChannelName,
        /// The number in it.
        sequence: u64,
        /// The newest so far.
        newest: u64,
    },
}

/// What an accepted beacon says about a bundle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heard {
    /// The key that signed the beacon.
    pub signer: Signer,
    /// The bundle.
    pub id: BundleId,
    /// Its number in the channel.
    pub sequence: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its name; empty if the beacon had no room for it.
    pub name: Vec<u8>,
    /// It is being transmitted.
    pub on_wire: bool,
    /// Its transmission has ended.
    pub sent: bool,
    /// The sender gave it up.
    pub withdrawn: bool,
}

impl Entry {
    /// A bundle of which only its id is known.
    #[must_use]
    pub fn new(id: BundleId, now_ms: u64) -> Self {
        Self {
            id,
            channel: None,
            sequence: 0,
            name: Vec::new(),
            bytes: 0,
            arrival: Arrival::Receiving,
            standing: Standing::Heard,
            signer: None,
            announce: None,
            hold: None,
            rule: None,
            spoilt: 0,
            reason: None,
            sent: false,
            attempt: 0,
            not_before_ms: 0,
            first_ms: now_ms,
            changed_ms: now_ms,
        }
    }
}
