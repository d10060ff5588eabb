//! The hot inner parts, one core: `cargo bench -p checkvalve-protocol`. Throughput is in bytes of source data.

#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Duration;

use checkvalve_protocol::fec::{self, Plans};
use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::partition::BlockSet;
use checkvalve_protocol::receive::{Limits, Reassembly, Wanted};
use checkvalve_protocol::seal::{Opener, Sealer};
use checkvalve_protocol::time::Time;
use checkvalve_protocol::transmit::{
    Batch, Encoder, Link, Parameters, Selection, Transmit, Transmitter, Work, WorkShape,
};
use checkvalve_protocol::wire::{Content, Header, ObjectKind, Symbol};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const KEY: [u8; 32] = [9; 32];
/// T and K of the two usual MTUs, and K on either side.
const SHAPES: [(u16, u16); 5] = [(1_408, 128), (1_408, 256), (1_408, 512), (8_896, 64), (8_896, 128)];

fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode, 5 % repair");
    let plans = Plans::new();
    for (size, symbols) in SHAPES {
        let source = bytes(usize::from(size) * usize::from(symbols));
        let repair = u32::from(symbols).div_ceil(20);
        let mut out = Vec::new();
        group.throughput(Throughput::Bytes(source.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("T={size} K={symbols}")), |b| {
            b.iter(|| {
                out.clear();
                fec::encode(&plans, black_box(&source), size, u32::from(symbols), repair, &mut out).unwrap();
            });
        });
    }
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode, 3 % of source symbols lost");
    let plans = Plans::new();
    for (size, symbols) in SHAPES {
        let source = bytes(usize::from(size) * usize::from(symbols));
        let lost = |esi: u16| esi % 33 == 7;
        let count = (0..symbols).filter(|&esi| lost(esi)).count() as u32;
        let mut repair = Vec::new();
        fec::encode(&plans, &source, size, u32::from(symbols), count + 2, &mut repair).unwrap();
        let mut block = source.clone();
        group.throughput(Throughput::Bytes(source.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("T={size} K={symbols}")), |b| {
            b.iter(|| {
                let received = (u32::from(symbols)..).zip(repair.chunks(usize::from(size)));
                fec::decode(&plans, black_box(&mut block), size, |esi| !lost(esi), received).unwrap();
            });
        });
    }
}

fn seal(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal and open");
    let sealer = Sealer::new(Some(&KEY), SessionId(1));
    for size in [1_408, 8_896] {
        let header = Header { sealed: true, session: SessionId(1), counter: 1, content: Content::Beacon };
        let payload = bytes(size);
        let mut out = vec![0; sealer.datagram_len(size)];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("seal", size), |b| {
            b.iter(|| sealer.seal(black_box(&header), &payload, &mut out));
        });
        sealer.seal(&header, &payload, &mut out);
        let mut opener = Opener::new(Some(KEY));
        group.bench_function(BenchmarkId::new("open", size), |b| {
            b.iter_batched_ref(|| out.clone(), |d| opener.open(d).map(|_| ()).unwrap(), BatchSize::SmallInput);
        });
        // What somebody without the link key sends costs no more than the genuine.
        let forge = |mut datagram: Vec<u8>| {
            *datagram.last_mut().unwrap() ^= 1;
            datagram
        };
        let known = forge(out.clone());
        group.bench_function(BenchmarkId::new("open, forged, known session", size), |b| {
            b.iter_batched_ref(|| known.clone(), |d| opener.open(d).map(|_| ()).unwrap_err(), BatchSize::SmallInput);
        });
        let mut session = 1;
        let mut unknown = || {
            session += 1;
            let mut out = vec![0; sealer.datagram_len(size)];
            let sealer = Sealer::new(Some(&KEY), SessionId(session));
            sealer.seal(&Header { session: SessionId(session), ..header }, &payload, &mut out);
            forge(out)
        };
        group.bench_function(BenchmarkId::new("open, forged, unknown sessions", size), |b| {
            b.iter_batched_ref(&mut unknown, |d| opener.open(d).map(|_| ()).unwrap_err(), BatchSize::SmallInput);
        });
    }
}

