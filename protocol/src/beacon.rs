//! What a sender says of itself once a second: who is sending, what is on the wire, what was sent. `SPEC.md` specifies
//! the bytes; the datagram around them is sealed, so they are the sender's word but need every bound all the same.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use serde::{Deserialize, Serialize};

use crate::codec::{self, Bytes, CodecError};
use crate::id::{BundleId, ChannelName};
use crate::limits::{MAX_MTU, MAX_NAME_LEN};

/// Fewest bytes that a [`Recent`] takes: four integers of one byte, a tag and an empty name.
const MIN_RECENT_LEN: usize = 5;

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

impl Beacon {
    /// Encodes in at most `limit` bytes: drops the oldest recent bundles until one is left, then its name, then it, then the
    /// channel, then what is on the wire. Names longer than [`MAX_NAME_LEN`] are left out. `limit` is at least 45 bytes for what
    /// is never dropped; under that, the encoding is longer than asked.
    #[must_use]
    pub fn encode(&self, limit: usize) -> Vec<u8> {
        let mut raw = RawBeacon::from(self);
        if let Some(channel) = &mut raw.channel {
            channel.recent.truncate(limit.div_ceil(MIN_RECENT_LEN));
        }
        loop {
            let bytes = codec::encode(&raw);
            if bytes.len() <= limit || !raw.shrink() {
                return bytes;
            }
        }
    }

    /// Decodes what [`Beacon::encode`] made, at most [`MAX_MTU`] bytes. Errors: every [`BeaconError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BeaconError> {
        let raw: RawBeacon<'_> = codec::decode(bytes, usize::from(MAX_MTU))?;
        Ok(Self {
            session_number: raw.session_number,
            clock_ms: raw.clock_ms,
            rate_bits: raw.rate_bits,
            datagrams: raw.datagrams,
            on_wire: raw.on_wire.map(OnWire::try_from).transpose()?,
            channel: raw.channel.map(ChannelState::try_from).transpose()?,
        })
    }
}

/// The fields in the order of their bytes.
#[derive(Serialize, Deserialize)]
struct RawBeacon<'a> {
    session_number: u64,
    clock_ms: u64,
    rate_bits: u64,
    datagrams: u64,
    #[serde(borrow)]
    on_wire: Option<RawOnWire<'a>>,
    #[serde(borrow)]
    channel: Option<RawChannel<'a>>,
}

#[derive(Serialize, Deserialize)]
struct RawOnWire<'a> {
    bundle: u64,
    channel: &'a str,
    sequence: u64,
    pass: u32,
    passes: u32,
    blocks: u32,
    blocks_sent: u32,
}

#[derive(Serialize, Deserialize)]
struct RawChannel<'a> {
    name: &'a str,
    priority: i16,
    newest: u64,
    #[serde(borrow)]
    recent: Vec<RawRecent<'a>>,
}

#[derive(Serialize, Deserialize)]
struct RawRecent<'a> {
    sequence: u64,
    bundle: u64,
    bytes: u64,
    state: RecentState,
    #[serde(borrow)]
    name: Bytes<'a>,
}

impl RawBeacon<'_> {
    /// Leaves out the next thing; `false` when nothing more can be.
    fn shrink(&mut self) -> bool {
        let Some(channel) = &mut self.channel else {
            return self.on_wire.take().is_some();
        };
        match channel.recent.as_mut_slice() {
            [] => self.channel = None,
            [only] if !only.name.0.is_empty() => only.name = Bytes(&[]),
            _ => _ = channel.recent.pop(),
        }
        true
    }
}

impl<'a> From<&'a Beacon> for RawBeacon<'a> {
    fn from(beacon: &'a Beacon) -> Self {
        Self {
            session_number: beacon.session_number,
            clock_ms: beacon.clock_ms,
            rate_bits: beacon.rate_bits,
            datagrams: beacon.datagrams,
            on_wire: beacon.on_wire.as_ref().map(|on_wire| RawOnWire {
                bundle: on_wire.bundle.0,
                channel: on_wire.channel.as_str(),
                sequence: on_wire.sequence,
                pass: on_wire.pass,
                passes: on_wire.passes,
                blocks: on_wire.blocks,
                blocks_sent: on_wire.blocks_sent,
            }),
            channel: beacon.channel.as_ref().map(|channel| RawChannel {
                name: channel.name.as_str(),
                priority: channel.priority,
                newest: channel.newest,
                recent: channel.recent.iter().map(RawRecent::from).collect(),
            }),
        }
    }
}

impl<'a> From<&'a Recent> for RawRecent<'a> {
    fn from(recent: &'a Recent) -> Self {
        let name = if recent.name.len() > MAX_NAME_LEN { &[] } else { recent.name.as_slice() };
        let Recent { sequence, bundle, bytes, state, .. } = *recent;
        Self { sequence, bundle: bundle.0, bytes, state, name: Bytes(name) }
    }
}

impl TryFrom<RawOnWire<'_>> for OnWire {
    type Error = BeaconError;

    fn try_from(raw: RawOnWire<'_>) -> Result<Self, BeaconError> {
        if raw.sequence == 0 {
            return Err(BeaconError::SequenceZero);
        }
        Ok(Self {
            bundle: BundleId(raw.bundle),
            channel: ChannelName::new(raw.channel).map_err(|_| BeaconError::Channel)?,
            sequence: raw.sequence,
            pass: raw.pass,
            passes: raw.passes,
            blocks: raw.blocks,
            blocks_sent: raw.blocks_sent,
        })
    }
}

impl TryFrom<RawChannel<'_>> for ChannelState {
    type Error = BeaconError;

    fn try_from(raw: RawChannel<'_>) -> Result<Self, BeaconError> {
        let name = ChannelName::new(raw.name).map_err(|_| BeaconError::Channel)?;
        let mut bound = raw.newest;
        let mut recent = Vec::with_capacity(raw.recent.len());
        for (i, raw) in raw.recent.iter().enumerate() {
            let falls = if i == 0 { raw.sequence <= bound } else { raw.sequence < bound };
            if raw.sequence == 0 {
                return Err(BeaconError::SequenceZero);
            }
            if !falls {
                return Err(BeaconError::Order);
            }
            if raw.name.0.len() > MAX_NAME_LEN {
                return Err(BeaconError::NameTooLong);
            }
            bound = raw.sequence;
            recent.push(Recent {
                sequence: raw.sequence,
                bundle: BundleId(raw.bundle),
                bytes: raw.bytes,
                state: raw.state,
                name: raw.name.0.to_vec(),
            });
        }
        Ok(Self { name, priority: raw.priority, newest: raw.newest, recent })
    }
}
