//! What follows from a link's configuration: symbol size, block size, interleave depth, memory, overhead.

use std::time::Duration;

use super::pacer::{BUCKET, QUANTUM};
use crate::limits::{
    ETHERNET_LEN, IP_UDP_LEN, MAX_BLOCK_SYMBOLS, MAX_ESI, MAX_MTU, MAX_SYMBOL_SIZE, MIN_MTU, OVERHEAD, SYMBOL_ALIGNMENT,
};
use crate::partition::{Oti, OtiError};

/// What a person sets about a link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Largest IP datagram in bytes.
    pub mtu: u16,
    /// Bits a second on the wire, Ethernet overhead included.
    pub rate: u64,
    /// Repair symbols as a share of source symbols: 0.05 is 5 %.
    pub repair: f64,
    /// The outage to survive at `rate`.
    pub burst: Duration,
    /// Bytes that the blocks in flight may take.
    pub memory: u64,
}

/// What follows. All counts are of symbols unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameters {
    symbol_size: u16,
    block_symbols: u16,
    repair: f64,
    depth: u32,
    burst_symbols: u32,
    wanted_burst_symbols: u32,
    burst: Duration,
    rate: u64,
}

/// A link that cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// MTU out of range.
    #[error("mtu is not {MIN_MTU} to {MAX_MTU} bytes")]
    Mtu,
    /// Rate out of range.
    #[error("rate is not 64 kbit/s to 400 Gbit/s")]
    Rate,
    /// Repair out of range.
    #[error("repair is not 0 to 400 %")]
    Repair,
    /// Burst out of range.
    #[error("burst is over 60 s")]
    Burst,
    /// Not even four blocks fit.
    #[error("memory is under {0} bytes, which is what four blocks take")]
    Memory(u64),
}

/// Slowest link in bit/s: slower, and a beacon a second would be the whole traffic.
pub const MIN_RATE: u64 = 64_000;
/// Fastest link in bit/s.
pub const MAX_RATE: u64 = 400_000_000_000;

impl Parameters {
    /// Works out what follows from `link`.
    pub fn derive(link: &Link) -> Result<Self, ParameterError> {
        if !(MIN_MTU..=MAX_MTU).contains(&link.mtu) {
            return Err(ParameterError::Mtu);
        }
        if !(MIN_RATE..=MAX_RATE).contains(&link.rate) {
            return Err(ParameterError::Rate);
        }
        if !(0.0..=4.0).contains(&link.repair) {
            return Err(ParameterError::Repair);
        }
        if link.burst > Duration::from_secs(60) {
            return Err(ParameterError::Burst);
        }
        let payload = usize::from(link.mtu) - IP_UDP_LEN - OVERHEAD;
        let symbol_size = (payload as u16 / SYMBOL_ALIGNMENT * SYMBOL_ALIGNMENT).min(MAX_SYMBOL_SIZE);
        // 360 KB at MTU 1500 and 1.7 MB at MTU 9000: as much as a usual second-level cache can hold while a block is
        // coded. The more symbols a block has, the closer the loss that it survives comes to its share of repair. Both
        // of these block sizes survive the same loss.
        let block_symbols = if symbol_size <= 2_048 { 256 } else { 192 };
        let mut this = Self {
            symbol_size,
            block_symbols,
            repair: link.repair,
            depth: 1,
            burst_symbols: 0,
            wanted_burst_symbols: 0,
            burst: link.burst,
            rate: link.rate,
        };
        let four_blocks = 4 * this.block_bytes();
        if link.memory < four_blocks {
            return Err(ParameterError::Memory(four_blocks));
        }
        let bits = this.wire_len() as f64 * 8.0;
        // What leaves within a burst: its length at `rate`, and what the pacer may send at once at either end.
        let slack = if link.burst.is_zero() { Duration::ZERO } else { BUCKET + QUANTUM };
        let wanted = (link.rate as f64 * (link.burst + slack).as_secs_f64() / bits).ceil() as u32;
        let spare = this.spare();
        let depth = wanted.div_ceil(spare).max(1);
        let fits = u32::try_from(link.memory / this.block_bytes()).unwrap_or(u32::MAX);
        this.depth = depth.min(fits);
        this.wanted_burst_symbols = wanted;
        this.burst_symbols = wanted.min(this.depth.saturating_mul(spare));
        Ok(this)
    }

    /// T in bytes.
    #[must_use]
    pub fn symbol_size(&self) -> u16 {
        self.symbol_size
    }

