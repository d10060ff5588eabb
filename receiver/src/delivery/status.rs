//! What `status` shows.

mod senders;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::json::{Stamp, hex_unless_utf8};
use checkvalve_host::log::{escape_bytes, escape_path};
use checkvalve_protocol::id::{ChannelName, KeyId};
use serde::{Deserialize, Serialize};

pub use self::senders::{OnWireStatus, SenderStatus};
use super::beacons::NewestBeacons;
pub use super::blocked::Blocked;
use super::shared::{CurrentTrust, Discards, Policies};
use super::staging::Staging;
use super::telling::{Words, handle};
use crate::hook::log::log_path;
use crate::inbox::Inbox;
use crate::ledger::file::LedgerFile;
use crate::ledger::{Channel, Entry, Next, Signer, State};
use crate::sink::NO_ROOM;
use crate::store::Store;
use crate::store::space::Bound;

/// Bundles listed per channel at most, the newest ones; those under way are listed whatever their number.
const LISTED: usize = 1_000;
/// Why something lacks that found no room, where there is room by now.
const ROOM_AGAIN: &str = "there was no room in staging, and there is again";
/// Missing sequences of a channel that are listed one by one; more follow as one range.
const LISTED_GAPS: u64 = 100;

/// Everything, as of one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Now.
    pub now_at: Stamp,
    /// Bundles by channel and sequence, newest first.
    pub bundles: Vec<BundleStatus>,
    /// Channels by name.
    pub channels: Vec<ChannelStatus>,
    /// The sender that was not heard for longest: where there is but one, that one.
    pub sender: SenderStatus,
    /// All senders that are heard of, by the key that signs their beacons.
    #[serde(default)]
    pub senders: Vec<SenderStatus>,
    /// Staging.
    pub staging: StagingStatus,
    /// Whose signatures are accepted.
    pub trusted: Vec<TrustedKey>,
    /// What keeps bundles that came from being stored or published, each cause once.
    #[serde(default)]
    pub blocked: Vec<Blocked>,
    /// Signed objects and beacons that changed nothing, by the rule that they broke.
    #[serde(default)]
    pub discarded: BTreeMap<String, u64>,
}

/// One bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BundleStatus {
    /// Its channel; empty while only data came.
    pub channel: String,
    /// Its number there; 0 while only data came.
    pub sequence: u64,
    /// The last of a range of sequences of which nothing is known; otherwise null.
    pub through: Option<u64>,
    /// Its id; empty if nothing is known but that it was sent.
    pub id: String,
    /// Its name, escaped where it is no printable text.
    pub name: String,
    /// Its bytes in hexadecimal digits, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_hex: Option<String>,
    /// Sum of its files' sizes in bytes, 0 while unknown.
    pub bytes: u64,
    /// What became of it.
    pub state: State,
    /// Why, for programs: the rule that it broke, or what holds it.
    #[serde(default)]
    pub code: Option<String>,
    /// Why, for people.
    pub reason: Option<String>,
    /// How often its content did not match its hashes and was thrown away.
    #[serde(default)]
    pub spoilt: u32,
    /// Who signed it.
    pub signer: Option<Signer>,
    /// Where it is in the inbox, escaped.
    pub path: Option<String>,
    /// The bytes of that in hexadecimal digits, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// Bytes of its data that are stored.
    pub received: u64,
    /// How much is lacking, while it is being received.
    pub lacking: Option<Lacking>,
    /// The command that prints its ticket, where it has one.
    #[serde(default)]
    pub ticket: Option<String>,
    /// It is published and waits for this sequence to come first.
    pub waiting_for: Option<u64>,
    /// What commands take to mean it: its number, or its id where others claim that.
    #[serde(default)]
    pub handle: String,
    /// The limit that keeps it out, if it finds no room and the limit is one of ours.
    #[serde(default)]
    pub bound: Option<Bound>,
    /// The file with the output of its hook's newest run, escaped; null while it is not wanted.
    #[serde(default)]
    pub log: Option<String>,
    /// How often its hook was started.
    pub attempt: u32,
    /// Its hook is not started again before this.
    pub retry_at: Option<Stamp>,
    /// When the receiver first knew of it; null where nothing is known but that it was sent.
    pub first_at: Option<Stamp>,
    /// When its state changed last, likewise.
    pub changed_at: Option<Stamp>,
}

