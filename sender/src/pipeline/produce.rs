//! Reading and hashing: from jobs to blocks.

use std::sync::PoisonError;

use checkvalve_protocol::transmit::feed::NextRead;

use super::{LOOK, Shared, encode};

/// Reads until the pipeline stops.
pub(super) fn run(shared: &Shared) {
    while !shared.stopping() {
        report(shared);
        let mut feed = shared.lock();
        match feed.poll_read() {
            NextRead::Read(mut read) => {
                drop(feed);
                let result = read.fill(|job, reader, bytes, offset| job.read(&shared.disk, reader, bytes, offset));
                let mut feed = shared.lock();
                feed.handle_read(read, result);
                if shared.encoders > 0 {
                    shared.unlock(feed);
                } else {
                    // While it is in the cache.
                    let read = feed.poll_encode();
                    shared.unlock(feed);
                    read.into_iter().for_each(|read| encode::encode(shared, read));
                }
            }
            NextRead::Conclude(job) => {
                drop(feed);
                let concluded = job.conclude(&shared.signing, |job, reader| job.finish(&shared.disk, reader));
                let mut feed = shared.lock();
                feed.handle_concluded(concluded);
                shared.unlock(feed);
            }
            NextRead::Wait if feed.wants_reader() => {}
            NextRead::Wait => drop(shared.room.wait_timeout(feed, LOOK).unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

/// Tells who submitted jobs how these ended.
pub(super) fn report(shared: &Shared) {
    loop {
        let Some((bundle, how)) = shared.lock().poll_finished() else { return };
        (shared.when_done)(bundle, how);
    }
}