    /// B: source symbols of a full block.
    #[must_use]
    pub fn block_symbols(&self) -> u16 {
        self.block_symbols
    }

    /// The same link with symbols and blocks of another size: those that a bundle was first sent with.
    #[must_use]
    pub fn with_block(self, symbol_size: u16, block_symbols: u16) -> Self {
        Self { symbol_size, block_symbols, ..self }
    }

    /// D: blocks on the wire at once.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Bytes of a datagram on the wire, Ethernet's preamble and gap included.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        usize::from(self.symbol_size) + OVERHEAD + IP_UDP_LEN + ETHERNET_LEN
    }

    /// Bytes on the wire for a byte of a large bundle, less one: 0.11 is 11 %.
    #[must_use]
    pub fn wire_overhead(&self) -> f64 {
        let block = f64::from(self.block_symbols);
        let sent = block + f64::from(self.repair_symbols(self.block_symbols));
        sent * self.wire_len() as f64 / (block * f64::from(self.symbol_size)) - 1.0
    }

    /// Bytes of the bundle a second at `rate`.
    #[must_use]
    pub fn goodput(&self) -> f64 {
        self.rate as f64 / 8.0 / (1.0 + self.wire_overhead())
    }

    /// Bytes that the blocks on the wire take at either end.
    #[must_use]
    pub fn memory(&self) -> u64 {
        u64::from(self.depth) * self.block_bytes()
    }

    /// Datagrams in a row that may be lost.
    #[must_use]
    pub fn burst_symbols(&self) -> u32 {
        self.burst_symbols
    }

    /// The longest outage at full rate that loses nothing. Shorter than asked for when memory binds.
    #[must_use]
    pub fn survivable_burst(&self) -> Duration {
        if self.burst_symbols >= self.wanted_burst_symbols {
            return self.burst;
        }
        let bits = f64::from(self.burst_symbols) * self.wire_len() as f64 * 8.0;
        Duration::from_secs_f64(bits / self.rate as f64).saturating_sub(BUCKET + QUANTUM)
    }

    /// Whether `memory` was too small for `burst`.
    #[must_use]
    pub fn memory_binds(&self) -> bool {
        self.burst_symbols < self.wanted_burst_symbols
    }

    /// Random loss, as a share, at which a bundle of 1 GiB completes in one pass 99 times in 100: each of its blocks has to.
    #[must_use]
    pub fn survivable_loss(&self) -> f64 {
        let spare = self.repair_symbols(self.block_symbols);
        let sent = u32::from(self.block_symbols) + spare;
        let block = f64::from(self.block_symbols) * f64::from(self.symbol_size);
        let blocks = (f64::from(1 << 30) / block).ceil();
        let (mut low, mut high) = (0.0_f64, 1.0_f64);
        for _ in 0..40 {
            let loss = (low + high) / 2.0;
            if at_most(sent, spare, loss).powf(blocks) >= 0.99 { low = loss } else { high = loss }
        }
        low
    }

    /// OTI of an object of `length` bytes.
    pub fn oti(&self, length: u64) -> Result<Oti, OtiError> {
        Oti::new(length, self.symbol_size, self.block_symbols)
    }

    /// Repair symbols that go out with a block of K = `symbols`, before any extra for its place in the object.
    #[must_use]
    pub fn repair_symbols(&self, symbols: u16) -> u32 {
        let share = (f64::from(symbols) * self.repair).ceil() as u32;
        // A small block has too few symbols for a share of them to mean anything.
        if symbols < 32 { share.max(u32::from(symbols).min(2)) } else { share }
    }

    /// An upper bound of the ESIs that one transmission of a bundle uses in any block.
    #[must_use]
    pub fn esis_per_pass(&self) -> u32 {
        let block = u32::from(self.block_symbols);
        (8 * (block + self.repair_symbols(self.block_symbols)) + 64).min(MAX_ESI / 4)
    }

    /// How many symbols of a block may fall into one burst that it survives on its own repair symbols.
    fn spare(&self) -> u32 {
        self.repair_symbols(self.block_symbols).saturating_sub(1).max(1)
    }

    fn block_bytes(&self) -> u64 {
        let symbols = u32::from(self.block_symbols) + self.repair_symbols(self.block_symbols);
        u64::from(symbols) * u64::from(self.symbol_size)
    }

    /// The outage that deferred repair must outlast.
    #[must_use]
    pub fn burst(&self) -> Duration {
        self.burst
    }

    /// Bits a second on the wire.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate
    }
}

