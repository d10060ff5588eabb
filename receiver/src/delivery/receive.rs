//! What the pipeline calls: is it wanted, here it is.

use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use checkvalve_protocol::beacon::Beacon;
use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::receive::ReceivedBlock;
use checkvalve_protocol::wire::ObjectKind;

use super::{Delivery, Job, Live, MAX_UNANNOUNCED};
use crate::sink::{ObjectProgress, RefuseReason, Sink, StoreError, Want};

impl Sink for Delivery {
    fn want(&self, bundle: BundleId, kind: ObjectKind, oti: &Oti) -> Want {
        if self.is_over(bundle) {
            return Want::Done;
        }
        if kind != ObjectKind::Data && oti.transfer_length() > MAX_MANIFEST_LEN as u64 {
            return Want::Refuse(RefuseReason::Length);
        }
        {
            let lives = self.lives();
            match (lives.get(&bundle), kind) {
                (Some(live), ObjectKind::Announce) if live.announced => return Want::Done,
                (Some(live), ObjectKind::Hashes) if live.hashes => return Want::Done,
                (Some(live), ObjectKind::Data) if live.announced && live.data_len != oti.transfer_length() => {
                    return Want::Refuse(RefuseReason::Length);
                }
                (None, _) if lives.values().filter(|live| !live.announced).count() >= MAX_UNANNOUNCED => {
                    return Want::Refuse(RefuseReason::TooMany);
                }
                _ => {}
            }
        }
        if let Some(staged) = self.store.get(bundle)
            && kind == ObjectKind::Data
            && staged.fill().0.is_some_and(|length| length != oti.transfer_length())
        {
            return Want::Refuse(RefuseReason::Length);
        }
        let now = self.now();
        if kind == ObjectKind::Data && !self.store.space().fits(oti.block_len(0).unwrap_or(0) as u64) {
            let mut lives = self.lives();
            let live = lives.entry(bundle).or_default();
            live.trouble = Some(StoreError::NoRoom.to_string());
            live.last_ms = now;
            return Want::Refuse(RefuseReason::NoRoom);
        }
        let have = self.store.have(bundle, kind, oti);
        if have.len() == u64::from(oti.blocks()) {
            return Want::Done;
        }
        self.lives().entry(bundle).or_insert_with(|| Live { last_ms: now, ..Live::default() });
        self.ledger.lock().seen(bundle, now);
        Want::Yes { have }
    }

    fn park(&self, block: &ReceivedBlock) -> u32 {
        let id = block.bundle();
        if self.ledger.lock().entry(id).is_none_or(|entry| !entry.state.is_open()) {
            return 0;
        }
        self.store.park(&self.store.begin(id), block).unwrap_or_else(|error| {
            if let Some(suppressed) = self.throttle.allow(self.now()) {
                tracing::warn!(bundle = %id, sbn = block.sbn(), %error, suppressed, "symbols of an unfinished block are lost");
            }
            0
        })
    }

    fn unpark(&self, block: &mut ReceivedBlock) {
        let (id, sbn) = (block.bundle(), block.sbn());
        let given = self.store.get(id).map_or(Ok(()), |staged| self.store.unpark(&staged, block));
        if let Err(error) = given
            && let Some(suppressed) = self.throttle.allow(self.now())
        {
            tracing::warn!(bundle = %id, sbn, %error, suppressed, "symbols that were kept cannot be read");
        }
    }

    fn parked(&self, bundle: BundleId, kind: ObjectKind, oti: &Oti) -> Vec<(u32, u32)> {
        self.store.parked(bundle, kind, oti)
    }

    fn block(&self, bundle: BundleId, kind: ObjectKind, oti: &Oti, sbn: u32, buf: &[u8]) -> Result<(), StoreError> {
        let stored = self.take_block(bundle, kind, oti, sbn, buf);
        let now = self.now();
        if let Some(live) = self.lives().get_mut(&bundle) {
            live.last_ms = now;
            match &stored {
                // Announce and hashes find room where data does not.
                Ok(()) if kind == ObjectKind::Data => live.trouble = None,
                Ok(()) | Err(StoreError::Unwanted) => {}
                Err(error) => live.trouble = Some(error.to_string()),
            }
        }
        if let Err(StoreError::Disk(error)) = &stored
            && let Some(suppressed) = self.throttle.allow(now)
        {
            tracing::error!(%bundle, sbn, %error, suppressed, "block not stored");
        }
        if matches!(&stored, Err(StoreError::Disk(error)) if error.kind() == io::ErrorKind::NotFound)
            && self.was_removed(bundle)
        {
            self.begin_again(bundle, "somebody removed it from staging; all of it has to come again");
        }
        stored
    }

    fn beacon(&self, now_ms: u64, session: SessionId, beacon: Beacon) {
        self.hear(now_ms, session, beacon);
    }

    fn progress(&self, bundle: BundleId, kind: ObjectKind, progress: ObjectProgress) {
        if kind == ObjectKind::Data
            && let Some(live) = self.lives().get_mut(&bundle)
        {
            live.progress = Some(progress);
        }
    }

    fn lost(&self) -> Vec<BundleId> {
        std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect()
    }

    fn tick(&self, now_ms: u64) {
        if now_ms < self.now_ms.swap(now_ms, Ordering::Relaxed) {
            self.clock_went_back(now_ms);
        }
        self.watch(now_ms);
    }
}

impl Delivery {
    /// Whether nothing is to be received for a bundle any more.
    fn is_over(&self, id: BundleId) -> bool {
        self.is_spurned(id) || self.ledger.lock().entry(id).is_some_and(|entry| !entry.state.is_open())
    }

    /// Whether what is stored of a bundle has no name any more; files that are open may still be written to.
    fn was_removed(&self, id: BundleId) -> bool {
        let announced = self.lives().get(&id).is_some_and(|live| live.announced);
        self.store.get(id).is_some_and(|staged| {
            let path = if announced { staged.out() } else { staged.object(ObjectKind::Data) };
            (announced || staged.fill().1 > 0) && matches!(self.is_missing(&path), Ok(true))
        })
    }

    /// A block of the data object, or of a signed one.
    fn take_block(
        &self,
        bundle: BundleId,
        kind: ObjectKind,
        oti: &Oti,
        sbn: u32,
        buf: &[u8],
    ) -> Result<(), StoreError> {
        if self.is_over(bundle) {
            return Err(StoreError::Unwanted);
        }
        let (Some(offset), Some(len)) = (oti.block_offset(sbn), oti.block_len(sbn)) else {
            return Err(StoreError::Unwanted);
        };
        if buf.len() != len {
            return Err(StoreError::Unwanted);
        }
        let staged = self.store.begin(bundle);
        if self.is_over(bundle) {
            // It ended after the first look, and was removed before it began again here.
            self.store.remove(bundle)?;
            return Err(StoreError::Unwanted);
        }
        if kind == ObjectKind::Data {
            self.store.keep_oti(&staged, oti)?;
            self.store.write(&staged, oti.transfer_length(), offset, buf)?;
            self.store.drop_parked(&staged, kind, oti, sbn);
            if staged.is_whole() || staged.has_to_move() {
                self.enqueue(Job::Advance(bundle));
            }
            return Ok(());
        }
        let whole = self.store.assemble(&staged, kind, oti, sbn, buf)?;
        self.store.drop_parked(&staged, kind, oti, sbn);
        match whole {
            Some(object) => self.take_object(&staged, kind, &object),
            None => Ok(()),
        }
    }
}
