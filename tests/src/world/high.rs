//! The receiver's process: the opener, [`Intake`] and the real delivery, and simulated threads around them. The threads behave
//! like those in `receiver/src/pipeline.rs`. Any of them may run next, for one step: poll, do, or report.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::crypto::TrustStore;
use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::receive::intake::{BlockOutcome, Intake, NextWork};
use checkvalve_protocol::receive::{Check, Drops, Limits, NextCheck, Question, ReceivedBlock, Sent, Usage, Wanted};
use checkvalve_protocol::seal::Opener;
use checkvalve_protocol::ticket::Loss;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::wire::ObjectKind;
use checkvalve_receiver::delivery::ticket::{TicketError, TicketView};
use checkvalve_receiver::delivery::{Delivery, OpenError, Policy, Settings};
use checkvalve_receiver::hook::HookPolicy;
use checkvalve_receiver::inbox::Durability;
use checkvalve_receiver::pipeline::{ask, outcome};
use checkvalve_receiver::sink::{Lost, ObjectProgress, Sink};
use checkvalve_receiver::store::space;

use super::book::Held;
use super::low::{LINK_KEY, signing_key};
use super::memory::Memory;
use super::pace::Pace;
use super::peer::peer_key;
use super::script::Options;
use crate::rng::Rng;
use crate::simdisk::SimDisk;

pub(super) const INBOX: &str = "/inbox";
pub(super) const QUARANTINE: &str = "/quarantine";
pub(super) const STATE: &str = "/state";
pub(super) const SILENCE_MS: u64 = 10_000;
/// Limits for bundles that nobody signed for.
pub(super) const UNSIGNED_BYTES: u64 = 64 << 10;
pub(super) const UNSIGNED_FILES: u64 = 16;
pub(super) const UNSIGNED_BUNDLES: u64 = 4;
/// How many threads store blocks.
const WORKERS: usize = 2;
/// The thread that moves bundles to the inbox.
const PUBLISHER: usize = WORKERS + 1;
/// Whoever answers a question.
const ANSWER: usize = PUBLISHER + 1;
/// The bytes that an object takes besides its blocks.
const OBJECT: u64 = 768;
/// How many objects may exist at once of bundles whose id names no trusted key.
const UNKNOWN: usize = 32;
/// The most lines per ticket. There are few, so that some tickets do not hold everything that is missing.
const TICKET_LINES: usize = 3;

/// A run of the receiver's process.
pub(super) struct High {
    pub(super) delivery: Delivery,
    plans: Arc<Plans>,
    opener: Opener,
    intake: Intake,
    /// All but the last store blocks. The last one checks signatures.
    threads: [Thread; WORKERS + 1],
    /// Until when the disk keeps each of these threads, and the publisher, waiting.
    busy_until: [Time; WORKERS + 2],
    /// Questions that some thread is about to answer, and answers that it is about to report.
    questions: Vec<(Question, Option<Wanted>)>,
    /// Whether the lane's thread waits for the threads that store.
    resting: bool,
    now: Time,
    /// An invariant that a thread found violated.
    fault: Option<String>,
    limits: Limits,
    rng: Rng,
}

/// What a thread is doing.
enum Thread {
    /// It is about to ask what to do next.
    Awake,
    /// It sleeps until that time, or until it is woken.
    Asleep(Option<Time>),
    Storing(ReceivedBlock),
    Parking(ReceivedBlock),
    Checking(Check),
    /// It is about to report the bundles that were signed for, and then this.
    Vouching(Vec<BundleId>, Option<Report>),
    /// It is about to report. If true, it then asks which bundles were signed for.
    Reporting(Report, bool),
    Over,
}

