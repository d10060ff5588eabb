//! The data plane of the low side.
//!
//! 1. `produce`, one thread: picks the job of highest priority that has room and reads its next source block, hashing as
//!    it goes ([`produce`]).
//! 2. `encode`, as many threads as cores can be spared, none on one or two: makes the repair symbols and pushes the
//!    block to the transmitter ([`encode`]). Where there is none, `produce` does it while the block is in the cache.
//! 3. `transmit`, one thread a lane: takes a batch of symbols when the pacer allows, seals it, outside of the lock where there
//!    are several lanes, and hands it to the kernel in one call ([`transmit`]).
//! 4. A block whose symbols have all gone gives its buffers back; a job whose blocks have all gone is finished, which
//!    `produce` reports, so that nobody's disk holds up a lane.

mod encode;
mod produce;
mod transmit;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use checkvalve_host::disk::Disk;
use checkvalve_protocol::beacon::{ChannelState, Epoch};
use checkvalve_protocol::crypto::{LinkKey, SigningKey};
use checkvalve_protocol::fec::{FecError, Plans};
use checkvalve_protocol::id::{BundleId, ChannelName, SessionId};
use checkvalve_protocol::seal::Sealer;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::transmit::pacer::BUCKET;
use checkvalve_protocol::transmit::{Parameters, Selection, StreamId, Transmitter};
use serde::{Deserialize, Serialize};

use crate::bundle::{Plan, ReadError};
use crate::link::Link;
use crate::trouble::Trouble;

/// One transmission of a bundle: a pass, a resend of parts, or its withdrawal.
pub struct Job {
    /// The bundle.
    pub bundle: BundleId,
    /// Its channel.
    pub channel: ChannelName,
    /// Its number in the channel, from 1.
    pub sequence: u64,
    /// The highest goes first.
    pub priority: i16,
    /// The signed announce.
    pub announce: Arc<Vec<u8>>,
    /// BLAKE3 of it.
    pub announce_digest: [u8; 32],
    /// Length of the data in bytes.
    pub data_len: u64,
    /// What to read.
    pub plan: Arc<Plan>,
    /// The directory that the bundle's name is in.
    pub root: PathBuf,
    /// T in bytes, which the bundle was first sent with: its symbols must go on fitting together.
    pub symbol_size: u16,
    /// B in symbols, likewise.
    pub block_symbols: u16,
    /// First ESI that may be used: 0 for the first pass, which then begins with the source symbols.
    pub first_esi: u32,
    /// First ESI that may not be used any more.
    pub esi_limit: u32,
    /// The pass, from 1.
    pub pass: u32,
    /// How many there will be.
    pub passes: u32,
    /// What of the data to send.
    pub selection: Selection,
    /// Why the bundle is withdrawn: then announce and withdrawal are all that is sent, and nothing is read.
    pub withdrawn: Option<String>,
    /// The files' hashes, if they are known: what is read must have them. With them, parts can be read alone
    /// ([`SpotReader`](crate::bundle::SpotReader)), since the engine has proven that nothing changed.
    pub known_hashes: Option<Arc<Vec<[u8; 32]>>>,
    /// Where to say how far it is.
    pub progress: Arc<Progress>,
}

/// How far a job is. Written by the pipeline, read by status.
#[derive(Debug, Default)]
pub struct Progress {
    /// Source blocks of this transmission.
    pub blocks_total: AtomicU64,
    /// How many of them have been sent.
    pub blocks_sent: AtomicU64,
    /// Bytes sent on the wire, Ethernet overhead included.
    pub bytes_sent: AtomicU64,
    /// Datagrams sent.
    pub datagrams: AtomicU64,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// All of it was sent.
    Transmitted {
        /// The BLAKE3 of each regular file, in order.
        hashes: Vec<[u8; 32]>,
    },
    /// It could not be read. The other side has not been told: first it has to be written down.
    Failed {
        /// Why.
        reason: ReadError,
    },
    /// The other side has been told that it will not come.
    Withdrawn,
    /// The pipeline was stopped; nothing is said about the bundle.
    Aborted,
}

/// What the pipeline is made for.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// Where datagrams go, one for each lane.
    pub destinations: Vec<std::net::SocketAddr>,
    /// What follows from MTU, rate, repair, burst and memory.
    pub parameters: Parameters,
    /// The session.
    pub session: SessionId,
    /// Its number in the epoch, higher than any before.
    pub session_number: u64,
    /// The state that the session is of.
    pub epoch: Epoch,
}

/// The secrets of the pipeline.
#[derive(Debug, Clone)]
pub struct Keys {
    /// What seals datagrams; None is the insecure mode.
    pub link: Option<LinkKey>,
    /// Who signs hashes and beacons.
    pub signing: Arc<SigningKey>,
}

