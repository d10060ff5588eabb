//! Announce and hashes: which of them are accepted ([`admit`]), and what that means for their bundle.
//!
//! 1. [`Delivery::take_object`] judges in memory only, so that bundles become known even while the disk hangs.
//! 2. [`Delivery::adopt`] makes room on the disk for an announced bundle. It is called by the thread that stores the
//!    bundle's first block, or by a worker.

use std::sync::{Arc, PoisonError};

use checkvalve_host::journal::Sync as Durable;
use checkvalve_host::json::Stamp;
use checkvalve_host::log::escape_bytes;
use checkvalve_protocol::admit::{Admitted, Trust, Verdict, admit, admit_hashes, admit_hashes_alone};
use checkvalve_protocol::id::{BundleId, KeyId};
use checkvalve_protocol::manifest::{Announce, Head, ManifestError, Opened, Outcome};
use checkvalve_protocol::wire::ObjectKind;

use super::alarms::Code;
use super::{Adoption, AdoptionPlace, Delivery, Job, PendingHashes};
use crate::audit::{Event, Subject};
use crate::inbox::{Place, Reason};
use crate::ledger::{Announced, Conflict, Entry, Hold, Signer, Standing, State};
use crate::sink::StoreError;
use crate::store::Staged;

/// Why a bundle goes to quarantine.
pub(super) struct Refusal {
    /// One word for programs.
    pub rule: String,
    /// The same for people.
    pub reason: String,
}

impl Refusal {
    pub(super) fn new(rule: &str, reason: impl Into<String>) -> Self {
        Self { rule: rule.to_owned(), reason: reason.into() }
    }

    pub(super) fn of(error: &ManifestError) -> Self {
        Self::new(error.rule(), error.to_string())
    }
}

impl Delivery {
    /// What counts, by what is trusted now.
    pub(super) fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A signed object is whole. Errors: [`StoreError::Refused`] where it changed nothing, and has to come again.
    pub(super) fn take_object(&self, id: BundleId, kind: ObjectKind, bytes: &[u8]) -> Result<(), StoreError> {
        match kind {
            ObjectKind::Announce => self.take_announce(id, bytes),
            _ => self.take_hashes(id, bytes),
        }
    }

    fn take_announce(&self, id: BundleId, bytes: &[u8]) -> Result<(), StoreError> {
        let opened = match admit(id, bytes, None, &self.trust()) {
            Ok(Admitted { announce, .. }) => announce,
            Err(verdict) => return self.not_admitted(id, verdict, Some(bytes)),
        };
        let (now, data_len) = (self.now(), opened.value.data_len());
        let accepted = self.ledger.lock().announced(announced(&opened, data_len), now);
        if let Err(conflict) = accepted {
            return self.conflict(id, &opened, conflict);
        }
        if let Some(suppressed) = self.announced_log.allow(now) {
            tracing::info!(
                bundle = %id,
                channel = %opened.value.channel,
                sequence = opened.value.sequence,
                name = escape_bytes(&opened.value.name),
                bytes = data_len,
                entries = opened.value.entries.len(),
                signer = opened.signer_name,
                suppressed,
                "announced"
            );
        }
        let oti = opened.value.oti();
        let channel = opened.value.channel.clone();
        let place = AdoptionPlace::take(&self.adoptions, bytes.len()).ok_or(StoreError::NoRoom)?;
        let mut lives = self.lives();
        let live = lives.entry(id).or_default();
        if !live.announced {
            live.last_ms = now;
            (live.announced, live.data_len, live.oti) = (true, data_len, oti);
            let (announce, bytes) = (Arc::new(opened.value), Arc::new(bytes.to_vec()));
            live.adopting = Some(Adoption { announce, bytes, _place: Arc::new(place) });
        }
        drop(lives);
        // Its place is there before the data plane asks whether there is room in it.
        self.store.begin_signed(id, &channel, self.share(&channel));
        self.vouch(id, Some(&channel));
        self.enqueue(Job::Advance(id));
        Ok(())
    }

