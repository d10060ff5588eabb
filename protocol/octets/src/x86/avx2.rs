//! AVX2: the product of a byte is the sum of those of its two halves, which are looked up 32 at a time.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_loadu_si256, _mm256_set1_epi8,
    _mm256_shuffle_epi8, _mm256_srli_epi64, _mm256_storeu_si256, _mm256_xor_si256,
};

use crate::field::product;
use crate::groups;

/// Rows of a group: two sums each and the halves of the source leave two of the 16 registers for tables.
const MOST: usize = 4;
/// Bytes of a register.
const LANE: usize = 32;

/// For each octet its products with 0 to 15, then those with 16 × 0 to 16 × 15.
static TABLES: [[u8; 32]; 256] = {
    let mut all = [[0; 32]; 256];
    let mut coefficient = 0;
    while coefficient < 256 {
        let mut half = 0;
        while half < 16 {
            all[coefficient][half] = product(coefficient as u8, half as u8);
            all[coefficient][16 + half] = product(coefficient as u8, (half << 4) as u8);
            half += 1;
        }
        coefficient += 1;
    }
    all
};

/// Group by group, column by column, row by row: the order in which they are used.
pub(crate) fn ready(rows: usize, columns: usize, coefficients: &[u8]) -> Vec<[u8; 32]> {
    let mut ready = Vec::with_capacity(rows * columns);
    for (first, count) in groups(rows, MOST) {
        for column in 0..columns {
            let of_column = (first..first + count).map(|row| coefficients[row * columns + column]);
            ready.extend(of_column.map(|coefficient| TABLES[usize::from(coefficient)]));
        }
    }
    ready
}

pub(crate) fn multiply_add(ready: &[[u8; 32]], columns: usize, source: &[u8], size: usize, out: &mut [u8]) {
    let rows = out.len() / size;
    assert!(ready.len() == rows * columns && source.len() == columns * size && size.is_multiple_of(2 * LANE));
    for (first, count) in groups(rows, MOST) {
        let ready = &ready[first * columns..(first + count) * columns];
        let out = &mut out[first * size..(first + count) * size];
        for at in (0..size).step_by(2 * LANE) {
            // SAFETY: a matrix is made ready for AVX2 only where `Way::best` found AVX2.
            unsafe {
                match count {
                    1 => strip::<1>(ready, source, size, out, at),
                    2 => strip::<2>(ready, source, size, out, at),
                    3 => strip::<3>(ready, source, size, out, at),
                    _ => strip::<4>(ready, source, size, out, at),
                }
            }
        }
    }
}

/// Two registers of each symbol, from byte `at` of it.
#[target_feature(enable = "avx2")]
fn strip<const ROWS: usize>(ready: &[[u8; 32]], source: &[u8], size: usize, out: &mut [u8], at: usize) {
    let columns = ready.len() / ROWS;
    // What makes the pointers below stay inside.
    assert!(at + 2 * LANE <= size && source.len() == columns * size && out.len() == ROWS * size);
    let (source, out) = (source.as_ptr(), out.as_mut_ptr());
    // SAFETY: row < ROWS, so the sum is at most (ROWS - 1) × size + at + 2 × LANE, which the assertion keeps in `out`.
    let place = |row: usize, part: usize| unsafe { out.add(row * size + at + part * LANE).cast::<__m256i>() };
    let low_half = _mm256_set1_epi8(0x0f);
    let mut sums = [[_mm256_set1_epi8(0); 2]; ROWS];
    for (row, sums) in sums.iter_mut().enumerate() {
        for (part, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `place` is inside of `out`; unaligned loads are allowed.
            *sum = unsafe { _mm256_loadu_si256(place(row, part)) };
        }
    }
    for (column, tables) in ready.chunks_exact(ROWS).enumerate() {
        let mut halves = [[_mm256_set1_epi8(0); 2]; 2];
        for (part, [low, high]) in halves.iter_mut().enumerate() {
            // SAFETY: column < columns, so by the assertion it is inside of `source`; unaligned loads are allowed.
            let bytes = unsafe { _mm256_loadu_si256(source.add(column * size + at + part * LANE).cast()) };
            *low = _mm256_and_si256(bytes, low_half);
            *high = _mm256_and_si256(_mm256_srli_epi64::<4>(bytes), low_half);
        }
        for (sums, table) in sums.iter_mut().zip(tables) {
            let (low_table, high_table) = table.split_at(16);
            // SAFETY: each half of the table has 16 bytes; unaligned loads are allowed.
            let (low_table, high_table) =
                unsafe { (_mm_loadu_si128(low_table.as_ptr().cast()), _mm_loadu_si128(high_table.as_ptr().cast())) };
            let (low_table, high_table) =
                (_mm256_broadcastsi128_si256(low_table), _mm256_broadcastsi128_si256(high_table));
            for (sum, &[low, high]) in sums.iter_mut().zip(&halves) {
                let products =
                    _mm256_xor_si256(_mm256_shuffle_epi8(low_table, low), _mm256_shuffle_epi8(high_table, high));
                *sum = _mm256_xor_si256(*sum, products);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm256_storeu_si256(place(row, part), *sum) };
        }
    }
}
