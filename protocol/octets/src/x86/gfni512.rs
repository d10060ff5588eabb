//! AVX-512F and GFNI: `gf2p8affineqb` multiplies 64 bytes by one bit matrix.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512, _mm512_set1_epi64,
    _mm512_storeu_si512, _mm512_ternarylogic_epi64, _mm512_xor_si512,
};

use crate::field::product;
use crate::groups;

/// Rows of a group: two sums each, with what else is needed, fill the 32 registers.
const MOST: usize = 14;
/// Bytes of a register.
const LANE: usize = 64;
/// The truth table of a sum of three: one bit for each way that three bits can be.
const XOR3: i32 = 0b1001_0110;
/// A page. The processor asks ahead by itself while symbols are shorter than one.
const PAGE: usize = 4096;

/// Multiplication by each octet as a bit matrix: byte 7 − i of it says which bits of the factor make bit i of the product.
static MATRICES: [u64; 256] = {
    let mut all = [0; 256];
    let mut coefficient = 0;
    while coefficient < 256 {
        let mut bytes = [0_u8; 8];
        let mut from = 0;
        while from < 8 {
            let image = product(coefficient as u8, 1 << from);
            let mut to = 0;
            while to < 8 {
                if image >> to & 1 == 1 {
                    bytes[7 - to] |= 1 << from;
                }
                to += 1;
            }
            from += 1;
        }
        all[coefficient] = u64::from_le_bytes(bytes);
        coefficient += 1;
    }
    all
};

/// Group by group, column by column, row by row: the order in which they are used.
pub(crate) fn ready(rows: usize, columns: usize, coefficients: &[u8]) -> Vec<u64> {
    let mut ready = Vec::with_capacity(rows * columns);
    for (first, count) in groups(rows, MOST) {
        for column in 0..columns {
            let of_column = (first..first + count).map(|row| coefficients[row * columns + column]);
            ready.extend(of_column.map(|coefficient| MATRICES[usize::from(coefficient)]));
        }
    }
    ready
}

pub(crate) fn multiply_add(ready: &[u64], columns: usize, source: &[u8], size: usize, out: &mut [u8]) {
    let rows = out.len() / size;
    assert!(ready.len() == rows * columns && source.len() == columns * size && size.is_multiple_of(LANE));
    for (first, count) in groups(rows, MOST) {
        let ready = &ready[first * columns..(first + count) * columns];
        let out = &mut out[first * size..(first + count) * size];
        // SAFETY: a matrix is made ready for GFNI only where `Way::best` found AVX-512F and GFNI.
        unsafe {
            match count {
                1 => group::<1>(ready, source, size, out),
                2 => group::<2>(ready, source, size, out),
                3 => group::<3>(ready, source, size, out),
                4 => group::<4>(ready, source, size, out),
                5 => group::<5>(ready, source, size, out),
                6 => group::<6>(ready, source, size, out),
                7 => group::<7>(ready, source, size, out),
                8 => group::<8>(ready, source, size, out),
                9 => group::<9>(ready, source, size, out),
                10 => group::<10>(ready, source, size, out),
                11 => group::<11>(ready, source, size, out),
                12 => group::<12>(ready, source, size, out),
                13 => group::<13>(ready, source, size, out),
                _ => group::<14>(ready, source, size, out),
            }
        }
    }
}

/// `ROWS` rows. Wide strips while there are that many bytes left, then narrower ones.
#[target_feature(enable = "avx512f,gfni")]
fn group<const ROWS: usize>(ready: &[u64], source: &[u8], size: usize, out: &mut [u8]) {
    let mut at = 0;
    if ROWS <= MOST / 2 {
        while at + 4 * LANE <= size {
            strip::<ROWS, 4>(ready, source, size, out, at);
            at += 4 * LANE;
        }
    }
    while at + 2 * LANE <= size {
        strip::<ROWS, 2>(ready, source, size, out, at);
        at += 2 * LANE;
    }
    if at < size {
        strip::<ROWS, 1>(ready, source, size, out, at);
    }
}

/// `WIDTH` registers of each symbol, from byte `at` of it. Columns go in twos, so that one instruction adds two products.
#[inline]
#[target_feature(enable = "avx512f,gfni")]
fn strip<const ROWS: usize, const WIDTH: usize>(ready: &[u64], source: &[u8], size: usize, out: &mut [u8], at: usize) {
    let columns = ready.len() / ROWS;
    // What makes the pointers below stay inside.
    assert!(at + WIDTH * LANE <= size && source.len() == columns * size && out.len() == ROWS * size);
    let (source, out) = (source.as_ptr(), out.as_mut_ptr());
    // SAFETY: row < ROWS, so the sum is at most (ROWS - 1) × size + at + WIDTH × LANE, which the assertion keeps in `out`.
    let place = |row: usize, part: usize| unsafe { out.add(row * size + at + part * LANE).cast::<__m512i>() };
    let mut sums = [[_mm512_set1_epi64(0); WIDTH]; ROWS];
    for (row, sums) in sums.iter_mut().enumerate() {
        for (part, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `place` is inside of `out`; unaligned loads are allowed.
            *sum = unsafe { _mm512_loadu_si512(place(row, part)) };
        }
    }
    // SAFETY: column < columns, so by the assertion it is inside of `source`; unaligned loads are allowed.
    let load =
        |column: usize, part: usize| unsafe { _mm512_loadu_si512(source.add(column * size + at + part * LANE).cast()) };
    let mut pairs = ready.chunks_exact(2 * ROWS);
    for (pair, matrices) in pairs.by_ref().enumerate() {
        let columns = [2 * pair, 2 * pair + 1];
        let mut bytes = [[_mm512_set1_epi64(0); 2]; WIDTH];
        for (part, bytes) in bytes.iter_mut().enumerate() {
            *bytes = columns.map(|column| load(column, part));
            if size > PAGE {
                // The next strip's. A prefetch may point anywhere.
                for column in columns {
                    _mm_prefetch::<_MM_HINT_T0>(source.wrapping_add(column * size + at + (WIDTH + part) * LANE).cast());
                }
            }
        }
        let (even, odd) = matrices.split_at(ROWS);
        for ((sums, even), odd) in sums.iter_mut().zip(even).zip(odd) {
            let [even, odd] = [even, odd].map(|matrix| _mm512_set1_epi64(matrix.cast_signed()));
            for (sum, bytes) in sums.iter_mut().zip(&bytes) {
                let products = [
                    _mm512_gf2p8affine_epi64_epi8::<0>(bytes[0], even),
                    _mm512_gf2p8affine_epi64_epi8::<0>(bytes[1], odd),
                ];
                *sum = _mm512_ternarylogic_epi64::<XOR3>(*sum, products[0], products[1]);
            }
        }
    }
    // None or one column.
    for (sums, matrix) in sums.iter_mut().zip(pairs.remainder()) {
        let matrix = _mm512_set1_epi64(matrix.cast_signed());
        for (part, sum) in sums.iter_mut().enumerate() {
            let product = _mm512_gf2p8affine_epi64_epi8::<0>(load(columns - 1, part), matrix);
            *sum = _mm512_xor_si512(*sum, product);
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(place(row, part), *sum) };
        }
    }
}
