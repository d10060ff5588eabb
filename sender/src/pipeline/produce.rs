//! Reading, hashing and encoding: from jobs to blocks.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use checkvalve_protocol::fec::FecError;
use checkvalve_protocol::manifest::{Hashes, Outcome};
use checkvalve_protocol::partition::OtiError;
use checkvalve_protocol::transmit::{Encoder, Selection, StreamId, Task, Work, WorkShape};
use checkvalve_protocol::wire::ObjectKind;

use super::encode::{self, Read};
use super::{Finished, Job, Running, Shared, State, WhenDone};
use crate::bundle::{ReadError, Reader, SpotReader};

/// A job that is being read.
struct Active {
    id: StreamId,
    job: Job,
    work: Work,
    source: Source,
    /// The signed hashes, once the data has been read.
    hashes: Option<Vec<u8>>,
    /// What to report when the last symbol has gone.
    outcome: Option<Finished>,
}

enum Source {
    Whole(Box<Reader>),
    Parts(SpotReader),
    /// Read to its end, or given up.
    Ended,
}

/// Why a job's next block cannot be made.
#[derive(Debug, thiserror::Error)]
enum ProduceError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("coding: {0}")]
    Fec(#[from] FecError),
    #[error("{0}")]
    Oti(#[from] OtiError),
    #[error("manifest: {0}")]
    Manifest(#[from] checkvalve_protocol::manifest::ManifestError),
}

/// Produces until the pipeline stops.
pub(super) fn run(shared: &Shared) {
    let mut active: Vec<Active> = Vec::new();
    while !shared.stopping() {
        report(shared);
        for (stream, error) in std::mem::take(&mut shared.lock().faults) {
            if let Some(at) = active.iter().position(|a| a.id == stream) {
                let job = active.remove(at);
                fail(shared, job, error.into());
            } else {
                tracing::error!(%error, "a block could not be encoded; its bundle lacks it");
            }
        }
        let Some(at) = choose(shared, &mut active) else { continue };
        let Some(job) = active.get_mut(at) else { continue };
        match step(shared, job) {
            Ok(true) => {}
            Ok(false) => end(shared, active.remove(at)),
            Err(error) => {
                let job = active.remove(at);
                fail(shared, job, error);
            }
        }
    }
}

/// Tells those who submitted jobs that ended.
fn report(shared: &Shared) {
    let finished = std::mem::take(&mut shared.lock().finished);
    for (done, how) in finished {
        done(how);
    }
}

/// The job to go on with; waits for a while if none has room. Jobs enter from the queue here: one a channel, so that
/// a channel's bundles stay in order, and a job of higher priority before all others. A withdrawal is short and waits for
/// no bundle of its channel.
fn choose(shared: &Shared, active: &mut Vec<Active>) -> Option<usize> {
    let mut state = shared.lock();
    let best = active.iter().map(|a| a.job.priority).max();
    let waiting = state.queue.iter().enumerate().filter(|(_, (job, _))| {
        best.is_none_or(|p| job.priority >= p)
            && (job.withdrawn.is_some() || active.iter().all(|a| a.job.channel != job.channel))
    });
    // The oldest of the highest priority.
    let next = waiting.min_by_key(|(at, (job, _))| (-i32::from(job.priority), *at)).map(|(at, _)| at);
    if let Some((job, done)) = next.and_then(|at| state.queue.remove(at)) {
        match begin(shared, &mut state, job, done) {
            Ok(job) => active.push(job),
            Err((done, how)) => state.finished.push((done, how)),
        }
        return None;
    }
    let top = active.iter().map(|a| a.job.priority).max();
    let ahead = shared.ahead();
    let limit = shared.config.parameters.depth() as usize + ahead;
    let with_room = |state: &State, a: &Active| {
        let held = state.running.get(&a.id).map_or(0, |r| r.held);
        (Some(a.job.priority) == top && held < limit).then_some(held)
    };
    // Fewest blocks first: equals share the wire.
    let found = active.iter().enumerate().filter_map(|(at, a)| Some((with_room(&state, a)?, at))).min();
    // Streams of several channels share the memory of two; one that starves all the same gets its block.
    let room = state.transmitter.schedule().held() < 2 * limit || state.starved;
    if let (Some((_, at)), true) = (found, room) {
        return Some(at);
    }
    if state.finished.is_empty() {
        let held = state.transmitter.schedule().held();
        state.rest_until = held.saturating_sub(ahead / 2);
        let wait = Duration::from_millis(100);
        state = shared.room.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        state.rest_until = usize::MAX;
    }
    None
}

fn begin(shared: &Shared, state: &mut State, job: Job, done: WhenDone) -> Result<Active, (WhenDone, Finished)> {
    let parameters = shared.config.parameters.with_block(job.symbol_size, job.block_symbols);
    let shape = WorkShape {
        bundle: job.bundle,
        announce_len: job.announce.len() as u64,
        data_len: if job.withdrawn.is_some() { 0 } else { job.data_len },
        selection: job.selection.clone(),
        first_esi: job.first_esi,
    };
    let work = match Work::new(&parameters, &shape) {
        Ok(work) => work,
        Err(error) => return Err((done, Finished::Failed { reason: ReadError::Broken(error.to_string()) })),
    };
    let id = state.transmitter.schedule().open(work.stream(job.priority));
    job.progress.blocks_total.store(work.blocks(), Ordering::Relaxed);
    let running = Running {
        channel: job.channel.clone(),
        sequence: job.sequence,
        bundle: job.bundle,
        pass: job.pass,
        passes: job.passes,
        priority: job.priority,
        progress: Arc::clone(&job.progress),
        held: 0,
        encoding: 0,
        ended: None,
        done: Some(done),
    };
    state.running.insert(id, running);
    let (disk, plan, root) = (Arc::clone(&shared.disk), Arc::clone(&job.plan), job.root.clone());
    let source = match (&job.selection, &job.known_hashes) {
        _ if job.withdrawn.is_some() => Source::Ended,
        (Selection::Ranges(_), Some(_)) => Source::Parts(SpotReader::new(disk, plan, root)),
        (_, Some(hashes)) => Source::Whole(Box::new(Reader::new(disk, plan, root).expecting(Arc::clone(hashes)))),
        (_, None) => Source::Whole(Box::new(Reader::new(disk, plan, root))),
    };
    Ok(Active { id, job, work, source, hashes: None, outcome: None })
}

/// Makes and pushes one block. False: there are no more.
fn step(shared: &Shared, active: &mut Active) -> Result<bool, ProduceError> {
    let task = match active.work.next_task() {
        Some(task) => task,
        None => {
            if active.hashes.is_none() {
                let (said, outcome) = conclude(active)?;
                seal_hashes(shared, active, said)?;
                active.outcome = Some(outcome);
            }
            match active.work.next_closing() {
                Some(task) => task,
                None => return Ok(false),
            }
        }
    };
    make(shared, active, &task)?;
    Ok(true)
}

/// What the hashes are to say, and how the job ends with that.
fn conclude(active: &mut Active) -> Result<(Outcome, Finished), ProduceError> {
    if let Some(reason) = active.job.withdrawn.take() {
        return Ok((Outcome::withdrawn(&reason), Finished::Withdrawn));
    }
    let files = finish_reading(active)?;
    Ok((Outcome::Complete { files: files.clone() }, Finished::Transmitted { hashes: files }))
}

/// The hashes of all files, read to the end whatever was selected of them.
fn finish_reading(active: &mut Active) -> Result<Vec<[u8; 32]>, ProduceError> {
    match std::mem::replace(&mut active.source, Source::Ended) {
        Source::Whole(reader) => Ok(reader.finish()?),
        Source::Parts(_) | Source::Ended => {
            Ok(active.job.known_hashes.as_ref().map(|hashes| hashes.as_ref().clone()).unwrap_or_default())
        }
    }
}

fn seal_hashes(shared: &Shared, active: &mut Active, outcome: Outcome) -> Result<(), ProduceError> {
    let hashes = Hashes { bundle: active.job.bundle, announce: active.job.announce_digest, outcome };
    let signed = hashes.sign(&shared.signing)?;
    active.work.hashes(signed.len() as u64)?;
    active.hashes = Some(signed);
    Ok(())
}

fn make(shared: &Shared, active: &mut Active, task: &Task) -> Result<(), ProduceError> {
    let padded = Encoder::padded_len(task);
    let (mut source, repair) = {
        let mut state = shared.lock();
        let repair = task.repair as usize * usize::from(task.symbol.oti.symbol_size());
        (state.buffer(padded), state.buffer(repair))
    };
    source.resize(padded, 0);
    let (bytes, padding) = source.split_at_mut(task.len.min(padded));
    padding.fill(0);
    let whole = |object: Option<&[u8]>, bytes: &mut [u8]| {
        let start = usize::try_from(task.offset).unwrap_or(usize::MAX);
        if let Some(part) = object.and_then(|o| o.get(start..)).and_then(|o| o.get(..bytes.len())) {
            bytes.copy_from_slice(part);
        }
    };
    match task.symbol.kind {
        ObjectKind::Announce => whole(Some(&active.job.announce), bytes),
        ObjectKind::Hashes => whole(active.hashes.as_deref(), bytes),
        ObjectKind::Data => {
            let got = match &mut active.source {
                Source::Whole(reader) => reader.read(bytes)?,
                Source::Parts(reader) => reader.read_at(bytes, task.offset)?,
                Source::Ended => 0,
            };
            if got != bytes.len() {
                return Err(ReadError::Unfinished.into());
            }
        }
    }
    let read = Read { stream: active.id, task: *task, source, repair };
    let mut state = shared.lock();
    if let Some(running) = state.running.get_mut(&active.id) {
        running.held += 1;
        running.encoding += 1;
    }
    if shared.encoders == 0 {
        drop(state);
        encode::encode(shared, read);
    } else {
        state.read.push_back(read);
        drop(state);
        shared.read.notify_one();
    }
    Ok(())
}

/// Everything has been read: the job is over when it has been sent.
fn end(shared: &Shared, active: Active) {
    shared.lock().end(active.id, active.outcome.unwrap_or(Finished::Aborted));
    shared.work.notify_one();
}

/// The rest of the job is not sent. Whether the bundle is withdrawn is decided by who keeps the ledger.
fn fail(shared: &Shared, mut active: Active, error: ProduceError) {
    let reason = match error {
        ProduceError::Read(reason) => reason,
        other => ReadError::Broken(other.to_string()),
    };
    let mut state = shared.lock();
    state.transmitter.schedule().abort(active.id);
    state.collect_spent();
    drop(state);
    active.outcome = Some(Finished::Failed { reason });
    end(shared, active);
}
