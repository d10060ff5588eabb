//! Restoring a bundle that is no longer retained. Somebody still has its content, which must first prove to be the same.
//!
//! The content arrives under a name that the spool ignores, and is claimed into the bundle's own place. It is held there
//! once its regenerated announce and its hashes match those in the ledger. If the process crashes on the way,
//! [`super::open`] removes what is left. That loses nothing, because the caller handed over only a copy.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use checkvalve_host::journal::Sync;
use checkvalve_protocol::id::BundleId;

use super::resending::{self, ResendError};
use super::{Engine, Now};
use crate::bundles::{Content, Record, Restoring};
use crate::ledger::State;
use crate::work::{LoadError, Loaded, Work};

/// The prefix of names that can be restored.
pub const PREFIX: &str = ".restore-";

/// Why a bundle is not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is no such bundle, or it cannot be sent again at all.
    #[error(transparent)]
    Resend(#[from] ResendError),
    /// The bundle is already being restored or removed.
    #[error("{0} is being taken back or removed at this moment; try again")]
    Busy(String),
    /// The name is not one that the command makes.
    #[error("names of what is taken back begin with `{PREFIX}` and have no `/`")]
    Name,
    /// The content cannot be moved.
    #[error("it cannot be moved into the holding area: {0}")]
    Disk(io::Error),
}

impl Engine {
    /// Restores a bundle that is no longer retained from `name` in its channel's folder. [`Engine::restoring`] reports the
    /// outcome. Returns false, and leaves `name` alone, if the bundle is still retained.
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
        let known = self.bundles.record(record.id);
        let is_proven = known.and_then(Record::restoring) == Some(&Restoring::Proving);
        let is_busy = is_proven || known.is_some_and(|known| !matches!(known.content(), Content::Kept));
        if is_busy || self.home(&record).map_err(RestoreError::Disk)?.is_some() {
            return Err(RestoreError::Busy(resending::shown(&record)));
        }
        let disk = self.setup.disk.as_ref();
        let to = OsStr::from_bytes(&record.name);
        let home = self.holding.claim_as(disk, &record.channel, name, to, record.id).map_err(RestoreError::Disk)?;
        tracing::info!(channel = %record.channel, sequence = record.sequence, bundle = %record.id, "being taken back");
        self.bundles.set_restoring(record.id, Restoring::Proving);
        let loading = self.loading(home, record);
        self.work.push(Work::Restore(Box::new(loading)));
        Ok(true)
    }

    /// The state of restoring a bundle. None: nobody asked for that in this run.
    #[must_use]
    pub fn restoring(&self, id: BundleId) -> Option<&Restoring> {
        self.bundles.record(id)?.restoring()
    }

    pub(super) fn restored(&mut self, id: BundleId, restored: Result<Loaded, LoadError>) {
        let Some(mut record) = self.bundles.get(id).cloned() else { return };
        let held = restored.map_err(|error| error.to_string()).and_then(|loaded| {
            record.held = true;
            record.fingerprint = loaded.fingerprint;
            record.retained_since_ms = Some(self.bundles.uptime_ms());
            let state = record.state == State::Transmitted;
            let put = state.then(|| self.put(record.clone(), Sync::Yes)).transpose();
            put.map_err(|error| error.to_string())
        });
        let outcome = match held {
            Ok(_) => Restoring::Held,
            Err(why) => {
                // It is only a copy. Whoever handed it over still has the original.
                if let Ok(Some(home)) = self.home(&record) {
                    self.bundles.set_content(id, Content::Leftover(home));
                }
                Restoring::Refused(why)
            }
        };
        tracing::info!(channel = %record.channel, sequence = record.sequence, bundle = %id, ?outcome, "taken back");
        self.bundles.set_restoring(id, outcome);
    }
}
