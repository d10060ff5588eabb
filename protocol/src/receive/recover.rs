//! Recovers the blocks that a killed process left in memory.

use std::collections::HashMap;

use super::block::ReceivedBlock;
use super::record::{CRC, HEAD, PLACE, PRESENT, REPAIR, REPAIR_SYMBOLS, SOURCE, parse};

/// The blocks that a killed process had in a [`BlockMemory`](super::BlockMemory), from the bytes of every extent that was not
/// dropped. Skips bytes that are not a record, or are too short for one. The symbols were authentic when they arrived. The
/// caller must make sure that nobody else has written to the memory since.
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

#[cfg(test)]
mod tests;
