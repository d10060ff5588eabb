//! Byte by byte, with a table for each coefficient.

use crate::field::products;

pub(crate) fn multiply_add(coefficients: &[u8], columns: usize, source: &[u8], size: usize, out: &mut [u8]) {
    for (row, out) in coefficients.chunks_exact(columns).zip(out.chunks_exact_mut(size)) {
        for (&coefficient, symbol) in row.iter().zip(source.chunks_exact(size)) {
            match coefficient {
                0 => {}
                1 => out.iter_mut().zip(symbol).for_each(|(out, byte)| *out ^= byte),
                _ => {
                    let table = products(coefficient);
                    out.iter_mut().zip(symbol).for_each(|(out, byte)| *out ^= table[usize::from(*byte)]);
                }
            }
        }
    }
}
