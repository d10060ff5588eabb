//! A beacon's content as it is encoded.

use serde::{Deserialize, Serialize};

use super::{Beacon, BeaconError, ChannelState, OnWire, Recent, RecentState};
use crate::codec::{self, Bytes};
use crate::id::{BundleId, ChannelName};
use crate::limits::MAX_NAME_LEN;

/// Fewest bytes that a [`Recent`] takes: four integers of one byte, a tag and an empty name.
const MIN_RECENT_LEN: usize = 5;

/// The fields in the order of their bytes.
#[derive(Serialize, Deserialize)]
pub(super) struct RawBeacon<'a> {
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
    pub(super) fn encode(mut self, limit: usize) -> Vec<u8> {
        if let Some(channel) = &mut self.channel {
            channel.recent.truncate(limit.div_ceil(MIN_RECENT_LEN));
        }
        loop {
            let bytes = codec::encode(&self);
            if bytes.len() <= limit || !self.shrink() {
                return bytes;
            }
        }
    }

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

impl TryFrom<RawBeacon<'_>> for Beacon {
    type Error = BeaconError;

    fn try_from(raw: RawBeacon<'_>) -> Result<Self, BeaconError> {
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