    fn take_hashes(&self, id: BundleId, bytes: &[u8]) -> Result<(), StoreError> {
        let trust = self.trust();
        let now = self.now();
        let known = self.ledger.lock().entry(id).filter(|e| e.standing == Standing::Signed).cloned();
        let announce = known.as_ref().and_then(|_| self.announce_of(id));
        let facts = known.as_ref().and_then(|entry| Some((entry.signer.as_ref()?.key, entry.announce?)));
        let judging = announce.zip(facts);
        let unjudged = judging.is_none();
        match judging {
            None => {
                if let Err(verdict) = admit_hashes_alone(id, bytes, &trust) {
                    return self.not_admitted(id, verdict, None);
                }
            }
            Some((announce, (by, digest))) => match admit_hashes(&announce, by, &digest, bytes, &trust) {
                Ok(hashes) => {
                    if let Outcome::Withdrawn { reason } = &hashes.outcome {
                        self.withdrawn(id, reason);
                        return Ok(());
                    }
                }
                Err(verdict) => return self.not_admitted(id, verdict, None),
            },
        }
        let place = AdoptionPlace::take(&self.adoptions, bytes.len()).ok_or(StoreError::NoRoom)?;
        let is_spoken_of = self.ledger.lock().entry(id).is_some();
        if !is_spoken_of {
            // Hashes that come before their announce count as unsigned, just like data.
            self.begin_unsigned(id).ok_or(StoreError::NoRoom)?;
            self.strays.lock().unwrap_or_else(PoisonError::into_inner).insert(id, now);
        }
        let mut lives = self.lives();
        let live = lives.entry(id).or_default();
        (live.hashes, live.unjudged, live.last_ms) = (true, unjudged, now);
        live.pending_hashes = Some(PendingHashes { bytes: Arc::new(bytes.to_vec()), _place: Arc::new(place) });
        drop(lives);
        if is_spoken_of {
            self.vouch(id, None);
        }
        self.enqueue(Job::Advance(id));
        Ok(())
    }

    /// What waits in memory for the disk goes to it: the announce's directories, the hashes. The caller has the bundle to itself, or
    /// waits for whoever has.
    pub(super) fn adopt(&self, staged: &Staged) -> Result<(), StoreError> {
        let id = staged.id;
        let (adoption, hashes) = {
            let lives = self.lives();
            let Some(live) = lives.get(&id) else { return Ok(()) };
            (live.adopting.clone(), live.pending_hashes.clone())
        };
        if let Some(adoption) = &adoption {
            self.ledger.save(Durable::No)?;
            if let Err(error) = self.store.adopt(staged, Arc::clone(&adoption.announce), &adoption.bytes) {
                if let StoreError::Disk(disk) = &error
                    && disk.kind() == std::io::ErrorKind::InvalidFilename
                {
                    let refusal = Refusal::new("path-host", "a path is longer than this host takes");
                    self.quarantine(id, &refusal, Some(&adoption.bytes));
                    return Ok(());
                }
                return Err(error);
            }
        }
        if let Some(hashes) = &hashes {
            self.store.keep_object(staged, ObjectKind::Hashes, &hashes.bytes)?;
        }
        if let Some(live) = self.lives().get_mut(&id) {
            if adoption.is_some() {
                live.adopting = None;
            }
            let written = |pending: &mut PendingHashes| {
                hashes.as_ref().is_some_and(|hashes| Arc::ptr_eq(&pending.bytes, &hashes.bytes))
            };
            live.pending_hashes.take_if(written);
        }
        Ok(())
    }

    /// The announce of a bundle, if it is in memory.
    fn announce_of(&self, id: BundleId) -> Option<Arc<Announce>> {
        if let Some(adoption) = self.lives().get(&id).and_then(|live| live.adopting.clone()) {
            return Some(adoption.announce);
        }
        self.store.get(id)?.announce_in_memory()
    }

    /// A signed object does not count.
    fn not_admitted(&self, id: BundleId, verdict: Verdict, announce: Option<&[u8]>) -> Result<(), StoreError> {
        let now = self.now();
        let error = verdict.error().clone();
        self.discards.lock().unwrap_or_else(PoisonError::into_inner).add(error.rule());
        match verdict {
            Verdict::Discard(_) => {
                if let Some(suppressed) = self.throttle.allow(now) {
                    tracing::warn!(bundle = %id, %error, suppressed, "something that is not rightly signed was discarded");
                }
                Err(StoreError::Refused)
            }
            Verdict::Unknown { key, claims, .. } => {
                self.remember_unknown(id, key, claims.map(|head| *head), &error, announce);
                Err(StoreError::Refused)
            }
            Verdict::Refuse { signer, signer_name, head, .. } => {
                let mut entry = self.ledger.lock().entry(id).cloned().unwrap_or_else(|| Entry::new(id, now));
                entry.changed_ms = now;
                entry.signer = Some(Signer { key: signer, name: signer_name });
                (entry.rule, entry.reason) = (Some(error.rule().to_owned()), Some(error.to_string()));
                if let Some(head) = head {
                    let Head { channel, sequence, name, .. } = *head;
                    (entry.channel, entry.sequence) = (Some(channel), sequence);
                    entry.name = name.get(..256).unwrap_or(&name).to_vec();
                }
                let is_over = |entry: &Entry| !entry.state.is_open() && entry.state != State::Held;
                if self.ledger.lock().entry(id).is_some_and(is_over) {
                    return Err(StoreError::Unwanted);
                }
                if self.ledger.lock().refused(entry) {
                    self.quarantine(id, &Refusal::of(&error), announce);
                } else {
                    self.alarm(
                        Code::QuarantineFull,
                        "",
                        "the quarantine is full: bundles are refused and not kept; look at `status` for who signs them",
                    );
                    self.spurn(id);
                    self.discard(id);
                }
                Ok(())
            }
        }
    }

