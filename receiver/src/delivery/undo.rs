//! A refusal is undone, since an operator says so or its key is trusted now.

use std::io;
use std::sync::Arc;

use checkvalve_host::disk::Disk;

use super::DecideError;
use super::shared::{Clock, Policies, Waker, is_missing};
use super::staging::Staging;
use super::telling::{number, subject};
use crate::audit::{Audit, Event};
use crate::inbox::{Address, Inbox};
use crate::ledger::file::LedgerFile;
use crate::ledger::{Entry, State};
use crate::sink::Lost;

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
    pub(super) inbox: Arc<Inbox>,
    pub(super) audit: Arc<Audit>,
    pub(super) staging: Arc<Staging>,
    pub(super) waker: Arc<Waker>,
}

impl Undoing {
    /// What refused a bundle is undone: what is in quarantine of it goes back to the inbox, what is not has to come again. Errors: of
    /// the disk.
    pub(super) fn undo(&self, entry: &Entry) -> io::Result<Undone> {
        let (id, now) = (entry.id, self.clock.now());
        let returned = self.put_back(entry)?;
        let here = returned
            || match &entry.channel {
                Some(channel) => {
                    entry.is_published() && !is_missing(self.disk.as_ref(), &self.inbox.path(channel, entry.sequence))?
                }
                None => false,
            };
        let older = self.check_newest(entry).is_err();
        self.audit.note(now, &Event::Retried { bundle: subject(entry), from: entry.state().as_str() });
        {
            let mut ledger = self.ledger.lock();
            ledger.retry(id, now);
            if here {
                ledger.change(id, now, |e| if older { e.supersede(None) } else { e.complete() });
                if let Some(name) = entry.channel.as_ref().filter(|name| !older && self.policies.has_hook(name)) {
                    ledger.change_channel(name, |channel| channel.turn_back(entry.sequence));
                }
            }
        }
        self.ledger.lock().reception.unspurn(id);
        self.ledger.keep();
        self.staging.lose(id, Lost::All);
        self.waker.wake();
        Ok(match here {
            true if older => Undone::Older,
            true => Undone::Back,
            false => Undone::Again,
        })
    }

    /// What is installed is never replaced by something older. Errors: [`DecideError::Older`].
    pub(super) fn check_newest(&self, entry: &Entry) -> Result<(), DecideError> {
        let Some(name) = &entry.channel else { return Ok(()) };
        let ledger = self.ledger.lock();
        let Some(channel) = ledger.channel(name) else { return Ok(()) };
        let later = channel.slots(entry.sequence.saturating_add(1)..);
        let installed = later.filter_map(|(_, id)| ledger.entry(id)).find(|e| e.state() == State::Installed);
        installed.map_or(Ok(()), |e| Err(DecideError::Older(number(e))))
    }

    /// From quarantine back to the inbox, if that is where it is. Gives whether it was. Errors: of the disk.
    fn put_back(&self, entry: &Entry) -> io::Result<bool> {
        let Some(channel) = &entry.channel else { return Ok(false) };
        let place = Address { id: entry.id, channel: entry.channel.clone(), sequence: entry.sequence };
        self.inbox.put_back(&place, channel)
    }
}
