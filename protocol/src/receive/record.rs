//! How a block lies in memory, so that memory which outlives the process is enough to go on with it.
//!
//! A record is a head of 192 bytes and symbols of T bytes. It is written in an order that makes it right at every
//! instruction: the head before the mark that it is in use, a symbol before the bit or the ESI that says it is there.
//! The process may be killed between any two of these; after a power cut the memory is gone as a whole. Another layout gets other
//! marks: what has marks that are not known is left out, and can come again.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | `SOURCE` or `REPAIR` when in use, else 0 |
//! | 8..56 | the place, as a datagram header with session, counter and ESI 0 |
//! | 56..60 | CRC-32 of bytes 8..56, little-endian like all that follows |
//! | 64..192 | `SOURCE`: a bit for each symbol that is here; `REPAIR`: eight times ESI, or 0 where there is none |

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{Ordering, compiler_fence};

use super::block::ReceivedBlock;
use crate::id::SessionId;
use crate::limits::{HEADER_LEN, MAX_BLOCK_SYMBOLS};
use crate::wire::{Content, Header, Symbol};

/// Bytes before the symbols: a multiple of a cache line.
pub(super) const HEAD: usize = 192;
/// Repair symbols in a record.
pub(super) const REPAIR_SYMBOLS: usize = 8;

const PAGE: usize = 4_096;
const SOURCE: u64 = u64::from_le_bytes(*b"cvsource");
const REPAIR: u64 = u64::from_le_bytes(*b"cvrepair");
const PLACE: usize = 8;
const CRC: usize = PLACE + HEADER_LEN;
const PRESENT: usize = 64;

const _: () = {
    assert!(CRC + 4 <= PRESENT && PRESENT + MAX_BLOCK_SYMBOLS as usize / 8 <= HEAD);
    assert!(PRESENT + REPAIR_SYMBOLS * 4 <= HEAD);
};

/// Where blocks are while their symbols come in, if not on the heap.
pub trait BlockMemory: Send {
    /// `len` bytes, any content; None when there is no room. The bytes may outlive the process: then they are given to
    /// [`recover`] at its next start.
    fn take(&mut self, len: usize) -> Option<Box<dyn Extent>>;
}

/// Bytes of a [`BlockMemory`], free again when dropped.
pub trait Extent: Send + Sync {
    /// The bytes.
    fn bytes(&self) -> &[u8];
    /// The bytes, to write.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// The bytes of a record.
pub(super) enum Record {
    Heap(Vec<u8>),
    Lasting(Box<dyn Extent>),
}

impl Record {
    pub(super) fn heap(len: usize) -> Self {
        Self::Heap(vec![0; len])
    }

    pub(super) fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Bytes of memory that it takes: what outlives the process comes in pages.
    pub(super) fn cost(&self) -> u64 {
        match self {
            Self::Heap(bytes) => bytes.len() as u64,
            Self::Lasting(extent) => extent.bytes().len().next_multiple_of(PAGE) as u64,
        }
    }

    /// Begins to use the record for a block, or for repair symbols of it; no symbol is here yet.
    pub(super) fn begin(&mut self, place: &Symbol, source: bool) {
        let content = Content::Symbol(Symbol { esi: 0, ..*place });
        let place = Header { sealed: true, session: SessionId(0), counter: 0, content }.to_bytes();
        let head = &mut self.bytes_mut()[..HEAD];
        head[..PLACE].fill(0);
        compiler_fence(Ordering::Release);
        head[PLACE..].fill(0);
        head[PLACE..CRC].copy_from_slice(&place);
        head[CRC..CRC + 4].copy_from_slice(&crc32fast::hash(&place).to_le_bytes());
        compiler_fence(Ordering::Release);
        head[..PLACE].copy_from_slice(&if source { SOURCE } else { REPAIR }.to_le_bytes());
    }

    /// Nothing in the record counts any more.
    pub(super) fn end(&mut self) {
        self.bytes_mut()[..PLACE].fill(0);
    }

    /// The source symbols that a block of `len` bytes has room for.
    pub(super) fn source(&self, len: usize) -> &[u8] {
        &self.bytes()[HEAD..HEAD + len]
    }

    pub(super) fn source_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes_mut()[HEAD..HEAD + len]
    }

    /// The place of a source symbol of `size` bytes.
    pub(super) fn source_symbol_mut(&mut self, esi: u16, size: usize) -> &mut [u8] {
        &mut self.bytes_mut()[HEAD + usize::from(esi) * size..][..size]
    }