/// What went over the link in this session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStats {
    /// Datagrams sent.
    pub datagrams: u64,
    /// Bytes sent on the wire, Ethernet overhead included.
    pub bytes: u64,
    /// Times that the system refused to send, and it was tried again.
    pub send_errors: u64,
    /// Why nothing leaves at the moment, of each lane where that is so.
    pub troubles: Vec<Trouble>,
}

/// The pipeline cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread or socket could not be made.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

fn open(to: std::net::SocketAddr) -> std::io::Result<Link> {
    Link::open(to, None).map_err(|error| std::io::Error::new(error.kind(), format!("{to}: cannot send: {error}")))
}

/// Called once with how a job ended, from a thread of the pipeline.
pub type WhenDone = Box<dyn FnOnce(Finished) + Send>;

/// The data plane.
pub struct Pipeline {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Bytes of blocks read ahead of the ring, so that it never waits for the disk without need. `produce` rests until half of
/// them have gone: to be woken for each block would cost more than to make it.
const AHEAD: usize = 8 << 20;
/// Between beacons.
const BEACON_INTERVAL: Duration = Duration::from_secs(1);

struct Shared {
    config: PipelineConfig,
    signing: Arc<SigningKey>,
    sealer: Sealer,
    plans: Plans,
    disk: Arc<dyn Disk>,
    links: Vec<Link>,
    state: Mutex<State>,
    /// There is something to send, or it is time to stop.
    work: Condvar,
    /// There is room, a job, a finished job, or it is time to stop.
    room: Condvar,
    /// Blocks wait for an encoder, or it is time to stop.
    read: Condvar,
    encoders: usize,
    stop: AtomicBool,
    origin: Instant,
    datagrams: AtomicU64,
    bytes: AtomicU64,
}

struct State {
    transmitter: Transmitter,
    queue: VecDeque<(Job, WhenDone)>,
    running: HashMap<StreamId, Running>,
    finished: Vec<(WhenDone, Finished)>,
    /// Blocks read and not yet taken by an encoder.
    read: VecDeque<encode::Read>,
    /// Streams with a block that could not be encoded.
    faults: Vec<(StreamId, FecError)>,
    /// Nothing could be sent when last tried: more blocks are needed, whatever room there is.
    starved: bool,
    /// `produce` rests until no more blocks than these are held.
    rest_until: usize,
    buffers: Vec<Vec<u8>>,
    channels: Vec<ChannelState>,
    next_channel: usize,
    next_beacon: Time,
    /// Beacons that were made.
    beacons: u64,
}

/// A job from its first block until its last symbol has gone.
struct Running {
    channel: ChannelName,
    sequence: u64,
    bundle: BundleId,
    pass: u32,
    passes: u32,
    priority: i16,
    progress: Arc<Progress>,
    /// Blocks read and not yet spent.
    held: usize,
    /// Those of them that are not encoded yet.
    encoding: usize,
    /// Set when everything has been read.
    ended: Option<Finished>,
    done: Option<WhenDone>,
}

impl Pipeline {
    /// Opens the lanes and starts the threads. Errors: [`StartError`].
    pub fn start(config: PipelineConfig, keys: Keys, disk: Arc<dyn Disk>) -> Result<Self, StartError> {
        Self::start_with(config, keys, disk, encode::threads())
    }

