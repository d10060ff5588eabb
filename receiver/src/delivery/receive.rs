//! What comes of a bundle: is it wanted, here it is.

use std::io;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::log::Throttle;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::partition::{BlockSet, Oti};
use checkvalve_protocol::receive::{Origin, ReceivedBlock};
use checkvalve_protocol::wire::ObjectKind;

use super::adopting::Adopting;
use super::jobs::{Job, Jobs};
use super::shared::{Clock, CurrentTrust, is_missing};
use super::staging::Staging;
use crate::ledger::file::LedgerFile;
use crate::sink::{RefuseReason, StoreError, Want};
use crate::store::{Staged, Store};

/// Takes blocks.
pub(super) struct Receiving {
    pub(super) clock: Arc<Clock>,
    pub(super) trust: Arc<CurrentTrust>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) store: Arc<Store>,
    pub(super) staging: Arc<Staging>,
    pub(super) adopting: Arc<Adopting>,
    pub(super) jobs: Arc<Jobs>,
    /// Lines about blocks that are lost: what else fills the log does not hide them.
    pub(super) log: Throttle,
}

impl Receiving {
    pub(super) fn want(&self, bundle: BundleId, kind: ObjectKind, oti: &Oti) -> Want {
        let is_ours = self.trust.get().keys.by_tag(bundle.tag()).is_some();
        if !is_ours && kind != ObjectKind::Announce {
            return Want::Refuse(RefuseReason::Signer);
        }
        if self.is_over(bundle) {
            return Want::Done;
        }
        if kind != ObjectKind::Data && oti.transfer_length() > MAX_MANIFEST_LEN as u64 {
            return Want::Refuse(RefuseReason::Length);
        }
        let now = self.clock.now();
        let mut announced = false;
        let signed = {
            let mut ledger = self.ledger.lock();
            let is_known = ledger.entry(bundle).is_some();
            let live = ledger.reception.get_mut(bundle);
            match (&live, kind) {
                (Some(live), ObjectKind::Announce) if live.announced => return Want::Done,
                (Some(live), ObjectKind::Hashes) if live.hashes => return Want::Done,
                (Some(live), ObjectKind::Data) if live.announced && live.oti != Some(*oti) => {
                    return Want::Refuse(RefuseReason::Length);
                }
                _ => {}
            }
            if let Some(live) = live {
                announced = live.announced;
                if live.last_ms == 0 {
                    live.last_ms = now;
                }
            }
            announced || is_known
        };
        let is_other = |staged: Arc<Staged>| staged.fill().0.is_some_and(|length| length != oti.transfer_length());
        let stale = kind == ObjectKind::Data && self.store.get(bundle).is_some_and(is_other);
        if stale && !announced {
            return Want::Refuse(RefuseReason::Length);
        }
        if kind == ObjectKind::Data && !self.store.fits(bundle, oti.block_len(0).unwrap_or(0) as u64) {
            if let Some(live) = self.ledger.lock().reception.get_mut(bundle) {
                live.trouble = Some(StoreError::NoRoom.to_string());
                live.last_ms = now;
            }
            return Want::Refuse(RefuseReason::NoRoom);
        }
        // What is of another length goes as soon as the announce is on the disk.
        let have = if stale { BlockSet::new() } else { self.store.have(bundle, kind, oti) };
        if have.len() == u64::from(oti.blocks()) {
            return Want::Done;
        }
        let origin = match (signed, is_ours) {
            (true, _) => Origin::Signed,
            (false, true) => Origin::Named,
            (false, false) => Origin::Unknown,
        };
        Want::Yes { have, origin }
    }

    pub(super) fn park(&self, block: &ReceivedBlock) -> u32 {
        let id = block.bundle();
        if self.is_over(id) {
            return 0;
        }
        let Some(staged) = self.staging.begin(id) else { return 0 };
        self.store.park(&staged, block).unwrap_or_else(|error| {
            if let Some(suppressed) = self.log.allow(self.clock.now()) {
                tracing::warn!(bundle = %id, sbn = block.sbn(), %error, suppressed, "symbols of an unfinished block are lost");
            }
            0
        })
    }

