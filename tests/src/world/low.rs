//! The sender's process: the real engine, [`Feed`], and simulated threads around them.

mod threads;

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use checkvalve_host::disk::Disk;
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::seal::Sealer;
use checkvalve_protocol::transmit::feed::{Feed, FeedSetup};
use checkvalve_protocol::transmit::{Link, Parameters};
use checkvalve_sender::engine::{Engine, Now, OpenError, Rules, Setup};
use checkvalve_sender::pipeline::{Finished, Job};
use checkvalve_sender::work::Work;

use self::threads::{Encoder, Lane, Reader};
use super::pace::Pace;
use super::script::Options;
use super::wire::LANES;
use crate::rng::Rng;
use crate::simdisk::SimDisk;

const RATE: u64 = 8_000_000;
/// Symbols of a source block.
const BLOCK: u16 = 8;

/// A run of the sender's process.
pub(super) struct Low {
    pub(super) engine: Engine,
    disk: Arc<dyn Disk>,
    key: Arc<SigningKey>,
    sealer: Sealer,
    plans: Arc<Plans>,
    feed: Feed<Job>,
    reader: Reader,
    /// If there are none, the reading thread does their work.
    encoders: Vec<Encoder>,
    lanes: Vec<Lane>,
    works: Vec<Work>,
    /// Work that a slow disk delays until that time.
    late_works: Vec<(u64, Work)>,
    /// Until when the reading thread waits for the disk.
    reads_until: u64,
    wake_ms: u64,
    rng: Rng,
    /// An invariant that a thread found violated.
    fault: Option<String>,
}

/// The output of a step of the process.
#[derive(Default)]
pub(super) struct Told {
    /// Datagrams, each with its lane.
    pub(super) datagrams: Vec<(usize, Vec<u8>)>,
    /// Jobs that the engine started.
    pub(super) jobs: Vec<Started>,
    /// Bundles whose transmission ended, and whether it was complete.
    pub(super) ended: Vec<(BundleId, bool)>,
}

pub(super) struct Started {
    pub(super) bundle: BundleId,
    pub(super) channel: String,
    pub(super) sequence: u64,
    pub(super) name: Vec<u8>,
    pub(super) bytes: u64,
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
    derived.with_block(derived.symbol_size(), BLOCK)
}

/// How many source blocks `bytes` of data have.
pub(super) fn blocks(bytes: u64) -> u32 {
    let size = parameters(&Options::default()).symbol_size();
    Oti::new(bytes, size, BLOCK).map_or(0, |oti| oti.blocks())
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
            lanes: options.lanes,
            // As little as possible, so that the reading thread has to wait.
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
            encoders: (0..options.encoders).map(|_| Encoder::Awake).collect(),
            lanes: (0..options.lanes).map(|_| Lane::default()).collect(),
            works: Vec::new(),
            late_works: Vec::new(),
            reads_until: 0,
            wake_ms: 0,
            rng,
            fault: None,
        })
    }

    /// Does everything that can be done now. Returns when to call it again, in nanoseconds of the world's clock. `now_ns` is that
    /// clock; `now` is the process's own. `pace` says how long the disk takes. No lane takes anything before its time in `stuck`.
    pub(super) fn step(&mut self, now_ns: u64, now: Now, pace: Pace, stuck: &[u64; LANES], told: &mut Told) -> u64 {
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
                    bytes: job.order.data_len,
                    announce: job.order.announce_digest,
                    esis: job.order.first_esi..job.esi_limit,
                });
            }
            actions.jobs.into_iter().for_each(|job| self.feed.submit(job));
            self.wake();
            self.works.extend(actions.work);
            let mut busy = self.work(now_ns, now, pace);
            let wire_ns = self.pump(now_ns, now, pace, stuck, told);
            while let Some((id, how)) = self.feed.poll_finished() {
                told.ended.push((id, matches!(how, Finished::Transmitted { .. })));
                self.engine.finished(id, how, now);
                busy = true;
            }
            if !busy && !self.looks_around(now_ns, now) {
                let engine_ns = now_ns + self.wake_ms.saturating_sub(now.mono_ms).max(1) * 1_000_000;
                let works_ns = self.late_works.iter().map(|(at, _)| *at).min().unwrap_or(u64::MAX);
                return wire_ns.min(engine_ns).min(works_ns).max(now_ns + 1);
            }
        }
    }

    /// Whether the process only waits for another drop.
    pub(super) fn is_idle(&self) -> bool {
        self.works.is_empty() && self.late_works.is_empty() && self.feed.is_empty()
    }

    /// Runs the work of the worker threads in random order.
    fn work(&mut self, now_ns: u64, now: Now, pace: Pace) -> bool {
        if pace.still {
            return false;
        }
        self.works.extend(self.late_works.extract_if(.., |(at, _)| *at <= now_ns).map(|(_, work)| work));
        let any = !self.works.is_empty();
        while !self.works.is_empty() {
            let at = usize::try_from(self.rng.below(self.works.len() as u64)).expect("small");
            let work = self.works.swap_remove(at);
            match pace.delay(&mut self.rng) {
                Some(delay) => self.late_works.push((now_ns + delay, work)),
                None => {
                    let done = work.run(&self.disk);
                    self.engine.done(done, now);
                }
            }
        }
        any
    }

    /// Makes the disk fast again.
    pub(super) fn hurry(&mut self) {
        self.works.extend(self.late_works.drain(..).map(|(_, work)| work));
        self.reads_until = 0;
    }

    /// The violated invariant, if there was one.
    pub(super) fn fault(&mut self) -> Option<String> {
        self.fault.take()
    }
}

pub(super) fn signing_key() -> Arc<SigningKey> {
    // To make one takes as long as to sign, and it is asked for at each step.
    static KEY: LazyLock<Arc<SigningKey>> = LazyLock::new(|| Arc::new(SigningKey::from_seed([3; 32])));
    Arc::clone(&KEY)
}
