use super::*;
use crate::crypto::TrustStore;
use crate::fec::{FecError, Plans};
use crate::id::{ChannelName, EpochId, SessionId};
use crate::manifest::{Hashes, Outcome};
use crate::seal::Opener;
use crate::transmit::{Link, Selection};
use crate::wire::Content;

const KEY: [u8; 32] = [5; 32];

/// A job whose data cannot be read from this offset on.
#[derive(Debug)]
struct Sample {
    order: Transmission,
    fails_at: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
struct Broken(String);

impl From<FeedError> for Broken {
    fn from(error: FeedError) -> Self {
        Self(error.to_string())
    }
}

impl Job for Sample {
    /// How often it read.
    type Reader = usize;
    type Error = Broken;

    fn order(&self) -> &Transmission {
        &self.order
    }
}

fn id(number: u64) -> BundleId {
    BundleId::new(number, SigningKey::from_seed([1; 32]).public().id())
}

fn number(bundle: BundleId) -> u64 {
    (0..100).find(|&number| id(number) == bundle).unwrap()
}

struct Bench {
    feed: Feed<Sample>,
    sealer: Sealer,
    plans: Plans,
    key: Arc<SigningKey>,
    now: Time,
    batch: Batch,
    /// Symbols that were sent: bundle, kind, SBN.
    sent: Vec<(u64, ObjectKind, u32)>,
    beacons: Vec<Beacon>,
    finished: Vec<(u64, Finished<Broken>)>,
}

impl Bench {
    fn new() -> Self {
        Self::with_lanes(1)
    }

    fn with_lanes(lanes: usize) -> Self {
        let link =
            Link { mtu: 1_500, rate: 100_000_000, repair: 0.1, burst: Duration::from_millis(2), memory: 32 << 20 };
        let key = Arc::new(SigningKey::from_seed([1; 32]));
        let setup = FeedSetup {
            parameters: Parameters::derive(&link).unwrap(),
            lanes,
            ahead: AHEAD,
            bucket: Duration::from_millis(1),
            epoch: Epoch { number: 1, id: EpochId(2) },
            session_number: 3,
            key: Arc::clone(&key),
        };
        let sealer = Sealer::new(Some(&KEY), SessionId(4));
        Self {
            feed: Feed::new(setup, &sealer),
            sealer,
            plans: Plans::new(),
            key,
            now: Time(1),
            batch: Batch::new(),
            sent: Vec::new(),
            beacons: Vec::new(),
            finished: Vec::new(),
        }
    }

    fn job(&self, bundle: u64, channel: &str, priority: i16, data_len: u64) -> Sample {
        let parameters = &self.feed.setup.parameters;
        let order = Transmission {
            bundle: id(bundle),
            channel: ChannelName::new(channel).unwrap(),
            sequence: bundle,
            priority,
            announce: Arc::new(vec![7; 200]),
            announce_digest: [0; 32],
            data_len,
            symbol_size: parameters.symbol_size(),
            block_symbols: parameters.block_symbols(),
            first_esi: 0,
            pass: 1,
            passes: 1,
            selection: Selection::All,
            withdrawn: None,
            progress: Arc::default(),
        };
        Sample { order, fails_at: None }
    }

    fn submit(&mut self, job: Sample) -> FeedWakes {
        self.feed.submit(job);
        self.feed.poll_wakes()
    }

    /// What the thread that reads gets.
    fn next_read(&mut self) -> Option<ToRead<Sample>> {
        loop {
            match self.feed.poll_read() {
                NextRead::Read(read) => return Some(read),
                NextRead::Conclude(job) => {
                    let concluded = job.conclude(&self.key, |_, _| Ok(vec![[9; 32]]));
                    self.feed.handle_concluded(concluded);
                }
                NextRead::Wait => return None,
            }
        }
    }

    fn read(&mut self, mut read: ToRead<Sample>) {
        let result = read.fill(|job, reader, bytes, offset| {
            *reader.get_or_insert(0) += 1;
            bytes.fill(8);
            if job.fails_at.is_some_and(|at| offset >= at) { Err(Broken("gone".to_owned())) } else { Ok(()) }
        });
        self.feed.handle_read(read, result);
    }

    fn encode(&mut self) {
        while let Some(read) = self.feed.poll_encode() {
            self.feed.handle_encoded(read.encode(&self.plans));
        }
    }

