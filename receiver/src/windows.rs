//! What the link did over the last minute, hour and day.

use std::collections::VecDeque;

use checkvalve_protocol::receive::Tally;
use serde::{Deserialize, Serialize};

/// Counts over a span of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkWindow {
    /// Datagrams that were sent, as far as counters tell.
    pub sent: u64,
    /// Datagrams that did not come, wherever they were lost.
    pub lost: u64,
    /// Those of them that the kernel dropped, its buffer being full.
    pub lost_kernel: u64,
    /// Datagrams that came and that the daemon dropped because its memory was full.
    pub dropped_memory: u64,
    /// The most datagrams in a row that did not come.
    pub longest_burst: u64,
    /// Symbols that the worst block could still have lost, as parts in a thousand of its repair symbols; negative when it lacks
    /// some. Null: no block of a first pass was finished.
    pub least_margin: Option<i32>,
}

/// What was counted since the start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Of the reassembly.
    pub tally: Tally,
    /// Datagrams that the kernel dropped.
    pub kernel: u64,
    /// Datagrams dropped for want of memory.
    pub memory: u64,
}

/// The windows. Time is monotonic, in milliseconds.
#[derive(Default)]
pub struct Windows {
    last: Sample,
    rings: [Ring; 3],
}

#[derive(Default)]
struct Ring {
    /// Oldest first, with the number of each step.
    steps: VecDeque<(u64, LinkWindow)>,
}

/// Length of a step in milliseconds, and how many there are: a minute, an hour, a day.
const RINGS: [(u64, u64); 3] = [(1_000, 60), (60_000, 60), (900_000, 96)];

impl Windows {
    /// Takes what was counted until now.
    pub fn add(&mut self, now_ms: u64, sample: Sample) {
        let (now, last) = (&sample, &self.last);
        let lost = |s: &Sample| s.tally.sent.saturating_sub(s.tally.received);
        let delta = LinkWindow {
            sent: now.tally.sent.saturating_sub(last.tally.sent),
            lost: lost(now).saturating_sub(lost(last)),
            lost_kernel: now.kernel.saturating_sub(last.kernel),
            dropped_memory: now.memory.saturating_sub(last.memory),
            longest_burst: now.tally.longest_burst,
            least_margin: now.tally.margin,
        };
        self.last = sample;
        for (ring, (len, count)) in self.rings.iter_mut().zip(RINGS) {
            ring.add(now_ms / len, count, &delta);
        }
    }

    /// The last minute, hour and day.
    #[must_use]
    pub fn get(&self, now_ms: u64) -> [LinkWindow; 3] {
        let mut all = [LinkWindow::default(); 3];
        for ((window, ring), (len, count)) in all.iter_mut().zip(&self.rings).zip(RINGS) {
            let oldest = (now_ms / len).saturating_sub(count - 1);
            ring.steps.iter().filter(|(step, _)| *step >= oldest).for_each(|(_, one)| window.merge(one));
        }
        all
    }
}

impl Ring {
    fn add(&mut self, step: u64, count: u64, delta: &LinkWindow) {
        match self.steps.back_mut() {
            Some((last, window)) if *last >= step => window.merge(delta),
            _ => self.steps.push_back((step, *delta)),
        }
        while self.steps.front().is_some_and(|(first, _)| first + count <= step) {
            self.steps.pop_front();
        }
    }
}

impl LinkWindow {
    fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.lost += other.lost;
        self.lost_kernel += other.lost_kernel;
        self.dropped_memory += other.dropped_memory;
        self.longest_burst = self.longest_burst.max(other.longest_burst);
        self.least_margin = [self.least_margin, other.least_margin].into_iter().flatten().min();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(sent: u64, received: u64, longest_burst: u64, margin: Option<i32>) -> Sample {
        Sample { tally: Tally { sent, received, longest_burst, margin }, kernel: 0, memory: 0 }
    }

    #[test]
    fn loss_leaves_the_minute_and_stays_in_the_hour() {
        let mut windows = Windows::default();
        windows.add(1_000, sample(1_000, 990, 7, Some(400)));
        windows.add(1_500, sample(2_000, 1_990, 0, None));
        let [minute, hour, day] = windows.get(2_000);
        assert_eq!((minute.sent, minute.lost, minute.longest_burst, minute.least_margin), (2_000, 10, 7, Some(400)));
        assert_eq!((minute, hour), (hour, day));
        for second in 2..200 {
            windows.add(second * 1_000, sample(2_000 + second, 1_990 + second, 0, None));
        }
        let [minute, hour, _] = windows.get(200_000);
        assert_eq!((minute.lost, minute.longest_burst, minute.least_margin), (0, 0, None));
        assert_eq!((hour.lost, hour.longest_burst, hour.least_margin), (10, 7, Some(400)));
        assert!(windows.rings.iter().all(|ring| ring.steps.len() <= 96));
        assert_eq!(windows.get(100_000_000), [LinkWindow::default(); 3]);
    }
}
