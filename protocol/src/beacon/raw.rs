//! A beacon's content as it is encoded.

use serde::{Deserialize, Serialize};

use super::{Beacon, BeaconError, ChannelState, Epoch, OnWire, Recent, RecentState};
use crate::codec::{self, Bytes};
use crate::extension;
use crate::id::{BundleId, ChannelName, EpochId, KeyTag, SessionId};
use crate::limits::{MAX_NAME_LEN, MAX_SEQUENCE};

/// Fewest bytes that a [`Recent`] takes: four integers of one byte, a tag and an empty name.
const MIN_RECENT_LEN: usize = 5;

/// The fields in the order of their bytes.
#[derive(Serialize, Deserialize)]
pub(super) struct RawBeacon<'a> {
    epoch_number: u64,
    epoch_id: u64,
    session_number: u64,
    session: u64,
    counter: u64,
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
            let mut bytes = codec::encode(&self);
            bytes.extend(extension::encode(&[]));
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
            epoch_number: beacon.epoch.number,
            epoch_id: beacon.epoch.id.0,
            session_number: beacon.session_number,
            session: beacon.session.0,
            counter: beacon.counter,
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

impl RawBeacon<'_> {
    /// What it says, if that can be; `signer` is the tag of the key that signed it.
    pub(super) fn check(self, signer: KeyTag) -> Result<Beacon, BeaconError> {
        let numbers = [self.epoch_number, self.session_number, self.counter];
        if !numbers.iter().all(|number| (1..=MAX_SEQUENCE).contains(number)) {
            return Err(BeaconError::Number);
        }
        Ok(Beacon {
            epoch: Epoch { number: self.epoch_number, id: EpochId(self.epoch_id) },
            session_number: self.session_number,
            session: SessionId(self.session),
            counter: self.counter,
            clock_ms: self.clock_ms,
            rate_bits: self.rate_bits,
            datagrams: self.datagrams,
            on_wire: self.on_wire.map(|on_wire| on_wire.check(signer)).transpose()?,
            channel: self.channel.map(|channel| channel.check(signer)).transpose()?,
        })
    }
}

impl RawOnWire<'_> {
    fn check(self, signer: KeyTag) -> Result<OnWire, BeaconError> {
        let channel = ChannelName::new(self.channel).map_err(|_| BeaconError::Channel)?;
        check_sequence(self.sequence)?;
        Ok(OnWire {
            bundle: own(self.bundle, signer)?,
            channel,
            sequence: self.sequence,
            pass: self.pass,
            passes: self.passes,
            blocks: self.blocks,
            blocks_sent: self.blocks_sent,
        })
    }
}

impl RawChannel<'_> {
    fn check(self, signer: KeyTag) -> Result<ChannelState, BeaconError> {
        let name = ChannelName::new(self.name).map_err(|_| BeaconError::Channel)?;
        if self.newest > MAX_SEQUENCE {
            return Err(BeaconError::SequenceTooLarge);
        }
        let mut before = None;
        let mut recent = Vec::with_capacity(self.recent.len());
        for raw in &self.recent {
            check_sequence(raw.sequence)?;
            if before.map_or(raw.sequence > self.newest, |before| raw.sequence >= before) {
                return Err(BeaconError::Order);
            }
            if raw.name.0.len() > MAX_NAME_LEN {
                return Err(BeaconError::NameTooLong);
            }
            before = Some(raw.sequence);
            recent.push(Recent {
                sequence: raw.sequence,
                bundle: own(raw.bundle, signer)?,
                bytes: raw.bytes,
                state: raw.state,
                name: raw.name.0.to_vec(),
            });
        }
        Ok(ChannelState { name, priority: self.priority, newest: self.newest, recent })
    }
}

fn check_sequence(sequence: u64) -> Result<(), BeaconError> {
    match sequence {
        0 => Err(BeaconError::SequenceZero),
        1..=MAX_SEQUENCE => Ok(()),
        _ => Err(BeaconError::SequenceTooLarge),
    }
}

fn own(bundle: u64, signer: KeyTag) -> Result<BundleId, BeaconError> {
    Some(BundleId(bundle)).filter(|bundle| bundle.tag() == signer).ok_or(BeaconError::ForeignBundle)
}
