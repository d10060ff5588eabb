//! What the caller did with a block that it was given.

use super::block::Open;
use super::{Reassembly, ReceivedBlock};
use crate::time::Time;
use crate::wire::ObjectKind;

impl Reassembly {
    /// The block is stored: its further symbols are surplus.
    pub fn stored(&mut self, block: ReceivedBlock) {
        if let Some(handle) = self.worked_on(&block)
            && let Some(object) = self.objects.get_mut(handle)
        {
            if object.open.get(&block.sbn()).is_some_and(Open::is_doubtful) {
                object.is_stale = true;
            } else {
                object.have.add(block.sbn());
                object.parked.remove(&block.sbn());
            }
            self.close(handle, block.sbn());
        }
        block.recycle(&mut self.buffers);
    }

    /// The caller keeps `symbols` symbols of this parked block: it gives them back when the block comes out again, which
    /// may be at once ([`Reassembly::poll_block`]) when the others came meanwhile, or later when there is no room.
    pub fn parked(&mut self, now: Time, block: ReceivedBlock, symbols: u32) {
        let sbn = block.sbn();
        // One that needs another symbol must not come out again without it.
        let most = if block.is_insufficient() { u32::from(block.symbols()) - 1 } else { u32::MAX };
        let symbols = symbols.min(most);
        let handle = self.objects.find(&block.symbol());
        if let Some(object) = handle.and_then(|handle| self.objects.get_mut(handle)).filter(|o| !o.have.contains(sbn)) {
            object.parked.insert(sbn, symbols);
            let origin = object.origin;
            if let Some(open) = object.open.get_mut(&sbn) {
                self.ready.extend(open.complete(symbols, origin));
            }
        }
        block.recycle(&mut self.buffers);
        if let Some(handle) = handle {
            self.complete_parked(now, handle);
        }
    }

    /// Takes every block out that is not being worked on, so that the caller can keep its symbols over a restart.
    pub fn park_all(&mut self) {
        for handle in self.objects.handles() {
            let Some(object) = self.objects.get_mut(handle) else { continue };
            let waiting = object.open.extract_if(|_, open| open.block.is_some());
            let before = self.parked.len();
            self.parked.extend(waiting.filter_map(|(_, open)| open.block));
            self.open_blocks -= self.parked.len() - before;
        }
    }

    /// The block's symbols did not suffice, or those that the caller keeps could not be read: it goes on collecting.
    pub fn undecodable(&mut self, now: Time, mut block: ReceivedBlock) {
        let sbn = block.sbn();
        let handle = self.worked_on(&block);
        let Some(object) = handle.and_then(|handle| self.objects.get_mut(handle)) else {
            block.recycle(&mut self.buffers);
            return;
        };
        if block.has_parked() && block.received() >= object.kept(sbn) {
            object.parked.remove(&sbn);
        } else if block.has_parked() {
            // Else they would be read again and again, without a new symbol.
            object.try_later(now, self.limits.ask_again);
        }
        let Some(open) = object.open.get_mut(&sbn) else {
            block.recycle(&mut self.buffers);
            return;
        };
        block.was_undecodable();
        let mut more = false;
        for late in open.resume() {
            more |= block.put(late.esi, &late.bytes, &mut self.buffers).is_ok();
        }
        block.clear_parked();
        let (origin, is_empty) = (block.origin(), block.received() == 0);
        open.block = Some(block);
        if more && let Some(block) = open.complete(0, origin) {
            self.hand_out(block);
        } else if let Some(handle) = handle {
            if is_empty { self.close(handle, sbn) } else { self.wait(handle, sbn) }
        }
    }

    /// The block could not be stored: it counts as not received, and the object is asked about again. Its other blocks stay.
    pub fn failed(&mut self, now: Time, block: ReceivedBlock) {
        if block.kind() != ObjectKind::Data {
            return self.unwanted(block);
        }
        if let Some(handle) = self.worked_on(&block) {
            self.interrupt(handle);
            self.close(handle, block.sbn());
            if let Some(object) = self.objects.get_mut(handle) {
                object.is_stale = true;
                if block.has_parked() {
                    // Else it would be tried again and again, without a new symbol.
                    object.try_later(now, self.limits.ask_again);
                }
            }
        }
        block.recycle(&mut self.buffers);
    }

    /// The block's object is not wanted any more, or must come again: nothing of it was received, and it is asked about again.
    pub fn unwanted(&mut self, block: ReceivedBlock) {
        if let Some(handle) = self.worked_on(&block) {
            self.interrupt(handle);
            self.remove_object(handle, false);
        }
        block.recycle(&mut self.buffers);
    }

    /// The block's object is not what it should be: nothing of it was received, and it is asked about again. What else came of its bundle
    /// speaks half as much for it.
    pub fn discarded(&mut self, block: ReceivedBlock) {
        self.objects.spend(block.bundle());
        self.lobby.spend(block.bundle());
        self.unwanted(block);
    }

    /// Gives back the memory of a parked block whose symbols nobody keeps.
    pub fn recycle(&mut self, block: ReceivedBlock) {
        block.recycle(&mut self.buffers);
    }
}
