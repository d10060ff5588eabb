//! The data plane of the high side.
//!
//! 1. [`receive`], one thread a lane: takes datagrams from the kernel, authenticates and decrypts them into the places of their
//!    symbols in blocks. It never touches a disk, and waits for anything but the socket only when memory is nearly full of blocks
//!    that are to be stored, as long as the kernel's buffer has room for what comes.
//! 2. `work`, several threads: decodes blocks that lack source symbols and hands each block to the [`Sink`], which
//!    stores it, in the order of the object where that takes no waiting worth the name ([`ready`]). Blocks wait here in memory
//!    when the disk is slow; when that memory is full, symbols are dropped and counted.
//! 3. `check`, one thread: signed objects that came in one block, and beacons, as many a second as may be checked. What counts waits for
//!    no disk, so that one that stands still keeps no bundle from being known.
//! 4. `tend`, one thread: progress, time.

mod cores;
mod ready;
mod receive;
mod resume;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::receive::{Check, DropReason, Drops, Limits, NextCheck, Reassembly, ReceivedBlock, Usage};
use checkvalve_protocol::seal::Opener;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::wire::{ObjectKind, Symbol};

use crate::link::{Link, ReceiveBuffer};
use crate::sink::{ObjectProgress, Sink, StoreError};
use crate::windows::{LinkWindow, Sample, Windows};
use cores::Cores;
use ready::{Next, Place, Ready};
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
    pub windows: [LinkWindow; 3],
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
    state: Mutex<State>,
    /// Blocks wait, or it is time to stop.
    work: Condvar,
    /// Something waits to be checked, or it is time to stop.
    check: Condvar,
    /// A block was stored.
    room: Condvar,
    /// Bytes of blocks from which on the threads that receive wait for those that store.
    pressed: u64,
    stop: AtomicBool,
    origin: Instant,
    cores: Cores,
    counts: Counts,
    windows: Mutex<Windows>,
}

struct State {
    reassembly: Reassembly,
    ready: Ready<ReceivedBlock>,
    /// Blocks that had to leave memory unfinished.
    parked: VecDeque<ReceivedBlock>,
    drops: Drops,
}

#[derive(Default)]
struct Counts {
    datagrams: AtomicU64,
    bytes: AtomicU64,
    whole: AtomicU64,
    decoded: AtomicU64,
    failed: AtomicU64,
    parked: AtomicU64,
    lost: AtomicU64,
    last_heard_ms: AtomicU64,
    kernel: Vec<AtomicU64>,
}

/// Unfinished blocks that wait to be kept on disk; beyond these, symbols of new blocks are dropped, since memory is bounded.
const MAX_PARKED: usize = 16;
/// Blocks that wait before a thread that stores looks for a better place.
const BACKLOG: usize = 4;
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
        let reassembly = match lasting {
            Some(memory) => Reassembly::with_memory(limits, Box::new(memory)),
            None => Reassembly::new(limits),
        };
        let kernel = config.listen.iter().map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared {
            sink,
            plans,
            state: Mutex::new(State {
                reassembly,
                ready: Ready::default(),
                parked: VecDeque::new(),
                drops: Drops::default(),
            }),
            work: Condvar::new(),
            check: Condvar::new(),
            room: Condvar::new(),
            pressed: limits.memory / 8 * 7,
            stop: AtomicBool::new(false),
            origin: Instant::now(),
            cores: Cores::new(config.listen.len()),
            counts: Counts { kernel, ..Counts::default() },
            windows: Mutex::default(),
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
        let state = self.shared.lock();
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        LinkStats {
            datagrams: get(&counts.datagrams),
            bytes: get(&counts.bytes),
            drops: state.drops,
            kernel_drops: counts.kernel.iter().map(get).sum(),
            blocks_whole: get(&counts.whole),
            blocks_decoded: get(&counts.decoded),
            blocks_failed: get(&counts.failed),
            blocks_parked: get(&counts.parked),
            blocks_lost: get(&counts.lost),
            usage: state.reassembly.usage(),
            last_heard_ms: get(&counts.last_heard_ms),
            windows: self.shared.lock_windows().get(self.shared.uptime_ms()),
        }
    }

    /// Which blocks of a bundle's data have some of their symbols, by SBN, and how many they lack.
    #[must_use]
    pub fn lacking(&self, bundle: checkvalve_protocol::id::BundleId) -> Vec<(u32, u32)> {
        self.shared.lock().reassembly.lacking(bundle)
    }

    /// The sink's answers about this bundle have changed: it is asked again at its next datagram.
    pub fn forget(&self, bundle: checkvalve_protocol::id::BundleId) {
        self.shared.lock().reassembly.forget(bundle);
    }

    /// Stops receiving, stores what is complete, and waits for the threads.
    pub fn stop(mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.work.notify_all();
        self.shared.check.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the data plane panicked");
            }
        }
        check_rest(&self.shared);
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
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
}

