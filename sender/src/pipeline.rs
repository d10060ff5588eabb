//! Placeholder of the data plane: takes jobs, reads their plans and reports them transmitted without sending anything.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use checkvalve_host::disk::Disk;
use checkvalve_protocol::beacon::ChannelState;
use checkvalve_protocol::crypto::{LinkKey, SigningKey};
use checkvalve_protocol::id::{BundleId, ChannelName, SessionId};
use checkvalve_protocol::transmit::{Parameters, Selection};
use serde::Serialize;

use crate::bundle::{Plan, ReadError, Reader};

/// One transmission of a bundle: a pass, or a resend of parts.
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
    pub announce: Vec<u8>,
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
    /// It could not be read, and was withdrawn.
    Failed {
        /// Why.
        reason: ReadError,
    },
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
    /// Largest IP datagram in bytes.
    pub mtu: u16,
    /// Bytes that the data plane may take.
    pub memory: u64,
    /// The session.
    pub session: SessionId,
    /// Its number, higher than any before.
    pub session_number: u64,
}

/// The secrets of the pipeline.
#[derive(Debug, Clone)]
pub struct Keys {
    /// What seals datagrams; None is the insecure mode.
    pub link: Option<LinkKey>,
    /// Who signs hashes.
    pub signing: Arc<SigningKey>,
}

/// What went over the link in this session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LinkStats {
    /// Datagrams sent.
    pub datagrams: u64,
    /// Bytes sent on the wire, Ethernet overhead included.
    pub bytes: u64,
    /// Times that the system refused to send.
    pub send_errors: u64,
}

/// The pipeline cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread or socket could not be made.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Called once with how a job ended, from a thread of the pipeline.
pub type WhenDone = Box<dyn FnOnce(Finished) + Send>;

/// The data plane.
pub struct Pipeline {
    queue: Mutex<Option<Sender<(Job, WhenDone)>>>,
    thread: JoinHandle<()>,
}

impl Pipeline {
    /// Starts the threads. Errors: [`StartError`].
    pub fn start(_config: PipelineConfig, _keys: Keys, disk: Arc<dyn Disk>) -> Result<Self, StartError> {
        let (queue, jobs) = mpsc::channel::<(Job, WhenDone)>();
        let thread = std::thread::Builder::new().name("pipeline".into()).spawn(move || {
            for (job, done) in jobs {
                done(run(&job, &disk));
            }
        })?;
        Ok(Self { queue: Mutex::new(Some(queue)), thread })
    }

    /// Takes a job. The highest priority runs first, and in a channel the oldest.
    pub fn submit(&self, job: Job, done: WhenDone) {
        if let Some(queue) = self.queue.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            drop(queue.send((job, done)));
        }
    }

    /// What beacons say about the channels from now on.
    pub fn set_beacon(&self, _channels: Vec<ChannelState>) {}

    /// What went over the link so far.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        LinkStats::default()
    }

    /// Stops; jobs that are not over end as [`Finished::Aborted`].
    pub fn stop(self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(self.thread.join());
    }
}

fn run(job: &Job, disk: &Arc<dyn Disk>) -> Finished {
    let mut reader = Reader::new(Arc::clone(disk), Arc::clone(&job.plan), job.root.clone());
    if let Some(hashes) = &job.known_hashes {
        reader = reader.expecting(Arc::clone(hashes));
    }
    let mut buf = vec![0; 1 << 20];
    let read = loop {
        match reader.read(&mut buf) {
            Ok(n) => {
                job.progress.bytes_sent.fetch_add(n as u64, Ordering::Relaxed);
                if n < buf.len() {
                    break reader.finish();
                }
            }
            Err(error) => break Err(error),
        }
    };
    match read {
        Ok(hashes) => Finished::Transmitted { hashes },
        Err(reason) => Finished::Failed { reason },
    }
}
