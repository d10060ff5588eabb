use std::fs;

use checkvalve_host::disk::OsDisk;
use checkvalve_host::disk::fault::FailNth;
use checkvalve_protocol::id::EpochId;

use super::*;

fn os() -> Arc<dyn Disk> {
    Arc::new(OsDisk)
}

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

fn bundle(id: u64, sequence: Option<u64>, state: State) -> BundleRecord {
    BundleRecord {
        sequence,
        name: format!("bundle {id}").into(),
        claimed_ms: id,
        ..BundleRecord::new(BundleId(id), channel("a"), state)
    }
}

fn open(dir: &Path) -> Ledger {
    let (ledger, damage) = Ledger::open(&os(), &dir.join("ledger")).unwrap();
    assert!(damage.corrupt.is_empty() && damage.unknown == 0, "{damage:?}");
    ledger
}

#[test]
fn what_was_put_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(dir.path());
    assert_eq!((ledger.next_sequence(&channel("a")), ledger.last_sequence(&channel("a"))), (Some(1), 0));
    ledger.run_for(1_000);
    ledger.put(bundle(1, Some(1), State::Queued), Sync::Yes).unwrap();
    ledger.put(bundle(2, Some(2), State::Queued), Sync::No).unwrap();
    ledger.put(bundle(3, None, State::Failed("why".into())), Sync::No).unwrap();
    ledger.put(bundle(1, Some(1), State::Transmitted), Sync::Yes).unwrap();
    let check = |ledger: &Ledger| {
        assert_eq!(ledger.next_sequence(&channel("a")), Some(3));
        assert_eq!(ledger.next_sequence(&channel("b")), Some(1));
        assert_eq!(ledger.get(BundleId(1)).unwrap().state, State::Transmitted);
        assert_eq!(ledger.by_sequence(&channel("a"), 2).unwrap().id, BundleId(2));
        let newest: Vec<_> = ledger.newest(&channel("a")).map(|b| b.id.0).collect();
        assert_eq!(newest, [2, 1]);
        assert_eq!((ledger.bundles().count(), ledger.uptime_ms()), (3, 1_000));
    };
    check(&ledger);
    check(&open(dir.path()));
    ledger.rewrite().unwrap();
    check(&ledger);
    check(&open(dir.path()));
}

#[test]
fn sessions_are_counted_from_one_in_each_epoch() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(open(dir.path()).epoch(), None);
    // A ledger from before there were epochs has large numbers.
    open(dir.path()).write(vec![Change::Session(1_795_291_939_308)], Sync::Yes).unwrap();
    let first = Epoch { number: 1, id: EpochId(7) };
    open(dir.path()).begin_epoch(first).unwrap();
    for expected in 1..4 {
        let mut ledger = open(dir.path());
        assert_eq!((ledger.epoch(), ledger.begin_session().unwrap()), (Some(first), expected));
    }
    let mut ledger = open(dir.path());
    ledger.rewrite().unwrap();
    // One that is not newer changes nothing.
    ledger.begin_epoch(Epoch { number: 1, id: EpochId(8) }).unwrap();
    assert_eq!((ledger.epoch(), ledger.begin_session().unwrap()), (Some(first), 4));
    let third = Epoch { number: 3, id: EpochId(9) };
    ledger.begin_epoch(third).unwrap();
    ledger.rewrite().unwrap();
    let mut ledger = open(dir.path());
    assert_eq!((ledger.epoch(), ledger.begin_session().unwrap()), (Some(third), 1));
}

#[test]
fn numbers_end_where_the_protocol_ends_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(dir.path());
    let a = channel("a");
    for (last, next) in [(MAX_SEQUENCE - 1, Some(MAX_SEQUENCE)), (MAX_SEQUENCE, None), (u64::MAX, None)] {
        ledger.skip_to(&a, last).unwrap();
        assert_eq!((ledger.last_sequence(&a), ledger.next_sequence(&a)), (last, next));
    }
    for number in [MAX_SEQUENCE, u64::MAX] {
        ledger.write(vec![Change::Session(number)], Sync::Yes).unwrap();
        assert!(matches!(ledger.begin_session(), Err(LedgerError::Sessions)));
    }
}

#[test]
fn another_state_goes_on_where_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(dir.path());
    ledger.begin_epoch(Epoch { number: 1, id: EpochId(1) }).unwrap();
    ledger.begin_session().unwrap();
    ledger.put(bundle(1, Some(1), State::Transmitted), Sync::Yes).unwrap();
    ledger.put(bundle(2, Some(2), State::Queued), Sync::Yes).unwrap();
    let epoch = Epoch { number: 2, id: EpochId(2) };
    ledger.remember(bundle(3, Some(3), State::Transmitted));
    ledger.begin_anew(epoch, &[(channel("a"), 413), (channel("b"), 0)].into(), &[BundleId(2)]).unwrap();
    let mut ledger = open(dir.path());
    assert_eq!(ledger.bundles().map(|b| b.id.0).collect::<Vec<_>>(), [1, 3]);
    assert_eq!((ledger.next_sequence(&channel("a")), ledger.next_sequence(&channel("b"))), (Some(414), Some(1)));
    assert_eq!((ledger.epoch(), ledger.begin_session().unwrap()), (Some(epoch), 1));
    // It never goes back.
    ledger.begin_anew(Epoch { number: 3, id: EpochId(3) }, &[(channel("a"), 20)].into(), &[]).unwrap();
    assert_eq!(open(dir.path()).next_sequence(&channel("a")), Some(414));
}

