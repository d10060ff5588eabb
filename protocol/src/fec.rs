//! RaptorQ (RFC 6330): the only user of the raptorq crate, and the fence around it.
//!
//! Each source block is one RaptorQ object of K symbols. The crate panics on symbols of a wrong size or a foreign OTI,
//! so sizes are checked here before it is called, and a panic that comes all the same is caught and becomes an error.
//!
//! The code is linear: a repair symbol is a sum of the source symbols, each multiplied by a coefficient that depends
//! only on K and the ESI. Encoding the K unit vectors with the crate gives these coefficients ([`Plans`]). So a few
//! repair symbols are the product of a small matrix and the block, and a few missing symbols are the solution of as
//! many equations ([`solve`]). Both give the crate's bytes in a fraction of its time. For many symbols the crate is
//! used.
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects)]

mod plans;
mod solve;

use std::panic::{AssertUnwindSafe, catch_unwind};

use checkvalve_octets::Way;
use raptorq::{EncodingPacket, ObjectTransmissionInformation, PayloadId, SourceBlockDecoder, SourceBlockEncoder};

use crate::limits::{MAX_BLOCK_SYMBOLS, MAX_ESI, MAX_SYMBOL_SIZE, SYMBOL_ALIGNMENT};
pub use plans::Plans;

/// A request that RaptorQ cannot serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FecError {
    /// K is 0 or above [`MAX_BLOCK_SYMBOLS`], or T no multiple of [`SYMBOL_ALIGNMENT`] up to [`MAX_SYMBOL_SIZE`].
    #[error("no such block: {symbols} symbols of {symbol_size} bytes")]
    Shape {
        /// K.
        symbols: u16,
        /// T.
        symbol_size: u16,
    },
    /// A buffer is not as long as its symbols.
    #[error("a buffer is not as long as its symbols")]
    Length,
    /// An ESI above [`MAX_ESI`], or one that is no repair symbol's where only these can be.
    #[error("an ESI is out of range")]
    Esi,
    /// The symbols do not determine the block: more are needed.
    #[error("more symbols are needed")]
    NotEnough,
    /// The coder panicked. The block is as it was.
    #[error("the coder refused the block")]
    Coder,
}

/// Most rows of a matrix, so many symbols made or missing; beyond, the crate is faster.
fn most_rows() -> usize {
    match Way::best() {
        Way::Gfni512 => 64,
        Way::Avx2 => 24,
        Way::Portable => 2,
    }
}

/// Appends `count` repair symbols of T bytes each, ESIs from `first_esi` (K or more), to `out`.
///
/// `source` is the whole block, K × T bytes, the last symbol padded with zeros.
pub fn encode(
    plans: &Plans,
    source: &[u8],
    symbol_size: u16,
    first_esi: u32,
    count: u32,
    out: &mut Vec<u8>,
) -> Result<(), FecError> {
    let size = usize::from(symbol_size);
    let symbols = u16::try_from(source.len().checked_div(size).unwrap_or(0)).unwrap_or(u16::MAX);
    let config = config(symbols, symbol_size)?;
    if source.len() != block_bytes(symbols, symbol_size) {
        return Err(FecError::Length);
    }
    let start = first_esi.checked_sub(u32::from(symbols)).ok_or(FecError::Esi)?;
    if first_esi.checked_add(count).is_none_or(|end| end > MAX_ESI) {
        return Err(FecError::Esi);
    }
    if count == 0 {
        return Ok(());
    }
    let code = plans.get(symbols)?;
    if count as usize <= most_rows() {
        let matrix = code.matrix(first_esi, count)?;
        let end = out.len();
        out.resize(end.saturating_add(size.saturating_mul(matrix.rows())), 0);
        let (_, made) = out.split_at_mut(end);
        matrix.multiply_add(source, size, made);
        return Ok(());
    }
    let repair = catch_unwind(AssertUnwindSafe(|| {
        SourceBlockEncoder::with_encoding_plan(0, &config, source, code.plan()).repair_packets(start, count)
    }))
    .map_err(|_| FecError::Coder)?;
    out.reserve(repair.len().saturating_mul(size));
    for symbol in &repair {
        out.extend_from_slice(symbol.data());
    }
    Ok(())
}

