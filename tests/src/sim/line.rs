//! A simulated one-way line.

use std::time::Duration;

use checkvalve_protocol::time::Time;

use crate::rng::Rng;

/// What a line does to datagrams. The default carries everything at once and untouched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// How many of 1,000 are lost at random.
    pub loss: u32,
    /// `(every, length)`: of every `every` datagrams, the first `length` are lost in a row.
    pub burst: Option<(u32, u32)>,
    /// How many of 1,000 come twice.
    pub duplicate: u32,
    /// How many of 1,000 are late, by up to [`Shape::late`], and so overtaken.
    pub reorder: u32,
    /// How late.
    pub late: Duration,
    /// How many of 1,000 have one bit changed.
    pub corrupt: u32,
    /// How many of 1,000 are cut short.
    pub truncate: u32,
}

/// A line with its own seeded generator. What it does to the n-th datagram depends on seed, shape and n alone.
#[derive(Debug)]
pub struct Line {
    shape: Shape,
    rng: Rng,
    carried: u32,
    /// Datagrams that were lost.
    pub lost: u32,
    /// Datagrams that arrived changed or cut.
    pub damaged: u32,
}

impl Line {
    /// A line of that shape.
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self { shape, rng: Rng::new(seed), carried: 0, lost: 0, damaged: 0 }
    }

    /// Carries datagrams, given in order of departure; returns them in order of arrival.
    pub fn carry(&mut self, sent: Vec<(Time, Vec<u8>)>) -> Vec<(Time, Vec<u8>)> {
        let mut arrived = Vec::with_capacity(sent.len());
        for (at, datagram) in sent {
            self.one(at, datagram, &mut arrived);
        }
        arrived.sort_by_key(|(at, _)| *at);
        arrived
    }

    fn one(&mut self, at: Time, mut datagram: Vec<u8>, arrived: &mut Vec<(Time, Vec<u8>)>) {
        let number = self.carried;
        self.carried += 1;
        let in_burst = self.shape.burst.is_some_and(|(every, length)| number % every < length);
        if in_burst | self.rng.chance(self.shape.loss) {
            self.lost += 1;
            return;
        }
        if self.rng.chance(self.shape.duplicate) {
            let again = at + self.delay();
            arrived.push((again, datagram.clone()));
        }
        let corrupt = self.rng.chance(self.shape.corrupt);
        if corrupt {
            let bit = self.below(datagram.len() * 8);
            datagram[bit / 8] ^= 1 << (bit % 8);
        }
        let truncate = self.rng.chance(self.shape.truncate);
        if truncate {
            datagram.truncate(self.below(datagram.len()));
        }
        self.damaged += u32::from(corrupt || truncate);
        let at = if self.rng.chance(self.shape.reorder) { at + self.delay() } else { at };
        arrived.push((at, datagram));
    }

    fn delay(&mut self) -> Duration {
        let most = u64::try_from(self.shape.late.as_nanos()).expect("a short time").max(1);
        Duration::from_nanos(self.rng.below(most))
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.rng.below(bound.max(1) as u64)).expect("below a usize")
    }
}
