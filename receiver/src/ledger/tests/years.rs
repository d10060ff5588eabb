//! What is remembered does not grow with how long the pair has run.

use super::*;
use crate::ledger::record::SCHEMA;

/// Bundles that are remembered here.
const SOME: usize = 100;

/// The bundle with the sequence of this day, installed.
fn install(ledger: &mut Ledger, name: &ChannelName, id: u64, sequence: u64) {
    ledger.announced(Announced { channel: name.clone(), ..announced(id, sequence) }, sequence).unwrap();
    ledger.change_channel(name, |channel| channel.pass(sequence));
    ledger.change(BundleId(id), sequence, Entry::installed).unwrap();
}

fn open(path: &std::path::Path) -> LedgerFile {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let (file, damage) = LedgerFile::open(&disk, path).unwrap();
    assert!(!damage.is_any(), "{damage:?}");
    file.lock().remember(SOME);
    file
}

/// What a start reads.
fn records(path: &std::path::Path) -> usize {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    Journal::open(&disk, path, SCHEMA).unwrap().1.records.len()
}

#[test]
fn one_that_never_comes_keeps_nothing_else_in_mind() {
    let dir = crate::testing::dir();
    let path = dir.path().join("ledger");
    let (file, lost) = (open(&path), 7);
    let gone = {
        let mut ledger = file.lock();
        for n in 1..=SOME as u64 + 50 {
            if n == lost {
                ledger.announced(announced(n, n), 0).unwrap();
                state(&mut ledger, n, State::Missing, 0);
            } else if n != 20 {
                install(&mut ledger, &channel(), n, n);
            }
        }
        let gone: Vec<u64> = ledger.prune(usize::MAX).iter().map(|e| e.sequence).collect();
        assert_eq!(ledger.entries().count(), SOME + 1, "all that ended, and what is open");
        gone
    };
    assert!(gone.iter().copied().eq((1..=50).filter(|n| ![lost, 20].contains(n))), "{gone:?}");
    file.save(Sync::No).unwrap();
    drop(file);
    let file = open(&path);
    let mut ledger = file.lock();
    let told = |ledger: &Ledger| ledger.channel(&channel()).unwrap().clone();
    assert_eq!(told(&ledger).gaps(0, 9), [], "what is forgotten is not missing");
    assert_eq!((told(&ledger).floor(), told(&ledger).ranges()), (6, 1));
    for n in gone {
        assert!(matches!(ledger.announced(announced(n, n), 0), Err(Conflict::Over { .. })), "{n}");
        ledger.heard(&channel(), heard(n, n), 0);
        assert!(ledger.entry(BundleId(n)).is_none(), "{n}");
    }
    ledger.announced(announced(lost, lost), 0).expect("it may still come");
    state(&mut ledger, lost, State::Superseded, 0);
    assert_eq!(ledger.prune(usize::MAX).len(), 1);
    assert_eq!((told(&ledger).floor(), told(&ledger).ranges()), (50, 0), "the floor passes what was open");
    ledger.entries.assert_counted();
}

#[test]
fn a_little_is_forgotten_at_a_time() {
    let mut ledger = Ledger::new();
    ledger.remember(SOME);
    (1..=SOME as u64 + 25).for_each(|n| install(&mut ledger, &channel(), n, n));
    let steps: Vec<usize> = (0..4).map(|_| ledger.prune(10).len()).collect();
    assert_eq!(steps, [10, 10, 5, 0]);
    assert_eq!(ledger.channel(&channel()).unwrap().floor(), 25);
}

#[test]
fn what_was_given_up_without_a_place_is_forgotten_too() {
    let mut ledger = Ledger::new();
    ledger.remember(SOME);
    for id in 1..=SOME as u64 + 30 {
        ledger.hold(Entry { channel: Some(channel()), sequence: 1, ..Entry::new(BundleId(id), id) }, Hold::Channels);
        state(&mut ledger, id, State::Rejected, id);
    }
    let gone: Vec<u64> = ledger.prune(usize::MAX).iter().map(|e| e.id.0).collect();
    assert_eq!(gone, (1..=30).collect::<Vec<_>>(), "the oldest");
    ledger.entries.assert_counted();
}

