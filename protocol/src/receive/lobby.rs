//! Symbols of bundles that nobody signed for yet wait here when there is no room for them as blocks. They are kept in
//! the order in which they came, and the oldest make room. To push a symbol out, an attacker has to fill the whole
//! lobby before the bundle's announce is checked.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::buffers::{Buffers, Lease};
use crate::id::BundleId;
use crate::time::Time;
use crate::wire::{ObjectKind, Symbol};

/// What a symbol takes beside its bytes, where each is of another bundle.
pub(super) const OVERHEAD: u64 = 400;
/// Symbols of a bundle's announces that are looked through for one that is whole.
const MOST_OF_ANNOUNCE: usize = 128;

/// The symbols.
#[derive(Default)]
pub(super) struct Lobby {
    /// By number, in the order in which they came.
    symbols: BTreeMap<u64, Waiting>,
    next: u64,
    bundles: HashMap<BundleId, LobbyBundle>,
}

/// A symbol that waits.
pub(super) struct Waiting {
    pub(super) symbol: Symbol,
    pub(super) payload: Vec<u8>,
    since: Time,
    _counted: Lease,
}

/// Numbers of a bundle's symbols, ascending.
#[derive(Default)]
struct LobbyBundle {
    announce: VecDeque<u64>,
    others: VecDeque<u64>,
    /// How much of what came speaks for it no more.
    spent: u64,
}

impl Waiting {
    pub(super) fn new(now: Time, symbol: Symbol, payload: &[u8], counted: Lease) -> Self {
        Self { symbol, payload: payload.to_vec(), since: now, _counted: counted }
    }
}

impl Lobby {
    /// Keeps a symbol. Gives how many had to go for it; itself among them, if there is no room at all.
    pub(super) fn push(&mut self, now: Time, symbol: Symbol, payload: &[u8], buffers: &Buffers) -> u64 {
        let bytes = payload.len() as u64 + OVERHEAD;
        let mut gone = 0;
        while buffers.has_no_lobby_room(bytes) {
            if !self.pop() {
                return gone + 1;
            }
            gone += 1;
        }
        let number = self.next;
        self.next += 1;
        let bundle = self.bundles.entry(symbol.bundle).or_default();
        if symbol.kind == ObjectKind::Announce {
            bundle.announce.push_back(number);
            if bundle.announce.len() > MOST_OF_ANNOUNCE
                && let Some(oldest) = bundle.announce.pop_front()
            {
                gone += u64::from(self.symbols.remove(&oldest).is_some());
            }
        } else {
            bundle.others.push_back(number);
        }
        self.symbols.insert(number, Waiting::new(now, symbol, payload, buffers.lobby(bytes)));
        gone
    }

    /// Whether anything of a bundle waits here.
    pub(super) fn has(&self, bundle: BundleId) -> bool {
        self.bundles.contains_key(&bundle)
    }

    /// Whether anything of a bundle's announces waits here.
    pub(super) fn has_announce(&self, bundle: BundleId) -> bool {
        self.bundles.get(&bundle).is_some_and(|bundle| !bundle.announce.is_empty())
    }

    /// How many symbols of a bundle wait here, without those that do not speak for it any more.
    pub(super) fn traffic(&self, bundle: BundleId) -> u64 {
        self.bundles.get(&bundle).map_or(0, |b| b.len().saturating_sub(b.spent))
    }

    /// Half of what waits here of a bundle speaks for it no more.
    pub(super) fn spend(&mut self, bundle: BundleId) {
        if let Some(bundle) = self.bundles.get_mut(&bundle) {
            bundle.spent += bundle.len().saturating_sub(bundle.spent).div_ceil(2);
        }
    }

    /// Takes out all of a bundle, in the order in which it came.
    pub(super) fn take(&mut self, bundle: BundleId) -> Vec<Waiting> {
        let Some(LobbyBundle { announce, others, .. }) = self.bundles.remove(&bundle) else { return Vec::new() };
        let mut numbers: Vec<u64> = announce.into_iter().chain(others).collect();
        numbers.sort_unstable();
        numbers.iter().filter_map(|number| self.symbols.remove(number)).collect()
    }

