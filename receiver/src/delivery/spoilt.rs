//! Content that is not what was signed: thrown away, asked for again, and cleared of what came meanwhile.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use checkvalve_host::log::Throttle;
use checkvalve_protocol::id::BundleId;

use super::alarms::{Alarms, Code};
use super::shared::Clock;
use super::staging::{Staging, is_whole};
use super::telling::{Words, number, subject};
use super::watch::has_ended;
use crate::audit::{Audit, Event};
use crate::ledger::file::LedgerFile;
use crate::ledger::{Entry, Live};
use crate::sink::{Lost, StoreError};
use crate::store::{Staged, Store};

/// Throws spoilt content away.
pub(super) struct Clearing {
    pub(super) clock: Arc<Clock>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) store: Arc<Store>,
    pub(super) staging: Arc<Staging>,
    pub(super) audit: Arc<Audit>,
    pub(super) alarms: Arc<Alarms>,
    pub(super) words: Arc<Words>,
    pub(super) silence_ms: u64,
    pub(super) log: Arc<Throttle>,
}

impl Clearing {
    /// Content that did not match its hashes is thrown away and asked for again: whoever has the link key can spoil it.
    pub(super) fn spoilt(&self, staged: &Staged, files: &[Range<u64>]) {
        let (id, now) = (staged.id, self.clock.now());
        let bytes = files.iter().map(|range| range.end.saturating_sub(range.start)).fold(0, u64::saturating_add);
        let why =
            format!("{} of its files did not have the content that was signed and have to come again", files.len());
        if let Err(error) = self.throw_away(staged, files) {
            return self.staging.begin_again(id, &format!("{why}; so does the rest: {error}"));
        }
        if let Some(live) = self.ledger.lock().reception.get_mut(id) {
            (live.spoilt, live.clear) = (files.to_vec(), true);
        }
        let entry = self.ledger.lock().change(id, now, |entry| entry.spoilt = entry.spoilt.saturating_add(1)).cloned();
        let Some(entry) = entry else { return };
        if let Some(suppressed) = self.log.allow(now) {
            let (number, times) = (number(&entry), entry.spoilt);
            tracing::error!(bundle = %id, number, files = files.len(), bytes, times, suppressed, "spoilt on the way");
        }
        // Whoever has the link key may do this as often as he likes, and the trail is kept for ever.
        if entry.spoilt.is_power_of_two() {
            self.audit.note(now, &Event::Spoilt { bundle: subject(&entry), files: files.len() as u64, bytes });
        }
        self.alarms.raise(
            Code::Spoilt,
            &id.to_string(),
            &format!(
                "{}: {why}: somebody spoils what is on the link, or a cable does; once it is incomplete, `checkvalve-receiver ticket {}` asks \
                 for it",
                number(&entry),
                self.words.handle(&entry)
            ),
        );
    }

    /// Whoever spoils data on the link may go on after it was noticed, so data that came meanwhile may be spoilt as
    /// well. It is discarded once nothing more comes, and again when a ticket is printed, so that it does not mix with
    /// what is sent again. True: there was something to discard.
    pub(super) fn clear(&self, id: BundleId, for_ticket: bool) -> bool {
        if self.staging.live(id, |live| live.spoilt.is_empty()) != Some(false) {
            return false;
        }
        let Some(staged) = self.store.get(id) else { return false };
        let _alone = staged.advancing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return false };
        let (stored, now) = (self.staging.stored(id), self.clock.now());
        let files = {
            let mut ledger = self.ledger.lock();
            // It may be sent again by now, or whole and right.
            let is_due = |live: &Live| match for_ticket {
                true => !live.spoilt.is_empty() && !is_whole(live, stored),
                false => is_to_be_cleared(&entry, live, stored, now, self.silence_ms),
            };
            let Some(live) = ledger.reception.get_mut(id).filter(|live| is_due(live)) else { return false };
            live.clear = false;
            if for_ticket { std::mem::take(&mut live.spoilt) } else { live.spoilt.clone() }
        };
        if let Err(error) = self.throw_away(&staged, &files) {
            tracing::debug!(bundle = %id, %error, "what came after spoilt content is not thrown away yet");
            if let Some(live) = self.ledger.lock().reception.get_mut(id) {
                (live.spoilt, live.clear) = (files, true);
            }
        }
        true
    }

    /// These bytes are not stored any more, and the data plane forgets what it has of them.
    fn throw_away(&self, staged: &Staged, files: &[Range<u64>]) -> Result<(), StoreError> {
        let discarded = self.store.discard_ranges(staged, files);
        self.staging.lose(staged.id, Lost::All);
        if let Some(live) = self.ledger.lock().reception.get_mut(staged.id) {
            live.progress = None;
        }
        discarded
    }

    /// The device did not keep what was written to it, and said so for something else or not at all.
    pub(super) fn not_kept(&self, staged: &Staged, files: &[Range<u64>]) {
        let (id, count) = (staged.id, files.len());
        let why = format!(
            "the disk did not keep {count} of its files, or they were spoilt on the way; they have to come again"
        );
        if let Err(error) = self.throw_away(staged, files) {
            return self.staging.begin_again(id, &format!("{why}; so does the rest: {error}"));
        }
        staged.doubt();
        self.staging.trouble(id, &why);
    }

    /// The bundle is published: it is right after all.
    pub(super) fn published(&self, id: BundleId) {
        self.alarms.clear(Code::Spoilt, &id.to_string());
    }
}

/// Whether to discard what came for its spoilt content: nothing more comes, and the bundle is still not whole.
pub(super) fn is_to_be_cleared(
    entry: &Entry,
    live: &Live,
    stored: (Option<u64>, u64),
    now_ms: u64,
    silence_ms: u64,
) -> bool {
    live.clear && has_ended(entry, live, now_ms, silence_ms) && !is_whole(live, stored)
}