enum Report {
    Block(ReceivedBlock, BlockOutcome),
    Parked(ReceivedBlock, u32),
    Beacon(SessionId, Option<Sent>),
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
            // There is little room for unsigned bundles, so that some do not fit.
            space: space::Limits {
                unsigned_bytes: UNSIGNED_BYTES,
                unsigned_files: UNSIGNED_FILES,
                unsigned_bundles: UNSIGNED_BUNDLES,
                ..space::Limits::new(0, u64::MAX)
            },
            // The simulated drops have few files.
            crowd: if options.fsync_each { checkvalve_receiver::store::CROWD } else { 2 },
            // Few, so that they are closed and opened again.
            open_files: 2,
        };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&boot.to_le_bytes());
        let delivery = Delivery::open(Arc::new(disk.clone()), settings, trust(options), id, now_ms)?;
        let memory = if options.little_memory { 24 << 10 } else { 4 << 20 };
        // There is little memory for unsigned bundles, so that some have to make room for others. But one block in pages fits,
        // with its repair symbols.
        let limits = Limits {
            unsigned_memory: memory / 2,
            objects: 256,
            unsigned_objects: 8,
            announces: 4,
            open_blocks: 256,
            // Few, so that some are rejected.
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
            intake: Intake::new(limits, Some(Box::new(lasting.clone()))),
            threads: std::array::from_fn(|_| Thread::Awake),
            busy_until: [Time::ZERO; WORKERS + 2],
            questions: Vec::new(),
            resting: false,
            now: Time::ZERO,
            fault: None,
            limits,
            rng: Rng::new(seed),
        })
    }

    /// Handles a datagram.
    pub(super) fn receive(&mut self, now: Time, wall_ms: u64, pace: Pace, datagram: &mut [u8]) {
        self.now = now;
        if self.intake.is_pressed() && self.rng.chance(500) {
            self.resting = true;
            self.work(wall_ms, pace, true);
            if std::mem::take(&mut self.resting) && !self.intake.is_pressed() {
                self.fault = Some("a lane rests, and nobody wakes it".to_owned());
            }
        }
        let alone = self.rng.chance(700);
        if alone {
            self.intake.handle_datagram(now, &mut self.opener, datagram);
        } else {
            // As with several lanes.
            let mut drops = Drops::default();
            match self.opener.open(datagram) {
                Ok((header, payload)) => self.intake.handle_opened(now, &header, payload),
                Err(error) => drops.add(error.into()),
            }
            self.intake.handle_drops(&drops);
        }
        self.wake();
        // A lane answers what its datagram brought up before it takes the next one; another lane may come between.
        while alone && self.answer() {}
    }

    /// Runs the threads for some steps, or for all steps that are possible now. `pace` says how long the disk takes.
    pub(super) fn work(&mut self, wall_ms: u64, pace: Pace, all: bool) {
        while all || self.rng.chance(600) {
            let first = usize::try_from(self.rng.below(ANSWER as u64 + 1)).expect("small");
            let mut any = false;
            for offset in 0..=ANSWER {
                any = match (first + offset) % (ANSWER + 1) {
                    ANSWER => self.answer(),
                    PUBLISHER => self.publish(pace),
                    thread => self.step(thread, wall_ms, pace),
                };
                if any {
                    break;
                }
            }
            if !any {
                break;
            }
        }
        let all_sleep = |threads: &[Thread]| threads.iter().all(|thread| matches!(thread, Thread::Asleep(None)));
        if self.intake.waiting() > 0 && all_sleep(&self.threads[..WORKERS]) {
            self.fault = Some(format!("{} blocks wait, and all who store are asleep", self.intake.waiting()));
        }
        if self.intake.has_checks() && all_sleep(&self.threads[WORKERS..]) {
            self.fault = Some("something is to be checked, and nobody is awake".to_owned());
        }
    }

    /// When the next thread wakes by itself.
    pub(super) fn wakes_at(&self) -> Option<Time> {
        let until = |thread: &Thread| if let Thread::Asleep(until) = thread { *until } else { None };
        let busy = self.busy_until.iter().copied().filter(|at| *at > self.now);
        self.threads.iter().filter_map(until).chain(busy).min()
    }

    /// Makes the disk fast again.
    pub(super) fn hurry(&mut self) {
        self.busy_until.fill(Time::ZERO);
    }

    /// The violated invariant, if there was one.
    pub(super) fn fault(&mut self) -> Option<String> {
        self.fault.take()
    }

    /// Handles timers and reports progress.
    pub(super) fn tend(&mut self, now: Time, wall_ms: u64) {
        self.now = now;
        self.intake.handle_timeout(now);
        let expired: Vec<_> = std::iter::from_fn(|| self.intake.poll_expired()).collect();
        let progress: Vec<_> = self.intake.progress().collect();
        self.wake();
        expired.into_iter().for_each(|bundle| self.delivery.expired(bundle));
        for p in progress {
            self.delivery.progress(p.bundle, p.kind, ObjectProgress::of(&p));
        }
        self.delivery.tick(wall_ms);
        for (bundle, lost) in self.delivery.lost() {
            match lost {
                Lost::All => self.intake.forget(bundle),
                Lost::Stored => self.intake.ask_again(bundle),
            }
            self.wake();
        }
    }

    /// What the command `ticket` prints. Without any name: `ticket --all`.
    pub(super) fn tickets(&mut self, which: &[String]) -> Result<Vec<TicketView>, TicketError> {
        let tally = self.intake.poll_tally();
        let of = |key| tally.iter().find(|tally| Some(tally.key) == key);
        let loss = |key| of(key).map_or(Loss::UNKNOWN, |tally| Loss::of(tally.sent - tally.received, tally.sent));
        self.delivery.tickets(which, &loss, TICKET_LINES, &|bundle| self.intake.lacking(bundle))
    }

    /// Stops the process: complete blocks are stored, and the symbols of others are kept. Waiting beacons are not checked.
    pub(super) fn stop(&mut self, wall_ms: u64) {
        self.intake.stop();
        self.hurry();
        // The checker may end before the others have made more objects complete. The second round checks those.
        for _ in 0..2 {
            for thread in &mut self.threads {
                if matches!(thread, Thread::Asleep(_) | Thread::Over) {
                    *thread = Thread::Awake;
                }
            }
            self.work(wall_ms, Pace::default(), true);
        }
        if self.intake.waiting() > 0 || self.intake.has_checks() {
            self.fault = Some("something waits after a stop".to_owned());
        }
    }

    /// Checks that nothing takes more than it may, apart from the unused rest of one buffer. The bytes that objects take besides
    /// their blocks are counted, but room for them is made only when the next block comes.
    pub(super) fn is_bounded(&self) -> Held {
        let (usage, limits) = (self.intake.usage(), &self.limits);
        // What waits for an answer is counted too, and room for it is made likewise.
        let slack = 4_096 + usage.objects as u64 * OBJECT + limits.memory / 32;
        // A buffer may be twice as long as needed, and one block may take half of the room for unsigned blocks. An announce of which
        // single symbols waited becomes such a block without asking for room.
        let block_slack = slack + limits.unsigned_memory / 2;
        let signed = usage.objects - usage.unsigned_objects;
        for (what, is, most) in [
            ("bytes", usage.memory, limits.memory + block_slack),
            ("bytes that nobody signed for", usage.unsigned_memory, limits.unsigned_memory + block_slack),
            ("objects", signed as u64, limits.objects as u64),
            (
                "objects that nobody signed for",
                usage.unsigned_objects as u64,
                (limits.unsigned_objects + limits.announces + UNKNOWN) as u64,
            ),
            ("blocks", usage.open_blocks as u64, limits.open_blocks as u64),
        ] {
            if is > most {
                return Err(format!("the receiver holds more {what} than it may: {is} of {most}, {usage:?}"));
            }
        }
        Ok(())
    }

    /// How much of its limits is in use.
    pub(super) fn usage(&self) -> Usage {
        self.intake.usage()
    }

    /// Runs one step of a thread. False: it sleeps, or waits for a slow disk.
    fn step(&mut self, thread: usize, wall_ms: u64, pace: Pace) -> bool {
        let is_checker = thread == WORKERS;
        let waits = matches!(self.threads[thread], Thread::Storing(_) | Thread::Parking(_) | Thread::Checking(_));
        if self.now < self.busy_until[thread] || waits && self.takes_long(thread, pace) {
            return false;
        }
        let next = match std::mem::replace(&mut self.threads[thread], Thread::Awake) {
            Thread::Awake if is_checker => match self.intake.poll_check(self.now) {
                NextCheck::Check(check) => Thread::Checking(check),
                NextCheck::Wait(wait) => Thread::Asleep(Some(self.now + wait)),
                NextCheck::Idle => Thread::Asleep(None),
                NextCheck::Over => Thread::Over,
            },
            Thread::Awake => {
                let next = self.intake.poll_work(self.now);
                self.wake();
                match next {
                    NextWork::Store(block) => Thread::Storing(block),
                    NextWork::Park(block) => Thread::Parking(block),
                    NextWork::Wait(Duration::MAX) => Thread::Asleep(None),
                    NextWork::Wait(wait) => Thread::Asleep(Some(self.now + wait)),
                    NextWork::Over => Thread::Over,
                }
            }
            Thread::Asleep(Some(until)) if until <= self.now => Thread::Awake,
            waits @ (Thread::Asleep(_) | Thread::Over) => {
                self.threads[thread] = waits;
                return false;
            }
            waits @ (Thread::Storing(_) | Thread::Parking(_)) if pace.still => {
                self.threads[thread] = waits;
                return false;
            }
            Thread::Storing(block) => self.store(block),
            Thread::Parking(block) => {
                let kept = self.delivery.park(&block);
                Thread::Reporting(Report::Parked(block, kept), false)
            }
            Thread::Checking(Check::Beacon(session, signed)) => {
                let sent = self.delivery.beacon(wall_ms, session, &signed);
                Thread::Reporting(Report::Beacon(session, sent), true)
            }
            Thread::Checking(Check::Object(mut block)) => {
                let outcome = if block.decode(&self.plans).is_err() {
                    BlockOutcome::Undecodable
                } else {
                    outcome(&self.delivery.manifest(block.bundle(), block.kind(), block.data()))
                };
                Thread::Reporting(Report::Block(*block, outcome), true)
            }
            Thread::Vouching(mut bundles, then) => match bundles.pop() {
                Some(bundle) => {
                    self.intake.handle_vouched(self.now, bundle);
                    self.wake();
                    Thread::Vouching(bundles, then)
                }
                None => then.map_or(Thread::Awake, |report| Thread::Reporting(report, false)),
            },
            Thread::Reporting(report, vouches) => {
                match report {
                    Report::Block(block, outcome) => self.intake.handle_block(self.now, block, outcome),
                    Report::Parked(block, kept) => self.intake.handle_parked(self.now, block, kept),
                    Report::Beacon(session, sent) => self.intake.handle_beacon(session, sent),
                }
                self.wake();
                if vouches { Thread::Vouching(self.delivery.vouched(), None) } else { Thread::Awake }
            }
        };
        self.threads[thread] = next;
        true
    }

    /// Some thread asks the delivery, or reports its answer. False: nobody has a question.
    fn answer(&mut self) -> bool {
        if self.questions.is_empty() {
            return false;
        }
        let next = usize::try_from(self.rng.below(self.questions.len() as u64)).expect("small");
        match self.questions.swap_remove(next) {
            (question, None) => {
                let answer = ask(&self.delivery, &question.symbol);
                self.questions.push((question, Some(answer)));
            }
            (question, Some(answer)) => {
                self.intake.handle_answer(self.now, &question, answer);
                self.wake();
            }
        }
        true
    }

    fn publish(&mut self, pace: Pace) -> bool {
        let can = !pace.still && self.now >= self.busy_until[PUBLISHER];
        if !can || !self.delivery.work() {
            return false;
        }
        self.takes_long(PUBLISHER, pace);
        true
    }

    /// Decides whether the disk delays a thread. True: the thread waits before the operation. Otherwise it may wait after it.
    fn takes_long(&mut self, thread: usize, pace: Pace) -> bool {
        let Some(delay) = pace.delay(&mut self.rng) else { return false };
        self.busy_until[thread] = self.now + Duration::from_nanos(delay);
        self.rng.chance(500)
    }

    fn store(&self, mut block: ReceivedBlock) -> Thread {
        if block.has_parked() {
            self.delivery.unpark(&mut block);
        }
        if block.decode(&self.plans).is_err() {
            return Thread::Reporting(Report::Block(block, BlockOutcome::Undecodable), false);
        }
        let oti = block.oti();
        let stored = self.delivery.block(block.bundle(), block.kind(), &oti, block.sbn(), block.data());
        let vouched = if block.kind() == ObjectKind::Data { Vec::new() } else { self.delivery.vouched() };
        Thread::Vouching(vouched, Some(Report::Block(block, outcome(&stored))))
    }

    /// Runs when a thread releases the lock: wakes sleeping threads that have something to do.
    fn wake(&mut self) {
        let wakes = self.intake.poll_wakes(self.now);
        self.questions.extend(std::iter::from_fn(|| self.intake.poll_question()).map(|question| (question, None)));
        let (workers, checker) = self.threads.split_at_mut(WORKERS);
        let asleep = |thread: &&mut Thread| matches!(thread, Thread::Asleep(_));
        workers.iter_mut().filter(asleep).take(wakes.workers).for_each(|thread| *thread = Thread::Awake);
        if wakes.checker {
            checker.iter_mut().filter(asleep).for_each(|thread| *thread = Thread::Awake);
        }
        self.resting &= !wakes.lanes;
    }
}

/// Only the sender may sign for the channels of the run. The peer, if it is trusted at all, may sign for any other channel.
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
