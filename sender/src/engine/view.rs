//! The content of beacons and status. Status is JSON that other programs read: fields may be added, but never changed.

use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};

use checkvalve_host::json::{Stamp, hex_unless_utf8};
use checkvalve_host::log::{escape_bytes, escape_path};
use checkvalve_host::progress::counted;
use checkvalve_protocol::beacon::{ChannelState, Recent, RecentState};
use checkvalve_protocol::id::{BundleId, ChannelName};
use serde::{Deserialize, Serialize};

use super::{Engine, resending};
use crate::bundles::{Claim, Record};
use crate::ledger::{BundleRecord, State};
use crate::trouble::Trouble;

/// How many of a channel's bundles a beacon may name. The beacon decides how many fit.
const RECENT: usize = 128;

/// What `status --json` says of bundles, channels and spool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Configured channels, and those that still have bundles.
    pub channels: Vec<ChannelView>,
    /// Every remembered bundle, sorted by channel and sequence. Bundles without a sequence come last.
    pub bundles: Vec<BundleView>,
    /// What waits in the spool.
    pub spool: SpoolView,
    /// How many transmitted bundles are held, and their size.
    pub retained: RetainedView,
    /// Problems that need an operator.
    pub troubles: Vec<Trouble>,
}

/// One channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelView {
    /// Its name.
    pub name: ChannelName,
    /// Its priority.
    pub priority: i16,
    /// Whether the configuration has it.
    pub configured: bool,
    /// The newest sequence that the channel has given out; 0 before the first.
    pub newest: u64,
    /// How many bundles wait for their first pass, including those without a sequence.
    pub queued: u64,
    /// Bytes of their data. A bundle that is not planned yet counts as 0.
    pub queued_bytes: u64,
    /// How many bundles are on the wire, or between two passes.
    pub transmitting: u64,
}

/// One bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleView {
    /// Its channel.
    pub channel: ChannelName,
    /// Its number in the channel; null: it has none (yet).
    pub sequence: Option<u64>,
    /// Its id.
    pub id: BundleId,
    /// Its name, escaped where it is not printable text.
    pub name: String,
    /// The name's bytes in hexadecimal digits; present only if they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_hex: Option<String>,
    /// Length of its data in bytes.
    pub bytes: u64,
    /// Files, directories and symlinks in it.
    pub entries: u64,
    /// `queued`, `transmitting`, `transmitted` or `failed`.
    pub state: BundleState,
    /// Why it failed.
    pub reason: Option<String>,
    /// How many passes have ended.
    pub passes_done: u32,
    /// How many passes there will be in total.
    pub passes: u32,
    /// How many transmissions have ended: passes, carousel turns and resends.
    pub sent: u32,
    /// Milliseconds until the next pass or turn of the carousel; null: none is planned.
    pub next_in_ms: Option<u64>,
    /// How many resends were asked for and have not ended.
    pub resends: u64,
    /// Whether it is still held, so that it can be sent again.
    pub retained: bool,
    /// Source blocks of its data.
    pub blocks: u32,
    /// The current transmission.
    pub on_wire: Option<OnWireView>,
    /// The inode of what was dropped.
    pub inode: u64,
    /// When it was claimed.
    pub claimed_at: Stamp,
    /// When its last pass ended.
    pub transmitted_at: Option<Stamp>,
}

/// How far a bundle has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BundleState {
    /// It waits for its first pass.
    Queued,
    /// It is on the wire, or between two passes.
    Transmitting,
    /// All passes have ended. Only the receiver can know whether it arrived.
    Transmitted,
    /// It is not sent (any more).
    Failed,
}

/// A transmission in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnWireView {
    /// How many source blocks it sends.
    pub blocks: u64,
    /// How many of them have been sent.
    pub blocks_sent: u64,
    /// Bytes sent on the wire.
    pub bytes_sent: u64,
    /// Datagrams sent.
    pub datagrams: u64,
}

/// What waits in the spool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolView {
    /// The names that are not claimed yet.
    pub waiting: Vec<WaitingView>,
}

