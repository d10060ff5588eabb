//! What beacons and the passing of time say of bundles: incomplete, missing.

use checkvalve_host::journal::Sync as Durable;
use checkvalve_protocol::beacon::{Beacon, OnWire, RecentState};
use checkvalve_protocol::id::{BundleId, SessionId};
use std::sync::PoisonError;

use super::{Delivery, Job, Live, MAX_UNANNOUNCED};
use crate::inbox::Place;
use crate::ledger::{self, Entry, State};

/// A bundle that could not go on is tried again after so long, in milliseconds.
pub(super) const RETRY_MS: u64 = 5_000;
/// After the sender says that it has sent a bundle, its last blocks may still be under way for so long, in milliseconds.
const GRACE_MS: u64 = 1_500;
/// How often states are looked at, in milliseconds.
const LOOK_MS: u64 = 250;
/// A bundle of which nothing came for so long gives back its memory, in milliseconds.
const SLEEP_MS: u64 = 30_000;
/// How often staging is made to survive a power cut while it grows: after so long in milliseconds, or so many bytes.
const CHECKPOINT_MS: u64 = 30_000;
const CHECKPOINT_BYTES: u64 = 1 << 30;
/// What a person can do for a bundle that lacks nothing.
const ALL_HERE: &str = "all of it is here: mend the disk, and it goes on by itself";
/// How often old history is forgotten, in milliseconds.
const PRUNE_MS: u64 = 60_000;

/// What the newest beacon said.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    /// When it came, in Unix milliseconds; 0: none yet.
    pub at_ms: u64,
    pub session: Option<SessionId>,
    pub session_number: u64,
    pub sender_clock_ms: u64,
    pub rate_bits: u64,
    pub datagrams: u64,
    pub on_wire: Option<OnWire>,
    /// Sessions heard of since the start.
    pub sessions: u64,
}

/// When things were done last.
#[derive(Default)]
pub(super) struct Watched {
    looked_ms: u64,
    checkpoint_ms: u64,
    checkpoint_bytes: u64,
    pruned_ms: u64,
}

impl Delivery {
    pub(super) fn hear(&self, now_ms: u64, session: SessionId, beacon: Beacon) {
        {
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            if heard.session != Some(session) {
                heard.sessions += 1;
                tracing::info!(%session, number = beacon.session_number, "session");
            }
            heard.at_ms = now_ms;
            heard.session = Some(session);
            heard.session_number = beacon.session_number;
            heard.sender_clock_ms = beacon.clock_ms;
            heard.rate_bits = beacon.rate_bits;
            heard.datagrams = beacon.datagrams;
            heard.on_wire.clone_from(&beacon.on_wire);
        }
        let mut withdrawn = Vec::new();
        let mut ledger = self.ledger.lock();
        if let Some(channel) = &beacon.channel
            && ledger.ensure_channel(&channel.name)
        {
            let pending = |r: &&checkvalve_protocol::beacon::Recent| {
                matches!(r.state, RecentState::Queued | RecentState::Transmitting)
            };
            let first_pending = channel.recent.iter().filter(pending).map(|r| r.sequence).min();
            ledger.change_channel(&channel.name, |c| {
                c.hear(channel.newest, first_pending);
                let begun = channel.recent.iter().find(|r| r.state != RecentState::Queued);
                begun.into_iter().for_each(|r| c.begun(r.sequence));
            });
            for recent in channel.recent.iter().filter(|r| r.state != RecentState::Queued) {
                let heard = ledger::Heard {
                    id: recent.bundle,
                    sequence: recent.sequence,
                    bytes: recent.bytes,
                    name: recent.name.clone(),
                    on_wire: recent.state == RecentState::Transmitting,
                    sent: recent.state == RecentState::Transmitted,
                    withdrawn: recent.state == RecentState::Withdrawn,
                };
                let was_open = ledger.entry(recent.bundle).is_some_and(|e| e.state.is_open());
                ledger.heard(&channel.name, heard, now_ms);
                if was_open && ledger.entry(recent.bundle).is_some_and(|e| e.state == State::Withdrawn) {
                    withdrawn.push(recent.bundle);
                }
            }
        }
        if let Some(on_wire) = &beacon.on_wire
            && ledger.ensure_channel(&on_wire.channel)
        {
            ledger.change_channel(&on_wire.channel, |c| c.on_wire(on_wire.sequence));
            let known = ledger.entry(on_wire.bundle).map(|e| (e.bytes, e.name.clone()));
            let (bytes, name) = known.unwrap_or_default();
            let heard = ledger::Heard {
                id: on_wire.bundle,
                sequence: on_wire.sequence,
                bytes,
                name,
                on_wire: true,
                sent: false,
                withdrawn: false,
            };
            ledger.heard(&on_wire.channel, heard, now_ms);
        }
        drop(ledger);
        for id in withdrawn {
            self.enqueue(Job::Advance(id)); // which removes what staging has of it
            self.wake();
        }
    }

