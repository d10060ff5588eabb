//! The sender's process: the real engine, [`Feed`], and threads around these that do what those of `sender/src/pipeline.rs` do: any of
//! them may go on next, by one step of poll, do and report.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use checkvalve_host::disk::Disk;
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::seal::Sealer;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::transmit::feed::{
    Concluded, Encoded, Feed, FeedSetup, NextRead, ToConclude, ToEncode, ToRead,
};
use checkvalve_protocol::transmit::{Batch, Link, Parameters, Transmit};
use checkvalve_sender::bundle::ReadError;
use checkvalve_sender::engine::{Engine, Now, OpenError, Rules, Setup};
use checkvalve_sender::pipeline::{Finished, Job};
use checkvalve_sender::work::Work;

use super::script::Options;
use crate::rng::Rng;
use crate::simdisk::SimDisk;

const RATE: u64 = 8_000_000;

/// A run of the sender's process.
pub(super) struct Low {
    pub(super) engine: Engine,
    disk: Arc<dyn Disk>,
    key: Arc<SigningKey>,
    sealer: Sealer,
    plans: Arc<Plans>,
    feed: Feed<Job>,
    reader: Reader,
    encoder: Encoder,
    /// The lane sleeps until then, or until it is woken. None: it is awake.
    lane: Option<Time>,
    works: Vec<Work>,
    wake_ms: u64,
    rng: Rng,
    /// What a thread found that must not be.
    fault: Option<String>,
}

/// What the thread that reads is at.
enum Reader {
    Awake,
    Asleep,
    Reading(ToRead<Job>),
    Concluding(ToConclude<Job>),
    HasRead(ToRead<Job>, Result<(), ReadError>),
    HasConcluded(Concluded<Job>),
}

/// What the thread that encodes is at.
enum Encoder {
    Awake,
    Asleep,
    Encoding(ToEncode),
    HasEncoded(Encoded),
}

/// What a step of the process brought forth.
#[derive(Default)]
pub(super) struct Told {
    pub(super) datagrams: Vec<Vec<u8>>,
    /// Jobs that the engine gave, before they are touched: (bundle, channel, sequence, name, announce, ESIs).
    pub(super) jobs: Vec<Started>,
    /// Bundles whose transmission ended, and whether it was whole.
    pub(super) ended: Vec<(BundleId, bool)>,
}

pub(super) struct Started {
    pub(super) bundle: BundleId,
    pub(super) channel: String,
    pub(super) sequence: u64,
    pub(super) name: Vec<u8>,
    pub(super) announce: [u8; 32],
    pub(super) esis: std::ops::Range<u32>,
}

pub(super) const LINK_KEY: [u8; 32] = [7; 32];
pub(super) const SPOOL: &str = "/spool";
pub(super) const STATE: &str = "/state";

fn parameters(options: &Options) -> Parameters {
    let link = Link {
        mtu: 576,
        rate: RATE,
        repair: f64::from(options.repair) / 100.0,
        burst: Duration::from_millis(10),
        memory: 32 << 20,
    };
    let derived = Parameters::derive(&link).expect("a link that can be");
    derived.with_block(derived.symbol_size(), 8)
}