/// Fills in the source symbols that `have` says are missing.
///
/// `block` is K × T bytes with the received source symbols in their places; `repair` the received repair symbols.
/// [`FecError::NotEnough`] leaves the block as it was: call again with one symbol more.
pub fn decode<'a>(
    plans: &Plans,
    block: &mut [u8],
    symbol_size: u16,
    have: impl Fn(u16) -> bool,
    repair: impl Iterator<Item = (u32, &'a [u8])>,
) -> Result<(), FecError> {
    let size = usize::from(symbol_size);
    let symbols = u16::try_from(block.len().checked_div(size).unwrap_or(0)).unwrap_or(u16::MAX);
    let config = config(symbols, symbol_size)?;
    if block.len() != block_bytes(symbols, symbol_size) {
        return Err(FecError::Length);
    }
    let missing: Vec<u16> = (0..symbols).filter(|&esi| !have(esi)).collect();
    let mut received = Vec::new();
    for (esi, symbol) in repair {
        if symbol.len() != size {
            return Err(FecError::Length);
        }
        if esi < u32::from(symbols) || esi > MAX_ESI {
            return Err(FecError::Esi);
        }
        received.push((esi, symbol));
    }
    if missing.len() <= most_rows() {
        let code = plans.get(symbols)?;
        return solve::solve(&code, block, size, &missing, &received);
    }
    let mut packets = Vec::with_capacity(usize::from(symbols).saturating_add(received.len()));
    for (esi, symbol) in (0..symbols).zip(block.chunks_exact(size)) {
        if have(esi) {
            packets.push(EncodingPacket::new(PayloadId::new(0, u32::from(esi)), symbol.to_vec()));
        }
    }
    let received =
        received.into_iter().map(|(esi, symbol)| EncodingPacket::new(PayloadId::new(0, esi), symbol.to_vec()));
    packets.extend(received);
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        SourceBlockDecoder::new(0, &config, block_bytes(symbols, symbol_size) as u64).decode(packets)
    }))
    .map_err(|_| FecError::Coder)?
    .ok_or(FecError::NotEnough)?;
    if decoded.len() != block.len() {
        return Err(FecError::Coder);
    }
    for ((esi, place), symbol) in (0..symbols).zip(block.chunks_exact_mut(size)).zip(decoded.chunks_exact(size)) {
        if !have(esi) {
            place.copy_from_slice(symbol);
        }
    }
    Ok(())
}

/// One block, one sub-block, symbols taken as they are.
fn config(symbols: u16, symbol_size: u16) -> Result<ObjectTransmissionInformation, FecError> {
    let shape = FecError::Shape { symbols, symbol_size };
    if symbols == 0 || symbols > MAX_BLOCK_SYMBOLS {
        return Err(shape);
    }
    if symbol_size == 0 || symbol_size > MAX_SYMBOL_SIZE || !symbol_size.is_multiple_of(SYMBOL_ALIGNMENT) {
        return Err(shape);
    }
    Ok(ObjectTransmissionInformation::new(block_bytes(symbols, symbol_size) as u64, symbol_size, 1, 1, 8))
}

