//! The sending side of a session, without sockets, threads or clocks.
//!
//! [`feed::Feed`] is the whole of it; these are its parts:
//!
//! 1. [`Work`] says which blocks of a bundle go out, with which ESIs and how much repair ([`work`]).
//! 2. The caller reads and encodes each block ([`Encoder`]) and pushes it to the [`Transmitter`].
//! 3. [`Transmitter::poll_transmit`] picks symbols ([`schedule`]), keeps the rate ([`pacer`]) and fills a [`Batch`], sealing
//!    on the way if it may.
//! 4. [`Batch::seal`] seals what is not, outside of any lock; the caller hands it to the kernel as one super-datagram.

pub mod feed;
pub mod margin;
pub mod pacer;
pub mod parameters;
pub mod schedule;
pub mod work;

use std::collections::VecDeque;
use std::time::Duration;

pub use self::pacer::Pacer;
pub use self::parameters::{Link, ParameterError, Parameters};
pub use self::schedule::{Block, Schedule, Spent, StreamId, StreamShape};
pub use self::work::{Encoder, Selection, Task, Work, WorkShape};
use crate::limits::{ETHERNET_LEN, HEADER_LEN, IP_UDP_LEN};
use crate::seal::Sealer;
use crate::time::Time;
use crate::wire::{Content, Header};

/// Most bytes of a super-datagram: what fits an IPv4 datagram's length field, less its headers.
pub const MAX_BATCH_BYTES: usize = 65_535 - IP_UDP_LEN;
/// Most datagrams in a super-datagram (`UDP_MAX_SEGMENTS` of Linux before 6.9).
pub const MAX_BATCH_DATAGRAMS: usize = 64;

/// What [`Transmitter::poll_transmit`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transmit {
    /// The batch was filled: seal it, send it, call again.
    Ready,
    /// Call again at this time, or sooner after a push.
    Wait(Time),
    /// Nothing to send: call again after a push.
    Idle,
}

/// Datagrams of one size (the last may be shorter), back to back: what goes to the kernel in one call.
#[derive(Debug, Default)]
pub struct Batch {
    /// Grows to what the largest batch took, and stays.
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are datagrams.
    filled: usize,
    /// Length of each datagram but the last.
    size: usize,
    /// The header of each.
    headers: Vec<Header>,
    /// How many of them are sealed: the first so many.
    sealed: usize,
}

/// One session's sending side.
///
/// Call [`Transmitter::poll_transmit`] after every push and whenever the time it named has come.
pub struct Transmitter {
    schedule: Schedule,
    /// One for each lane.
    pacers: Vec<Pacer>,
    counter: u64,
    session: crate::id::SessionId,
    sealed: bool,
    max_datagrams: usize,
    /// Beacons, and the lane of each.
    control: VecDeque<(usize, Vec<u8>)>,
    beacons: usize,
}

impl Transmitter {
    /// `sealer` gives session and mode; `bucket` bounds what is caught up at once ([`Pacer::new`]).
    #[must_use]
    pub fn new(sealer: &Sealer, parameters: &Parameters, bucket: Duration) -> Self {
        Self::with_lanes(1, sealer, parameters, bucket)
    }

    /// As [`Transmitter::new`], over `lanes` lanes (1 or more), each of which gets an equal share of the rate and no more: it
    /// may be a fibre of its own.
    #[must_use]
    pub fn with_lanes(lanes: usize, sealer: &Sealer, parameters: &Parameters, bucket: Duration) -> Self {
        assert!(lanes > 0, "a link has a lane");
        let pacer = Pacer::new((parameters.rate() / lanes as u64).max(1), bucket);
        let datagram = sealer.datagram_len(usize::from(parameters.symbol_size()));
        let by_bytes = MAX_BATCH_BYTES / datagram;
        let by_pace = pacer.quantum() / parameters.wire_len();
        Self {
            // A quarter more than the burst, since a burst does not end on time.
            schedule: Schedule::new(parameters.burst() + parameters.burst() / 4),
            pacers: vec![pacer; lanes],
            counter: 0,
            session: sealer.session(),
            sealed: sealer.is_sealed(),
            max_datagrams: by_pace.min(by_bytes).clamp(1, MAX_BATCH_DATAGRAMS),
            control: VecDeque::new(),
            beacons: 0,
        }
    }