impl State {
    /// Blocks that are complete, to the workers.
    fn collect_ready(&mut self, shared: &Shared) {
        while let Some(block) = self.reassembly.poll_block() {
            let place = Place { bundle: block.bundle(), kind: block.kind(), sbn: block.sbn() };
            self.ready.push(shared.now(), place, block);
            shared.work.notify_one();
        }
        self.drops.merge(&self.reassembly.given_up());
        if self.reassembly.has_checks() {
            shared.check.notify_one();
        }
    }

    /// As [`State::collect_ready`], and unfinished ones that left memory, as many as the workers may keep up with. Not while
    /// stopping: a worker then takes them one by one.
    fn collect(&mut self, shared: &Shared) {
        self.collect_ready(shared);
        while !shared.stopping() && self.parked.len() < MAX_PARKED {
            let Some(block) = self.reassembly.poll_parked() else { return };
            self.parked.push_back(block);
            shared.work.notify_one();
        }
        if self.reassembly.has_admitted() && !shared.stopping() {
            self.reassembly.take_admitted(shared.now(), &mut |symbol| ask(&*shared.sink, symbol));
        }
    }
}

/// What a worker does next.
enum Work {
    Store(ReceivedBlock),
    Park(ReceivedBlock),
}

/// 2. From blocks to the disk. What was ready before a stop is still stored, and what was unfinished is kept.
fn work(shared: &Shared) {
    let mut left = Cores::stores();
    while let Some(work) = next_work(shared, &mut left) {
        match work {
            Work::Store(block) => store(shared, block),
            Work::Park(block) => {
                let kept = shared.sink.park(&block);
                let count = if kept > 0 { &shared.counts.parked } else { &shared.counts.lost };
                count.fetch_add(1, Ordering::Relaxed);
                let mut state = shared.lock();
                if kept > 0 {
                    state.reassembly.parked(shared.now(), block, kept)
                } else {
                    state.reassembly.recycle(block)
                }
                state.collect_ready(shared);
            }
        }
    }
}