    pub(super) fn watch(&self, now_ms: u64) {
        let (checkpoint, prune) = {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            if watched.looked_ms.abs_diff(now_ms) < LOOK_MS {
                return;
            }
            watched.looked_ms = now_ms;
            (self.checkpoint_due(&mut watched, now_ms), watched.prune_due(now_ms))
        };
        self.look_after_staging(now_ms);
        let open = self.ledger.lock().open();
        open.into_iter().for_each(|id| self.look(id, now_ms));
        self.give_back_memory(now_ms);
        if checkpoint {
            self.enqueue(Job::Checkpoint);
        }
        if prune {
            self.prune();
        }
        if let Err(error) = self.ledger.save(Durable::No)
            && self.throttle.allow(now_ms).is_some()
        {
            tracing::error!(%error, "ledger cannot be written");
        }
        self.wake();
    }

    /// Asks for its room; makes it again where somebody removed it.
    fn look_after_staging(&self, now_ms: u64) {
        let there = match self.store.is_there() {
            Ok(false) => {
                for staged in self.store.all() {
                    self.begin_again(staged.id, "staging was removed; what it held has to come again");
                }
                self.store.make_again().inspect(|()| tracing::warn!("staging was removed; it is there again"))
            }
            there => there.map(drop),
        };
        self.store.mend();
        if let Err(error) = there.and_then(|()| self.store.refresh_space())
            && let Some(suppressed) = self.throttle.allow(now_ms)
        {
            tracing::error!(%error, suppressed, "staging cannot be used");
        }
    }

    /// Whoever set the clock back must not make anything wait until it is again what it was.
    pub(super) fn clock_went_back(&self, now_ms: u64) {
        for live in self.lives().values_mut() {
            live.last_ms = live.last_ms.min(now_ms);
            live.retry_ms = live.retry_ms.min(now_ms);
        }
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.at_ms = heard.at_ms.min(now_ms);
        drop(heard);
        self.ledger.lock().clock_went_back(now_ms);
    }

