use super::super::record::{BlockMemory, Extent};
use super::*;
use crate::id::{BundleId, SessionId};
use crate::partition::Oti;
use crate::receive::Origin;
use crate::receive::{Limits, Reassembly, Wanted};
use crate::time::Time;
use crate::wire::{Content, Header, ObjectKind, Symbol};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Extents that can be looked at, as the next process would.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<Vec<Option<Vec<u8>>>>>);

struct Shelved(Shelf, usize, Vec<u8>);

impl BlockMemory for Shelf {
    fn take(&mut self, len: usize) -> Option<Box<dyn Extent>> {
        let mut all = self.0.lock().unwrap();
        all.push(None);
        // What is there from earlier use must not matter.
        Some(Box::new(Shelved(self.clone(), all.len() - 1, vec![0xa5; len])))
    }
}

impl Extent for Shelved {
    fn bytes(&self) -> &[u8] {
        &self.2
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.2
    }
}

impl Drop for Shelved {
    fn drop(&mut self) {
        self.0.0.lock().unwrap()[self.1] = Some(std::mem::take(&mut self.2));
    }
}

const OTI: (u64, u16, u16) = (64 * 100, 64, 100);

fn put(reassembly: &mut Reassembly, counter: u64, bundle: u64, esi: u32) {
    let oti = Oti::new(OTI.0, OTI.1, OTI.2).unwrap();
    let symbol = Symbol { bundle: BundleId(bundle), kind: ObjectKind::Data, sbn: 0, esi, oti };
    let header = Header { sealed: true, session: SessionId(1), counter, content: Content::Symbol(symbol) };
    let mut want = |_: &Symbol| Wanted::Yes { have: Default::default(), parked: Vec::new(), origin: Origin::Signed };
    reassembly.handle_with(Time(counter), &header, &[(esi % 251) as u8; 64], &mut want).unwrap();
}

fn limits() -> Limits {
    let seconds = Duration::from_secs(9);
    Limits { objects: 4, idle: seconds, ask_again: seconds, ..Limits::new(1 << 20) }
}

fn esis(block: &ReceivedBlock) -> Vec<u32> {
    let check = |(esi, bytes): (u32, &[u8])| (esi, assert_eq!(bytes, [(esi % 251) as u8; 64])).0;
    let mut esis: Vec<u32> = block.received_symbols().map(check).collect();
    esis.sort_unstable();
    esis
}

/// What a process would find that is started after this one was killed: its extents as they are now.
fn killed(reassembly: Reassembly, shelf: &Shelf) -> Vec<ReceivedBlock> {
    drop(reassembly);
    let extents: Vec<Vec<u8>> = shelf.0.lock().unwrap().iter().flatten().cloned().collect();
    recover(extents.iter().map(Vec::as_slice)).collect()
}

#[test]
fn all_symbols_of_open_blocks_outlive_a_kill() {
    let shelf = Shelf::default();
    let mut reassembly = Reassembly::with_memory(limits(), Box::new(shelf.clone()));
    let sent = [0, 99, 63, 64, 100, 5_000, 101, 102, 103, 104, 105, 106, 107, 1_000_000];
    for (counter, &esi) in (0..).zip(&sent) {
        put(&mut reassembly, counter, 7, esi);
    }
    put(&mut reassembly, 50, 8, 3);
    let mut found = killed(reassembly, &shelf);
    found.sort_by_key(|block| block.bundle().0);
    let mut expected = sent;
    expected.sort_unstable();
    assert_eq!(found.iter().map(|b| b.bundle().0).collect::<Vec<_>>(), [7, 8]);
    assert_eq!(esis(&found[0]), expected);
    assert_eq!(esis(&found[1]), [3]);
}

#[test]
fn a_block_that_is_stored_or_given_up_leaves_nothing() {
    let shelf = Shelf::default();
    let mut reassembly = Reassembly::with_memory(limits(), Box::new(shelf.clone()));
    (0..100).for_each(|n| put(&mut reassembly, n, 7, n as u32));
    let block = reassembly.poll_block().unwrap();
    reassembly.stored(block);
    // The same memory again, and given up.
    put(&mut reassembly, 200, 8, 5);
    put(&mut reassembly, 201, 8, 105);
    reassembly.forget(BundleId(8));
    assert_eq!(killed(reassembly, &shelf).len(), 0);
}

#[test]
fn a_block_in_memory_used_before_holds_only_its_own() {
    let shelf = Shelf::default();
    let mut reassembly = Reassembly::with_memory(limits(), Box::new(shelf.clone()));
    (0..100).for_each(|n| put(&mut reassembly, n, 7, n as u32 + 3));
    let block = reassembly.poll_block().unwrap();
    reassembly.stored(block);
    put(&mut reassembly, 200, 8, 4);
    put(&mut reassembly, 201, 8, 400);
    let found = killed(reassembly, &shelf);
    assert_eq!(found.iter().map(esis).collect::<Vec<_>>(), [vec![4, 400]]);
}

#[test]
fn damage_is_left_out() {
    let shelf = Shelf::default();
    let mut reassembly = Reassembly::with_memory(limits(), Box::new(shelf.clone()));
    put(&mut reassembly, 1, 7, 4);
    drop(reassembly);
    let whole = shelf.0.lock().unwrap()[0].clone().unwrap();
    assert_eq!(recover([whole.as_slice()].into_iter()).count(), 1);
    for len in [0, 7, HEAD - 1, HEAD, whole.len() - 1] {
        assert_eq!(recover([&whole[..len]].into_iter()).count(), 0, "{len}");
    }
    for at in [0, 7, PLACE, CRC - 1, CRC] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        assert_eq!(recover([bytes.as_slice()].into_iter()).count(), 0, "{at}");
    }
}