    fn start_with(
        config: PipelineConfig,
        keys: Keys,
        disk: Arc<dyn Disk>,
        encoders: usize,
    ) -> Result<Self, StartError> {
        let links: Result<Vec<Link>, _> = config.destinations.iter().map(|&to| open(to)).collect();
        let sealer = Sealer::new(keys.link.as_ref().map(LinkKey::as_bytes), config.session);
        let transmitter =
            Transmitter::with_lanes(config.destinations.len().max(1), &sealer, &config.parameters, BUCKET);
        let shared = Arc::new(Shared {
            config,
            signing: keys.signing,
            sealer,
            plans: Plans::new(),
            disk,
            links: links?,
            state: Mutex::new(State {
                transmitter,
                queue: VecDeque::new(),
                running: HashMap::new(),
                finished: Vec::new(),
                read: VecDeque::new(),
                faults: Vec::new(),
                starved: false,
                rest_until: usize::MAX,
                buffers: Vec::new(),
                channels: Vec::new(),
                next_channel: 0,
                next_beacon: Time::ZERO,
                beacons: 0,
            }),
            work: Condvar::new(),
            room: Condvar::new(),
            read: Condvar::new(),
            encoders,
            stop: AtomicBool::new(false),
            origin: Instant::now(),
            datagrams: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let mut this = Self { shared, threads: Vec::new() };
        this.spawn("produce".into(), produce::run)?;
        for encoder in 0..this.shared.encoders {
            this.spawn(format!("encode-{encoder}"), encode::run)?;
        }
        for lane in 0..this.shared.links.len() {
            this.spawn(format!("transmit-{lane}"), move |shared| transmit::run(shared, lane))?;
        }
        Ok(this)
    }

    /// Takes a job. The highest priority runs first, and in a channel the oldest.
    pub fn submit(&self, job: Job, done: WhenDone) {
        self.shared.lock().queue.push_back((job, done));
        self.shared.room.notify_all();
    }

    /// What beacons say about the channels from now on.
    pub fn set_beacon(&self, channels: Vec<ChannelState>) {
        self.shared.lock().channels = channels;
    }

    /// What went over the link so far.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        let links = &self.shared.links;
        LinkStats {
            datagrams: self.shared.datagrams.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            send_errors: links.iter().map(Link::retries).fold(0, u64::saturating_add),
            troubles: links.iter().filter_map(Link::trouble).collect(),
        }
    }

    /// Whether a thread of the data plane has died: the daemon must then end, not look alive.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops; jobs that are not over end as [`Finished::Aborted`].
    pub fn stop(mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.room.notify_all();
        self.shared.work.notify_all();
        self.shared.read.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the data plane panicked");
            }
        }
        let mut state = self.shared.lock();
        let finished = std::mem::take(&mut state.finished);
        let mut aborted: Vec<WhenDone> = state.running.drain().filter_map(|(_, running)| running.done).collect();
        aborted.extend(state.queue.drain(..).map(|(_, done)| done));
        drop(state);
        for (done, how) in finished {
            done(how);
        }
        for done in aborted {
            done(Finished::Aborted);
        }
    }

    fn spawn(&mut self, name: String, run: impl FnOnce(&Shared) + Send + 'static) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(std::thread::Builder::new().name(name).spawn(move || run(&shared))?);
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        // Never zero, so that the first beacon is due at once.
        Time(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX).saturating_add(1))
    }

    /// Blocks read ahead of the ring.
    fn ahead(&self) -> usize {
        let parameters = &self.config.parameters;
        let block = usize::from(parameters.symbol_size()) * usize::from(parameters.block_symbols());
        (AHEAD / block.max(1)).clamp(4, 32)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl State {
    /// Whether there is enough for `produce` to do.
    fn wakes_producer(&mut self) -> bool {
        !self.finished.is_empty() || self.transmitter.schedule().held() <= self.rest_until
    }

    /// Takes back the buffers of blocks that have gone; true if that makes room or finishes a job.
    fn collect_spent(&mut self) -> bool {
        let mut any = false;
        while let Some(spent) = self.transmitter.schedule().poll_spent() {
            any = true;
            let size = usize::from(spent.symbol.oti.symbol_size());
            let symbols = ((spent.source.len() + spent.repair.len()) / size) as u64;
            if let Some(running) = self.running.get_mut(&spent.stream) {
                running.held = running.held.saturating_sub(1);
                let progress = &running.progress;
                if spent.symbol.kind == checkvalve_protocol::wire::ObjectKind::Data {
                    progress.blocks_sent.fetch_add(1, Ordering::Relaxed);
                }
                progress.datagrams.fetch_add(symbols, Ordering::Relaxed);
                progress.bytes_sent.fetch_add(symbols * size as u64, Ordering::Relaxed);
                self.finish_if_over(spent.stream);
            }
            self.buffers.extend([spent.source, spent.repair].into_iter().filter(|b| b.capacity() > 0));
        }
        any
    }

    /// Everything of this stream has been read: it ends with its last block.
    fn end(&mut self, id: StreamId, how: Finished) {
        if let Some(running) = self.running.get_mut(&id) {
            running.ended = Some(how);
        }
        self.close_if_encoded(id);
    }

    fn close_if_encoded(&mut self, id: StreamId) {
        if self.running.get(&id).is_none_or(|r| r.ended.is_some() && r.encoding == 0) {
            self.transmitter.schedule().close(id);
            self.finish_if_over(id);
        }
    }

    fn finish_if_over(&mut self, id: StreamId) {
        let over = self.running.get(&id).is_some_and(|r| r.held == 0 && r.ended.is_some());
        if over
            && let Some(running) = self.running.remove(&id)
            && let (Some(done), Some(how)) = (running.done, running.ended)
        {
            self.finished.push((done, how));
        }
    }

    /// A buffer of at least `capacity` bytes, its length as it was.
    fn buffer(&mut self, capacity: usize) -> Vec<u8> {
        let at = self.buffers.iter().rposition(|b| b.capacity() >= capacity && b.capacity() / 4 <= capacity);
        at.map_or_else(|| Vec::with_capacity(capacity), |at| self.buffers.swap_remove(at))
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "pipeline/tests.rs"]
mod tests;