/// A name in the spool that is not claimed yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    /// The channel's folder that it is in.
    pub channel: ChannelName,
    /// The name, escaped where it is not printable text.
    pub name: String,
    /// The name's bytes in hexadecimal digits; present only if they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_hex: Option<String>,
    /// Why it waits, for programs: `open`, `settling`, `claiming`, `cannot-look` or `cannot-claim`.
    pub code: String,
    /// Why it waits, for people.
    pub why: String,
    /// Whether it needs an operator.
    pub problem: bool,
}

/// How many transmitted bundles are held, and their size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainedView {
    /// Bundles.
    pub bundles: u64,
    /// Bytes of their data.
    pub bytes: u64,
}

impl Engine {
    /// The channel states for a beacon.
    #[must_use]
    pub fn beacon(&self) -> Vec<ChannelState> {
        let state = |channel: &ChannelName| ChannelState {
            name: channel.clone(),
            priority: self.rules(channel).priority,
            newest: self.bundles.last_sequence(channel),
            recent: self.bundles.newest(channel).take(RECENT).filter_map(|record| self.recent(record)).collect(),
        };
        self.all_channels().iter().map(state).collect()
    }

    /// One line for the service manager.
    #[must_use]
    pub fn summary(&self) -> String {
        let unsent = |record: &&Record| record.latest().is_none_or(|r| r.held && r.is_unsent());
        let on_wire = self.bundles.records().filter(|record| record.on_wire().is_some()).count();
        let troubles = match self.troubles.len() {
            0 => String::new(),
            n => format!("; {n} things need a person, see status"),
        };
        let waiting = counted(self.bundles.records().filter(unsent).count() as u64, "bundle");
        format!("{waiting} to send, {on_wire} on the wire{troubles}")
    }

    /// The content of status.
    #[must_use]
    pub fn view(&self) -> View {
        let mut bundles: Vec<_> = self.bundles.records().filter_map(|record| self.record_view(record)).collect();
        bundles.sort_by(|a, b| {
            let key = |v: &BundleView| (v.sequence.is_none(), v.sequence, v.claimed_at, v.id);
            a.channel.cmp(&b.channel).then_with(|| key(a).cmp(&key(b)))
        });
        let waiting = self.spool.waiting().map(|waiting| WaitingView {
            channel: waiting.place.0.clone(),
            name: escape_path(waiting.place.1.as_ref()),
            name_hex: hex_unless_utf8(waiting.place.1.as_bytes()),
            code: waiting.code.to_owned(),
            why: waiting.why.to_owned(),
            problem: waiting.problem,
        });
        let (bytes, count) = self.retained();
        View {
            channels: self.all_channels().iter().map(|channel| self.channel_view(channel, &bundles)).collect(),
            spool: SpoolView { waiting: waiting.collect() },
            retained: RetainedView { bundles: count as u64, bytes },
            troubles: self.all_troubles(),
            bundles,
        }
    }

    /// The bundle that was made of the file or directory with this inode. Only what was claimed from this channel at `since_ms`
    /// (milliseconds since 1970) or later counts.
    #[must_use]
    pub fn find_dropped(&self, channel: &ChannelName, inode: u64, since_ms: u64) -> Option<BundleView> {
        let is_it = |of: &ChannelName, its_inode, at_ms| of == channel && its_inode == inode && at_ms >= since_ms;
        let is_it = |record: &&Record| match (record.claim(), record.latest()) {
            (Some(claim), _) => is_it(record.channel(), claim.inode, claim.claimed_ms),
            (None, Some(known)) => is_it(record.channel(), known.inode, known.claimed_ms),
            (None, None) => false,
        };
        self.bundles.records().find(is_it).and_then(|record| self.record_view(record))
    }

    fn record_view(&self, record: &Record) -> Option<BundleView> {
        match record.claim() {
            Some(claim) => Some(claim_view(claim)),
            None => record.latest().map(|known| self.bundle_view(known)),
        }
    }

