//! From a transport object to source blocks and symbols (RFC 5052 section 9.1), and sets of blocks.

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_BLOCK_SYMBOLS, MAX_SYMBOL_SIZE, MAX_TRANSFER_LENGTH, SYMBOL_ALIGNMENT};
use crate::ranges::RangeSet;

/// Object transmission information: all that is needed to place any symbol of an object. Every datagram carries it.
///
/// Checked once in [`Oti::new`]; what it then computes cannot fail or overflow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Oti {
    transfer_length: u64,
    symbol_size: u16,
    max_block_symbols: u16,
}

/// Values that describe no object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OtiError {
    /// The object is empty or longer than [`MAX_TRANSFER_LENGTH`].
    #[error("transfer length is not 1 to {MAX_TRANSFER_LENGTH} bytes")]
    TransferLength,
    /// T is zero, too large, or no multiple of [`SYMBOL_ALIGNMENT`].
    #[error("symbol size is not a multiple of {SYMBOL_ALIGNMENT} up to {MAX_SYMBOL_SIZE} bytes")]
    SymbolSize,
    /// B is zero or above [`MAX_BLOCK_SYMBOLS`].
    #[error("source block length is not 1 to {MAX_BLOCK_SYMBOLS} symbols")]
    BlockLength,
    /// More blocks than a 32-bit SBN can number.
    #[error("more source blocks than 32 bits can number")]
    Blocks,
}

impl Oti {
    /// `transfer_length` F in bytes, `symbol_size` T in bytes, `max_block_symbols` B in symbols.
    pub fn new(transfer_length: u64, symbol_size: u16, max_block_symbols: u16) -> Result<Self, OtiError> {
        if transfer_length == 0 || transfer_length > MAX_TRANSFER_LENGTH {
            return Err(OtiError::TransferLength);
        }
        if symbol_size == 0 || symbol_size > MAX_SYMBOL_SIZE || !symbol_size.is_multiple_of(SYMBOL_ALIGNMENT) {
            return Err(OtiError::SymbolSize);
        }
        if max_block_symbols == 0 || max_block_symbols > MAX_BLOCK_SYMBOLS {
            return Err(OtiError::BlockLength);
        }
        let oti = Self { transfer_length, symbol_size, max_block_symbols };
        let blocks = oti.symbols().div_ceil(u64::from(max_block_symbols));
        if blocks > u64::from(u32::MAX) { Err(OtiError::Blocks) } else { Ok(oti) }
    }

    /// F: length of the object in bytes, 1 or more.
    #[must_use]
    pub fn transfer_length(&self) -> u64 {
        self.transfer_length
    }

    /// T: length of a symbol in bytes.
    #[must_use]
    pub fn symbol_size(&self) -> u16 {
        self.symbol_size
    }

    /// B: most source symbols in a block.
    #[must_use]
    pub fn max_block_symbols(&self) -> u16 {
        self.max_block_symbols
    }

    /// Source symbols in the object, the last one padded with zeros.
    #[must_use]
    pub fn symbols(&self) -> u64 {
        self.transfer_length.div_ceil(u64::from(self.symbol_size))
    }