impl BundleStatus {
    /// How people name it.
    #[must_use]
    pub fn number(&self) -> String {
        match self.through {
            Some(through) => format!("{}/{}-{through}", self.channel, self.sequence),
            None if self.channel.is_empty() => "?".to_owned(),
            None => format!("{}/{}", self.channel, self.sequence),
        }
    }
}

/// What a bundle under way lacks.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Lacking {
    /// Source blocks that are not stored.
    pub blocks: u32,
    /// Source blocks in all.
    pub blocks_total: u32,
    /// Symbols that blocks lack of which some came.
    pub symbols: u64,
}

/// One channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// Its name.
    pub name: ChannelName,
    /// The newest sequence that the sender has spoken of.
    pub newest: u64,
    /// The last sequence that went to the hook.
    pub passed: u64,
    /// The first sequence that is missed if it does not come: of those before it, sent before this receiver heard of the channel,
    /// it knows nothing.
    #[serde(default)]
    pub begins_at: Option<u64>,
    /// The sequence that holds up later ones.
    pub blocked_by: Option<u64>,
    /// It has a hook.
    pub hook: bool,
    /// Its hook is running.
    pub running: bool,
}

/// Room in staging.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct StagingStatus {
    /// Bytes of unfinished bundles, as they cost the disk.
    pub bytes: u64,
    /// Bytes that the disk has, its reserve included.
    pub free: u64,
    /// Bytes of them that are left alone.
    #[serde(default)]
    pub reserve: u64,
}

/// A key whose signatures are accepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrustedKey {
    /// The key.
    pub key: KeyId,
    /// What it is called.
    pub name: String,
    /// The only channels that it may sign for, of those that name their keys.
    #[serde(default)]
    pub channels: Vec<ChannelName>,
}

/// Tells what there is to tell.
pub(super) struct Telling {
    pub(super) policies: Arc<Policies>,
    pub(super) trust: Arc<CurrentTrust>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) store: Arc<Store>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) staging: Arc<Staging>,
    pub(super) newest: Arc<NewestBeacons>,
    pub(super) discards: Arc<Discards>,
    pub(super) words: Arc<Words>,
    /// The directory of hook logs.
    pub(super) logs: PathBuf,
}

