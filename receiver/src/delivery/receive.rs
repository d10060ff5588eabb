//! What the pipeline calls: is it wanted, here it is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::partition::{BlockSet, Oti};
use checkvalve_protocol::receive::{Origin, ReceivedBlock};
use checkvalve_protocol::wire::ObjectKind;

use super::{Delivery, Job};
use crate::sink::{Lost, ObjectProgress, RefuseReason, Sink, StoreError, Want};
use crate::store::Staged;

/// A bundle that nobody signed for makes room for others when it is silent for so long, in milliseconds.
const QUIET_MS: u64 = 50;

impl Sink for Delivery {
    fn want(&self, bundle: BundleId, kind: ObjectKind, oti: &Oti) -> Want {
        let is_ours = self.trust().keys.by_tag(bundle.tag()).is_some();
        if !is_ours && kind != ObjectKind::Announce {
            return Want::Refuse(RefuseReason::Signer);
        }
        if self.is_over(bundle) {
            return Want::Done;
        }
        if kind != ObjectKind::Data && oti.transfer_length() > MAX_MANIFEST_LEN as u64 {
            return Want::Refuse(RefuseReason::Length);
        }
        let now = self.now();
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

    fn park(&self, block: &ReceivedBlock) -> u32 {
        let id = block.bundle();
        if self.is_over(id) {
            return 0;
        }
        let Some(staged) = self.begin(id) else { return 0 };
        self.store.park(&staged, block).unwrap_or_else(|error| {
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
        {
            let mut ledger = self.ledger.lock();
            ledger.reception.touch_unsigned(bundle, now);
            if let Some(live) = ledger.reception.get_mut(bundle) {
                live.last_ms = now;
                match &stored {
                    // Announce and hashes find room where data does not.
                    Ok(()) if kind == ObjectKind::Data => live.trouble = None,
                    Ok(()) | Err(StoreError::Unwanted | StoreError::Refused) => {}
                    Err(error) => live.trouble = Some(error.to_string()),
                }
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

    fn manifest(&self, bundle: BundleId, kind: ObjectKind, bytes: &[u8]) -> Result<(), StoreError> {
        if self.is_over(bundle) {
            return Err(StoreError::Unwanted);
        }
        self.take_object(bundle, kind, bytes)
    }

    fn beacon(&self, now_ms: u64, session: SessionId, signed: &[u8]) -> Option<u64> {
        self.hear(now_ms, session, signed)
    }

    fn vouched(&self) -> Vec<BundleId> {
        self.ledger.lock().reception.take_vouched()
    }

    fn expired(&self, bundle: BundleId) {
        self.let_go(bundle);
    }

    fn progress(&self, bundle: BundleId, kind: ObjectKind, progress: ObjectProgress) {
        if kind == ObjectKind::Data
            && let Some(live) = self.ledger.lock().reception.get_mut(bundle)
        {
            live.progress = Some(progress);
        }
    }

    fn lost(&self) -> Vec<(BundleId, Lost)> {
        self.ledger.lock().reception.take_lost()
    }

    fn tick(&self, now_ms: u64) {
        if now_ms < self.now_ms.swap(now_ms, Ordering::Relaxed) {
            self.clock_went_back(now_ms);
        }
        self.watch(now_ms);
    }
}

impl Delivery {
    /// A bundle that nobody signed for is silent: what staging has of it goes.
    pub(super) fn let_go(&self, id: BundleId) {
        let was_unsigned = self.ledger.lock().reception.take_unsigned(id);
        if was_unsigned {
            self.discard(id);
        }
    }

    /// A bundle's place in staging. None: nobody signed for it, and there are many of those.
    pub(super) fn begin(&self, id: BundleId) -> Option<Arc<Staged>> {
        let (known, channel) = {
            let ledger = self.ledger.lock();
            let channel = || ledger.entry(id).and_then(|entry| entry.channel.clone());
            (ledger.reception.get(id).is_some(), channel())
        };
        if known {
            if let Some(staged) = self.store.get(id) {
                return Some(staged);
            }
            return match channel {
                Some(channel) => Some(self.store.begin_signed(id, &channel, self.share(&channel))),
                None => self.begin_unsigned(id),
            };
        }
        let staged = self.begin_unsigned(id)?;
        self.ledger.lock().reception.set_unsigned(id, self.now());
        Some(staged)
    }

    /// A place among the unsigned bundles. If none is free, the bundle that has been silent for longest is removed, so
    /// that many of them do not keep out one whose announce is late.
    pub(super) fn begin_unsigned(&self, id: BundleId) -> Option<Arc<Staged>> {
        if let Some(staged) = self.store.begin(id) {
            return Some(staged);
        }
        let now = self.now();
        let oldest = self.ledger.lock().reception.most_silent();
        if let Some((silent, last)) = oldest
            && now.saturating_sub(last) >= QUIET_MS
        {
            self.let_go(silent);
        }
        self.store.begin(id)
    }

    /// Whether nothing is to be received for a bundle any more.
    fn is_over(&self, id: BundleId) -> bool {
        let ledger = self.ledger.lock();
        ledger.reception.is_spurned(id) || ledger.entry(id).is_some_and(|entry| !entry.state().is_open())
    }

    /// Whether what is stored of a bundle has no name any more; files that are open may still be written to.
    fn was_removed(&self, id: BundleId) -> bool {
        let announced = self.live(id, |live| live.announced) == Some(true);
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
        let Some(staged) = self.begin(bundle) else { return Err(StoreError::NoRoom) };
        if self.is_over(bundle) {
            // It ended and was removed after the check above, and `begin` has created it again.
            self.store.remove(bundle)?;
            return Err(StoreError::Unwanted);
        }
        if kind == ObjectKind::Data {
            // Files rather than the flat one, if it is known which.
            if self.live(bundle, |live| live.adopting.is_some()) == Some(true)
                && let Ok(_alone) = staged.advancing.try_lock()
            {
                self.adopt(&staged)?;
            }
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
            Some(object) => self.take_object(bundle, kind, &object),
            None => Ok(()),
        }
    }
}
