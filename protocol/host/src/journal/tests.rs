mod versions;

use super::*;
use crate::disk::OsDisk;
use crate::disk::fault::FailNth;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const SCHEMA: Schema = Schema::new(b"sample", 2);

struct Bed {
    _dir: tempfile::TempDir,
    path: PathBuf,
    disk: Arc<dyn Disk>,
}

impl Bed {
    fn new() -> Self {
        // In memory if possible, because these tests sync thousands of times.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { path: dir.path().join("journal"), _dir: dir, disk: Arc::new(OsDisk) }
    }

    fn open(&self) -> (Journal, Recovered) {
        Journal::open(&self.disk, &self.path, SCHEMA).unwrap()
    }

    fn write(&self, bytes: &[u8]) {
        std::fs::write(&self.path, bytes).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    fn records(&self) -> Vec<Vec<u8>> {
        let (_, recovered) = self.open();
        assert_eq!((recovered.torn_bytes, recovered.corrupt.as_slice()), (0, [].as_slice()));
        recovered.records
    }
}

fn nothing(torn_bytes: u64) -> Recovered {
    Recovered { version: 2, records: Vec::new(), torn_bytes, corrupt: Vec::new() }
}

fn samples() -> Vec<Vec<u8>> {
    vec![b"one".to_vec(), vec![0; 40], b"three".to_vec(), vec![0xff], (0..=255).collect()]
}

/// A good journal with the samples, and where each of its records ends.
fn good() -> (Vec<u8>, Vec<usize>) {
    let mut bytes = SCHEMA.header().to_vec();
    let mut ends = Vec::new();
    for payload in samples() {
        frame(&mut bytes, 0, &payload, &SCHEMA.layout()).unwrap();
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn whole_before(ends: &[usize], len: usize) -> usize {
    ends.iter().filter(|&&end| end <= len).count()
}

#[test]
fn keeps_what_is_appended() {
    let bed = Bed::new();
    let (mut journal, recovered) = bed.open();
    assert_eq!(recovered, nothing(0), "a missing file is an empty journal");
    assert!(journal.is_empty());
    journal.append(b"one", Sync::Yes).unwrap();
    journal.append_all(&samples()[1..], Sync::No).unwrap();
    journal.sync().unwrap();
    assert_eq!(bed.bytes(), good().0);
    assert_eq!(journal.len(), good().0.len() as u64);
    drop(journal);
    assert_eq!(bed.records(), samples());
}

#[test]
fn a_torn_tail_of_any_length_is_cut_and_the_next_append_is_kept() {
    let (bytes, ends) = good();
    for len in 0..=bytes.len() {
        let bed = Bed::new();
        bed.write(&bytes[..len]);
        let whole = whole_before(&ends, len);
        let (mut journal, recovered) = bed.open();
        assert_eq!(recovered.records, samples()[..whole], "{len}");
        let good_len = if whole == 0 { if len < HEADER { 0 } else { HEADER } } else { ends[whole - 1] };
        assert_eq!((recovered.torn_bytes as usize, recovered.corrupt.len()), (len - good_len, 0), "{len}");
        journal.append(b"after", Sync::Yes).unwrap();
        let mut expected = samples()[..whole].to_vec();
        expected.push(b"after".to_vec());
        assert_eq!(bed.records(), expected, "{len}");
    }
}

#[test]
fn zeros_after_the_end_are_a_torn_tail() {
    let (bytes, _) = good();
    for zeros in [1, 7, 8, 9, 4096, 1 << 20] {
        let bed = Bed::new();
        bed.write(&[bytes.clone(), vec![0; zeros]].concat());
        // The torn tail stays visible until something is appended.
        for _ in 0..2 {
            let (_, recovered) = bed.open();
            assert_eq!((recovered.records, recovered.torn_bytes), (samples(), zeros as u64));
        }
        let (mut journal, _) = bed.open();
        journal.append(b"after", Sync::Yes).unwrap();
        assert_eq!(bed.open().1.torn_bytes, 0);
        bed.write(&vec![0; zeros]);
        assert_eq!(bed.open().1, nothing(zeros as u64));
        assert!(bed.bytes().starts_with(&SCHEMA.header()));
    }
}

#[test]
fn a_flipped_byte_anywhere_costs_its_record_and_no_other() {
    let (bytes, ends) = good();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let bed = Bed::new();
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            bed.write(&damaged);
            let (mut journal, recovered) = bed.open();
            let mut expected = samples();
            let (start, end) = if at < HEADER {
                (0, HEADER)
            } else {
                let hit = whole_before(&ends, at);
                expected.remove(hit);
                (if hit == 0 { HEADER } else { ends[hit - 1] }, ends[hit])
            };
            assert_eq!(recovered.records, expected, "{at} ^ {flip}");
            if end == bytes.len() {
                assert_eq!((recovered.torn_bytes as usize, recovered.corrupt.len()), (end - start, 0), "{at}");
            } else {
                let range = CorruptRange { offset: start as u64, len: (end - start) as u64 };
                assert_eq!((recovered.torn_bytes, recovered.corrupt), (0, vec![range]), "{at}");
            }
            journal.append(b"after", Sync::Yes).unwrap();
            expected.push(b"after".to_vec());
            assert_eq!(bed.open().1.records, expected, "{at}");
            journal.rewrite(&expected).unwrap();
            assert_eq!(bed.records(), expected, "rewriting repairs the journal");
        }
    }
}

#[test]
fn damage_of_several_records_at_once_is_one_range() {
    let (mut bytes, ends) = good();
    let bed = Bed::new();
    bytes[ends[0]..ends[2]].fill(0xa5);
    bed.write(&bytes);
    let (_, recovered) = bed.open();
    assert_eq!(recovered.records, [&samples()[..1], &samples()[3..]].concat());
    let range = CorruptRange { offset: ends[0] as u64, len: (ends[2] - ends[0]) as u64 };
    assert_eq!(recovered.corrupt, [range]);
}

#[test]
fn a_record_inside_of_a_record_is_not_taken_for_one() {
    // The payload contains bytes that are a valid record in that place, but the record around them is damaged.
    let inner_at = HEADER + FRAME + 3;
    let mut inner = vec![0; inner_at];
    frame(&mut inner, 0, b"forged", &SCHEMA.layout()).unwrap();
    let mut payload = b"abc".to_vec();
    payload.extend_from_slice(&inner[inner_at..]);
    let mut bytes = SCHEMA.header().to_vec();
    frame(&mut bytes, 0, &payload, &SCHEMA.layout()).unwrap();
    frame(&mut bytes, 0, b"real", &SCHEMA.layout()).unwrap();
    bytes[HEADER + FRAME] ^= 1;
    let bed = Bed::new();
    bed.write(&bytes);
    assert_eq!(bed.open().1.records, [b"real".to_vec()]);
}

#[test]
fn a_record_in_another_place_is_none() {
    let (bytes, ends) = good();
    let bed = Bed::new();
    bed.write(&[&bytes[..], &bytes[HEADER..ends[0]]].concat());
    let (_, recovered) = bed.open();
    assert_eq!((recovered.records, recovered.torn_bytes), (samples(), (ends[0] - HEADER) as u64));
}

#[test]
fn what_is_no_journal_is_left_alone() {
    for foreign in [b"#!/bin/sh\necho hello\n".to_vec(), b"x".to_vec(), vec![0xff; 5000]] {
        let bed = Bed::new();
        bed.write(&foreign);
        let error = Journal::open(&bed.disk, &bed.path, SCHEMA).err().unwrap();
        assert!(matches!(error, JournalError::NotAJournal { .. }), "{error}");
        assert_eq!(bed.bytes(), foreign);
    }
    let bed = Bed::new();
    std::os::unix::fs::symlink("/etc/passwd", &bed.path).unwrap();
    assert!(matches!(Journal::open(&bed.disk, &bed.path, SCHEMA), Err(JournalError::Io { .. })));
}

#[test]
fn too_long_a_record_changes_nothing() {
    let bed = Bed::new();
    let (mut journal, _) = bed.open();
    journal.append(b"one", Sync::No).unwrap();
    let long = vec![1; MAX_RECORD + 1];
    let refused = journal.append_all(&[b"two".as_slice(), &long], Sync::Yes);
    assert!(matches!(refused, Err(JournalError::RecordTooLong { .. })));
    assert!(matches!(journal.rewrite(&[&long]), Err(JournalError::RecordTooLong { .. })));
    journal.append(&long[1..], Sync::Yes).unwrap();
    assert_eq!(bed.records(), [b"one".to_vec(), long[1..].to_vec()]);
}

#[test]
#[should_panic(expected = "never empty")]
fn an_empty_record_is_a_programming_error() {
    drop(Bed::new().open().0.append(b"", Sync::No));
}

#[test]
fn a_failed_write_is_undone_before_the_next() {
    let bed = Bed::new();
    let faulty = Arc::new(FailNth::new(Arc::new(OsDisk)));
    let disk: Arc<dyn Disk> = faulty.clone();
    let (mut journal, _) = Journal::open(&disk, &bed.path, SCHEMA).unwrap();
    journal.append(b"one", Sync::Yes).unwrap();
    // The write fails half way. Cutting off what it left then fails too, once or several times, before it works.
    for failing in [1, 3] {
        faulty.fail_from(0, ENOSPC);
        for _ in 0..failing {
            assert!(matches!(journal.append(&[7; 100], Sync::Yes), Err(JournalError::Io { .. })));
        }
        assert!(bed.bytes().len() > good().1[0]);
        faulty.heal();
        journal.append(b"2", Sync::Yes).unwrap();
    }
    assert_eq!(bed.records(), [b"one".to_vec(), b"2".to_vec(), b"2".to_vec()]);
    faulty.fail_once(0, ENOSPC);
    assert!(journal.append(&[7; 100], Sync::Yes).is_err());
    assert_eq!(faulty.operations(), ["write_all_at", "set_len"], "what a failed write left is cut off at once");
    assert_eq!(bed.records().len(), 3);
}

#[test]
fn after_a_failed_sync_only_a_rewrite_helps() {
    let bed = Bed::new();
    let faulty = Arc::new(FailNth::new(Arc::new(OsDisk)));
    let disk: Arc<dyn Disk> = faulty.clone();
    let (mut journal, _) = Journal::open(&disk, &bed.path, SCHEMA).unwrap();
    journal.append(b"one", Sync::Yes).unwrap();
    faulty.fail_once(3, EIO);
    assert!(matches!(journal.append(b"two", Sync::Yes), Err(JournalError::Io { .. })));
    assert!(matches!(journal.append(b"three", Sync::No), Err(JournalError::Broken { .. })));
    assert!(matches!(journal.sync(), Err(JournalError::Broken { .. })));
    journal.rewrite(&[b"one".as_slice(), b"two"]).unwrap();
    journal.append(b"three", Sync::Yes).unwrap();
    assert_eq!(bed.records(), [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
}

#[test]
fn an_interrupted_rewrite_leaves_old_or_new_and_never_loses_an_append() {
    let old = samples();
    let new = vec![b"compact".to_vec()];
    for step in 0.. {
        let bed = Bed::new();
        let faulty = Arc::new(FailNth::new(Arc::new(OsDisk)));
        let disk: Arc<dyn Disk> = faulty.clone();
        let (mut journal, _) = Journal::open(&disk, &bed.path, SCHEMA).unwrap();
        journal.append_all(&old, Sync::Yes).unwrap();
        faulty.fail_once(step, EIO);
        let result = journal.rewrite(&new);
        let steps = faulty.operations();
        let left = bed.records();
        if steps.len() <= step {
            result.unwrap();
            assert_eq!((left, step), (new, 6), "{steps:?}");
            break;
        }
        assert!(result.is_err() && (left == old || left == new), "{steps:?}");
        faulty.heal();
        let appended = journal.append(b"more", Sync::Yes);
        let now = bed.records();
        match appended {
            Ok(()) => assert_eq!((&now[..left.len()], now.len()), (&left[..], left.len() + 1), "{steps:?}"),
            Err(JournalError::Broken { .. }) => {
                assert_eq!((left, &now), (new.clone(), &new), "{steps:?}");
                journal.rewrite(&new).unwrap();
                journal.append(b"more", Sync::Yes).unwrap();
                assert_eq!(bed.records(), [b"compact".to_vec(), b"more".to_vec()]);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_rewrite_killed_at_any_step_leaves_old_or_new() {
    let (old, new) = (samples(), vec![b"compact".to_vec(), b"er".to_vec()]);
    for step in 0..10 {
        let bed = Bed::new();
        let faulty = Arc::new(FailNth::new(Arc::new(OsDisk)));
        let disk: Arc<dyn Disk> = faulty.clone();
        let (mut journal, _) = Journal::open(&disk, &bed.path, SCHEMA).unwrap();
        journal.append_all(&old, Sync::Yes).unwrap();
        faulty.fail_from(step, EIO);
        drop(journal.rewrite(&new));
        drop(journal);
        let mut left = bed.records();
        assert!(left == old || left == new, "{step}");
        let (mut journal, _) = bed.open();
        journal.append(b"more", Sync::Yes).unwrap();
        left.push(b"more".to_vec());
        journal.rewrite(&left).unwrap();
        assert_eq!(bed.records(), left, "a leftover temporary file does no harm");
    }
}

#[test]
fn opening_on_a_failing_disk_fails_or_is_right() {
    let (bytes, ends) = good();
    for (content, whole) in [(None, 0), (Some(&bytes[..ends[3] + 3]), 4), (Some(&b"CVJ"[..]), 0)] {
        for step in 0..12 {
            let bed = Bed::new();
            if let Some(content) = content {
                bed.write(content);
            }
            let faulty = Arc::new(FailNth::new(Arc::new(OsDisk)));
            let disk: Arc<dyn Disk> = faulty.clone();
            faulty.fail_once(step, EIO);
            if let Ok((_, recovered)) = Journal::open(&disk, &bed.path, SCHEMA) {
                assert_eq!(recovered.records, samples()[..whole]);
            }
            assert_eq!(bed.open().1.records, samples()[..whole]);
        }
    }
}

#[test]
fn a_journal_that_was_removed_takes_nothing_durable_until_it_is_rewritten() {
    for with_directory in [false, true] {
        let bed = Bed::new();
        let path = bed.path.with_file_name("state").join("journal");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let (mut journal, _) = Journal::open(&bed.disk, &path, SCHEMA).unwrap();
        journal.append(b"first", Sync::Yes).unwrap();
        std::fs::remove_file(&path).unwrap();
        if with_directory {
            std::fs::remove_dir(path.parent().unwrap()).unwrap();
        }
        journal.append(b"second", Sync::No).unwrap();
        assert!(matches!(journal.append(b"third", Sync::Yes), Err(JournalError::Broken { .. })));
        assert!(journal.is_broken());
        journal.rewrite(&[b"first", b"third"]).unwrap();
        journal.append(b"fourth", Sync::Yes).unwrap();
        let (_, recovered) = Journal::open(&bed.disk, &path, SCHEMA).unwrap();
        assert_eq!(recovered.records, [&b"first"[..], b"third", b"fourth"]);
    }
}
