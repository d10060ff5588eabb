//! Memory for unfinished blocks that outlives the receiver's process, like that of `receiver/src/lasting.rs` on a tmpfs. A kill
//! leaves it as it was at that instant; a power cut erases it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_protocol::receive::{BlockMemory, Extent, ReceivedBlock, recover};

/// Every so many requests there is no room, so the block goes on the heap.
const NO_ROOM: u64 = 5;

/// The memory, shared by the machine and its process.
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
    /// Keeps every extent that the process drops from now on: it is left behind.
    pub(super) fn kill(&self) {
        self.lock().killed = true;
    }

    /// How many extents are neither given back nor left behind.
    pub(super) fn in_use(&self) -> usize {
        self.lock().in_use
    }

    /// Erases the memory after a power cut, or after the process has ended by itself.
    pub(super) fn clear(&self) {
        self.lock().left.clear();
    }

    /// Passes each block that a killed process left behind to `each`, then forgets them. If `each` unwinds, they stay.
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
        // Not zeros, because the old content must not matter.
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
        // A simulated process that dies in the middle of an operation unwinds.
        if state.killed || std::thread::panicking() {
            state.left.push(std::mem::take(&mut self.1));
        }
    }
}