    fn look(&self, id: BundleId, now_ms: u64) {
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return };
        let mut retry = false;
        let (state, reason) = {
            let mut lives = self.lives();
            let live = lives.get_mut(&id);
            if let Some(live) = &live {
                retry = live.trouble.is_some() && live.retry_ms <= now_ms && live.announced;
            }
            let judged = self.judge(&entry, live.as_deref(), now_ms);
            if let Some(live) = live
                && retry
            {
                live.retry_ms = now_ms.saturating_add(RETRY_MS);
            }
            judged
        };
        if retry {
            self.enqueue(Job::Advance(id));
        }
        if state != entry.state || reason != entry.reason {
            let mut ledger = self.ledger.lock();
            let now_open = ledger.entry(id).is_some_and(|e| e.state.is_open());
            if now_open {
                if state != entry.state && state != State::Receiving {
                    let why = reason.as_deref().unwrap_or_default();
                    tracing::warn!(bundle = %id, sequence = entry.sequence, state = state.as_str(), reason = why, "bundle");
                }
                ledger.change(id, now_ms, |e| (e.state, e.reason) = (state, reason));
            }
        }
    }

    fn judge(&self, entry: &Entry, live: Option<&Live>, now_ms: u64) -> (State, Option<String>) {
        let Some(live) = live else {
            let waited = now_ms.saturating_sub(entry.first_ms);
            let missing = entry.sent && waited >= GRACE_MS || waited >= self.settings.silence_ms;
            return match missing || entry.state != State::Receiving {
                true => (State::Missing, entry.reason.clone()),
                false => (State::Receiving, entry.reason.clone()),
            };
        };
        let idle = now_ms.saturating_sub(live.last_ms);
        let (length, stored) = self.store.get(entry.id).map_or((None, 0), |staged| staged.fill());
        let whole = self.is_whole(entry.id, live);
        let over = entry.sent && idle >= GRACE_MS || idle >= self.settings.silence_ms;
        let lacking = || lacking(live, length.or(Some(entry.bytes).filter(|&n| n > 0)), stored);
        match &live.trouble {
            Some(trouble) if whole => (State::Incomplete, Some(format!("{trouble}; {ALL_HERE}"))),
            Some(trouble) if over => (State::Incomplete, Some(format!("{trouble}; {}", lacking()))),
            _ if whole || !over => (State::Receiving, None),
            _ => (State::Incomplete, Some(lacking())),
        }
    }

    fn checkpoint_due(&self, watched: &mut Watched, now_ms: u64) -> bool {
        let staged = self.store.space().staged();
        if staged == 0 || watched.checkpoint_ms == 0 {
            (watched.checkpoint_ms, watched.checkpoint_bytes) = (now_ms, staged);
        }
        let grown = staged.saturating_sub(watched.checkpoint_bytes);
        watched.checkpoint_bytes = watched.checkpoint_bytes.min(staged);
        let due = grown >= CHECKPOINT_BYTES || grown > 0 && watched.checkpoint_ms.abs_diff(now_ms) >= CHECKPOINT_MS;
        if due {
            (watched.checkpoint_ms, watched.checkpoint_bytes) = (now_ms, staged);
        }
        due
    }

    /// Of bundles that nothing comes for, memory; of those without an announce, all of it where new ones need the room.
    fn give_back_memory(&self, now_ms: u64) {
        let idle: Vec<(BundleId, u64, bool)> = {
            let lives = self.lives();
            lives.iter().map(|(&id, live)| (id, now_ms.saturating_sub(live.last_ms), live.announced)).collect()
        };
        let unannounced = idle.iter().filter(|(.., announced)| !announced).count();
        for (id, idle_ms, announced) in idle {
            if !announced && unannounced >= MAX_UNANNOUNCED && idle_ms >= self.settings.silence_ms {
                tracing::warn!(bundle = %id, "data without an announce is given up: others need the room");
                self.discard(id);
                self.ledger.lock().forget(id);
            } else if idle_ms >= SLEEP_MS
                && let Some(staged) = self.store.get(id)
            {
                self.sleep(&staged);
            }
        }
    }

    /// Forgets what is old, and its manifests.
    fn prune(&self) {
        let gone = self.ledger.lock().prune();
        for entry in gone {
            let place = Place { id: entry.id, channel: entry.channel, sequence: entry.sequence };
            if let Err(error) = self.inbox.forget(&place) {
                tracing::warn!(bundle = %entry.id, %error, "the manifest of an old bundle cannot be removed");
            }
        }
    }
}

impl Watched {
    fn prune_due(&mut self, now_ms: u64) -> bool {
        let due = self.pruned_ms.abs_diff(now_ms) >= PRUNE_MS;
        if due {
            self.pruned_ms = now_ms;
        }
        due
    }
}

/// What a bundle lacks, in words.
fn lacking(live: &Live, length: Option<u64>, stored: u64) -> String {
    let mut lacking = Vec::new();
    if !live.announced {
        lacking.push("its announce".to_owned());
    }
    match (length, live.progress) {
        (Some(length), Some(p)) if stored < length && p.blocks_total > 0 => lacking.push(format!(
            "{} of {} blocks ({} of {length} bytes)",
            p.blocks_total - p.blocks_done.min(p.blocks_total),
            p.blocks_total,
            length - stored,
        )),
        (Some(length), _) if stored < length => lacking.push(format!("{} of {length} bytes", length - stored)),
        _ => {}
    }
    if !live.hashes {
        lacking.push("its hashes".to_owned());
    }
    format!("lacks {}", lacking.join(", "))
}
