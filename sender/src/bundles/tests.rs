use std::fs;

use checkvalve_host::disk::OsDisk;
use checkvalve_host::disk::fault::FailNth;
use checkvalve_protocol::id::EpochId;

use super::*;
use checkvalve_protocol::limits::MAX_SEQUENCE;

use crate::ledger::State;

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

fn open(dir: &Path) -> Bundles {
    let (bundles, damage) = Bundles::open(&os(), &dir.join("ledger")).unwrap();
    assert!(damage.corrupt.is_empty() && damage.unknown == 0, "{damage:?}");
    bundles
}

#[test]
fn what_was_put_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut bundles = open(dir.path());
    assert_eq!((bundles.next_sequence(&channel("a")), bundles.last_sequence(&channel("a"))), (Some(1), 0));
    bundles.run_for(1_000);
    bundles.put(bundle(1, Some(1), State::Queued), Sync::Yes).unwrap();
    bundles.put(bundle(2, Some(2), State::Queued), Sync::No).unwrap();
    bundles.put(bundle(3, None, State::Failed("why".into())), Sync::No).unwrap();
    bundles.put(bundle(1, Some(1), State::Transmitted), Sync::Yes).unwrap();
    let check = |bundles: &Bundles| {
        assert_eq!(bundles.next_sequence(&channel("a")), Some(3));
        assert_eq!(bundles.next_sequence(&channel("b")), Some(1));
        assert_eq!(bundles.get(BundleId(1)).unwrap().state, State::Transmitted);
        assert_eq!(bundles.by_sequence(&channel("a"), 2).unwrap().id, BundleId(2));
        let newest: Vec<_> = bundles.newest(&channel("a")).map(|b| b.id.0).collect();
        assert_eq!(newest, [2, 1]);
        assert_eq!((bundles.iter().count(), bundles.uptime_ms()), (3, 1_000));
    };
    check(&bundles);
    check(&open(dir.path()));
    bundles.rewrite().unwrap();
    check(&bundles);
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
        let mut bundles = open(dir.path());
        assert_eq!((bundles.epoch(), bundles.begin_session().unwrap()), (Some(first), expected));
    }
    let mut bundles = open(dir.path());
    bundles.rewrite().unwrap();
    // One that is not newer changes nothing.
    bundles.begin_epoch(Epoch { number: 1, id: EpochId(8) }).unwrap();
    assert_eq!((bundles.epoch(), bundles.begin_session().unwrap()), (Some(first), 4));
    let third = Epoch { number: 3, id: EpochId(9) };
    bundles.begin_epoch(third).unwrap();
    bundles.rewrite().unwrap();
    let mut bundles = open(dir.path());
    assert_eq!((bundles.epoch(), bundles.begin_session().unwrap()), (Some(third), 1));
}

#[test]
fn numbers_end_where_the_protocol_ends_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut bundles = open(dir.path());
    let a = channel("a");
    for (last, next) in [(MAX_SEQUENCE - 1, Some(MAX_SEQUENCE)), (MAX_SEQUENCE, None), (u64::MAX, None)] {
        bundles.skip_to(&a, last).unwrap();
        assert_eq!((bundles.last_sequence(&a), bundles.next_sequence(&a)), (last, next));
    }
    for number in [MAX_SEQUENCE, u64::MAX] {
        bundles.write(vec![Change::Session(number)], Sync::Yes).unwrap();
        assert!(matches!(bundles.begin_session(), Err(LedgerError::Sessions)));
    }
}

#[test]
fn another_state_goes_on_where_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut bundles = open(dir.path());
    bundles.begin_epoch(Epoch { number: 1, id: EpochId(1) }).unwrap();
    bundles.begin_session().unwrap();
    bundles.put(bundle(1, Some(1), State::Transmitted), Sync::Yes).unwrap();
    bundles.put(bundle(2, Some(2), State::Queued), Sync::Yes).unwrap();
    let epoch = Epoch { number: 2, id: EpochId(2) };
    bundles.remember(bundle(3, Some(3), State::Transmitted));
    bundles.begin_anew(epoch, &[(channel("a"), 413), (channel("b"), 0)].into(), &[BundleId(2)]).unwrap();
    let mut bundles = open(dir.path());
    assert_eq!(bundles.iter().map(|b| b.id.0).collect::<Vec<_>>(), [1, 3]);
    assert_eq!((bundles.next_sequence(&channel("a")), bundles.next_sequence(&channel("b"))), (Some(414), Some(1)));
    assert_eq!((bundles.epoch(), bundles.begin_session().unwrap()), (Some(epoch), 1));
    // It never goes back.
    bundles.begin_anew(Epoch { number: 3, id: EpochId(3) }, &[(channel("a"), 20)].into(), &[]).unwrap();
    assert_eq!(open(dir.path()).next_sequence(&channel("a")), Some(414));
}

