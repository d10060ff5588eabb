use super::*;
use crate::fec::Plans;
use crate::id::SessionId;
use crate::seal::{Opener, Sealer};
use crate::transmit::{Batch, Encoder, Link, Parameters, Selection, Transmit, Transmitter, Work, WorkShape};
use crate::wire::{Content, Header, Symbol};

const KEY: [u8; 32] = [3; 32];

fn limits(memory: u64) -> Limits {
    Limits { idle: Duration::from_secs(5), ask_again: Duration::from_secs(2), ..Limits::new(memory) }
}

fn parameters(repair: f64, burst_ms: u64) -> Parameters {
    let burst = Duration::from_millis(burst_ms);
    Parameters::derive(&Link { mtu: 1_500, rate: 900_000_000, repair, burst, memory: 128 << 20 }).unwrap()
}

fn data(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Every datagram of one transmission of `bytes` as a bundle's data, in order of departure, with its time.
fn transmit(parameters: &Parameters, session: u64, bytes: &[u8], first_esi: u32) -> Vec<(Time, Vec<u8>)> {
    let sealer = Sealer::new(Some(&KEY), SessionId(session));
    let mut transmitter = Transmitter::new(&sealer, parameters, Duration::from_millis(1));
    let (announce, hashes) = (data(300), data(500));
    let shape = WorkShape {
        bundle: BundleId(1),
        announce_len: announce.len() as u64,
        data_len: bytes.len() as u64,
        selection: Selection::All,
        first_esi,
    };
    let mut work = Work::new(parameters, &shape).unwrap();
    let id = transmitter.schedule().open(work.stream(0));
    let plans = Plans::new();
    let encoder = Encoder::new(&plans);
    let mut tasks: Vec<_> = std::iter::from_fn(|| work.next_task()).collect();
    work.hashes(hashes.len() as u64).unwrap();
    tasks.extend(std::iter::from_fn(|| work.next_closing()));
    let mut tasks = tasks.into_iter();
    let mut push = |transmitter: &mut Transmitter| {
        let Some(task) = tasks.next() else { return false };
        let object = match task.symbol.kind {
            ObjectKind::Announce => &announce[..],
            ObjectKind::Data => bytes,
            ObjectKind::Hashes => &hashes[..],
        };
        let mut source = object[task.offset as usize..][..task.len].to_vec();
        source.resize(Encoder::padded_len(&task), 0);
        let (block, _) = encoder.encode(&task, source, Vec::new()).unwrap();
        transmitter.schedule().push(id, block);
        true
    };
    let (mut now, mut batch, mut sent) = (Time(1_000_000_000), Batch::new(), Vec::new());
    loop {
        while transmitter.schedule().held() <= parameters.depth() as usize {
            if !push(&mut transmitter) {
                transmitter.schedule().close(id);
                break;
            }
        }
        match transmitter.poll_transmit(now, &mut batch, None) {
            Transmit::Ready => {
                batch.seal(&sealer);
                sent.extend(batch.datagrams().map(|d| (now, d.to_vec())));
            }
            Transmit::Wait(at) => now = at,
            Transmit::Idle => return sent,
        }
    }
}

/// Symbols by block.
type Kept = std::collections::HashMap<(ObjectKind, u32), Vec<(u32, Vec<u8>)>>;

struct High {
    plans: Plans,
    opener: Opener,
    /// As where there are several lanes.
    opens_first: bool,
    reassembly: Reassembly,
    data: Vec<u8>,
    stored: BlockSet,
    drops: Drops,
    decoded: usize,
    keep: bool,
    kept: Kept,
}

impl High {
    fn new(len: usize, memory: u64) -> Self {
        Self {
            plans: Plans::new(),
            opener: Opener::new(Some(KEY)),
            opens_first: false,
            reassembly: Reassembly::new(limits(memory)),
            data: vec![0; len],
            stored: BlockSet::new(),
            drops: Drops::default(),
            decoded: 0,
            keep: false,
            kept: Kept::new(),
        }
    }

    fn receive(&mut self, now: Time, datagram: &[u8]) {
        let mut bytes = datagram.to_vec();
        let have = self.stored.clone();
        let mut want = |symbol: &Symbol| Wanted::Yes {
            have: if symbol.kind == ObjectKind::Data { have.clone() } else { BlockSet::new() },
            parked: Vec::new(),
            origin: Origin::Signed,
        };
        let result = if self.opens_first {
            let opened = self.opener.open(&mut bytes).map_err(DropReason::from);
            opened.and_then(|(header, payload)| self.reassembly.handle_with(now, &header, payload, &mut want))
        } else {
            match self.reassembly.take(now, &mut self.opener, &mut bytes) {
                Ok(Taken::Symbol | Taken::Beacon(..)) => Ok(()),
                Ok(Taken::Dropped(reason)) => Err(reason),
                Err(error) => Err(error.into()),
            }
        };
        if let Err(reason) = result {
            self.drops.add(reason);
        }
        self.drops.merge(&self.reassembly.answer_all(now, want));
        while let Some(mut block) = self.reassembly.poll_complete() {
            if block.has_parked() {
                for (esi, symbol) in self.kept.remove(&(block.kind(), block.sbn())).unwrap() {
                    block.add(esi, &symbol);
                }
            }
            self.decoded += usize::from(!block.is_whole());
            if block.decode(&self.plans).is_err() {
                self.reassembly.undecodable(now, block);
                continue;
            }
            if block.kind() == ObjectKind::Data {
                let at = block.oti().block_offset(block.sbn()).unwrap() as usize;
                self.data[at..at + block.data().len()].copy_from_slice(block.data());
                assert!(self.stored.add(block.sbn()), "a block comes once");
            }
            self.reassembly.stored(block);
        }
        while let Some(block) = self.reassembly.poll_parked() {
            if !self.keep {
                self.reassembly.recycle(block);
                continue;
            }
            let kept = self.kept.entry((block.kind(), block.sbn())).or_default();
            for (esi, symbol) in block.received_symbols() {
                if kept.iter().all(|(have, _)| *have != esi) {
                    kept.push((esi, symbol.to_vec()));
                }
            }
            let count = kept.len() as u32;
            self.reassembly.parked(Time::ZERO, block, count);
        }
    }
}

fn rng(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

#[test]
fn without_loss_nothing_is_decoded() {
    let bytes = data(3_000_000);
    let mut high = High::new(bytes.len(), 64 << 20);
    for (now, datagram) in transmit(&parameters(0.05, 10), 1, &bytes, 0) {
        high.receive(now, &datagram);
    }
    assert!(high.data == bytes);
    assert_eq!(high.decoded, 0);
    assert_eq!(high.drops.get(DropReason::Surplus), high.drops.iter().map(|(_, n)| n).sum::<u64>());
    high.reassembly.handle_timeout(Time(1 << 40));
    assert_eq!(high.reassembly.usage(), Usage::default(), "every byte came back");
}

#[test]
fn random_loss_within_the_repair_is_mended_in_any_order() {
    for seed in 1..6 {
        let bytes = data(2_000_000 + seed as usize * 77_777);
        let mut random = rng(seed);
        let mut sent = transmit(&parameters(0.25, 10), 1, &bytes, 0);
        sent.retain(|_| random() % 100 >= 8);
        // Reordering and duplication.
        for i in 0..sent.len() {
            let j = (i + (random() % 50) as usize).min(sent.len() - 1);
            sent.swap(i, j);
            if random().is_multiple_of(20) {
                sent.insert(j, sent[i].clone());
            }
        }
        let mut high = High::new(bytes.len(), 64 << 20);
        for (now, datagram) in &sent {
            high.receive(*now, datagram);
        }
        assert!(high.data == bytes, "seed {seed}");
        assert!(high.decoded > 0);
        assert!(high.drops.get(DropReason::Duplicate) > 0);
    }
}

#[test]
fn a_burst_anywhere_in_an_object_of_any_size_is_survived() {
    let parameters = parameters(0.05, 10);
    for len in [1, 1_408, 4_096, 100_000, 360_448, 3_000_000, 30_000_000] {
        let bytes = data(len);
        let sent = transmit(&parameters, 1, &bytes, 0);
        let burst = parameters.burst();
        let parts = if len > 10_000_000 { 3 } else { 8 };
        for part in 0..parts {
            let from = sent[(sent.len() - 1) * part / parts].0;
            let mut high = High::new(len, 128 << 20);
            for (now, datagram) in sent.iter().filter(|(now, _)| *now < from || *now >= from + burst) {
                high.receive(*now, datagram);
            }
            let done: Vec<_> = high.reassembly.progress().map(|p| (p.kind, p.blocks_done)).collect();
            assert!(high.data == bytes, "{len} bytes, burst at {part}/{parts}: {done:?}");
            assert_eq!(done.len(), 3, "announce and hashes came too");
            assert!(high.reassembly.progress().all(|p| p.blocks_done == u64::from(p.oti.blocks())), "{len} {done:?}");
        }
    }
}

#[test]
fn a_second_pass_completes_what_the_first_left_open() {
    let bytes = data(5_000_000);
    let parameters = parameters(0.05, 1);
    let mut random = rng(9);
    let mut high = High::new(bytes.len(), 64 << 20);
    for (session, first_esi) in [(1, 0), (2, parameters.esis_per_pass())] {
        for (now, datagram) in transmit(&parameters, session, &bytes, first_esi) {
            if random() % 100 >= 30 {
                high.receive(now, &datagram);
            }
        }
        assert_eq!(high.data == bytes, session == 2, "30 % loss needs both passes");
    }
}

#[test]
fn a_late_start_loses_only_what_it_missed() {
    let bytes = data(5_000_000);
    let parameters = parameters(0.05, 0);
    let sent = transmit(&parameters, 1, &bytes, 0);
    let mut high = High::new(bytes.len(), 64 << 20);
    for (now, datagram) in &sent[sent.len() / 2..] {
        high.receive(*now, datagram);
    }
    assert!(high.stored.len() >= 4, "{}", high.stored.len());
    let announce = high.reassembly.progress().find(|p| p.kind == ObjectKind::Announce);
    assert_eq!(announce.map(|p| p.blocks_done), Some(1));
}

#[test]
fn memory_is_bounded_and_the_oldest_block_makes_room() {
    let bytes = data(20_000_000);
    let parameters = parameters(0.05, 10);
    let limit = 8 * 256 * 1_408;
    let mut high = High::new(bytes.len(), limit);
    for (now, datagram) in transmit(&parameters, 1, &bytes, 0) {
        high.receive(now, &datagram);
        assert!(high.reassembly.memory() <= limit + 1_408 * 64, "{}", high.reassembly.memory());
    }
    // A pass at a depth that fits then completes it.
    let shallow = Parameters::derive(&Link {
        mtu: 1_500,
        rate: 900_000_000,
        repair: 0.05,
        burst: Duration::ZERO,
        memory: 4 << 20,
    });
    for (now, datagram) in transmit(&shallow.unwrap(), 2, &bytes, 10_000) {
        high.receive(now + Duration::from_secs(10), &datagram);
    }
    assert!(high.data == bytes);
}

/// A datagram decrypted into its place, and one that is opened first, end the same; forged ones change nothing, whichever place
/// they name and whenever they come.
#[test]
fn where_a_datagram_is_opened_makes_no_difference() {
    let (mut forged, mut repeated) = (0, 0);
    for seed in 1..=20 {
        let mut random = rng(seed);
        let bytes = data(200_000 + random() as usize % 200_000);
        let mut wire: Vec<Vec<u8>> = Vec::new();
        for (_, datagram) in transmit(&parameters(0.2, 0), 1, &bytes, 0) {
            // Bytes of the payload, the tag, and of the header where it stays one.
            let mut other = datagram.clone();
            let at = [19, 20, 34, crate::limits::HEADER_LEN, datagram.len() - 1][random() as usize % 5];
            other[at] ^= 1 << (random() % 8);
            match random() % 12 {
                0 => {}
                1 => wire.extend([datagram.clone(), datagram]),
                2 => wire.extend([other, datagram]),
                3 => wire.extend([datagram, other]),
                _ => wire.push(datagram),
            }
        }
        for _ in 0..wire.len() / 4 {
            let (a, b) = (random() as usize % wire.len(), random() as usize % wire.len());
            wire.swap(a, b);
        }
        let (mut directly, mut opened) = (High::new(bytes.len(), 1 << 30), High::new(bytes.len(), 1 << 30));
        opened.opens_first = true;
        for (n, datagram) in wire.iter().enumerate() {
            directly.receive(Time(n as u64), datagram);
            opened.receive(Time(n as u64), datagram);
            assert_eq!(directly.drops, opened.drops, "seed {seed}, datagram {n}");
            assert_eq!(directly.reassembly.memory(), opened.reassembly.memory());
        }
        forged += directly.drops.get(DropReason::Tag);
        repeated += directly.drops.get(DropReason::Duplicate) + directly.drops.get(DropReason::Surplus);
        assert!(directly.data == opened.data && directly.stored == opened.stored, "seed {seed}");
        assert!(directly.data == bytes, "seed {seed}");
    }
    assert!(forged > 100 && repeated > 100, "{forged} forged, {repeated} repeated");
}

/// A disk that is too slow: nothing is kept. Blocks whose turn on the wire it is must not push one another out.
#[test]
fn what_nobody_has_time_to_keep_makes_no_room() {
    let oti = crate::partition::Oti::new(16 * 4 * 64, 64, 4).unwrap();
    let block = Buffers::block_bytes(4, &oti);
    // An eighth is left for the bundles of other keys.
    let most = (4 * block + super::buffers::OBJECT_OVERHEAD).div_ceil(7) * 8 + 8;
    let mut reassembly = Reassembly::new(limits(most));
    let (mut counter, mut dropped) = (0, 0);
    for (esi, sbn) in (0..4).flat_map(|esi| (0..8).map(move |sbn| (esi, sbn))) {
        let symbol = Symbol { bundle: BundleId(1), kind: ObjectKind::Data, sbn, esi, oti };
        let header = Header { sealed: true, session: SessionId(1), counter, content: Content::Symbol(symbol) };
        counter += 1;
        let mut want = |_: &Symbol| Wanted::Yes { have: BlockSet::new(), parked: Vec::new(), origin: Origin::Signed };
        match reassembly.handle_with(Time(counter), &header, &[esi as u8; 64], &mut want) {
            Ok(()) => {}
            Err(reason) => {
                assert_eq!(reason, DropReason::Memory);
                dropped += 1;
            }
        }
        assert!(reassembly.memory() <= most);
    }
    assert_eq!(std::iter::from_fn(|| reassembly.poll_block()).count(), 4, "as many as there is room for");
    assert_eq!(reassembly.poll_parked().map(|block| block.received()), Some(1));
    assert!(reassembly.poll_parked().is_none() && dropped > 0);
}

#[test]
fn parked_symbols_count_when_more_arrive() {
    let bytes = data(20_000_000);
    let parameters = parameters(0.05, 1);
    let mut random = rng(4);
    let mut high = High::new(bytes.len(), 12 * 256 * 1_408);
    high.keep = true;
    // Each pass alone loses more than its repair mends; together they suffice, though memory never held them all.
    for (session, first_esi) in [(1, 0), (2, parameters.esis_per_pass())] {
        for (now, datagram) in transmit(&parameters, session, &bytes, first_esi) {
            if random() % 100 >= 30 {
                high.receive(now + Duration::from_secs(session * 10), &datagram);
            }
        }
        assert_eq!(high.data == bytes, session == 2);
    }
    assert!(high.kept.is_empty(), "{}", high.kept.len());
}

#[test]
fn an_unwanted_object_takes_no_memory_and_is_asked_about_again() {
    let sent = transmit(&parameters(0.05, 10), 1, &data(100_000), 0);
    let mut opener = Opener::new(Some(KEY));
    let mut reassembly = Reassembly::new(limits(1 << 20));
    let mut asked = 0;
    for (now, datagram) in &sent {
        let mut bytes = datagram.clone();
        let (header, payload) = opener.open(&mut bytes).unwrap();
        let mut want = |_: &Symbol| {
            asked += 1;
            Wanted::No(DropReason::Done)
        };
        assert_eq!(reassembly.handle_with(*now, &header, payload, &mut want), Err(DropReason::Done));
    }
    assert_eq!((asked, reassembly.memory()), (3, 3 * super::buffers::OBJECT_OVERHEAD));
    reassembly.handle_timeout(sent[sent.len() - 1].0 + Duration::from_secs(30));
    assert_eq!(reassembly.usage(), Usage::default());
}

#[test]
fn symbols_needed_beyond_k_are_few() {
    let plans = Plans::new();
    let (k, size, blocks) = (64_u16, 64_u16, 400_u32);
    let source = data(usize::from(k) * usize::from(size));
    let mut extra = 0;
    for block in 0..blocks {
        let mut repair = Vec::new();
        crate::fec::encode(&plans, &source, size, 64 + block * 100, 80, &mut repair).unwrap();
        let mut needed = 0;
        for count in usize::from(k).. {
            let mut out = vec![0; source.len()];
            let symbols = (64 + block * 100..).zip(repair.chunks(64)).take(count);
            if crate::fec::decode(&plans, &mut out, size, |_| false, symbols).is_ok() {
                assert!(out == source);
                break;
            }
            needed += 1;
        }
        extra += needed;
    }
    assert!(f64::from(extra) / f64::from(blocks) < 0.1, "{extra} of {blocks}");
}

/// A reassembly of one object, two blocks of four symbols, and symbols put into it one by one.
struct Parking(Reassembly, u64);

impl Parking {
    fn new() -> Self {
        Self(Reassembly::new(limits(1 << 20)), 0)
    }

    fn put(&mut self, sbn: u32, esi: u32, kept: &[(u32, u32)]) {
        let oti = crate::partition::Oti::new(8 * 64, 64, 4).unwrap();
        let symbol = Symbol { bundle: BundleId(1), kind: ObjectKind::Data, sbn, esi, oti };
        let content = Content::Symbol(symbol);
        let header = Header { sealed: true, session: SessionId(1), counter: self.1, content };
        self.1 += 1;
        let mut want =
            |_: &Symbol| Wanted::Yes { have: BlockSet::new(), parked: kept.to_vec(), origin: Origin::Signed };
        self.0.handle_with(Time(self.1), &header, &[esi as u8; 64], &mut want).unwrap();
    }

    fn park(&mut self) -> ReceivedBlock {
        self.0.park_all();
        self.0.poll_parked().unwrap()
    }

    /// The block comes out, and is whole with what was kept of it.
    fn assert_whole(&mut self, sbn: u32, kept: &[u32]) {
        let mut block = self.0.poll_block().expect("it is complete");
        assert!(block.sbn() == sbn && block.has_parked());
        kept.iter().for_each(|&esi| assert!(block.add(esi, &[esi as u8; 64])));
        assert!(block.is_whole());
        assert!(block.data().chunks(64).enumerate().all(|(esi, symbol)| symbol == [esi as u8; 64]));
        self.0.stored(block);
        assert_eq!((self.0.usage().open_blocks, self.0.memory()), (0, super::buffers::OBJECT_OVERHEAD));
    }
}

#[test]
fn a_block_whose_last_symbol_comes_while_it_is_being_parked_is_complete() {
    let mut high = Parking::new();
    high.put(0, 0, &[]);
    high.put(0, 1, &[]);
    let parked = high.park();
    high.put(0, 2, &[]);
    high.put(0, 3, &[]);
    assert!(high.0.poll_block().is_none(), "nobody knows yet how many are kept");
    high.0.parked(Time::ZERO, parked, 2);
    high.assert_whole(0, &[0, 1]);
}

#[test]
fn a_block_parked_in_parts_that_suffice_is_complete() {
    let mut high = Parking::new();
    high.put(0, 0, &[]);
    high.put(0, 1, &[]);
    let first = high.park();
    high.put(0, 2, &[]);
    high.put(0, 3, &[]);
    let second = high.park();
    high.0.parked(Time::ZERO, first, 2);
    assert!(high.0.poll_block().is_none());
    high.0.parked(Time::ZERO, second, 4);
    high.assert_whole(0, &[0, 1, 2, 3]);
}

#[test]
fn a_block_that_was_kept_complete_needs_no_symbol_after_a_restart() {
    let mut high = Parking::new();
    high.put(1, 2, &[(0, 4), (1, 2)]);
    high.0.park_all();
    let other = high.0.poll_parked().unwrap();
    high.0.recycle(other);
    high.assert_whole(0, &[0, 1, 2, 3]);
}

mod asked;
mod foreign;
mod hostile;
mod margin;
