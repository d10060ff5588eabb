//! A refusal is undone, since an operator says so or its key is trusted now.

use std::io;
use std::sync::{Arc, PoisonError};

use checkvalve_host::disk::Disk;

use super::shared::{Clock, Policies, Waker, is_missing};
use super::staging::Staging;
use super::telling::subject;
use crate::audit::{Audit, Event};
use crate::inbox::{Address, Inbox};
use crate::ledger::file::LedgerFile;
use crate::ledger::{Entry, State};
use crate::sink::Lost;
use crate::store::Store;

/// What became of a refusal that was undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undone {
    /// It has to come again.
    Again,
    /// It is in the inbox.
    Back,
    /// It is in the inbox, and something later is installed.
    Older,
}

/// Undoes refusals.
pub(super) struct Undoing {
    pub(super) clock: Arc<Clock>,
    pub(super) policies: Arc<Policies>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) store: Arc<Store>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) audit: Arc<Audit>,
    pub(super) staging: Arc<Staging>,
    pub(super) waker: Arc<Waker>,
}

impl Undoing {
    /// What refused a bundle is undone: what is in quarantine of it goes back to the inbox, what is not has to come again. Errors: of
    /// the disk.
    pub(super) fn undo(&self, entry: &Entry) -> io::Result<Undone> {
        let here = self.bring_back(entry)?;
        self.audit.note(self.clock.now(), &Event::Retried { bundle: subject(entry), from: entry.state().as_str() });
        let undone = self.reopen(entry, here);
        self.ledger.keep();
        self.waker.wake();
        Ok(undone)
    }

    /// The same for many, each step of which is made durable for all of them at once. Gives those that were undone.
    pub(super) fn undo_all(&self, entries: &[Entry]) -> Vec<Entry> {
        let mut back = Vec::new();
        for entry in entries {
            match self.bring_back(entry) {
                Ok(here) => back.push((entry.clone(), here)),
                Err(error) => tracing::error!(bundle = %entry.id, %error, "bundle cannot be taken out of quarantine"),
            }
        }
        let events =
            back.iter().map(|(entry, _)| Event::Retried { bundle: subject(entry), from: entry.state().as_str() });
        self.audit.note_all(self.clock.now(), &events.collect::<Vec<_>>());
        for (entry, here) in &back {
            self.reopen(entry, *here);
        }
        self.ledger.keep();
        self.waker.wake();
        back.into_iter().map(|(entry, _)| entry).collect()
    }

    /// Whether it is in the inbox, after what quarantine had of it went back there.
    fn bring_back(&self, entry: &Entry) -> io::Result<bool> {
        // What staging had of it may not have been removed yet.
        if let Some(staged) = self.store.get(entry.id) {
            let _alone = staged.advancing.lock().unwrap_or_else(PoisonError::into_inner);
            self.staging.discard(entry.id);
        }
        let returned = self.put_back(entry)?;
        Ok(returned
            || match &entry.channel {
                Some(channel) => {
                    entry.is_published() && !is_missing(self.disk.as_ref(), &self.inbox.path(channel, entry.sequence))?
                }
                None => false,
            })
    }

    fn reopen(&self, entry: &Entry, here: bool) -> Undone {
        let (id, now) = (entry.id, self.clock.now());
        let has_hook = entry.channel.as_ref().is_some_and(|name| self.policies.has_hook(name));
        let is_older = {
            let mut ledger = self.ledger.lock();
            ledger.undo(id, here, has_hook, now);
            ledger.entry(id).is_some_and(|entry| entry.state() == State::Superseded)
        };
        self.staging.lose(id, Lost::All);
        match here {
            true if is_older => Undone::Older,
            true => Undone::Back,
            false => Undone::Again,
        }
    }

    /// From quarantine back to the inbox, if that is where it is. Gives whether it was. Errors: of the disk.
    fn put_back(&self, entry: &Entry) -> io::Result<bool> {
        let Some(channel) = &entry.channel else { return Ok(false) };
        let place = Address { id: entry.id, channel: entry.channel.clone(), sequence: entry.sequence };
        self.inbox.put_back(&place, channel)
    }
}
