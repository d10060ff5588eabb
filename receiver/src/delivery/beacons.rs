//! What beacons say: who is sending, what is in use, what was sent and what was withdrawn.
//!
//! 1. [`Trust::hear`](checkvalve_protocol::admit::Trust::hear): rightly signed, and stripped of what its key may not say.
//! 2. [`Order`](checkvalve_protocol::beacon::order::Order): is it news; if it is not, is it an alarm.
//! 3. The channel, unless it jumps; then the bundles.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_host::log::Throttle;
use checkvalve_protocol::beacon::order::Order;
use checkvalve_protocol::beacon::{Beacon, BeaconError, ChannelState, OnWire, Recent, RecentState};
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId, KeyTag, SessionId};
use checkvalve_protocol::manifest::{ManifestError, Opened};
use checkvalve_protocol::receive::Sent;

use super::alarms::{Alarms, Code};
use super::jobs::{Job, Jobs};
use super::named::Named;
use super::shared::{CurrentTrust, Discards, Waker};
use super::staging::Staging;
use super::telling::{Words, quoted};
use super::trusting::NOT_ITS;
use super::unknown::Strangers;
use crate::ledger::file::LedgerFile;
use crate::ledger::{self, Ledger, Signer, State};

/// This many late beacons of a key raise an alarm; fewer may just have been overtaken on the way.
const OVERTAKEN: u32 = 3;
/// Without a beacon for so long, in milliseconds, the sender is silent.
const SILENT_MS: u64 = 3_000;
/// After this many milliseconds without a late beacon, the count starts over.
const LATE_MS: u64 = 60_000;

/// What the newest beacon of a key that counted said.
#[derive(Clone, Debug, Default)]
pub(super) struct LastBeacon {
    /// When it came, in Unix milliseconds; 0: none since the start.
    pub at_ms: u64,
    pub session: Option<SessionId>,
    pub session_number: u64,
    pub epoch_number: u64,
    pub sender_clock_ms: u64,
    pub rate_bits: u64,
    pub datagrams: u64,
    pub on_wire: Option<OnWire>,
    /// Sessions heard of since the start.
    pub sessions: u64,
    /// How many beacons of late sessions or old epochs came in quick succession, and when the last one came. A few may
    /// just have been overtaken on the way.
    late: (u32, u64),
}

/// The newest beacon of each trusted key that counted, for all who tell of it: what one key says hides no other's silence. It
/// has the keys that were heard of before the start, too.
#[derive(Default)]
pub(super) struct NewestBeacons(Mutex<BTreeMap<KeyId, LastBeacon>>);

/// Takes beacons.
pub(super) struct Hearing {
    pub(super) trust: Arc<CurrentTrust>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) newest: Arc<NewestBeacons>,
    pub(super) named: Arc<Named>,
    pub(super) staging: Arc<Staging>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) alarms: Arc<Alarms>,
    pub(super) strangers: Strangers,
    pub(super) words: Arc<Words>,
    pub(super) discards: Arc<Discards>,
    pub(super) waker: Arc<Waker>,
    pub(super) log: Arc<Throttle>,
}

impl LastBeacon {
    pub(super) fn is_silent(&self, now_ms: u64) -> bool {
        self.at_ms == 0 || now_ms.saturating_sub(self.at_ms) > SILENT_MS
    }
}

impl NewestBeacons {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<KeyId, LastBeacon>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on beacons of these keys are waited for, and of no others but those that are heard.
    pub(super) fn expect(&self, keys: &BTreeSet<KeyId>) {
        let mut newest = self.lock();
        newest.retain(|key, _| keys.contains(key));
        for &key in keys {
            newest.entry(key).or_default();
        }
    }

    /// Whether no beacon that counts came of late from this key.
    pub(super) fn is_silent(&self, key: KeyId, now_ms: u64) -> bool {
        self.lock().get(&key).is_none_or(|last| last.is_silent(now_ms))
    }

    /// Whether no beacon came of late from a key of which one was heard before, or from all.
    pub(super) fn is_any_silent(&self, now_ms: u64) -> bool {
        let newest = self.lock();
        newest.is_empty() || newest.values().any(|last| last.is_silent(now_ms))
    }

    /// The rate that the sender with this key is set to, in bits a second; 0: not heard yet.
    pub(super) fn rate_bits(&self, key: KeyTag) -> u64 {
        self.lock().iter().find(|(id, _)| id.tag() == key).map_or(0, |(_, last)| last.rate_bits)
    }

    /// The clock was set back: nothing may wait until it reaches the old time again.
    pub(super) fn clock_went_back(&self, now_ms: u64) {
        for last in self.lock().values_mut() {
            last.at_ms = last.at_ms.min(now_ms);
        }
    }
}

