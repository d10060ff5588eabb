use std::collections::HashMap;

use super::*;
use crate::id::BundleId;
use crate::partition::Oti;
use crate::wire::ObjectKind;

const SIZE: usize = 64;

fn block(bundle: u64, sbn: u32, symbols: usize, repair: usize, deferred: u32) -> Block {
    let oti = Oti::new(1 << 30, SIZE as u16, 256).unwrap();
    let symbol = Symbol { bundle: BundleId(bundle), kind: ObjectKind::Data, sbn, esi: 0, oti };
    Block {
        symbol,
        source: vec![sbn as u8; symbols * SIZE],
        repair: vec![0xff; repair * SIZE],
        deferred,
        express: false,
        repair_esi: symbols as u32,
    }
}

/// Drains the schedule, a symbol a microsecond; returns (time, bundle, sbn, esi).
fn drain(schedule: &mut Schedule, mut now: Time) -> Vec<(u64, u64, u32, u32)> {
    let mut sent = Vec::new();
    loop {
        let got = schedule.next(now, None, |s, _| sent.push((now.0, s.bundle.0, s.sbn, s.esi)));
        now = match (got, schedule.next_due()) {
            (true, _) => Time(now.0 + 1_000),
            (false, Some(due)) => due.max(now),
            (false, None) => return sent,
        };
    }
}

#[test]
fn every_symbol_goes_once_and_buffers_come_back() {
    let mut schedule = Schedule::new(Duration::from_micros(50));
    let id =
        schedule.open(StreamShape { priority: 0, blocks: 20, block_symbols: 12, depth: 5, symbol_size: SIZE as u16 });
    for sbn in 0..20 {
        schedule.push(id, block(1, sbn, 10, 4, 2));
    }
    schedule.close(id);
    assert_eq!(schedule.held(), 20);
    let sent = drain(&mut schedule, Time::ZERO);
    let mut count: HashMap<(u32, u32), usize> = HashMap::new();
    for (_, _, sbn, esi) in &sent {
        *count.entry((*sbn, *esi)).or_default() += 1;
    }
    assert_eq!(count.len(), 20 * 14);
    assert!(count.values().all(|&n| n == 1));
    assert_eq!(std::iter::from_fn(|| schedule.poll_spent()).count(), 20);
    assert_eq!((schedule.held(), schedule.is_open(id)), (0, false));
}

#[test]
fn no_burst_takes_more_of_a_block_than_the_edge_says() {
    for (blocks, n, depth, burst) in [
        (1, 10, 5, 20),
        (3, 12, 5, 20),
        (5, 12, 5, 24),
        (40, 12, 5, 20),
        (40, 30, 7, 100),
        (9, 10, 20, 60),
        (200, 269, 61, 732),
    ] {
        let edge = Edge { blocks, block_symbols: n, depth, burst };
        let mut schedule = Schedule::new(Duration::ZERO);
        let id = schedule.open(StreamShape { priority: 0, blocks, block_symbols: n, depth, symbol_size: SIZE as u16 });
        for sbn in 0..blocks as u32 {
            schedule.push(id, block(1, sbn, n as usize, 0, 0));
        }
        schedule.close(id);
        let sent = drain(&mut schedule, Time::ZERO);
        assert_eq!(sent.len() as u64, blocks * u64::from(n));
        let mut worst: HashMap<u32, u32> = HashMap::new();
        let mut inside: HashMap<u32, u32> = HashMap::new();
        for (i, (_, _, sbn, _)) in sent.iter().enumerate() {
            let now = inside.entry(*sbn).or_default();
            *now += 1;
            let most = worst.entry(*sbn).or_default();
            *most = (*most).max(*now);
            if i + 1 >= burst as usize {
                *inside.get_mut(&sent[i + 1 - burst as usize].2).unwrap() -= 1;
            }
        }
        for (&sbn, &most) in &worst {
            let said = edge.exposure(u64::from(sbn));
            assert!(most <= said, "{blocks} blocks, N={n}, D={depth}: block {sbn} loses {most}, said {said}");
            assert!(said <= most + 3, "{blocks} blocks, N={n}, D={depth}: block {sbn} loses {most}, said {said}");
        }
    }
}

#[test]
fn deferred_symbols_wait_out_the_burst() {
    let mut schedule = Schedule::new(Duration::from_millis(10));
    let id =
        schedule.open(StreamShape { priority: 0, blocks: 1, block_symbols: 5, depth: 4, symbol_size: SIZE as u16 });
    schedule.push(id, block(1, 0, 3, 6, 4));
    schedule.close(id);
    let sent = drain(&mut schedule, Time::ZERO);
    assert_eq!(sent.iter().map(|s| s.3).collect::<Vec<_>>(), (0..9).collect::<Vec<_>>());
    assert!(sent[5].0 - sent[4].0 >= 10_000_000);
}

#[test]
fn the_ring_waits_for_a_late_block() {
    let mut schedule = Schedule::new(Duration::ZERO);
    let id =
        schedule.open(StreamShape { priority: 0, blocks: 4, block_symbols: 8, depth: 4, symbol_size: SIZE as u16 });
    schedule.push(id, block(1, 0, 8, 0, 0));
    let first = drain(&mut schedule, Time::ZERO);
    assert_eq!(first.len(), 2, "block 0 alone for N/D rounds, then it waits for block 1");
    for sbn in 1..4 {
        schedule.push(id, block(1, sbn, 8, 0, 0));
    }
    schedule.close(id);
    assert_eq!(drain(&mut schedule, Time::ZERO).len(), 30);
}

#[test]
fn priority_goes_first_and_equals_take_turns() {
    let mut schedule = Schedule::new(Duration::ZERO);
    let shape = StreamShape { priority: 0, blocks: 1, block_symbols: 8, depth: 1, symbol_size: SIZE as u16 };
    let ids = [schedule.open(shape), schedule.open(shape), schedule.open(StreamShape { priority: 5, ..shape })];
    for (bundle, id) in (0..).zip(ids) {
        schedule.push(id, block(bundle, 0, 8, 0, 0));
        schedule.close(id);
    }
    let order: Vec<u64> = drain(&mut schedule, Time::ZERO).iter().map(|s| s.1).collect();
    assert!(order[..8].iter().all(|&b| b == 2), "{order:?}");
    assert!(order[8..].chunks(2).all(|pair| pair[0] != pair[1]), "{order:?}");
}

#[test]
fn an_aborted_stream_gives_its_buffers_back() {
    let mut schedule = Schedule::new(Duration::ZERO);
    let id =
        schedule.open(StreamShape { priority: 0, blocks: 9, block_symbols: 8, depth: 2, symbol_size: SIZE as u16 });
    for sbn in 0..3 {
        schedule.push(id, block(1, sbn, 8, 0, 0));
    }
    for _ in 0..5 {
        assert!(schedule.next(Time::ZERO, None, |_, _| {}));
    }
    schedule.abort(id);
    schedule.push(id, block(1, 3, 8, 0, 0));
    assert!(!schedule.next(Time::ZERO, None, |_, _| {}));
    assert_eq!(std::iter::from_fn(|| schedule.poll_spent()).count(), 4);
    assert_eq!(schedule.held(), 0);
}
