//! What is written is what the files in `tests/records` hold, and what they hold is read.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkvalve_host::disk::fault::FailNth;
use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_host::journal::{Journal, Sync};
use checkvalve_host::version::PROGRAM;
use checkvalve_protocol::id::EpochId;

use super::super::Damage;
use super::*;
use crate::bundles::Bundles;

/// One of each, and every optional field both with and without.
fn lines() -> Vec<Line> {
    let channel = |name| ChannelName::new(name).unwrap();
    let bare = BundleRecord::new(BundleId(1), channel("a"), State::Queued);
    let full = BundleRecord {
        id: BundleId(0x0123_4567_89ab_cdef),
        channel: channel("b"),
        sequence: Some(300),
        name: b"\xffname\n".to_vec(),
        inode: 70_000,
        claimed_ms: 1_790_000_000_000,
        bytes: 5_000_000_000,
        entries: 3,
        state: State::Transmitted,
        announce: [0xa1; 32],
        fingerprint: [0xf1; 32],
        hashes: Some([0x17; 32]),
        symbol_size: 1_344,
        block_symbols: 240,
        next_esi: 100_000,
        passes_done: 2,
        sent: 4,
        due_ms: Some(1_000),
        resends: vec![
            Resend { ranges: Vec::new(), symbols: Vec::new(), asked_ms: 1 },
            Resend { ranges: vec![(0, 1), (250, 300)], symbols: vec![None, Some(7)], asked_ms: 1_790_000_000_001 },
        ],
        transmitted_ms: Some(1_790_000_000_002),
        retained_since_ms: Some(2_000),
        held: false,
    };
    let bundle = |record: &BundleRecord| Change::Bundle(Box::new(record.clone()));
    let changes = [
        Change::Epoch(Epoch { number: 1, id: EpochId(0xe1) }),
        Change::Session(300),
        Change::Uptime,
        Change::Channel { name: channel("a"), last: 70_000 },
        bundle(&bare),
        bundle(&BundleRecord { state: State::Transmitting, ..bare.clone() }),
        bundle(&full),
        bundle(&BundleRecord { state: State::Failed("it changed".to_owned()), ..bare }),
        Change::Forget(BundleId(1)),
    ];
    (0..).zip(changes).map(|(n, change)| Line { uptime_ms: n * 100, change }).collect()
}

fn os() -> Arc<dyn Disk> {
    Arc::new(OsDisk)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/records")
}

/// A journal with the bytes of a file in `tests/records`, in a directory of its own.
fn journal_of(name: &str) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let bytes = fs::read(folder().join(name)).unwrap();
    fs::write(&path, &bytes).unwrap();
    (dir, path, bytes)
}

/// What a ledger knows after [`lines`].
fn check(path: &Path) {
    let (bundles, damage) = Bundles::open(&os(), path).unwrap();
    assert_eq!(damage, Damage::default());
    let Change::Bundle(full) = lines().remove(6).change else { unreachable!() };
    assert_eq!(bundles.iter().cloned().collect::<Vec<_>>(), [*full]);
    let sequence = |name| bundles.last_sequence(&ChannelName::new(name).unwrap());
    assert_eq!((sequence("a"), sequence("b"), bundles.uptime_ms()), (70_000, 300, 800));
    assert_eq!(bundles.epoch(), Some(Epoch { number: 1, id: EpochId(0xe1) }));
}

#[test]
fn every_layout_is_read() {
    for (name, version) in [("ledger-container1-records1", 1), ("ledger-records1", 1)] {
        let (_dir, path, _) = journal_of(name);
        let (_, recovered) = Journal::open(&os(), &path, SCHEMA).unwrap();
        assert_eq!((recovered.version, recovered.torn_bytes, recovered.corrupt), (version, 0, Vec::new()), "{name}");
        let read: Vec<_> = recovered.records.iter().map(|bytes| decode(version, bytes).unwrap()).collect();
        assert_eq!(read, lines(), "{name}");
        check(&path);
    }
}

#[test]
fn what_is_written_is_the_newest_layout() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let (mut journal, _) = Journal::open(&os(), &path, SCHEMA).unwrap();
    journal.append_all(&lines().iter().map(codec::encode).collect::<Vec<_>>(), Sync::Yes).unwrap();
    let written = fs::read(&path).unwrap();
    let file = folder().join(format!("ledger-records{}", SCHEMA.version()));
    if std::env::var_os("CHECKVALVE_WRITE_VECTORS").is_some() {
        fs::write(&file, &written).unwrap();
    }
    let newest = fs::read(&file).unwrap();
    // All but the version of the program, and the checksum over it.
    assert_eq!((&written[..16], &written[32..]), (&newest[..16], &newest[32..]), "a layout is never changed");
}

#[test]
fn a_newer_ledger_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let disk = os();
    let newer = SCHEMA.version() + 1;
    let (mut journal, _) = Journal::open(&disk, &path, Schema::new(b"sender", newer)).unwrap();
    journal.append(b"whatever", Sync::Yes).unwrap();
    let bytes = fs::read(&path).unwrap();
    let error = Bundles::open(&disk, &path).err().unwrap();
    let expected = format!(
        "{}: written by checkvalve {PROGRAM} (records of version {newer}; this program reads up to {}); \
         run that version or a newer one",
        path.display(),
        SCHEMA.version()
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn an_older_ledger_is_rewritten_once_also_after_a_full_disk() {
    for step in 0.. {
        let (_dir, path, older) = journal_of("ledger-container1-records1");
        let disk = Arc::new(FailNth::new(Arc::new(OsDisk)));
        disk.fail_once(step, 28);
        let opened = Bundles::open(&(Arc::clone(&disk) as Arc<dyn Disk>), &path);
        let steps = disk.operations().len();
        disk.heal();
        let now = fs::read(&path).unwrap();
        assert!(now == older || now[6] == 2, "{step}");
        if let Ok((mut bundles, _)) = opened {
            assert!(now[6] == 2, "it is of one version before anything is appended");
            bundles.write_uptime().unwrap();
        }
        check(&path);
        let rewritten = fs::read(&path).unwrap();
        check(&path);
        assert_eq!(fs::read(&path).unwrap(), rewritten, "once");
        if step >= steps {
            assert!(step > 6, "{step}");
            break;
        }
    }
}

#[test]
fn an_older_ledger_that_is_damaged_shows_it_until_it_is_mended() {
    let (_dir, path, mut older) = journal_of("ledger-container1-records1");
    older[30] ^= 1;
    fs::write(&path, &older).unwrap();
    for _ in 0..2 {
        let (_, damage) = Bundles::open(&os(), &path).unwrap();
        assert_eq!((damage.is_real(), fs::read(&path).unwrap() == older), (true, true));
    }
    let (mut bundles, _) = Bundles::open(&os(), &path).unwrap();
    bundles.rewrite().unwrap();
    let (_, damage) = Bundles::open(&os(), &path).unwrap();
    assert!(!damage.is_real());
}