impl Hearing {
    pub(super) fn hear(&self, now_ms: u64, session: SessionId, signed: &[u8]) -> Option<Sent> {
        let trust = self.trust.get();
        let (opened, apart) = match trust.hear_apart(session, signed) {
            Ok(heard) => heard,
            Err(error) => {
                self.discards.add(error.rule());
                if let BeaconError::Signed(ManifestError::UnknownKey(key)) = error {
                    self.strangers.beacon(key);
                }
                return None;
            }
        };
        for channel in apart {
            self.discards.add(NOT_ITS);
            self.strangers.beacon_for(opened.signer, &opened.signer_name, &channel);
        }
        let order = self.ledger.lock().hear(opened.signer, &opened.value, now_ms);
        if !order.is_news() {
            self.not_news(now_ms, order, &opened);
            return None;
        }
        self.note_sender(now_ms, session, order, &opened);
        let Opened { value, signer, signer_name, .. } = opened;
        let by = Signer { key: signer, name: signer_name };
        if let Some(channel) = &value.channel {
            self.hear_channel(now_ms, &value, channel, &by);
        }
        if let Some(on_wire) = &value.on_wire {
            self.hear_on_wire(now_ms, &value, on_wire, &by);
        }
        Some(Sent { by: signer.tag(), datagrams: value.datagrams })
    }

    fn note_sender(&self, now_ms: u64, session: SessionId, order: Order, opened: &Opened<Beacon>) {
        let (beacon, key) = (&opened.value, opened.signer);
        if order != Order::News
            && let Some(suppressed) = self.log.allow(now_ms)
        {
            let (number, epoch) = (beacon.session_number, beacon.epoch.number);
            tracing::info!(%session, number, epoch, %key, signer = opened.signer_name, suppressed, "session");
        }
        let mut newest = self.newest.lock();
        let heard = newest.entry(key).or_default();
        if heard.session != Some(session) {
            heard.sessions = heard.sessions.saturating_add(1);
        }
        heard.at_ms = now_ms;
        heard.session = Some(session);
        heard.session_number = beacon.session_number;
        heard.epoch_number = beacon.epoch.number;
        heard.sender_clock_ms = beacon.clock_ms;
        heard.rate_bits = beacon.rate_bits;
        heard.datagrams = beacon.datagrams;
        heard.on_wire.clone_from(&beacon.on_wire);
        drop(newest);
        if order == Order::NewEpoch {
            for code in [Code::TwoSenders, Code::OlderState, Code::AnotherState, Code::OldEpoch] {
                self.alarms.clear(code, &key.to_string());
            }
        }
    }

    /// A beacon that does not count: what it tells of the sender.
    fn not_news(&self, now_ms: u64, order: Order, opened: &Opened<Beacon>) {
        let (key, name, beacon) = (opened.signer, quoted(&opened.signer_name), &opened.value);
        let code = match order {
            Order::News | Order::NewSession | Order::NewEpoch | Order::Repeated => return,
            Order::AnotherState => Code::AnotherState,
            Order::ReusedSession => Code::OlderState,
            Order::LateSession => Code::TwoSenders,
            Order::OldEpoch => Code::OldEpoch,
        };
        if matches!(code, Code::TwoSenders | Code::OldEpoch) {
            let mut newest = self.newest.lock();
            let (late, last_ms) = &mut newest.entry(key).or_default().late;
            *late = if now_ms.saturating_sub(*last_ms) < LATE_MS { late.saturating_add(1) } else { 1 };
            *last_ms = now_ms;
            if *late < OVERTAKEN {
                return;
            }
        }
        let adopt = self.words.adopt_command(Some(key));
        let (session, epoch) = (beacon.session_number, beacon.epoch.number);
        let text = match code {
            Code::AnotherState => format!(
                "the sender with key {key} ({name}) has another state than before: it was lost, or made anew on another host. What it \
                 says is not believed until it has a new epoch; {adopt}"
            ),
            Code::OlderState => format!(
                "the sender with key {key} ({name}) came back with an older copy of its state, or two senders have that key: session \
                 {session} was another before. Stop all but one; {adopt}"
            ),
            Code::OldEpoch => format!(
                "a sender with key {key} ({name}) still sends in epoch {epoch}, which is over: if another took its place, stop \
                 this one; if it is the only one, its state is an old copy: {adopt}"
            ),
            _ => format!(
                "two senders have key {key} ({name}): session {session} goes on although a later one began. Stop one of them; {adopt}"
            ),
        };
        self.alarms.raise(code, &key.to_string(), &text);
    }

