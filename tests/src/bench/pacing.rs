//! The part `pacing`: how exactly the sender keeps its rate, by the kernel's receive timestamps on the high side, where
//! a plain socket stands in for the receiver.

use std::fs::File;
use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use checkvalve_protocol::limits::{ETHERNET_LEN, IP_UDP_LEN};
use checkvalve_protocol::transmit::pacer::BUCKET;
use checkvalve_protocol::wire::{Content, Header};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, setsockopt};
use nix::sys::time::TimeSpec;

use super::Plan;
use super::noise::watched;
use super::report::{Figure, Section, Target};
use super::transfer::put;
use crate::pair::Pair;

const BATCH: usize = 64;
/// The window that no burst may overfill.
const WINDOW: Duration = Duration::from_millis(10);

/// One datagram that came.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// When, in ns.
    at: u64,
    /// Its length on the wire, Ethernet included.
    bytes: u64,
    counter: u64,
    is_beacon: bool,
}

/// How well a sender kept its rate.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kept {
    /// Bits per second over the whole span.
    rate: f64,
    /// Bits in the fullest window.
    window: f64,
    /// Datagrams that the socket here missed.
    missed: u64,
}

/// The part `pacing`.
pub fn run(plan: &Plan) -> Section {
    let seconds = if plan.quick { 2 } else { 5 };
    let burst = BUCKET.as_secs_f64() / WINDOW.as_secs_f64() * 100.0;
    let about = format!(
        "the sender alone over {seconds} s, mtu 1500, GSO; in % of `rate`, of which one burst (1 ms) is {burst:.0} % of 10 ms"
    );
    let mut section = Section { name: "pacing", about, ..Section::default() };
    for mbits in [100_u32, 900, 2_500] {
        let mut held = Figure::new(format!("{mbits} Mbit/s, held"), "%").target(Target::Value(97.0, 100.05));
        let mut worst = Figure::new("  fullest 10 ms", "%").target(Target::at_most(105.0 + burst));
        let mut cpu = Figure::new("  sender CPU", "% of a core");
        for _ in 0..plan.repetitions.min(3) {
            let ((kept, busy), noise) = watched(|| measure(mbits, seconds));
            let rate = f64::from(mbits) * 1e6;
            if kept.missed > 0 {
                section
                    .problems
                    .push(format!("{mbits} Mbit/s: {} datagrams were missed here and not counted", kept.missed));
            }
            held.add(kept.rate / rate * 100.0, noise);
            worst.add(kept.window / (rate * WINDOW.as_secs_f64()) * 100.0, noise);
            cpu.add(busy * 100.0, noise);
        }
        section.figures.extend([held, worst, cpu]);
    }
    section
}

/// How well the rate was kept over `seconds`, and how many cores the sender used.
fn measure(mbits: u32, seconds: u64) -> (Kept, f64) {
    let mut pair = Pair::setup().rate(&format!("{mbits} Mbit/s")).on_tmpfs().without_receiver().lay();
    let recorder = pair.link.recorder();
    recorder.set_read_timeout(Some(Duration::from_millis(100))).expect("a time limit can be set");
    setsockopt(&recorder, RcvBufForce, &(64 << 20)).expect("root sets buffers");
    setsockopt(&recorder, ReceiveTimestampns, &true).expect("the kernel takes times");
    pair.start_sender();
    let stop = Arc::new(AtomicBool::new(false));
    let recording = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || record(&recorder, &stop)
    });
    // One second more than is evaluated, so that the overhead of a seventh cannot make it too short. Zeros take no memory.
    let file = File::create(pair.place("zeros")).expect("a file can be made");
    file.set_len(u64::from(mbits) * 125_000 * (seconds + 1)).expect("there is space");
    let before = pair.sender().usage().cpu_seconds;
    put(&pair, "zeros");
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(seconds));
    let busy = (pair.sender().usage().cpu_seconds - before) / started.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_millis(700));
    stop.store(true, Ordering::Relaxed);
    let seen = recording.join().expect("no panic");
    (evaluate(&seen, Duration::from_secs(seconds)), busy)
}

fn record(socket: &UdpSocket, stop: &AtomicBool) -> Vec<Seen> {
    let mut seen = Vec::with_capacity(2 << 20);
    let mut buffers = vec![vec![0; 2_048]; BATCH];
    // One control message of one size: the kernel shortens what it finds here to what it wrote.
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, Some(nix::cmsg_space!(TimeSpec)));
    loop {
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None) {
            Ok(results) => {
                for result in results {
                    let datagram = result.iovs().next().unwrap_or_default();
                    let at = result.cmsgs().ok().and_then(|mut all| all.find_map(timestamp));
                    let (Some(at), Ok(header)) = (at, Header::parse(datagram)) else { continue };
                    let bytes = (datagram.len() + IP_UDP_LEN + ETHERNET_LEN) as u64;
                    seen.push(Seen {
                        at,
                        bytes,
                        counter: header.counter,
                        is_beacon: header.content == Content::Beacon,
                    });
                }
            }
            Err(Errno::EAGAIN) if stop.load(Ordering::Relaxed) => return seen,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => panic!("recvmmsg: {error}"),
        }
        if stop.load(Ordering::Relaxed) {
            return seen;
        }
    }
}

fn timestamp(control: ControlMessageOwned) -> Option<u64> {
    match control {
        ControlMessageOwned::ScmTimestampns(time) => u64::try_from(time.tv_sec() * 1_000_000_000 + time.tv_nsec()).ok(),
        _ => None,
    }
}

/// From the first datagram of the bundle on, for `span`.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn evaluate(seen: &[Seen], span: Duration) -> Kept {
    let begin = seen.iter().position(|seen| !seen.is_beacon).unwrap_or(seen.len());
    let start = seen.get(begin).map_or(0, |seen| seen.at);
    let end = start + span.as_nanos() as u64;
    let seen: Vec<Seen> = seen[begin..].iter().copied().take_while(|seen| seen.at < end).collect();
    let (Some(first), Some(last)) = (seen.first(), seen.last()) else {
        return Kept { rate: 0.0, window: 0.0, missed: 0 };
    };
    let total: u64 = seen.iter().map(|seen| seen.bytes).sum();
    let (mut from, mut inside, mut fullest) = (0, 0, 0);
    for now in &seen {
        inside += now.bytes;
        while seen[from].at + (WINDOW.as_nanos() as u64) <= now.at {
            inside -= seen[from].bytes;
            from += 1;
        }
        fullest = fullest.max(inside);
    }
    let missed = (last.counter - first.counter + 1).saturating_sub(seen.len() as u64);
    Kept { rate: total as f64 * 8.0 / span.as_secs_f64(), window: fullest as f64 * 8.0, missed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_rate_fullest_window_and_gaps() {
        // 1,000 bytes each ms, 5,000 more in one of them, one missed; a beacon long before does not count.
        let mut seen = vec![Seen { at: 1, bytes: 300, counter: 0, is_beacon: true }];
        for ms in 0..2_000_u64 {
            let bytes = if ms == 700 { 6_000 } else { 1_000 };
            let counter = if ms < 900 { ms + 1 } else { ms + 2 };
            seen.push(Seen { at: 5_000_000_000 + ms * 1_000_000, bytes, counter, is_beacon: false });
        }
        let kept = evaluate(&seen, Duration::from_secs(1));
        assert_eq!(kept, Kept { rate: 1_005_000.0 * 8.0, window: 15_000.0 * 8.0, missed: 1 });
        assert_eq!(evaluate(&[], Duration::from_secs(1)).rate, 0.0);
    }
}
