//! Vector instructions of x86-64.
//!
//! In each: sums of a strip (some bytes of each symbol) for a group of rows are kept in registers while all columns go by.

#![allow(unsafe_code)]

pub(crate) mod avx2;
pub(crate) mod gfni512;
