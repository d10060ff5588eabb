//! The data plane of the low side: threads, files and sockets around [`Feed`], which decides what is done next.
//!
//! 1. `produce`, one thread: reads the next source block, hashing as it goes ([`produce`]).
//! 2. `encode`, as many threads as cores can be spared, none on one or two: makes the repair symbols ([`encode`]). Where there is none,
//!    `produce` does it while the block is in the cache.
//! 3. `transmit`, one thread a lane: takes a batch of symbols when the pacer allows, seals it, outside of the lock where there
//!    are several lanes, and hands it to the kernel in one call ([`transmit`]).
//! 4. `produce` reports how jobs ended, so that nobody's disk holds up a lane.
//!
//! A thread's loop is: lock, poll, unlock, do it, lock, report.

mod encode;
mod produce;
mod transmit;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use checkvalve_host::disk::Disk;
use checkvalve_protocol::beacon::{ChannelState, Epoch};
use checkvalve_protocol::crypto::{LinkKey, SigningKey};
use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::seal::Sealer;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::transmit::feed::{self, Feed, FeedError, FeedSetup, FeedWakes};
pub use checkvalve_protocol::transmit::feed::{Progress, Transmission};
use checkvalve_protocol::transmit::pacer::BUCKET;
use checkvalve_protocol::transmit::{Parameters, Selection};
use serde::{Deserialize, Serialize};

use crate::bundle::{Plan, ReadError, Reader, SpotReader};
use crate::link::Link;
use crate::trouble::Trouble;

/// One transmission of a bundle: a pass, a resend of parts, or its withdrawal.
pub struct Job {
    /// What is to be sent.
    pub order: Transmission,
    /// What to read.
    pub plan: Arc<Plan>,
    /// The directory that the bundle's name is in.
    pub root: PathBuf,
    /// First ESI that may not be used any more.
    pub esi_limit: u32,
    /// The files' hashes, if they are known: what is read must have them. With them, parts can be read alone
    /// ([`SpotReader`]), since the engine has proven that nothing changed.
    pub known_hashes: Option<Arc<Vec<[u8; 32]>>>,
}

/// How a job ended.
pub type Finished = feed::Finished<ReadError>;

/// Reads a job's data.
pub enum JobReader {
    /// From the beginning to the end.
    Whole(Box<Reader>),
    /// Parts of it.
    Parts(SpotReader),
}

impl feed::Job for Job {
    type Reader = JobReader;
    type Error = ReadError;

    fn order(&self) -> &Transmission {
        &self.order
    }
}

impl Job {
    fn open(&self, disk: &Arc<dyn Disk>) -> JobReader {
        let (disk, plan, root) = (Arc::clone(disk), Arc::clone(&self.plan), self.root.clone());
        match (&self.order.selection, &self.known_hashes) {
            (Selection::Ranges(_), Some(_)) => JobReader::Parts(SpotReader::new(disk, plan, root)),
            (_, Some(hashes)) => {
                JobReader::Whole(Box::new(Reader::new(disk, plan, root).expecting(Arc::clone(hashes))))
            }
            (_, None) => JobReader::Whole(Box::new(Reader::new(disk, plan, root))),
        }
    }

    /// Fills `bytes` with what is at `offset` in the data. `reader` is opened if it is not.
    pub fn read(
        &self,
        disk: &Arc<dyn Disk>,
        reader: &mut Option<JobReader>,
        bytes: &mut [u8],
        offset: u64,
    ) -> Result<(), ReadError> {
        let got = match reader.get_or_insert_with(|| self.open(disk)) {
            JobReader::Whole(reader) => reader.read(bytes)?,
            JobReader::Parts(reader) => reader.read_at(bytes, offset)?,
        };
        if got == bytes.len() { Ok(()) } else { Err(ReadError::Unfinished) }
    }

    /// The hashes of all files, read to the end whatever was selected of them.
    pub fn finish(&self, disk: &Arc<dyn Disk>, reader: Option<JobReader>) -> Result<Vec<[u8; 32]>, ReadError> {
        match reader.unwrap_or_else(|| self.open(disk)) {
            JobReader::Whole(reader) => reader.finish(),
            JobReader::Parts(_) => Ok(self.known_hashes.as_deref().cloned().unwrap_or_default()),
        }
    }
}

impl From<FeedError> for ReadError {
    fn from(error: FeedError) -> Self {
        Self::Broken(error.to_string())
    }
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

/// Called once for each job with how it ended, from a thread of the pipeline.
pub type WhenDone = Box<dyn Fn(BundleId, Finished) + Send + Sync>;

/// The data plane.
pub struct Pipeline {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A thread looks at least so often, woken or not.
const LOOK: Duration = Duration::from_millis(100);

struct Shared {
    signing: Arc<SigningKey>,
    sealer: Sealer,
    plans: Plans,
    disk: Arc<dyn Disk>,
    links: Vec<Link>,
    feed: Mutex<Feed<Job>>,
    when_done: WhenDone,
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

impl Pipeline {
    /// Opens the lanes and starts the threads. Errors: [`StartError`].
    pub fn start(
        config: PipelineConfig,
        keys: Keys,
        disk: Arc<dyn Disk>,
        when_done: WhenDone,
    ) -> Result<Self, StartError> {
        Self::start_with(config, keys, disk, when_done, encode::threads())
    }

    fn start_with(
        config: PipelineConfig,
        keys: Keys,
        disk: Arc<dyn Disk>,
        when_done: WhenDone,
        encoders: usize,
    ) -> Result<Self, StartError> {
        let links: Result<Vec<Link>, _> = config.destinations.iter().map(|&to| open(to)).collect();
        let sealer = Sealer::new(keys.link.as_ref().map(LinkKey::as_bytes), config.session);
        let setup = FeedSetup {
            parameters: config.parameters,
            lanes: config.destinations.len().max(1),
            ahead: feed::AHEAD,
            bucket: BUCKET,
            epoch: config.epoch,
            session_number: config.session_number,
            key: Arc::clone(&keys.signing),
        };
        let shared = Arc::new(Shared {
            signing: keys.signing,
            feed: Mutex::new(Feed::new(setup, &sealer)),
            when_done,
            sealer,
            plans: Plans::new(),
            disk,
            links: links?,
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
    pub fn submit(&self, job: Job) {
        let mut feed = self.shared.lock();
        feed.submit(job);
        self.shared.unlock(feed);
    }

    /// What beacons say about the channels from now on.
    pub fn set_beacon(&self, channels: Vec<ChannelState>) {
        self.shared.lock().set_channels(channels);
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
        self.shared.lock().stop();
        produce::report(&self.shared);
    }

    fn spawn(&mut self, name: String, run: impl FnOnce(&Shared) + Send + 'static) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(std::thread::Builder::new().name(name).spawn(move || run(&shared))?);
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Feed<Job>> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of every report: whoever has something to do now is woken.
    fn unlock(&self, mut feed: MutexGuard<'_, Feed<Job>>) {
        let wakes = feed.poll_wakes();
        drop(feed);
        self.wake(wakes);
    }

    fn wake(&self, wakes: FeedWakes) {
        if wakes.reader {
            self.room.notify_all();
        }
        (0..wakes.encoders).for_each(|_| self.read.notify_one());
        match wakes.lanes {
            0 => {}
            1 => self.work.notify_one(),
            _ => self.work.notify_all(),
        }
    }

    fn now(&self) -> Time {
        // Never zero, so that the first beacon is due at once.
        Time(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX).saturating_add(1))
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "pipeline/tests.rs"]
mod tests;
