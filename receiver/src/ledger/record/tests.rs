//! What is written is what the files in `tests/records` hold, and what they hold is read.

use std::path::Path;
use std::sync::Arc;

use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_host::journal::{Journal, Sync};
use checkvalve_protocol::beacon::{Beacon, Epoch};
use checkvalve_protocol::id::{EpochId, SessionId};

use super::super::file::LedgerFile;
use super::*;
use crate::testing::{is_rewritten_once, is_the_newest_layout, journal_of, refuses_newer};

fn os() -> Arc<dyn Disk> {
    Arc::new(OsDisk)
}

/// A beacon of (epoch, session's number, counter).
fn beacon((epoch, number, counter): (u64, u64, u64)) -> Beacon {
    Beacon {
        epoch: Epoch { number: epoch, id: EpochId(epoch + 0xe0) },
        session_number: number,
        session: SessionId(number + 0x5e55),
        counter,
        clock_ms: epoch * 1_000 + number,
        rate_bits: 0,
        datagrams: 0,
        on_wire: None,
        channel: None,
    }
}

/// One of each, and every optional field both with and without.
fn records() -> Vec<Record> {
    let first = Known::first(&beacon((1, 1, 5)));
    let mut known = first.clone();
    for heard in [(1, 2, 300), (2, 1, 1), (2, 2, 70_000), (1, 9, 1)] {
        known.take(&beacon(heard));
    }
    let name = |name| ChannelName::new(name).unwrap();
    let saved = |baseline, rejected, opened_by| Saved {
        baseline,
        passed: 3,
        floor: 2,
        newest: 300,
        begun: 299,
        rejected,
        opened_by,
    };
    let full = SavedEntry {
        id: BundleId(0x0123_4567_89ab_cdef),
        channel: Some(name("a")),
        sequence: 300,
        name: b"\xffname\n".to_vec(),
        bytes: 5_000_000_000,
        state: State::Receiving,
        standing: Standing::Signed,
        signer: Some(Signer { key: KeyId([1, 2, 3, 4, 5, 6, 7, 0xff]), name: "ci".to_owned() }),
        announce: Some([0xa1; 32]),
        hold: Some(Hold::Jump { newest: 299 }),
        rule: Some("unknown-key".to_owned()),
        spoilt: 2,
        reason: Some("no such key".to_owned()),
        sent: true,
        published: true,
        attempt: 4,
        not_before_ms: 1_790_000_000_000,
        first_ms: 1_790_000_000_001,
        changed_ms: 1_790_000_000_002,
    };
    let states = [
        State::Incomplete,
        State::Missing,
        State::Quarantined,
        State::Complete,
        State::Installing,
        State::Installed,
        State::Failed,
        State::Withdrawn,
        State::Rejected,
        State::Superseded,
        State::Held,
    ];
    let bare = SavedEntry::from(&Entry::new(BundleId(1), 7));
    let mut records = vec![
        Record::Channel(name("a"), saved(None, Vec::new(), Some(KeyId([9; 8])))),
        Record::Channel(name("b-2"), saved(Some(1), vec![(4, 4), (250, 300)], None)),
        Record::Sender(KeyId([9; 8]), first),
        Record::Sender(KeyId([8; 8]), known),
        Record::Entry(bare.clone()),
        Record::Entry(full.clone()),
        Record::Entry(SavedEntry { hold: Some(Hold::Channels), ..full.clone() }),
        Record::Entry(SavedEntry { hold: Some(Hold::Sequence { holder: BundleId(5) }), ..full }),
    ];
    records.extend(
        (2..).zip(states).map(|(id, state)| Record::Entry(SavedEntry { id: BundleId(id), state, ..bare.clone() })),
    );
    records.push(Record::Forget(BundleId(1)));
    records
}

/// What a ledger knows after [`records`].
fn check(path: &Path) {
    let (file, damage) = LedgerFile::open(&os(), path).unwrap();
    assert!(!damage.is_any(), "{damage:?}");
    let ledger = file.lock();
    let mut expected: Vec<Entry> = Vec::new();
    for record in records() {
        if let Record::Entry(entry) = record {
            expected.retain(|other| other.id != entry.id);
            expected.push(entry.into());
        }
    }
    expected.retain(|entry| entry.id != BundleId(1));
    assert_eq!(ledger.entries().count(), expected.len());
    assert!(expected.iter().all(|entry| ledger.entry(entry.id) == Some(entry)));
    let channel = ledger.channel(&ChannelName::new("b-2").unwrap()).unwrap();
    assert_eq!((channel.baseline(), channel.passed(), channel.is_over(251)), (Some(1), 3, true));
}

#[test]
fn every_layout_is_read() {
    for (name, version) in [("ledger-container1-records1", 1), ("ledger-records1", 1), ("ledger-records2", 2)] {
        let (_dir, path, _) = journal_of(name);
        let (_, recovered) = Journal::open(&os(), &path, SCHEMA).unwrap();
        assert_eq!((recovered.version, recovered.torn_bytes, recovered.corrupt), (version, 0, Vec::new()), "{name}");
        let read: Vec<_> = recovered.records.iter().map(|bytes| decode(version, bytes).unwrap()).collect();
        let mut expected = records();
        for record in expected.iter_mut().filter(|_| version == 1) {
            if let Record::Channel(_, saved) = record {
                saved.opened_by = None;
            }
        }
        assert_eq!(read, expected, "{name}");
        check(&path);
        // Version 1 did not say it: it is the signer of its first bundle.
        let first = KeyId(if version == 1 { [1, 2, 3, 4, 5, 6, 7, 0xff] } else { [9; 8] });
        let (file, _) = LedgerFile::open(&os(), &path).unwrap();
        let opened_by = file.lock().channel(&ChannelName::new("a").unwrap()).unwrap().opened_by();
        assert_eq!(opened_by, Some(first), "{name}");
    }
}

#[test]
fn what_is_written_is_the_newest_layout() {
    is_the_newest_layout(SCHEMA, "ledger", &records().iter().map(codec::encode).collect::<Vec<_>>());
}

#[test]
fn a_newer_ledger_is_refused_and_left_alone() {
    refuses_newer(SCHEMA, b"ledger", |path| LedgerFile::open(&os(), path).err());
}

#[test]
fn an_older_ledger_is_rewritten_once_also_after_a_full_disk() {
    let work = |disk: &Arc<dyn Disk>, path: &Path| {
        if let Ok((file, _)) = LedgerFile::open(disk, path) {
            let forgotten = ChannelName::new("a").unwrap();
            file.lock().change_channel(&forgotten, |channel| channel.begun(301));
            // It may fail, too.
            drop(file.save(Sync::Yes));
        }
    };
    is_rewritten_once("ledger-container1-records1", work, check);
}

#[test]
fn a_damaged_ledger_shows_it_until_it_is_mended() {
    for name in ["ledger-container1-records1", "ledger-records1", "ledger-records2"] {
        let (_dir, path, mut bytes) = journal_of(name);
        bytes[45] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        for _ in 0..2 {
            let (_, damage) = LedgerFile::open(&os(), &path).unwrap();
            assert_eq!((damage.corrupt.len(), std::fs::read(&path).unwrap() == bytes), (1, true), "{name}");
        }
        LedgerFile::open(&os(), &path).unwrap().0.rewrite().unwrap();
        assert!(!LedgerFile::open(&os(), &path).unwrap().1.is_any());
    }
}
