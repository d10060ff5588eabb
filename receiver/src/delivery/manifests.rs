//! Announce and hashes: opened with the trusted keys, or refused.

use std::sync::{Arc, PoisonError};

use checkvalve_host::journal::Sync as Durable;
use checkvalve_host::log::escape_bytes;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::manifest::{Announce, Hashes, ManifestError, Opened, Outcome};
use checkvalve_protocol::wire::ObjectKind;

use super::{Delivery, Job};
use crate::audit::{Event, Subject};
use crate::inbox::{Place, Reason};
use crate::ledger::{Announced, Conflict, Entry, Signer, Standing, State};
use crate::sink::StoreError;
use crate::store::Staged;

/// Why a bundle goes to quarantine.
pub(super) struct Verdict {
    /// One word for programs.
    pub rule: String,
    /// The same for people.
    pub reason: String,
}

impl Verdict {
    pub(super) fn new(rule: &str, reason: impl Into<String>) -> Self {
        Self { rule: rule.to_owned(), reason: reason.into() }
    }

    fn manifest(error: &ManifestError) -> Self {
        Self::new(error.rule(), error.to_string())
    }
}

impl Delivery {
    /// A signed object is whole.
    pub(super) fn take_object(&self, staged: &Staged, kind: ObjectKind, bytes: &[u8]) -> Result<(), StoreError> {
        match kind {
            ObjectKind::Announce => self.take_announce(staged, bytes),
            _ => self.take_hashes(staged, bytes),
        }
    }

    fn take_announce(&self, staged: &Staged, bytes: &[u8]) -> Result<(), StoreError> {
        let id = staged.id;
        let opened = Announce::open(bytes, &self.trust.read().unwrap_or_else(PoisonError::into_inner));
        let opened = match opened {
            Ok(opened) if opened.value.bundle != id => {
                self.refuse(id, &ManifestError::OtherBundle, Some(bytes));
                return Ok(());
            }
            Ok(opened) => opened,
            Err(error) => {
                self.refuse(id, &error, Some(bytes));
                return Ok(());
            }
        };
        let now = self.now();
        let data_len = opened.value.data_len();
        let accepted = self.ledger.lock().announced(announced(&opened, data_len), now);
        if let Err(conflict) = accepted {
            self.conflict(id, &opened, &conflict, bytes);
            return Ok(());
        }
        self.ledger.save(Durable::No)?;
        tracing::info!(
            bundle = %id,
            channel = %opened.value.channel,
            sequence = opened.value.sequence,
            name = escape_bytes(&opened.value.name),
            bytes = data_len,
            entries = opened.value.entries.len(),
            signer = opened.signer_name,
            "announced"
        );
        if let Err(error) = self.store.adopt(staged, Arc::new(opened.value), bytes) {
            if let StoreError::Disk(disk) = &error
                && disk.kind() == std::io::ErrorKind::InvalidFilename
            {
                let verdict = Verdict::new("path-host", "a path is longer than this host takes");
                self.quarantine(id, &verdict, Some(bytes));
                return Ok(());
            }
            return Err(error);
        }
        let mut lives = self.lives();
        let live = lives.entry(id).or_default();
        (live.announced, live.data_len) = (true, data_len);
        let ready = live.hashes;
        drop(lives);
        if staged.is_whole() || ready {
            self.enqueue(Job::Advance(id));
        }
        Ok(())
    }

    fn take_hashes(&self, staged: &Staged, bytes: &[u8]) -> Result<(), StoreError> {
        let id = staged.id;
        let opened = Hashes::open(bytes, &self.trust.read().unwrap_or_else(PoisonError::into_inner));
        let opened = match opened {
            Ok(opened) if opened.value.bundle != id => {
                self.refuse(id, &ManifestError::OtherBundle, None);
                return Ok(());
            }
            Ok(opened) => opened,
            Err(error) => {
                self.refuse(id, &error, None);
                return Ok(());
            }
        };
        if let Outcome::Withdrawn { reason } = &opened.value.outcome {
            self.withdrawn(id, reason);
            return Ok(());
        }
        self.store.keep_object(staged, ObjectKind::Hashes, bytes)?;
        self.lives().entry(id).or_default().hashes = true;
        self.enqueue(Job::Advance(id));
        Ok(())
    }

