//! The sender's process: the real engine, and its pipeline without threads, in the order of `pipeline/produce.rs` and
//! `pipeline/transmit.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use checkvalve_host::disk::Disk;
use checkvalve_protocol::beacon::{Beacon, ChannelState, OnWire};
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::manifest::{Hashes, Outcome};
use checkvalve_protocol::seal::Sealer;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::transmit::{
    Batch, Encoder, Link, Parameters, Selection, StreamId, Task, Transmit, Transmitter, Work as Tasks, WorkShape,
};
use checkvalve_protocol::wire::ObjectKind;
use checkvalve_sender::bundle::{ReadError, Reader, SpotReader};
use checkvalve_sender::engine::{Engine, Now, OpenError, Rules, Setup};
use checkvalve_sender::pipeline::{Finished, Job};
use checkvalve_sender::work::Work;

use super::script::Options;
use crate::rng::Rng;
use crate::simdisk::SimDisk;

/// Blocks read ahead of the ring, as in the real one.
const AHEAD: usize = 4;
const RATE: u64 = 8_000_000;

/// A run of the sender's process.
pub(super) struct Low {
    pub(super) engine: Engine,
    disk: Arc<dyn Disk>,
    key: Arc<SigningKey>,
    parameters: Parameters,
    sealer: Sealer,
    plans: Arc<Plans>,
    transmitter: Transmitter,
    works: Vec<Work>,
    queue: VecDeque<Job>,
    active: Vec<Active>,
    running: BTreeMap<u64, Running>,
    finished: Vec<(BundleId, Finished)>,
    starved: bool,
    channels: Vec<ChannelState>,
    next_channel: usize,
    next_beacon: u64,
    /// Beacons that were made.
    beacons: u64,
    wake_ms: u64,
    rng: Rng,
}

struct Active {
    stream: StreamId,
    job: Job,
    tasks: Tasks,
    source: Source,
    hashes: Option<Vec<u8>>,
    outcome: Option<Finished>,
}

enum Source {
    Whole(Box<Reader>),
    Parts(SpotReader),
    Ended,
}