    /// The status of one bundle.
    #[must_use]
    pub fn bundle_view(&self, record: &BundleRecord) -> BundleView {
        let record = self.bundles.get(record.id).unwrap_or(record);
        let progress = self.bundles.record(record.id).and_then(Record::on_wire);
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let reason = match &record.state {
            State::Failed(reason) => Some(reason.clone()),
            _ => None,
        };
        let rules = self.rules(&record.channel);
        BundleView {
            channel: record.channel.clone(),
            sequence: record.sequence,
            id: record.id,
            name: escape_bytes(&record.name),
            name_hex: hex_unless_utf8(&record.name),
            bytes: record.bytes,
            entries: record.entries,
            state: self.state(record),
            reason,
            passes_done: record.passes_done,
            passes: rules.passes.max(record.passes_done),
            sent: record.sent,
            next_in_ms: record.due_ms.map(|at| at.saturating_sub(self.bundles.uptime_ms())),
            resends: record.resends.len() as u64,
            retained: record.held && record.state == State::Transmitted,
            blocks: resending::blocks_of(record),
            on_wire: progress.map(|p| OnWireView {
                blocks: load(&p.blocks_total),
                blocks_sent: load(&p.blocks_sent),
                bytes_sent: load(&p.bytes_sent),
                datagrams: load(&p.datagrams),
            }),
            inode: record.inode,
            claimed_at: Stamp(record.claimed_ms),
            transmitted_at: record.transmitted_ms.map(Stamp),
        }
    }

    fn state(&self, record: &BundleRecord) -> BundleState {
        let on_wire = self.bundles.record(record.id).is_some_and(|record| record.on_wire().is_some());
        match record.state {
            State::Failed(_) => BundleState::Failed,
            _ if on_wire => BundleState::Transmitting,
            State::Transmitted => BundleState::Transmitted,
            // Between two passes.
            State::Transmitting if record.sent > 0 => BundleState::Transmitting,
            State::Transmitting | State::Queued => BundleState::Queued,
        }
    }

    fn recent(&self, record: &BundleRecord) -> Option<Recent> {
        if record.id.tag() != self.signer.tag() {
            // Only the key that announced a bundle may report its state.
            return None;
        }
        let state = match self.state(record) {
            _ if self.bundles.record(record.id).is_some_and(Record::is_withdrawing) => RecentState::Transmitting,
            BundleState::Queued => RecentState::Queued,
            BundleState::Transmitting => RecentState::Transmitting,
            BundleState::Transmitted => RecentState::Transmitted,
            BundleState::Failed => RecentState::Withdrawn,
        };
        let BundleRecord { id, bytes, ref name, .. } = *record;
        Some(Recent { sequence: record.sequence?, bundle: id, bytes, state, name: name.clone() })
    }

    fn channel_view(&self, channel: &ChannelName, bundles: &[BundleView]) -> ChannelView {
        let ours = |state| move |b: &&BundleView| b.channel == *channel && b.state == state;
        let queued = bundles.iter().filter(ours(BundleState::Queued));
        ChannelView {
            name: channel.clone(),
            priority: self.rules(channel).priority,
            configured: self.setup.channels.contains_key(channel),
            newest: self.bundles.last_sequence(channel),
            queued: queued.clone().count() as u64,
            queued_bytes: queued.fold(0, |sum, b| sum.saturating_add(b.bytes)),
            transmitting: bundles.iter().filter(ours(BundleState::Transmitting)).count() as u64,
        }
    }

    fn all_channels(&self) -> Vec<ChannelName> {
        let mut channels: Vec<_> = self.setup.channels.keys().chain(self.bundles.channels()).cloned().collect();
        channels.sort_unstable();
        channels.dedup();
        channels
    }
}

fn claim_view(claim: &Claim) -> BundleView {
    BundleView {
        channel: claim.home.channel().clone(),
        sequence: None,
        id: claim.home.id(),
        name: escape_bytes(&claim.name),
        name_hex: hex_unless_utf8(&claim.name),
        bytes: 0,
        entries: 0,
        state: BundleState::Queued,
        reason: None,
        passes_done: 0,
        passes: 0,
        sent: 0,
        next_in_ms: None,
        resends: 0,
        retained: false,
        blocks: 0,
        on_wire: None,
        inode: claim.inode,
        claimed_at: Stamp(claim.claimed_ms),
        transmitted_at: None,
    }
}