impl Low {
    pub(super) fn open(
        disk: &SimDisk,
        options: &Options,
        plans: &Arc<Plans>,
        now: Now,
        seed: u64,
    ) -> Result<Self, OpenError> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut rng = Rng::new(seed);
        let mut ids = Rng::new(rng.next_u64());
        let key = signing_key();
        let parameters = parameters(options);
        let rules = |n: usize| Rules {
            priority: i16::from(n == 1),
            passes: options.passes,
            pass_interval_ms: 500,
            carousel_ms: (options.carousel && n == 1).then_some(8_000),
        };
        let setup = Setup {
            disk: Arc::clone(&disk),
            spool: PathBuf::from(SPOOL),
            state: PathBuf::from(STATE),
            channels: super::play::channels().into_iter().enumerate().map(|(n, channel)| (channel, rules(n))).collect(),
            settle_ms: 500,
            rescan_ms: 3_000,
            retain_bytes: if options.little_retained { 20_000 } else { u64::MAX },
            retain_ms: u64::MAX,
            key: Arc::clone(&key),
            parameters,
            random: Box::new(move || ids.next_u64()),
        };
        let engine = Engine::open(setup, now)?;
        let sealer = Sealer::new(Some(&LINK_KEY), SessionId(rng.next_u64()));
        let setup = FeedSetup {
            parameters,
            lanes: 1,
            // As few as may be, so that those who read have to wait.
            ahead: 0,
            bucket: Duration::from_millis(1),
            epoch: engine.epoch(),
            session_number: engine.session_number(),
            key: Arc::clone(&key),
        };
        Ok(Self {
            feed: Feed::new(setup, &sealer),
            engine,
            disk,
            key,
            sealer,
            plans: Arc::clone(plans),
            reader: Reader::Awake,
            encoder: Encoder::Awake,
            lane: None,
            works: Vec::new(),
            wake_ms: 0,
            rng,
            fault: None,
        })
    }

    /// Does all that can be done now. Gives when it wants to be called again, in nanoseconds of the world's clock; `now_ns`
    /// is that clock, `now` the process's own. With `slow`, nothing that waits for the disk goes on.
    pub(super) fn step(&mut self, now_ns: u64, now: Now, slow: bool, told: &mut Told) -> u64 {
        loop {
            let actions = self.engine.step(now);
            self.engine.assert_consistent();
            self.wake_ms = actions.wake_ms;
            if actions.beacon {
                self.feed.set_channels(self.engine.beacon());
            }
            for job in &actions.jobs {
                told.jobs.push(Started {
                    bundle: job.order.bundle,
                    channel: job.order.channel.to_string(),
                    sequence: job.order.sequence,
                    name: job.plan.announce.name.clone(),
                    announce: job.order.announce_digest,
                    esis: job.order.first_esi..job.esi_limit,
                });
            }
            actions.jobs.into_iter().for_each(|job| self.feed.submit(job));
            self.wake();
            self.works.extend(actions.work);
            let mut busy = self.work(now, slow);
            let wire_ns = self.pump(now_ns, now, slow, told);
            while let Some((id, how)) = self.feed.poll_finished() {
                told.ended.push((id, matches!(how, Finished::Transmitted { .. })));
                self.engine.finished(id, how, now);
                busy = true;
            }
            if !busy {
                if matches!(self.reader, Reader::Asleep) && self.feed.wants_reader() {
                    self.fault = Some("the thread that reads sleeps, and could read".to_owned());
                }
                if matches!(self.encoder, Encoder::Asleep) && self.feed.waiting() > 0 {
                    self.fault = Some("the thread that encodes sleeps, and could encode".to_owned());
                }
                let engine_ns = now_ns + self.wake_ms.saturating_sub(now.mono_ms).max(1) * 1_000_000;
                return wire_ns.min(engine_ns).max(now_ns + 1);
            }
        }
    }

    /// Whether there is nothing to do but to wait for another drop.
    pub(super) fn is_idle(&self) -> bool {
        self.works.is_empty() && self.feed.is_empty()
    }

    /// The workers' threads: in any order.
    fn work(&mut self, now: Now, slow: bool) -> bool {
        if slow || self.works.is_empty() {
            return false;
        }
        while !self.works.is_empty() {
            let at = usize::try_from(self.rng.below(self.works.len() as u64)).expect("small");
            let done = self.works.swap_remove(at).run(&self.disk);
            self.engine.done(done, now);
        }
        true
    }

    /// What must not be, if it was.
    pub(super) fn fault(&mut self) -> Option<String> {
        self.fault.take()
    }

    /// The pipeline's threads, until all of them wait. Gives until when.
    fn pump(&mut self, now_ns: u64, now: Now, slow: bool, told: &mut Told) -> u64 {
        let at = Time(now_ns + 1);
        let mut batch = Batch::new();
        loop {
            let first = self.rng.below(3);
            let any = (0..3).any(|offset| match (first + offset) % 3 {
                0 => self.read(slow),
                1 => self.encode(),
                _ => self.transmit(at, now.wall_ms, &mut batch, told),
            });
            if !any {
                break;
            }
        }
        self.lane.map_or(now_ns, |until| until.0)
    }

    /// One step of the thread that reads. False: it sleeps, or waits for a slow disk.
    fn read(&mut self, slow: bool) -> bool {
        self.reader = match std::mem::replace(&mut self.reader, Reader::Awake) {
            Reader::Awake => match self.feed.poll_read() {
                NextRead::Read(read) => Reader::Reading(read),
                NextRead::Conclude(job) => Reader::Concluding(job),
                NextRead::Wait => Reader::Asleep,
            },
            Reader::Reading(mut read) if !slow => {
                let disk = &self.disk;
                let result = read.fill(|job, reader, bytes, offset| job.read(disk, reader, bytes, offset));
                Reader::HasRead(read, result)
            }
            Reader::Concluding(job) if !slow => {
                Reader::HasConcluded(job.conclude(&self.key, |job, reader| job.finish(&self.disk, reader)))
            }
            Reader::HasRead(read, result) => {
                self.feed.handle_read(read, result);
                self.wake();
                Reader::Awake
            }
            Reader::HasConcluded(concluded) => {
                self.feed.handle_concluded(concluded);
                self.wake();
                Reader::Awake
            }
            waits @ (Reader::Asleep | Reader::Reading(_) | Reader::Concluding(_)) => {
                self.reader = waits;
                return false;
            }
        };
        true
    }

    /// One step of the thread that encodes. False: it sleeps.
    fn encode(&mut self) -> bool {
        self.encoder = match std::mem::replace(&mut self.encoder, Encoder::Asleep) {
            Encoder::Awake => self.feed.poll_encode().map_or(Encoder::Asleep, Encoder::Encoding),
            Encoder::Asleep => return false,
            Encoder::Encoding(read) => Encoder::HasEncoded(read.encode(&self.plans)),
            Encoder::HasEncoded(encoded) => {
                let starved = self.feed.is_starved();
                self.feed.handle_encoded(encoded);
                if self.wake() == 0 && starved && !self.feed.is_starved() {
                    self.fault = Some("the lane sleeps, and could send".to_owned());
                }
                Encoder::Awake
            }
        };
        true
    }

    /// One step of the lane. False: it sleeps.
    fn transmit(&mut self, now: Time, wall_ms: u64, batch: &mut Batch, told: &mut Told) -> bool {
        if self.lane.is_some_and(|until| now < until) {
            return false;
        }
        match self.feed.poll_transmit(0, now, wall_ms, batch, Some(&self.sealer)) {
            Transmit::Ready => told.datagrams.extend(batch.datagrams().map(<[u8]>::to_vec)),
            Transmit::Wait(until) => self.lane = Some(until),
            Transmit::Idle => unreachable!("the feed says when to come again"),
        }
        // A lane that was told to wait and woken by what it did itself is awake all the same.
        self.wake();
        true
    }

    /// The lock is given up: whoever has something to do is woken, if it sleeps. Gives how many lanes.
    fn wake(&mut self) -> usize {
        let wakes = self.feed.poll_wakes();
        if wakes.reader && matches!(self.reader, Reader::Asleep) {
            self.reader = Reader::Awake;
        }
        if wakes.encoders > 0 && matches!(self.encoder, Encoder::Asleep) {
            self.encoder = Encoder::Awake;
        }
        if wakes.lanes > 0 {
            self.lane = None;
        }
        wakes.lanes
    }
}

pub(super) fn signing_key() -> Arc<SigningKey> {
    Arc::new(SigningKey::from_seed([3; 32]))
}
