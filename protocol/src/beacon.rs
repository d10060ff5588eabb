//! What a sender says of itself once a second: who is sending, what is on the wire, what was sent. `SPEC.md` specifies
//! the bytes; the datagram around them is sealed, so they are the sender's word but need every bound all the same.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod raw;

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::id::{BundleId, ChannelName};
use crate::limits::{MAX_MTU, MAX_NAME_LEN};
use raw::RawBeacon;

/// The content of a beacon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beacon {
    /// Counts the runs of this sender, from 1; a later session has a higher one.
    pub session_number: u64,
    /// The sender's clock, in milliseconds since 1970.
    pub clock_ms: u64,
    /// The rate that the sender is set to, in bits a second on the wire.
    pub rate_bits: u64,
    /// Datagrams sent in this session before this one.
    pub datagrams: u64,
    /// The bundle on the wire, if any.
    pub on_wire: Option<OnWire>,
    /// One channel's recent past; beacons take turns with the channels.
    pub channel: Option<ChannelState>,
}

/// The bundle on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnWire {
    /// The bundle.
    pub bundle: BundleId,
    /// Its channel.
    pub channel: ChannelName,
    /// Its number in the channel, from 1.
    pub sequence: u64,
    /// The pass, from 1.
    pub pass: u32,
    /// How many passes there will be.
    pub passes: u32,
    /// Source blocks of this transmission.
    pub blocks: u32,
    /// How many of them have been sent.
    pub blocks_sent: u32,
}

/// A channel's recent past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelState {
    /// The channel.
    pub name: ChannelName,
    /// Its priority, the highest first.
    pub priority: i16,
    /// The newest sequence that it has given out; 0 before the first.
    pub newest: u64,
    /// Its newest bundles, newest first: sequences strictly descending, none above `newest`.
    pub recent: Vec<Recent>,
}

/// A bundle of the recent past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recent {
    /// Its number in the channel, from 1.
    pub sequence: u64,
    /// The bundle.
    pub bundle: BundleId,
    /// Length of its data in bytes.
    pub bytes: u64,
    /// How far the sender has come with it.
    pub state: RecentState,
    /// What it is called, at most [`MAX_NAME_LEN`] bytes; empty where there was no room.
    pub name: Vec<u8>,
}

/// How far the sender has come with a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecentState {
    /// Not yet begun.
    Queued,
    /// On the wire, or begun and waiting for others.
    Transmitting,
    /// Every pass is over.
    Transmitted,
    /// It failed at the sender and will not come.
    Withdrawn,
}

/// Why a beacon is dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BeaconError {
    /// Not encoded as it should be.
    #[error("malformed: {0}")]
    Codec(#[from] CodecError),
    /// A channel's name is none.
    #[error("a channel's name is not one")]
    Channel,
    /// A bundle's sequence is 0.
    #[error("a bundle's sequence is 0")]
    SequenceZero,
    /// Recent bundles are not newest first, or newer than the newest.
    #[error("recent bundles are not newest first")]
    Order,
    /// A bundle's name is longer than [`MAX_NAME_LEN`].
    #[error("a bundle's name is longer than {MAX_NAME_LEN} bytes")]
    NameTooLong,
}

impl BeaconError {
    /// The rule's name, for the test vectors: stable, lower case, words joined by `-`.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Codec(error) => error.rule(),
            Self::Channel => "channel",
            Self::SequenceZero => "sequence-zero",
            Self::Order => "order",
            Self::NameTooLong => "name-too-long",
        }
    }
}

impl Beacon {
    /// Encodes in at most `limit` bytes: drops the oldest recent bundles until one is left, then its name, then it, then the
    /// channel, then what is on the wire. Names longer than [`MAX_NAME_LEN`] are left out. `limit` is at least 38 bytes for what
    /// is never dropped; under that, the encoding is longer than asked.
    #[must_use]
    pub fn encode(&self, limit: usize) -> Vec<u8> {
        RawBeacon::from(self).encode(limit)
    }

    /// Decodes what [`Beacon::encode`] made, at most [`MAX_MTU`] bytes. Errors: every [`BeaconError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BeaconError> {
        codec::decode::<RawBeacon<'_>>(bytes, usize::from(MAX_MTU))?.try_into()
    }
}

#[cfg(test)]
mod tests;
