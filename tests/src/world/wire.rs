//! The line between the two machines.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::script::Options;
use crate::rng::Rng;

/// How many datagrams are remembered to arrive again.
const REMEMBERED: usize = 200;

/// The most lanes in any script.
pub(super) const LANES: usize = 4;

/// The longest duration of a burst, in nanoseconds.
const BURST: u64 = 300_000_000;

/// The line. Times are nanoseconds of the world's clock.
pub(super) struct Wire {
    rng: Rng,
    /// When the current burst ends by itself. Without that, one burst could swallow all beacons of an idle link.
    burst_until: u64,
    on_the_way: BinaryHeap<Reverse<(u64, u64, Vec<u8>)>>,
    old: Vec<Vec<u8>>,
    sent: u64,
    /// Until when nothing arrives.
    pub(super) dead_until: u64,
    /// Until when nothing that is sent over each lane arrives.
    pub(super) dark_until: [u64; LANES],
    /// Whether the line loses and damages nothing.
    pub(super) perfect: bool,
}

impl Wire {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            burst_until: 0,
            on_the_way: BinaryHeap::new(),
            old: Vec::new(),
            sent: 0,
            dead_until: 0,
            dark_until: [0; LANES],
            perfect: false,
        }
    }

    pub(super) fn send(&mut self, now: u64, lane: usize, mut datagram: Vec<u8>, options: &Options) {
        if now < self.dark_until[lane] {
            return;
        }
        if let Some((begin, end)) = options.burst {
            if now >= self.burst_until && self.rng.below(10_000) < begin.into() {
                self.burst_until = now + BURST;
            } else if self.rng.chance(end) {
                self.burst_until = now;
            }
        }
        let lost = self.rng.chance(options.loss) | (now < self.burst_until);
        if self.perfect {
            return self.put(now + 100_000, datagram);
        }
        if self.rng.chance(options.replay) && !self.old.is_empty() {
            let at = self.rng.below(self.old.len() as u64);
            self.put(now + 150_000, self.old[usize::try_from(at).expect("small")].clone());
        }
        if lost || now < self.dead_until {
            return;
        }
        if self.old.len() < REMEMBERED {
            self.old.push(datagram.clone());
        } else {
            let at = self.rng.below(REMEMBERED as u64);
            self.old[usize::try_from(at).expect("small")].clone_from(&datagram);
        }
        if self.rng.chance(options.duplicate) {
            let at = now + self.delay(options);
            self.put(at, datagram.clone());
        }
        if self.rng.chance(options.corrupt) {
            let bit = usize::try_from(self.rng.below(datagram.len() as u64 * 8)).expect("small");
            datagram[bit / 8] ^= 1 << (bit % 8);
        }
        if self.rng.chance(options.truncate) {
            datagram.truncate(usize::try_from(self.rng.below(datagram.len() as u64)).expect("small"));
        }
        let late = if self.rng.chance(options.reorder) { self.delay(options) } else { 100_000 };
        self.put(now + late, datagram);
    }

    /// Sends datagrams of the peer. Except in an outage, none of them is lost, damaged or repeated.
    pub(super) fn inject(&mut self, now: u64, datagrams: Vec<Vec<u8>>) {
        if now < self.dead_until {
            return;
        }
        for (at, datagram) in (now + 100_000..).step_by(20_000).zip(datagrams) {
            self.put(at, datagram);
        }
    }

    /// When the next datagram arrives.
    pub(super) fn next(&self) -> Option<u64> {
        self.on_the_way.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next datagram that has arrived by now.
    pub(super) fn take(&mut self, now: u64) -> Option<Vec<u8>> {
        self.next().filter(|at| *at <= now)?;
        self.on_the_way.pop().map(|Reverse((_, _, datagram))| datagram)
    }

    fn put(&mut self, at: u64, datagram: Vec<u8>) {
        self.sent += 1;
        self.on_the_way.push(Reverse((at, self.sent, datagram)));
    }

    fn delay(&mut self, options: &Options) -> u64 {
        100_000 + self.rng.below(options.late_ms * 1_000_000 + 1)
    }
}
