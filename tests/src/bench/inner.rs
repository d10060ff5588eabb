//! The parts `codec`, `seal` and `hash`: the hot inner work on one core, in this process, compared to memcpy. [`Passes`] is the
//! share of that work, and of the kernel's, that every bundle needs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use checkvalve_protocol::fec::{self, Plans};
use checkvalve_protocol::id::SessionId;
use checkvalve_protocol::seal::{Opener, Sealer};
use checkvalve_protocol::transmit::{Link, Parameters};
use checkvalve_protocol::wire::{Content, Header};

use rustix::time::{ClockId, clock_gettime};

use super::ceiling::{Kind, blast};
use super::noise::watched;
use super::report::{Figure, Section};
use super::{Plan, gbits};
use crate::link::Link as Wire;
use crate::rng::Rng;

/// How many bytes are processed between two looks at the clock, and copied by memcpy. They exceed a core's caches.
const WORK: usize = 32 << 20;
const KEY: [u8; 32] = [9; 32];

/// One thing that is measured: does its work once and returns the bytes of source data that it worked on.
type Work = Box<dyn FnMut() -> usize>;

/// The part `codec`: RaptorQ at the T and K that the daemons choose, and at K twice and half as large.
///
/// # Panics
/// When coding fails.
pub fn codec(plan: &Plan) -> Section {
    let mut contenders = Vec::new();
    for mtu in [1500, 9000] {
        let (size, usual) = shape(mtu);
        for symbols in [usual / 2, usual, usual * 2] {
            let mark = if symbols == usual { " (as configured by default)" } else { "" };
            contenders.push((format!("encode 5 % repair, T={size} K={symbols}{mark}"), encode(size, symbols, WORK)));
            contenders.push((format!("decode, 3 % lost, T={size} K={symbols}{mark}"), decode(size, symbols)));
        }
    }
    measure(plan, "codec", "one core; bytes of source data", contenders)
}

/// The part `seal`: AES-256-GCM of datagrams, one after another through memory.
pub fn seal(plan: &Plan) -> Section {
    let mut contenders = Vec::new();
    for mtu in [1500, 9000] {
        let (size, _) = shape(mtu);
        contenders.push((format!("seal in place, {size} bytes"), sealing(size, WORK / usize::from(size), false)));
        contenders
            .push((format!("copy and open in place, {size} bytes"), sealing(size, WORK / usize::from(size), true)));
    }
    measure(plan, "seal", "AES-256-GCM, one core", contenders)
}

/// The part `hash`: BLAKE3 of the bytes of a bundle, a block at a time.
pub fn hash(plan: &Plan) -> Section {
    let mut contenders: Vec<(String, Work)> = Vec::new();
    for mtu in [1500, 9000] {
        let (size, symbols) = shape(mtu);
        let block = usize::from(size) * usize::from(symbols);
        let data = bytes(WORK);
        let work = move || {
            let mut hasher = blake3::Hasher::new();
            for part in data.chunks(block) {
                hasher.update(part);
            }
            black_box(hasher.finalize());
            data.len()
        };
        contenders.push((format!("BLAKE3, {block} bytes at a time"), Box::new(work)));
    }
    measure(plan, "hash", "BLAKE3, one core", contenders)
}

/// The passes over the data at an MTU: hashing, coding, authentication and the kernel's sockets. Each is measured alone, with its
/// block in the core's caches. A program that needs all of them cannot use less processor time.
pub struct Passes {
    mtu: u16,
    /// How often each is made, and the work.
    works: Vec<(f64, Work)>,
}

impl Passes {
    /// The passes for a block as the daemons choose it.
    pub fn new(mtu: u16) -> Self {
        let (size, symbols) = shape(mtu);
        let block = bytes(usize::from(size) * usize::from(symbols));
        let hash = move || {
            black_box(blake3::hash(black_box(&block)));
            block.len()
        };
        let works = vec![
            (2.0, Box::new(hash) as Work),
            // One copy out of a file, and one into a file.
            (2.0, memcpy()),
            (1.0, encode(size, symbols, 1)),
            (1.0, sealing(size, usize::from(symbols), false)),
            (1.0, opening(size, usize::from(symbols))),
        ];
        Self { mtu, works }
    }

    /// Processor time of all of them, in seconds for 10⁹ bytes; datagrams cross `link` without coding.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn cost(&mut self, plan: &Plan, link: &Wire) -> f64 {
        let inner: f64 = self.works.iter_mut().map(|(times, work)| *times * 8.0 / rate(work, plan.spell / 4)).sum();
        let used = || clock_gettime(ClockId::ProcessCPUTime);
        let before = used();
        let blast = blast(link, self.mtu, Kind::Segmented, plan.blast / 2);
        let used = Duration::try_from(used() - before).unwrap_or_default();
        inner + used.as_secs_f64() / (blast.bytes as f64 / 1e9)
    }
}

