//! Repair symbols: from blocks that have been read to blocks in the schedule.

use std::sync::PoisonError;
use std::time::Duration;

use checkvalve_protocol::transmit::{Encoder, StreamId, Task};

use super::Shared;

/// A block that has been read.
pub(super) struct Read {
    pub(super) stream: StreamId,
    pub(super) task: Task,
    /// Its bytes, padded.
    pub(super) source: Vec<u8>,
    /// A buffer for the repair symbols.
    pub(super) repair: Vec<u8>,
}

/// How many threads encode besides `produce`. Encoding takes about as long as all else a sender does, so with one or two
/// cores a thread of its own would only move blocks from one cache to another.
pub(super) fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores <= 2 { 0 } else { (cores - 2).min(6) }
}

/// Encodes until the pipeline stops.
pub(super) fn run(shared: &Shared) {
    while !shared.stopping() {
        let mut state = shared.lock();
        match state.read.pop_front() {
            Some(read) => {
                drop(state);
                encode(shared, read);
            }
            None => {
                let wait = Duration::from_millis(100);
                drop(shared.read.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }
}

/// Encodes a block and pushes it.
pub(super) fn encode(shared: &Shared, read: Read) {
    let Read { stream, task, source, repair } = read;
    let encoded = Encoder::new(&shared.plans).encode(&task, source, repair);
    let mut state = shared.lock();
    if let Some(running) = state.running.get_mut(&stream) {
        running.encoding = running.encoding.saturating_sub(1);
        if encoded.is_err() {
            running.held = running.held.saturating_sub(1);
        }
    }
    match encoded {
        Ok((block, back)) => {
            state.transmitter.schedule().push(stream, block);
            state.starved = false;
            state.buffers.extend(back);
        }
        Err(error) => state.faults.push((stream, error)),
    }
    state.close_if_encoded(stream);
    drop(state);
    shared.work.notify_one();
}