    /// Takes out the announce that `last`, the newest symbol, belongs to, if as many of its symbols are here as it has.
    pub(super) fn take_announce(&mut self, last: &Symbol) -> Vec<Waiting> {
        let wanted = last.oti.block_symbols(0).map(usize::from);
        let wanted = wanted.filter(|_| last.kind == ObjectKind::Announce && last.oti.blocks() == 1);
        let (Some(wanted), Some(bundle)) = (wanted, self.bundles.get_mut(&last.bundle)) else { return Vec::new() };
        let mut seen = HashSet::new();
        let symbols = &self.symbols;
        let symbol = |number: &u64| symbols.get(number).map(|waiting| &waiting.symbol);
        let its = |number: &&u64| symbol(number).is_some_and(|s| s.oti == last.oti && seen.insert(s.esi));
        let numbers: Vec<u64> = bundle.announce.iter().rev().filter(its).copied().take(wanted).collect();
        if numbers.len() != wanted {
            return Vec::new();
        }
        bundle.announce.retain(|number| !numbers.contains(number));
        if bundle.len() == 0 {
            self.bundles.remove(&last.bundle);
        }
        numbers.iter().filter_map(|number| self.symbols.remove(number)).collect()
    }

    /// Lets those go that have waited for so long. Gives how many did.
    pub(super) fn expire(&mut self, now: Time, most: Duration) -> u64 {
        let mut gone = 0;
        while self.symbols.first_key_value().is_some_and(|(_, oldest)| now.since(oldest.since) >= most) {
            gone += u64::from(self.pop());
        }
        gone
    }

    /// Drops the oldest. False: there is none.
    pub(super) fn pop(&mut self) -> bool {
        let Some((number, oldest)) = self.symbols.pop_first() else { return false };
        let id = oldest.symbol.bundle;
        let Some(bundle) = self.bundles.get_mut(&id) else { return true };
        let its = if oldest.symbol.kind == ObjectKind::Announce { &mut bundle.announce } else { &mut bundle.others };
        if its.front() == Some(&number) {
            its.pop_front();
            bundle.spent = bundle.spent.saturating_sub(1);
        }
        if bundle.len() == 0 {
            self.bundles.remove(&id);
            // What a crowd took is given back when it has gone.
            if self.bundles.capacity() > 4 * self.bundles.len() + 1_024 {
                self.bundles.shrink_to(2 * self.bundles.len());
            }
        }
        true
    }
}

