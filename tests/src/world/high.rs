//! The receiver's process: opener, reassembly and the real delivery, and its pipeline without threads, in the order of
//! `receiver/src/pipeline.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use checkvalve_protocol::beacon::Beacon;
use checkvalve_protocol::crypto::TrustStore;
use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::id::SessionId;
use checkvalve_protocol::receive::{DropReason, Limits, Reassembly, ReceivedBlock, Taken, Wanted};
use checkvalve_protocol::seal::Opener;
use checkvalve_protocol::ticket::Loss;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::wire::Symbol;
use checkvalve_receiver::delivery::ticket::{TicketError, TicketView};
use checkvalve_receiver::delivery::{Delivery, OpenError, Policy, Settings};
use checkvalve_receiver::hook::HookPolicy;
use checkvalve_receiver::inbox::Durability;
use checkvalve_receiver::sink::{ObjectProgress, RefuseReason, Sink, Want};

use super::low::{LINK_KEY, signing_key};
use super::memory::Memory;
use super::script::Options;
use crate::rng::Rng;
use crate::simdisk::SimDisk;

pub(super) const INBOX: &str = "/inbox";
pub(super) const QUARANTINE: &str = "/quarantine";
pub(super) const STATE: &str = "/state";
pub(super) const SILENCE_MS: u64 = 10_000;
const MAX_PARKED: usize = 64;
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
    beacons: Vec<(SessionId, Beacon)>,
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
        let mut trust = TrustStore::new();
        trust.insert(signing_key().public(), "low");
        let hook = options.hook.map(|retries| {
            Arc::new(HookPolicy {
                install: "/hook".into(),
                timeout: Duration::from_secs(5),
                backoff: Duration::from_millis(500),
                backoff_max: Duration::from_secs(4),
                retries: (retries > 0).then_some(retries),
            })
        });
        let policy = Policy { hook, wait_for_missing_ms: options.wait_for_missing_ms };
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
            reserve: 0,
            quota: u64::MAX,
            // What the simulator drops has few files.
            crowd: if options.fsync_each { checkvalve_receiver::store::CROWD } else { 2 },
        };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&boot.to_le_bytes());
        let delivery = Delivery::open(Arc::new(disk.clone()), settings, trust, id, now_ms)?;
        let memory = if options.little_memory { 24 << 10 } else { 4 << 20 };
        let limits = Limits { memory, objects: 256, idle: Duration::from_secs(20), ask_again: Duration::from_secs(2) };
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
            beacons: Vec::new(),
            memory,
            rng: Rng::new(seed),
        })
    }

    /// A datagram arrives.
    pub(super) fn receive(&mut self, now: Time, datagram: &mut [u8]) {
        let delivery = &self.delivery;
        let taken = self.reassembly.take(now, &mut self.opener, datagram, &mut |symbol| ask(delivery, symbol));
        if let Ok(Taken::Beacon(session, payload)) = taken
            && self.beacons.len() < 64
            && let Ok(beacon) = Beacon::decode(payload)
        {
            self.beacons.push((session, beacon));
        }
        self.collect();
    }

    /// The workers do some of what waits, or all of it.
    pub(super) fn work(&mut self, all: bool) -> bool {
        let mut any = false;
        while all || self.rng.chance(600) {
            let done = match self.rng.below(3) {
                0 => self.store_one() || self.park_one() || self.delivery.work(),
                1 => self.delivery.work() || self.store_one() || self.park_one(),
                _ => self.park_one() || self.store_one() || self.delivery.work(),
            };
            any |= done;
            if !done {
                break;
            }
        }
        any
    }

    /// Beacons, progress and time.
    pub(super) fn tend(&mut self, now: Time, wall_ms: u64) {
        self.reassembly.handle_timeout(now);
        self.collect();
        for (session, beacon) in std::mem::take(&mut self.beacons) {
            self.delivery.beacon(wall_ms, session, beacon);
        }
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

    /// Told to stop: what is ready is stored, what is not is kept.
    pub(super) fn stop(&mut self) {
        while self.store_one() || self.park_one() {}
        self.reassembly.park_all();
        self.collect();
        while self.park_one() {}
    }

    /// Bytes over what it may use, and the unused rest of one buffer; 0 if none.
    pub(super) fn memory_over(&self) -> u64 {
        self.reassembly.memory().saturating_sub(self.memory + 4_096)
    }

    fn collect(&mut self) {
        while let Some(block) = self.reassembly.poll_block() {
            self.ready.push_back(block);
        }
        while let Some(block) = self.reassembly.poll_parked() {
            if self.parked.len() < MAX_PARKED {
                self.parked.push_back(block);
            } else {
                self.reassembly.recycle(block);
            }
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
            match self.delivery.block(block.bundle(), block.kind(), &oti, block.sbn(), block.data()) {
                Ok(()) => self.reassembly.stored(block),
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
            kept => self.reassembly.parked(block, kept),
        }
        self.collect();
        true
    }
}

fn ask(delivery: &Delivery, symbol: &Symbol) -> Wanted {
    match delivery.want(symbol.bundle, symbol.kind, &symbol.oti) {
        Want::Yes { have } => {
            let parked = delivery.parked(symbol.bundle, symbol.kind, &symbol.oti);
            Wanted::Yes { have, parked }
        }
        Want::Done => Wanted::No(DropReason::Done),
        Want::Refuse(RefuseReason::NoRoom) => Wanted::No(DropReason::Memory),
        Want::Refuse(RefuseReason::Length | RefuseReason::TooMany) => Wanted::No(DropReason::Refused),
    }
}