fn next_work(shared: &Shared, left: &mut Instant) -> Option<Work> {
    let mut state = shared.lock();
    if state.ready.len() > BACKLOG {
        drop(state);
        shared.cores.keep_apart(left);
        state = shared.lock();
    }
    loop {
        let hurry = shared.stopping() || state.reassembly.memory() >= shared.pressed;
        let wait = match state.ready.next(shared.now(), hurry) {
            Next::Take(block) => return Some(Work::Store(block)),
            Next::Wait(wait) => wait,
        };
        if let Some(block) = state.parked.pop_front() {
            return Some(Work::Park(block));
        }
        if shared.stopping() {
            state.reassembly.park_all();
            return state.reassembly.poll_parked().map(Work::Park);
        }
        let waited = shared.work.wait_timeout(state, wait.min(Duration::from_millis(100)));
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn store(shared: &Shared, mut block: ReceivedBlock) {
    if block.has_parked() {
        shared.sink.unpark(&mut block);
    }
    let whole = block.is_whole();
    if let Err(error) = block.decode(&shared.plans) {
        if error != checkvalve_protocol::fec::FecError::NotEnough {
            tracing::error!(bundle = %block.bundle(), sbn = block.sbn(), %error, "decode");
        }
        let mut state = shared.lock();
        state.reassembly.undecodable(block);
        state.collect_ready(shared);
        return;
    }
    let count = if whole { &shared.counts.whole } else { &shared.counts.decoded };
    count.fetch_add(1, Ordering::Relaxed);
    let oti = block.oti();
    let stored = shared.sink.block(block.bundle(), block.kind(), &oti, block.sbn(), block.data());
    if block.kind() != ObjectKind::Data {
        take_up_vouched(shared);
    }
    match stored {
        Ok(()) => shared.lock().reassembly.stored(block),
        Err(StoreError::Refused) => shared.lock().reassembly.discarded(block),
        Err(error) => {
            // That a bundle ended meanwhile, or has no room, is no failure of the disk.
            let failed = u64::from(!matches!(error, StoreError::Unwanted | StoreError::NoRoom));
            shared.counts.failed.fetch_add(failed, Ordering::Relaxed);
            tracing::debug!(bundle = %block.bundle(), sbn = block.sbn(), %error, "block not stored");
            shared.lock().reassembly.failed(block);
        }
    }
    shared.room.notify_all();
}

/// 3. Signed objects and beacons, as many a second as may be checked.
fn check(shared: &Shared) {
    while !shared.stopping() {
        let mut state = shared.lock();
        match state.reassembly.poll_check(shared.now()) {
            NextCheck::Check(next) => {
                drop(state);
                check_one(shared, next);
            }
            NextCheck::Wait(wait) => {
                drop(state);
                std::thread::sleep(wait.min(Duration::from_millis(100)));
            }
            NextCheck::Idle => {
                let waited = shared.check.wait_timeout(state, Duration::from_millis(100));
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
        }
    }
}

fn check_one(shared: &Shared, next: Check) {
    match next {
        Check::Beacon(session, signed) => {
            let sent = shared.sink.beacon(unix_ms(), session, &signed);
            let mut state = shared.lock();
            match sent {
                Some(datagrams) => state.reassembly.sent(session, datagrams),
                None => state.drops.add(DropReason::Beacon),
            }
        }
        Check::Object(block) => check_object(shared, *block),
    }
    take_up_vouched(shared);
}

/// What came before a stop is still taken in: it may not come again.
fn check_rest(shared: &Shared) {
    loop {
        let next = shared.lock().reassembly.poll_check_now();
        match next {
            Some(Check::Object(block)) => check_object(shared, *block),
            Some(Check::Beacon(..)) => {}
            None => return,
        }
        take_up_vouched(shared);
    }
}

fn check_object(shared: &Shared, mut block: ReceivedBlock) {
    let whole = block.is_whole();
    if block.decode(&shared.plans).is_err() {
        let mut state = shared.lock();
        state.reassembly.undecodable(block);
        return state.collect_ready(shared);
    }
    let count = if whole { &shared.counts.whole } else { &shared.counts.decoded };
    count.fetch_add(1, Ordering::Relaxed);
    let taken = shared.sink.manifest(block.bundle(), block.kind(), block.data());
    let mut state = shared.lock();
    match taken {
        Ok(()) => state.reassembly.stored(block),
        Err(error) => {
            tracing::debug!(bundle = %block.bundle(), %error, "signed object not taken");
            // That there is no room for it speaks against nobody.
            match error {
                StoreError::Refused => state.reassembly.discarded(block),
                _ => state.reassembly.failed(block),
            }
        }
    }
}

/// Bundles that somebody signed for have more room, and what waited for that is taken.
fn take_up_vouched(shared: &Shared) {
    let mut want = |symbol: &Symbol| ask(&*shared.sink, symbol);
    for bundle in shared.sink.vouched() {
        let mut state = shared.lock();
        state.reassembly.vouch(shared.now(), bundle, &mut want);
        state.collect(shared);
    }
}

/// 4. Progress and time, ten times a second.
fn tend(shared: &Shared) {
    while !shared.stopping() {
        std::thread::sleep(Duration::from_millis(100));
        let (expired, progress, sample): (Vec<_>, Vec<_>, Sample) = {
            let mut state = shared.lock();
            let now = shared.now();
            state.reassembly.handle_timeout(now);
            state.collect(shared);
            let kernel = shared.counts.kernel.iter().map(|count| count.load(Ordering::Relaxed)).sum();
            let memory = state.drops.get(DropReason::Memory);
            let sample = Sample { tally: state.reassembly.tally(), kernel, memory };
            let expired = std::iter::from_fn(|| state.reassembly.poll_expired()).collect();
            (expired, state.reassembly.progress().collect(), sample)
        };
        shared.lock_windows().add(shared.uptime_ms(), sample);
        let now_ms = unix_ms();
        expired.into_iter().for_each(|bundle| shared.sink.expired(bundle));
        for p in progress {
            let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            let done = ObjectProgress {
                blocks_done: count(p.blocks_done),
                blocks_total: p.oti.blocks(),
                blocks_open: count(p.blocks_open),
                symbols_lacking: p.symbols_lacking,
            };
            shared.sink.progress(p.bundle, p.kind, done);
        }
        shared.sink.tick(now_ms);
        let lost = shared.sink.lost();
        if !lost.is_empty() {
            let mut state = shared.lock();
            lost.into_iter().for_each(|bundle| state.reassembly.forget(bundle));
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