    /// An announce that counts contradicts the ledger.
    fn conflict(&self, id: BundleId, opened: &Opened<Announce>, conflict: Conflict) -> Result<(), StoreError> {
        let now = self.now();
        let hold = match &conflict {
            Conflict::Over { .. } => {
                if let Some(suppressed) = self.throttle.allow(now) {
                    tracing::info!(bundle = %id, reason = %conflict, suppressed, "bundle not wanted");
                }
                let mut ledger = self.ledger.lock();
                if ledger.entry(id).is_some_and(|entry| entry.state.is_open()) {
                    ledger.forget(id);
                }
                drop(ledger);
                self.spurn(id);
                self.discard(id);
                return Ok(());
            }
            // The bundle that was announced first stays what it is.
            Conflict::OtherAnnounce => {
                if let Some(suppressed) = self.throttle.allow(now) {
                    tracing::error!(bundle = %id, reason = %conflict, suppressed, "announce refused");
                }
                return Err(StoreError::Refused);
            }
            // They go on, and then it may come again.
            Conflict::Crowded => {
                self.alarm(
                    Code::ManyOpen,
                    opened.value.channel.as_str(),
                    &format!(
                        "channel {}: {conflict}, and more are not taken: `status` says who signs them; `reject` those that will not come",
                        opened.value.channel
                    ),
                );
                return Err(StoreError::Refused);
            }
            Conflict::Jump { newest, .. } => Hold::Jump { newest: *newest },
            Conflict::Channels => Hold::Channels,
            Conflict::SequenceTaken { holder, .. } => Hold::Sequence { holder: *holder },
        };
        let mut entry = Entry::new(id, now);
        entry.channel = Some(opened.value.channel.clone());
        entry.sequence = opened.value.sequence;
        entry.name.clone_from(&opened.value.name);
        entry.bytes = opened.value.data_len();
        entry.standing = Standing::Signed;
        entry.signer = Some(signer(opened));
        entry.reason = Some(self.held_reason(&entry, &hold, &self.handle(&entry)));
        self.hold(entry, hold);
        Ok(())
    }

