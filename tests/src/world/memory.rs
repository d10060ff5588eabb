//! Memory of blocks under way that outlives the receiver's process, as `receiver/src/lasting.rs` has it on a tmpfs: after a kill it
//! is as it was at that instant, after a power cut it is gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_protocol::receive::{BlockMemory, Extent, ReceivedBlock, recover};

/// Every so many extents there is no room, and a block is on the heap.
const NO_ROOM: u64 = 5;

/// The memory, held by the machine and by the process that runs on it.
#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    taken: u64,
    in_use: usize,
    killed: bool,
    left: Vec<Vec<u8>>,
}

struct Taken(Memory, Vec<u8>);

impl Memory {
    /// From now on what the process drops is what it leaves behind.
    pub(super) fn kill(&self) {
        self.lock().killed = true;
    }

    /// Extents that are neither given back nor left behind.
    pub(super) fn in_use(&self) -> usize {
        self.lock().in_use
    }

    /// The power goes, or the process has ended by itself.
    pub(super) fn clear(&self) {
        self.lock().left.clear();
    }

    /// Gives each block that a killed process left behind, then forgets them, unless it dies in the middle.
    pub(super) fn left_behind(&self, each: &mut dyn FnMut(ReceivedBlock)) {
        self.lock().killed = false;
        let left = self.lock().left.clone();
        recover(left.iter().map(Vec::as_slice)).for_each(each);
        self.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockMemory for Memory {
    fn take(&mut self, len: usize) -> Option<Box<dyn Extent>> {
        let mut state = self.lock();
        state.taken += 1;
        let room = !state.taken.is_multiple_of(NO_ROOM);
        // Not zeros: what was there before must not matter.
        state.in_use += usize::from(room);
        room.then(|| Box::new(Taken(self.clone(), vec![0xa5; len])) as _)
    }
}

impl Extent for Taken {
    fn bytes(&self) -> &[u8] {
        &self.1
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.1
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_use -= 1;
        // Unwinding is how a simulated process dies in the middle of an operation.
        if state.killed || std::thread::panicking() {
            state.left.push(std::mem::take(&mut self.1));
        }
    }
}
