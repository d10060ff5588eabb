//! What operators decide: what to give up, what to let come, what to try again.

use std::sync::{Arc, PoisonError};

use checkvalve_protocol::id::{BundleId, ChannelName};

use super::alarms::{Alarms, Code};
use super::shared::{Clock, CurrentTrust, Waker};
use super::staging::Staging;
use super::telling::{Words, number, subject};
use super::undo::{Undoing, Undone};
use crate::audit::{Audit, Event, Subject};
use crate::ledger::file::LedgerFile;
use crate::ledger::{Entry, Hold, State, Unchanged};
use crate::store::Store;

/// Which bundle an operator means: `channel/sequence`, or the first digits of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// By its number.
    Sequence(ChannelName, u64),
    /// Several of a channel, the first and the last.
    Range(ChannelName, u64, u64),
    /// By the first digits of its id.
    Prefix(String),
}

/// Why what an operator decided does not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecideError {
    /// There is none.
    #[error("no such bundle; `status` lists them")]
    Unknown,
    /// There are several.
    #[error("several bundles begin so; give more digits")]
    Ambiguous,
    /// Several that are on their way claim the number.
    #[error("several bundles claim it: name one by its id, {}", .0.join(", "))]
    Claimed(Vec<String>),
    /// It is over.
    #[error("the bundle is {} already", .0.as_str())]
    Over(State),
    /// Its hook runs.
    #[error("its hook is running; wait for it to end")]
    Running,
    /// It is neither a sequence nor the beginning of an id.
    #[error(
        "write `channel/sequence`, or the first digits of the bundle's id; to `reject` missing ones also `channel/first-last`"
    )]
    Malformed,
    /// The ledger or the quarantine cannot be written.
    #[error("the disk did not take it; see the log")]
    Disk,
    /// It is not held.
    #[error("the bundle is {}: only what is held waits to be approved", .0.as_str())]
    NotHeld(State),
    /// It is held for something that approving does not mend.
    #[error("{0}")]
    Held(String),
    /// Nothing was refused.
    #[error("the bundle is {}: there is nothing to undo", .0.as_str())]
    NothingToRetry(State),
    /// Its key does not count.
    #[error("{0}")]
    Trust(String),
    /// A later one is installed.
    #[error("{0}, which is newer, is installed")]
    Older(String),
}

impl From<Unchanged> for DecideError {
    fn from(unchanged: Unchanged) -> Self {
        match unchanged {
            Unchanged::Unknown => Self::Unknown,
            Unchanged::Over(state) => Self::Over(state),
            Unchanged::Busy => Self::Running,
        }
    }
}

impl std::str::FromStr for Which {
    type Err = DecideError;
    fn from_str(text: &str) -> Result<Self, DecideError> {
        if let Some((channel, sequence)) = text.rsplit_once('/') {
            let channel = ChannelName::new(channel).map_err(|_| DecideError::Malformed)?;
            if let Some((first, last)) = sequence.split_once('-') {
                let number = |text: &str| text.parse().map_err(|_| DecideError::Malformed);
                return Ok(Self::Range(channel, number(first)?, number(last)?));
            }
            return Ok(Self::Sequence(channel, sequence.parse().map_err(|_| DecideError::Malformed)?));
        }
        let digits = (1..=16).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        if digits { Ok(Self::Prefix(text.to_ascii_lowercase())) } else { Err(DecideError::Malformed) }
    }
}

/// Does what operators decide.
pub(super) struct Deciding {
    pub(super) clock: Arc<Clock>,
    pub(super) trust: Arc<CurrentTrust>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) store: Arc<Store>,
    pub(super) audit: Arc<Audit>,
    pub(super) staging: Arc<Staging>,
    pub(super) undoing: Arc<Undoing>,
    pub(super) alarms: Arc<Alarms>,
    pub(super) words: Arc<Words>,
    pub(super) waker: Arc<Waker>,
}

impl Deciding {
    /// Gives a bundle up, so that later ones go on. What staging has of it is removed; what is published stays.
    pub(super) fn reject(&self, which: &Which) -> Result<(), DecideError> {
        let id = match self.find_open(which) {
            Err(DecideError::Unknown) => return self.reject_unknown(which),
            found => found?,
        };
        let now = self.clock.now();
        let staged = self.store.get(id);
        let _alone = staged.as_ref().map(|s| s.advancing.lock().unwrap_or_else(PoisonError::into_inner));
        let entry = self.ledger.lock().reject(id, now)?;
        self.audit.note(now, &Event::Rejected { bundle: subject(&entry), through: None });
        let saved = self.ledger.keep();
        self.staging.discard(id);
        tracing::warn!(bundle = %id, sequence = entry.sequence, "rejected");
        self.waker.wake();
        if saved { Ok(()) } else { Err(DecideError::Disk) }
    }