    /// The sender gave a bundle up.
    pub(super) fn withdrawn(&self, id: BundleId, reason: &str) {
        let now = self.now();
        let reason = &escape_bytes(reason.as_bytes());
        let mut over = true;
        self.ledger.lock().change(id, now, |entry| {
            over = !entry.state.is_open();
            if !over {
                entry.state = State::Withdrawn;
                entry.reason = Some(reason.to_owned());
            }
        });
        if over {
            return;
        }
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return };
        if let Some(suppressed) = self.throttle.allow(now) {
            tracing::warn!(bundle = %id, name = escape_bytes(&entry.name), reason, suppressed, "withdrawn by the sender");
        }
        self.note(now, &Event::Withdrawn { bundle: subject(&entry), reason });
        self.save();
        self.discard(id);
        self.wake();
    }

    /// Ends a bundle in quarantine: reason on the disk, then audit, then ledger, then staging is cleaned. The ledger
    /// has an entry for it.
    pub(super) fn quarantine(&self, id: BundleId, refusal: &Refusal, announce: Option<&[u8]>) {
        let now = self.now();
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return };
        let place = Place { id, channel: entry.channel.clone(), sequence: entry.sequence };
        let kept = match (announce, self.store.get(id)) {
            (None, Some(staged)) => self.store.object(&staged, ObjectKind::Announce, 1 << 20).ok().flatten(),
            _ => None,
        };
        let reason = Reason {
            bundle: id,
            channel: entry.channel.clone(),
            sequence: entry.sequence,
            name: escape_bytes(&entry.name),
            rule: refusal.rule.clone(),
            reason: refusal.reason.clone(),
            signer: entry.signer.as_ref().map(|s| s.key.to_string()),
            at: Stamp(now),
        };
        if let Err(error) = self.inbox.quarantine(&place, &reason, announce.or(kept.as_deref())) {
            tracing::error!(bundle = %id, %error, "reason cannot be written to quarantine");
        }
        if let Some(suppressed) = self.throttle.allow(now) {
            let (name, rule, reason) = (&reason.name, &reason.rule, &reason.reason);
            tracing::error!(bundle = %id, name, rule, reason, suppressed, "quarantined");
        }
        self.note(now, &Event::Quarantined { bundle: subject(&entry), rule: &refusal.rule, reason: &refusal.reason });
        self.ledger.lock().change(id, now, |entry| {
            (entry.state, entry.hold) = (State::Quarantined, None);
            entry.rule = Some(refusal.rule.clone());
            entry.reason = Some(refusal.reason.clone());
        });
        self.save();
        self.discard(id);
        self.wake();
    }

    /// Writes to the audit trail; what cannot be written is an error in the log.
    pub(super) fn note(&self, now_ms: u64, event: &Event<'_>) {
        if let Err(error) = self.audit.record(now_ms, event) {
            tracing::error!(%error, ?event, "audit trail cannot be written");
        }
    }

    /// Makes the ledger durable; false if it is not, and the next save tries again.
    pub(super) fn save(&self) -> bool {
        self.ledger.save(Durable::Yes).inspect_err(|error| tracing::error!(%error, "ledger cannot be written")).is_ok()
    }

    /// Counts a bundle as signed from now on: it takes room from its channel's share, and the data plane is told.
    pub(super) fn vouch(&self, id: BundleId, channel: Option<&checkvalve_protocol::id::ChannelName>) {
        self.strays.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let channel = channel.cloned().or_else(|| self.ledger.lock().entry(id).and_then(|entry| entry.channel.clone()));
        if let Some(channel) = channel {
            self.store.vouch(id, &channel, self.share(&channel));
        }
        self.vouched.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    /// The command for the low side that gives the sender of `key` a new epoch, with the numbers to write.
    pub(super) fn adopt_command(&self, key: Option<KeyId>) -> String {
        let ledger = self.ledger.lock();
        let epoch = key.and_then(|key| ledger.sender(key)).map_or(1, |known| known.epoch().number);
        let newest = ledger.channels().filter(|(_, channel)| channel.newest() > 0);
        let newest: Vec<String> = newest.map(|(name, channel)| format!("{name}={}", channel.newest())).collect();
        format!(
            "on the low side: `checkvalve-sender adopt --epoch {} --sequences {}`",
            epoch.saturating_add(1),
            newest.join(",")
        )
    }

    /// What commands take to mean this bundle and no other.
    pub(super) fn handle(&self, entry: &Entry) -> String {
        let ledger = self.ledger.lock();
        let all = entry.channel.as_ref().map_or(0, |name| ledger.of_number(name, entry.sequence));
        let known = ledger.entry(entry.id).filter(|e| e.channel == entry.channel && e.sequence == entry.sequence);
        handle(entry, all <= usize::from(known.is_some()))
    }
}

/// How commands name a bundle: by its number if no other bundle has it, else by its id.
pub(super) fn handle(entry: &Entry, is_alone: bool) -> String {
    if is_alone { number(entry) } else { entry.id.to_string() }
}

/// How people name a bundle.
pub(super) fn number(entry: &Entry) -> String {
    match &entry.channel {
        Some(channel) => format!("{channel}/{}", entry.sequence),
        None => entry.id.to_string(),
    }
}

/// The bundle of an entry, for the audit trail.
pub(super) fn subject(entry: &Entry) -> Subject<'_> {
    Subject {
        bundle: Some(entry.id),
        channel: entry.channel.as_ref(),
        sequence: entry.sequence,
        name: escape_bytes(&entry.name),
        signer: entry.signer.as_ref().map(|s| s.key),
        signer_name: entry.signer.as_ref().map(|s| s.name.as_str()),
    }
}

pub(super) fn signer(opened: &Opened<Announce>) -> Signer {
    Signer { key: opened.signer, name: opened.signer_name.clone() }
}

pub(super) fn announced(opened: &Opened<Announce>, bytes: u64) -> Announced {
    Announced {
        id: opened.value.bundle,
        channel: opened.value.channel.clone(),
        sequence: opened.value.sequence,
        name: opened.value.name.clone(),
        bytes,
        signer: signer(opened),
        digest: opened.digest,
    }
}
