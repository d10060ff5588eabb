//! Going on after a kill: what the run before this one had in memory.

use std::path::Path;

use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::receive::ReceivedBlock;

use crate::lasting::{self, Lasting};
use crate::sink::{Sink, Want};

/// Takes up the blocks that a run before this one had in memory when it was killed: those that are complete are stored, the
/// symbols of the others kept as if they had been parked.
pub(super) fn go_on(path: &Path, boot: [u8; 16], plans: &Plans, sink: &dyn Sink) {
    let (mut blocks, mut symbols) = (0_u32, 0);
    let left = lasting::left_behind(path, boot, &mut |block| {
        let received = block.received();
        if take_up(block, plans, sink) {
            blocks += 1;
            symbols += received;
        }
    });
    match left {
        Ok(()) if blocks > 0 => tracing::info!(blocks, symbols, "going on with blocks that were under way"),
        Ok(()) => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "blocks that were under way are lost"),
    }
}

/// Stores a block of an earlier run, or keeps its symbols. False: it is not wanted, or stored already.
pub fn take_up(mut block: ReceivedBlock, plans: &Plans, sink: &dyn Sink) -> bool {
    let (bundle, kind, oti, sbn) = (block.bundle(), block.kind(), block.oti(), block.sbn());
    match sink.want(bundle, kind, &oti) {
        Want::Yes { have, .. } if !have.contains(sbn) => {}
        _ => return false,
    }
    sink.unpark(&mut block);
    // Signed objects have to count.
    let complete = block.received() >= u32::from(block.symbols()) && block.decode(plans).is_ok();
    if !complete || sink.block(bundle, kind, &oti, sbn, block.data()).is_err() {
        sink.park(&block);
    }
    true
}

pub(super) fn lasting_memory(path: &Path, boot: [u8; 16], bytes: u64) -> Option<Lasting> {
    let memory = Lasting::create(path, boot, bytes);
    if let Err(error) = &memory {
        tracing::info!(path = %path.display(), %error, "if the daemon is killed, blocks under way are lost");
    }
    memory.ok()
}