#[test]
fn a_power_cut_while_forgetting_leaves_nothing_behind() {
    let dir = crate::testing::dir();
    let path = dir.path().join("ledger");
    let file = open(&path);
    (1..=SOME as u64 + 9).for_each(|n| install(&mut file.lock(), &channel(), n, n));
    file.save(Sync::No).unwrap();
    file.lock().prune(usize::MAX);
    let (_, channels, records) = file.lock().take_changed();
    drop(file);
    // The channel's record comes first: a cut after it keeps entries that are over.
    let (mut journal, _) = Journal::open(&(Arc::new(OsDisk) as Arc<dyn Disk>), &path, SCHEMA).unwrap();
    journal.append_all(&records[..channels.len() + 2], Sync::No).unwrap();
    drop(journal);
    for _ in 0..2 {
        let file = open(&path);
        assert_eq!(file.lock().entries().count(), SOME);
        file.save(Sync::No).unwrap();
    }
}

#[test]
fn ten_years_of_daily_bundles_keep_the_ledger_flat() {
    const CHANNELS: u64 = 20;
    const YEAR: u64 = 365;
    let dir = crate::testing::dir();
    let path = dir.path().join("ledger");
    let names: Vec<ChannelName> = (0..CHANNELS).map(|n| ChannelName::new(format!("c-{n}")).unwrap()).collect();
    let (mut held, mut read, mut longest) = (Vec::new(), Vec::new(), Vec::new());
    let begin = || {
        let file = open(&path);
        file.lock().configure(names.clone());
        file
    };
    let mut file = begin();
    let mut lost = 0;
    for year in 0..10 {
        let mut length = 0;
        for day in year * YEAR + 1..=(year + 1) * YEAR {
            for (n, name) in names.iter().enumerate() {
                let id = day * CHANNELS + n as u64;
                let mut ledger = file.lock();
                match (day + n as u64) % 400 {
                    // Nobody ever resends it.
                    100 => {
                        let channel = name.clone();
                        ledger.announced(Announced { channel, ..announced(id, day) }, day).unwrap();
                        state(&mut ledger, id, State::Incomplete, day);
                        lost += 1;
                    }
                    // Not even its name comes.
                    300 => {}
                    _ => install(&mut ledger, name, id, day),
                }
                drop(ledger);
                file.save(Sync::No).unwrap();
            }
            file.lock().prune(usize::MAX);
            file.save(Sync::No).unwrap();
            length = length.max(std::fs::metadata(&path).unwrap().len());
        }
        let ledger = file.lock();
        assert_eq!(ledger.open().len(), lost);
        held.push(ledger.entries().count() - lost);
        assert!(ledger.channels().all(|(_, channel)| channel.ranges() <= lost && channel.gaps(0, 99).len() <= 1));
        drop(ledger);
        drop(file);
        read.push(records(&path));
        longest.push(length);
        file = begin();
        file.lock().entries.assert_counted();
    }
    assert!(held.iter().all(|&held| held == CHANNELS as usize * SOME), "{held:?}");
    // What one day adds comes on top before the journal is rewritten.
    let (first, last) = longest.split_at(5);
    assert!(last.iter().max() <= first.iter().max().map(|most| most + (1 << 17)).as_ref(), "{longest:?}");
    let (first, last) = read.split_at(5);
    assert!(last.iter().max() <= first.iter().max(), "{read:?}");
}

#[test]
fn what_is_counted_agrees_with_counting() {
    let mut seed = 5_u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut ledger = Ledger::new();
    ledger.remember(8);
    for now in 0..20_000 {
        let (id, sequence) = (next(60), now / 300 + 1 + next(8));
        let name = ChannelName::new(format!("c-{}", next(3))).unwrap();
        let entry = || Entry { channel: Some(name.clone()), sequence, ..Entry::new(BundleId(id), now) };
        match next(9) {
            0 | 1 => drop(ledger.announced(Announced { channel: name, ..announced(id, sequence) }, now)),
            2 => {
                let _ = if next(2) == 0 { ledger.open_channel(&name, None) } else { ledger.hear_of_channel(&name) };
                ledger.heard(&name, heard(id, sequence), now);
            }
            3 => drop(ledger.hold(entry(), Hold::Channels)),
            4 => drop(ledger.refused(entry())),
            5 => ledger.forget(BundleId(id)),
            6 => drop(ledger.relearn(Entry { standing: Standing::Signed, ..entry() })),
            7 => drop(ledger.prune(next(4) as usize)),
            _ => {
                let to = State::ALL[next(State::ALL.len() as u64) as usize];
                ledger.change(BundleId(id), now, |e| e.arrival = Arrival::of(to, next(2) == 0));
            }
        }
        ledger.entries.assert_counted();
    }
    ledger.clock_went_back(9_000);
    ledger.entries.assert_counted();
}