    /// A manifest is not what a trusted key may sign.
    fn refuse(&self, id: BundleId, error: &ManifestError, announce: Option<&[u8]>) {
        let now = self.now();
        let trusted = !error.is_about_trust();
        let entry = self.ledger.lock().entry(id).cloned();
        if let Some(entry) = entry.filter(|entry| entry.standing == Standing::Signed) {
            // Its announce is good; what came now is not.
            self.quarantine(entry.id, &Verdict::manifest(error), None);
            return;
        }
        let head = announce.and_then(|bytes| Announce::peek_head(bytes).ok());
        let mut entry = Entry::new(id, now);
        entry.state = State::Quarantined;
        entry.reason = Some(error.to_string());
        if let ManifestError::UnknownKey(key) = error {
            entry.untrusted = Some(*key);
        }
        if let Some(head) = head {
            (entry.channel, entry.sequence) = (Some(head.channel), head.sequence);
            entry.name = head.name.get(..256).unwrap_or(&head.name).to_vec();
        }
        let noted = self.ledger.lock().claimed(entry);
        if !noted {
            if let Some(suppressed) = self.throttle.allow(now) {
                tracing::error!(bundle = %id, %error, trusted, suppressed, "bundle refused; quarantine is full of such");
            }
            self.spurn(id);
            self.discard(id);
            return;
        }
        self.quarantine(id, &Verdict::manifest(error), announce);
    }

    /// A trusted announce contradicts the ledger.
    fn conflict(&self, id: BundleId, opened: &Opened<Announce>, conflict: &Conflict, bytes: &[u8]) {
        match conflict {
            Conflict::Over { .. } => {
                tracing::info!(bundle = %id, reason = %conflict, "bundle not wanted");
                let mut ledger = self.ledger.lock();
                if ledger.entry(id).is_some_and(|entry| entry.state.is_open()) {
                    ledger.forget(id);
                }
                drop(ledger);
                self.spurn(id);
                self.discard(id);
            }
            // The bundle that was announced first stays what it is.
            Conflict::OtherAnnounce => tracing::error!(bundle = %id, reason = %conflict, "announce refused"),
            Conflict::SequenceTaken { .. } | Conflict::Channels => {
                let now = self.now();
                let mut entry = Entry::new(id, now);
                entry.state = State::Quarantined;
                entry.channel = Some(opened.value.channel.clone());
                entry.sequence = opened.value.sequence;
                entry.name.clone_from(&opened.value.name);
                entry.signer = Some(signer(opened));
                entry.reason = Some(conflict.to_string());
                if self.ledger.lock().claimed(entry) {
                    self.quarantine(id, &Verdict::new("sequence", conflict.to_string()), Some(bytes));
                } else {
                    self.spurn(id);
                    self.discard(id);
                }
            }
        }
    }

    /// The sender gave a bundle up.
    pub(super) fn withdrawn(&self, id: BundleId, reason: &str) {
        let now = self.now();
        self.ledger.lock().change(id, now, |entry| {
            if entry.state.is_open() {
                entry.state = State::Withdrawn;
                entry.reason = Some(reason.to_owned());
            }
        });
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return };
        tracing::warn!(bundle = %id, name = escape_bytes(&entry.name), reason, "withdrawn by the sender");
        self.note(now, &Event::Withdrawn { bundle: subject(&entry), reason });
        self.save();
        self.discard(id);
        self.wake();
    }

    /// Ends a bundle in quarantine: reason on the disk, then audit, then ledger, then staging is cleaned. The ledger
    /// has an entry for it.
    pub(super) fn quarantine(&self, id: BundleId, verdict: &Verdict, announce: Option<&[u8]>) {
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
            rule: verdict.rule.clone(),
            reason: verdict.reason.clone(),
            signer: entry.signer.as_ref().map(|s| s.key.to_string()).or(entry.untrusted.map(|key| key.to_string())),
            at_ms: now,
        };
        if let Err(error) = self.inbox.quarantine(&place, &reason, announce.or(kept.as_deref())) {
            tracing::error!(bundle = %id, %error, "reason cannot be written to quarantine");
        }
        tracing::error!(
            bundle = %id,
            name = reason.name,
            rule = reason.rule,
            reason = reason.reason,
            "quarantined"
        );
        self.note(now, &Event::Quarantined { bundle: subject(&entry), rule: &verdict.rule, reason: &verdict.reason });
        self.ledger.lock().change(id, now, |entry| {
            entry.state = State::Quarantined;
            entry.reason = Some(verdict.reason.clone());
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

fn signer(opened: &Opened<Announce>) -> Signer {
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