/// The probability that of `sent` symbols, each lost with probability `loss` (neither 0 nor 1), at most `spare` are lost.
fn at_most(sent: u32, spare: u32, loss: f64) -> f64 {
    let odds = (loss / (1.0 - loss)).ln();
    // In logarithms, since that of none may be smaller than any number.
    let mut exactly = f64::from(sent) * (1.0 - loss).ln();
    let mut sum = exactly.exp();
    for lost in 1..=spare.min(sent) {
        exactly += (f64::from(sent - lost + 1) / f64::from(lost)).ln() + odds;
        sum += exactly.exp();
    }
    sum
}

const _: () = assert!(MAX_BLOCK_SYMBOLS >= 256, "the block sizes chosen above are allowed");

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link { mtu: 1_500, rate: 900_000_000, repair: 0.05, burst: Duration::from_millis(10), memory: 128 << 20 }
    }

    #[test]
    fn the_usual_link() {
        let p = Parameters::derive(&link()).unwrap();
        assert_eq!((p.symbol_size(), p.block_symbols(), p.repair_symbols(256)), (1_408, 256, 13));
        assert_eq!(p.wire_len(), 1_538);
        assert_eq!(p.burst_symbols(), 842, "11.5 ms at 900 Mbit/s");
        assert_eq!(p.depth(), 71);
        assert!(!p.memory_binds());
        assert_eq!(p.survivable_burst(), Duration::from_millis(10));
        assert!((0.14..0.16).contains(&p.wire_overhead()), "{}", p.wire_overhead());
        assert!((0.009..0.013).contains(&p.survivable_loss()), "{}", p.survivable_loss());
        assert_eq!(Parameters::derive(&Link { mtu: 9_000, ..link() }).unwrap().symbol_size(), 8_896);
    }

    #[test]
    fn the_loss_survived_is_that_of_the_binomial_distribution() {
        // 4 symbols, 1 of them spare: (1-p)^4 + 4p(1-p)^3.
        let exact = |p: f64| (1.0 - p).powi(4) + 4.0 * p * (1.0 - p).powi(3);
        for loss in [0.001, 0.1, 0.5, 0.999] {
            assert!((at_most(4, 1, loss) - exact(loss)).abs() < 1e-12, "{loss}");
        }
        assert!((at_most(5_120, 4_096, 0.5) - 1.0).abs() < 1e-9, "nothing underflows");
        for (repair, loss) in [(0.02, 0.0015..0.003), (0.1, 0.033..0.043), (0.2, 0.085..0.092), (4.0, 0.7..0.8)] {
            let found = Parameters::derive(&Link { repair, ..link() }).unwrap().survivable_loss();
            assert!(loss.contains(&found), "{repair}: {found}");
        }
        assert!(Parameters::derive(&Link { repair: 0.0, ..link() }).unwrap().survivable_loss() < 1e-7);
    }

    #[test]
    fn memory_binds_and_says_what_is_left() {
        let p = Parameters::derive(&Link { rate: 10_000_000_000, ..link() }).unwrap();
        assert!(p.memory_binds());
        assert!(p.memory() <= 128 << 20);
        assert!(p.survivable_burst() < Duration::from_millis(5));
        assert!(p.survivable_burst() > Duration::from_millis(3));
    }

    #[test]
    fn refuses_each_impossible_link_by_name() {
        let derive = |change: fn(&mut Link)| {
            let mut link = link();
            change(&mut link);
            Parameters::derive(&link)
        };
        assert_eq!(derive(|l| l.mtu = 575), Err(ParameterError::Mtu));
        assert_eq!(derive(|l| l.mtu = 9_217), Err(ParameterError::Mtu));
        assert_eq!(derive(|l| l.rate = 0), Err(ParameterError::Rate));
        assert_eq!(derive(|l| l.repair = 4.1), Err(ParameterError::Repair));
        assert_eq!(derive(|l| l.repair = f64::NAN), Err(ParameterError::Repair));
        assert_eq!(derive(|l| l.burst = Duration::from_secs(61)), Err(ParameterError::Burst));
        assert!(matches!(derive(|l| l.memory = 1 << 20), Err(ParameterError::Memory(_))));
    }

    #[test]
    fn small_blocks_have_repair_that_means_something() {
        let p = Parameters::derive(&link()).unwrap();
        assert_eq!(p.repair_symbols(1), 1);
        assert_eq!(p.repair_symbols(3), 2);
        assert_eq!(p.repair_symbols(31), 2);
        assert_eq!(p.repair_symbols(100), 5);
    }
}
