//! Vector instructions of x86-64.
//!
//! In each: sums of a strip (some bytes of each symbol) for a group of rows are kept in registers while all columns go by.

#![allow(unsafe_code)]

pub(crate) mod avx2;
pub(crate) mod gfni512;

/// The cache line in which `bytes` begins.
#[inline]
pub(crate) fn prefetch(bytes: &[u8]) {
    // SAFETY: a hint, which reads nothing and faults at no address.
    unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(bytes.as_ptr().cast()) }
}