    /// Lets a bundle come that is held, or says that a channel's sequences up to this one are in use. Errors: [`DecideError`].
    pub(super) fn approve(&self, which: &Which) -> Result<String, DecideError> {
        let held = match self.find_open(which) {
            Ok(id) => self.ledger.lock().entry(id).cloned(),
            Err(DecideError::Unknown) => None,
            Err(error) => return Err(error),
        };
        let now = self.clock.now();
        match (held, which) {
            (Some(entry), _) if entry.state() == State::Held && matches!(entry.hold, Some(Hold::Jump { .. })) => {
                let Some(channel) = &entry.channel else { return Err(DecideError::Unknown) };
                self.ledger.lock().allow(channel, entry.sequence);
                self.undoing.undo(&entry).map_err(|_| DecideError::Disk)?;
                // As if its announce had come just now.
                self.ledger.lock().place(entry.id);
                self.audit.note(now, &Event::Approved { bundle: subject(&entry) });
                Ok(format!(
                    "{} may come; if the sender does not send it again by itself, `checkvalve-receiver ticket {}`",
                    number(&entry),
                    self.words.handle(&entry)
                ))
            }
            (Some(entry), _) => match &entry.hold {
                Some(hold) => Err(DecideError::Held(self.words.held_reason(&entry, hold, &self.words.handle(&entry)))),
                None => Err(DecideError::NotHeld(entry.state())),
            },
            (None, Which::Sequence(channel, sequence)) => {
                let jump = self.ledger.lock().channel(channel).is_some_and(|c| c.is_jump(*sequence));
                if !jump {
                    return Err(DecideError::Unknown);
                }
                self.ledger.lock().allow(channel, *sequence);
                self.alarms.clear(Code::SequenceJump, channel.as_str());
                self.audit.note(now, &Event::Approved { bundle: nobody(channel, *sequence) });
                if self.ledger.keep() {
                    Ok(format!("sequences of {channel} up to {sequence} may come"))
                } else {
                    Err(DecideError::Disk)
                }
            }
            (None, Which::Prefix(_) | Which::Range(..)) => Err(DecideError::Unknown),
        }
    }

    /// Undoes a refusal, or has a hook run again that failed, or at once one that waits. Gives what happens now. Errors: [`DecideError`].
    pub(super) fn retry(&self, which: &Which) -> Result<String, DecideError> {
        let id = self.find_open(which)?;
        let entry = self.ledger.lock().entry(id).cloned().ok_or(DecideError::Unknown)?;
        let (number, handle) = (number(&entry), self.words.handle(&entry));
        match entry.state() {
            State::Failed => {
                self.check_newest(&entry)?;
                let (now, from) = (self.clock.now(), entry.state().as_str());
                self.audit.note(now, &Event::Retried { bundle: subject(&entry), from });
                self.ledger.lock().turn_back(id, now);
                let saved = self.ledger.keep();
                self.waker.wake();
                if saved { Ok(format!("the hook of {number} runs again")) } else { Err(DecideError::Disk) }
            }
            // It waits to be run again.
            State::Installing => {
                let now = self.clock.now();
                self.ledger.lock().run_now(id, now)?;
                self.audit.note(now, &Event::Retried { bundle: subject(&entry), from: entry.state().as_str() });
                let saved = self.ledger.keep();
                self.waker.wake();
                if saved { Ok(format!("the hook of {number} runs again")) } else { Err(DecideError::Disk) }
            }
            State::Quarantined | State::Rejected | State::Withdrawn | State::Held => {
                if let (Some(signer), Some(channel)) = (&entry.signer, &entry.channel)
                    && let Err(error) = self.trust.get().check(signer.key, channel)
                {
                    return Err(DecideError::Trust(error.to_string()));
                }
                if entry.rule.as_deref() == Some("hook") {
                    self.check_newest(&entry)?;
                }
                let undone = self.undoing.undo(&entry).map_err(|_| DecideError::Disk)?;
                self.ledger.lock().place(id);
                // By what was done, and not by its state: its hook may run already, or have ended.
                let has_hook = entry.channel.as_ref().is_some_and(|channel| self.undoing.policies.has_hook(channel));
                Ok(match undone {
                    Undone::Back if has_hook => {
                        format!("{number} is in the inbox again, and its hook runs in its turn")
                    }
                    Undone::Back => format!("{number} is in the inbox again"),
                    Undone::Older => {
                        format!("{number} is in the inbox again, and is not installed: a later one is")
                    }
                    Undone::Again => format!(
                        "{number} is to come again; if the sender does not send it by itself, `checkvalve-receiver ticket {handle}`"
                    ),
                })
            }
            state => Err(DecideError::NothingToRetry(state)),
        }
    }

