//! The data plane of the high side: threads, a socket a lane and a sink around [`Intake`], which decides what is done next.
//!
//! 1. [`receive`], one thread a lane: takes datagrams from the kernel, authenticates and decrypts them into the places of their
//!    symbols in blocks. It never touches a disk, and waits for anything but the socket only when memory is nearly full of blocks
//!    that are to be stored, as long as the kernel's buffer has room for what comes.
//! 2. `work`, several threads: decodes blocks that lack source symbols and hands each block to the [`Sink`], which stores it. Blocks wait
//!    in memory when the disk is slow; when that memory is full, symbols are dropped and counted.
//! 3. `check`, one thread: checks signed objects that came in one block, and beacons, at a limited rate. Accepting one
//!    does not wait for the disk, so that bundles become known even while the disk hangs.
//! 4. `tend`, one thread: progress, time.
//!
//! A thread's loop is: lock, poll, unlock, do it, lock, report. The sink is never called under the lock: what it is asked about an
//! object, and answers, waits in [`Intake`] as a question.

mod cores;
mod lately;
mod receive;
mod resume;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::id::KeyTag;
use checkvalve_protocol::receive::intake::{BlockOutcome, Intake, NextWork};
use checkvalve_protocol::receive::{BlockMemory, Check, DropReason, Drops, Limits, NextCheck, ReceivedBlock, Usage};
use checkvalve_protocol::seal::Opener;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::wire::ObjectKind;

use crate::link::{Link, ReceiveBuffer};
use crate::sink::{Lost, ObjectProgress, Sink, StoreError};
use crate::windows::{Sample, Spans, Windows};
use cores::Cores;
use lately::Lately;
pub use receive::ask;
pub use resume::take_up;

/// How the pipeline is set up.
#[derive(Clone)]
pub struct PipelineConfig {
    /// One address a lane.
    pub listen: Vec<SocketAddr>,
    /// The link key; None for `insecure` mode.
    pub link_key: Option<[u8; 32]>,
    /// What blocks and objects may take before they are stored, and signatures that are checked a second.
    pub limits: Limits,
    /// Bytes of the kernel's receive buffer, a lane.
    pub kernel_buffer: usize,
    /// Threads that decode and store.
    pub workers: usize,
    /// Where blocks under way outlive the process, on a tmpfs; None: on the heap.
    pub lasting: Option<PathBuf>,
    /// Which run of the kernel this is: memory of another one is gone.
    pub boot: [u8; 16],
}

/// What happened on the link since the start.
#[derive(Debug, Clone, Default)]
pub struct LinkStats {
    /// Datagrams that reached the daemon.
    pub datagrams: u64,
    /// Their bytes, UDP headers not counted.
    pub bytes: u64,
    /// Datagrams dropped, by reason.
    pub drops: Drops,
    /// Those of the last ten seconds.
    pub drops_lately: Drops,
    /// Datagrams that the kernel dropped because its buffer was full.
    pub kernel_drops: u64,
    /// Blocks that came whole.
    pub blocks_whole: u64,
    /// Blocks that had to be decoded.
    pub blocks_decoded: u64,
    /// Blocks that could not be stored.
    pub blocks_failed: u64,
    /// Unfinished blocks kept on disk for want of memory, or because no symbol came for long.
    pub blocks_parked: u64,
    /// Unfinished blocks whose symbols could not be kept either.
    pub blocks_lost: u64,
    /// What is in use.
    pub usage: Usage,
    /// Unix time in milliseconds of the last authentic datagram; 0 before the first.
    pub last_heard_ms: u64,
    /// The last minute, hour and day.
    pub windows: Spans,
    /// The same as the sender with each key says.
    pub senders: BTreeMap<KeyTag, Spans>,
}

/// The running data plane.
pub struct Pipeline {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    buffers: Vec<ReceiveBuffer>,
}

struct Shared {
    sink: Arc<dyn Sink>,
    plans: Plans,
    intake: Mutex<Intake>,
    /// Blocks wait, or it is time to stop.
    work: Condvar,
    /// Something waits to be checked, or it is time to stop.
    check: Condvar,
    /// A block was stored.
    room: Condvar,
    stop: AtomicBool,
    origin: Instant,
    cores: Cores,
    counts: Counts,
    windows: Mutex<Windows>,
    lately: Lately,
}

#[derive(Default)]
struct Counts {
    datagrams: AtomicU64,
    bytes: AtomicU64,
    last_heard_ms: AtomicU64,
    kernel: Vec<AtomicU64>,
}

/// A thread looks at least so often, woken or not.
const LOOK: Duration = Duration::from_millis(100);

