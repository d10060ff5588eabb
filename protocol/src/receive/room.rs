//! What makes room for what, and which block waits for what.

use std::time::Duration;

use super::block::{Open, State};
use super::buffers::{Buffers, Held};
use super::objects::{Handle, Object};
use super::{DropReason, MOST_EXPIRED, Reassembly, ReceivedBlock, Signer};
use crate::time::Time;
use crate::wire::{ObjectKind, Symbol};

impl Reassembly {
    /// Blocks of which the caller keeps enough, so that nothing more need come of them: as many as there is room for.
    pub(super) fn complete_parked(&mut self, now: Time, handle: Handle) {
        let Some(object) = self.objects.get(handle).filter(|object| !object.parked.is_empty()) else { return };
        if !object.may_try(now) {
            return;
        }
        let source = |sbn: u32| object.oti.block_symbols(sbn).unwrap_or(u16::MAX);
        let kept = object.parked.iter().map(|(&sbn, &kept)| (sbn, source(sbn), kept));
        let enough = kept.filter(|(sbn, source, kept)| {
            *kept >= u32::from(*source) && !object.open.contains_key(sbn) && !object.have.contains(*sbn)
        });
        let place = Symbol { bundle: object.bundle, kind: object.kind, sbn: 0, esi: 0, oti: object.oti };
        let (signer, origin) = (object.signer(), object.origin);
        for (sbn, source, kept) in enough.collect::<Vec<_>>() {
            if !self.make_room(now, Held::block(Buffers::block_bytes(source, &place.oti)), signer) {
                return;
            }
            // Making room may have taken the object itself.
            let Some(object) = self.objects.get_mut(handle) else { return };
            let block = ReceivedBlock::new(&Symbol { sbn, ..place }, source, signer, &mut self.buffers);
            let mut open = Open { block: Some(block), state: State::Collecting, heard: object.heard };
            self.ready.extend(open.complete(kept, origin));
            object.open.insert(sbn, open);
            self.open_blocks += 1;
        }
    }

    pub(super) fn remove_object(&mut self, handle: Handle, park: bool) {
        let Some((object, last)) = self.objects.remove(handle) else { return };
        self.open_blocks -= object.open.len();
        let park = park && object.is_signed();
        for (_, open) in object.open {
            match open.block {
                // It counts until the caller gives it back: many may go at once.
                Some(block) if park => self.parked.push_back(block),
                Some(block) => block.recycle(&mut self.buffers),
                // Whoever works on it gives it back, and finds that it is not known.
                None => {}
            }
        }
        if last && !self.lobby.has(object.bundle) && self.expired.len() < MOST_EXPIRED {
            self.expired.push_back(object.bundle);
        }
    }

    /// Makes room for `more` of a bundle of this signer. For a bundle that was signed for, drops the blocks of bundles that
    /// nobody signed for, then parks the block that has waited longest of those of the key that holds most; a key that has its share
    /// makes room among its own blocks only. For another, drops only silent blocks of bundles that nobody signed for.
    /// False: the remaining blocks are being worked on, or the caller has no time to keep more. Evicting one interleaved block
    /// for the next would livelock: none would complete.
    pub(super) fn make_room(&mut self, now: Time, more: Held, signer: Signer) -> bool {
        while self.buffers.has_no_room(more, signer) {
            if !self.make_some_room(now, more, signer) {
                return false;
            }
        }
        true
    }

    /// Lets one block or symbol go for it. False: there is none.
    fn make_some_room(&mut self, now: Time, more: Held, signer: Signer) -> bool {
        let has_share = signer.filter(|&key| self.buffers.exceeds_share(key, more));
        let silent = (signer.is_none() || has_share.is_some()).then_some((now, self.limits.junk_idle));
        if let Some((handle, sbn)) = self.longest_waiting(None, silent) {
            self.drop_block(handle, sbn);
            return true;
        }
        if signer.is_none() {
            return false;
        }
        if has_share.is_none() && self.lobby.pop() {
            self.drops.add(DropReason::Limit);
            return true;
        }
        // What a key parks that has its share leaves others a place.
        let (holders, most) = match has_share {
            Some(key) => (vec![key], 1),
            None => (self.buffers.holders(), 2),
        };
        if self.parked.len() >= most {
            return false;
        }
        let longest = holders.into_iter().find_map(|holder| self.longest_waiting(Some(holder), None));
        let Some((handle, sbn)) = longest else { return false };
        self.park(handle, sbn, false);
        true
    }

