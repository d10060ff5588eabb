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
use super::{Engine, Now};
use crate::bundles::{Content, Record, Restoring};
use crate::ledger::State;
use crate::work::{LoadError, Loaded, Work};

/// What names must begin with that are taken back.
pub const PREFIX: &str = ".restore-";

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

    /// What came of taking a bundle back in this run.
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
                // Only a copy: whoever gave it has another.
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
