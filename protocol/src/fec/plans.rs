//! What is known of the code for each K.

use std::collections::{HashMap, VecDeque};
use std::panic::catch_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_octets::Matrix;
use raptorq::{SourceBlockEncoder, SourceBlockEncodingPlan};

use super::{FecError, config};
use crate::limits::SYMBOL_ALIGNMENT;

/// K for which something is kept: two sizes of block per object in flight, and some room.
const MAX_PLANS: usize = 64;
/// Bytes that this may take: some blocks of the largest K, or many of the usual ones.
const MAX_BYTES: usize = 24 << 20;
/// Matrices that are kept for each K: those of the passes and resends in flight.
const MAX_MATRICES: usize = 4;

/// What is known of the code for each K, shared by all coders of a process. Making it costs about as much as encoding ten
/// blocks.
#[derive(Default)]
pub struct Plans {
    codes: Mutex<Codes>,
}

#[derive(Default)]
struct Codes {
    of: HashMap<u16, Arc<Code>>,
    bytes: usize,
}

/// The code for one K.
pub(super) struct Code {
    symbols: u16,
    plan: SourceBlockEncodingPlan,
    /// A block whose symbol i is the i-th unit vector: its repair symbols are rows of coefficients.
    unit: SourceBlockEncoder,
    matrices: Mutex<VecDeque<(u32, u32, Arc<Matrix>)>>,
}

impl Plans {
    /// None yet; they are made as they are asked for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn get(&self, symbols: u16) -> Result<Arc<Code>, FecError> {
        if let Some(code) = lock(&self.codes).of.get(&symbols) {
            return Ok(Arc::clone(code));
        }
        // Made outside of the lock: two threads may make the same once, nobody waits for another K.
        let code = Arc::new(Code::new(symbols)?);
        let mut codes = lock(&self.codes);
        if codes.of.len() >= MAX_PLANS || codes.bytes.saturating_add(code.bytes()) > MAX_BYTES {
            *codes = Codes::default();
        }
        if codes.of.insert(symbols, Arc::clone(&code)).is_none() {
            codes.bytes = codes.bytes.saturating_add(code.bytes());
        }
        Ok(code)
    }
}

impl Code {
    fn new(symbols: u16) -> Result<Self, FecError> {
        let width = width(symbols);
        let config = config(symbols, width)?;
        let mut units = vec![0_u8; usize::from(symbols).saturating_mul(width.into())];
        for (at, unit) in units.chunks_exact_mut(width.into()).enumerate() {
            if let Some(octet) = unit.get_mut(at) {
                *octet = 1;
            }
        }
        let made = catch_unwind(|| {
            let plan = SourceBlockEncodingPlan::generate(symbols);
            let unit = SourceBlockEncoder::with_encoding_plan(0, &config, &units, &plan);
            (plan, unit)
        });
        let (plan, unit) = made.map_err(|_| FecError::Coder)?;
        Ok(Self { symbols, plan, unit, matrices: Mutex::default() })
    }

    pub(super) fn plan(&self) -> &SourceBlockEncodingPlan {
        &self.plan
    }

    /// K.
    pub(super) fn symbols(&self) -> u16 {
        self.symbols
    }

    /// Length of a [`Code::row`]: K and what makes it a whole symbol.
    pub(super) fn width(&self) -> usize {
        width(self.symbols).into()
    }

    /// The coefficients of a repair symbol, then zeros.
    pub(super) fn row(&self, esi: u32) -> Result<Vec<u8>, FecError> {
        let start = esi.checked_sub(self.symbols.into()).ok_or(FecError::Esi)?;
        let packets = catch_unwind(|| self.unit.repair_packets(start, 1)).map_err(|_| FecError::Coder)?;
        let row = packets.into_iter().next().ok_or(FecError::Coder)?.split().1;
        if row.len() == self.width() { Ok(row) } else { Err(FecError::Coder) }
    }

    /// The rows of `count` repair symbols on end.
    pub(super) fn matrix(&self, first_esi: u32, count: u32) -> Result<Arc<Matrix>, FecError> {
        let known = |of: &&(u32, u32, Arc<Matrix>)| (of.0, of.1) == (first_esi, count);
        if let Some((_, _, matrix)) = lock(&self.matrices).iter().find(known) {
            return Ok(Arc::clone(matrix));
        }
        let mut coefficients = Vec::new();
        for esi in (first_esi..).take(count as usize) {
            let row = self.row(esi)?;
            coefficients.extend_from_slice(row.get(..self.symbols.into()).ok_or(FecError::Coder)?);
        }
        let matrix = Arc::new(Matrix::new(self.symbols.into(), &coefficients));
        let mut matrices = lock(&self.matrices);
        if matrices.len() >= MAX_MATRICES {
            matrices.pop_front();
        }
        matrices.push_back((first_esi, count, Arc::clone(&matrix)));
        Ok(matrix)
    }

    /// About so many bytes: source and intermediate symbols of the unit vectors.
    fn bytes(&self) -> usize {
        usize::from(self.symbols).saturating_add(64).saturating_mul(self.width()).saturating_mul(2)
    }
}

/// T of the unit vectors.
fn width(symbols: u16) -> u16 {
    symbols.next_multiple_of(SYMBOL_ALIGNMENT)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
