use std::fs;

use checkvalve_host::disk::OsDisk;
use checkvalve_host::disk::fault::FailNth;

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
    assert_eq!((ledger.next_sequence(&channel("a")), ledger.last_sequence(&channel("a"))), (1, 0));
    ledger.run_for(1_000);
    ledger.put(bundle(1, Some(1), State::Queued), Sync::Yes).unwrap();
    ledger.put(bundle(2, Some(2), State::Queued), Sync::No).unwrap();
    ledger.put(bundle(3, None, State::Failed("why".into())), Sync::No).unwrap();
    ledger.put(bundle(1, Some(1), State::Transmitted), Sync::Yes).unwrap();
    let check = |ledger: &Ledger| {
        assert_eq!(ledger.next_sequence(&channel("a")), 3);
        assert_eq!(ledger.next_sequence(&channel("b")), 1);
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
fn session_numbers_only_rise_whatever_the_clock_says() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for (wall, expected) in [(0, 1), (0, 2), (5_000, 5_000), (4_000, 5_001), (u64::MAX - 1, u64::MAX - 1)] {
        let number = open(dir.path()).begin_session(wall).unwrap();
        assert_eq!(number, expected);
        assert!(number > last);
        last = number;
    }
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
        assert_eq!(ledger.next_sequence(&channel("a")), many + 1);
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
