//! Bundles that are not published: held, withdrawn, or in quarantine.
//!
//! Each outcome is saved before staging is cleaned. After a crash in between, the next start finds what is left and cleans up.

use std::io;
use std::sync::Arc;

use checkvalve_host::json::Stamp;
use checkvalve_host::log::{Throttle, escape_bytes};
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::manifest::ManifestError;
use checkvalve_protocol::wire::ObjectKind;

use super::alarms::{Alarms, Code};
use super::shared::{Clock, Waker};
use super::staging::Staging;
use super::telling::{Words, subject};
use crate::audit::{Audit, Event};
use crate::inbox::{Address, Inbox, Reason};
use crate::ledger::file::LedgerFile;
use crate::ledger::{Entry, Hold, State};
use crate::store::Store;

/// Why a bundle goes to quarantine.
pub(super) struct Refusal {
    /// One word for programs.
    pub rule: String,
    /// The reason for people.
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

/// Brings bundles to an end that are not published, or were wrongly.
pub(super) struct Refusing {
    pub(super) clock: Arc<Clock>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) audit: Arc<Audit>,
    pub(super) store: Arc<Store>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) staging: Arc<Staging>,
    pub(super) alarms: Arc<Alarms>,
    pub(super) words: Arc<Words>,
    pub(super) waker: Arc<Waker>,
    pub(super) log: Arc<Throttle>,
}

impl Refusing {
    /// Holds a bundle. It is reported once, and nothing more of it is received.
    pub(super) fn hold(&self, mut entry: Entry, hold: Hold) {
        let reason = self.words.held_reason(&entry, &hold, &self.words.handle(&entry));
        entry.reason = Some(reason.clone());
        let (id, now, code) = (entry.id, self.clock.now(), hold.code());
        let subject_of = entry.clone();
        let known = self.ledger.lock().entry(id).is_some_and(|e| e.state() == State::Held);
        let noted = self.ledger.lock().hold(entry, hold);
        if !noted {
            self.alarms.raise(
                Code::HeldFull,
                "",
                "many bundles of a key are held already: more are refused; look at `status` for who signs them",
            );
            // Nothing remembers it.
            return self.staging.discard(id);
        }
        if !known {
            if let Some(suppressed) = self.log.allow(now) {
                tracing::warn!(bundle = %id, code, reason, suppressed, "held");
            }
            self.audit.note(now, &Event::Held { bundle: subject(&subject_of), code, reason: &reason });
            self.ledger.keep();
        }
        self.staging.end(id);
    }

