//! The simulated threads of the sender's data plane. They behave like those in `sender/src/pipeline.rs`. Any of them may run
//! next, for one step: poll, do, or report.

use checkvalve_protocol::time::Time;
use checkvalve_protocol::transmit::feed::{Concluded, Encoded, NextRead, ToConclude, ToEncode, ToRead};
use checkvalve_protocol::transmit::{Batch, Transmit};
use checkvalve_sender::bundle::ReadError;
use checkvalve_sender::engine::Now;
use checkvalve_sender::pipeline::Job;

use super::super::pace::Pace;
use super::super::wire::LANES;
use super::{Low, Told};

/// What the reading thread is doing.
pub(super) enum Reader {
    Awake,
    Asleep,
    Reading(ToRead<Job>),
    Concluding(ToConclude<Job>),
    HasRead(ToRead<Job>, Result<(), ReadError>),
    HasConcluded(Concluded<Job>),
    /// It is about to encode the block that it just read, because there are no encoders.
    Encoding(ToEncode),
    HasEncoded(Encoded),
}

/// What an encoding thread is doing.
pub(super) enum Encoder {
    Awake,
    Asleep,
    Encoding(ToEncode),
    HasEncoded(Encoded),
}

/// A lane's thread, and its batch.
#[derive(Default)]
pub(super) struct Lane {
    at: LaneAt,
    batch: Batch,
}

/// What a lane's thread is doing.
#[derive(Default)]
enum LaneAt {
    #[default]
    Awake,
    /// It sleeps until that time, or until it is woken.
    Asleep(Time),
    /// It is about to hand its batch to the kernel.
    Sending,
}

impl Low {
    /// Runs the pipeline's threads until all of them wait. Returns until when they wait.
    pub(super) fn pump(&mut self, now_ns: u64, now: Now, pace: Pace, stuck: &[u64; LANES], told: &mut Told) -> u64 {
        let at = Time(now_ns + 1);
        let (encoders, lanes) = (self.encoders.len(), self.lanes.len());
        let all = 1 + encoders + lanes;
        loop {
            let first = usize::try_from(self.rng.below(all as u64)).expect("few");
            let any = (0..all).any(|offset| match (first + offset) % all {
                0 => self.read(now_ns, pace),
                n if n <= encoders => self.encode(n - 1),
                n => self.transmit(n - 1 - encoders, at, now.wall_ms, stuck, told),
            });
            if !any {
                break;
            }
        }
        let lane_ns = |(lane, stuck): (&Lane, &u64)| match lane.at {
            LaneAt::Asleep(until) => until.0,
            LaneAt::Sending => *stuck,
            LaneAt::Awake => now_ns,
        };
        let reads = (self.reads_until > now_ns).then_some(self.reads_until);
        self.lanes.iter().zip(stuck).map(lane_ns).chain(reads).min().unwrap_or(now_ns)
    }

    /// Checks, when all threads wait, that none of them has something to do. True: something changed.
    pub(super) fn looks_around(&mut self, now_ns: u64, now: Now) -> bool {
        if matches!(self.reader, Reader::Asleep) && self.feed.wants_reader() {
            self.fault = Some("the thread that reads sleeps, and could read".to_owned());
        }
        let sleep = self.encoders.iter().all(|encoder| matches!(encoder, Encoder::Asleep));
        let reads = self.encoders.is_empty() && !matches!(self.reader, Reader::Asleep);
        if sleep && !reads && self.feed.waiting() > 0 {
            self.fault = Some("the thread that encodes sleeps, and could encode".to_owned());
        }
        // A lane sometimes looks for work without being woken. If there are several lanes, it must not find anything to send.
        if self.lanes.len() == 1 || !self.rng.chance(50) {
            return false;
        }
        let lane = usize::try_from(self.rng.below(self.lanes.len() as u64)).expect("few");
        let Lane { at: LaneAt::Asleep(until), batch } = &mut self.lanes[lane] else { return false };
        if *until <= Time(now_ns + 1) {
            return false;
        }
        match self.feed.poll_transmit(lane, Time(now_ns + 1), now.wall_ms, batch, None) {
            Transmit::Wait(until) => self.lanes[lane].at = LaneAt::Asleep(until),
            _ => self.fault = Some("a lane sleeps, and could send".to_owned()),
        }
        self.wake();
        true
    }