#[test]
fn old_bundles_are_forgotten_and_their_sequences_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut bundles = open(dir.path());
    let many = 2 * REMEMBERED as u64;
    for n in 1..=many {
        let state = if n % 2 == 0 { State::Transmitted } else { State::Failed("x".into()) };
        bundles.put(BundleRecord { held: n == 7, ..bundle(n, Some(n), state) }, Sync::No).unwrap();
        bundles
            .put(BundleRecord { held: false, ..bundle(many + n, None, State::Failed("y".into())) }, Sync::No)
            .unwrap();
    }
    bundles.tidy().unwrap();
    let check = |bundles: &Bundles| {
        assert_eq!(bundles.iter().count(), 2 * REMEMBERED + 1);
        assert!(bundles.get(BundleId(7)).is_some(), "it is held");
        assert!(bundles.get(BundleId(8)).is_none() && bundles.get(BundleId(many + 8)).is_none());
        assert!(bundles.get(BundleId(many)).is_some() && bundles.get(BundleId(2 * many)).is_some());
        assert_eq!(bundles.next_sequence(&channel("a")), Some(many + 1));
    };
    check(&bundles);
    check(&open(dir.path()));
    bundles.rewrite().unwrap();
    check(&open(dir.path()));
}

#[test]
fn the_journal_does_not_grow_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut bundles = open(dir.path());
    let mut largest = 0;
    for n in 0..20_000 {
        let record = BundleRecord { next_esi: n, ..bundle(1, Some(1), State::Transmitting) };
        bundles.put(record, Sync::No).unwrap();
        bundles.tidy().unwrap();
        largest = largest.max(fs::metadata(dir.path().join("ledger")).unwrap().len());
    }
    assert!(largest < 2_100 * 400, "{largest} bytes");
    assert_eq!(open(dir.path()).get(BundleId(1)).unwrap().next_esi, 19_999);
}

#[test]
fn a_journal_cut_anywhere_holds_a_former_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let mut bundles = open(dir.path());
    for n in 1..=5 {
        bundles.put(bundle(n, Some(n), State::Queued), Sync::No).unwrap();
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
    let mut bundles = open(dir.path());
    for n in 1..=5 {
        bundles.put(bundle(n, Some(n), State::Queued), Sync::No).unwrap();
    }
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let (mut bundles, damage) = Bundles::open(&os(), &path).unwrap();
    assert_eq!((damage.corrupt.len(), damage.unknown, damage.empty), (1, 0, false));
    assert_eq!((bundles.iter().count(), bundles.last_sequence(&channel("a"))), (4, 5));
    bundles.rewrite().unwrap();
    assert_eq!(open(dir.path()).iter().count(), 4);
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
            let (mut bundles, _) = Bundles::open(&dynamic, &path).unwrap();
            bundles.put(bundle(1, Some(1), State::Queued), Sync::Yes).unwrap();
            disk.heal();
            disk.fail_once(nth, errno);
            let mut known = vec![1];
            let mut failed = 0;
            for n in 2..=4 {
                failed = 0;
                if bundles.put(bundle(n, Some(known.len() as u64 + 1), State::Queued), Sync::Yes).is_ok() {
                    known.push(n);
                } else {
                    assert!(bundles.get(BundleId(n)).is_none());
                    failed = n;
                }
            }
            steps = steps.max(disk.operations().len());
            let ids = |bundles: &Bundles| bundles.iter().map(|b| b.id.0).collect::<Vec<_>>();
            assert_eq!(ids(&bundles), known, "{nth}");
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
