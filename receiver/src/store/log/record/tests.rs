//! What is written is what the files in `tests/records` hold, and what they hold is read.

use std::path::Path;
use std::sync::Arc;

use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_host::journal::Journal;
use checkvalve_protocol::id::BundleId;

use super::super::Log;
use super::*;
use crate::ranges::Ranges;
use crate::testing::{is_rewritten_once, is_the_newest_layout, journal_of, refuses_newer};

fn os() -> Arc<dyn Disk> {
    Arc::new(OsDisk)
}

/// One of each.
fn records() -> Vec<Record> {
    vec![
        Record::Boot([0xb0; 16]),
        Record::Length { id: 1, length: 5_000_000_000 },
        Record::Tree { id: 1, start: 0, end: 300 },
        Record::Flat { id: 1, start: 300, end: 70_000 },
        Record::Length { id: u64::MAX, length: 10 },
        Record::Checkpoint { records: 4 },
        Record::Lost { id: 1, start: 250, end: 260 },
        Record::Unsynced,
        Record::Forget { id: u64::MAX },
        Record::Tree { id: 1, start: 400, end: 500 },
    ]
}

/// What a log knows after [`records`], in the same run of the kernel.
fn check(path: &Path) {
    let (_, stored) = Log::open(&os(), path, [0xb0; 16]).unwrap();
    assert_eq!(stored.keys().map(|id| id.0).collect::<Vec<_>>(), [1]);
    let stored = &stored[&BundleId(1)];
    let spans = |ranges: &Ranges| ranges.iter().map(|r| (r.start, r.end)).collect::<Vec<_>>();
    assert_eq!((stored.length, spans(&stored.synced)), (Some(5_000_000_000), vec![(0, 250), (260, 70_000)]));
    assert_eq!(spans(&stored.all).first(), Some(&(0, 250)));
}

#[test]
fn every_layout_is_read() {
    for (name, version) in [("stored-container1-records1", 1), ("stored-records1", 1)] {
        let (_dir, path, _) = journal_of(name);
        let (_, recovered) = Journal::open(&os(), &path, SCHEMA).unwrap();
        assert_eq!((recovered.version, recovered.torn_bytes, recovered.corrupt), (version, 0, Vec::new()), "{name}");
        let read: Vec<_> = recovered.records.iter().map(|bytes| decode(version, bytes).unwrap()).collect();
        assert_eq!(read, records(), "{name}");
        let (log, stored) = Log::open(&os(), &path, [0xb0; 16]).unwrap();
        assert!(log.has_failed() && stored[&BundleId(1)].all.covers(450..460), "{name}");
        check(&path);
    }
}

#[test]
fn what_is_written_is_the_newest_layout() {
    is_the_newest_layout(SCHEMA, "stored", &records().iter().map(codec::encode).collect::<Vec<_>>());
}

#[test]
fn a_newer_journal_is_refused_and_left_alone() {
    refuses_newer(SCHEMA, b"stored", |path| Log::open(&os(), path, [0; 16]).err());
}

#[test]
fn an_older_journal_is_rewritten_once_also_after_a_full_disk() {
    let work = |disk: &Arc<dyn Disk>, path: &Path| {
        if let Ok((mut log, _)) = Log::open(disk, path, [0xb0; 16]) {
            // It may fail, too.
            drop(log.stored(BundleId(1), 600..700, false));
        }
    };
    is_rewritten_once("stored-container1-records1", work, check);
}
