use super::*;
use crate::partition::{BlockSet, Oti};
use crate::receive::{Check, Origin};
use crate::wire::ObjectKind;
use crate::wire::Symbol;

const T: u16 = 64;
const K: u16 = 4;

/// Intake, and who asks it.
struct Bench {
    intake: Intake,
    now: Time,
    counter: u64,
    /// Blocks that the caller has, by SBN.
    have: BlockSet,
    /// Symbols that it keeps.
    kept: Vec<(u32, u32)>,
    /// What it says about the data.
    no: Option<DropReason>,
    asked: usize,
}

impl Bench {
    fn new(memory: u64) -> Self {
        Self {
            intake: Intake::new(Limits::new(memory), None),
            now: Time(1_000_000_000),
            counter: 0,
            have: BlockSet::new(),
            kept: Vec::new(),
            no: None,
            asked: 0,
        }
    }

    fn put_of(&mut self, kind: ObjectKind, length: u64, sbn: u32, esi: u32) -> IntakeWakes {
        let oti = Oti::new(length, T, K).unwrap();
        let symbol = Symbol { bundle: BundleId(1), kind, sbn, esi, oti };
        let header =
            Header { sealed: true, session: SessionId(1), counter: self.counter, content: Content::Symbol(symbol) };
        self.counter += 1;
        self.intake.handle_opened(self.now, &header, &[esi as u8; T as usize]);
        self.answer()
    }

    fn answer(&mut self) -> IntakeWakes {
        let mut wakes = self.intake.poll_wakes(self.now);
        while let Some(question) = self.intake.poll_question() {
            self.asked += 1;
            let answer = match self.no {
                Some(reason) => Wanted::No(reason),
                None => Wanted::Yes { have: self.have.clone(), parked: self.kept.clone(), origin: Origin::Signed },
            };
            self.intake.handle_answer(self.now, &question, answer);
            let more = self.intake.poll_wakes(self.now);
            wakes.workers += more.workers;
            wakes.checker |= more.checker;
            wakes.lanes |= more.lanes;
        }
        wakes
    }

    /// A source or repair symbol of an object of eight blocks.
    fn put(&mut self, sbn: u32, esi: u32) -> IntakeWakes {
        self.put_of(ObjectKind::Data, u64::from(T) * u64::from(K) * 8, sbn, esi)
    }

    fn whole(&mut self, sbn: u32) -> IntakeWakes {
        (0..u32::from(K)).map(|esi| self.put(sbn, esi)).last().unwrap()
    }

    fn store(&mut self) -> ReceivedBlock {
        match self.intake.poll_work(self.now) {
            NextWork::Store(block) => block,
            other => panic!("{other:?}"),
        }
    }

    fn tick(&mut self, ms: u64) -> IntakeWakes {
        self.now = self.now + Duration::from_millis(ms);
        self.intake.handle_timeout(self.now);
        self.wakes()
    }

    fn wakes(&mut self) -> IntakeWakes {
        let wakes = self.intake.poll_wakes(self.now);
        assert_eq!(self.intake.poll_question(), None);
        wakes
    }

    fn ask_again(&mut self) -> IntakeWakes {
        self.intake.ask_again(BundleId(1));
        self.answer()
    }

    fn report(&mut self, block: ReceivedBlock, outcome: BlockOutcome) {
        self.intake.handle_block(self.now, block, outcome);
    }
}

#[test]
fn a_block_that_cannot_be_stored_costs_no_other() {
    for outcome in [BlockOutcome::Failed, BlockOutcome::NoRoom] {
        let mut bench = Bench::new(1 << 20);
        bench.put(1, 0);
        bench.put(2, 1);
        bench.whole(0);
        let block = bench.store();
        bench.report(block, outcome);
        assert_eq!(bench.intake.lacking(BundleId(1)), [(1, 3), (2, 3)]);
        assert_eq!(bench.intake.counts().failed, u64::from(outcome == BlockOutcome::Failed));
        let asked = bench.asked;
        for esi in 1..4 {
            bench.put(1, esi);
        }
        assert_eq!(bench.asked, asked + 1, "the caller is asked what it has");
        assert_eq!(bench.store().sbn(), 1, "with the symbol that came before");
        bench.whole(0);
        assert_eq!(bench.store().sbn(), 0, "it comes again");
    }
}

