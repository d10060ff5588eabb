//! A job that runs, and the steps of it that threads make without the lock.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{FeedError, Finished, Job, Transmission};
use crate::crypto::SigningKey;
use crate::fec::{FecError, Plans};
use crate::manifest::{Hashes, Outcome};
use crate::partition::OtiError;
use crate::transmit::{Block, Encoder, Parameters, StreamId, Task, Work, WorkShape};
use crate::wire::ObjectKind;

/// A job from its first block until its last symbol has gone.
pub(super) struct Running<J: Job> {
    pub(super) job: Arc<J>,
    pub(super) work: Work,
    /// None before the first block, after the last, and while a thread has it.
    pub(super) reader: Option<J::Reader>,
    /// A thread has its next block.
    pub(super) is_away: bool,
    /// The signed hashes, once the data has been read.
    pub(super) hashes: Option<Arc<Vec<u8>>>,
    /// How it ends when these have gone.
    pub(super) outcome: Option<Finished<J::Error>>,
    /// How it ends. Set when everything has been read.
    pub(super) ended: Option<Finished<J::Error>>,
    /// Blocks read and not yet spent.
    pub(super) held: usize,
    /// Those of them that are not encoded yet.
    pub(super) encoding: usize,
}

/// Where the bytes of a block come from.
pub(super) enum Bytes<R> {
    /// An object in memory.
    Object(Arc<Vec<u8>>),
    /// The bundle's data. None: the reader is to be opened.
    Data(Option<R>),
}

/// A block to be read.
pub struct ToRead<J: Job> {
    pub(super) stream: StreamId,
    pub(super) task: Task,
    pub(super) job: Arc<J>,
    pub(super) bytes: Bytes<J::Reader>,
    pub(super) source: Vec<u8>,
    pub(super) repair: Vec<u8>,
}

/// A job that is read to its end.
pub struct ToConclude<J: Job> {
    stream: StreamId,
    job: Arc<J>,
    reader: Option<J::Reader>,
}

/// What it came to.
pub struct Concluded<J: Job> {
    pub(super) stream: StreamId,
    pub(super) result: Result<Signed<J::Error>, J::Error>,
}

/// The signed hashes or withdrawal, and how the job ends with that.
type Signed<E> = (Vec<u8>, Finished<E>);

/// A block to be encoded.
#[derive(Debug)]
pub struct ToEncode {
    pub(super) stream: StreamId,
    pub(super) task: Task,
    /// Its bytes, padded.
    pub(super) source: Vec<u8>,
    /// A buffer for the repair symbols.
    pub(super) repair: Vec<u8>,
}

/// A block that was encoded, and its buffer if only repair symbols are sent.
#[derive(Debug)]
pub struct Encoded {
    pub(super) stream: StreamId,
    pub(super) result: Result<(Block, Option<Vec<u8>>), FecError>,
}

impl<J: Job> Running<J> {
    pub(super) fn new(job: J, parameters: &Parameters) -> Result<Self, OtiError> {
        let order = job.order();
        let shape = WorkShape {
            bundle: order.bundle,
            announce_len: order.announce.len() as u64,
            data_len: if order.withdrawn.is_some() { 0 } else { order.data_len },
            selection: order.selection.clone(),
            first_esi: order.first_esi,
        };
        let work = Work::new(parameters, &shape)?;
        order.progress.blocks_total.store(work.blocks(), Ordering::Relaxed);
        Ok(Self {
            job: Arc::new(job),
            work,
            reader: None,
            is_away: false,
            hashes: None,
            outcome: None,
            ended: None,
            held: 0,
            encoding: 0,
        })
    }

    /// What is to be sent.
    pub(super) fn order(&self) -> &Transmission {
        self.job.order()
    }

    /// Whether more of it is to be read.
    pub(super) fn is_active(&self) -> bool {
        self.ended.is_none()
    }

    /// Whether the rest of it is not sent.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.ended, Some(Finished::Failed { .. }))
    }

    /// Where the next block of this object comes from. It is away until it is reported.
    pub(super) fn bytes_of(&mut self, kind: ObjectKind) -> Bytes<J::Reader> {
        self.is_away = true;
        match kind {
            ObjectKind::Announce => Bytes::Object(Arc::clone(&self.order().announce)),
            ObjectKind::Hashes => Bytes::Object(self.hashes.clone().unwrap_or_default()),
            ObjectKind::Data => Bytes::Data(self.reader.take()),
        }
    }

    pub(super) fn conclude(&mut self, stream: StreamId) -> ToConclude<J> {
        self.is_away = true;
        ToConclude { stream, job: Arc::clone(&self.job), reader: self.reader.take() }
    }
}

impl<J: Job> ToRead<J> {
    /// Fills the block: from memory, or by `read`, which gets the job, its reader (None: to be opened), the place to fill, and where in
    /// the data that is. Report what this returns.
    pub fn fill(
        &mut self,
        read: impl FnOnce(&J, &mut Option<J::Reader>, &mut [u8], u64) -> Result<(), J::Error>,
    ) -> Result<(), J::Error> {
        let task = &self.task;
        self.source.resize(Encoder::padded_len(task), 0);
        let (bytes, padding) = self.source.split_at_mut(task.len);
        padding.fill(0);
        match &mut self.bytes {
            Bytes::Object(object) => {
                let start = usize::try_from(task.offset).expect("an object in memory");
                bytes.copy_from_slice(&object[start..start + task.len]);
                Ok(())
            }
            Bytes::Data(reader) => read(&self.job, reader, bytes, task.offset),
        }
    }
}

impl<J: Job> ToConclude<J> {
    /// Signs what the job came to. `finish` gives the hashes of all files; it is not called for a withdrawal.
    pub fn conclude(
        self,
        key: &SigningKey,
        finish: impl FnOnce(&J, Option<J::Reader>) -> Result<Vec<[u8; 32]>, J::Error>,
    ) -> Concluded<J> {
        let Self { stream, job, reader } = self;
        let order = job.order();
        let said = match &order.withdrawn {
            Some(reason) => Ok((Outcome::withdrawn(reason), Finished::Withdrawn)),
            None => finish(&job, reader)
                .map(|hashes| (Outcome::Complete { files: hashes.clone() }, Finished::Transmitted { hashes })),
        };
        let result = said.and_then(|(outcome, finished)| {
            let hashes = Hashes { bundle: order.bundle, announce: order.announce_digest, outcome };
            let signed = hashes.sign(key).map_err(FeedError::from)?;
            Ok((signed, finished))
        });
        Concluded { stream, result }
    }
}

impl ToEncode {
    /// Makes the repair symbols.
    #[must_use]
    pub fn encode(self, plans: &Plans) -> Encoded {
        let Self { stream, task, source, repair } = self;
        Encoded { stream, result: Encoder::new(plans).encode(&task, source, repair) }
    }
}
