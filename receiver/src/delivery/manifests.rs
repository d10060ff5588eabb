//! Announces and hashes: which of them are accepted ([`admit`]), and what that means for their bundle.
//!
//! 1. [`Admission::take_object`] works in memory only, so that bundles become known even while the disk hangs.
//! 2. [`Adopting`](super::adopting::Adopting) prepares an announced bundle on the disk. The thread that stores the bundle's
//!    first block calls it, or a worker.

use std::sync::Arc;

use checkvalve_host::log::{Throttle, escape_bytes};
use checkvalve_protocol::admit::{Admitted, Verdict, admit, admit_hashes, admit_hashes_alone};
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::manifest::{Announce, Head, Opened, Outcome};
use checkvalve_protocol::wire::ObjectKind;

use super::alarms::{Alarms, Code};
use super::jobs::{Job, Jobs};
use super::refusing::{Refusal, Refusing};
use super::shared::{Clock, CurrentTrust, Discards};
use super::staging::Staging;
use super::telling::{announced, signer};
use super::unknown::Unknown;
use crate::ledger::file::LedgerFile;
use crate::ledger::reception::{Adoption, PendingHashes};
use crate::ledger::{Conflict, Entry, Hold, Signer, Standing, State};
use crate::sink::StoreError;

/// Judges what was signed.
pub(super) struct Admission {
    pub(super) clock: Arc<Clock>,
    pub(super) trust: Arc<CurrentTrust>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) staging: Arc<Staging>,
    pub(super) refusing: Arc<Refusing>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) alarms: Arc<Alarms>,
    pub(super) discards: Arc<Discards>,
    pub(super) unknown: Unknown,
    pub(super) log: Arc<Throttle>,
    /// Throttles the lines about announced bundles: each bundle has a line unless too many come at once.
    pub(super) announced_log: Throttle,
}

impl Admission {
    /// Handles a complete signed object. Errors: [`StoreError::Refused`] if it changed nothing and has to come again.
    pub(super) fn take_object(&self, id: BundleId, kind: ObjectKind, bytes: &[u8]) -> Result<(), StoreError> {
        match kind {
            ObjectKind::Announce => self.take_announce(id, bytes),
            _ => self.take_hashes(id, bytes),
        }
    }

    /// Takes the announces that were unknown and are not any more. Gives the bundles that count now.
    pub(super) fn take_unknown(&self) -> Vec<BundleId> {
        let known = self.unknown.take_known(&self.trust.get()).into_iter();
        known.filter(|(id, announce)| self.take_announce(*id, announce).is_ok()).map(|(id, _)| id).collect()
    }

    fn take_announce(&self, id: BundleId, bytes: &[u8]) -> Result<(), StoreError> {
        let opened = match admit(id, bytes, None, &self.trust.get()) {
            Ok(Admitted { announce, .. }) => announce,
            Err(verdict) => return self.not_admitted(id, verdict, Some(bytes)),
        };
        let (now, data_len) = (self.clock.now(), opened.value.data_len());
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
        self.staging.begin_signed(id, &channel);
        self.staging.vouch(id, Some(&channel));
        self.jobs.push(Job::Advance(id));
        Ok(())
    }

    fn take_hashes(&self, id: BundleId, bytes: &[u8]) -> Result<(), StoreError> {
        let trust = self.trust.get();
        let now = self.clock.now();
        let known = self.ledger.lock().entry(id).filter(|e| e.standing == Standing::Signed).cloned();
        let announce = known.as_ref().and_then(|_| self.staging.announce(id));
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
                        self.refusing.withdrawn(id, reason);
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
            self.staging.begin_unsigned(id).ok_or(StoreError::NoRoom)?;
            self.ledger.lock().reception.set_unsigned(id, now);
        }
        {
            let mut ledger = self.ledger.lock();
            let live = ledger.reception.entry(id);
            (live.hashes, live.unjudged, live.last_ms) = (true, unjudged, now);
            live.pending_hashes = Some(PendingHashes::new(bytes, place));
        }
        if is_spoken_of {
            self.staging.vouch(id, None);
        }
        self.jobs.push(Job::Advance(id));
        Ok(())
    }

    /// Handles a signed object that was not admitted.
    fn not_admitted(&self, id: BundleId, verdict: Verdict, announce: Option<&[u8]>) -> Result<(), StoreError> {
        let now = self.clock.now();
        let error = verdict.error().clone();
        self.discards.add(error.rule());
        match verdict {
            Verdict::Discard(_) => {
                if let Some(suppressed) = self.log.allow(now) {
                    tracing::warn!(bundle = %id, %error, suppressed, "something that is not rightly signed was discarded");
                }
                Err(StoreError::Refused)
            }
            Verdict::Unknown { key, claims, .. } => {
                if let Some((claims, announce)) = claims.zip(announce) {
                    self.unknown.remember(id, key, &claims, &error, announce);
                }
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
                let refused = {
                    let mut ledger = self.ledger.lock();
                    if ledger.entry(id).is_some_and(is_over) || ledger.is_publishing(id) {
                        return Err(StoreError::Unwanted);
                    }
                    ledger.refused(entry)
                };
                if refused {
                    self.refusing.quarantine(id, &Refusal::of(&error), announce);
                } else {
                    self.alarms.raise(
                        Code::QuarantineFull,
                        "",
                        "the quarantine is full: bundles are refused and not kept; look at `status` for who signs them",
                    );
                    self.ledger.lock().reception.spurn(id);
                    self.staging.discard(id);
                }
                Ok(())
            }
        }
    }

    /// Handles a properly signed announce that contradicts the ledger.
    fn conflict(&self, id: BundleId, opened: &Opened<Announce>, conflict: Conflict) -> Result<(), StoreError> {
        let now = self.clock.now();
        let hold = match &conflict {
            Conflict::Over { .. } => {
                if let Some(suppressed) = self.log.allow(now) {
                    tracing::info!(bundle = %id, reason = %conflict, suppressed, "bundle not wanted");
                }
                let mut ledger = self.ledger.lock();
                if ledger.entry(id).is_some_and(|entry| entry.state().is_open()) {
                    ledger.forget(id);
                }
                ledger.reception.spurn(id);
                drop(ledger);
                self.staging.discard(id);
                return Ok(());
            }
            // The first announce of a bundle stays in force.
            Conflict::OtherAnnounce => {
                if let Some(suppressed) = self.log.allow(now) {
                    tracing::error!(bundle = %id, reason = %conflict, suppressed, "announce refused");
                }
                return Err(StoreError::Refused);
            }
            // The bundles under way continue. This one may come again when they are finished.
            Conflict::Crowded => {
                self.alarms.raise(
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
        self.refusing.hold(entry, hold);
        Ok(())
    }
}
