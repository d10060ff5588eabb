//! The layout of a block in memory. If the memory outlives the process, the block can be recovered from it.
//!
//! A record is a head of 192 bytes, then symbols of T bytes. It is written in an order that keeps it valid after every
//! instruction: the head before the mark that it is in use, and a symbol before the bit or the ESI that says it is there.
//! So the process may be killed at any point. A power cut erases the memory completely. A new layout must use new marks:
//! recovery skips records with unknown marks, and their symbols can come again.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | `SOURCE` or `REPAIR` when in use, else 0 |
//! | 8..56 | the block's place, as a datagram header with session, counter and ESI 0 |
//! | 56..60 | CRC-32 of bytes 8..56, little-endian like all that follows |
//! | 64..192 | `SOURCE`: a bit for each symbol that is present; `REPAIR`: eight ESIs, 0 for none |

use std::fmt;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::id::SessionId;
use crate::limits::{HEADER_LEN, MAX_BLOCK_SYMBOLS};
use crate::wire::{Content, Header, Symbol};

/// Bytes before the symbols: a multiple of a cache line.
pub(super) const HEAD: usize = 192;
/// Repair symbols in a record.
pub(super) const REPAIR_SYMBOLS: usize = 8;

const PAGE: usize = 4_096;
pub(super) const SOURCE: u64 = u64::from_le_bytes(*b"cvsource");
pub(super) const REPAIR: u64 = u64::from_le_bytes(*b"cvrepair");
pub(super) const PLACE: usize = 8;
pub(super) const CRC: usize = PLACE + HEADER_LEN;
pub(super) const PRESENT: usize = 64;

const _: () = {
    assert!(CRC + 4 <= PRESENT && PRESENT + MAX_BLOCK_SYMBOLS as usize / 8 <= HEAD);
    assert!(PRESENT + REPAIR_SYMBOLS * 4 <= HEAD);
};

/// Memory for blocks while their symbols arrive, instead of the heap.
pub trait BlockMemory: Send {
    /// Takes `len` bytes with arbitrary content. None: there is no room. If the bytes outlive the process, its next start
    /// passes them to [`recover`](super::recover::recover).
    fn take(&mut self, len: usize) -> Option<Box<dyn Extent>>;
}

/// Bytes of a [`BlockMemory`]. Dropping them frees them.
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

    /// The bytes of memory that it takes. Memory that outlives the process comes in pages.
    pub(super) fn cost(&self) -> u64 {
        match self {
            Self::Heap(bytes) => bytes.len() as u64,
            Self::Lasting(extent) => extent.bytes().len().next_multiple_of(PAGE) as u64,
        }
    }

    /// Begins to use the record for a block's source or repair symbols. It has no symbols yet.
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

    /// Marks the record as no longer in use.
    pub(super) fn end(&mut self) {
        self.bytes_mut()[..PLACE].fill(0);
    }

    /// The source symbols of a block of `len` bytes.
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

    /// Marks a source symbol as present. `present` is the new value of the 64-bit word that holds its bit.
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

/// The mark and the place of a record. None: the record's head is not valid.
pub(super) fn parse(bytes: &[u8]) -> Option<(u64, Symbol)> {
    let head = bytes.get(..HEAD)?;
    let mark = u64::from_le_bytes(head[..PLACE].try_into().ok()?);
    let crc = u32::from_le_bytes(head[CRC..CRC + 4].try_into().ok()?);
    if crc32fast::hash(&head[PLACE..CRC]) != crc {
        return None;
    }
    // The parser needs a payload of the right length behind the header, so add one.
    let size = u16::from_be_bytes(head[CRC - 4..CRC - 2].try_into().ok()?);
    let mut datagram = head[PLACE..CRC].to_vec();
    datagram.resize(HEADER_LEN + usize::from(size) + crate::limits::TAG_LEN, 0);
    match Header::parse(&datagram).ok()?.content {
        Content::Symbol(symbol) => Some((mark, symbol)),
        Content::Beacon => None,
    }
}