#[test]
fn what_is_lost_comes_again_and_what_is_stored_does_not() {
    let mut bench = Bench::new(1 << 20);
    bench.whole(0);
    let block = bench.store();
    bench.report(block, BlockOutcome::Stored);
    bench.put(1, 0);
    bench.put(2, 0);
    // The caller lost the first block, and got the third in another way.
    bench.have.add(2);
    bench.ask_again();
    assert_eq!(bench.intake.lacking(BundleId(1)), [(1, 3)], "at once, on a silent line");
    bench.put(1, 1);
    assert_eq!(bench.intake.lacking(BundleId(1)), [(1, 2)]);
    bench.whole(0);
    assert_eq!(bench.store().sbn(), 0);
    // It is not wanted any more, for want of room: to keep what is here would take more of it.
    bench.no = Some(DropReason::Room);
    assert_eq!(bench.ask_again().workers, 0);
    assert_eq!(bench.intake.usage().open_blocks, 0);
    bench.put(1, 2);
    assert_eq!(bench.intake.drops().get(DropReason::Room), 1);
    // It is wanted again, and need not wait.
    bench.no = None;
    bench.ask_again();
    bench.put(1, 2);
    assert_eq!(bench.intake.lacking(BundleId(1)), [(1, 3)]);
    // It came to an end.
    bench.no = Some(DropReason::Done);
    bench.ask_again();
    assert_eq!((bench.intake.usage().objects, bench.intake.usage().open_blocks), (0, 0));
}

#[test]
fn a_block_that_is_given_up_while_it_is_reported_comes_again() {
    let mut bench = Bench::new(1 << 20);
    bench.put(1, 0);
    bench.whole(0);
    let block = bench.store();
    // It was stored, a sync failed, and the caller was asked before it is reported.
    bench.ask_again();
    bench.report(block, BlockOutcome::Stored);
    bench.whole(0);
    assert_eq!(bench.store().sbn(), 0);
}

#[test]
fn symbols_that_are_kept_and_of_no_use_now_are_not_read_all_the_time() {
    for outcome in [BlockOutcome::Undecodable, BlockOutcome::NoRoom, BlockOutcome::Failed] {
        let mut bench = Bench::new(1 << 20);
        bench.kept = vec![(3, u32::from(K))];
        bench.put(0, 0);
        let block = bench.store();
        assert!(block.sbn() == 3 && block.has_parked());
        bench.report(block, outcome);
        let mut tries = 0;
        for _ in 0..20 {
            bench.tick(100);
            while let NextWork::Store(block) = bench.intake.poll_work(bench.now) {
                tries += 1;
                bench.report(block, outcome);
                bench.wakes();
            }
        }
        assert_eq!(tries, 4, "twice a second");
        for _ in 0..200 {
            bench.tick(100);
            while let NextWork::Store(block) = bench.intake.poll_work(bench.now) {
                tries += 1;
                bench.report(block, outcome);
                bench.wakes();
            }
        }
        assert_eq!(tries, 7, "and not for ever");
        bench.put(0, 1);
        assert!(bench.store().has_parked(), "again when something comes");
        assert!(bench.intake.lacking(BundleId(1)).contains(&(3, 1)), "they are still kept");
    }
}

#[test]
fn a_block_that_needs_more_than_k_symbols_waits_for_one() {
    let mut bench = Bench::new(1 << 20);
    bench.whole(0);
    let block = bench.store();
    bench.report(block, BlockOutcome::Undecodable);
    bench.tick(20_000);
    let NextWork::Park(block) = bench.intake.poll_work(bench.now) else { panic!("it is not parked") };
    bench.intake.handle_parked(bench.now, block, K.into());
    for _ in 0..20 {
        bench.tick(1_000);
        assert!(matches!(bench.intake.poll_work(bench.now), NextWork::Wait(_)), "nothing came");
    }
    assert_eq!(bench.intake.lacking(BundleId(1)), [(0, 1)]);
    bench.put(0, u32::from(K));
    assert!(bench.store().has_parked());
}

#[test]
fn whoever_sleeps_is_woken_and_nobody_else() {
    let mut bench = Bench::new(16 << 10);
    assert!(matches!(bench.intake.poll_work(bench.now), NextWork::Wait(Duration::MAX)));
    assert_eq!(bench.put(0, 0), IntakeWakes::default());
    assert_eq!(bench.whole(0), IntakeWakes { workers: 1, ..IntakeWakes::default() });
    assert_eq!(bench.wakes(), IntakeWakes::default(), "once");
    let block = bench.store();
    bench.report(block, BlockOutcome::Stored);
    // The one that checks: only when it has nothing else to do.
    assert!(!bench.put_of(ObjectKind::Announce, 10, 0, 0).checker, "it has not looked yet");
    assert!(matches!(bench.intake.poll_check(bench.now), NextCheck::Check(Check::Object(_))));
    assert!(matches!(bench.intake.poll_check(bench.now), NextCheck::Idle));
    assert!(bench.put_of(ObjectKind::Hashes, 10, 0, 0).checker);
    assert!(!bench.wakes().checker, "it is awake");
}

