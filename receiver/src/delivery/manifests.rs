//! Announces and hashes: which of them are accepted ([`admit`]), and what that means for their bundle.
//!
//! 1. [`Delivery::take_object`] works in memory only, so that bundles become known even while the disk hangs.
//! 2. [`Delivery::adopt`] prepares an announced bundle on the disk. The thread that stores the bundle's first block calls it,
//!    or a worker.

use std::sync::{Arc, PoisonError};

use checkvalve_host::journal::Sync as Durable;
use checkvalve_host::log::escape_bytes;
use checkvalve_protocol::admit::{Admitted, Trust, Verdict, admit, admit_hashes, admit_hashes_alone};
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::manifest::{Announce, Head, Opened, Outcome};
use checkvalve_protocol::wire::ObjectKind;

use super::alarms::Code;
use super::refusing::Refusal;
use super::telling::{announced, signer};
use super::{Delivery, Job};
use crate::audit::Event;
use crate::ledger::reception::{Adoption, PendingHashes};
use crate::ledger::{Conflict, Entry, Hold, Signer, Standing, State};
use crate::sink::StoreError;
use crate::store::Staged;

impl Delivery {
    /// The keys that are trusted now.
    pub(super) fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Handles a complete signed object. Errors: [`StoreError::Refused`] if it changed nothing and has to come again.
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
        let place = self.ledger.lock().reception.place(bytes.len()).ok_or(StoreError::NoRoom)?;
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
        {
            let mut ledger = self.ledger.lock();
            let live = ledger.reception.entry(id);
            if !live.announced {
                live.last_ms = now;
                (live.announced, live.data_len, live.oti) = (true, data_len, oti);
                live.adopting = Some(Adoption::new(opened.value, bytes, place));
            }
        }
        // Staging knows the bundle before the data plane asks whether there is room for it.
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
        let place = self.ledger.lock().reception.place(bytes.len()).ok_or(StoreError::NoRoom)?;
        let is_spoken_of = self.ledger.lock().entry(id).is_some();
        if !is_spoken_of {
            // Hashes that come before their announce count as unsigned, just like data.
            self.begin_unsigned(id).ok_or(StoreError::NoRoom)?;
            self.ledger.lock().reception.set_unsigned(id, now);
        }
        {
            let mut ledger = self.ledger.lock();
            let live = ledger.reception.entry(id);
            (live.hashes, live.unjudged, live.last_ms) = (true, unjudged, now);
            live.pending_hashes = Some(PendingHashes::new(bytes, place));
        }
        if is_spoken_of {
            self.vouch(id, None);
        }
        self.enqueue(Job::Advance(id));
        Ok(())
    }

    /// Writes what waits in memory for the disk: the announce with its directories, and the hashes. The caller has exclusive
    /// access to the bundle, or waits for it.
    pub(super) fn adopt(&self, staged: &Staged) -> Result<(), StoreError> {
        let id = staged.id;
        let (adoption, hashes) = {
            let ledger = self.ledger.lock();
            let Some(live) = ledger.reception.get(id) else { return Ok(()) };
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
        if let Some(live) = self.ledger.lock().reception.get_mut(id) {
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
        if let Some(adoption) = self.live(id, |live| live.adopting.clone()).flatten() {
            return Some(adoption.announce);
        }
        self.store.get(id)?.announce_in_memory()
    }

    /// Handles a signed object that was not admitted.
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
                let is_over = |entry: &Entry| !entry.state().is_open() && entry.state() != State::Held;
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
                    self.ledger.lock().reception.spurn(id);
                    self.discard(id);
                }
                Ok(())
            }
        }
    }

    /// Handles a properly signed announce that contradicts the ledger.
    fn conflict(&self, id: BundleId, opened: &Opened<Announce>, conflict: Conflict) -> Result<(), StoreError> {
        let now = self.now();
        let hold = match &conflict {
            Conflict::Over { .. } => {
                if let Some(suppressed) = self.throttle.allow(now) {
                    tracing::info!(bundle = %id, reason = %conflict, suppressed, "bundle not wanted");
                }
                let mut ledger = self.ledger.lock();
                if ledger.entry(id).is_some_and(|entry| entry.state().is_open()) {
                    ledger.forget(id);
                }
                ledger.reception.spurn(id);
                drop(ledger);
                self.discard(id);
                return Ok(());
            }
            // The first announce of a bundle stays in force.
            Conflict::OtherAnnounce => {
                if let Some(suppressed) = self.throttle.allow(now) {
                    tracing::error!(bundle = %id, reason = %conflict, suppressed, "announce refused");
                }
                return Err(StoreError::Refused);
            }
            // The bundles under way continue. This one may come again when they are finished.
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

    /// Writes an event to the audit trail. If that fails, logs an error.
    pub(super) fn note(&self, now_ms: u64, event: &Event<'_>) {
        if let Err(error) = self.audit.record(now_ms, event) {
            tracing::error!(%error, ?event, "audit trail cannot be written");
        }
    }

    /// Makes the ledger durable. False: that failed, and the next save tries again.
    pub(super) fn save(&self) -> bool {
        self.ledger.save(Durable::Yes).inspect_err(|error| tracing::error!(%error, "ledger cannot be written")).is_ok()
    }

    /// Counts a bundle as signed from now on: it uses its channel's share of the space, and the data plane is told.
    pub(super) fn vouch(&self, id: BundleId, channel: Option<&checkvalve_protocol::id::ChannelName>) {
        let channel = channel.cloned().or_else(|| self.ledger.lock().entry(id).and_then(|entry| entry.channel.clone()));
        if let Some(channel) = channel {
            self.store.vouch(id, &channel, self.share(&channel));
        }
        self.ledger.lock().reception.vouch(id);
    }
}