fn hash(c: &mut Criterion) {
    let mut group = c.benchmark_group("BLAKE3");
    let block = bytes(360_448);
    group.throughput(Throughput::Bytes(block.len() as u64));
    group.bench_function("a block of 360 KB", |b| b.iter(|| blake3::hash(black_box(&block))));
}

/// A 16 MiB bundle's blocks, encoded, through schedule and batches; and the opened datagrams into blocks.
fn sessions(c: &mut Criterion) {
    let mut group = c.benchmark_group("sessions");
    let burst = Duration::from_millis(1);
    let link = Link { mtu: 1_500, rate: 10_000_000_000, repair: 0.05, burst, memory: 64 << 20 };
    let parameters = Parameters::derive(&link).unwrap();
    let data = bytes(16 << 20);
    let sealer = Sealer::new(Some(&KEY), SessionId(1));
    let plans = Plans::new();
    let transmitter = || {
        let mut transmitter = Transmitter::new(&sealer, &parameters, Duration::from_secs(1));
        let shape = WorkShape {
            bundle: BundleId(1),
            announce_len: 300,
            data_len: data.len() as u64,
            selection: Selection::All,
            first_esi: 0,
        };
        let mut work = Work::new(&parameters, &shape).unwrap();
        let id = transmitter.schedule().open(work.stream(0));
        while let Some(task) = work.next_task() {
            let mut source = match task.symbol.kind {
                ObjectKind::Data => data[task.offset as usize..][..task.len].to_vec(),
                _ => vec![0; task.len],
            };
            source.resize(Encoder::padded_len(&task), 0);
            let (block, _) = Encoder::new(&plans).encode(&task, source, Vec::new()).unwrap();
            transmitter.schedule().push(id, block);
        }
        transmitter.schedule().close(id);
        transmitter
    };
    let drain = |transmitter: &mut Transmitter, seal: bool, take: &mut dyn FnMut(&Batch)| {
        let (mut now, mut batch) = (Time(1), Batch::new());
        loop {
            match transmitter.poll_transmit(now, &mut batch, seal.then_some(&sealer)) {
                Transmit::Ready => take(&batch),
                Transmit::Wait(at) => now = at,
                Transmit::Idle => return,
            }
        }
    };
    group.throughput(Throughput::Bytes(data.len() as u64));
    for (name, seal) in [("schedule and batch", false), ("schedule, batch and seal", true)] {
        group.bench_function(name, |b| {
            b.iter_batched_ref(transmitter, |t| drain(t, seal, &mut |_| {}), BatchSize::PerIteration);
        });
    }
    let mut opened: Vec<(Header, Vec<u8>)> = Vec::new();
    let mut opener = Opener::new(Some(KEY));
    drain(&mut transmitter(), true, &mut |batch| {
        for datagram in batch.datagrams() {
            let mut datagram = datagram.to_vec();
            let (header, payload) = opener.open(&mut datagram).unwrap();
            opened.push((header, payload.to_vec()));
        }
    });
    group.bench_function("reassemble without loss", |b| {
        let limits = Limits { objects: 16, idle: Duration::from_secs(5), ..Limits::new(64 << 20) };
        let fresh = || Reassembly::new(limits);
        let run = |r: &mut Reassembly| {
            let want = |_: &Symbol| Wanted::Yes {
                have: BlockSet::new(),
                parked: Vec::new(),
                origin: checkvalve_protocol::receive::Origin::Signed,
            };
            for (header, payload) in &opened {
                let _ = r.handle(Time(1), header, payload);
                r.answer_all(Time(1), want);
                while let Some(block) = r.poll_complete() {
                    r.stored(block);
                }
            }
        };
        b.iter_batched_ref(fresh, run, BatchSize::PerIteration);
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = encode, decode, seal, hash, sessions
}
criterion_main!(benches);