fn measure(plan: &Plan, name: &'static str, about: &str, contenders: Vec<(String, Work)>) -> Section {
    let mut memcpy = memcpy();
    let mut rows: Vec<(Figure, Work)> = Vec::new();
    for (name, mut work) in contenders {
        work();
        rows.push((Figure::new(name, "Gbit/s").against("memcpy"), work));
    }
    for _ in 0..plan.repetitions {
        for (figure, work) in &mut rows {
            let ceiling = rate(&mut memcpy, plan.spell / 4);
            let (value, noise) = watched(|| rate(work, plan.spell));
            figure.add_beside(value, ceiling, noise);
        }
    }
    let figures = rows.into_iter().map(|(figure, _)| figure).collect();
    Section { name, about: about.to_owned(), figures, problems: Vec::new() }
}

/// Gbit/s of work done for `spell`.
fn rate(work: &mut Work, spell: Duration) -> f64 {
    let (started, mut done) = (Instant::now(), 0_u64);
    while started.elapsed() < spell {
        done += work() as u64;
    }
    gbits(done, started.elapsed().as_secs_f64())
}

fn memcpy() -> Work {
    let (from, mut to) = (bytes(WORK), vec![0; WORK]);
    Box::new(move || {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
        WORK
    })
}

/// Encodes all blocks of `work` bytes, or one.
fn encode(size: u16, symbols: u16, work: usize) -> Work {
    let block = usize::from(size) * usize::from(symbols);
    let (plans, data, mut out) = (Plans::new(), bytes(work.max(block)), Vec::new());
    Box::new(move || {
        let mut done = 0;
        for source in data.chunks_exact(block) {
            out.clear();
            let repair = u32::from(symbols).div_ceil(20);
            fec::encode(&plans, source, size, u32::from(symbols), repair, &mut out).expect("the shape is allowed");
            black_box(&out);
            done += block;
        }
        done
    })
}

fn decode(size: u16, symbols: u16) -> Work {
    let (plans, source) = (Plans::new(), bytes(usize::from(size) * usize::from(symbols)));
    let lost = |esi: u16| esi % 33 == 7;
    let count = u32::try_from((0..symbols).filter(|&esi| lost(esi)).count()).expect("a small count");
    let mut repair = Vec::new();
    fec::encode(&plans, &source, size, u32::from(symbols), count + 2, &mut repair).expect("the shape is allowed");
    let mut block = source;
    Box::new(move || {
        let received = (u32::from(symbols)..).zip(repair.chunks(usize::from(size)));
        fec::decode(&plans, black_box(&mut block), size, |esi| !lost(esi), received).expect("two symbols to spare");
        block.len()
    })
}

fn sealing(size: u16, count: usize, open: bool) -> Work {
    let (sealer, mut opener) = (Sealer::new(Some(&KEY), SessionId(1)), Opener::new(Some(KEY)));
    let header = Header { sealed: true, session: SessionId(1), counter: 1, content: Content::Beacon };
    let length = sealer.datagram_len(usize::from(size));
    let mut datagrams = bytes(count * length);
    let mut sealed = vec![0; length];
    sealer.seal(&header, &vec![7; usize::from(size)], &mut sealed);
    Box::new(move || {
        for datagram in datagrams.chunks_exact_mut(length) {
            if open {
                datagram.copy_from_slice(&sealed);
                black_box(opener.open(datagram).expect("it was sealed with that key"));
            } else {
                sealer.seal_in_place(&header, datagram);
            }
        }
        datagrams.len()
    })
}

/// Opens datagrams from where they were received into their block, as a receiver with one lane does.
fn opening(size: u16, symbols: usize) -> Work {
    let (sealer, mut opener) = (Sealer::new(Some(&KEY), SessionId(1)), Opener::new(Some(KEY)));
    let header = Header { sealed: true, session: SessionId(1), counter: 1, content: Content::Beacon };
    let mut datagrams = bytes(symbols * sealer.datagram_len(usize::from(size)));
    let length = datagrams.len() / symbols;
    for datagram in datagrams.chunks_exact_mut(length) {
        sealer.seal(&header, &vec![7; usize::from(size)], datagram);
    }
    opener.open(&mut datagrams[..length].to_vec()).expect("it was sealed with that key");
    let mut block = bytes(symbols * usize::from(size));
    Box::new(move || {
        for (datagram, place) in datagrams.chunks_exact(length).zip(block.chunks_exact_mut(usize::from(size))) {
            opener.open_into(&header, datagram, place).expect("the session is known").expect("it is authentic");
        }
        black_box(&block).len()
    })
}

/// T and K that the daemons choose for that MTU.
fn shape(mtu: u16) -> (u16, u16) {
    let link = Link { mtu, rate: 10_000_000_000, repair: 0.05, burst: Duration::from_millis(10), memory: 128 << 20 };
    let parameters = Parameters::derive(&link).expect("a usual link");
    (parameters.symbol_size(), parameters.block_symbols())
}

fn bytes(len: usize) -> Vec<u8> {
    Rng::new(1).bytes(len)
}