impl Telling {
    pub(super) fn status(&self, now_ms: u64) -> Status {
        let mut bundles = Vec::new();
        let mut channels = Vec::new();
        let mut waiting = BTreeMap::new();
        let names: Vec<ChannelName> = self.ledger.lock().channels().map(|(name, _)| name.clone()).collect();
        for name in names {
            let policy = self.policies.get(&name);
            let mut ledger = self.ledger.lock();
            let next = policy.hook.as_ref().map(|_| ledger.next(&name, now_ms, policy.wait_for_missing_ms));
            let Some(channel) = ledger.channel(&name) else { continue };
            // It is the last one that went to the hook, or comes after it.
            let mut since = channel.slots(channel.passed()..).filter_map(|(_, id)| ledger.entry(id));
            let blocked_by = match next {
                Some(Next::Blocked(sequence)) => Some(sequence),
                Some(Next::Wait(_) | Next::Run(_)) => {
                    since.find(|e| e.state() == State::Installing).map(|entry| entry.sequence)
                }
                Some(Next::Idle) | None => None,
            };
            bundles.extend(gaps(&name, &channel.gaps(0, LISTED)));
            channels.push(ChannelStatus {
                newest: channel.newest(),
                passed: channel.passed(),
                begins_at: channel.baseline(),
                blocked_by,
                hook: policy.hook.is_some(),
                running: channel.is_running(),
                name: name.clone(),
            });
            waiting.insert(name, blocked_by);
        }
        let mut entries: Vec<Entry> = {
            let ledger = self.ledger.lock();
            let as_it_is_told = |entry: &Entry| {
                let mut entry = entry.clone();
                let channel = entry.channel.as_ref().and_then(|name| ledger.channel(name));
                // Its hook sent it to quarantine, but it is still being moved: a bundle should be where its state says.
                if entry.state() == State::Quarantined
                    && entry.is_published()
                    && channel.is_some_and(Channel::is_running)
                {
                    entry.install();
                }
                entry
            };
            ledger.entries().map(as_it_is_told).collect()
        };
        let trouble = |id| self.staging.live(id, |live| live.trouble.clone()).flatten();
        let open = entries.iter().filter(|entry| entry.state().is_open());
        let blocked = super::blocked::of(self.disk.as_ref(), open, trouble);
        entries.sort_by(|a, b| (&a.channel, b.sequence, a.id).cmp(&(&b.channel, a.sequence, b.id)));
        let mut claims: BTreeMap<(Option<ChannelName>, u64), usize> = BTreeMap::new();
        for entry in &entries {
            *claims.entry((entry.channel.clone(), entry.sequence)).or_default() += 1;
        }
        let mut listed: BTreeMap<Option<ChannelName>, usize> = BTreeMap::new();
        entries.retain(|entry| {
            let count = listed.entry(entry.channel.clone()).or_default();
            *count += 1;
            *count <= LISTED || entry.state().is_open()
        });
        bundles.extend(entries.into_iter().map(|entry| {
            let blocked = entry.channel.as_ref().and_then(|name| waiting.get(name).copied().flatten());
            let is_alone = claims.get(&(entry.channel.clone(), entry.sequence)) == Some(&1);
            self.bundle_status(entry, blocked, is_alone)
        }));
        bundles.sort_by(|a, b| (&a.channel, b.sequence).cmp(&(&b.channel, a.sequence)));
        let trust = self.trust.get();
        let channels_of =
            |key: KeyId| trust.signers.iter().filter(|(_, s)| s.contains(&key)).map(|(c, _)| c.clone()).collect();
        let trusted = trust.keys.iter().map(|(key, _, name)| TrustedKey {
            key,
            name: name.to_owned(),
            channels: channels_of(key),
        });
        let senders = self.senders(now_ms);
        Status {
            now_at: Stamp(now_ms),
            bundles,
            channels,
            sender: senders
                .first()
                .cloned()
                .unwrap_or_else(|| SenderStatus { silent: true, ..SenderStatus::default() }),
            senders,
            staging: StagingStatus {
                bytes: self.store.space().staged(),
                free: self.store.space().free(),
                reserve: self.store.space().limits().reserve,
            },
            trusted: trusted.collect(),
            blocked,
            discarded: self.discards.counts(),
        }
    }

