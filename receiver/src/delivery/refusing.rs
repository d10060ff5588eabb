//! Bundles that are not published: held, withdrawn, or in quarantine.
//!
//! Each outcome is saved before staging is cleaned. After a crash in between, the next start finds what is left and cleans up.

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
        } else if !known {
            if let Some(suppressed) = self.log.allow(now) {
                tracing::warn!(bundle = %id, code, reason, suppressed, "held");
            }
            self.audit.note(now, &Event::Held { bundle: subject(&subject_of), code, reason: &reason });
            self.ledger.keep();
        }
        self.staging.discard(id);
    }

    /// Ends a bundle that the sender gave up.
    pub(super) fn withdrawn(&self, id: BundleId, reason: &str) {
        let now = self.clock.now();
        let reason = &escape_bytes(reason.as_bytes());
        let mut over = true;
        self.ledger.lock().change(id, now, |entry| {
            over = !entry.state().is_open();
            if !over {
                entry.withdraw(Some(reason.to_owned()));
            }
        });
        if over {
            return;
        }
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return };
        if let Some(suppressed) = self.log.allow(now) {
            tracing::warn!(bundle = %id, name = escape_bytes(&entry.name), reason, suppressed, "withdrawn by the sender");
        }
        self.audit.note(now, &Event::Withdrawn { bundle: subject(&entry), reason });
        self.ledger.keep();
        self.staging.discard(id);
        self.waker.wake();
    }

    /// Puts a bundle that the ledger has an entry for into quarantine. First the reason is written to the disk, then the audit
    /// trail and the ledger; last, staging is cleaned.
    pub(super) fn quarantine(&self, id: BundleId, refusal: &Refusal, announce: Option<&[u8]>) {
        let now = self.clock.now();
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return };
        let place = Address { id, channel: entry.channel.clone(), sequence: entry.sequence };
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
        if let Err(error) = self.inbox.quarantine(&place, &reason, announce.or(kept.as_deref()))
            && let Some(suppressed) = self.log.allow(now)
        {
            tracing::error!(bundle = %id, %error, suppressed, "reason cannot be written to quarantine");
        }
        if let Some(suppressed) = self.log.allow(now) {
            let (name, rule, reason) = (&reason.name, &reason.rule, &reason.reason);
            tracing::error!(bundle = %id, name, rule, reason, suppressed, "quarantined");
        }
        self.audit
            .note(now, &Event::Quarantined { bundle: subject(&entry), rule: &refusal.rule, reason: &refusal.reason });
        self.ledger.lock().change(id, now, |entry| {
            entry.quarantine(Some(refusal.rule.clone()), Some(refusal.reason.clone()));
        });
        self.ledger.keep();
        self.staging.discard(id);
        self.waker.wake();
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