/// Memory is nearly full of so many blocks.
fn pressed() -> (Bench, u32) {
    let mut bench = Bench::new(10 << 10);
    let mut blocks = 0;
    while !bench.intake.is_pressed() {
        bench.whole(blocks);
        blocks += 1;
        assert!(blocks < 8, "{:?}", bench.intake.usage());
    }
    (bench, blocks)
}

#[test]
fn lanes_rest_while_memory_is_nearly_full_of_what_waits() {
    let (mut bench, blocks) = pressed();
    assert!(!bench.wakes().lanes);
    let taken: Vec<_> = (0..blocks).map(|_| bench.store()).collect();
    assert!(bench.wakes().lanes, "nothing waits for those who store, however long the disk takes");
    drop(taken);
}

#[test]
fn lanes_go_on_when_memory_is_free_again() {
    let (mut bench, blocks) = pressed();
    let mut lanes = Vec::new();
    for _ in 0..blocks {
        let block = bench.store();
        bench.report(block, BlockOutcome::Stored);
        lanes.push(bench.wakes().lanes);
    }
    assert_eq!(lanes.iter().filter(|&&woken| woken).count(), 1, "{lanes:?}");
    assert_eq!(bench.intake.usage().open_blocks, 0);
}

#[test]
fn after_a_stop_all_is_given_out_once() {
    let mut bench = Bench::new(1 << 20);
    bench.whole(0);
    let block = bench.store();
    bench.report(block, BlockOutcome::Stored);
    bench.whole(5);
    bench.put(1, 0);
    bench.put(2, 0);
    bench.put_of(ObjectKind::Announce, 10, 0, 0);
    assert!(matches!(bench.intake.poll_work(bench.now), NextWork::Wait(_)), "it waits for those before it");
    bench.intake.stop();
    let block = bench.store();
    assert_eq!(block.sbn(), 5);
    bench.report(block, BlockOutcome::Stored);
    let mut parked = Vec::new();
    while let NextWork::Park(block) = bench.intake.poll_work(bench.now) {
        parked.push(block.sbn());
        bench.intake.handle_parked(bench.now, block, 1);
    }
    parked.sort_unstable();
    assert_eq!(parked, [1, 2]);
    assert!(matches!(bench.intake.poll_work(bench.now), NextWork::Over));
    assert!(matches!(bench.intake.poll_check(bench.now), NextCheck::Check(Check::Object(_))));
    assert!(matches!(bench.intake.poll_check(bench.now), NextCheck::Over));
}

/// Blocks of another key that are complete come faster than they are stored.
#[test]
fn what_is_to_be_kept_does_not_wait_for_all_that_is_to_be_stored() {
    let mut bench = Bench::new(1 << 20);
    bench.put(7, 0);
    for sbn in 0..7 {
        bench.whole(sbn);
    }
    bench.now = bench.now + Duration::from_secs(30);
    bench.intake.handle_timeout(bench.now);
    bench.wakes();
    let mut stored = Vec::new();
    let parked = loop {
        match bench.intake.poll_work(bench.now) {
            NextWork::Store(block) => stored.push(block.sbn()),
            NextWork::Park(block) => break block,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((stored.as_slice(), parked.sbn()), (&[0, 1, 2, 3][..], 7));
    bench.intake.handle_parked(bench.now, parked, 1);
    assert_eq!([bench.store().sbn(), bench.store().sbn(), bench.store().sbn()], [4, 5, 6]);
}

#[test]
fn silent_blocks_leave_memory_no_faster_than_they_are_kept() {
    let mut bench = Bench::new(1 << 20);
    let oti = u64::from(T) * u64::from(K) * 200;
    for sbn in 0..200 {
        bench.put_of(ObjectKind::Data, oti, sbn, 0);
    }
    let held = bench.intake.usage().memory;
    bench.now = bench.now + Duration::from_secs(30);
    for _ in 0..10 {
        bench.intake.handle_timeout(bench.now);
        bench.wakes();
    }
    let usage = bench.intake.usage();
    assert!(usage.open_blocks > 150 && usage.memory > held / 2, "nobody has kept any: {usage:?}");
    while bench.intake.usage().open_blocks > 0 {
        bench.intake.handle_timeout(bench.now);
        bench.wakes();
        while let NextWork::Park(block) = bench.intake.poll_work(bench.now) {
            bench.intake.handle_parked(bench.now, block, 1);
            bench.wakes();
        }
    }
}
