//! Whether journals keep what they promised, whatever the disk does and whenever the power or the process goes.

use std::sync::Arc;

use checkvalve_host::journal::{Journal, JournalError, Recovered, Schema, Sync};

use super::*;
use crate::rng::Rng;

const RECORDS: Schema = Schema::new(b"sample", 2);

fn open(disk: &Arc<dyn Disk>) -> (Journal, Recovered) {
    Journal::open(disk, p("/journal"), RECORDS).unwrap()
}

/// Appends, syncs and rewrites at random, and knows which records must exist and which may exist.
#[derive(Default)]
struct Ledger {
    /// Every record since the last rewrite, in order.
    records: Vec<(Vec<u8>, Fate)>,
    /// The records of unfinished rewrites. Any of these rewrites may have replaced the journal.
    rewriting: Vec<Vec<Vec<u8>>>,
    next: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// It was synced, so it must exist.
    Promised,
    /// The next sync makes it durable.
    Hoped,
    /// Its append failed.
    Failed,
}

impl Ledger {
    fn work(&mut self, journal: &mut Journal, rng: &mut Rng) -> Result<(), JournalError> {
        for _ in 0..30 {
            match rng.below(10) {
                0 => {
                    let kept: Vec<_> = self.known().into_iter().filter(|_| rng.chance(500)).collect();
                    self.rewriting.push(kept.clone());
                    journal.rewrite(&kept)?;
                    self.begin(kept);
                }
                1 => {
                    journal.sync()?;
                    self.synced();
                }
                kind => {
                    let records: Vec<_> = (0..=rng.below(3)).map(|_| self.record(rng)).collect();
                    let before = self.records.len();
                    self.records.extend(records.iter().map(|record| (record.clone(), Fate::Failed)));
                    let sync = if kind < 5 { Sync::Yes } else { Sync::No };
                    journal.append_all(&records, sync)?;
                    // If a rewrite failed before, the old journal is still in use.
                    self.rewriting.clear();
                    self.records[before..].iter_mut().for_each(|(_, fate)| *fate = Fate::Hoped);
                    if sync == Sync::Yes {
                        self.synced();
                    }
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, rng: &mut Rng) -> Vec<u8> {
        self.next += 1;
        let most = if rng.chance(100) { 5000 } else { 60 };
        let len = usize::try_from(rng.below(most)).unwrap();
        [&self.next.to_le_bytes()[..], &rng.bytes(len)].concat()
    }

    fn begin(&mut self, records: Vec<Vec<u8>>) {
        self.records = records.into_iter().map(|record| (record, Fate::Promised)).collect();
        self.rewriting.clear();
    }

    fn synced(&mut self) {
        let hoped = self.records.iter_mut().filter(|(_, fate)| *fate == Fate::Hoped);
        hoped.for_each(|(_, fate)| *fate = Fate::Promised);
    }

    fn known(&self) -> Vec<Vec<u8>> {
        self.records.iter().map(|(record, _)| record.clone()).collect()
    }

    /// Whether the found records are all promised ones and perhaps some of the others, in order, or all of an unfinished rewrite.
    fn accepts(&self, found: &[Vec<u8>]) -> bool {
        let mut rest = found.iter().peekable();
        let kept = self.records.iter().all(|(record, fate)| {
            let there = rest.next_if(|found| *found == record).is_some();
            there || *fate != Fate::Promised
        });
        (kept && rest.peek().is_none()) || self.rewriting.iter().any(|rewritten| rewritten == found)
    }
}

#[test]
fn a_journal_keeps_its_promises_at_every_power_cut() {
    let (mut cuts, mut torn, mut corrupt) = (0, 0, 0);
    for seed in 0..1500 {
        let mut rng = Rng::new(seed);
        let sim = SimDisk::new(seed);
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let mut ledger = Ledger::default();
        // Several runs, each cut short.
        for life in 0..4 {
            sim.cut_power_at(rng.below(60));
            let done = SimDisk::until_power_cut(|| {
                let (mut journal, recovered) = open(&disk);
                let records = recovered.records;
                assert!(ledger.accepts(&records), "seed {seed}, life {life}: a promise was broken");
                torn += u32::from(recovered.torn_bytes > 0);
                corrupt += u32::from(!recovered.corrupt.is_empty());
                // The caller may act on recovered records, so they must stay, even if only the process was killed before.
                ledger.begin(records);
                ledger.work(&mut journal, &mut rng).unwrap();
            });
            cuts += u32::from(done.is_none());
            if rng.chance(400) { sim.kill() } else { sim.crash(rng.next_u64()) }
        }
    }
    assert!(cuts > 3000 && torn > 100 && corrupt > 100, "too tame: {cuts} cuts, {torn} torn, {corrupt} corrupt");
}

#[test]
fn a_journal_on_a_failing_disk_keeps_its_promises() {
    let mut failures = 0;
    for seed in 0..1500 {
        let mut rng = Rng::new(seed);
        let sim = SimDisk::new(seed);
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let mut ledger = Ledger::default();
        let (mut journal, _) = open(&disk);
        for _ in 0..5 {
            sim.fail_nth(rng.below(20), if rng.chance(500) { EIO } else { ENOSPC });
            match ledger.work(&mut journal, &mut rng) {
                Ok(()) => {}
                // A daemon may continue as long as the journal lets it.
                Err(JournalError::Io { .. }) if rng.chance(500) => failures += 1,
                Err(JournalError::Io { .. } | JournalError::Broken { .. }) => {
                    failures += 1;
                    sim.heal();
                    // After that, it rewrites the journal from memory.
                    let known = ledger.known();
                    journal.rewrite(&known).unwrap();
                    ledger.begin(known);
                }
                Err(error) => panic!("{error}"),
            }
        }
        drop(journal);
        sim.crash(seed);
        let (_, recovered) = open(&disk);
        assert!(ledger.accepts(&recovered.records), "seed {seed}");
    }
    assert!(failures > 1000, "too tame: {failures}");
}

#[test]
fn a_failed_append_that_is_tried_again_is_there_once() {
    for seed in 0..200 {
        let sim = SimDisk::new(seed);
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let (mut journal, _) = open(&disk);
        journal.append(b"one", Sync::Yes).unwrap();
        sim.fail_op(Op::WriteAllAt, 0, ENOSPC);
        assert!(journal.append(&[2; 700], Sync::Yes).is_err());
        journal.append(&[2; 700], Sync::Yes).unwrap();
        sim.crash(seed);
        let (_, recovered) = open(&disk);
        assert_eq!(recovered.records, [b"one".to_vec(), vec![2; 700]]);
        assert_eq!((recovered.torn_bytes, recovered.corrupt.len()), (0, 0));
    }
}

#[test]
fn an_older_journal_is_of_one_version_at_every_power_cut() {
    let records = [b"one".to_vec(), b"two".to_vec()];
    let (mut older, mut newer) = (0, 0);
    for seed in 0..600 {
        let sim = SimDisk::new(seed);
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let (mut journal, _) = Journal::open(&disk, p("/journal"), Schema::new(b"sample", 1)).unwrap();
        journal.append_all(&records, Sync::Yes).unwrap();
        drop(journal);
        sim.cut_power_at(seed % 15);
        SimDisk::until_power_cut(|| {
            let (mut journal, recovered) = open(&disk);
            assert!(journal.append(b"three", Sync::Yes).is_err());
            journal.rewrite(&recovered.records).unwrap();
            journal.append(b"three", Sync::No).unwrap();
        });
        sim.crash(seed);
        let (journal, recovered) = open(&disk);
        assert_eq!((recovered.version == 1, recovered.corrupt.len()), (journal.is_older(), 0));
        assert_eq!(recovered.records[..2], records);
        assert!(recovered.records.len() == 2 || !journal.is_older());
        *if journal.is_older() { &mut older } else { &mut newer } += 1;
    }
    assert!(older > 100 && newer > 100, "too tame: {older} older, {newer} newer");
}

/// The kernel reports a failed sync once. The process that was told may be killed before it can act on it.
#[test]
fn what_a_journal_gave_out_stays_although_a_sync_failed_before_a_kill() {
    for seed in 0..300 {
        let sim = SimDisk::new(seed);
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let (mut journal, _) = open(&disk);
        journal.append(&[1; 700], Sync::Yes).unwrap();
        sim.fail_op(Op::SyncData, 0, EIO);
        assert!(journal.append(&[2; 700], Sync::Yes).is_err());
        sim.kill();
        let (mut journal, recovered) = open(&disk);
        assert_eq!(recovered.records, [[1; 700], [2; 700]]);
        journal.append(&[3; 700], Sync::Yes).unwrap();
        sim.crash(seed);
        let (_, recovered) = open(&disk);
        assert_eq!(recovered.records, [[1; 700], [2; 700], [3; 700]], "seed {seed}");
    }
}
