//! What finds no place as a block, and what becomes of it when somebody signs for its bundle.

use std::collections::VecDeque;
use std::time::Duration;

use super::checks::traffic;
use super::lobby::Waiting;
use super::objects::{Handle, key};
use super::{DropReason, ObjectState, Origin, Reassembly, ReceivedBlock};
use crate::id::{BundleId, KeyTag};
use crate::time::Time;
use crate::wire::Symbol;

/// How often, and after how long, a waiting symbol is tried again if it finds no room once its bundle is signed for.
pub(super) const TRIES: u32 = 50;
pub(super) const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Why a symbol is in no block.
#[derive(Clone, Copy)]
pub(super) enum Unplaced {
    Dropped(DropReason),
    /// There is no room as long as nobody signed for its bundle.
    Crowded,
    /// The caller is asked about its object.
    Asked,
}

/// Symbols of the bundles that one key signed, which have no place in a block yet.
#[derive(Default)]
pub(super) struct AdmittedSymbols {
    symbols: VecDeque<Waiting>,
    /// How often the first of these found no room. Once that was too often, those behind it are not tried again, until one finds room.
    tries: u32,
    /// When last.
    tried: Time,
}

impl AdmittedSymbols {
    fn is_due(&self, now: Time) -> bool {
        self.tries == 0 || now.since(self.tried) >= TRY_AGAIN
    }
}

impl From<DropReason> for Unplaced {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

/// There is no room for what is of such a bundle.
pub(super) fn crowded(origin: Origin) -> Unplaced {
    match origin {
        Origin::Signed => Unplaced::Dropped(DropReason::Memory),
        Origin::Named => Unplaced::Crowded,
        Origin::Unknown => Unplaced::Dropped(DropReason::Limit),
    }
}

impl Reassembly {
    /// Keeps a symbol for which there is no room as a block, until somebody signs for its bundle. An announce that is whole with it
    /// is to be checked.
    pub(super) fn wait_in_lobby(&mut self, now: Time, symbol: &Symbol, payload: &[u8]) {
        let gone = self.lobby.push(now, *symbol, payload, &self.buffers);
        let symbols = self.lobby.take_announce(symbol);
        if let Some(k) = symbol.oti.block_symbols(symbol.sbn).filter(|_| !symbols.is_empty()) {
            let mut block = ReceivedBlock::new(symbol, k, None, &mut self.buffers);
            block.set_origin(Origin::Named);
            for waiting in symbols {
                // Each was of T bytes, and another one.
                let put = block.put(waiting.symbol.esi, &waiting.payload, &mut self.buffers);
                debug_assert!(put.is_ok(), "{put:?}");
            }
            self.hand_out(block);
        }
        self.drops.add_many(DropReason::Limit, gone);
    }

    /// A trusted key signed for this bundle: it has the room of those from now on, and what waited of it is taken. The caller is asked
    /// about its objects.
    pub fn vouch(&mut self, now: Time, bundle: BundleId) {
        // They may say that nobody did.
        self.questions.renew(bundle);
        for handle in self.objects.vouch(bundle) {
            let Some(object) = self.objects.get_mut(handle) else { continue };
            for (&sbn, open) in &mut object.open {
                if let Some(lease) = open.block.as_mut().and_then(ReceivedBlock::lease_mut) {
                    self.buffers.vouch(lease, bundle.tag());
                }
                self.waiting.entry(Some(bundle.tag())).or_default().push_back((open.heard, handle, sbn));
            }
            self.buffers.vouch(&mut object.counted, bundle.tag());
        }
        // Objects other than those that were signed for have to go.
        for handle in self.objects.of(bundle) {
            let Some(object) = self.objects.get_mut(handle) else { continue };
            let symbol = Symbol { bundle, kind: object.kind, sbn: 0, esi: 0, oti: object.oti };
            if matches!(object.state, ObjectState::Wanted) && !self.questions.ask_to_confirm(&symbol) {
                // Its next symbol asks.
                object.is_stale = true;
            }
        }
        while let Some(silent) = self.objects.too_many_signed(now, &self.limits) {
            self.remove_object(silent, true);
        }
        let away = self.checks.vouch(bundle, &traffic(&self.objects, &self.lobby));
        for away in away {
            self.drops.add(DropReason::Limit);
            self.unwanted(away);
        }
        let waited = self.lobby.take(bundle);
        if !waited.is_empty() {
            self.admitted.entry(bundle.tag()).or_default().symbols.extend(waited);
        }
        self.take_admitted(now);
    }

