//! The receiver's process: opener, reassembly and the real delivery, and its pipeline without threads, in the order of
//! `receiver/src/pipeline.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::crypto::TrustStore;
use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::receive::{Check, Limits, Reassembly, ReceivedBlock, Taken, Usage};
use checkvalve_protocol::seal::Opener;
use checkvalve_protocol::ticket::Loss;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::wire::ObjectKind;
use checkvalve_receiver::delivery::ticket::{TicketError, TicketView};
use checkvalve_receiver::delivery::{Delivery, OpenError, Policy, Settings};
use checkvalve_receiver::hook::HookPolicy;
use checkvalve_receiver::inbox::Durability;
use checkvalve_receiver::pipeline::ask;
use checkvalve_receiver::sink::{ObjectProgress, Sink, StoreError};
use checkvalve_receiver::store::space;

use super::low::{LINK_KEY, signing_key};
use super::memory::Memory;
use super::peer::peer_key;
use super::script::Options;
use crate::rng::Rng;
use crate::simdisk::SimDisk;

pub(super) const INBOX: &str = "/inbox";
pub(super) const QUARANTINE: &str = "/quarantine";
pub(super) const STATE: &str = "/state";
pub(super) const SILENCE_MS: u64 = 10_000;
const MAX_PARKED: usize = 16;
/// What an object takes beside its blocks.
const OBJECT: u64 = 768;
/// Most lines of a ticket: few, so that some do not hold all that is lacking.
const TICKET_LINES: usize = 3;

/// A run of the receiver's process.
pub(super) struct High {
    pub(super) delivery: Delivery,
    plans: Arc<Plans>,
    opener: Opener,
    reassembly: Reassembly,
    ready: VecDeque<ReceivedBlock>,
    parked: VecDeque<ReceivedBlock>,
    now: Time,
    memory: u64,
    rng: Rng,
}

