//! From datagrams into blocks.
//!
//! 1. [`Reassembly::take`]: a source symbol that an open block lacks is decrypted into its place, and counts from the moment it
//!    has proven authentic.
//! 2. [`Reassembly::handle`]: all else, and what was opened elsewhere.

use std::collections::HashMap;

use super::block::{Open, State};
use super::buffers::Buffers;
use super::{DropReason, ObjectState, Reassembly, ReceivedBlock, Wanted};
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
    /// a copy. `want` is asked about objects not seen before, and only what is authentic changes anything.
    ///
    /// Afterwards take what [`Reassembly::poll_block`] and [`Reassembly::poll_parked`] have. Errors: it is not of this link.
    pub fn take<'d>(
        &mut self,
        now: Time,
        opener: &mut Opener,
        datagram: &'d mut [u8],
        want: &mut dyn FnMut(&Symbol) -> Wanted,
    ) -> Result<Taken<'d>, OpenError> {
        if let Some(taken) = self.take_in_place(now, opener, datagram) {
            return taken.map(|taken| taken.map_or_else(Taken::Dropped, |()| Taken::Symbol));
        }
        let (header, payload) = opener.open(datagram)?;
        Ok(match self.handle(now, &header, payload, want) {
            Err(reason) => Taken::Dropped(reason),
            Ok(()) if header.content == Content::Beacon => Taken::Beacon(header.session, payload),
            Ok(()) => Taken::Symbol,
        })
    }

    /// Takes an authentic datagram that was opened elsewhere. `want` is asked about objects not seen before.
    ///
    /// A beacon only passes the replay check here; its payload is the caller's. Afterwards take what
    /// [`Reassembly::poll_block`] and [`Reassembly::poll_parked`] have. Errors: why the datagram was dropped.
    pub fn handle(
        &mut self,
        now: Time,
        header: &Header,
        payload: &[u8],
        want: &mut dyn FnMut(&Symbol) -> Wanted,
    ) -> Result<(), DropReason> {
        self.sessions.admit(header.session, header.counter)?;
        let Content::Symbol(symbol) = header.content else { return Ok(()) };
        let at = self.object(now, &symbol, want)?;
        // A repair symbol takes room of its own; a source symbol has its place in the block.
        let full = self.buffers.is_full(Buffers::repair_bytes(&symbol.oti));
        if full || !self.objects[at].open.contains_key(&symbol.sbn) {
            self.make_place(now, at, &symbol)?;
        }
        let object = &mut self.objects[at];
        // Making room may have parked this very block, if it is the only one.
        let open = object.open.get_mut(&symbol.sbn).ok_or(DropReason::Memory)?;
        if let Err(reason) = open.take(now, symbol.esi, payload, &mut self.buffers) {
            if reason == DropReason::Surplus && symbol.kind == ObjectKind::Data {
                self.margins.surplus(&symbol);
            }
            return Err(reason);
        }
        (object.heard, object.last) = (now, now);
        let parked = parked(&object.parked, symbol.sbn);
        let complete = open.complete(parked);
        self.completed(now, &symbol, parked, complete);
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
        if self.buffers.is_full(Buffers::repair_bytes(&symbol.oti)) {
            return None;
        }
        let object = self.objects.get_mut(self.recent)?;
        if !object.is(symbol.bundle, symbol.kind, &symbol.oti) || !matches!(object.state, ObjectState::Wanted) {
            return None;
        }
        let open = object.open.get_mut(&symbol.sbn)?;
        let block = open.block.as_mut()?;
        let esi = u16::try_from(symbol.esi).ok().filter(|&esi| esi < block.symbols())?;
        if let Err(error) = opener.open_into(&header, datagram, block.vacant(esi)?)? {
            return Some(Err(error));
        }
        if let Err(reason) = self.sessions.admit(header.session, header.counter) {
            return Some(Ok(Err(reason)));
        }
        block.filled(esi);
        open.heard = now;
        (object.heard, object.last) = (now, now);
        let parked = parked(&object.parked, symbol.sbn);
        let complete = open.complete(parked);
        self.completed(now, &symbol, parked, complete);
        Some(Ok(Ok(())))
    }

    fn completed(&mut self, now: Time, symbol: &Symbol, parked: u32, block: Option<ReceivedBlock>) {
        let Some(block) = block else { return };
        if parked == 0 && symbol.kind == ObjectKind::Data {
            self.margins.complete(now, &block);
        }
        self.ready.push_back(block);
    }

    /// Opens the symbol's block if it is not open, and sees to room for a symbol.
    fn make_place(&mut self, now: Time, at: usize, symbol: &Symbol) -> Result<(), DropReason> {
        let object = &mut self.objects[at];
        object.heard = now;
        if !object.open.contains_key(&symbol.sbn) {
            if object.have.contains(symbol.sbn) {
                if symbol.kind == ObjectKind::Data {
                    self.margins.surplus(symbol);
                }
                return Err(DropReason::Surplus);
            }
            let symbols = symbol.oti.block_symbols(symbol.sbn).ok_or(DropReason::Place)?;
            if !self.make_room(Buffers::block_bytes(symbols, &symbol.oti)) {
                return Err(DropReason::Memory);
            }
            let block = self.buffers.block(symbol, symbols);
            self.objects[at].open.insert(symbol.sbn, Open { block: Some(block), state: State::Collecting, heard: now });
        }
        let repair = Buffers::repair_bytes(&symbol.oti);
        let has_place = symbol.oti.block_symbols(symbol.sbn).is_some_and(|k| symbol.esi < u32::from(k));
        if self.buffers.is_full(repair) && !self.make_room(repair) && !has_place {
            return Err(DropReason::Memory);
        }
        Ok(())
    }
}

/// How many symbols of a block the caller keeps.
fn parked<S: std::hash::BuildHasher>(parked: &HashMap<u32, u32, S>, sbn: u32) -> u32 {
    if parked.is_empty() { 0 } else { parked.get(&sbn).copied().unwrap_or(0) }
}