    /// The block that has waited longest, of those of this signer; with `idle`, only if it has waited for that long. It leaves the
    /// queue.
    pub(super) fn longest_waiting(&mut self, signer: Signer, idle: Option<(Time, Duration)>) -> Option<(Handle, u32)> {
        let queue = self.waiting.get_mut(&signer)?;
        for _ in 0..queue.len() {
            let (since, handle, sbn) = *queue.front()?;
            let object = self.objects.get(handle).filter(|object| object.signer() == signer);
            let Some(open) = object.and_then(|o| o.open.get(&sbn)).filter(|open| open.block.is_some()) else {
                queue.pop_front();
                continue;
            };
            let heard = open.heard;
            if let Some((now, idle)) = idle
                && now.since(heard) < idle
                && heard <= since
            {
                return None;
            }
            queue.pop_front();
            if heard > since {
                queue.push_back((heard, handle, sbn));
                continue;
            }
            return Some((handle, sbn));
        }
        if queue.is_empty() {
            self.waiting.remove(&signer);
        }
        None
    }

    /// A block of a bundle that was signed for, if one has waited for that long: the one of its signer that has waited longest.
    pub(super) fn longest_waiting_signed(&mut self, now: Time, idle: Duration) -> Option<(Handle, u32)> {
        let signers: Vec<Signer> = self.waiting.keys().copied().filter(Option::is_some).collect();
        signers.into_iter().find_map(|signer| self.longest_waiting(signer, Some((now, idle))))
    }

    /// A block waits for symbols.
    pub(super) fn wait(&mut self, handle: Handle, sbn: u32) {
        let Some(object) = self.objects.get(handle) else { return };
        let Some(open) = object.open.get(&sbn) else { return };
        let queue = self.waiting.entry(object.signer()).or_default();
        queue.push_back((open.heard, handle, sbn));
        if queue.len() > 1_024 + 4 * self.open_blocks {
            let mut seen = std::collections::HashSet::new();
            queue.retain(|&(_, handle, sbn)| {
                self.objects.get(handle).is_some_and(|o| o.open.contains_key(&sbn)) && seen.insert((handle, sbn))
            });
        }
    }

    /// An object is given up, or asked about again, before it is whole: what that costs in symbols is no loss of the link.
    pub(super) fn interrupt(&mut self, handle: Handle) {
        let cut = |o: &&Object| o.kind == ObjectKind::Data && o.is_signed() && o.have.len() < u64::from(o.oti.blocks());
        if let Some(object) = self.objects.get(handle).filter(cut) {
            self.margins.interrupt(object.bundle);
        }
    }

    /// A block leaves memory with what it has: because it is `silent`, or because others need the room.
    pub(super) fn park(&mut self, handle: Handle, sbn: u32, silent: bool) {
        let Some(mut block) = self.take_out(handle, sbn) else { return };
        let (source, received, highest) = block.counted();
        // Without a repair symbol, more of it is likely to come.
        if block.kind() == ObjectKind::Data
            && (silent || highest >= source)
            && self.objects.get(handle).is_some_and(|o| o.is_signed() && o.kept(sbn) == 0)
        {
            self.margins.lacks(block.bundle(), source, source.saturating_sub(received), highest);
        }
        // Its buffers are free once the caller gives it back; until then it does not count.
        block.release();
        self.parked.push_back(block);
    }

    /// A block is given up.
    fn drop_block(&mut self, handle: Handle, sbn: u32) {
        if let Some(block) = self.take_out(handle, sbn) {
            block.recycle(&mut self.buffers);
        }
    }

    fn take_out(&mut self, handle: Handle, sbn: u32) -> Option<ReceivedBlock> {
        let open = self.objects.get_mut(handle)?.open.remove(&sbn)?;
        self.open_blocks -= 1;
        open.block
    }

    /// A block that was worked on is over.
    pub(super) fn close(&mut self, handle: Handle, sbn: u32) {
        if let Some(block) = self.take_out(handle, sbn) {
            block.recycle(&mut self.buffers);
        }
    }

    /// The object of a block that is given back, if it is the one that gave the block out.
    pub(super) fn worked_on(&mut self, block: &ReceivedBlock) -> Option<Handle> {
        let handle = self.objects.find(&block.symbol())?;
        let open = self.objects.get(handle)?.open.get(&block.sbn())?;
        open.block.is_none().then_some(handle)
    }
}