impl Pipeline {
    /// Opens the sockets and starts the threads. Errors: a socket cannot be opened, a thread cannot be started.
    pub fn start(config: &PipelineConfig, sink: Arc<dyn Sink>) -> io::Result<Self> {
        let limits = config.limits;
        // The sockets first: the kernel holds what comes while the blocks of the run before are looked after.
        let (mut links, mut buffers) = (Vec::new(), Vec::new());
        for &address in &config.listen {
            let (link, buffer) = Link::open(address, config.kernel_buffer)
                .map_err(|error| io::Error::new(error.kind(), format!("{address}: cannot listen: {error}")))?;
            links.push(link);
            buffers.push(buffer);
        }
        let plans = Plans::new();
        let lasting = config.lasting.as_deref().and_then(|path| {
            resume::go_on(path, config.boot, &plans, &*sink);
            resume::lasting_memory(path, config.boot, limits.memory)
        });
        let kernel = config.listen.iter().map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared {
            sink,
            plans,
            intake: Mutex::new(Intake::new(limits, lasting.map(|memory| Box::new(memory) as Box<dyn BlockMemory>))),
            work: Condvar::new(),
            check: Condvar::new(),
            room: Condvar::new(),
            stop: AtomicBool::new(false),
            origin: Instant::now(),
            cores: Cores::new(config.listen.len()),
            counts: Counts { kernel, ..Counts::default() },
            windows: Mutex::default(),
            lately: Lately::default(),
        });
        let mut this = Self { shared, threads: Vec::new(), buffers };
        for (lane, link) in links.into_iter().enumerate() {
            let opener = Opener::new(config.link_key);
            this.spawn(format!("receive-{lane}"), move |shared| receive::run(shared, lane, link, opener))?;
        }
        for worker in 0..config.workers.max(1) {
            this.spawn(format!("work-{worker}"), work)?;
        }
        this.spawn("check".into(), check)?;
        this.spawn("tend".into(), tend)?;
        Ok(this)
    }

    /// What the kernel gave each lane.
    #[must_use]
    pub fn receive_buffers(&self) -> &[ReceiveBuffer] {
        &self.buffers
    }

    /// What happened since the start.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        let counts = &self.shared.counts;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (drops, blocks, usage) = {
            let intake = self.shared.lock();
            (intake.drops(), intake.counts(), intake.usage())
        };
        let (windows, senders) = {
            let (known, now) = (self.shared.lock_windows(), self.shared.uptime_ms());
            (known.get(now), known.senders(now))
        };
        LinkStats {
            datagrams: get(&counts.datagrams),
            bytes: get(&counts.bytes),
            drops,
            drops_lately: self.shared.lately.since(&drops),
            kernel_drops: counts.kernel.iter().map(get).sum(),
            blocks_whole: blocks.whole,
            blocks_decoded: blocks.decoded,
            blocks_failed: blocks.failed,
            blocks_parked: blocks.parked,
            blocks_lost: blocks.lost,
            usage,
            last_heard_ms: get(&counts.last_heard_ms),
            windows,
            senders,
        }
    }

    /// Which blocks of a bundle's data have some of their symbols, by SBN, and how many they lack.
    #[must_use]
    pub fn lacking(&self, bundle: checkvalve_protocol::id::BundleId) -> Vec<(u32, u32)> {
        self.shared.lock().lacking(bundle)
    }

    /// The sink's answers about this bundle have changed: it is asked again at its next datagram.
    pub fn forget(&self, bundle: checkvalve_protocol::id::BundleId) {
        self.shared.lock().forget(bundle);
    }

    /// Stops receiving, stores what is complete, and waits for the threads.
    pub fn stop(mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.lock().stop();
        self.shared.work.notify_all();
        self.shared.check.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the data plane panicked");
            }
        }
        // What the others made complete meanwhile.
        check(&self.shared);
    }

    /// Whether a thread of the data plane has died: the daemon must then end, not look alive.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce(&Shared) + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(std::thread::Builder::new().name(name).spawn(move || run(&shared))?);
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The end of every report: whoever has something to do now is woken, and what is asked about is answered.
    fn unlock<'a>(&'a self, mut intake: MutexGuard<'a, Intake>) {
        loop {
            let wakes = intake.poll_wakes(self.now());
            let question = intake.poll_question();
            drop(intake);
            (0..wakes.workers).for_each(|_| self.work.notify_one());
            if wakes.checker {
                self.check.notify_one();
            }
            if wakes.lanes {
                self.room.notify_all();
            }
            let Some(question) = question else { return };
            let answer = ask(&*self.sink, &question.symbol);
            intake = self.lock();
            intake.handle_answer(self.now(), &question, answer);
        }
    }
}

