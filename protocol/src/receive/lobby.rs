//! Where symbols wait of bundles that nobody signed for yet, when there is no room for them as blocks: as they came, the oldest making
//! room. To get one out, somebody has to fill all of it before the bundle's announce is checked.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::buffers::{Buffers, Lease};
use crate::id::BundleId;
use crate::time::Time;
use crate::wire::{ObjectKind, Symbol};

/// What a symbol takes beside its bytes.
const OVERHEAD: u64 = 160;
/// Symbols of a bundle's announces that are looked through for one that is whole.
const MOST_OF_ANNOUNCE: usize = 128;

/// The symbols.
#[derive(Default)]
pub(super) struct Lobby {
    /// In the order in which they came. None: taken out.
    queue: VecDeque<Option<Waiting>>,
    /// Number of the first of them.
    first: u64,
    held: u64,
    bundles: HashMap<BundleId, Bundle>,
}

/// A symbol that waits.
pub(super) struct Waiting {
    pub(super) symbol: Symbol,
    pub(super) payload: Vec<u8>,
    since: Time,
    _counted: Lease,
}

#[derive(Default)]
struct Bundle {
    /// Numbers of its symbols, ascending.
    symbols: VecDeque<u64>,
    /// Of these, those of its announces that came last.
    announce: VecDeque<u64>,
    /// Symbols that do not speak for it any more.
    spent: usize,
}

impl Lobby {
    /// Keeps a symbol. Gives how many had to go for it; itself among them, if it is larger than the lobby.
    pub(super) fn push(&mut self, now: Time, symbol: Symbol, payload: &[u8], buffers: &Buffers) -> u64 {
        let bytes = cost(payload);
        let mut gone = 0;
        while self.held.saturating_add(bytes) > buffers.lobby_room() {
            if !self.pop() {
                return gone + 1;
            }
            gone += 1;
        }
        self.held += bytes;
        let number = self.first + self.queue.len() as u64;
        let counted = buffers.lobby(bytes);
        self.queue.push_back(Some(Waiting { symbol, payload: payload.to_vec(), since: now, _counted: counted }));
        let bundle = self.bundles.entry(symbol.bundle).or_default();
        bundle.symbols.push_back(number);
        if symbol.kind == ObjectKind::Announce {
            bundle.announce.push_back(number);
            if bundle.announce.len() > MOST_OF_ANNOUNCE {
                bundle.announce.pop_front();
            }
        }
        gone
    }

    /// How many symbols of a bundle wait here, without those that do not speak for it any more.
    pub(super) fn traffic(&self, bundle: BundleId) -> u64 {
        self.bundles.get(&bundle).map_or(0, |b| b.symbols.len().saturating_sub(b.spent) as u64)
    }

    /// What waits here of a bundle speaks for it no more.
    pub(super) fn spend(&mut self, bundle: BundleId) {
        if let Some(bundle) = self.bundles.get_mut(&bundle) {
            bundle.spent = bundle.symbols.len();
        }
    }

    /// Takes out all of a bundle, in the order in which it came.
    pub(super) fn take(&mut self, bundle: BundleId) -> Vec<Waiting> {
        let numbers = self.bundles.remove(&bundle).map(|bundle| bundle.symbols).unwrap_or_default();
        let taken = numbers.into_iter().filter_map(|number| self.take_out(number)).collect();
        self.shorten();
        taken
    }

    /// Takes out the announce that `last`, which came last, is of, if all of it is here: as many symbols as it has.
    pub(super) fn take_announce(&mut self, last: &Symbol) -> Vec<Waiting> {
        let wanted = last.oti.block_symbols(0).filter(|_| last.oti.blocks() == 1).map(usize::from);
        let Some(bundle) = self.bundles.get(&last.bundle).filter(|_| last.kind == ObjectKind::Announce) else {
            return Vec::new();
        };
        let mut seen = HashSet::new();
        let its = |number: &&u64| self.symbol(**number).is_some_and(|s| s.oti == last.oti && seen.insert(s.esi));
        let numbers: Vec<u64> = bundle.announce.iter().rev().filter(its).copied().take(wanted.unwrap_or(0)).collect();
        if Some(numbers.len()) != wanted {
            return Vec::new();
        }
        let taken: Vec<Waiting> = numbers.iter().filter_map(|&number| self.take_out(number)).collect();
        if let Some(bundle) = self.bundles.get_mut(&last.bundle) {
            bundle.symbols.retain(|number| !numbers.contains(number));
            bundle.announce.retain(|number| !numbers.contains(number));
            if bundle.symbols.is_empty() {
                self.bundles.remove(&last.bundle);
            }
        }
        self.shorten();
        taken
    }

