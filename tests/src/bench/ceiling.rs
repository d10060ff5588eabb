//! Plain blasts, with no coding at all: `sendmmsg` on one side, `recvmmsg` on the other, one thread each; as they
//! are, or with the kernel's segmentation (`UDP_SEGMENT`, `UDP_GRO`).

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt};

use super::noise::watched;
use super::report::{Figure, Section};
use super::wire::{self, Offload};
use super::{Plan, gbits, payload};
use crate::link::Link;

/// Datagrams, or super-datagrams, in one system call.
const BATCH: usize = 64;
const SUPER_BATCH: usize = 8;
/// The receiver's kernel buffer, as large as the daemon's.
const BUFFER: usize = 32 << 20;

/// How a blast is sent and received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each datagram by itself.
    Plain,
    /// Super-datagrams (`UDP_SEGMENT`, `UDP_GRO`).
    Segmented,
}

/// What arrived of a blast.
#[derive(Clone, Copy, Debug)]
pub struct Blast {
    /// UDP payload that arrived, in Gbit/s, from the first datagram to the last.
    pub arrived: f64,
    /// The same in all.
    pub bytes: u64,
    /// Share of what was sent that did not arrive.
    pub lost: f64,
}

/// The part `ceiling`.
pub fn run(plan: &Plan) -> Section {
    let mut cells = Vec::new();
    for mtu in [1500, 9000] {
        for (kind, offload) in
            [(Kind::Plain, Offload::Kernel), (Kind::Segmented, Offload::Kernel), (Kind::Segmented, Offload::Nic)]
        {
            let name = format!("{} bytes, {}", payload(mtu), name(kind, offload));
            cells.push((wire::make(mtu, offload), mtu, kind, Figure::new(name, "Gbit/s")));
        }
    }
    let mut lost = vec![Vec::new(); cells.len()];
    for _ in 0..plan.repetitions {
        for ((link, mtu, kind, figure), lost) in cells.iter_mut().zip(&mut lost) {
            let (blast, noise) = watched(|| blast(link, *mtu, *kind, plan.blast));
            figure.add(blast.arrived, noise);
            lost.push(blast.lost);
        }
    }
    let mut section =
        Section { name: "ceiling", about: "blasts over the same link, no coding".into(), ..Section::default() };
    for ((.., mut figure), lost) in cells.into_iter().zip(lost) {
        let worst = lost.iter().copied().fold(0.0, f64::max);
        if worst > 0.01 {
            figure.note = format!("up to {:.0} % lost, since the receiving thread is the slower one", worst * 100.0);
        }
        section.figures.push(figure);
    }
    section
}

fn name(kind: Kind, offload: Offload) -> &'static str {
    match (kind, offload) {
        (Kind::Plain, _) => "sendmmsg and recvmmsg",
        (Kind::Segmented, Offload::Kernel) => "UDP_SEGMENT and UDP_GRO",
        (Kind::Segmented, Offload::Nic) => "the same, GSO off on the link, GRO on",
    }
}

/// Blasts datagrams of the largest payload that `mtu` allows for so long.
///
/// # Panics
/// When a system call fails for another reason than a full queue.
pub fn blast(link: &Link, mtu: u16, kind: Kind, duration: Duration) -> Blast {
    let payload = payload(mtu);
    let (low, high) = (link.injector(), link.recorder());
    high.set_read_timeout(Some(Duration::from_millis(100))).expect("a time limit can be set");
    setsockopt(&high, RcvBufForce, &BUFFER).expect("root sets buffers");
    let (length, batch, place) = match kind {
        Kind::Plain => (payload, BATCH, payload),
        Kind::Segmented => {
            let size = i32::try_from(payload).expect("an MTU is small");
            setsockopt(&low, UdpGsoSegment, &size).expect("Linux 4.18 or newer");
            setsockopt(&high, UdpGroSegment, &true).expect("Linux 5.0 or newer");
            // As many whole datagrams as one call of the daemons holds.
            ((65_507 / payload).min(64) * payload, SUPER_BATCH, 65_535)
        }
    };
    let stop = Arc::new(AtomicBool::new(false));
    let receiving = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || receive(&high, batch, place, &stop)
    });
    let sent = send(&low, batch, length, Instant::now() + duration);
    stop.store(true, Ordering::Relaxed);
    let (arrived, seconds) = receiving.join().expect("no panic");
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let lost = 1.0 - arrived as f64 / sent as f64;
    Blast { arrived: gbits(arrived, seconds), bytes: arrived, lost }
}

/// Returns the bytes sent.
fn send(socket: &UdpSocket, batch: usize, length: usize, end: Instant) -> u64 {
    let bytes = vec![0x5a; length];
    let slices = vec![[IoSlice::new(&bytes)]; batch];
    let addresses = vec![None::<SockaddrStorage>; batch];
    let mut headers = MultiHeaders::preallocate(batch, None);
    let mut sent = 0;
    while Instant::now() < end {
        match sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &addresses, [], MsgFlags::empty()) {
            Ok(results) => sent += results.map(|result| result.bytes as u64).sum::<u64>(),
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => panic!("sendmmsg: {error}"),
        }
    }
    sent
}

/// Returns the bytes received, and the seconds from the first to the last.
fn receive(socket: &UdpSocket, batch: usize, place: usize, stop: &AtomicBool) -> (u64, f64) {
    let mut buffers = vec![vec![0; place]; batch];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(batch, None);
    let (mut arrived, mut first, mut last) = (0, None, Instant::now());
    loop {
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None) {
            Ok(results) => {
                last = Instant::now();
                first.get_or_insert(last);
                arrived += results.map(|result| result.bytes as u64).sum::<u64>();
            }
            Err(Errno::EAGAIN) if stop.load(Ordering::Relaxed) => break,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => panic!("recvmmsg: {error}"),
        }
    }
    (arrived, first.map_or(1.0, |first| (last - first).as_secs_f64().max(1e-6)))
}