/// 2. From blocks to the disk. What was ready before a stop is still stored, and what was unfinished is kept.
fn work(shared: &Shared) {
    let mut left = Cores::stores();
    let mut intake = shared.lock();
    loop {
        if intake.is_late() {
            drop(intake);
            shared.cores.keep_apart(&mut left);
            intake = shared.lock();
        }
        intake = match intake.poll_work(shared.now()) {
            NextWork::Store(block) => {
                shared.unlock(intake);
                store(shared, block);
                shared.lock()
            }
            NextWork::Park(block) => {
                shared.unlock(intake);
                let kept = shared.sink.park(&block);
                let mut intake = shared.lock();
                intake.handle_parked(shared.now(), block, kept);
                shared.unlock(intake);
                shared.lock()
            }
            NextWork::Wait(wait) => {
                shared.work.wait_timeout(intake, wait.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0
            }
            NextWork::Over => return,
        };
    }
}

fn store(shared: &Shared, mut block: ReceivedBlock) {
    if block.has_parked() {
        shared.sink.unpark(&mut block);
    }
    if is_undecodable(shared, &mut block) {
        return report(shared, block, BlockOutcome::Undecodable);
    }
    let oti = block.oti();
    let stored = shared.sink.block(block.bundle(), block.kind(), &oti, block.sbn(), block.data());
    if block.kind() != ObjectKind::Data {
        take_up_vouched(shared);
    }
    if let Err(error) = &stored {
        tracing::debug!(bundle = %block.bundle(), sbn = block.sbn(), %error, "block not stored");
    }
    report(shared, block, outcome(&stored));
}

/// 3. Signed objects and beacons, as many a second as may be checked. After a stop all objects that came: they may not come again.
fn check(shared: &Shared) {
    loop {
        let mut intake = shared.lock();
        match intake.poll_check(shared.now()) {
            NextCheck::Check(next) => {
                drop(intake);
                check_one(shared, next);
            }
            NextCheck::Wait(wait) => {
                drop(intake);
                std::thread::sleep(wait.min(LOOK));
            }
            NextCheck::Idle => {
                drop(shared.check.wait_timeout(intake, LOOK).unwrap_or_else(PoisonError::into_inner));
            }
            NextCheck::Over => return,
        }
    }
}

fn check_one(shared: &Shared, next: Check) {
    match next {
        Check::Beacon(session, signed) => {
            let sent = shared.sink.beacon(unix_ms(), session, &signed);
            let mut intake = shared.lock();
            intake.handle_beacon(session, sent);
            shared.unlock(intake);
        }
        Check::Object(mut block) => {
            let outcome = if is_undecodable(shared, &mut block) {
                BlockOutcome::Undecodable
            } else {
                let taken = shared.sink.manifest(block.bundle(), block.kind(), block.data());
                if let Err(error) = &taken {
                    tracing::debug!(bundle = %block.bundle(), %error, "signed object not taken");
                }
                outcome(&taken)
            };
            report(shared, *block, outcome);
        }
    }
    take_up_vouched(shared);
}

fn is_undecodable(shared: &Shared, block: &mut ReceivedBlock) -> bool {
    let Err(error) = block.decode(&shared.plans) else { return false };
    if error != checkvalve_protocol::fec::FecError::NotEnough {
        tracing::error!(bundle = %block.bundle(), sbn = block.sbn(), %error, "decode");
    }
    true
}

fn report(shared: &Shared, block: ReceivedBlock, outcome: BlockOutcome) {
    let mut intake = shared.lock();
    intake.handle_block(shared.now(), block, outcome);
    shared.unlock(intake);
}

/// What the sink's answer about a block means.
#[must_use]
pub fn outcome(stored: &Result<(), StoreError>) -> BlockOutcome {
    match stored {
        Ok(()) => BlockOutcome::Stored,
        Err(StoreError::Refused) => BlockOutcome::Refused,
        Err(StoreError::Unwanted) => BlockOutcome::Unwanted,
        Err(StoreError::NoRoom) => BlockOutcome::NoRoom,
        Err(StoreError::Disk(_)) => BlockOutcome::Failed,
    }
}

/// Bundles that somebody signed for have more room, and what waited for that is taken.
fn take_up_vouched(shared: &Shared) {
    for bundle in shared.sink.vouched() {
        let mut intake = shared.lock();
        intake.handle_vouched(shared.now(), bundle);
        shared.unlock(intake);
    }
}

/// 4. Progress and time, ten times a second.
fn tend(shared: &Shared) {
    while !shared.stopping() {
        std::thread::sleep(LOOK);
        let (expired, progress, sample, drops): (Vec<_>, Vec<_>, Sample, Drops) = {
            let mut intake = shared.lock();
            intake.handle_timeout(shared.now());
            let kernel = shared.counts.kernel.iter().map(|count| count.load(Ordering::Relaxed)).sum();
            let drops = intake.drops();
            let memory = drops.get(DropReason::Memory);
            let sample = Sample { tallies: intake.poll_tally(), kernel, memory };
            let expired = std::iter::from_fn(|| intake.poll_expired()).collect();
            let progress = intake.progress().collect();
            shared.unlock(intake);
            (expired, progress, sample, drops)
        };
        shared.lock_windows().add(shared.uptime_ms(), &sample);
        shared.lately.add(shared.uptime_ms(), drops);
        expired.into_iter().for_each(|bundle| shared.sink.expired(bundle));
        for p in progress {
            shared.sink.progress(p.bundle, p.kind, ObjectProgress::of(&p));
        }
        shared.sink.tick(unix_ms());
        for (bundle, lost) in shared.sink.lost() {
            let mut intake = shared.lock();
            match lost {
                Lost::All => intake.forget(bundle),
                Lost::Stored => intake.ask_again(bundle),
            }
            shared.unlock(intake);
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