    /// Goes on with what waited of bundles that were signed for since, as far as there is room. Call when blocks have left.
    pub fn take_admitted(&mut self, now: Time) {
        let keys: Vec<KeyTag> = self.admitted.keys().copied().collect();
        for key in keys {
            if self.admitted.get(&key).is_some_and(|admitted| admitted.is_due(now)) {
                self.take_admitted_of(now, key);
            }
        }
    }

    fn take_admitted_of(&mut self, now: Time, key: KeyTag) {
        while let Some(waiting) = self.next_admitted(key, |_| true) {
            let placed = self.place(now, &waiting.symbol, &waiting.payload);
            if !self.was_placed(now, waiting, placed) {
                return;
            }
        }
    }

    /// There is an answer about the object of what waits in front: its symbols are placed.
    pub(super) fn answer_admitted(&mut self, now: Time, symbol: &Symbol, answer: Result<Handle, Unplaced>) {
        let its = key(symbol);
        while let Some(waiting) = self.next_admitted(symbol.bundle.tag(), |front| key(&front.symbol) == its) {
            let placed = answer.and_then(|handle| self.place_in(now, handle, &waiting.symbol, &waiting.payload));
            if !self.was_placed(now, waiting, placed) {
                return;
            }
        }
    }

    fn next_admitted(&mut self, key: KeyTag, is_wanted: impl FnOnce(&Waiting) -> bool) -> Option<Waiting> {
        let admitted = self.admitted.get_mut(&key)?;
        if admitted.symbols.is_empty() {
            self.admitted.remove(&key);
            return None;
        }
        admitted.symbols.front().is_some_and(is_wanted).then(|| admitted.symbols.pop_front()).flatten()
    }

    /// False: the symbol has to wait on, and so have those behind it.
    fn was_placed(&mut self, now: Time, waiting: Waiting, placed: Result<(), Unplaced>) -> bool {
        let admitted = self.admitted.entry(waiting.symbol.bundle.tag()).or_default();
        match placed {
            Ok(()) => admitted.tries = 0,
            Err(Unplaced::Asked) => {
                admitted.symbols.push_front(waiting);
                return false;
            }
            // Blocks that leave make room, but for one that is larger than all of it.
            Err(Unplaced::Dropped(DropReason::Memory)) if admitted.tries < TRIES => {
                (admitted.tries, admitted.tried) = (admitted.tries + 1, now);
                admitted.symbols.push_front(waiting);
                return false;
            }
            Err(Unplaced::Dropped(reason)) => self.drops.add(reason),
            Err(Unplaced::Crowded) => self.drops.add(DropReason::Limit),
        }
        true
    }

    /// What waited of a bundle is not wanted any more. Gives how many symbols did.
    pub(super) fn forget_admitted(&mut self, bundle: BundleId) -> usize {
        let Some(admitted) = self.admitted.get_mut(&bundle.tag()) else { return 0 };
        let before = admitted.symbols.len();
        admitted.symbols.retain(|waiting| waiting.symbol.bundle != bundle);
        admitted.tries = 0;
        before - admitted.symbols.len()
    }

    /// Whether [`Reassembly::take_admitted`] has anything to do.
    #[must_use]
    pub fn has_admitted(&self) -> bool {
        self.admitted.values().any(|admitted| !admitted.symbols.is_empty())
    }
}
