//! A lane: batches from the feed, sealed, to the kernel.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use checkvalve_protocol::transmit::{Batch, Transmit};

use super::{LOOK, Shared, unix_ms};
use crate::link::Sent;

/// Sends until the pipeline stops.
pub(super) fn run(shared: &Shared, lane: usize) {
    let Some(link) = shared.links.get(lane) else { return };
    let mut batch = Batch::new();
    // With only one lane, nobody but the producer waits while it seals, and only for a few microseconds.
    let alone = (shared.links.len() == 1).then_some(&shared.sealer);
    while !shared.stopping() {
        let mut feed = shared.lock();
        match feed.poll_transmit(lane, shared.now(), unix_ms(), &mut batch, alone) {
            Transmit::Ready => {
                shared.unlock(feed);
                batch.seal(&shared.sealer);
                if link.send(&batch, &shared.stop) == Sent::All {
                    shared.datagrams.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    shared.bytes.fetch_add(batch.wire_bytes() as u64, Ordering::Relaxed);
                }
            }
            Transmit::Wait(at) => {
                let wakes = feed.poll_wakes();
                let wait = at.since(shared.now()).min(LOOK);
                shared.wake(wakes);
                drop(shared.work.wait_timeout(feed, wait).unwrap_or_else(PoisonError::into_inner));
            }
            Transmit::Idle => unreachable!("the feed says when to come again"),
        }
    }
}