    /// Lets those go that have waited for so long. Gives how many did.
    pub(super) fn expire(&mut self, now: Time, most: Duration) -> u64 {
        let mut gone = 0;
        self.shorten();
        while matches!(self.queue.front(), Some(Some(oldest)) if now.since(oldest.since) >= most) {
            gone += u64::from(self.pop());
            self.shorten();
        }
        gone
    }

    fn symbol(&self, number: u64) -> Option<&Symbol> {
        Some(&self.queue.get(self.at(number)?)?.as_ref()?.symbol)
    }

    fn at(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }

    fn take_out(&mut self, number: u64) -> Option<Waiting> {
        let at = self.at(number)?;
        let waiting = self.queue.get_mut(at)?.take()?;
        self.held -= cost(&waiting.payload);
        Some(waiting)
    }

    /// Drops the oldest. False: there is none.
    fn pop(&mut self) -> bool {
        while let Some(oldest) = self.queue.pop_front() {
            let number = self.first;
            self.first += 1;
            let Some(waiting) = oldest else { continue };
            self.held -= cost(&waiting.payload);
            self.forget(waiting.symbol.bundle, number);
            return true;
        }
        false
    }

    /// The number, the first of its bundle, is gone.
    fn forget(&mut self, id: BundleId, number: u64) {
        let Some(bundle) = self.bundles.get_mut(&id) else { return };
        if bundle.symbols.front() == Some(&number) {
            bundle.symbols.pop_front();
            bundle.spent = bundle.spent.saturating_sub(1);
        }
        if bundle.announce.front() == Some(&number) {
            bundle.announce.pop_front();
        }
        if bundle.symbols.is_empty() {
            self.bundles.remove(&id);
        }
    }

    /// Takes up no place for what was taken out at the front.
    fn shorten(&mut self) {
        while let Some(None) = self.queue.front() {
            self.queue.pop_front();
            self.first += 1;
        }
    }
}

fn cost(payload: &[u8]) -> u64 {
    payload.len() as u64 + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::Oti;

    fn symbol(bundle: u64, kind: ObjectKind, esi: u32) -> Symbol {
        let oti = Oti::new(64 * 3, 64, 8).unwrap();
        Symbol { bundle: BundleId(bundle), kind, sbn: 0, esi, oti }
    }

    fn buffers() -> Buffers {
        // A quarter of it is for what nobody signed for, half of that the lobby: ten symbols.
        Buffers::new(8 * 10 * (64 + OVERHEAD), 2 * 10 * (64 + OVERHEAD), None)
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
        assert!(lobby.queue.is_empty() && lobby.bundles.is_empty());
        assert_eq!((lobby.held, buffers.held()), (0, 0));
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
        assert_eq!(lobby.traffic(BundleId(7)), 0);
        assert_eq!(put(&mut lobby, ObjectKind::Data, 2), Vec::<u32>::new());
        assert_eq!(lobby.traffic(BundleId(7)), 1);
        assert_eq!(esis(&lobby.take(BundleId(7))), [0, 1, 2]);
    }

    #[test]
    fn what_is_larger_than_all_of_it_does_not_stay() {
        let (buffers, mut lobby) = (buffers(), Lobby::default());
        lobby.push(Time(1), symbol(1, ObjectKind::Data, 1), &[7; 64], &buffers);
        assert_eq!(lobby.push(Time(1), symbol(2, ObjectKind::Data, 1), &[7; 9_000], &buffers), 2);
        assert_eq!(buffers.held(), 0);
    }
}
