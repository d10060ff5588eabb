//! What the caller wants: its answer about an object, when it is new, and again when it may have changed.

use super::block::Open;
use super::objects::{Handle, Object, ObjectState, Room};
use super::vouch::{Unplaced, crowded};
use super::{DropReason, Origin, Reassembly, Wanted};
use crate::id::BundleId;
use crate::partition::BlockSet;
use crate::time::Time;
use crate::wire::{ObjectKind, Symbol};

impl Reassembly {
    /// The object of a symbol. If it is not known, or may have changed, the caller is asked.
    pub(super) fn object(&mut self, now: Time, symbol: &Symbol) -> Result<Handle, Unplaced> {
        if let Some(handle) = self.objects.find(symbol)
            && let Some(object) = self.objects.get_mut(handle)
        {
            match object.state {
                ObjectState::Wanted if object.is_stale => {}
                ObjectState::Wanted => return Ok(handle),
                ObjectState::Unwanted { reason, since } if now.since(since) < self.limits.ask_again => {
                    object.heard = now;
                    return Err(reason.into());
                }
                ObjectState::Unwanted { .. } => self.remove_object(handle, false),
            }
        }
        Err(if self.questions.ask(symbol) { Unplaced::Asked } else { DropReason::Limit.into() })
    }

    /// The caller's answer about a new object.
    pub(super) fn begin(&mut self, now: Time, symbol: &Symbol, answer: Wanted) -> Result<Handle, Unplaced> {
        let known = self.objects.is_signed(symbol.bundle);
        let (state, have, parked, origin, answer) = match answer {
            Wanted::Yes { have, parked, origin } => (ObjectState::Wanted, have, parked, origin, Ok(())),
            Wanted::No(reason) => {
                if reason == DropReason::Room {
                    self.margins.interrupt(symbol.bundle);
                }
                // What is not wanted takes the room of those that nobody signed for.
                let state = ObjectState::Unwanted { reason, since: now };
                (state, BlockSet::new(), Vec::new(), Origin::Named, Err(reason.into()))
            }
        };
        let origin = if known { Origin::Signed } else { origin };
        let signed = origin == Origin::Signed;
        match self.objects.room(now, symbol, origin, answer.is_ok(), &self.limits) {
            Room::Free => {}
            Room::After(handle) => self.remove_object(handle, signed),
            Room::None => return answer.and_then(|()| Err(crowded(origin))),
        }
        let mut kept = self.objects.map();
        kept.extend(parked);
        let handle = self.objects.insert(Object {
            bundle: symbol.bundle,
            kind: symbol.kind,
            oti: symbol.oti,
            state,
            origin,
            have,
            open: self.objects.map(),
            parked: kept,
            heard: now,
            last: now,
            is_stale: false,
            retry: Time::ZERO,
            tries: 0,
            generation: 0,
            counted: self.buffers.object(signed.then(|| symbol.bundle.tag())),
        });
        self.complete_parked(now, handle);
        answer.map(|()| handle)
    }

    /// The caller's new answer about an object that is being collected. What is here of it stays, if it is wanted and not stored.
    pub(super) fn refresh(
        &mut self,
        now: Time,
        handle: Handle,
        symbol: &Symbol,
        answer: Wanted,
    ) -> Result<Handle, Unplaced> {
        let Some(object) = self.objects.get_mut(handle) else { return Err(DropReason::Limit.into()) };
        (object.is_stale, object.tries) = (false, 0);
        match answer {
            Wanted::Yes { have, parked, origin: _ } => {
                object.have = have;
                object.parked.clear();
                object.parked.extend(parked);
                let stored: Vec<u32> = object.open.keys().copied().filter(|&sbn| object.have.contains(sbn)).collect();
                // Whether those that are being stored are among what the caller has now, only it can tell.
                object.open.values_mut().for_each(Open::doubt);
                stored.into_iter().for_each(|sbn| self.close(handle, sbn));
                self.complete_parked(now, handle);
                Ok(handle)
            }
            Wanted::No(reason) => {
                if reason == DropReason::Room {
                    self.margins.interrupt(symbol.bundle);
                }
                // To keep its symbols would take the room that is left for others.
                self.remove_object(handle, false);
                Err(reason.into())
            }
        }
    }

    /// The blocks of this bundle are not wanted any more, or the answer about them has changed.
    pub fn forget(&mut self, bundle: BundleId) {
        for handle in self.objects.of(bundle) {
            self.interrupt(handle);
            self.remove_object(handle, false);
        }
        let gone = self.forget_admitted(bundle) + self.lobby.take(bundle).len();
        let gone = gone as u64 + self.questions.forget(bundle);
        self.drops.add_many(DropReason::Limit, gone);
    }

    /// What the caller has of this bundle has changed, or whether it wants it: it is asked. What is here of it stays, if it is wanted
    /// and not stored.
    pub fn ask_again(&mut self, bundle: BundleId) {
        self.questions.renew(bundle);
        for handle in self.objects.of(bundle) {
            self.interrupt(handle);
            let Some(object) = self.objects.get_mut(handle) else { continue };
            match object.state {
                ObjectState::Wanted => {
                    // If too many questions wait, its next symbol asks.
                    object.is_stale = true;
                    let symbol = Symbol { bundle, kind: object.kind, sbn: 0, esi: 0, oti: object.oti };
                    self.questions.ask(&symbol);
                }
                ObjectState::Unwanted { .. } => self.remove_object(handle, false),
            }
        }
    }

    /// Which blocks of a bundle's data have some of their symbols, those that the caller keeps among them, and how many they
    /// lack. Blocks that are not named are stored, or lack all. Empty when nothing came of late.
    #[must_use]
    pub fn lacking(&self, bundle: BundleId) -> Vec<(u32, u32)> {
        let wanted = |o: &&Object| o.kind == ObjectKind::Data && matches!(o.state, ObjectState::Wanted);
        let objects = self.objects.of(bundle);
        let Some(object) = objects.iter().filter_map(|&handle| self.objects.get(handle)).find(wanted) else {
            return Vec::new();
        };
        let source = |sbn: u32| u32::from(object.oti.block_symbols(sbn).unwrap_or(0));
        // One that is being stored at this moment lacks nothing, or one when it cannot be decoded.
        let open = object.open.iter().map(|(&sbn, open)| (sbn, open.lacking().saturating_sub(object.kept(sbn)).max(1)));
        let parked = object.parked.iter().filter(|(sbn, _)| !object.open.contains_key(sbn));
        let parked = parked.map(|(&sbn, &symbols)| (sbn, source(sbn).saturating_sub(symbols).max(1)));
        let mut all: Vec<(u32, u32)> = open.chain(parked).filter(|(sbn, _)| !object.have.contains(*sbn)).collect();
        all.sort_unstable();
        all
    }
}
