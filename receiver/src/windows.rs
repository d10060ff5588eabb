//! What the link did over the last minute, hour and day.

use std::collections::{BTreeMap, VecDeque};

use checkvalve_protocol::id::KeyTag;
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
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Of the reassembly.
    pub tallies: Vec<Tally>,
    /// Datagrams that the kernel dropped.
    pub kernel: u64,
    /// Datagrams dropped for want of memory.
    pub memory: u64,
}

/// The last minute, hour and day.
pub type Spans = [LinkWindow; 3];

/// The windows. Time is monotonic, in milliseconds.
#[derive(Default)]
pub struct Windows {
    /// Datagrams that the kernel dropped, and those dropped for want of memory, when that was told last.
    last: (u64, u64),
    /// What was dropped, whoever sent it.
    dropped: Rings,
    senders: BTreeMap<KeyTag, Sender>,
}

/// What the sender with one key says, and how much of it came.
#[derive(Default)]
struct Sender {
    /// Datagrams sent and received when that was told last.
    last: (u64, u64),
    rings: Rings,
}

#[derive(Default)]
struct Rings([Ring; 3]);

#[derive(Default)]
struct Ring {
    /// Oldest first, with the number of each step.
    steps: VecDeque<(u64, LinkWindow)>,
}

/// Length of a step in milliseconds, and how many there are: a minute, an hour, a day.
const RINGS: [(u64, u64); 3] = [(1_000, 60), (60_000, 60), (900_000, 96)];

impl Windows {
    /// Takes what was counted until now.
    pub fn add(&mut self, now_ms: u64, sample: &Sample) {
        let delta = LinkWindow {
            lost_kernel: sample.kernel.saturating_sub(self.last.0),
            dropped_memory: sample.memory.saturating_sub(self.last.1),
            ..LinkWindow::default()
        };
        self.last = (sample.kernel, sample.memory);
        self.dropped.add(now_ms, &delta);
        for tally in &sample.tallies {
            let sender = self.senders.entry(tally.key).or_default();
            let (sent, received) = sender.last;
            let lost = tally.sent.saturating_sub(tally.received).saturating_sub(sent.saturating_sub(received));
            let delta = LinkWindow {
                sent: tally.sent.saturating_sub(sent),
                lost,
                longest_burst: tally.longest_burst,
                least_margin: tally.margin,
                ..LinkWindow::default()
            };
            sender.last = (tally.sent, tally.received);
            sender.rings.add(now_ms, &delta);
        }
    }

    /// What all senders say together, and what was dropped.
    #[must_use]
    pub fn get(&self, now_ms: u64) -> Spans {
        let mut all = self.dropped.get(now_ms);
        for spans in self.senders(now_ms).values() {
            all.iter_mut().zip(spans).for_each(|(all, one)| all.merge(one));
        }
        all
    }

    /// What the sender with each key says.
    #[must_use]
    pub fn senders(&self, now_ms: u64) -> BTreeMap<KeyTag, Spans> {
        self.senders.iter().map(|(&key, sender)| (key, sender.rings.get(now_ms))).collect()
    }
}

impl Rings {
    fn add(&mut self, now_ms: u64, delta: &LinkWindow) {
        for (ring, (len, count)) in self.0.iter_mut().zip(RINGS) {
            ring.add(now_ms / len, count, delta);
        }
    }

    fn get(&self, now_ms: u64) -> Spans {
        let mut all = [LinkWindow::default(); 3];
        for ((window, ring), (len, count)) in all.iter_mut().zip(&self.0).zip(RINGS) {
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
        self.sent = self.sent.saturating_add(other.sent);
        self.lost = self.lost.saturating_add(other.lost);
        self.lost_kernel = self.lost_kernel.saturating_add(other.lost_kernel);
        self.dropped_memory = self.dropped_memory.saturating_add(other.dropped_memory);
        self.longest_burst = self.longest_burst.max(other.longest_burst);
        self.least_margin = [self.least_margin, other.least_margin].into_iter().flatten().min();
    }
}

#[cfg(test)]
mod tests {
    use checkvalve_protocol::id::BundleId;

    use super::*;

    fn sample(sent: u64, received: u64, longest_burst: u64, margin: Option<i32>) -> Sample {
        let key = BundleId(1).tag();
        Sample { tallies: vec![Tally { key, sent, received, longest_burst, margin }], kernel: 0, memory: 0 }
    }

    #[test]
    fn loss_leaves_the_minute_and_stays_in_the_hour() {
        let mut windows = Windows::default();
        windows.add(1_000, &sample(1_000, 990, 7, Some(400)));
        windows.add(1_500, &sample(2_000, 1_990, 0, None));
        let [minute, hour, day] = windows.get(2_000);
        assert_eq!((minute.sent, minute.lost, minute.longest_burst, minute.least_margin), (2_000, 10, 7, Some(400)));
        assert_eq!((minute, hour), (hour, day));
        for second in 2..200 {
            windows.add(second * 1_000, &sample(2_000 + second, 1_990 + second, 0, None));
        }
        let [minute, hour, _] = windows.get(200_000);
        assert_eq!((minute.lost, minute.longest_burst, minute.least_margin), (0, 0, None));
        assert_eq!((hour.lost, hour.longest_burst, hour.least_margin), (10, 7, Some(400)));
        let rings = windows.senders.values().map(|sender| &sender.rings).chain([&windows.dropped]);
        assert!(rings.flat_map(|rings| &rings.0).all(|ring| ring.steps.len() <= 96));
        assert_eq!(windows.get(100_000_000), [LinkWindow::default(); 3]);
    }

    #[test]
    fn each_sender_has_its_own_and_all_have_what_was_dropped() {
        let mut windows = Windows::default();
        let [mine, other] = [1, 2].map(|id| BundleId(id).tag());
        let tally = |key, sent, received| Tally { key, sent, received, longest_burst: 1, margin: None };
        let tallies = vec![tally(mine, 1_000, 999), tally(other, u64::MAX, 0)];
        windows.add(1_000, &Sample { tallies, kernel: 5, memory: 6 });
        windows.add(2_000, &Sample { tallies: vec![tally(mine, 2_000, 1_990)], kernel: 7, memory: 6 });
        let [minute, ..] = windows.senders(2_000)[&mine];
        assert_eq!((minute.sent, minute.lost, minute.lost_kernel), (2_000, 10, 0));
        let [minute, ..] = windows.get(2_000);
        assert_eq!((minute.sent, minute.lost_kernel, minute.dropped_memory), (u64::MAX, 7, 6));
    }
}