struct Running {
    bundle: BundleId,
    on_wire: OnWire,
    priority: i16,
    held: usize,
    blocks_sent: u32,
    ended: Option<Finished>,
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
        let transmitter = Transmitter::new(&sealer, &parameters, Duration::from_millis(1));
        Ok(Self {
            engine,
            disk,
            key,
            parameters,
            sealer,
            plans: Arc::clone(plans),
            transmitter,
            works: Vec::new(),
            queue: VecDeque::new(),
            active: Vec::new(),
            running: BTreeMap::new(),
            finished: Vec::new(),
            starved: false,
            channels: Vec::new(),
            next_channel: 0,
            next_beacon: 0,
            beacons: 0,
            wake_ms: 0,
            rng,
        })
    }

    /// Does all that can be done now. Gives when it wants to be called again, in nanoseconds of the world's clock; `now_ns`
    /// is that clock, `now` the process's own. With `slow`, nothing that waits for the disk goes on.
    pub(super) fn step(&mut self, now_ns: u64, now: Now, slow: bool, told: &mut Told) -> u64 {
        loop {
            let actions = self.engine.step(now);
            self.wake_ms = actions.wake_ms;
            if actions.beacon {
                self.channels = self.engine.beacon();
            }
            for job in &actions.jobs {
                told.jobs.push(Started {
                    bundle: job.bundle,
                    channel: job.channel.to_string(),
                    sequence: job.sequence,
                    name: job.plan.announce.name.clone(),
                    announce: job.announce_digest,
                    esis: job.first_esi..job.esi_limit,
                });
            }
            self.queue.extend(actions.jobs);
            self.works.extend(actions.work);
            let mut busy = self.work(now, slow);
            let wire_ns = self.pump(now_ns, now, slow, told);
            for (id, how) in std::mem::take(&mut self.finished) {
                told.ended.push((id, matches!(how, Finished::Transmitted { .. })));
                self.engine.finished(id, how, now);
                busy = true;
            }
            if !busy {
                let engine_ns = now_ns + self.wake_ms.saturating_sub(now.mono_ms).max(1) * 1_000_000;
                return wire_ns.min(engine_ns).max(now_ns + 1);
            }
        }
    }

    /// Whether there is nothing to do but to wait for another drop.
    pub(super) fn is_idle(&self) -> bool {
        self.works.is_empty() && self.queue.is_empty() && self.active.is_empty() && self.running.is_empty()
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

    /// The pipeline's threads.
    fn pump(&mut self, now_ns: u64, now: Now, slow: bool, told: &mut Told) -> u64 {
        let mut batch = Batch::new();
        loop {
            while !slow && self.produce() {}
            if now_ns >= self.next_beacon {
                self.next_beacon = now_ns + 1_000_000_000;
                self.push_beacon(now);
            }
            let next = self.transmitter.poll_transmit(Time(now_ns + 1), &mut batch, Some(&self.sealer));
            self.collect_spent();
            match next {
                Transmit::Ready => {
                    told.datagrams.extend(batch.datagrams().map(<[u8]>::to_vec));
                }
                Transmit::Wait(at) => return at.0.min(self.next_beacon),
                Transmit::Idle if !self.starved && !self.active.is_empty() && !slow => self.starved = true,
                Transmit::Idle => return self.next_beacon,
            }
        }
    }

    /// One step of the producing thread. False: it would wait.
    fn produce(&mut self) -> bool {
        let best = self.active.iter().map(|a| a.job.priority).max();
        let waiting = self.queue.iter().enumerate().filter(|(_, job)| {
            best.is_none_or(|p| job.priority >= p)
                && (job.withdrawn.is_some() || self.active.iter().all(|a| a.job.channel != job.channel))
        });
        let next = waiting.min_by_key(|(at, job)| (-i32::from(job.priority), *at)).map(|(at, _)| at);
        if let Some(job) = next.and_then(|at| self.queue.remove(at)) {
            self.begin(job);
            return true;
        }
        let limit = self.parameters.depth() as usize + AHEAD;
        let held = |a: &Active| self.running.get(&a.stream.0).map_or(0, |r| r.held);
        let found = self.active.iter().enumerate().filter(|(_, a)| Some(a.job.priority) == best && held(a) < limit);
        let found = found.map(|(at, a)| (held(a), at)).min();
        let room = self.transmitter.schedule().held() < 2 * limit || self.starved;
        let (Some((_, at)), true) = (found, room) else { return false };
        let mut active = self.active.remove(at);
        match self.one_block(&mut active) {
            Ok(true) => self.active.insert(at, active),
            Ok(false) => self.end(active),
            Err(error) => self.fail(active, error),
        }
        true
    }

    fn begin(&mut self, job: Job) {
        let data_len = if job.withdrawn.is_some() { 0 } else { job.data_len };
        let tasks = match self.tasks(&job, data_len, job.selection.clone()) {
            Ok(tasks) => tasks,
            Err(reason) => return self.finished.push((job.bundle, Finished::Failed { reason })),
        };
        let stream = self.transmitter.schedule().open(tasks.stream(job.priority));
        job.progress.blocks_total.store(tasks.blocks(), Ordering::Relaxed);
        let on_wire = OnWire {
            bundle: job.bundle,
            channel: job.channel.clone(),
            sequence: job.sequence,
            pass: job.pass,
            passes: job.passes,
            blocks: u32::try_from(tasks.blocks()).unwrap_or(u32::MAX),
            blocks_sent: 0,
        };
        let running =
            Running { bundle: job.bundle, on_wire, priority: job.priority, held: 0, blocks_sent: 0, ended: None };
        self.running.insert(stream.0, running);
        let (disk, plan, root) = (Arc::clone(&self.disk), Arc::clone(&job.plan), job.root.clone());
        let source = match (&job.selection, &job.known_hashes) {
            _ if job.withdrawn.is_some() => Source::Ended,
            (Selection::Ranges(_), Some(_)) => Source::Parts(SpotReader::new(disk, plan, root)),
            (_, Some(hashes)) => Source::Whole(Box::new(Reader::new(disk, plan, root).expecting(Arc::clone(hashes)))),
            (_, None) => Source::Whole(Box::new(Reader::new(disk, plan, root))),
        };
        self.active.push(Active { stream, job, tasks, source, hashes: None, outcome: None });
    }

    fn tasks(&self, job: &Job, data_len: u64, selection: Selection) -> Result<Tasks, ReadError> {
        let parameters = self.parameters.with_block(job.symbol_size, job.block_symbols);
        let announce_len = job.announce.len() as u64;
        let shape = WorkShape { bundle: job.bundle, announce_len, data_len, selection, first_esi: job.first_esi };
        Tasks::new(&parameters, &shape).map_err(|error| ReadError::Broken(error.to_string()))
    }

    fn one_block(&mut self, active: &mut Active) -> Result<bool, ReadError> {
        let task = match active.tasks.next_task() {
            Some(task) => task,
            None => {
                if let Some(reason) = active.job.withdrawn.take() {
                    self.sign(active, Outcome::withdrawn(&reason));
                    active.outcome = Some(Finished::Withdrawn);
                } else if active.hashes.is_none() {
                    let files = match std::mem::replace(&mut active.source, Source::Ended) {
                        Source::Whole(reader) => reader.finish()?,
                        _ => active.job.known_hashes.as_ref().map(|h| h.as_ref().clone()).unwrap_or_default(),
                    };
                    self.sign(active, Outcome::Complete { files: files.clone() });
                    active.outcome = Some(Finished::Transmitted { hashes: files });
                }
                match active.tasks.next_closing() {
                    Some(task) => task,
                    None => return Ok(false),
                }
            }
        };
        self.make(active, &task)?;
        Ok(true)
    }

    fn sign(&self, active: &mut Active, outcome: Outcome) {
        let hashes = Hashes { bundle: active.job.bundle, announce: active.job.announce_digest, outcome };
        let signed = hashes.sign(&self.key).expect("hashes that can be signed");
        active.tasks.hashes(signed.len() as u64).expect("hashes that can be coded");
        active.hashes = Some(signed);
    }

    fn make(&mut self, active: &mut Active, task: &Task) -> Result<(), ReadError> {
        let mut source = vec![0; Encoder::padded_len(task)];
        let bytes = &mut source[..task.len];
        let start = usize::try_from(task.offset).expect("an object in memory");
        match task.symbol.kind {
            ObjectKind::Announce => bytes.copy_from_slice(&active.job.announce[start..start + task.len]),
            ObjectKind::Hashes => {
                let hashes = active.hashes.as_ref().expect("they were signed");
                bytes.copy_from_slice(&hashes[start..start + task.len]);
            }
            ObjectKind::Data => {
                let got = match &mut active.source {
                    Source::Whole(reader) => reader.read(bytes)?,
                    Source::Parts(reader) => reader.read_at(bytes, task.offset)?,
                    Source::Ended => 0,
                };
                if got != bytes.len() {
                    return Err(ReadError::Unfinished);
                }
            }
        }
        let coded = Encoder::new(&self.plans).encode(task, source, Vec::new());
        let (block, _) = coded.expect("a block that can be coded");
        if let Some(running) = self.running.get_mut(&active.stream.0) {
            running.held += 1;
        }
        self.transmitter.schedule().push(active.stream, block);
        self.starved = false;
        Ok(())
    }

    fn end(&mut self, active: Active) {
        if let Some(running) = self.running.get_mut(&active.stream.0) {
            running.ended = Some(active.outcome.unwrap_or(Finished::Aborted));
        }
        self.transmitter.schedule().close(active.stream);
        self.finish_if_over(active.stream);
    }

    fn fail(&mut self, mut active: Active, reason: ReadError) {
        self.transmitter.schedule().abort(active.stream);
        self.collect_spent();
        active.outcome = Some(Finished::Failed { reason });
        self.end(active);
    }

    fn collect_spent(&mut self) {
        while let Some(spent) = self.transmitter.schedule().poll_spent() {
            if let Some(running) = self.running.get_mut(&spent.stream.0) {
                running.held = running.held.saturating_sub(1);
                running.blocks_sent += u32::from(spent.symbol.kind == ObjectKind::Data);
                self.finish_if_over(spent.stream);
            }
        }
    }

    fn finish_if_over(&mut self, stream: StreamId) {
        if self.running.get(&stream.0).is_some_and(|r| r.held == 0 && r.ended.is_some())
            && let Some(Running { bundle, ended: Some(how), .. }) = self.running.remove(&stream.0)
        {
            self.finished.push((bundle, how));
        }
    }

    fn push_beacon(&mut self, now: Now) {
        let on_wire = self.running.values().max_by_key(|r| (r.priority, std::cmp::Reverse(r.on_wire.sequence)));
        let on_wire = on_wire.map(|r| OnWire { blocks_sent: r.blocks_sent, ..r.on_wire.clone() });
        let channel = match self.channels.len() {
            0 => None,
            count => {
                self.next_channel = (self.next_channel + 1) % count;
                self.channels.get(self.next_channel).cloned()
            }
        };
        self.beacons += 1;
        let beacon = Beacon {
            epoch: self.engine.epoch(),
            session_number: self.engine.session_number(),
            session: self.sealer.session(),
            counter: self.beacons,
            clock_ms: now.wall_ms,
            rate_bits: RATE,
            datagrams: self.transmitter.datagrams(),
            on_wire,
            channel,
        };
        self.transmitter.push_beacon(beacon.sign(&self.key, usize::from(self.parameters.symbol_size())));
    }
}

pub(super) fn signing_key() -> Arc<SigningKey> {
    Arc::new(SigningKey::from_seed([3; 32]))
}
