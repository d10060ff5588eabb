//! What a sender says of itself once a second: who is sending, what is on the wire, what was sent. `SPEC.md` specifies
//! the bytes. They are signed: nothing of them is believed before [`Beacon::open`], and [`order`] says whether they are news.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

pub mod order;
mod raw;

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::crypto::{SigningKey, TrustStore};
use crate::extension::{self, ExtensionError};
use crate::id::{BundleId, ChannelName, EpochId, KeyTag, SessionId};
use crate::limits::{MAX_BEACON_LEN, MAX_NAME_LEN, MAX_SEQUENCE};
use crate::manifest::{ManifestError, Opened, signed};
use raw::RawBeacon;

/// The content of a beacon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beacon {
    /// The state of the sender that says this.
    pub epoch: Epoch,
    /// Counts the runs of this sender in this epoch, from 1.
    pub session_number: u64,
    /// The session of the datagrams.
    pub session: SessionId,
    /// Counts the beacons of this session, from 1.
    pub counter: u64,
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

/// A sender's state: from when it was made until it is lost, restored or cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1; raised by an operator only.
    pub number: u64,
    /// Tells two states of one number apart.
    pub id: EpochId,
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
    /// The envelope: not signed, not by a trusted key, not rightly.
    #[error(transparent)]
    Signed(ManifestError),
    /// Its extensions are refused.
    #[error(transparent)]
    Extension(ExtensionError),
    /// An epoch's number, a session's or the counter is 0 or too large.
    #[error("a number is not 1 to {MAX_SEQUENCE}")]
    Number,
    /// It came in a datagram of another session.
    #[error("it is of another session than its datagram")]
    OtherSession,
    /// A bundle belongs to another key than the one that signed.
    #[error("it speaks of a bundle of another key")]
    ForeignBundle,
    /// A channel's name is none.
    #[error("a channel's name is not one")]
    Channel,
    /// A bundle's sequence is 0.
    #[error("a bundle's sequence is 0")]
    SequenceZero,
    /// A bundle's sequence, or the newest of a channel, is over [`MAX_SEQUENCE`].
    #[error("a sequence is over {MAX_SEQUENCE}")]
    SequenceTooLarge,
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
            Self::Signed(error) => error.rule(),
            Self::Extension(error) => error.rule(),
            Self::Number => "number",
            Self::OtherSession => "other-session",
            Self::ForeignBundle => "foreign-bundle",
            Self::Channel => "channel",
            Self::SequenceZero => "sequence-zero",
            Self::SequenceTooLarge => "sequence-too-large",
            Self::Order => "order",
            Self::NameTooLong => "name-too-long",
        }
    }
}

impl From<ExtensionError> for BeaconError {
    fn from(error: ExtensionError) -> Self {
        match error {
            ExtensionError::Codec(error) => error.into(),
            error => Self::Extension(error),
        }
    }
}

/// Fewest bytes that hold a signed beacon of nothing but what is never left out.
pub const MIN_BEACON_LEN: usize = signed::PREFIX_LEN + 75;

impl Beacon {
    /// Signs, in at most `limit` bytes: leaves out the oldest recent bundles until one is left, then its name, then it, then the
    /// channel, then what is on the wire. Names longer than [`MAX_NAME_LEN`] are left out. With a `limit` under
    /// [`MIN_BEACON_LEN`], the result may be longer.
    #[must_use]
    pub fn sign(&self, key: &SigningKey, limit: usize) -> Vec<u8> {
        signed::seal(signed::BEACON, &self.encode(limit.saturating_sub(signed::PREFIX_LEN)), key)
    }

    /// Opens what [`Beacon::sign`] made. Errors: every [`BeaconError`] but [`BeaconError::OtherSession`].
    pub fn open(bytes: &[u8], trust: &TrustStore) -> Result<Opened<Self>, BeaconError> {
        if bytes.len() > MAX_BEACON_LEN {
            return Err(BeaconError::Signed(ManifestError::TooLong(bytes.len())));
        }
        let envelope = signed::open(signed::BEACON, bytes, trust).map_err(BeaconError::Signed)?;
        let value = Self::decode(envelope.payload, envelope.signer.tag())?;
        let signed::Verified { signer, signer_name, .. } = envelope;
        Ok(Opened { value, signer, signer_name, digest: [0; 32] })
    }

    /// Decodes and checks without any trust in what comes out: for who signed it, or records it.
    /// Errors: as [`Beacon::open`], without those of the signature.
    pub fn peek(bytes: &[u8]) -> Result<Self, BeaconError> {
        let envelope = signed::parse(bytes).map_err(BeaconError::Signed)?;
        Self::decode(envelope.payload, envelope.signer.tag())
    }

    fn encode(&self, limit: usize) -> Vec<u8> {
        RawBeacon::from(self).encode(limit)
    }

    fn decode(payload: &[u8], signer: KeyTag) -> Result<Self, BeaconError> {
        let (raw, used) = codec::decode_prefix::<RawBeacon<'_>>(payload, MAX_BEACON_LEN)?;
        extension::check(payload.get(used..).unwrap_or_default())?;
        raw.check(signer)
    }
}

#[cfg(test)]
mod tests;