    /// Runs one step of the reading thread. False: it sleeps, or waits for a slow disk.
    fn read(&mut self, now_ns: u64, pace: Pace) -> bool {
        let waits = matches!(self.reader, Reader::Reading(_) | Reader::Concluding(_));
        if now_ns < self.reads_until {
            return false;
        }
        if waits && let Some(delay) = pace.delay(&mut self.rng) {
            self.reads_until = now_ns + delay;
            return false;
        }
        self.reader = match std::mem::replace(&mut self.reader, Reader::Awake) {
            Reader::Awake => match self.feed.poll_read() {
                NextRead::Read(read) => Reader::Reading(read),
                NextRead::Conclude(job) => Reader::Concluding(job),
                NextRead::Wait => Reader::Asleep,
            },
            Reader::Reading(mut read) if !pace.still => {
                let disk = &self.disk;
                let result = read.fill(|job, reader, bytes, offset| job.read(disk, reader, bytes, offset));
                Reader::HasRead(read, result)
            }
            Reader::Concluding(job) if !pace.still => {
                Reader::HasConcluded(job.conclude(&self.key, |job, reader| job.finish(&self.disk, reader)))
            }
            Reader::HasRead(read, result) => {
                self.feed.handle_read(read, result);
                let read = self.encoders.is_empty().then(|| self.feed.poll_encode()).flatten();
                self.wake();
                read.map_or(Reader::Awake, Reader::Encoding)
            }
            Reader::HasConcluded(concluded) => {
                self.feed.handle_concluded(concluded);
                self.wake();
                Reader::Awake
            }
            Reader::Encoding(read) => Reader::HasEncoded(read.encode(&self.plans)),
            Reader::HasEncoded(encoded) => {
                self.report(encoded);
                Reader::Awake
            }
            waits @ (Reader::Asleep | Reader::Reading(_) | Reader::Concluding(_)) => {
                self.reader = waits;
                return false;
            }
        };
        true
    }

    /// Runs one step of an encoding thread. False: it sleeps.
    fn encode(&mut self, encoder: usize) -> bool {
        self.encoders[encoder] = match std::mem::replace(&mut self.encoders[encoder], Encoder::Asleep) {
            Encoder::Awake => self.feed.poll_encode().map_or(Encoder::Asleep, Encoder::Encoding),
            Encoder::Asleep => return false,
            Encoder::Encoding(read) => Encoder::HasEncoded(read.encode(&self.plans)),
            Encoder::HasEncoded(encoded) => {
                self.report(encoded);
                Encoder::Awake
            }
        };
        true
    }

    fn report(&mut self, encoded: Encoded) {
        let starved = self.feed.is_starved();
        self.feed.handle_encoded(encoded);
        if self.wake() == 0 && starved && !self.feed.is_starved() {
            self.fault = Some("the lane sleeps, and could send".to_owned());
        }
    }

    /// Runs one step of a lane. False: it sleeps, or the kernel takes nothing.
    fn transmit(&mut self, lane: usize, now: Time, wall_ms: u64, stuck: &[u64; LANES], told: &mut Told) -> bool {
        let alone = (self.lanes.len() == 1).then_some(&self.sealer);
        let is_stuck = now.0 <= stuck[lane];
        let Lane { at, batch } = &mut self.lanes[lane];
        match at {
            LaneAt::Asleep(until) if now < *until => return false,
            LaneAt::Sending if is_stuck => return false,
            LaneAt::Sending => {
                batch.seal(&self.sealer);
                told.datagrams.extend(batch.datagrams().map(|datagram| (lane, datagram.to_vec())));
                *at = LaneAt::Awake;
                return true;
            }
            LaneAt::Asleep(_) | LaneAt::Awake => {}
        }
        *at = match self.feed.poll_transmit(lane, now, wall_ms, batch, alone) {
            Transmit::Ready => LaneAt::Sending,
            Transmit::Wait(until) => LaneAt::Asleep(until),
            Transmit::Idle => unreachable!("the feed says when to come again"),
        };
        // A single lane seals and sends in one go.
        if let (Some(_), LaneAt::Sending, false) = (alone, &*at, is_stuck) {
            told.datagrams.extend(batch.datagrams().map(|datagram| (lane, datagram.to_vec())));
            *at = LaneAt::Awake;
        }
        // A lane that was told to wait may be woken here by its own step.
        self.wake();
        true
    }

    /// Runs when a thread releases the lock: wakes sleeping threads that have something to do. Returns how many lanes it woke.
    pub(super) fn wake(&mut self) -> usize {
        let wakes = self.feed.poll_wakes();
        if wakes.reader && matches!(self.reader, Reader::Asleep) {
            self.reader = Reader::Awake;
        }
        let asleep = |encoder: &&mut Encoder| matches!(encoder, Encoder::Asleep);
        self.encoders.iter_mut().filter(asleep).take(wakes.encoders).for_each(|encoder| *encoder = Encoder::Awake);
        // Wakes one lane or all of them, as the pipeline does. A single one is picked at random.
        let count = self.lanes.len();
        let first = if wakes.lanes == 1 && count > 1 { self.rng.below(count as u64) } else { 0 };
        let most = if wakes.lanes > 1 { count } else { wakes.lanes };
        let mut left = most;
        for offset in 0..count {
            let lane = &mut self.lanes[(usize::try_from(first).expect("few") + offset) % count];
            if left > 0 && matches!(lane.at, LaneAt::Asleep(_)) {
                lane.at = LaneAt::Awake;
                left -= 1;
            }
        }
        wakes.lanes
    }
}