impl LobbyBundle {
    fn len(&self) -> u64 {
        (self.announce.len() + self.others.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::Oti;
    use crate::receive::Limits;

    fn symbol(bundle: u64, kind: ObjectKind, esi: u32) -> Symbol {
        let oti = Oti::new(64 * 3, 64, 8).unwrap();
        Symbol { bundle: BundleId(bundle), kind, sbn: 0, esi, oti }
    }

    fn buffers() -> Buffers {
        // A quarter of it is for what nobody signed for, half of that the lobby: ten symbols.
        Buffers::new(&Limits::new(8 * 10 * (64 + OVERHEAD)), None)
    }

    fn esis(taken: &[Waiting]) -> Vec<u32> {
        taken.iter().map(|waiting| waiting.symbol.esi).collect()
    }

    #[test]
    fn the_oldest_make_room_and_all_of_a_bundle_comes_out() {
        let (buffers, mut lobby) = (buffers(), Lobby::default());
        let mut gone = 0;
        for esi in 0..20 {
            gone += lobby.push(Time(esi.into()), symbol(u64::from(esi % 2), ObjectKind::Data, esi), &[7; 64], &buffers);
        }
        assert_eq!((gone, lobby.traffic(BundleId(0)), lobby.traffic(BundleId(1))), (10, 5, 5));
        assert_eq!(buffers.held(), 10 * (64 + OVERHEAD));
        assert_eq!(esis(&lobby.take(BundleId(0))), [10, 12, 14, 16, 18]);
        assert_eq!((lobby.traffic(BundleId(0)), lobby.traffic(BundleId(1))), (0, 5));
        assert_eq!(lobby.expire(Time(15), Duration::from_nanos(2)), 2, "11 and 13");
        assert_eq!(esis(&lobby.take(BundleId(1))), [15, 17, 19]);
        assert!(lobby.symbols.is_empty() && lobby.bundles.is_empty());
        assert_eq!(buffers.held(), 0);
    }

    #[test]
    fn an_announce_comes_out_when_all_of_it_is_here() {
        let (buffers, mut lobby) = (buffers(), Lobby::default());
        let put = |lobby: &mut Lobby, kind, esi| {
            let symbol = symbol(7, kind, esi);
            lobby.push(Time(1), symbol, &[7; 64], &buffers);
            esis(&lobby.take_announce(&symbol))
        };
        assert_eq!(put(&mut lobby, ObjectKind::Announce, 0), Vec::<u32>::new());
        assert_eq!(put(&mut lobby, ObjectKind::Announce, 0), Vec::<u32>::new(), "the same again");
        assert_eq!(put(&mut lobby, ObjectKind::Data, 1), Vec::<u32>::new());
        assert_eq!(put(&mut lobby, ObjectKind::Announce, 5), Vec::<u32>::new());
        assert_eq!(put(&mut lobby, ObjectKind::Announce, 2), [2, 5, 0]);
        assert_eq!(lobby.traffic(BundleId(7)), 2);
        lobby.spend(BundleId(7));
        assert_eq!(lobby.traffic(BundleId(7)), 1);
        lobby.spend(BundleId(7));
        assert_eq!(lobby.traffic(BundleId(7)), 0);
        assert_eq!(put(&mut lobby, ObjectKind::Data, 2), Vec::<u32>::new());
        assert_eq!(lobby.traffic(BundleId(7)), 1);
        assert_eq!(esis(&lobby.take(BundleId(7))), [0, 1, 2]);
    }

    /// One symbol stays at the front while others come and go behind it.
    #[test]
    fn what_is_taken_out_leaves_nothing_behind() {
        let (buffers, mut lobby) = (buffers(), Lobby::default());
        lobby.push(Time(1), symbol(1, ObjectKind::Data, 0), &[7; 64], &buffers);
        let oti = Oti::new(64, 64, 8).unwrap();
        for n in 0..10_000 {
            let symbol = Symbol { oti, ..symbol(100 + n, ObjectKind::Announce, 0) };
            assert_eq!(lobby.push(Time(2), symbol, &[7; 64], &buffers), 0);
            assert_eq!(lobby.take_announce(&symbol).len(), 1);
        }
        assert_eq!((lobby.symbols.len(), lobby.bundles.len()), (1, 1));
        assert_eq!(buffers.held(), 64 + OVERHEAD);
    }

    #[test]
    fn announces_that_are_never_whole_take_a_part_only() {
        let buffers = Buffers::new(&Limits::new(64 << 20), None);
        let mut lobby = Lobby::default();
        let oti = Oti::new(64 * 900, 64, 1_000).unwrap();
        let gone: u64 = (0..1_000)
            .map(|esi| {
                let symbol = Symbol { oti, ..symbol(7, ObjectKind::Announce, esi) };
                lobby.push(Time(1), symbol, &[7; 64], &buffers)
            })
            .sum();
        assert_eq!((gone, lobby.traffic(BundleId(7))), (1_000 - 128, 128));
        assert_eq!(lobby.take(BundleId(7)).len(), 128);
        assert_eq!(buffers.held(), 0);
    }

    #[test]
    fn what_is_larger_than_all_of_it_does_not_stay() {
        let (buffers, mut lobby) = (buffers(), Lobby::default());
        lobby.push(Time(1), symbol(1, ObjectKind::Data, 1), &[7; 64], &buffers);
        assert_eq!(lobby.push(Time(1), symbol(2, ObjectKind::Data, 1), &[7; 9_000], &buffers), 2);
        assert_eq!(buffers.held(), 0);
    }
}