    fn bundle_status(&self, mut entry: Entry, blocked: Option<u64>, is_alone: bool) -> BundleStatus {
        let (handle, state) = (handle(&entry, is_alone), entry.state());
        // What mends it may be another thing than when it was held.
        if let Some(hold) = entry.hold.take() {
            entry.reason = Some(self.words.held_reason(&entry, &hold, &handle));
            entry.rule = Some(hold.code().to_owned());
        }
        let lacks_room = entry.reason.as_ref().is_some_and(|reason| reason.starts_with(NO_ROOM));
        let lacks_room = lacks_room && state.is_open();
        let bound = lacks_room.then(|| self.store.refused(entry.id, entry.bytes)).flatten();
        if bound == Some(Bound::Passed) {
            entry.reason = entry.reason.map(|reason| reason.replacen(NO_ROOM, ROOM_AGAIN, 1));
        }
        let is_asked = matches!(state, State::Installing | State::Failed | State::Quarantined);
        let log = entry
            .channel
            .as_ref()
            .filter(|_| is_asked && entry.attempt > 0)
            .map(|channel| log_path(&self.logs, channel, entry.sequence, entry.id, entry.attempt));
        let log = log.filter(|log| self.disk.lstat(log).is_ok());
        let stored = self.staging.fill(&entry).map(|(_, stored)| stored);
        let whole = entry.is_published();
        let progress = self.ledger.lock().reception.get(entry.id).and_then(|live| live.progress_of(&entry));
        let all_here = state.is_open() && self.staging.is_all_here(entry.id);
        let lacking = progress.filter(|_| state.is_open()).map(|p| Lacking {
            blocks: p.blocks_total.saturating_sub(p.blocks_done),
            blocks_total: p.blocks_total,
            symbols: p.symbols_lacking,
        });
        let channel = entry.channel.as_ref().filter(|_| entry.is_published());
        let path =
            channel.map(|channel| self.inbox.path(channel, entry.sequence).join(crate::hook::os_name(&entry.name)));
        BundleStatus {
            path_hex: path.as_ref().and_then(|path| hex_unless_utf8(path.as_os_str().as_bytes())),
            path: path.as_deref().map(escape_path),
            code: entry.rule,
            log: log.as_deref().map(escape_path),
            bound,
            spoilt: entry.spoilt,
            channel: entry.channel.map_or_else(String::new, String::from),
            sequence: entry.sequence,
            through: None,
            id: entry.id.to_string(),
            name: escape_bytes(&entry.name),
            name_hex: hex_unless_utf8(&entry.name),
            bytes: entry.bytes,
            state,
            reason: entry.reason,
            signer: entry.signer,
            received: stored.unwrap_or(if whole { entry.bytes } else { 0 }),
            lacking,
            ticket: (state.is_lacking() && !all_here).then(|| ticket_command(&handle)),
            handle,
            waiting_for: blocked.filter(|&by| state == State::Complete && by < entry.sequence),
            attempt: entry.attempt,
            retry_at: (entry.not_before_ms > 0).then_some(Stamp(entry.not_before_ms)),
            first_at: Some(Stamp(entry.first_ms)),
            changed_at: Some(Stamp(entry.changed_ms)),
        }
    }

    /// The senders, the one first that was not heard for longest.
    fn senders(&self, now_ms: u64) -> Vec<SenderStatus> {
        let trust = self.trust.get();
        let name = |key: KeyId| trust.keys.get(&key).map(|(_, name)| name.to_owned()).unwrap_or_default();
        let newest = self.newest.lock();
        let mut senders: Vec<_> =
            newest.iter().map(|(&key, last)| senders::sender(key, name(key), last, now_ms)).collect();
        senders.sort_by_key(|sender| sender.last_beacon_at);
        senders
    }
}

fn ticket_command(bundle: &str) -> String {
    format!("checkvalve-receiver ticket {bundle}")
}

/// Sequences that were sent and of which nothing is known.
fn gaps(channel: &ChannelName, gaps: &[(u64, u64)]) -> Vec<BundleStatus> {
    let row = |first: u64, last: u64| BundleStatus {
        channel: channel.to_string(),
        sequence: first,
        through: (last > first).then_some(last),
        id: String::new(),
        name: String::new(),
        name_hex: None,
        bytes: 0,
        state: State::Missing,
        code: None,
        spoilt: 0,
        reason: Some("nothing of it arrived, not even its name".into()),
        signer: None,
        path: None,
        path_hex: None,
        received: 0,
        lacking: None,
        ticket: Some(ticket_command(&format!("{channel}/{first}"))),
        waiting_for: None,
        handle: format!("{channel}/{first}"),
        bound: None,
        log: None,
        attempt: 0,
        retry_at: None,
        first_at: None,
        changed_at: None,
    };
    let mut rows = Vec::new();
    for &(first, last) in gaps {
        if rows.len() >= LISTED {
            break;
        }
        let single = last.min(first.saturating_add(LISTED_GAPS - 1));
        rows.extend((first..=single).map(|sequence| row(sequence, sequence)));
        if single < last {
            rows.push(row(single + 1, last));
        }
    }
    rows
}