    pub(super) fn unpark(&self, block: &mut ReceivedBlock) {
        let (id, sbn) = (block.bundle(), block.sbn());
        let given = self.store.get(id).map_or(Ok(()), |staged| self.store.unpark(&staged, block));
        if let Err(error) = given
            && let Some(suppressed) = self.log.allow(self.clock.now())
        {
            tracing::warn!(bundle = %id, sbn, %error, suppressed, "symbols that were kept cannot be read");
        }
    }

    /// Stores a block of the data object, or of a signed one. Gives the signed object that it completes.
    pub(super) fn take(
        &self,
        bundle: BundleId,
        kind: ObjectKind,
        oti: &Oti,
        sbn: u32,
        buf: &[u8],
    ) -> Result<Option<Vec<u8>>, StoreError> {
        if self.is_over(bundle) {
            return Err(StoreError::Unwanted);
        }
        let (Some(offset), Some(len)) = (oti.block_offset(sbn), oti.block_len(sbn)) else {
            return Err(StoreError::Unwanted);
        };
        if buf.len() != len {
            return Err(StoreError::Unwanted);
        }
        let Some(staged) = self.staging.begin(bundle) else { return Err(StoreError::NoRoom) };
        if self.is_over(bundle) {
            // It ended and was removed after the check above, and `begin` has created it again.
            self.store.remove(bundle)?;
            return Err(StoreError::Unwanted);
        }
        if kind == ObjectKind::Data {
            // Files rather than the flat one, if it is known which.
            if self.staging.live(bundle, |live| live.adopting.is_some()) == Some(true)
                && let Ok(_alone) = staged.advancing.try_lock()
            {
                self.adopting.adopt(&staged)?;
            }
            self.store.keep_oti(&staged, oti)?;
            self.store.write(&staged, oti.transfer_length(), offset, buf)?;
            self.store.drop_parked(&staged, kind, oti, sbn);
            if staged.is_whole() || staged.has_to_move() {
                self.jobs.push(Job::Advance(bundle));
            }
            return Ok(None);
        }
        let whole = self.store.assemble(&staged, kind, oti, sbn, buf)?;
        self.store.drop_parked(&staged, kind, oti, sbn);
        Ok(whole)
    }

    /// What became of a block, and of the signed object that it may have completed, is noted.
    pub(super) fn taken(&self, bundle: BundleId, kind: ObjectKind, sbn: u32, stored: &Result<(), StoreError>) {
        let now = self.clock.now();
        {
            let mut ledger = self.ledger.lock();
            ledger.reception.touch_unsigned(bundle, now);
            if let Some(live) = ledger.reception.get_mut(bundle) {
                live.last_ms = now;
                match stored {
                    // Announce and hashes find room where data does not.
                    Ok(()) if kind == ObjectKind::Data => live.trouble = None,
                    Ok(()) | Err(StoreError::Unwanted | StoreError::Refused) => {}
                    Err(error) => live.trouble = Some(error.to_string()),
                }
            }
        }
        if let Err(StoreError::Disk(error)) = stored
            && let Some(suppressed) = self.log.allow(now)
        {
            tracing::error!(%bundle, sbn, %error, suppressed, "block not stored");
        }
        if matches!(stored, Err(StoreError::Disk(error)) if error.kind() == io::ErrorKind::NotFound)
            && self.was_removed(bundle)
        {
            self.staging.begin_again(bundle, "somebody removed it from staging; all of it has to come again");
        }
    }

    /// Whether nothing is to be received for a bundle any more.
    pub(super) fn is_over(&self, id: BundleId) -> bool {
        let ledger = self.ledger.lock();
        ledger.reception.is_spurned(id) || ledger.entry(id).is_some_and(|entry| !entry.state().is_open())
    }

    /// Whether what is stored of a bundle has no name any more; files that are open may still be written to.
    fn was_removed(&self, id: BundleId) -> bool {
        let announced = self.staging.live(id, |live| live.announced) == Some(true);
        self.store.get(id).is_some_and(|staged| {
            let path = if announced { staged.out() } else { staged.object(ObjectKind::Data) };
            (announced || staged.fill().1 > 0) && matches!(is_missing(self.disk.as_ref(), &path), Ok(true))
        })
    }
}
