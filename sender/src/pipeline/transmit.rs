//! A lane: batches from the transmitter, sealed, to the kernel.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use checkvalve_protocol::beacon::{Beacon, OnWire};
use checkvalve_protocol::transmit::{Batch, Transmit};

use super::{BEACON_INTERVAL, Shared, State, unix_ms};
use crate::link::Sent;

/// Sends until the pipeline stops.
pub(super) fn run(shared: &Shared, lane: usize) {
    let Some(link) = shared.links.get(lane) else { return };
    let mut batch = Batch::new();
    // Nobody but the producer waits while a lane that is alone seals, and that for a few microseconds.
    let alone = (shared.links.len() == 1).then_some(&shared.sealer);
    while !shared.stopping() {
        let now = shared.now();
        let mut state = shared.lock();
        if now >= state.next_beacon {
            state.next_beacon = now + BEACON_INTERVAL;
            push_beacon(shared, &mut state);
            // It may be another lane's.
            shared.work.notify_all();
        }
        let next = state.transmitter.poll_lane(lane, now, &mut batch, alone);
        if state.collect_spent() && state.wakes_producer() {
            shared.room.notify_one();
        }
        let until = match next {
            Transmit::Ready => {
                drop(state);
                batch.seal(&shared.sealer);
                if link.send(&batch, &shared.stop) == Sent::All {
                    shared.datagrams.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    shared.bytes.fetch_add(batch.wire_bytes() as u64, Ordering::Relaxed);
                }
                continue;
            }
            Transmit::Wait(at) => at,
            Transmit::Idle => {
                if !state.starved {
                    state.starved = true;
                    shared.room.notify_one();
                }
                state.next_beacon
            }
        };
        let wait = until.min(state.next_beacon).since(shared.now()).min(Duration::from_millis(200));
        drop(shared.work.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner));
    }
}

fn push_beacon(shared: &Shared, state: &mut State) {
    let on_wire = state.running.values().max_by_key(|r| (r.priority, std::cmp::Reverse(r.sequence))).map(|r| {
        let count = |n: &std::sync::atomic::AtomicU64| u32::try_from(n.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        OnWire {
            bundle: r.bundle,
            channel: r.channel.clone(),
            sequence: r.sequence,
            pass: r.pass,
            passes: r.passes,
            blocks: count(&r.progress.blocks_total),
            blocks_sent: count(&r.progress.blocks_sent),
        }
    });
    let channel = match state.channels.len() {
        0 => None,
        count => {
            state.next_channel = (state.next_channel + 1) % count;
            state.channels.get(state.next_channel).cloned()
        }
    };
    state.beacons = state.beacons.saturating_add(1);
    let beacon = Beacon {
        epoch: shared.config.epoch,
        session_number: shared.config.session_number,
        session: shared.sealer.session(),
        counter: state.beacons,
        clock_ms: unix_ms(),
        rate_bits: shared.config.parameters.rate(),
        datagrams: state.transmitter.datagrams(),
        on_wire,
        channel,
    };
    let limit = usize::from(shared.config.parameters.symbol_size());
    // Takes some 30 microseconds, in which no lane may send: the count of datagrams would be wrong.
    state.transmitter.push_beacon(beacon.sign(&shared.signing, limit));
}