    /// A source symbol is in its place; `present` is the word of the block's bits that then holds.
    pub(super) fn has_source(&mut self, esi: u16, present: u64) {
        compiler_fence(Ordering::Release);
        self.bytes_mut()[PRESENT + usize::from(esi) / 64 * 8..][..8].copy_from_slice(&present.to_le_bytes());
    }

    /// Puts a repair symbol in the `at`th place, below [`REPAIR_SYMBOLS`].
    pub(super) fn put_repair(&mut self, at: usize, esi: u32, symbol: &[u8]) {
        let bytes = self.bytes_mut();
        bytes[HEAD + at * symbol.len()..][..symbol.len()].copy_from_slice(symbol);
        compiler_fence(Ordering::Release);
        bytes[PRESENT + at * 4..][..4].copy_from_slice(&esi.to_le_bytes());
    }

    pub(super) fn repair(&self, at: usize, size: usize) -> &[u8] {
        &self.bytes()[HEAD + at * size..][..size]
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Lasting(extent) => extent.bytes(),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Lasting(extent) => extent.bytes_mut(),
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({} bytes)", self.len())
    }
}

/// The blocks that a killed process had in a [`BlockMemory`], from the bytes of every extent that was not dropped.
/// Bytes that are not a record, or are too short for what they say, are left out. The symbols were authentic when they
/// came; the caller has to know that nothing else has written there.
pub fn recover<'a>(extents: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = ReceivedBlock> {
    let (mut sources, mut repairs) = (Vec::new(), HashMap::<&[u8], Vec<&[u8]>>::new());
    for bytes in extents {
        let Some((mark, place)) = parse(bytes) else { continue };
        match mark {
            SOURCE => sources.push((place, bytes)),
            REPAIR => repairs.entry(&bytes[PLACE..CRC]).or_default().push(bytes),
            _ => {}
        }
    }
    sources.into_iter().filter_map(move |(place, bytes)| {
        let symbols = place.oti.block_symbols(place.sbn)?;
        let size = usize::from(place.oti.symbol_size());
        let mut block = ReceivedBlock::on_heap(&place, symbols);
        let source = bytes.get(HEAD..HEAD + usize::from(symbols) * size)?;
        for (esi, symbol) in (0_u32..).zip(source.chunks_exact(size)) {
            if bytes[PRESENT + esi as usize / 8] >> (esi % 8) & 1 == 1 {
                block.add(esi, symbol);
            }
        }
        for repair in repairs.get(&bytes[PLACE..CRC]).into_iter().flatten() {
            let esis = repair[PRESENT..].chunks_exact(4).filter_map(|esi| esi.try_into().ok()).map(u32::from_le_bytes);
            for (esi, symbol) in esis.zip(repair[HEAD..].chunks_exact(size)).take(REPAIR_SYMBOLS) {
                if esi >= u32::from(symbols) {
                    block.add(esi, symbol);
                }
            }
        }
        (block.received() > 0).then_some(block)
    })
}

/// Mark and place of a record in use.
fn parse(bytes: &[u8]) -> Option<(u64, Symbol)> {
    let head = bytes.get(..HEAD)?;
    let mark = u64::from_le_bytes(head[..PLACE].try_into().ok()?);
    let crc = u32::from_le_bytes(head[CRC..CRC + 4].try_into().ok()?);
    if crc32fast::hash(&head[PLACE..CRC]) != crc {
        return None;
    }
    // A header is only parsed with a payload behind it; its length is that of a symbol.
    let size = u16::from_be_bytes(head[CRC - 4..CRC - 2].try_into().ok()?);
    let mut datagram = head[PLACE..CRC].to_vec();
    datagram.resize(HEADER_LEN + usize::from(size) + crate::limits::TAG_LEN, 0);
    match Header::parse(&datagram).ok()?.content {
        Content::Symbol(symbol) => Some((mark, symbol)),
        Content::Beacon => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::BundleId;
    use crate::partition::Oti;
    use crate::receive::Origin;
    use crate::receive::{Limits, Reassembly, Wanted};
    use crate::time::Time;
    use crate::wire::ObjectKind;
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
        let mut want =
            |_: &Symbol| Wanted::Yes { have: Default::default(), parked: Vec::new(), origin: Origin::Signed };
        reassembly.handle(Time(counter), &header, &[(esi % 251) as u8; 64], &mut want).unwrap();
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
}
