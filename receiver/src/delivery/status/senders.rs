//! What is told of senders.

use checkvalve_host::json::Stamp;
use checkvalve_protocol::beacon::OnWire;
use checkvalve_protocol::id::{ChannelName, KeyId, SessionId};
use serde::{Deserialize, Serialize};

use crate::delivery::beacons::LastBeacon;

/// What the beacons of one key said.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SenderStatus {
    /// When the last beacon came that counts; null before the first.
    pub last_beacon_at: Option<Stamp>,
    /// The key that signed it; null: no key was heard yet.
    #[serde(default)]
    pub key: Option<KeyId>,
    /// The operator's name for it.
    #[serde(default)]
    pub name: String,
    /// The sender's epoch.
    #[serde(default)]
    pub epoch_number: u64,
    /// No beacon came for longer than three seconds.
    pub silent: bool,
    /// Its run.
    pub session: Option<SessionId>,
    /// Its runs so far, by its own count.
    pub session_number: u64,
    /// Sessions heard of since this daemon started.
    pub sessions: u64,
    /// Its clock less ours when the last beacon came, in milliseconds.
    pub clock_offset_ms: i64,
    /// The rate that it is set to, in bits a second.
    pub rate_bits: u64,
    /// Datagrams that it had sent in this session.
    pub datagrams: u64,
    /// What it transmits.
    pub on_wire: Option<OnWireStatus>,
}

/// What is on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OnWireStatus {
    /// Its channel.
    pub channel: ChannelName,
    /// Its number there.
    pub sequence: u64,
    /// The pass, from 1.
    pub pass: u32,
    /// How many there will be.
    pub passes: u32,
    /// Source blocks of this transmission.
    pub blocks: u32,
    /// How many were sent.
    pub blocks_sent: u32,
}

pub(super) fn sender(key: KeyId, name: String, heard: &LastBeacon, now_ms: u64) -> SenderStatus {
    let last = (heard.at_ms > 0).then_some(heard.at_ms);
    SenderStatus {
        last_beacon_at: last.map(Stamp),
        key: Some(key),
        name,
        epoch_number: heard.epoch_number,
        silent: heard.is_silent(now_ms),
        session: heard.session,
        session_number: heard.session_number,
        sessions: heard.sessions,
        clock_offset_ms: last.map_or(0, |at| offset(heard.sender_clock_ms, at)),
        rate_bits: heard.rate_bits,
        datagrams: heard.datagrams,
        on_wire: heard.on_wire.as_ref().map(on_wire),
    }
}

/// One clock less another, as far as the number goes.
fn offset(theirs: u64, ours: u64) -> i64 {
    let least = i64::try_from(ours.abs_diff(theirs)).unwrap_or(i64::MAX);
    if theirs < ours { least.saturating_neg() } else { least }
}

fn on_wire(o: &OnWire) -> OnWireStatus {
    OnWireStatus {
        channel: o.channel.clone(),
        sequence: o.sequence,
        pass: o.pass,
        passes: o.passes,
        blocks: o.blocks,
        blocks_sent: o.blocks_sent,
    }
}