    /// The schedule: open, push, close, abort streams; take spent blocks.
    pub fn schedule(&mut self) -> &mut Schedule {
        &mut self.schedule
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> crate::id::SessionId {
        self.session
    }

    /// Blocks pushed and not yet spent.
    #[must_use]
    pub fn held(&self) -> usize {
        self.schedule.held()
    }

    /// Datagrams sent in this session.
    #[must_use]
    pub fn datagrams(&self) -> u64 {
        self.counter
    }

    /// Sends a beacon's payload ahead of everything else, over each lane in its turn.
    pub fn push_beacon(&mut self, payload: Vec<u8>) {
        let lane = self.beacons % self.pacers.len();
        self.beacons = self.beacons.wrapping_add(1);
        // One that is still there is of a lane that stands still; nothing waits behind it.
        self.control.retain(|(other, _)| *other != lane);
        self.control.push_back((lane, payload));
    }

    /// Sends at most `count` datagrams in a batch, for a link that takes no super-datagrams.
    pub fn limit_batch(&mut self, count: usize) {
        self.max_datagrams = self.max_datagrams.min(count.max(1));
    }

    /// [`Transmitter::poll_lane`] of the first lane, or the only one.
    pub fn poll_transmit(&mut self, now: Time, batch: &mut Batch, sealer: Option<&Sealer>) -> Transmit {
        self.poll_lane(0, now, batch, sealer)
    }

    /// Fills `batch` with what should leave over `lane` at `now`. With a `sealer` symbols are sealed from their block into the batch, which
    /// saves a copy; without, [`Batch::seal`] does it, and other threads may have the transmitter meanwhile.
    ///
    /// # Panics
    /// When there is no such lane.
    pub fn poll_lane(&mut self, lane: usize, now: Time, batch: &mut Batch, sealer: Option<&Sealer>) -> Transmit {
        if let Some(at) = self.pacers[lane].wait(now) {
            return Transmit::Wait(at);
        }
        batch.clear();
        let beacon = self.control.iter().position(|(of, _)| *of == lane).and_then(|at| self.control.remove(at));
        if let Some((_, payload)) = beacon {
            batch.put(self.header(Content::Beacon), &payload, sealer);
        }
        while batch.is_empty() || (batch.len() < self.max_datagrams && batch.has_room()) {
            if batch.headers.first().is_some_and(|h| h.content == Content::Beacon) {
                break;
            }
            let header = self.header(Content::Beacon);
            let turn = batch.symbol_size();
            let sent = self.schedule.next(now, turn, |symbol, bytes| {
                batch.put(Header { content: Content::Symbol(symbol), ..header }, bytes, sealer);
            });
            if !sent {
                // The counter taken for this symbol is the next one's.
                self.counter -= 1;
                break;
            }
        }
        if batch.is_empty() {
            return self.schedule.next_due().map_or(Transmit::Idle, Transmit::Wait);
        }
        self.pacers[lane].charge(now, batch.wire_bytes());
        Transmit::Ready
    }

    fn header(&mut self, content: Content) -> Header {
        let counter = self.counter;
        self.counter += 1;
        Header { sealed: self.sealed, session: self.session, counter, content }
    }
}

impl Batch {
    /// An empty batch; its buffers are used again and again.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The datagrams, back to back; sealed only after [`Batch::seal`].
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// Length of each datagram but the last, which may be shorter: the kernel's segment size.
    #[must_use]
    pub fn segment_size(&self) -> usize {
        self.size
    }

    /// How many datagrams.
    #[must_use]
    pub fn len(&self) -> usize {
        self.headers.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// Each datagram.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes().chunks(self.size.max(1))
    }

    /// Bytes on the wire, Ethernet included.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        self.filled + self.headers.len() * (IP_UDP_LEN + ETHERNET_LEN)
    }

    /// Seals in place every datagram that is not sealed.
    pub fn seal(&mut self, sealer: &Sealer) {
        let bytes = &mut self.buffer[..self.filled];
        let datagrams = self.headers.iter().zip(bytes.chunks_mut(self.size.max(1)));
        datagrams.skip(self.sealed).for_each(|(header, datagram)| sealer.seal_in_place(header, datagram));
        self.sealed = self.headers.len();
    }

    /// T of its symbols; None when it has none yet.
    fn symbol_size(&self) -> Option<u16> {
        match self.headers.first()?.content {
            Content::Symbol(symbol) => Some(symbol.oti.symbol_size()),
            Content::Beacon => None,
        }
    }

    fn has_room(&self) -> bool {
        self.filled + self.size <= MAX_BATCH_BYTES
    }

    fn clear(&mut self) {
        self.filled = 0;
        self.headers.clear();
        self.sealed = 0;
        self.size = 0;
    }

    fn put(&mut self, header: Header, payload: &[u8], sealer: Option<&Sealer>) {
        let trailer = if header.sealed { crate::limits::TAG_LEN } else { crate::limits::CRC_LEN };
        let len = HEADER_LEN + payload.len() + trailer;
        if self.headers.is_empty() {
            self.size = len;
        }
        assert_eq!(len, self.size, "a batch has one size of datagrams");
        let end = self.filled + len;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        let datagram = &mut self.buffer[self.filled..end];
        self.filled = end;
        self.headers.push(header);
        if let Some(sealer) = sealer {
            sealer.seal(&header, payload, datagram);
            self.sealed = self.headers.len();
        } else {
            datagram[..HEADER_LEN].copy_from_slice(&header.to_bytes());
            datagram[HEADER_LEN..len - trailer].copy_from_slice(payload);
        }
    }
}
