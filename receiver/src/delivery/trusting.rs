//! Whom to trust, and what follows for the bundles that are here.

mod listed;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use checkvalve_host::disk::Disk;
use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::id::{BundleId, KeyId};
use serde::{Deserialize, Serialize};

use super::refusing::{Refusal, Refusing};
use super::shared::{CurrentTrust, Policies};
use super::shares::Shares;
use super::telling::number;
use super::undo::Undoing;
use crate::audit::{Audit, Event};
use crate::ledger::file::LedgerFile;
use crate::ledger::{Entry, State};
use crate::store::Store;

/// The rule for which bundles are in quarantine whose key is trusted no more.
pub(crate) const NO_KEY: &str = "unknown-key";
/// The rule for which they are there if it may not sign for their channel any more.
pub(crate) const NOT_ITS: &str = "not-for-channel";

/// Bundles that are refused or admitted at once, so that each step is synced once for all of them.
const AT_ONCE: usize = 256;

/// What a change of trust did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// Keys that are trusted now.
    pub trusted: usize,
    /// Bundles that were refused for it, as people name them.
    pub refused: Vec<String>,
    /// Bundles that count now and did not before; those that lack something have a ticket.
    pub admitted: Vec<String>,
    /// Bundles whose hook is running: they are left to it.
    pub running: Vec<String>,
}

/// Changes whom to trust.
pub(super) struct Trusting {
    pub(super) disk: Arc<dyn Disk>,
    /// The list of the keys that were trusted last.
    pub(super) path: PathBuf,
    pub(super) trust: Arc<CurrentTrust>,
    pub(super) policies: Arc<Policies>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) store: Arc<Store>,
    pub(super) audit: Arc<Audit>,
    pub(super) shares: Arc<Shares>,
    pub(super) refusing: Arc<Refusing>,
    pub(super) undoing: Arc<Undoing>,
}

/// The list of trusted keys that is to be written once what follows from it is done. None: it is as it was.
pub(super) struct Change(Option<BTreeMap<KeyId, String>>);

impl Judged {
    /// These count now, too.
    pub(super) fn admit(&mut self, numbers: impl IntoIterator<Item = String>) {
        self.admitted.extend(numbers);
        [&mut self.admitted, &mut self.refused, &mut self.running].into_iter().for_each(|numbers| numbers.sort());
    }
}

impl Trusting {
    /// Trusts these keys from now on, each for what it may sign. Every bundle that is under way or not installed yet is judged
    /// again before this returns. Changes go to the audit trail, also those that were made while no daemon ran. Errors: of the
    /// list of trusted keys.
    pub(super) fn trust(&self, trust: Trust, now_ms: u64) -> io::Result<(Judged, Change)> {
        let before = listed::read(self.disk.as_ref(), &self.path)?;
        let after: BTreeMap<KeyId, String> = trust.keys.iter().map(|(id, _, name)| (id, name.to_owned())).collect();
        for (&key, name) in after.iter().filter(|(key, _)| !before.contains_key(key)) {
            tracing::info!(%key, name, "key is trusted");
            self.audit.note(now_ms, &Event::TrustAdded { key, name });
        }
        for (&key, name) in before.iter().filter(|(key, _)| !after.contains_key(key)) {
            tracing::warn!(%key, name, "key is trusted no more");
            self.audit.note(now_ms, &Event::TrustRemoved { key, name });
        }
        self.trust.set(trust);
        self.shares.divide_among_keys();
        let judged = self.judge_again(&self.trust.get());
        Ok((judged, Change((before != after).then_some(after))))
    }

    /// Writes down who is trusted. Errors: of the disk.
    pub(super) fn keep(&self, change: Change) -> io::Result<()> {
        let Change(Some(keys)) = change else { return Ok(()) };
        self.ledger.keep();
        listed::write(self.disk.as_ref(), &self.path, keys)
    }

    /// Judges every bundle again that is under way, waits for its hook, or was refused for its key.
    fn judge_again(&self, trust: &Trust) -> Judged {
        let mut judged = Judged { trusted: trust.keys.len(), ..Judged::default() };
        let entries: Vec<Entry> = self.ledger.lock().entries().filter(|e| e.signer.is_some()).cloned().collect();
        let (mut refused, mut admitted) = (Vec::new(), Vec::new());
        for entry in entries {
            let (Some(signer), Some(channel)) = (&entry.signer, &entry.channel) else { continue };
            let verdict = trust.check(signer.key, channel);
            let by_key = matches!(entry.rule.as_deref(), Some(NO_KEY | NOT_ITS)) && entry.state() == State::Quarantined;
            match verdict {
                Err(error) if self.is_judged_again(&entry) => refused.push((entry, Refusal::of(&error))),
                Ok(()) if by_key => admitted.push(entry),
                _ => {}
            }
        }
        for some in admitted.chunks(AT_ONCE) {
            judged.admitted.extend(self.undoing.undo_all(some).iter().map(number));
        }
        for some in refused.chunks(AT_ONCE) {
            self.refuse_for_key(some, &mut judged);
        }
        judged
    }

    /// Whether it is under way, or waits for its hook. What is in the inbox of a channel without a hook is in other hands.
    fn is_judged_again(&self, entry: &Entry) -> bool {
        let waits = || entry.channel.as_ref().is_some_and(|channel| self.policies.has_hook(channel));
        entry.state().is_open()
            || matches!(entry.state(), State::Installing | State::Held)
            || entry.state() == State::Complete && waits()
    }

    /// Those whose hook runs are left to it.
    fn refuse_for_key(&self, refused: &[(Entry, Refusal)], judged: &mut Judged) {
        let staged: Vec<_> = refused.iter().map(|(entry, _)| self.store.get(entry.id)).collect();
        // Nobody moves one of them on meanwhile. What somebody is moving on comes last, by itself: others do not wait for that.
        let (mut alone, mut free, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        for (one, staged) in refused.iter().zip(&staged) {
            match staged.as_ref().map(|staged| staged.advancing.try_lock()) {
                None => free.push(one),
                Some(Ok(guard)) => {
                    alone.push(guard);
                    free.push(one);
                }
                Some(Err(_)) if refused.len() > 1 => busy.push(one),
                Some(Err(_)) => {
                    let waited = staged.as_ref().map(|s| s.advancing.lock().unwrap_or_else(PoisonError::into_inner));
                    alone.extend(waited);
                    free.push(one);
                }
            }
        }
        let mut ended = Vec::new();
        for (entry, refusal) in free {
            let mut ledger = self.ledger.lock();
            let is_published = entry.is_published() || ledger.is_publishing(entry.id);
            let now = ledger.entry(entry.id).filter(|now| self.is_judged_again(now)).cloned();
            match now {
                Some(now) if ledger.suspend(entry.id) => {
                    judged.refused.push(number(entry));
                    ended.push((now, refusal, is_published));
                }
                _ => judged.running.push(number(entry)),
            }
        }
        let these: Vec<(BundleId, &Refusal)> = ended.iter().map(|(entry, refusal, _)| (entry.id, *refusal)).collect();
        self.refusing.quarantine_all(&these);
        for (entry, _, is_published) in ended {
            self.ledger.lock().resume(entry.id);
            if is_published || entry.is_published() {
                self.refusing.move_to_quarantine(entry.id);
            }
        }
        drop(alone);
        for one in busy {
            self.refuse_for_key(std::slice::from_ref(one), judged);
        }
    }
}
