//! Whose turn it is for the hook, and what became of it. Running it is [`crate::hook`]'s part.
//!
//! The start of a hook is made durable before the hook runs. So after a crash it is known that the hook was
//! interrupted, and it runs again as the next attempt. Its outcome is made durable before the next hook's turn comes.

use std::path::PathBuf;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_protocol::id::ChannelName;
use checkvalve_protocol::manifest::Announce;

use super::refusing::Refusing;
use super::shared::{CurrentTrust, Policies, Waker};
use super::telling::subject;
use crate::audit::{Audit, Event};
use crate::hook::{HookPolicy, HookRun, Outcome};
use crate::inbox::{Address, Inbox};
use crate::ledger::file::LedgerFile;
use crate::ledger::{Entry, State};

/// Whose turn it is.
pub(super) struct Installing {
    pub(super) policies: Arc<Policies>,
    pub(super) trust: Arc<CurrentTrust>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) audit: Arc<Audit>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) refusing: Arc<Refusing>,
    pub(super) waker: Arc<Waker>,
}

impl Installing {
    /// The hooks that are to start now, one a channel at most; each is written down as started. The caller runs each and
    /// then says [`Installing::hook_ended`].
    pub(super) fn due_hooks(&self, now_ms: u64) -> Vec<HookRun> {
        let with_hook =
            self.policies.0.iter().filter_map(|(channel, policy)| Some((channel, policy.hook.as_ref()?, policy)));
        let mut due = Vec::new();
        for (channel, hook, policy) in with_hook {
            let started = self.ledger.lock().start_next(channel, now_ms, policy.wait_for_missing_ms);
            due.extend(started.and_then(|entry| self.start(channel, hook, entry, now_ms)));
        }
        due
    }

    /// The announce of a published bundle and the hashes of its files in order, as the hook is told. Errors, in words: the
    /// record is not readable, or a key that signed it is no longer trusted, so that it may not be installed.
    pub(super) fn manifest_of(&self, run: &HookRun) -> Result<(Announce, Vec<[u8; 32]>), String> {
        let place = Address { id: run.id, channel: Some(run.channel.clone()), sequence: run.sequence };
        self.inbox.manifest(&place, &self.trust.get()).map_err(|error| format!("its manifest: {error}"))
    }

    /// A hook has ended, or could not be started.
    pub(super) fn hook_ended(&self, run: &HookRun, outcome: &Outcome, now_ms: u64) {
        let ended = outcome.to_string();
        let (word, state) = match outcome {
            Outcome::Done => ("installed", State::Installed),
            Outcome::Quarantine(_) => ("quarantined", State::Quarantined),
            Outcome::Failed(_) | Outcome::TimedOut(_) => ("failed", State::Failed),
            Outcome::Again | Outcome::NotStarted(_) if run.policy.is_last(run.attempt) => ("failed", State::Failed),
            Outcome::Again | Outcome::NotStarted(_) | Outcome::Interrupted => ("again", State::Installing),
        };
        let entry = self.ledger.lock().entry(run.id).cloned();
        if let Some(entry) = entry {
            let event = Event::Hook {
                bundle: subject(&entry),
                stage: "install",
                attempt: run.attempt,
                outcome: word,
                ended: &ended,
            };
            self.audit.note(now_ms, &event);
        }
        self.ledger.lock().change(run.id, now_ms, |entry| {
            let ended = Some(ended.clone());
            match state {
                State::Installed => entry.installed(),
                State::Quarantined => entry.quarantine(Some("hook".to_owned()), ended),
                State::Failed => entry.fail(ended),
                _ => {
                    entry.install();
                    entry.reason = ended;
                }
            }
            entry.not_before_ms = match outcome {
                Outcome::Again | Outcome::NotStarted(_) => now_ms.saturating_add(run.policy.backoff_ms(run.attempt)),
                _ => 0,
            };
        });
        self.ledger.keep();
        let (bundle, channel, sequence, attempt) = (run.id, &run.channel, run.sequence, run.attempt);
        match word {
            "installed" => tracing::info!(%bundle, %channel, sequence, attempt, "installed"),
            "again" => tracing::warn!(%bundle, %channel, sequence, attempt, ended, "hook is to run again"),
            _ => tracing::error!(%bundle, %channel, sequence, attempt, ended, state = word, "hook"),
        }
        if state == State::Quarantined {
            self.refusing.move_to_quarantine(run.id);
        }
        self.ledger.lock().hook_over(&run.channel);
        self.waker.wake();
    }

    /// Makes a start durable. None: it is not started, since a crash would not know of it. The attempt counts nonetheless.
    fn start(&self, channel: &ChannelName, hook: &Arc<HookPolicy>, entry: Entry, now_ms: u64) -> Option<HookRun> {
        let id = entry.id;
        if !self.ledger.keep() {
            let later = now_ms.saturating_add(hook.backoff_ms(1));
            self.ledger.lock().not_started(id, channel, now_ms, later);
            return None;
        }
        Some(HookRun {
            policy: Arc::clone(hook),
            id,
            channel: channel.clone(),
            sequence: entry.sequence,
            directory: self.inbox.path(channel, entry.sequence),
            previous: self.previous(channel, entry.sequence),
            name: entry.name,
            signer: entry.signer,
            attempt: entry.attempt,
        })
    }

    /// The newest bundle of a channel before `sequence` that is installed and still in the inbox.
    fn previous(&self, channel: &ChannelName, sequence: u64) -> Option<PathBuf> {
        let previous: Option<Entry> = {
            let ledger = self.ledger.lock();
            let mut before = ledger.channel(channel)?.slots(..sequence).rev().filter_map(|(_, id)| ledger.entry(id));
            before.find(|e| e.state() == State::Installed).cloned()
        };
        let previous = previous?;
        let path = self.inbox.path(channel, previous.sequence).join(crate::hook::os_name(&previous.name));
        self.disk.lstat(&path).is_ok().then_some(path)
    }
}
