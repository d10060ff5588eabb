//! A plain blast: `sendmmsg` on one side, `recvmmsg` on the other, one thread each, no segmentation offload, no coding.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};

use super::gbits;
use crate::link::Link;

/// Datagrams in one system call.
const BATCH: usize = 64;

/// What arrived of a blast.
#[derive(Clone, Copy, Debug)]
pub struct Blast {
    /// Payload that arrived, in Gbit/s.
    pub arrived: f64,
    /// Share of what was sent that did not arrive.
    pub lost: f64,
}

/// Blasts datagrams of the largest payload that `mtu` allows for so long.
///
/// # Panics
/// When a system call fails for another reason than a full queue.
pub fn blast(mtu: u16, duration: Duration) -> Blast {
    let link = Link::new(mtu, true);
    let payload = usize::from(mtu) - 28;
    let (low, high) = (link.injector(), link.recorder());
    high.set_read_timeout(Some(Duration::from_millis(100))).expect("a time limit can be set");
    let stop = Arc::new(AtomicBool::new(false));
    let receiving = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || receive(&high, payload, &stop)
    });
    let started = Instant::now();
    let sent = send(&low, payload, started + duration);
    let seconds = started.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let arrived = receiving.join().expect("no panic");
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let lost = 1.0 - arrived as f64 / sent as f64;
    Blast { arrived: gbits(arrived, seconds), lost }
}

fn send(socket: &std::net::UdpSocket, payload: usize, end: Instant) -> u64 {
    let bytes = vec![0x5a; payload];
    let slices = vec![[IoSlice::new(&bytes)]; BATCH];
    let addresses = vec![None::<SockaddrStorage>; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
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

fn receive(socket: &std::net::UdpSocket, payload: usize, stop: &AtomicBool) -> u64 {
    let mut buffers = vec![vec![0; payload]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut arrived = 0;
    loop {
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None) {
            Ok(results) => arrived += results.map(|result| result.bytes as u64).sum::<u64>(),
            Err(Errno::EAGAIN) if stop.load(Ordering::Relaxed) => return arrived,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => panic!("recvmmsg: {error}"),
        }
    }
}
