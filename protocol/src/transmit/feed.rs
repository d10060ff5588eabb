//! What the sender's threads do next, without threads, sockets, disks or clocks.
//!
//! 1. [`Feed::submit`] takes a job: a pass of a bundle, a resend of parts, or its withdrawal.
//! 2. A thread that reads asks [`Feed::poll_read`]: the next source block of the job of highest priority that has room
//!    ([`ToRead`]), or, when all is read, the hashes that are to be signed ([`ToConclude`]). The job's reader travels with the block.
//!    Reports: [`Feed::handle_read`], [`Feed::handle_concluded`].
//! 3. A thread that encodes asks [`Feed::poll_encode`], and reports with [`Feed::handle_encoded`].
//! 4. A lane's thread asks [`Feed::poll_transmit`] for a batch of datagrams, beacons among them.
//! 5. A block whose symbols have all gone gives its buffers back; a job whose blocks have all gone comes out of
//!    [`Feed::poll_finished`], so that nobody's disk holds up a lane.
//!
//! Each thread's loop is: lock, poll, unlock, do it, lock, report, [`Feed::poll_wakes`], unlock. There are four classes of methods:
//!
//! - *Getters* say how things are: [`Feed::datagrams`], [`Feed::wants_reader`], [`Feed::is_empty`].
//! - *`handle_*`* report what was done.
//! - *Mutators* say what somebody wants changed: [`Feed::submit`], [`Feed::set_channels`], [`Feed::stop`].
//! - *`poll_*`* say what to do next.

mod job;
mod order;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use self::job::{Bytes, Running};
pub use self::job::{Concluded, Encoded, ToConclude, ToEncode, ToRead};
pub use self::order::{FeedError, Finished, Job, Progress, Transmission};
use super::{Batch, Encoder, Parameters, StreamId, Transmit, Transmitter};
use crate::beacon::{Beacon, ChannelState, Epoch};
use crate::crypto::SigningKey;
use crate::id::BundleId;
use crate::seal::Sealer;
use crate::time::Time;
use crate::wire::ObjectKind;

/// Bytes of blocks that are usually read ahead of the ring.
pub const AHEAD: usize = 8 << 20;
/// Between beacons.
const BEACON_INTERVAL: Duration = Duration::from_secs(1);

/// What a feed is made for.
#[derive(Debug, Clone)]
pub struct FeedSetup {
    /// What follows from MTU, rate, repair, burst and memory.
    pub parameters: Parameters,
    /// How many lanes share the rate, 1 or more.
    pub lanes: usize,
    /// Bytes of blocks read ahead of the ring, so that it never waits for the disk without need: 4 to 32 blocks. Whoever reads rests
    /// until half of them have gone: to be woken for each block would cost more than to make it.
    pub ahead: usize,
    /// How much a lane may send at once after it was late.
    pub bucket: Duration,
    /// The state that the session is of.
    pub epoch: Epoch,
    /// The session's number in the epoch, higher than any before.
    pub session_number: u64,
    /// Who signs beacons.
    pub key: Arc<SigningKey>,
}

/// What a thread that reads does next.
pub enum NextRead<J: Job> {
    /// Read this block.
    Read(ToRead<J>),
    /// All of a job is read: sign what it comes to.
    Conclude(ToConclude<J>),
    /// Nothing, until it is woken.
    Wait,
}

/// Who need not sleep any longer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeedWakes {
    /// A thread that reads, or reports how jobs ended.
    pub reader: bool,
    /// So many of those that encode.
    pub encoders: usize,
    /// So many lanes.
    pub lanes: usize,
}

/// The machine.
pub struct Feed<J: Job> {
    setup: FeedSetup,
    transmitter: Transmitter,
    queue: VecDeque<J>,
    running: BTreeMap<StreamId, Running<J>>,
    to_encode: VecDeque<ToEncode>,
    finished: VecDeque<(BundleId, Finished<J::Error>)>,
    /// Nothing could be sent when last tried: more blocks are needed, whatever room there is.
    starved: bool,
    /// A lane waits for symbols whose time has not come, and would sooner send others.
    idles: bool,
    /// Whoever reads rests until no more blocks than these are held. None: it does not rest.
    rest_until: Option<usize>,
    buffers: Vec<Vec<u8>>,
    channels: Vec<ChannelState>,
    next_channel: usize,
    next_beacon: Time,
    /// Beacons that were made.
    beacons: u64,
    wakes: FeedWakes,
}

