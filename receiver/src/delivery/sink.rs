//! What the data plane calls: each call goes to the part that it concerns.

use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::receive::{ReceivedBlock, Sent};
use checkvalve_protocol::wire::ObjectKind;

use super::Delivery;
use crate::sink::{Lost, ObjectProgress, Sink, StoreError, Want};

impl Sink for Delivery {
    fn want(&self, bundle: BundleId, kind: ObjectKind, oti: &Oti) -> Want {
        self.receiving.want(bundle, kind, oti)
    }

    fn park(&self, block: &ReceivedBlock) -> u32 {
        self.receiving.park(block)
    }

    fn unpark(&self, block: &mut ReceivedBlock) {
        self.receiving.unpark(block);
    }

    fn parked(&self, bundle: BundleId, kind: ObjectKind, oti: &Oti) -> Vec<(u32, u32)> {
        self.store.parked(bundle, kind, oti)
    }

    fn block(&self, bundle: BundleId, kind: ObjectKind, oti: &Oti, sbn: u32, buf: &[u8]) -> Result<(), StoreError> {
        let stored = match self.receiving.take(bundle, kind, oti, sbn, buf) {
            Ok(Some(object)) => self.admission.take_object(bundle, kind, &object),
            stored => stored.map(drop),
        };
        self.receiving.taken(bundle, kind, sbn, &stored);
        stored
    }

    fn manifest(&self, bundle: BundleId, kind: ObjectKind, bytes: &[u8]) -> Result<(), StoreError> {
        if self.receiving.is_over(bundle) {
            return Err(StoreError::Unwanted);
        }
        self.admission.take_object(bundle, kind, bytes)
    }

    fn beacon(&self, now_ms: u64, session: SessionId, signed: &[u8]) -> Option<Sent> {
        self.hearing.hear(now_ms, session, signed)
    }

    fn vouched(&self) -> Vec<BundleId> {
        self.ledger.lock().reception.take_vouched()
    }

    fn expired(&self, bundle: BundleId) {
        self.staging.let_go(bundle);
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
        if self.clock.set(now_ms) {
            self.newest.clock_went_back(now_ms);
            self.ledger.lock().clock_went_back(now_ms);
        }
        self.watching.watch(now_ms);
    }
}
