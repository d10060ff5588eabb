//! Whom to trust, and what follows for the bundles that are here.

mod listed;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError};

use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::id::{BundleId, KeyId};
use checkvalve_protocol::manifest::ManifestError;
use serde::{Deserialize, Serialize};

use super::Delivery;
use super::refusing::Refusal;
use super::telling::number;
use crate::audit::Event;
use crate::ledger::{Entry, State};
use crate::sink::Lost;

/// The rule for which bundles are in quarantine whose key is trusted no more.
pub(crate) const NO_KEY: &str = "unknown-key";
/// The rule for which they are there if it may not sign for their channel any more.
pub(crate) const NOT_ITS: &str = "not-for-channel";

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

impl Delivery {
    /// Trusts these keys from now on, each for what it may sign. Every bundle that is under way or not installed yet is judged
    /// again before this returns. Changes go to the audit trail, also those that were made while no daemon ran. Errors: the list
    /// of trusted keys in the state directory.
    pub fn set_trust(&self, trust: Trust, now_ms: u64) -> io::Result<Judged> {
        let path = self.settings.state.join("trust.json");
        let before = listed::read(self.disk.as_ref(), &path)?;
        let after: BTreeMap<KeyId, String> = trust.keys.iter().map(|(id, _, name)| (id, name.to_owned())).collect();
        for (&key, name) in after.iter().filter(|(key, _)| !before.contains_key(key)) {
            tracing::info!(%key, name, "key is trusted");
            self.note(now_ms, &Event::TrustAdded { key, name });
        }
        for (&key, name) in before.iter().filter(|(key, _)| !after.contains_key(key)) {
            tracing::warn!(%key, name, "key is trusted no more");
            self.note(now_ms, &Event::TrustRemoved { key, name });
        }
        let trust = Arc::new(trust);
        *self.trust.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&trust);
        self.store.space().set_key_share(self.key_share());
        let judged = self.judge_again(&trust);
        if before != after {
            self.save();
            listed::write(self.disk.as_ref(), &path, after)?;
        }
        Ok(judged)
    }

    /// Judges every bundle again that is under way, waits for its hook, or was refused for its key.
    fn judge_again(&self, trust: &Trust) -> Judged {
        let mut judged = Judged { trusted: trust.keys.len(), ..Judged::default() };
        let entries: Vec<Entry> = self.ledger.lock().entries().filter(|e| e.signer.is_some()).cloned().collect();
        for entry in entries {
            let (Some(signer), Some(channel)) = (&entry.signer, &entry.channel) else { continue };
            let verdict = trust.check(signer.key, channel);
            let by_key = matches!(entry.rule.as_deref(), Some(NO_KEY | NOT_ITS)) && entry.state() == State::Quarantined;
            match verdict {
                Err(error) if self.is_judged_again(&entry) => {
                    if self.refuse_for_key(entry.id, &error) {
                        judged.refused.push(number(&entry));
                    } else {
                        judged.running.push(number(&entry));
                    }
                }
                Ok(()) if by_key && self.undo(&entry).is_ok() => judged.admitted.push(number(&entry)),
                _ => {}
            }
        }
        for id in self.judge_unknown() {
            let entry = self.ledger.lock().entry(id).cloned();
            judged.admitted.extend(entry.as_ref().map(number));
        }
        [&mut judged.admitted, &mut judged.refused, &mut judged.running].into_iter().for_each(|numbers| numbers.sort());
        judged
    }

    /// Whether it is under way, or waits for its hook. What is in the inbox of a channel without a hook is in other hands.
    fn is_judged_again(&self, entry: &Entry) -> bool {
        let waits = || entry.channel.as_ref().is_some_and(|channel| self.policy(channel).hook.is_some());
        entry.state().is_open()
            || matches!(entry.state(), State::Installing | State::Held)
            || entry.state() == State::Complete && waits()
    }

    /// False: its hook runs, or it came to an end meanwhile.
    fn refuse_for_key(&self, id: BundleId, error: &ManifestError) -> bool {
        let staged = self.store.get(id);
        let _alone = staged.as_ref().map(|s| s.advancing.lock().unwrap_or_else(PoisonError::into_inner));
        // Held until the state has changed, so that no hook starts in between.
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return false };
        let runs = entry.state() == State::Installing
            && entry.channel.as_ref().is_some_and(|channel| running.contains(channel));
        if runs || !self.is_judged_again(&entry) {
            return false;
        }
        self.quarantine(id, &Refusal::of(error), None);
        drop(running);
        if entry.is_published() {
            self.withdraw(id);
        }
        true
    }

    /// What refused a bundle is undone: what is in quarantine of it goes back to the inbox, what is not has to come again. Errors: of
    /// the disk.
    pub(super) fn undo(&self, entry: &Entry) -> io::Result<()> {
        let (id, now) = (entry.id, self.now());
        let returned = self.put_back(entry)?;
        let here = returned
            || match &entry.channel {
                Some(channel) => entry.is_published() && !self.is_missing(&self.inbox.path(channel, entry.sequence))?,
                None => false,
            };
        let older = self.check_newest(entry).is_err();
        self.note(now, &Event::Retried { bundle: super::telling::subject(entry), from: entry.state().as_str() });
        {
            let mut ledger = self.ledger.lock();
            ledger.retry(id, now);
            if here {
                ledger.change(id, now, |e| if older { e.supersede(None) } else { e.complete() });
                if let Some(name) = entry.channel.as_ref().filter(|name| !older && self.policy(name).hook.is_some()) {
                    ledger.change_channel(name, |channel| channel.turn_back(entry.sequence));
                }
            }
        }
        self.ledger.lock().reception.unspurn(id);
        self.save();
        self.lose(id, Lost::All);
        self.wake();
        Ok(())
    }
}