    /// Source blocks in the object, 1 or more.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.symbols().div_ceil(u64::from(self.max_block_symbols))).unwrap_or(u32::MAX)
    }

    /// K of block `sbn` in symbols, 1 or more. None: there is no such block.
    #[must_use]
    pub fn block_symbols(&self, sbn: u32) -> Option<u16> {
        self.place(sbn).map(|(_, symbols)| symbols)
    }

    /// Source symbols in the blocks of a range, as far as there are such blocks. Takes no longer for more of them.
    #[must_use]
    pub fn symbols_of(&self, blocks: std::ops::Range<u32>) -> u64 {
        let before = |sbn| self.place(sbn).map_or(self.symbols(), |(first, _)| first);
        before(blocks.end).saturating_sub(before(blocks.start))
    }

    /// Where block `sbn` begins in the object, in bytes.
    #[must_use]
    pub fn block_offset(&self, sbn: u32) -> Option<u64> {
        self.place(sbn).map(|(first, _)| first.saturating_mul(u64::from(self.symbol_size)))
    }

    /// Bytes of the object in block `sbn`: K × T, less the padding in the last block.
    #[must_use]
    pub fn block_len(&self, sbn: u32) -> Option<usize> {
        let (first, symbols) = self.place(sbn)?;
        let size = u64::from(self.symbol_size);
        let left = self.transfer_length.saturating_sub(first.saturating_mul(size));
        usize::try_from(left.min(u64::from(symbols).saturating_mul(size))).ok()
    }

    /// The block that holds byte `offset` of the object.
    #[must_use]
    pub fn block_of(&self, offset: u64) -> Option<u32> {
        if offset >= self.transfer_length {
            return None;
        }
        let (large, small, count_large) = self.shape();
        let symbol = offset.checked_div(u64::from(self.symbol_size))?;
        let in_large = count_large.saturating_mul(large);
        let sbn = if symbol < in_large {
            symbol.checked_div(large)?
        } else {
            count_large.saturating_add(symbol.saturating_sub(in_large).checked_div(small)?)
        };
        u32::try_from(sbn).ok()
    }

    /// RFC 5052 section 9.1: (A_large, A_small, I).
    fn shape(&self) -> (u64, u64, u64) {
        let symbols = self.symbols();
        let blocks = u64::from(self.blocks());
        let small = symbols.checked_div(blocks).unwrap_or(1);
        (symbols.div_ceil(blocks.max(1)), small, symbols.saturating_sub(small.saturating_mul(blocks)))
    }

    /// First symbol and number of symbols of block `sbn`.
    fn place(&self, sbn: u32) -> Option<(u64, u16)> {
        if sbn >= self.blocks() {
            return None;
        }
        let (large, small, count_large) = self.shape();
        let sbn = u64::from(sbn);
        let (first, symbols) = if sbn < count_large {
            (sbn.saturating_mul(large), large)
        } else {
            let before = count_large.saturating_mul(large);
            (before.saturating_add(sbn.saturating_sub(count_large).saturating_mul(small)), small)
        };
        Some((first, u16::try_from(symbols).ok()?))
    }
}

/// A set of SBNs.
pub type BlockSet = RangeSet<u32>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_object_without_gap_or_overlap() {
        for (length, size, block) in
            [(1, 64, 1), (64, 64, 1), (65, 64, 1), (4_096, 1_408, 256), (1_408 * 257, 1_408, 256), (999_999, 64, 7)]
        {
            let oti = Oti::new(length, size, block).unwrap();
            let mut at = 0;
            for sbn in 0..oti.blocks() {
                assert_eq!(oti.block_offset(sbn), Some(at));
                assert_eq!(oti.block_of(at), Some(sbn));
                let len = oti.block_len(sbn).unwrap() as u64;
                let symbols = u64::from(oti.block_symbols(sbn).unwrap());
                assert!(symbols >= 1 && symbols <= u64::from(block));
                assert!(len > (symbols - 1) * u64::from(size) && len <= symbols * u64::from(size));
                assert_eq!(oti.block_of(at + len - 1), Some(sbn));
                at += len;
                assert_eq!(oti.symbols_of(sbn..sbn + 1), symbols);
                assert_eq!(oti.symbols_of(sbn..u32::MAX) + oti.symbols_of(0..sbn), oti.symbols());
            }
            assert_eq!(at, length);
            assert_eq!(oti.block_symbols(oti.blocks()), None);
            assert_eq!(oti.block_of(length), None);
        }
    }

    #[test]
    fn refuses_what_describes_no_object() {
        assert_eq!(Oti::new(0, 64, 1), Err(OtiError::TransferLength));
        assert_eq!(Oti::new(MAX_TRANSFER_LENGTH + 1, 64, 1), Err(OtiError::TransferLength));
        assert_eq!(Oti::new(1, 0, 1), Err(OtiError::SymbolSize));
        assert_eq!(Oti::new(1, 65, 1), Err(OtiError::SymbolSize));
        assert_eq!(Oti::new(1, 64, 0), Err(OtiError::BlockLength));
        assert_eq!(Oti::new(1, 64, MAX_BLOCK_SYMBOLS + 1), Err(OtiError::BlockLength));
        assert_eq!(Oti::new(MAX_TRANSFER_LENGTH, 64, 1), Err(OtiError::Blocks));
    }
}