impl High {
    pub(super) fn open(
        disk: &SimDisk,
        lasting: &Memory,
        options: &Options,
        plans: &Arc<Plans>,
        boot: u64,
        now_ms: u64,
        seed: u64,
    ) -> Result<Self, OpenError> {
        let hook = options.hook.map(|retries| {
            Arc::new(HookPolicy {
                install: "/hook".into(),
                timeout: Duration::from_secs(5),
                backoff: Duration::from_millis(500),
                backoff_max: Duration::from_secs(4),
                retries: (retries > 0).then_some(retries),
            })
        });
        let policy = Policy { hook, wait_for_missing_ms: options.wait_for_missing_ms, quota: None };
        let staging = if options.inbox_mounted { "/inbox/.staging" } else { "/state/staging" };
        let channels: BTreeMap<_, _> = super::play::channels().into_iter().map(|c| (c, policy.clone())).collect();
        let settings = Settings {
            inbox: PathBuf::from(INBOX),
            quarantine: PathBuf::from(QUARANTINE),
            state: PathBuf::from(STATE),
            staging: PathBuf::from(staging),
            durability: if options.fsync_each { Durability::Fsync } else { Durability::Syncfs },
            channels,
            silence_ms: SILENCE_MS,
            // Little for what nobody signed for, so that some of it finds no room.
            space: space::Limits {
                unsigned_bytes: 64 << 10,
                unsigned_files: 16,
                unsigned_bundles: 4,
                ..space::Limits::new(0, u64::MAX)
            },
            // What the simulator drops has few files.
            crowd: if options.fsync_each { checkvalve_receiver::store::CROWD } else { 2 },
        };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&boot.to_le_bytes());
        let delivery = Delivery::open(Arc::new(disk.clone()), settings, trust(options), id, now_ms)?;
        let memory = if options.little_memory { 24 << 10 } else { 4 << 20 };
        // What nobody signed for finds little room, so that some of it has to make room for the rest; but a block of it, in pages, and
        // its repair symbols fit.
        let limits = Limits {
            unsigned_memory: memory / 2,
            objects: 256,
            unsigned_objects: 8,
            announces: 4,
            open_blocks: 256,
            // Few, so that some are turned away.
            checks: 8,
            beacons: 8,
            ..Limits::new(memory)
        };
        lasting.left_behind(&mut |block| {
            checkvalve_receiver::pipeline::take_up(block, plans, &delivery);
        });
        Ok(Self {
            delivery,
            plans: Arc::clone(plans),
            opener: Opener::new(Some(LINK_KEY)),
            reassembly: Reassembly::with_memory(limits, Box::new(lasting.clone())),
            ready: VecDeque::new(),
            parked: VecDeque::new(),
            now: Time::ZERO,
            memory,
            rng: Rng::new(seed),
        })
    }

    /// A datagram arrives.
    pub(super) fn receive(&mut self, now: Time, datagram: &mut [u8]) {
        self.now = now;
        let delivery = &self.delivery;
        let taken = self.reassembly.take(now, &mut self.opener, datagram, &mut |symbol| ask(delivery, symbol));
        if let Ok(Taken::Beacon(session, payload)) = taken {
            self.reassembly.push_beacon(session, payload);
        }
        self.collect();
    }

    /// The workers do some of what waits, or all of it.
    pub(super) fn work(&mut self, wall_ms: u64, all: bool) -> bool {
        let mut any = false;
        while all || self.rng.chance(600) {
            let done = match self.rng.below(4) {
                0 => self.store_one() || self.park_one() || self.check_one(wall_ms) || self.delivery.work(),
                1 => self.delivery.work() || self.store_one() || self.park_one() || self.check_one(wall_ms),
                2 => self.check_one(wall_ms) || self.delivery.work() || self.store_one() || self.park_one(),
                _ => self.park_one() || self.check_one(wall_ms) || self.store_one() || self.delivery.work(),
            };
            any |= done;
            if !done {
                break;
            }
        }
        any
    }

    /// The thread that waits for no disk does all that it has to.
    pub(super) fn check(&mut self, wall_ms: u64) {
        while self.check_one(wall_ms) {}
    }

    /// Progress and time.
    pub(super) fn tend(&mut self, now: Time, wall_ms: u64) {
        self.now = now;
        self.reassembly.handle_timeout(now);
        self.collect();
        let expired: Vec<_> = std::iter::from_fn(|| self.reassembly.poll_expired()).collect();
        expired.into_iter().for_each(|bundle| self.delivery.expired(bundle));
        let progress: Vec<_> = self.reassembly.progress().collect();
        for p in progress {
            let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            let done = ObjectProgress {
                blocks_done: count(p.blocks_done),
                blocks_total: p.oti.blocks(),
                blocks_open: count(p.blocks_open),
                symbols_lacking: p.symbols_lacking,
            };
            self.delivery.progress(p.bundle, p.kind, done);
        }
        self.delivery.tick(wall_ms);
        self.delivery.lost().into_iter().for_each(|bundle| self.reassembly.forget(bundle));
    }

    /// What the command `ticket` prints; none named: `ticket --all`.
    pub(super) fn tickets(&mut self, which: &[String]) -> Result<Vec<TicketView>, TicketError> {
        let tally = self.reassembly.tally();
        let loss = Loss::of(tally.sent - tally.received, tally.sent);
        self.delivery.tickets(which, loss, TICKET_LINES, &|bundle| self.reassembly.lacking(bundle))
    }

    /// Told to stop: what is ready is stored, what is not is kept. What waits to be checked has to come again.
    pub(super) fn stop(&mut self) {
        while self.store_one() || self.park_one() {}
        self.reassembly.park_all();
        self.collect();
        while self.park_one() {
            self.collect();
        }
    }

    /// Bytes over what it may use, and the unused rest of one buffer; 0 if none. What objects take by themselves is counted, but no
    /// room is made for it before the next block.
    pub(super) fn memory_over(&self) -> u64 {
        let usage = self.reassembly.usage();
        usage.memory.saturating_sub(self.memory + 4_096 + usage.objects as u64 * OBJECT)
    }

    /// What is in use of what it may use.
    pub(super) fn usage(&self) -> Usage {
        self.reassembly.usage()
    }

    fn collect(&mut self) {
        self.ready.extend(std::iter::from_fn(|| self.reassembly.poll_block()));
        while self.parked.len() < MAX_PARKED
            && let Some(block) = self.reassembly.poll_parked()
        {
            self.parked.push_back(block);
        }
        if self.reassembly.has_admitted() {
            let delivery = &self.delivery;
            self.reassembly.take_admitted(self.now, &mut |symbol| ask(delivery, symbol));
        }
    }

    /// Checks a beacon, or a signed object that came in one block.
    fn check_one(&mut self, wall_ms: u64) -> bool {
        match self.reassembly.poll_check_now() {
            None => return false,
            Some(Check::Beacon(session, signed)) => {
                if let Some(datagrams) = self.delivery.beacon(wall_ms, session, &signed) {
                    self.reassembly.sent(session, datagrams);
                }
            }
            Some(Check::Object(mut block)) => {
                if block.decode(&self.plans).is_err() {
                    self.reassembly.undecodable(*block);
                } else {
                    match self.delivery.manifest(block.bundle(), block.kind(), block.data()) {
                        Ok(()) => self.reassembly.stored(*block),
                        Err(StoreError::Refused) => self.reassembly.discarded(*block),
                        Err(_) => self.reassembly.failed(*block),
                    }
                }
            }
        }
        self.take_up_vouched();
        self.collect();
        true
    }

    /// Bundles that somebody signed for have more room, and what waited for that is taken.
    fn take_up_vouched(&mut self) {
        let delivery = &self.delivery;
        for bundle in delivery.vouched() {
            self.reassembly.vouch(self.now, bundle, &mut |symbol| ask(delivery, symbol));
        }
    }

    fn store_one(&mut self) -> bool {
        let Some(mut block) = self.ready.pop_front() else { return false };
        if block.has_parked() {
            self.delivery.unpark(&mut block);
        }
        if block.decode(&self.plans).is_err() {
            self.reassembly.undecodable(block);
        } else {
            let oti = block.oti();
            let stored = self.delivery.block(block.bundle(), block.kind(), &oti, block.sbn(), block.data());
            if block.kind() != ObjectKind::Data {
                self.take_up_vouched();
            }
            match stored {
                Ok(()) => self.reassembly.stored(block),
                Err(StoreError::Refused) => self.reassembly.discarded(block),
                Err(_) => self.reassembly.failed(block),
            }
        }
        self.collect();
        true
    }

    fn park_one(&mut self) -> bool {
        let Some(block) = self.parked.pop_front() else { return false };
        match self.delivery.park(&block) {
            0 => self.reassembly.recycle(block),
            kept => self.reassembly.parked(self.now, block, kept),
        }
        self.collect();
        true
    }
}

/// Only the sender may sign for the channels of the run; the peer for any other, if it is trusted at all.
fn trust(options: &Options) -> Trust {
    let mut keys = TrustStore::new();
    let low = signing_key().public();
    assert!(keys.insert(low, "low"), "the first key");
    if options.neighbour {
        assert!(keys.insert(peer_key().public(), "neighbour"), "another tag");
    }
    let signers = super::play::channels().into_iter().map(|channel| (channel, BTreeSet::from([low.id()]))).collect();
    Trust { keys, signers }
}
