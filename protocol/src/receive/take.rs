//! From datagrams into blocks.
//!
//! 1. [`Reassembly::take`]: a source symbol that an open block lacks is decrypted into its place, and counts from the moment it
//!    has proven authentic.
//! 2. [`Reassembly::handle`]: all else, and what was opened elsewhere.

use super::block::{Open, State};
use super::buffers::{Buffers, Held};
use super::vouch::{Unplaced, crowded};
use super::{DropReason, Handle, ObjectState, Origin, Reassembly, ReceivedBlock};
use crate::id::SessionId;
use crate::seal::{OpenError, Opener};
use crate::time::Time;
use crate::wire::{Content, Header, ObjectKind, Symbol};

/// What [`Reassembly::take`] made of an authentic datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken<'d> {
    /// Its symbol is in a block.
    Symbol,
    /// It is a beacon of this session; the payload is the caller's.
    Beacon(SessionId, &'d [u8]),
    /// It is not used.
    Dropped(DropReason),
}

impl Reassembly {
    /// Opens a datagram and takes it. A source symbol that an open block lacks is decrypted into its place there, which saves
    /// a copy. Only what is authentic changes anything.
    ///
    /// Afterwards take what [`Reassembly::poll_block`] and [`Reassembly::poll_parked`] have. Errors: it is not of this link.
    pub fn take<'d>(&mut self, now: Time, opener: &mut Opener, datagram: &'d mut [u8]) -> Result<Taken<'d>, OpenError> {
        if let Some(taken) = self.take_in_place(now, opener, datagram) {
            return taken.map(|taken| taken.map_or_else(Taken::Dropped, |()| Taken::Symbol));
        }
        let (header, payload) = opener.open(datagram)?;
        Ok(match self.handle(now, &header, payload) {
            Err(reason) => Taken::Dropped(reason),
            Ok(()) if header.content == Content::Beacon => Taken::Beacon(header.session, payload),
            Ok(()) => Taken::Symbol,
        })
    }

    /// Takes an authentic datagram that was opened elsewhere. If nothing is known of its object, it waits for the answer to
    /// [`Reassembly::poll_question`].
    ///
    /// A beacon is only counted here; its payload is the caller's. Afterwards take what
    /// [`Reassembly::poll_block`] and [`Reassembly::poll_parked`] have. Errors: why the datagram was dropped.
    pub fn handle(&mut self, now: Time, header: &Header, payload: &[u8]) -> Result<(), DropReason> {
        self.counters.came(header.session, header.counter);
        let Content::Symbol(symbol) = header.content else { return Ok(()) };
        // All of an announce is in one place, or it is never whole.
        let is_announce = symbol.kind == ObjectKind::Announce;
        if is_announce && self.lobby.has_announce(symbol.bundle) && self.objects.find(&symbol).is_none() {
            self.wait_in_lobby(now, &symbol, payload);
            return Ok(());
        }
        match self.place(now, &symbol, payload) {
            Ok(()) => Ok(()),
            Err(Unplaced::Asked) => self.wait_for_answer(now, &symbol, payload),
            Err(Unplaced::Dropped(reason)) => Err(reason),
            Err(Unplaced::Crowded) => {
                self.wait_in_lobby(now, &symbol, payload);
                Ok(())
            }
        }
    }

    /// Puts a symbol into its block.
    pub(super) fn place(&mut self, now: Time, symbol: &Symbol, payload: &[u8]) -> Result<(), Unplaced> {
        let handle = self.object(now, symbol)?;
        self.place_in(now, handle, symbol, payload)
    }

    /// Puts a symbol into its block of a known object.
    pub(super) fn place_in(
        &mut self,
        now: Time,
        handle: Handle,
        symbol: &Symbol,
        payload: &[u8],
    ) -> Result<(), Unplaced> {
        let object = self.objects.get_mut(handle).ok_or(DropReason::Limit)?;
        object.heard = now;
        // A repair symbol takes room of its own; a source symbol has its place in the block.
        let full = self.buffers.is_full(Buffers::repair_bytes(&symbol.oti), object.signer());
        if full || !object.open.contains_key(&symbol.sbn) {
            self.make_place(now, handle, symbol)?;
        }
        // Making room may have parked this very block, if it is the only one, or the object.
        let object = self.objects.get_mut(handle).ok_or(DropReason::Memory)?;
        let (signer, origin) = (object.signer(), object.origin);
        let signed = signer.is_some();
        let open = object.open.get_mut(&symbol.sbn).ok_or(DropReason::Memory)?;
        if let Err(reason) = open.take(now, symbol.esi, payload, signer, &mut self.buffers) {
            if reason == DropReason::Surplus && symbol.kind == ObjectKind::Data && signed {
                self.margins.surplus(symbol);
            }
            return Err(reason.into());
        }
        object.last = now;
        let parked = object.parked.get(&symbol.sbn).copied().unwrap_or(0);
        let complete = open.complete(parked, origin);
        if !signed {
            self.objects.came(symbol.bundle);
        }
        self.completed(now, symbol, signed && parked == 0, complete);
        Ok(())
    }

    /// Takes a source symbol that an open block lacks. None: it is something else, or it is not known how to open it. What is
    /// written to its place does not count before it has proven authentic.
    fn take_in_place(
        &mut self,
        now: Time,
        opener: &mut Opener,
        datagram: &[u8],
    ) -> Option<Result<Result<(), DropReason>, OpenError>> {
        let header = Header::parse(datagram).ok()?;
        let Content::Symbol(symbol) = header.content else { return None };
        if self.buffers.is_at_limit(Buffers::repair_bytes(&symbol.oti)) {
            return None;
        }
        let object = self.objects.recent()?;
        let is = object.bundle == symbol.bundle && object.kind == symbol.kind && object.oti == symbol.oti;
        if !is || !object.is_signed() || !matches!(object.state, ObjectState::Wanted) || object.is_stale {
            return None;
        }
        let open = object.open.get_mut(&symbol.sbn)?;
        let block = open.block.as_mut()?;
        let esi = u16::try_from(symbol.esi).ok().filter(|&esi| esi < block.symbols())?;
        if let Err(error) = opener.open_into(&header, datagram, block.vacant(esi)?)? {
            return Some(Err(error));
        }
        self.counters.came(header.session, header.counter);
        block.filled(esi);
        open.heard = now;
        (object.heard, object.last) = (now, now);
        let parked = if object.parked.is_empty() { 0 } else { object.parked.get(&symbol.sbn).copied().unwrap_or(0) };
        let complete = open.complete(parked, Origin::Signed);
        let counts = object.is_signed() && parked == 0;
        self.completed(now, &symbol, counts, complete);
        Some(Ok(Ok(())))
    }

    /// `counts`: whether the block tells how close the repair came to running out.
    fn completed(&mut self, now: Time, symbol: &Symbol, counts: bool, block: Option<ReceivedBlock>) {
        let Some(block) = block else { return };
        if counts && symbol.kind == ObjectKind::Data {
            self.margins.complete(now, &block);
        }
        self.hand_out(block);
    }

    /// Opens the symbol's block if it is not open, and sees to room for a symbol.
    fn make_place(&mut self, now: Time, handle: Handle, symbol: &Symbol) -> Result<(), Unplaced> {
        let object = self.objects.get(handle).ok_or(DropReason::Limit)?;
        let (signer, origin) = (object.signer(), object.origin);
        if !object.open.contains_key(&symbol.sbn) {
            if object.have.contains(symbol.sbn) {
                if symbol.kind == ObjectKind::Data && signer.is_some() {
                    self.margins.surplus(symbol);
                }
                return Err(DropReason::Surplus.into());
            }
            let symbols = symbol.oti.block_symbols(symbol.sbn).ok_or(DropReason::Place)?;
            let bytes = Buffers::block_bytes(symbols, &symbol.oti);
            // What no key is named for leaves half of the room to the others.
            let may = origin != Origin::Unknown || !self.buffers.is_pressed(bytes);
            if !may || !self.make_room(now, Held::block(bytes), signer) {
                return Err(crowded(origin));
            }
            let block = ReceivedBlock::new(symbol, symbols, signer, &mut self.buffers);
            let open = Open { block: Some(block), state: State::Collecting, heard: now };
            self.objects.get_mut(handle).ok_or(DropReason::Limit)?.open.insert(symbol.sbn, open);
            self.open_blocks += 1;
            self.wait(handle, symbol.sbn);
        }
        let repair = Buffers::repair_bytes(&symbol.oti);
        let has_place = symbol.oti.block_symbols(symbol.sbn).is_some_and(|k| symbol.esi < u32::from(k));
        if self.buffers.is_full(repair, signer) && !self.make_room(now, Held::bytes(repair), signer) && !has_place {
            return Err(crowded(origin));
        }
        Ok(())
    }
}