    fn hear_channel(&self, now_ms: u64, beacon: &Beacon, channel: &ChannelState, by: &Signer) {
        let (mut withdrawn, mut vouched) = (Vec::new(), Vec::new());
        let mut ledger = self.ledger.lock();
        if !ledger.hear_of_channel(&channel.name) {
            return;
        }
        let newest = ledger.channel(&channel.name).map_or(0, ledger::Channel::newest);
        if ledger.channel(&channel.name).is_some_and(|c| c.is_jump(channel.newest)) {
            drop(ledger);
            let name = &channel.name;
            self.alarms.raise(
                Code::SequenceJump,
                name.as_str(),
                &format!(
                    "the sender says that {} is the newest of channel {name}, of which {newest} is the newest known: if that is right, \
                     `checkvalve-receiver approve {name}/{}` (what is between will be missing); else the numbers of the low side are wrong: \
                     stop the sender, move its state directory away, make an empty one, and {}",
                    channel.newest,
                    channel.newest,
                    self.words.adopt_command(Some(by.key))
                ),
            );
            return;
        }
        let behind = channel.newest < newest && channel.newest > 0;
        let pending = |r: &&Recent| matches!(r.state, RecentState::Queued | RecentState::Transmitting);
        let first_pending = channel.recent.iter().filter(pending).map(|r| r.sequence).min();
        ledger.change_channel(&channel.name, |c| {
            c.hear(channel.newest, first_pending);
            let begun = channel.recent.iter().find(|r| r.state != RecentState::Queued);
            begun.into_iter().for_each(|r| c.begun(r.sequence));
        });
        for recent in channel.recent.iter().filter(|r| r.state != RecentState::Queued) {
            let heard = ledger::Heard {
                signer: by.clone(),
                id: recent.bundle,
                sequence: recent.sequence,
                bytes: recent.bytes,
                name: recent.name.clone(),
                on_wire: recent.state == RecentState::Transmitting,
                sent: recent.state == RecentState::Transmitted,
                withdrawn: recent.state == RecentState::Withdrawn,
            };
            let was_open = is_open(&ledger, recent.bundle);
            ledger.heard(&channel.name, heard, now_ms);
            let entry = ledger.entry(recent.bundle);
            if was_open && entry.is_some_and(|e| e.state() == State::Withdrawn) {
                withdrawn.push(recent.bundle);
            } else if entry.is_some_and(|e| e.state().is_open()) {
                vouched.push(recent.bundle);
            }
        }
        drop(ledger);
        self.alarms.clear(Code::SequenceJump, channel.name.as_str());
        // What came late, or was recorded, knows less, too.
        let is_proven = self.named.hear(&channel.name, by.key, beacon, channel.newest);
        if behind && is_proven {
            self.behind(&channel.name, channel.newest, newest, by);
        } else if !behind {
            self.alarms.clear(Code::OlderState, channel.name.as_str());
        }
        vouched.into_iter().for_each(|id| self.vouch_heard(id));
        for id in withdrawn {
            self.jobs.push(Job::Advance(id)); // which removes what staging has of it
            self.waker.wake();
        }
    }

    fn hear_on_wire(&self, now_ms: u64, beacon: &Beacon, on_wire: &OnWire, by: &Signer) {
        let mut ledger = self.ledger.lock();
        let jump = ledger.channel(&on_wire.channel).is_some_and(|c| c.is_jump(on_wire.sequence));
        if jump || !ledger.hear_of_channel(&on_wire.channel) {
            return;
        }
        ledger.change_channel(&on_wire.channel, |c| c.on_wire(on_wire.sequence));
        self.named.hear(&on_wire.channel, by.key, beacon, on_wire.sequence);
        let known = ledger.entry(on_wire.bundle).map(|e| (e.bytes, e.name.clone()));
        let (bytes, name) = known.unwrap_or_default();
        let heard = ledger::Heard {
            signer: by.clone(),
            id: on_wire.bundle,
            sequence: on_wire.sequence,
            bytes,
            name,
            on_wire: true,
            sent: false,
            withdrawn: false,
        };
        ledger.heard(&on_wire.channel, heard, now_ms);
        let open = is_open(&ledger, on_wire.bundle);
        drop(ledger);
        if open {
            self.vouch_heard(on_wire.bundle);
        }
    }

    /// A beacon names a bundle: somebody signed for it.
    fn vouch_heard(&self, id: BundleId) {
        let mut ledger = self.ledger.lock();
        let staged = ledger.reception.unsigned(id);
        let known = ledger.reception.get(id).is_some();
        if !known && let Some(last_ms) = staged {
            ledger.reception.entry(id).last_ms = last_ms;
        }
        drop(ledger);
        if !known || staged.is_some() {
            self.staging.vouch(id, None);
        }
    }

    /// The sender says that less is in use than is known.
    fn behind(&self, channel: &ChannelName, says: u64, newest: u64, by: &Signer) {
        let text = format!(
            "the sender with key {} ({}) says that {says} is the newest of channel {channel}, of which {newest} is known: it came back with \
             an older copy of its state, or two senders send to that channel; {}",
            by.key,
            quoted(&by.name),
            self.words.adopt_command(Some(by.key))
        );
        self.alarms.raise(Code::OlderState, channel.as_str(), &text);
    }
}

fn is_open(ledger: &Ledger, id: BundleId) -> bool {
    ledger.entry(id).is_some_and(|entry| entry.state().is_open())
}
