//! From the kernel into blocks: a thread for each lane.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use checkvalve_protocol::limits::HEADER_LEN;
use checkvalve_protocol::receive::{DropReason, Drops, Wanted};
use checkvalve_protocol::seal::Opener;
use checkvalve_protocol::wire::{Header, Symbol};

use super::{Shared, unix_ms};
use crate::link::{Link, Received};
use crate::sink::{RefuseReason, Sink, Want};

/// How often a thread that waits for those that store looks at the kernel's buffer: one of the default size takes ten times
/// as long to fill at 10 Gbit/s.
const LOOK: Duration = Duration::from_millis(2);
/// Datagrams taken under one lock, which those that store wait for without sleeping if it is short.
const AT_ONCE: usize = 16;

/// Receives until the pipeline stops.
pub(super) fn run(shared: &Shared, lane: usize, mut link: Link, opener: Opener) {
    shared.cores.receives(lane);
    let mut taking = Taking { opener, opened: Vec::with_capacity(AT_ONCE), drops: Drops::default() };
    while !shared.stopping() {
        let_work(shared, &link);
        shared.cores.is_at(lane);
        let received = link.receive(|mut group| take_group(shared, &mut taking, &mut group));
        if let Some(count) = shared.counts.kernel.get(lane) {
            count.store(u64::from(link.kernel_drops()), Ordering::Relaxed);
        }
        if let Err(error) = received {
            tracing::error!(lane, %error, "receive");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Rests while those that store are late, and the kernel's buffer is not half full.
fn let_work(shared: &Shared, link: &Link) {
    let mut intake = shared.lock();
    while intake.is_pressed() && !link.is_half_full() {
        intake = shared.room.wait_timeout(intake, LOOK).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// What a thread that receives keeps from group to group.
struct Taking {
    opener: Opener,
    /// Header of each datagram that was opened before it was placed, and where its payload lies.
    opened: Vec<(Header, Range<usize>)>,
    drops: Drops,
}

/// Takes the datagrams of a group. A lane that is alone decrypts symbols into their blocks, under the lock; where there are
/// several, they decrypt side by side what they got, and copy it under the lock.
fn take_group(shared: &Shared, taking: &mut Taking, group: &mut Received<'_>) {
    let len = group.bytes.len();
    // An empty datagram is one too.
    let count = len.div_ceil(group.segment).max(1);
    shared.counts.datagrams.fetch_add(count as u64, Ordering::Relaxed);
    shared.counts.bytes.fetch_add(len as u64, Ordering::Relaxed);
    let Taking { opener, opened, drops } = taking;
    let now = shared.now();
    let mut authentic = false;
    for first in (0..count).step_by(AT_ONCE) {
        let some = first..(first + AT_ONCE).min(count);
        let ranges = some.map(|n| n * group.segment..((n + 1) * group.segment).min(len));
        let mut intake;
        if shared.counts.kernel.len() == 1 {
            intake = shared.lock();
            for range in ranges {
                let Some(datagram) = group.bytes.get_mut(range) else { continue };
                authentic |= intake.handle_datagram(now, opener, datagram);
            }
        } else {
            for range in ranges {
                let start = range.start + HEADER_LEN;
                match group.bytes.get_mut(range).map(|datagram| opener.open(datagram)) {
                    Some(Ok((header, payload))) => opened.push((header, start..start + payload.len())),
                    Some(Err(error)) => drops.add(error.into()),
                    None => {}
                }
            }
            authentic |= !opened.is_empty();
            intake = shared.lock();
            for (header, range) in opened.drain(..) {
                intake.handle_opened(now, &header, group.bytes.get(range).unwrap_or_default());
            }
            intake.handle_drops(&std::mem::take(drops));
        }
        shared.unlock(intake);
    }
    if authentic {
        shared.counts.last_heard_ms.store(unix_ms(), Ordering::Relaxed);
    }
}

/// The sink's answer about an object.
pub fn ask(sink: &dyn Sink, symbol: &Symbol) -> Wanted {
    match sink.want(symbol.bundle, symbol.kind, &symbol.oti) {
        Want::Yes { have, origin } => {
            let parked = sink.parked(symbol.bundle, symbol.kind, &symbol.oti);
            Wanted::Yes { have, parked, origin }
        }
        Want::Done => Wanted::No(DropReason::Done),
        Want::Refuse(RefuseReason::NoRoom) => Wanted::No(DropReason::Room),
        Want::Refuse(RefuseReason::Length) => Wanted::No(DropReason::Refused),
        Want::Refuse(RefuseReason::Signer) => Wanted::No(DropReason::Signer),
    }
}