    /// Ends a bundle that the sender gave up.
    pub(super) fn withdrawn(&self, id: BundleId, reason: &str) {
        let now = self.clock.now();
        let reason = &escape_bytes(reason.as_bytes());
        if !self.ledger.lock().end(id, now, |entry| entry.withdraw(Some(reason.to_owned()))) {
            return;
        }
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return };
        if let Some(suppressed) = self.log.allow(now) {
            tracing::warn!(bundle = %id, name = escape_bytes(&entry.name), reason, suppressed, "withdrawn by the sender");
        }
        self.audit.note(now, &Event::Withdrawn { bundle: subject(&entry), reason });
        self.ledger.keep();
        self.staging.end(id);
        self.waker.wake();
    }

    /// Puts a bundle that the ledger has an entry for into quarantine. First the reason is written to the disk, then the audit
    /// trail and the ledger; last, staging is cleaned.
    pub(super) fn quarantine(&self, id: BundleId, refusal: &Refusal, announce: Option<&[u8]>) {
        let now = self.clock.now();
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return };
        let kept = self.kept_announce(id, announce);
        let (place, reason) = (address(&entry), reason(&entry, refusal, now));
        if let Err(error) = self.inbox.quarantine(&place, &reason, announce.or(kept.as_deref())) {
            self.not_written(id, &error);
        }
        self.end_in_quarantine(now, &[(entry, refusal)]);
    }

    /// The same for many bundles, in the same order, but each step is made durable for all of them at once.
    pub(super) fn quarantine_all(&self, refused: &[(BundleId, &Refusal)]) {
        let now = self.clock.now();
        let mut entries = Vec::new();
        for &(id, refusal) in refused {
            let Some(entry) = self.ledger.lock().entry(id).cloned() else { continue };
            let kept = self.kept_announce(id, None);
            let (place, reason) = (address(&entry), reason(&entry, refusal, now));
            if let Err(error) = self.inbox.quarantine_unsynced(&place, &reason, kept.as_deref()) {
                self.not_written(id, &error);
            }
            entries.push((entry, refusal));
        }
        if let Some((first, _)) = entries.first() {
            // Quarantine is on the file system of staging, most often, and what it lost is told to the first who syncs.
            let _sync = self.store.syncs.begin();
            if let Err(error) = self.inbox.sync_quarantine() {
                self.not_written(first.id, &error);
                self.staging.sync_failed(first.id, &error);
            }
        }
        self.end_in_quarantine(now, &entries);
    }

    /// The steps after the reason is on the disk.
    fn end_in_quarantine(&self, now: u64, refused: &[(Entry, &Refusal)]) {
        for (entry, refusal) in refused {
            if let Some(suppressed) = self.log.allow(now) {
                let (name, rule, reason) = (escape_bytes(&entry.name), &refusal.rule, &refusal.reason);
                tracing::error!(bundle = %entry.id, name, rule, reason, suppressed, "quarantined");
            }
        }
        let events = refused.iter().map(|(entry, refusal)| Event::Quarantined {
            bundle: subject(entry),
            rule: &refusal.rule,
            reason: &refusal.reason,
        });
        self.audit.note_all(now, &events.collect::<Vec<_>>());
        for (entry, refusal) in refused {
            self.ledger.lock().change(entry.id, now, |entry| {
                entry.quarantine(Some(refusal.rule.clone()), Some(refusal.reason.clone()));
            });
        }
        self.ledger.keep();
        refused.iter().for_each(|(entry, _)| self.staging.end(entry.id));
        self.waker.wake();
    }

    /// The announce that staging has, if none is at hand.
    fn kept_announce(&self, id: BundleId, announce: Option<&[u8]>) -> Option<Vec<u8>> {
        let staged = self.store.get(id).filter(|_| announce.is_none())?;
        self.store.object(&staged, ObjectKind::Announce, 1 << 20).ok().flatten()
    }

    fn not_written(&self, id: BundleId, error: &io::Error) {
        if let Some(suppressed) = self.log.allow(self.clock.now()) {
            tracing::error!(bundle = %id, %error, suppressed, "reason cannot be written to quarantine");
        }
    }

    /// Moves a refused bundle from the inbox to quarantine. May be done again.
    pub(super) fn move_to_quarantine(&self, id: BundleId) {
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return };
        let Some(channel) = entry.channel.clone() else { return };
        let place = Address { id, channel: Some(channel.clone()), sequence: entry.sequence };
        let reason = Reason {
            bundle: id,
            channel: entry.channel.clone(),
            sequence: entry.sequence,
            name: escape_bytes(&entry.name),
            rule: entry.rule.clone().unwrap_or_else(|| "hook".into()),
            reason: entry.reason.clone().unwrap_or_default(),
            signer: entry.signer.as_ref().map(|s| s.key.to_string()),
            at: Stamp(entry.changed_ms),
        };
        let moved = self.inbox.quarantine(&place, &reason, None).and_then(|()| self.inbox.withdraw(&place, &channel));
        match moved {
            Ok(()) => {
                let now = self.clock.now();
                self.ledger.lock().change(id, now, Entry::moved_to_quarantine);
                self.ledger.keep();
            }
            Err(error) => {
                if let Some(suppressed) = self.log.allow(self.clock.now()) {
                    tracing::error!(bundle = %id, %error, suppressed, "bundle cannot be moved to quarantine; the next start tries again");
                }
            }
        }
    }

    /// Finishes what a crash interrupted: a bundle is refused, and it is still in the inbox.
    pub(super) fn finish_moves(&self) {
        let left: Vec<BundleId> = {
            let ledger = self.ledger.lock();
            ledger.entries().filter(|e| e.state() == State::Quarantined && e.is_published()).map(|e| e.id).collect()
        };
        left.into_iter().for_each(|id| self.move_to_quarantine(id));
    }
}

fn address(entry: &Entry) -> Address {
    Address { id: entry.id, channel: entry.channel.clone(), sequence: entry.sequence }
}

fn reason(entry: &Entry, refusal: &Refusal, now: u64) -> Reason {
    Reason {
        bundle: entry.id,
        channel: entry.channel.clone(),
        sequence: entry.sequence,
        name: escape_bytes(&entry.name),
        rule: refusal.rule.clone(),
        reason: refusal.reason.clone(),
        signer: entry.signer.as_ref().map(|signer| signer.key.to_string()),
        at: Stamp(now),
    }
}
