//! Taking a bundle back that was let go: somebody still has its content, which is proven to be the same first.
//!
//! The content comes under a name that the spool leaves alone, is claimed into the bundle's own place, and held there
//! once its announce, made again, and its hashes are those that the ledger remembers. A crash on the way leaves what
//! [`super::open`] removes: the caller has only given a copy.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use checkvalve_host::journal::Sync;
use checkvalve_protocol::id::BundleId;

use super::resending::{self, ResendError};
use super::{Actions, Engine, Now};
use crate::ledger::State;
use crate::work::{LoadError, Loaded, Work};

/// What names must begin with that are taken back.
pub const PREFIX: &str = ".restore-";

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restoring {
    /// It is being read and compared.
    Proving,
    /// It is the same, and held again.
    Held,
    /// It is not, or it cannot be read: why.
    Refused(String),
}

/// Why nothing is taken back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is no such bundle, or it cannot be sent again at all.
    #[error(transparent)]
    Resend(#[from] ResendError),
    /// It is on its way in or out already.
    #[error("{0} is being taken back or removed at this moment; try again")]
    Busy(String),
    /// Not a name that a command makes.
    #[error("names of what is taken back begin with `{PREFIX}` and have no `/`")]
    Name,
    /// It cannot be moved.
    #[error("it cannot be moved into the holding area: {0}")]
    Disk(io::Error),
}

impl Engine {
    /// Takes `name` in the folder of a bundle's channel as that bundle's content, which is no longer retained. Ask
    /// [`Engine::restoring`] what came of it. Gives false if the bundle is retained anyway, and then leaves `name` alone.
    pub fn restore(&mut self, which: &str, name: &OsStr, now: Now) -> Result<bool, RestoreError> {
        self.tick(now);
        let record = match self.resendable(which) {
            Ok(_) => return Ok(false),
            Err(ResendError::NotRetained(_)) => self.choose(which)?.clone(),
            Err(error) => return Err(error.into()),
        };
        if !name.as_bytes().starts_with(PREFIX.as_bytes()) || name.as_bytes().contains(&b'/') {
            return Err(RestoreError::Name);
        }
        let is_busy = self.restoring.get(&record.id) == Some(&Restoring::Proving) || self.removing.contains(&record.id);
        if is_busy || self.home(&record).map_err(RestoreError::Disk)?.is_some() {
            return Err(RestoreError::Busy(resending::shown(&record)));
        }
        let disk = self.setup.disk.as_ref();
        let to = OsStr::from_bytes(&record.name);
        let home = self.holding.claim_as(disk, &record.channel, name, to, record.id).map_err(RestoreError::Disk)?;
        tracing::info!(channel = %record.channel, sequence = record.sequence, bundle = %record.id, "being taken back");
        self.restoring.insert(record.id, Restoring::Proving);
        self.to_restore.push(self.loading(home, record));
        Ok(true)
    }

    /// What came of taking a bundle back in this run.
    #[must_use]
    pub fn restoring(&self, id: BundleId) -> Option<&Restoring> {
        self.restoring.get(&id)
    }

    pub(super) fn restore_next(&mut self, actions: &mut Actions) {
        actions.work.extend(self.to_restore.drain(..).map(|loading| Work::Restore(Box::new(loading))));
    }

    pub(super) fn restored(&mut self, id: BundleId, restored: Result<Loaded, LoadError>) {
        let Some(mut record) = self.ledger.get(id).cloned() else { return };
        let held = restored.map_err(|error| error.to_string()).and_then(|loaded| {
            record.held = true;
            record.fingerprint = loaded.fingerprint;
            record.retained_since_ms = Some(self.ledger.uptime_ms());
            let state = record.state == State::Transmitted;
            let put = state.then(|| self.put(record.clone(), Sync::Yes)).transpose();
            put.map_err(|error| error.to_string())
        });
        let outcome = match held {
            Ok(_) => Restoring::Held,
            Err(why) => {
                // Only a copy: whoever gave it has another.
                self.leftovers.extend(self.home(&record).ok().flatten());
                Restoring::Refused(why)
            }
        };
        tracing::info!(channel = %record.channel, sequence = record.sequence, bundle = %id, ?outcome, "taken back");
        self.restoring.insert(id, outcome);
    }
}
