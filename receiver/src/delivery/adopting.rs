//! What came in memory only, so that bundles become known even while the disk hangs, is written to the disk.

use std::sync::Arc;

use checkvalve_host::journal::Sync as Durable;
use checkvalve_protocol::wire::ObjectKind;

use super::refusing::{Refusal, Refusing};
use crate::ledger::file::LedgerFile;
use crate::ledger::reception::PendingHashes;
use crate::sink::StoreError;
use crate::store::{Staged, Store};

/// Writes announces with their directories, and hashes.
pub(super) struct Adopting {
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) store: Arc<Store>,
    pub(super) refusing: Arc<Refusing>,
}

impl Adopting {
    /// Writes what waits in memory for the disk: the announce with its directories, and the hashes. The caller has exclusive
    /// access to the bundle, or waits for it.
    pub(super) fn adopt(&self, staged: &Staged) -> Result<(), StoreError> {
        let id = staged.id;
        let (adoption, hashes) = {
            let ledger = self.ledger.lock();
            let Some(live) = ledger.reception.get(id) else { return Ok(()) };
            (live.adopting.clone(), live.pending_hashes.clone())
        };
        if let Some(adoption) = &adoption {
            self.ledger.save(Durable::No)?;
            if let Err(error) = self.store.adopt(staged, Arc::clone(&adoption.announce), &adoption.bytes) {
                if let StoreError::Disk(disk) = &error
                    && disk.kind() == std::io::ErrorKind::InvalidFilename
                {
                    let refusal = Refusal::new("path-host", "a path is longer than this host takes");
                    self.refusing.quarantine(id, &refusal, Some(&adoption.bytes));
                    return Ok(());
                }
                return Err(error);
            }
        }
        if let Some(hashes) = &hashes {
            self.store.keep_object(staged, ObjectKind::Hashes, &hashes.bytes)?;
        }
        if let Some(live) = self.ledger.lock().reception.get_mut(id) {
            if adoption.is_some() {
                live.adopting = None;
            }
            let written = |pending: &mut PendingHashes| {
                hashes.as_ref().is_some_and(|hashes| Arc::ptr_eq(&pending.bytes, &hashes.bytes))
            };
            live.pending_hashes.take_if(written);
        }
        Ok(())
    }
}
