//! Repair symbols: from blocks that have been read to blocks in the schedule.

use std::sync::PoisonError;

use checkvalve_protocol::transmit::feed::ToEncode;

use super::{LOOK, Shared};

/// How many threads encode besides `produce`. Encoding takes about as long as all else a sender does, so with one or two
/// cores a thread of its own would only move blocks from one cache to another.
pub(super) fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores <= 2 { 0 } else { (cores - 2).min(6) }
}

/// Encodes until the pipeline stops.
pub(super) fn run(shared: &Shared) {
    while !shared.stopping() {
        let mut feed = shared.lock();
        match feed.poll_encode() {
            Some(read) => {
                drop(feed);
                encode(shared, read);
            }
            None => drop(shared.read.wait_timeout(feed, LOOK).unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

/// Encodes a block and pushes it.
pub(super) fn encode(shared: &Shared, read: ToEncode) {
    let encoded = read.encode(&shared.plans);
    let mut feed = shared.lock();
    feed.handle_encoded(encoded);
    shared.unlock(feed);
}
