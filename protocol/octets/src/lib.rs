//! A matrix over GF(256) (RFC 6330, 5.7) times a block of symbols: the one loop that coding spends its time in.
//!
//! 1. [`Matrix::new`] turns each coefficient into what the processor's instructions want: an 8 × 8 bit matrix for GFNI, two tables
//!    of nibbles for AVX2.
//! 2. [`Matrix::multiply_add`] goes over the symbols strip by strip, some rows at a time, so that sums stay in registers and each
//!    source byte is loaded once for up to 14 rows.
//!
//! This is a crate of its own because those instructions need `unsafe`, which the core forbids; [`prefetch`] is here for the same
//! reason. Every way gives the same bytes.

mod field;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use field::{inverse, product, products};

/// Symbols are multiples of so many bytes.
pub const ALIGNMENT: usize = 64;

/// Most bytes that [`prefetch`] asks for: where more follows, the processor notices by itself.
const PREFETCHED: usize = 2048;

/// Asks for these bytes, which will be read or written soon, so that something else can be done until memory has brought them.
pub fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes[..bytes.len().min(PREFETCHED)].chunks(64) {
        x86::prefetch(line);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// How this processor does it, the fastest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// 64 bytes an instruction: AVX-512F and GFNI.
    Gfni512,
    /// 32 bytes an instruction, two look-ups for each: AVX2.
    Avx2,
    /// Byte by byte, on any processor.
    Portable,
}

impl Way {
    /// The fastest way that this processor has.
    #[must_use]
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("gfni") {
                return Self::Gfni512;
            }
            if std::arch::is_x86_feature_detected!("avx2") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    fn is_possible(self) -> bool {
        match (self, Self::best()) {
            (Self::Portable, _) | (Self::Avx2 | Self::Gfni512, Self::Gfni512) | (Self::Avx2, Self::Avx2) => true,
            (Self::Gfni512, Self::Avx2) | (_, Self::Portable) => false,
        }
    }
}

/// Coefficients, made ready for the processor.
#[derive(Debug, Clone)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    ready: Ready,
}

#[derive(Debug, Clone)]
enum Ready {
    #[cfg(target_arch = "x86_64")]
    Gfni512(Vec<u64>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Vec<[u8; 32]>),
    Portable(Vec<u8>),
}

impl Matrix {
    /// A matrix of `columns` columns, its rows one after the other in `coefficients`.
    ///
    /// # Panics
    /// When these are not a whole number of rows.
    #[must_use]
    pub fn new(columns: usize, coefficients: &[u8]) -> Self {
        Self::with(Way::best(), columns, coefficients)
    }

    /// As [`Matrix::new`], for one way: to compare them.
    ///
    /// # Panics
    /// Likewise, and when this processor cannot do it that way.
    #[must_use]
    pub fn with(way: Way, columns: usize, coefficients: &[u8]) -> Self {
        assert!(columns > 0 && coefficients.len().is_multiple_of(columns), "not a whole number of rows");
        assert!(way.is_possible(), "not on this processor: {way:?}");
        let rows = coefficients.len() / columns;
        let ready = match way {
            #[cfg(target_arch = "x86_64")]
            Way::Gfni512 => Ready::Gfni512(x86::gfni512::ready(rows, columns, coefficients)),
            #[cfg(target_arch = "x86_64")]
            Way::Avx2 => Ready::Avx2(x86::avx2::ready(rows, columns, coefficients)),
            _ => Ready::Portable(coefficients.to_vec()),
        };
        Self { rows, columns, ready }
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns there are.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Adds to each symbol of `out` its row times the symbols of `source`: `rows` and `columns` symbols of `size` bytes each,
    /// one after the other.
    ///
    /// # Panics
    /// When `size` is no multiple of [`ALIGNMENT`], or a buffer is not as long as its symbols.
    pub fn multiply_add(&self, source: &[u8], size: usize, out: &mut [u8]) {
        assert!(size.is_multiple_of(ALIGNMENT), "symbols of {size} bytes");
        assert!(source.len() == self.columns * size && out.len() == self.rows * size, "a buffer of another length");
        if size == 0 || self.rows == 0 {
            return;
        }
        match &self.ready {
            #[cfg(target_arch = "x86_64")]
            Ready::Gfni512(ready) => x86::gfni512::multiply_add(ready, self.columns, source, size, out),
            #[cfg(target_arch = "x86_64")]
            Ready::Avx2(ready) => x86::avx2::multiply_add(ready, self.columns, source, size, out),
            Ready::Portable(coefficients) => portable::multiply_add(coefficients, self.columns, source, size, out),
        }
    }
}

/// Cuts rows into groups of nearly the same size, of at most `most`: (first row, rows).
#[cfg(target_arch = "x86_64")]
fn groups(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(most).max(1);
    (0..count).map(move |group| (rows * group / count, rows * (group + 1) / count - rows * group / count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(next).collect()
    }

    #[test]
    fn every_way_gives_what_the_definition_says() {
        for (rows, columns, size) in [
            (1, 1, 64),
            (1, 3, 128),
            (2, 5, 192),
            (7, 16, 320),
            (8, 10, 256),
            (13, 256, 1_408),
            (14, 9, 448),
            (15, 7, 704),
            (29, 33, 64),
            (51, 12, 8_896),
        ] {
            let coefficients = bytes(rows as u64, rows * columns);
            let source = bytes(2, columns * size);
            let before = bytes(3, rows * size);
            let mut expected = before.clone();
            for (row, out) in expected.chunks_mut(size).enumerate() {
                for (column, symbol) in source.chunks(size).enumerate() {
                    for (out, byte) in out.iter_mut().zip(symbol) {
                        *out ^= product(coefficients[row * columns + column], *byte);
                    }
                }
            }
            for way in [Way::Portable, Way::Avx2, Way::Gfni512].into_iter().filter(|way| way.is_possible()) {
                let mut out = before.clone();
                Matrix::with(way, columns, &coefficients).multiply_add(&source, size, &mut out);
                assert!(out == expected, "{way:?}: {rows} × {columns}, symbols of {size} bytes");
            }
        }
    }

    #[test]
    #[should_panic(expected = "a buffer of another length")]
    fn a_short_buffer_is_not_read_beyond() {
        Matrix::new(4, &[1; 8]).multiply_add(&[0; 4 * 64 - 1], 64, &mut [0; 2 * 64]);
    }

    #[test]
    #[should_panic(expected = "a buffer of another length")]
    fn a_short_result_is_not_written_beyond() {
        Matrix::new(4, &[1; 8]).multiply_add(&[0; 4 * 64], 64, &mut [0; 64]);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn groups_are_whole_and_even() {
        for rows in 1..100 {
            let all: Vec<_> = groups(rows, 14).collect();
            assert!(all.iter().all(|&(_, count)| (1..=14).contains(&count)));
            assert!(all.windows(2).all(|w| w[0].0 + w[0].1 == w[1].0));
            assert_eq!(all.iter().map(|g| g.1).sum::<usize>(), rows);
        }
    }
}