impl<J: Job> Feed<J> {
    /// Nothing to send yet but beacons. `sealer` gives session and mode.
    #[must_use]
    pub fn new(setup: FeedSetup, sealer: &Sealer) -> Self {
        Self {
            transmitter: Transmitter::with_lanes(setup.lanes, sealer, &setup.parameters, setup.bucket),
            setup,
            queue: VecDeque::new(),
            running: BTreeMap::new(),
            to_encode: VecDeque::new(),
            finished: VecDeque::new(),
            starved: false,
            idles: false,
            rest_until: None,
            buffers: Vec::new(),
            channels: Vec::new(),
            next_channel: 0,
            next_beacon: Time::ZERO,
            beacons: 0,
            wakes: FeedWakes::default(),
        }
    }

    /// Datagrams sent in this session.
    #[must_use]
    pub fn datagrams(&self) -> u64 {
        self.transmitter.datagrams()
    }

    /// Whether there is no job.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty() && self.finished.is_empty()
    }

    /// Blocks that wait for a thread that encodes.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.to_encode.len()
    }

    /// Whether nothing could be sent when a lane last tried, and nothing came since.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// Whether there is enough to do for a thread that reads.
    #[must_use]
    pub fn wants_reader(&self) -> bool {
        let rested = self.rest_until.is_none_or(|most| self.starved || self.held() <= most);
        !self.finished.is_empty() || self.admissible().is_some() || rested && self.next_to_read().is_some()
    }

    /// Takes a job. The highest priority runs first, and in a channel the oldest.
    pub fn submit(&mut self, job: J) {
        self.queue.push_back(job);
    }

    /// What beacons say about the channels from now on.
    pub fn set_channels(&mut self, channels: Vec<ChannelState>) {
        self.channels = channels;
    }

    /// Ends all jobs, as [`Finished::Aborted`].
    pub fn stop(&mut self) {
        let running = std::mem::take(&mut self.running).into_values().map(|running| running.order().bundle);
        let queued = std::mem::take(&mut self.queue);
        let bundles = running.chain(queued.into_iter().map(|job| job.order().bundle));
        self.finished.extend(bundles.map(|bundle| (bundle, Finished::Aborted)));
    }

    /// What a thread that reads does next.
    pub fn poll_read(&mut self) -> NextRead<J> {
        self.rest_until = None;
        loop {
            while let Some(job) = self.admissible().and_then(|at| self.queue.remove(at)) {
                self.begin(job);
            }
            let Some(id) = self.next_to_read() else { break };
            let Some(running) = self.running.get_mut(&id) else { break };
            let task = running.work.next_task();
            if task.is_none() && running.hashes.is_none() {
                return NextRead::Conclude(running.conclude(id));
            }
            let Some(task) = task.or_else(|| running.work.next_closing()) else {
                // All of it is read, and the next of its channel may begin.
                running.ended = running.outcome.take().or(Some(Finished::Aborted));
                self.close_if_encoded(id);
                continue;
            };
            let bytes = running.bytes_of(task.symbol.kind);
            let job = Arc::clone(&running.job);
            let repair = task.repair as usize * usize::from(task.symbol.oti.symbol_size());
            let (source, repair) = (self.buffer(Encoder::padded_len(&task)), self.buffer(repair));
            return NextRead::Read(ToRead { stream: id, task, job, bytes, source, repair });
        }
        self.rest_until = Some(self.held().saturating_sub(self.ahead() / 2));
        NextRead::Wait
    }

    /// A block was read, or could not be: then the rest of the job is not sent. Whether the bundle is withdrawn is decided by who keeps
    /// the ledger.
    pub fn handle_read(&mut self, read: ToRead<J>, result: Result<(), J::Error>) {
        let ToRead { stream, task, bytes, source, repair, .. } = read;
        let Some(running) = self.running.get_mut(&stream) else { return };
        running.is_away = false;
        if let Bytes::Data(reader) = bytes {
            running.reader = reader;
        }
        if running.ended.is_some() {
            self.buffers.extend([source, repair]);
            return self.close_if_encoded(stream);
        }
        match result {
            Ok(()) => {
                running.held += 1;
                running.encoding += 1;
                self.to_encode.push_back(ToEncode { stream, task, source, repair });
                self.wakes.encoders += 1;
            }
            Err(reason) => {
                self.buffers.extend([source, repair]);
                self.fail(stream, reason);
            }
        }
    }

    /// What a job comes to was signed, or its contents could not be read to the end.
    pub fn handle_concluded(&mut self, concluded: Concluded<J>) {
        let Concluded { stream, result } = concluded;
        let Some(running) = self.running.get_mut(&stream) else { return };
        running.is_away = false;
        if running.ended.is_some() {
            return self.close_if_encoded(stream);
        }
        let taken = result.and_then(|(signed, outcome)| {
            running.work.hashes(signed.len() as u64).map_err(|error| FeedError::from(error).into()).map(|()| {
                (running.hashes, running.outcome) = (Some(Arc::new(signed)), Some(outcome));
            })
        });
        if let Err(reason) = taken {
            self.fail(stream, reason);
        }
    }

    /// A block that waits to be encoded.
    pub fn poll_encode(&mut self) -> Option<ToEncode> {
        self.to_encode.pop_front()
    }

    /// A block was encoded, or could not be: its job fails.
    pub fn handle_encoded(&mut self, encoded: Encoded) {
        let Encoded { stream, result } = encoded;
        let Some(running) = self.running.get_mut(&stream) else { return };
        running.encoding -= 1;
        match result {
            Ok((block, back)) if !running.has_failed() => {
                assert!(
                    self.transmitter.schedule().takes_blocks(stream),
                    "a stream is open until all of it is encoded"
                );
                self.transmitter.schedule().push(stream, block);
                self.buffers.extend(back);
                // Lanes that found nothing all rest.
                let all_rest = std::mem::take(&mut self.starved) | std::mem::take(&mut self.idles);
                let lanes = if all_rest { self.setup.lanes } else { 1 };
                self.wakes.lanes = self.wakes.lanes.max(lanes);
            }
            Ok((block, _)) => {
                running.held -= 1;
                self.buffers.extend([block.source, block.repair]);
            }
            Err(error) => {
                running.held -= 1;
                self.fail(stream, FeedError::from(error).into());
            }
        }
        self.close_if_encoded(stream);
    }

    /// What leaves over `lane` now: fills `batch`, or says when to come again. `wall_ms` is Unix time in milliseconds, for beacons.
    /// With a `sealer` symbols are sealed on the way; without, the caller does it with [`Batch::seal`].
    pub fn poll_transmit(
        &mut self,
        lane: usize,
        now: Time,
        wall_ms: u64,
        batch: &mut Batch,
        sealer: Option<&Sealer>,
    ) -> Transmit {
        if now >= self.next_beacon {
            self.next_beacon = now + BEACON_INTERVAL;
            self.push_beacon(wall_ms);
            // It may be another lane's.
            self.wakes.lanes = self.setup.lanes;
        }
        let next = self.transmitter.poll_lane(lane, now, batch, sealer);
        self.collect_spent();
        match next {
            Transmit::Ready => next,
            Transmit::Wait(at) => {
                // Otherwise it waits for its pacer.
                self.idles |= self.transmitter.schedule().next_due() == Some(at);
                Transmit::Wait(at.min(self.next_beacon))
            }
            Transmit::Idle => {
                self.starved = true;
                Transmit::Wait(self.next_beacon)
            }
        }
    }

    /// A job that is over, and how.
    pub fn poll_finished(&mut self) -> Option<(BundleId, Finished<J::Error>)> {
        self.finished.pop_front()
    }

    /// Whose sleep is over. Call after every mutator, `handle_*` and [`Feed::poll_transmit`], before the lock is given up.
    pub fn poll_wakes(&mut self) -> FeedWakes {
        let mut wakes = std::mem::take(&mut self.wakes);
        if self.rest_until.is_some() && self.wants_reader() {
            (wakes.reader, self.rest_until) = (true, None);
        }
        wakes.encoders = wakes.encoders.min(self.to_encode.len());
        wakes
    }

    /// The job that may begin: the oldest of the highest priority, one a channel, so that a channel's bundles stay in order, and none
    /// of lower priority than what runs. A withdrawal is short and waits for no bundle of its channel.
    fn admissible(&self) -> Option<usize> {
        if self.queue.is_empty() {
            return None;
        }
        let active = || self.running.values().filter(|running| running.is_active());
        let best = active().map(|running| running.order().priority).max();
        let waiting = self.queue.iter().map(J::order).enumerate().filter(|(_, order)| {
            best.is_none_or(|best| order.priority >= best)
                && (order.withdrawn.is_some() || active().all(|running| running.order().channel != order.channel))
        });
        waiting.min_by_key(|(at, order)| (-i32::from(order.priority), *at)).map(|(at, _)| at)
    }

    fn begin(&mut self, job: J) {
        let order = job.order();
        let bundle = order.bundle;
        let parameters = self.setup.parameters.with_block(order.symbol_size, order.block_symbols);
        match Running::new(job, &parameters) {
            Ok(running) => {
                let id = self.transmitter.schedule().open(running.work.stream(running.order().priority));
                self.running.insert(id, running);
            }
            Err(error) => {
                let reason = FeedError::from(error).into();
                self.finished.push_back((bundle, Finished::Failed { reason }));
            }
        }
    }

    /// The job whose next block is to be read: of those of the highest priority, the one that holds the fewest, so that equals share the
    /// wire. None: no job has room.
    fn next_to_read(&self) -> Option<StreamId> {
        let active = || self.running.iter().filter(|(_, running)| running.is_active());
        let top = active().map(|(_, running)| running.order().priority).max()?;
        let limit = self.setup.parameters.depth() as usize + self.ahead();
        // All streams together share the memory of two. If nothing can be sent all the same, one more block is read.
        if self.held() >= 2 * limit && !self.starved {
            return None;
        }
        let has_room =
            |running: &Running<J>| running.order().priority == top && !running.is_away && running.held < limit;
        active()
            .filter(|(_, running)| has_room(running))
            .min_by_key(|(id, running)| (running.held, **id))
            .map(|(id, _)| *id)
    }

    /// Blocks that are read and whose symbols have not all gone.
    fn held(&self) -> usize {
        self.running.values().map(|running| running.held).sum()
    }

    /// Blocks read ahead of the ring.
    fn ahead(&self) -> usize {
        let parameters = &self.setup.parameters;
        let block = usize::from(parameters.symbol_size()) * usize::from(parameters.block_symbols());
        (self.setup.ahead / block.max(1)).clamp(4, 32)
    }

    /// Takes back the buffers of blocks that have gone.
    fn collect_spent(&mut self) {
        while let Some(spent) = self.transmitter.schedule().poll_spent() {
            let size = usize::from(spent.symbol.oti.symbol_size());
            let symbols = ((spent.source.len() + spent.repair.len()) / size) as u64;
            if let Some(running) = self.running.get_mut(&spent.stream) {
                running.held -= 1;
                let progress = &running.order().progress;
                let is_data = spent.symbol.kind == ObjectKind::Data;
                progress.blocks_sent.fetch_add(u64::from(is_data), Ordering::Relaxed);
                progress.datagrams.fetch_add(symbols, Ordering::Relaxed);
                progress.bytes_sent.fetch_add(symbols * size as u64, Ordering::Relaxed);
                self.finish_if_over(spent.stream);
            }
            self.buffers.extend([spent.source, spent.repair].into_iter().filter(|b| b.capacity() > 0));
        }
    }

    fn fail(&mut self, id: StreamId, reason: J::Error) {
        if let Some(running) = self.running.get_mut(&id) {
            running.ended = Some(Finished::Failed { reason });
        }
        self.transmitter.schedule().abort(id);
        self.collect_spent();
        self.close_if_encoded(id);
    }

    /// Everything of a job is read: its stream ends with its last block.
    fn close_if_encoded(&mut self, id: StreamId) {
        if self.running.get(&id).is_none_or(|r| r.ended.is_some() && r.encoding == 0 && !r.is_away) {
            self.transmitter.schedule().close(id);
            self.collect_spent();
            self.finish_if_over(id);
        }
    }

    fn finish_if_over(&mut self, id: StreamId) {
        let is_over = |running: &Running<J>| running.held == 0 && running.ended.is_some() && !running.is_away;
        if self.running.get(&id).is_some_and(is_over)
            && let Some(Running { job, ended: Some(how), .. }) = self.running.remove(&id)
        {
            assert!(!self.transmitter.schedule().is_open(id), "a job is over when its last symbol has gone");
            self.finished.push_back((job.order().bundle, how));
        }
    }

    /// A buffer of at least `capacity` bytes, its length as it was.
    fn buffer(&mut self, capacity: usize) -> Vec<u8> {
        let at = self.buffers.iter().rposition(|b| b.capacity() >= capacity && b.capacity() / 4 <= capacity);
        at.map_or_else(|| Vec::with_capacity(capacity), |at| self.buffers.swap_remove(at))
    }

    /// Takes some 30 microseconds, in which no lane may send: the count of datagrams would be wrong.
    fn push_beacon(&mut self, wall_ms: u64) {
        let newest = self.running.values().max_by_key(|r| (r.order().priority, std::cmp::Reverse(r.order().sequence)));
        let on_wire = newest.map(|running| running.order().on_wire());
        let channel = match self.channels.len() {
            0 => None,
            count => {
                self.next_channel = (self.next_channel + 1) % count;
                self.channels.get(self.next_channel).cloned()
            }
        };
        self.beacons = self.beacons.saturating_add(1);
        let beacon = Beacon {
            epoch: self.setup.epoch,
            session_number: self.setup.session_number,
            session: self.transmitter.session(),
            counter: self.beacons,
            clock_ms: wall_ms,
            rate_bits: self.setup.parameters.rate(),
            datagrams: self.transmitter.datagrams(),
            on_wire,
            channel,
        };
        let limit = usize::from(self.setup.parameters.symbol_size());
        self.transmitter.push_beacon(beacon.sign(&self.setup.key, limit));
    }
}

#[cfg(test)]
mod tests;