    /// What is installed is never replaced by something older. Errors: [`DecideError::Older`].
    fn check_newest(&self, entry: &Entry) -> Result<(), DecideError> {
        let ledger = self.ledger.lock();
        ledger.newer_installed(entry).map_or(Ok(()), |newer| Err(DecideError::Older(number(newer))))
    }

    /// As [`find`], but of several with one sequence the one that waits for an operator.
    fn find_open(&self, which: &Which) -> Result<BundleId, DecideError> {
        let found = find(&self.ledger, which);
        let is_open = found.as_ref().is_ok_and(|id| {
            let ledger = self.ledger.lock();
            ledger.entry(*id).is_some_and(|entry| entry.state().is_open() || entry.state() == State::Failed)
        });
        if is_open {
            return found;
        }
        self.held_at(which).map_or(found, |entry| Ok(entry.id))
    }

    /// The bundle that is held under a sequence: it has no place in its channel.
    fn held_at(&self, which: &Which) -> Option<Entry> {
        let Which::Sequence(channel, sequence) = which else { return None };
        let is =
            |e: &&Entry| e.state() == State::Held && e.channel.as_ref() == Some(channel) && e.sequence == *sequence;
        self.ledger.lock().entries().find(is).cloned()
    }

    fn reject_unknown(&self, which: &Which) -> Result<(), DecideError> {
        let (channel, first, last) = match which {
            Which::Sequence(channel, sequence) => (channel, *sequence, *sequence),
            Which::Range(channel, first, last) => (channel, *first, *last),
            Which::Prefix(_) => return Err(DecideError::Unknown),
        };
        let last = self.ledger.lock().reject_unknown(channel, first..=last).ok_or(DecideError::Unknown)?;
        let through = (first != last).then_some(last);
        self.audit.note(self.clock.now(), &Event::Rejected { bundle: nobody(channel, first), through });
        self.waker.wake();
        if self.ledger.keep() { Ok(()) } else { Err(DecideError::Disk) }
    }
}

/// The bundle that an operator means.
pub(super) fn find(ledger: &LedgerFile, which: &Which) -> Result<BundleId, DecideError> {
    let ledger = ledger.lock();
    match which {
        Which::Sequence(channel, sequence) => {
            let is = |e: &&Entry| e.channel.as_ref() == Some(channel) && e.sequence == *sequence;
            let placed = ledger.at(channel, *sequence);
            let claims = ledger.channel(channel).map(|c| c.claims(*sequence)).unwrap_or_default();
            let is_open = |id: &&BundleId| ledger.entry(**id).is_some_and(|entry| entry.state().is_open());
            let open: Vec<String> = claims.iter().filter(is_open).map(ToString::to_string).collect();
            if open.len() > 1 && placed.is_some_and(|entry| entry.state().is_open()) {
                return Err(DecideError::Claimed(open));
            }
            // What was held, or refused, may have no place in its channel.
            placed.or_else(|| ledger.entries().find(is)).map(|entry| entry.id).ok_or(DecideError::Unknown)
        }
        Which::Range(..) => Err(DecideError::Unknown),
        Which::Prefix(prefix) => {
            let mut found = ledger.entries().map(|e| e.id).filter(|id| id.to_string().starts_with(prefix.as_str()));
            match (found.next(), found.next()) {
                (Some(id), None) => Ok(id),
                (None, _) => Err(DecideError::Unknown),
                (Some(_), Some(_)) => Err(DecideError::Ambiguous),
            }
        }
    }
}

/// A sequence of which no bundle is known, for the audit trail.
fn nobody(channel: &ChannelName, sequence: u64) -> Subject<'_> {
    Subject { bundle: None, channel: Some(channel), sequence, name: String::new(), signer: None, signer_name: None }
}
