//! Bundles that are not published: held, withdrawn, or in quarantine.
//!
//! Each outcome is saved before staging is cleaned. After a crash in between, the next start finds what is left and cleans up.

use checkvalve_host::json::Stamp;
use checkvalve_host::log::escape_bytes;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::manifest::ManifestError;
use checkvalve_protocol::wire::ObjectKind;

use super::Delivery;
use super::alarms::Code;
use super::telling::subject;
use crate::audit::Event;
use crate::inbox::{Address, Reason};
use crate::ledger::{Entry, Hold, State};

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

impl Delivery {
    /// Holds a bundle. It is reported once, and nothing more of it is received.
    pub(super) fn hold(&self, entry: Entry, hold: Hold) {
        let (id, now, code, reason) = (entry.id, self.now(), hold.code(), entry.reason.clone().unwrap_or_default());
        let subject_of = entry.clone();
        let known = self.ledger.lock().entry(id).is_some_and(|e| e.state() == State::Held);
        let noted = self.ledger.lock().hold(entry, hold);
        if !noted {
            self.alarm(
                Code::HeldFull,
                "",
                "many bundles of a key are held already: more are refused; look at `status` for who signs them",
            );
        } else if !known {
            if let Some(suppressed) = self.throttle.allow(now) {
                tracing::warn!(bundle = %id, code, reason, suppressed, "held");
            }
            self.note(now, &Event::Held { bundle: subject(&subject_of), code, reason: &reason });
            self.save();
        }
        self.discard(id);
    }

    /// Ends a bundle that the sender gave up.
    pub(super) fn withdrawn(&self, id: BundleId, reason: &str) {
        let now = self.now();
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
        if let Some(suppressed) = self.throttle.allow(now) {
            tracing::warn!(bundle = %id, name = escape_bytes(&entry.name), reason, suppressed, "withdrawn by the sender");
        }
        self.note(now, &Event::Withdrawn { bundle: subject(&entry), reason });
        self.save();
        self.discard(id);
        self.wake();
    }

    /// Puts a bundle that the ledger has an entry for into quarantine. First the reason is written to the disk, then the audit
    /// trail and the ledger; last, staging is cleaned.
    pub(super) fn quarantine(&self, id: BundleId, refusal: &Refusal, announce: Option<&[u8]>) {
        let now = self.now();
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
        if let Err(error) = self.inbox.quarantine(&place, &reason, announce.or(kept.as_deref())) {
            tracing::error!(bundle = %id, %error, "reason cannot be written to quarantine");
        }
        if let Some(suppressed) = self.throttle.allow(now) {
            let (name, rule, reason) = (&reason.name, &reason.rule, &reason.reason);
            tracing::error!(bundle = %id, name, rule, reason, suppressed, "quarantined");
        }
        self.note(now, &Event::Quarantined { bundle: subject(&entry), rule: &refusal.rule, reason: &refusal.reason });
        self.ledger.lock().change(id, now, |entry| {
            entry.quarantine(Some(refusal.rule.clone()), Some(refusal.reason.clone()));
        });
        self.save();
        self.discard(id);
        self.wake();
    }
}