#[test]
fn old_bundles_are_forgotten_and_their_sequences_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(dir.path());
    let many = 2 * REMEMBERED as u64;
    for n in 1..=many {
        let state = if n % 2 == 0 { State::Transmitted } else { State::Failed("x".into()) };
        ledger.put(BundleRecord { held: n == 7, ..bundle(n, Some(n), state) }, Sync::No).unwrap();
        ledger
            .put(BundleRecord { held: false, ..bundle(many + n, None, State::Failed("y".into())) }, Sync::No)
            .unwrap();
    }
    ledger.tidy().unwrap();
    let check = |ledger: &Ledger| {
        assert_eq!(ledger.bundles().count(), 2 * REMEMBERED + 1);
        assert!(ledger.get(BundleId(7)).is_some(), "it is held");
        assert!(ledger.get(BundleId(8)).is_none() && ledger.get(BundleId(many + 8)).is_none());
        assert!(ledger.get(BundleId(many)).is_some() && ledger.get(BundleId(2 * many)).is_some());
        assert_eq!(ledger.next_sequence(&channel("a")), Some(many + 1));
    };
    check(&ledger);
    check(&open(dir.path()));
    ledger.rewrite().unwrap();
    check(&open(dir.path()));
}

#[test]
fn the_journal_does_not_grow_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(dir.path());
    let mut largest = 0;
    for n in 0..20_000 {
        let record = BundleRecord { next_esi: n, ..bundle(1, Some(1), State::Transmitting) };
        ledger.put(record, Sync::No).unwrap();
        ledger.tidy().unwrap();
        largest = largest.max(fs::metadata(dir.path().join("ledger")).unwrap().len());
    }
    assert!(largest < 2_100 * 400, "{largest} bytes");
    assert_eq!(open(dir.path()).get(BundleId(1)).unwrap().next_esi, 19_999);
}

#[test]
fn a_journal_cut_anywhere_holds_a_former_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let mut ledger = open(dir.path());
    for n in 1..=5 {
        ledger.put(bundle(n, Some(n), State::Queued), Sync::No).unwrap();
    }
    let whole = fs::read(&path).unwrap();
    let mut last = 0;
    for len in 8..=whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let sequence = open(dir.path()).last_sequence(&channel("a"));
        assert!(sequence == last || sequence == last + 1, "{len}");
        last = sequence;
    }
    assert_eq!(last, 5);
}

#[test]
fn damage_is_reported_and_the_rest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let mut ledger = open(dir.path());
    for n in 1..=5 {
        ledger.put(bundle(n, Some(n), State::Queued), Sync::No).unwrap();
    }
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let (mut ledger, damage) = Ledger::open(&os(), &path).unwrap();
    assert_eq!((damage.corrupt.len(), damage.unknown, damage.empty), (1, 0, false));
    assert_eq!((ledger.bundles().count(), ledger.last_sequence(&channel("a"))), (4, 5));
    ledger.rewrite().unwrap();
    assert_eq!(open(dir.path()).bundles().count(), 4);
}

#[test]
fn an_error_of_the_disk_leaves_a_ledger_that_is_right_and_goes_on() {
    for errno in [5, 28] {
        let mut steps = 0;
        for nth in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("ledger");
            let disk = Arc::new(FailNth::new(os()));
            let dynamic: Arc<dyn Disk> = Arc::clone(&disk) as Arc<dyn Disk>;
            let (mut ledger, _) = Ledger::open(&dynamic, &path).unwrap();
            ledger.put(bundle(1, Some(1), State::Queued), Sync::Yes).unwrap();
            disk.heal();
            disk.fail_once(nth, errno);
            let mut known = vec![1];
            let mut failed = 0;
            for n in 2..=4 {
                failed = 0;
                if ledger.put(bundle(n, Some(known.len() as u64 + 1), State::Queued), Sync::Yes).is_ok() {
                    known.push(n);
                } else {
                    assert!(ledger.get(BundleId(n)).is_none());
                    failed = n;
                }
            }
            steps = steps.max(disk.operations().len());
            let ids = |ledger: &Ledger| ledger.bundles().map(|b| b.id.0).collect::<Vec<_>>();
            assert_eq!(ids(&ledger), known, "{nth}");
            // A crash now: everything that was said to be durable is there, and nothing else, unless the very last sync failed.
            let found = ids(&open(dir.path()));
            assert!(
                found == known || (failed > 0 && found == [known.clone(), vec![failed]].concat()),
                "{nth}: {found:?}"
            );
            if nth > steps {
                break;
            }
        }
    }
}