fn block_bytes(symbols: u16, symbol_size: u16) -> usize {
    usize::from(symbols).saturating_mul(usize::from(symbol_size))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    fn block(symbols: u16, size: u16) -> Vec<u8> {
        (0..block_bytes(symbols, size)).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
    }

    #[test]
    fn any_k_symbols_and_a_few_rebuild_a_block() {
        let plans = Plans::new();
        for (symbols, size) in [(1, 64), (2, 128), (3, 1_408), (10, 64), (128, 64), (256, 64), (300, 64), (1_024, 64)] {
            let whole = block(symbols, size);
            let mut repair = Vec::new();
            let first = u32::from(symbols) + 1_000;
            encode(&plans, &whole, size, first, u32::from(symbols) + 4, &mut repair).unwrap();
            // Every second source symbol is lost; then all of them.
            for keep in [2, u16::MAX] {
                let have = |esi: u16| esi % keep == 1;
                let lost = (0..symbols).filter(|&esi| !have(esi)).count() + 4;
                let mut holed = whole.clone();
                for (esi, symbol) in (0..symbols).zip(holed.chunks_mut(usize::from(size))) {
                    if !have(esi) {
                        symbol.fill(0xee);
                    }
                }
                let received = (first..).zip(repair.chunks(usize::from(size))).take(lost);
                assert_eq!(decode(&plans, &mut holed, size, have, received), Ok(()), "K={symbols}");
                assert_eq!(holed, whole, "K={symbols}");
            }
        }
    }

    #[test]
    fn too_few_symbols_change_nothing() {
        let whole = block(16, 64);
        let mut holed = whole.clone();
        assert_eq!(decode(&Plans::new(), &mut holed, 64, |esi| esi != 3, std::iter::empty()), Err(FecError::NotEnough));
        assert_eq!(holed, whole);
    }

    #[test]
    fn refuses_what_would_make_the_coder_panic() {
        let plans = Plans::new();
        let mut out = Vec::new();
        assert!(matches!(encode(&plans, &[], 64, 0, 1, &mut out), Err(FecError::Shape { .. })));
        assert!(matches!(encode(&plans, &[0; 64], 0, 1, 1, &mut out), Err(FecError::Shape { .. })));
        assert!(matches!(encode(&plans, &[0; 65], 65, 1, 1, &mut out), Err(FecError::Shape { .. })));
        assert_eq!(encode(&plans, &[0; 100], 64, 1, 1, &mut out), Err(FecError::Length));
        assert_eq!(encode(&plans, &[0; 128], 64, 1, 1, &mut out), Err(FecError::Esi), "a source symbol");
        assert_eq!(encode(&plans, &[0; 128], 64, MAX_ESI, 2, &mut out), Err(FecError::Esi));
        assert!(out.is_empty());
        let mut two = [0; 128];
        let short = [0_u8; 63];
        let whole = [0_u8; 64];
        let repair = |esi: u32, symbol: &'static [u8]| std::iter::once((esi, symbol));
        assert_eq!(
            decode(&plans, &mut two, 64, |_| false, repair(2, Box::leak(Box::new(short)))),
            Err(FecError::Length)
        );
        assert_eq!(decode(&plans, &mut two, 64, |_| false, repair(1, Box::leak(Box::new(whole)))), Err(FecError::Esi));
        assert_eq!(
            decode(&plans, &mut two, 64, |_| false, repair(u32::MAX, Box::leak(Box::new(whole)))),
            Err(FecError::Esi)
        );
    }

    /// The crate alone, which plans anew for each block.
    fn crate_encoder(source: &[u8], size: u16) -> SourceBlockEncoder {
        let symbols = u16::try_from(source.len() / usize::from(size)).unwrap();
        SourceBlockEncoder::new(0, &config(symbols, size).unwrap(), source)
    }

    fn by_the_crate(encoder: &SourceBlockEncoder, symbols: u16, first_esi: u32, count: u32) -> Vec<u8> {
        let packets = encoder.repair_packets(first_esi - u32::from(symbols), count);
        packets.iter().flat_map(|packet| packet.data().to_vec()).collect()
    }

    #[test]
    fn repair_symbols_are_those_of_the_crate() {
        let plans = Plans::new();
        for symbols in [1, 2, 3, 4, 10, 11, 64, 101, 128, 255, 256, 257, 512, 1_024] {
            let whole = block(symbols, 64);
            let encoder = crate_encoder(&whole, 64);
            for (skip, count) in [(0, 1), (0, 13), (7, 14), (1_000, 27), (60_000, 64), (5, 65), (3, 200)] {
                let first = u32::from(symbols) + skip;
                let mut made = vec![9; 3];
                encode(&plans, &whole, 64, first, count, &mut made).unwrap();
                assert_eq!(made[..3], [9; 3], "what was there stays");
                let expected = by_the_crate(&encoder, symbols, first, count);
                assert!(made[3..] == expected, "K={symbols} ESI {first} and {count} on");
            }
        }
    }

    #[test]
    fn whatever_is_lost_the_crate_and_the_equations_agree() {
        let plans = Plans::new();
        let mut state = 1_u64;
        let mut next = |bound: u32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from((state >> 33) % u64::from(bound)).unwrap()
        };
        let (mut solved, mut short) = (0, 0);
        for round in 0..150 {
            let symbols = u16::try_from(1 + next(300)).unwrap();
            let whole = block(symbols, 64);
            let lost = (1 + next(40)).min(u32::from(symbols));
            let mut missing = vec![false; usize::from(symbols)];
            for _ in 0..lost {
                missing[next(symbols.into()) as usize] = true;
            }
            let lost = missing.iter().filter(|m| **m).count();
            // As many as are needed and up to two more, from anywhere, some twice.
            let esis: Vec<u32> = (0..lost + round % 3)
                .map(|_| u32::from(symbols) + next(if round % 2 == 0 { 60 } else { 100_000 }))
                .collect();
            let encoder = crate_encoder(&whole, 64);
            let symbol = |esi: u32| by_the_crate(&encoder, symbols, esi, 1);
            let received: Vec<(u32, Vec<u8>)> = esis.iter().map(|&esi| (esi, symbol(esi))).collect();
            let mut holed = whole.clone();
            for (symbol, _) in holed.chunks_mut(64).zip(&missing).filter(|(_, missing)| **missing) {
                symbol.fill(0xee);
            }
            let before = holed.clone();
            let have = |esi: u16| !missing[usize::from(esi)];
            let repair = received.iter().map(|(esi, symbol)| (*esi, symbol.as_slice()));
            let mut packets: Vec<EncodingPacket> = repair
                .clone()
                .map(|(esi, symbol)| EncodingPacket::new(PayloadId::new(0, esi), symbol.to_vec()))
                .collect();
            for esi in (0..symbols).filter(|&esi| have(esi)) {
                let symbol = &whole[usize::from(esi) * 64..][..64];
                packets.push(EncodingPacket::new(PayloadId::new(0, esi.into()), symbol.to_vec()));
            }
            let by_the_crate =
                SourceBlockDecoder::new(0, &config(symbols, 64).unwrap(), whole.len() as u64).decode(packets);
            let solution = solve::solve(
                &plans.get(symbols).unwrap(),
                &mut holed,
                64,
                &(0..symbols).filter(|&esi| !have(esi)).collect::<Vec<_>>(),
                &repair.collect::<Vec<_>>(),
            );
            assert_eq!(solution.is_ok(), by_the_crate.is_some(), "round {round}: K={symbols}, {lost} lost, {esis:?}");
            if solution.is_ok() {
                solved += 1;
                assert!(holed == whole, "round {round}: K={symbols}, {lost} lost, {esis:?}");
            } else {
                short += 1;
                assert_eq!(solution, Err(FecError::NotEnough));
                assert!(holed == before, "the block is as it was");
            }
        }
        assert!(solved > 90 && short > 1, "{solved} solved, {short} short");
    }
}
