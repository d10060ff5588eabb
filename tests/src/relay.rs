//! A small lossy one-way relay between two UDP ports, for where network namespaces cannot be made.
//!
//! Incoming datagrams are passed on or lost. Nothing ever goes the other way: the receiving socket never sends, and the
//! sending socket is never read.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::rng::Rng;

/// What has gone through a relay.
#[derive(Debug, Default)]
pub struct Passed {
    /// Datagrams passed on.
    pub forwarded: AtomicU64,
    /// Datagrams lost on purpose.
    pub lost: AtomicU64,
    /// Datagrams that the sending socket refused.
    pub refused: AtomicU64,
}

/// A relay that is ready to run.
#[derive(Debug)]
pub struct Relay {
    input: UdpSocket,
    output: UdpSocket,
    per_mille: u32,
    rng: Rng,
    passed: Arc<Passed>,
}

impl Relay {
    /// Listens on `from` and passes on to `to`, losing each datagram with a probability of `per_mille` in 1,000.
    ///
    /// # Errors
    /// When an address cannot be bound or routed.
    pub fn new(from: SocketAddr, to: SocketAddr, per_mille: u32, seed: u64) -> io::Result<Self> {
        let input = Socket::new(Domain::for_address(from), Type::DGRAM, Some(Protocol::UDP))?;
        input.set_recv_buffer_size(16 << 20)?;
        input.bind(&from.into())?;
        input.set_read_timeout(Some(Duration::from_millis(100)))?;
        let output = UdpSocket::bind(SocketAddr::new(from.ip(), 0))?;
        output.connect(to)?;
        Ok(Self { input: input.into(), output, per_mille, rng: Rng::new(seed), passed: Arc::default() })
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// When the system does not report it.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.input.local_addr()
    }

    /// Counters that stay readable while it runs.
    pub fn passed(&self) -> Arc<Passed> {
        Arc::clone(&self.passed)
    }

    /// Relays until `stop` is set (looked at ten times a second).
    ///
    /// # Errors
    /// When receiving fails. A failure to send is counted and otherwise ignored, as a fibre would.
    pub fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut buf = vec![0; 65_536];
        while !stop.load(Ordering::Relaxed) {
            let len = match self.input.recv(&mut buf) {
                Ok(len) => len,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let counter = if self.rng.chance(self.per_mille) {
                &self.passed.lost
            } else if self.output.send(&buf[..len]).is_ok() {
                &self.passed.forwarded
            } else {
                &self.passed.refused
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loses_about_as_many_as_it_was_told_and_nothing_comes_back() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_nonblocking(true).unwrap();
        let relay = Relay::new("127.0.0.1:0".parse().unwrap(), receiver.local_addr().unwrap(), 100, 1).unwrap();
        let (address, passed, stop) = (relay.address().unwrap(), relay.passed(), Arc::new(AtomicBool::new(false)));
        let running = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || relay.run(&stop)
        });
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.set_nonblocking(true).unwrap();
        let mut arrived = 0;
        let mut buf = [0; 16];
        for number in 0..2000_u32 {
            sender.send_to(&number.to_be_bytes(), address).unwrap();
            std::thread::sleep(Duration::from_micros(50));
            while let Ok((_, from)) = receiver.recv_from(&mut buf) {
                arrived += 1;
                let _ = receiver.send_to(b"an answer", from);
            }
        }
        std::thread::sleep(Duration::from_millis(200));
        while receiver.recv(&mut buf).is_ok() {
            arrived += 1;
        }
        stop.store(true, Ordering::Relaxed);
        running.join().unwrap().unwrap();
        let lost = passed.lost.load(Ordering::Relaxed);
        assert_eq!(lost + arrived, 2000);
        assert!((120..=290).contains(&lost), "{lost} of 2000 at 10 %");
        assert!(sender.recv(&mut buf).is_err(), "something came back");
    }
}
