//! A few missing source symbols, from as many repair symbols.
//!
//! With s the source symbols of a block and r its received repair symbols, G s = r. The columns of the missing ones make a
//! small matrix A; some of its rows are independent, as many as there are missing symbols, or more repair is needed. Of these
//! rows, with A⁻¹ from Gauss-Jordan elimination, missing = A⁻¹ r + A⁻¹ G (s without the missing ones): two products.

use checkvalve_octets::{Matrix, inverse, products};

use super::FecError;
use super::plans::Code;

/// Fills in the symbols `missing` of a block of K symbols of `size` bytes; `received` are repair symbols of it, with their
/// ESIs. Errors: [`FecError::NotEnough`], with the block as it was.
pub(super) fn solve(
    code: &Code,
    block: &mut [u8],
    size: usize,
    missing: &[u16],
    received: &[(u32, &[u8])],
) -> Result<(), FecError> {
    let count = missing.len();
    if count == 0 {
        return Ok(());
    }
    if received.len() < count {
        return Err(FecError::NotEnough);
    }
    let mut equations = Equations::new(count);
    let (mut rows, mut repair) = (Vec::new(), Vec::new());
    for (esi, symbol) in received {
        let row = code.row(*esi)?;
        let known = missing.iter().map(|&at| row.get(usize::from(at)).copied().unwrap_or(0));
        if equations.add(known) {
            rows.extend_from_slice(&row);
            repair.extend_from_slice(symbol);
        }
        if equations.is_solved() {
            break;
        }
    }
    let solution = equations.solution().ok_or(FecError::NotEnough)?;
    let of_repair = Matrix::new(count, &solution);
    // A⁻¹ G, its columns of missing symbols cleared: what lies in their places is not theirs.
    let mut of_source = vec![0; count.saturating_mul(code.width())];
    of_repair.multiply_add(&rows, code.width(), &mut of_source);
    let mut coefficients = Vec::with_capacity(count.saturating_mul(code.symbols().into()));
    for row in of_source.chunks_exact_mut(code.width()) {
        for &at in missing {
            if let Some(coefficient) = row.get_mut(usize::from(at)) {
                *coefficient = 0;
            }
        }
        coefficients.extend_from_slice(row.get(..code.symbols().into()).ok_or(FecError::Coder)?);
    }
    let mut symbols = vec![0; count.saturating_mul(size)];
    of_repair.multiply_add(&repair, size, &mut symbols);
    Matrix::new(code.symbols().into(), &coefficients).multiply_add(block, size, &mut symbols);
    let mut places = block.chunks_exact_mut(size);
    let mut at = 0;
    for (&esi, symbol) in missing.iter().zip(symbols.chunks_exact(size)) {
        let skip = usize::from(esi).checked_sub(at).ok_or(FecError::Coder)?;
        places.nth(skip).ok_or(FecError::Coder)?.copy_from_slice(symbol);
        at = usize::from(esi).saturating_add(1);
    }
    Ok(())
}

/// Equations in `count` unknowns, reduced as they come.
struct Equations {
    count: usize,
    /// For each independent equation: its unknown, and its coefficients followed by the factors of the taken equations
    /// that it is the sum of.
    reduced: Vec<(usize, Vec<u8>)>,
}

impl Equations {
    fn new(count: usize) -> Self {
        Self { count, reduced: Vec::with_capacity(count) }
    }

    /// Takes one if it is independent of those taken before, and says so.
    fn add(&mut self, coefficients: impl Iterator<Item = u8>) -> bool {
        let mut row: Vec<u8> = coefficients.collect();
        row.resize(self.count.saturating_mul(2), 0);
        if let Some(itself) = row.get_mut(self.count.saturating_add(self.reduced.len())) {
            *itself = 1;
        }
        for (unknown, other) in &self.reduced {
            let factor = row.get(*unknown).copied().unwrap_or(0);
            add_times(&mut row, other, factor);
        }
        let Some(unknown) = row.iter().take(self.count).position(|&c| c != 0) else { return false };
        let scale = products(inverse(row.get(unknown).copied().unwrap_or(0)));
        row.iter_mut().for_each(|octet| *octet = times(scale, *octet));
        for (_, other) in &mut self.reduced {
            let factor = other.get(unknown).copied().unwrap_or(0);
            add_times(other, &row, factor);
        }
        self.reduced.push((unknown, row));
        true
    }

    fn is_solved(&self) -> bool {
        self.reduced.len() == self.count
    }

    /// For each unknown which of the equations taken it is the sum of, times what.
    fn solution(mut self) -> Option<Vec<u8>> {
        if !self.is_solved() {
            return None;
        }
        self.reduced.sort_by_key(|(unknown, _)| *unknown);
        Some(self.reduced.iter().flat_map(|(_, row)| row.iter().skip(self.count).copied()).collect())
    }
}

/// `row` += `other` × `factor`.
fn add_times(row: &mut [u8], other: &[u8], factor: u8) {
    if factor != 0 {
        let table = products(factor);
        row.iter_mut().zip(other).for_each(|(octet, other)| *octet ^= times(table, *other));
    }
}

fn times(table: &[u8; 256], octet: u8) -> u8 {
    // A table of all octets has each of them.
    table.get(usize::from(octet)).copied().unwrap_or(0)
}