    /// All threads go on until only time helps. Gives when.
    fn run(&mut self) -> Time {
        loop {
            while let Some(read) = self.next_read() {
                self.read(read);
                self.encode();
            }
            if let Some(at) = self.transmit() {
                return at;
            }
        }
    }

    /// One batch; None if there was one.
    fn transmit(&mut self) -> Option<Time> {
        match self.feed.poll_transmit(0, self.now, 1_000, &mut self.batch, Some(&self.sealer)) {
            Transmit::Ready => {
                let mut opener = Opener::new(Some(KEY));
                for datagram in self.batch.datagrams() {
                    let mut datagram = datagram.to_vec();
                    let (header, payload) = opener.open(&mut datagram).unwrap();
                    match header.content {
                        Content::Symbol(symbol) => self.sent.push((number(symbol.bundle), symbol.kind, symbol.sbn)),
                        Content::Beacon => self.beacons.push(Beacon::open(payload, &trust()).unwrap().value),
                    }
                }
                None
            }
            Transmit::Wait(at) => Some(at),
            Transmit::Idle => unreachable!(),
        }
    }

    /// Until all jobs are over.
    fn finish(&mut self) {
        for _ in 0..1_000_000 {
            self.now = self.run();
            self.finished.extend(std::iter::from_fn(|| self.feed.poll_finished()).map(|(id, how)| (number(id), how)));
            if self.feed.is_empty() {
                assert_eq!((self.feed.transmitter.held(), self.feed.waiting()), (0, 0));
                return;
            }
        }
        panic!("not over: {:?}", self.finished);
    }

    /// The bundles in the order of their first symbol of this kind.
    fn order_of(&self, kind: ObjectKind) -> Vec<u64> {
        let mut seen = Vec::new();
        for (bundle, _, _) in self.sent.iter().filter(|(_, k, _)| *k == kind) {
            if !seen.contains(bundle) {
                seen.push(*bundle);
            }
        }
        seen
    }
}

fn trust() -> TrustStore {
    let mut trust = TrustStore::new();
    trust.insert(SigningKey::from_seed([1; 32]).public(), "test");
    trust
}

fn transmitted() -> Finished<Broken> {
    Finished::Transmitted { hashes: vec![[9; 32]] }
}

#[test]
fn a_bundle_goes_out_whole_and_is_over_when_its_last_symbol_has_gone() {
    let mut bench = Bench::new();
    let job = bench.job(1, "default", 0, 5_000_000);
    let progress = Arc::clone(&job.order.progress);
    bench.submit(job);
    bench.finish();
    assert_eq!(bench.finished, [(1, transmitted())]);
    let blocks = progress.blocks_total.load(Ordering::Relaxed);
    assert!(blocks > 5 && progress.blocks_sent.load(Ordering::Relaxed) == blocks);
    assert_eq!(progress.datagrams.load(Ordering::Relaxed), bench.sent.len() as u64);
    assert!((0..u32::try_from(blocks).unwrap()).all(|sbn| bench.sent.contains(&(1, ObjectKind::Data, sbn))));
    assert!(bench.sent.iter().any(|(_, kind, _)| *kind == ObjectKind::Hashes));
}

#[test]
fn a_channel_keeps_its_order_and_channels_share() {
    let mut bench = Bench::new();
    for (bundle, channel) in [(1, "a"), (2, "a"), (3, "b")] {
        let job = bench.job(bundle, channel, 0, 40_000_000);
        bench.submit(job);
    }
    bench.finish();
    assert_eq!(bench.order_of(ObjectKind::Data).last(), Some(&2));
    let first_of_2 = bench.sent.iter().position(|(bundle, ..)| *bundle == 2).unwrap();
    let of_3 = bench.sent[..first_of_2].iter().filter(|(bundle, ..)| *bundle == 3).count();
    assert!(of_3 > first_of_2 / 3, "{of_3} of {first_of_2}");
}

#[test]
fn a_higher_priority_goes_first_and_nothing_lower_begins() {
    let mut bench = Bench::new();
    let low = bench.job(1, "low", 0, 20_000_000);
    bench.submit(low);
    bench.now = bench.run();
    for (bundle, priority) in [(2, 0), (3, 5)] {
        let job = bench.job(bundle, if priority == 0 { "other" } else { "urgent" }, priority, 2_000_000);
        bench.submit(job);
    }
    bench.finish();
    assert_eq!(bench.finished.iter().map(|(bundle, _)| *bundle).next(), Some(3));
    let last_of_3 = bench.sent.iter().rposition(|(bundle, ..)| *bundle == 3).unwrap();
    let of_2 = bench.sent[..last_of_3].iter().filter(|(bundle, kind, _)| *bundle == 2 && *kind == ObjectKind::Data);
    assert_eq!(of_2.count(), 0);
}

#[test]
fn what_waited_for_a_job_begins_when_that_is_read() {
    let mut bench = Bench::new();
    let urgent = bench.job(1, "urgent", 5, 1_000);
    bench.submit(urgent);
    let other = bench.job(2, "default", 0, 1_000);
    bench.submit(other);
    let mut read = Vec::new();
    while let Some(next) = bench.next_read() {
        read.push(number(next.task.symbol.bundle));
        bench.read(next);
    }
    assert_eq!(read.last(), Some(&2), "without another call of any thread");
}

#[test]
fn a_withdrawal_waits_for_no_bundle_of_its_channel() {
    let mut bench = Bench::new();
    let large = bench.job(1, "default", 0, 20_000_000);
    let mut withdrawal = bench.job(2, "default", 0, 1_000_000);
    withdrawal.order.withdrawn = Some("it shrank".to_owned());
    bench.submit(large);
    bench.now = bench.run();
    bench.submit(withdrawal);
    bench.finish();
    assert_eq!(bench.finished, [(2, Finished::Withdrawn), (1, transmitted())]);
    assert!(bench.sent.iter().all(|(bundle, kind, _)| *bundle == 1 || *kind != ObjectKind::Data));
}

#[test]
fn a_job_that_cannot_be_read_is_over_and_the_next_goes() {
    let mut bench = Bench::new();
    let mut broken = bench.job(1, "default", 0, 5_000_000);
    let block = u64::from(broken.order.symbol_size) * u64::from(broken.order.block_symbols);
    broken.fails_at = Some(3 * block);
    bench.submit(broken);
    let next = bench.job(2, "default", 0, 1_000);
    bench.submit(next);
    bench.finish();
    assert_eq!(bench.finished, [(1, Finished::Failed { reason: Broken("gone".to_owned()) }), (2, transmitted())]);
    assert!(!bench.sent.contains(&(1, ObjectKind::Data, 4)));
    assert!(!bench.sent.iter().any(|(bundle, kind, _)| *bundle == 1 && *kind == ObjectKind::Hashes));
}

#[test]
fn a_block_that_cannot_be_encoded_fails_its_job_also_when_all_is_read() {
    for is_last in [false, true] {
        let mut bench = Bench::new();
        let job = bench.job(1, "default", 0, 300_000);
        bench.submit(job);
        let mut kept = None;
        while let Some(read) = bench.next_read() {
            bench.read(read);
            if kept.is_none() || !is_last {
                kept = bench.feed.poll_encode().or(kept);
            }
            bench.encode();
            if !is_last {
                break;
            }
        }
        let stream = kept.unwrap().stream;
        bench.feed.handle_encoded(Encoded { stream, result: Err(FecError::Length) });
        bench.finish();
        assert!(matches!(&bench.finished[..], [(1, Finished::Failed { .. })]), "{:?}", bench.finished);
    }
}

#[test]
fn a_stop_aborts_each_job_once_whatever_threads_have_in_hand() {
    let mut bench = Bench::new();
    for bundle in 1..4 {
        let job = bench.job(bundle, "default", 0, 5_000_000);
        bench.submit(job);
    }
    let first = bench.next_read().unwrap();
    bench.read(first);
    let encoding = bench.feed.poll_encode().unwrap();
    let reading = bench.next_read().unwrap();
    bench.feed.stop();
    bench.read(reading);
    bench.feed.handle_encoded(encoding.encode(&bench.plans));
    let ends: Vec<_> = std::iter::from_fn(|| bench.feed.poll_finished()).collect();
    assert_eq!(ends, [1, 2, 3].map(|bundle| (id(bundle), Finished::Aborted)));
    assert!(bench.feed.is_empty());
}

#[test]
fn one_thread_at_a_time_has_the_next_block_of_a_job() {
    let mut bench = Bench::new();
    for (bundle, channel) in [(1, "a"), (2, "b")] {
        let job = bench.job(bundle, channel, 0, 5_000_000);
        bench.submit(job);
    }
    let both = [bench.next_read().unwrap(), bench.next_read().unwrap()];
    assert!(bench.next_read().is_none());
    let bundles = both.each_ref().map(|read| number(read.task.symbol.bundle));
    assert_eq!(bundles, [1, 2]);
    both.into_iter().for_each(|read| bench.read(read));
    assert!(bench.next_read().is_some());
}

#[test]
fn who_reads_rests_until_half_of_what_is_ahead_has_gone() {
    let mut bench = Bench::new();
    assert!(matches!(bench.feed.poll_read(), NextRead::Wait));
    let job = bench.job(1, "default", 0, 60_000_000);
    assert!(bench.submit(job).reader, "there is a job");
    assert_eq!(bench.feed.poll_wakes(), FeedWakes::default(), "once");
    let mut encoders = 0;
    while let Some(read) = bench.next_read() {
        bench.read(read);
        encoders += bench.feed.poll_wakes().encoders;
        bench.encode();
        assert_eq!(bench.feed.poll_wakes().lanes, 1);
    }
    let full = bench.feed.transmitter.held();
    assert_eq!(encoders, full);
    let mut woken = Vec::new();
    for _ in 0..2_000 {
        bench.now = bench.transmit().unwrap_or(bench.now);
        if bench.feed.poll_wakes().reader {
            woken.push(bench.feed.transmitter.held());
        }
    }
    assert_eq!(woken, [full - bench.feed.ahead() / 2]);
}

#[test]
fn all_lanes_that_wait_for_a_symbols_time_wake_for_a_block() {
    let mut bench = Bench::with_lanes(2);
    let job = bench.job(1, "a", 0, 1_000_000);
    bench.submit(job);
    while bench.feed.transmitter.schedule().next_due().is_none_or(|due| Some(due) != bench.transmit()) {
        bench.now = bench.run();
    }
    let other = bench.feed.poll_transmit(1, bench.now, 1_000, &mut bench.batch, None);
    assert!(matches!(other, Transmit::Wait(_)) && !bench.feed.is_starved());
    bench.feed.poll_wakes();
    let job = bench.job(2, "b", 0, 1_000_000);
    bench.submit(job);
    let read = bench.next_read().unwrap();
    bench.read(read);
    bench.encode();
    assert_eq!(bench.feed.poll_wakes().lanes, 2);
}

#[test]
fn beacons_tell_of_each_channel_in_turn_and_of_what_is_on_the_wire() {
    let mut bench = Bench::new();
    let name = |name: &str| ChannelName::new(name).unwrap();
    let state = |channel| ChannelState { name: name(channel), priority: 0, newest: 1, recent: Vec::new() };
    bench.feed.set_channels(vec![state("a"), state("b")]);
    let job = bench.job(6, "a", 0, 40_000_000);
    bench.submit(job);
    bench.finish();
    assert!(bench.beacons.len() >= 3);
    for (beacon, counter) in bench.beacons.iter().zip(1..) {
        assert_eq!((beacon.counter, beacon.session, beacon.session_number), (counter, SessionId(4), 3));
        let channel = beacon.channel.as_ref().unwrap().name.to_string();
        assert_eq!(channel, if counter % 2 == 1 { "b" } else { "a" });
    }
    let on_wire = bench.beacons[1].on_wire.as_ref().unwrap();
    assert!(on_wire.bundle == id(6) && on_wire.blocks_sent > 0);
    assert!(bench.beacons.windows(2).all(|pair| pair[0].datagrams < pair[1].datagrams));
}

#[test]
fn what_a_job_comes_to_is_signed() {
    let mut bench = Bench::new();
    let mut job = bench.job(1, "default", 0, 0);
    job.order.withdrawn = Some("it shrank".to_owned());
    bench.submit(job);
    let job = loop {
        match bench.feed.poll_read() {
            NextRead::Read(read) => bench.read(read),
            NextRead::Conclude(job) => break job,
            NextRead::Wait => panic!("it is not concluded"),
        }
    };
    let Ok((signed, Finished::Withdrawn)) = job.conclude(&bench.key, |_, _| unreachable!()).result else { panic!() };
    assert_eq!(Hashes::open(&signed, &trust()).unwrap().value.outcome, Outcome::withdrawn("it shrank"));
}
