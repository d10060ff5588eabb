//! Files of other versions.

use super::*;
use crate::journal::header::magic;

/// The samples in a file of container 1.
fn first() -> Vec<u8> {
    let mut bytes = magic(1).to_vec();
    for payload in samples() {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(&(payload.len() as u32).to_le_bytes());
        hasher.update(&payload);
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(hasher.finalize().to_le_bytes());
        bytes.extend(payload);
    }
    bytes
}

/// The samples in a file of another schema.
fn of(schema: Schema) -> Vec<u8> {
    let mut bytes = schema.header().to_vec();
    samples().iter().for_each(|payload| frame(&mut bytes, 0, payload, &schema.layout()).unwrap());
    bytes
}

/// A header of the program version `program`.
fn by(mut bytes: Vec<u8>, program: &[u8]) -> Vec<u8> {
    bytes[16..28].fill(0);
    bytes[16..16 + program.len()].copy_from_slice(program);
    let crc = crc32fast::hash(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn refused(bed: &Bed, bytes: &[u8]) -> String {
    bed.write(bytes);
    let error = Journal::open(&bed.disk, &bed.path, SCHEMA).err().unwrap();
    assert_eq!(bed.bytes(), bytes, "it is left as it is");
    error.to_string().replace(bed.path.to_str().unwrap(), "PATH")
}

/// All flips of a bit pattern in a byte of the header.
fn flipped(bytes: &[u8], len: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..len).flat_map(move |at| {
        [0x01, 0x03, 0x80, 0xff].map(|flip| {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= flip;
            damaged
        })
    })
}

#[test]
fn a_header_is_these_bytes() {
    let header = by(SCHEMA.header().to_vec(), b"1.2.3");
    assert_eq!(header[..28], *b"CVJRNL\x02\xfdsample\x02\xfd1.2.3\0\0\0\0\0\0\0");
    assert_eq!(SCHEMA.header()[16..16 + crate::version::PROGRAM.len()], *crate::version::PROGRAM.as_bytes());
    let bed = Bed::new();
    bed.write(&header);
    assert_eq!(bed.open().1, nothing(0), "another version of the program wrote the same layout");
    assert_eq!(bed.bytes(), header);
}

#[test]
fn older_files_are_read_and_take_no_record_before_they_are_rewritten() {
    for (version, bytes) in [(1, first()), (1, of(Schema::new(b"sample", 1)))] {
        for torn in [0, 3] {
            let bed = Bed::new();
            let older = [&bytes[..], &bytes[..torn]].concat();
            bed.write(&older);
            let (mut journal, recovered) = bed.open();
            let expected = Recovered { version, records: samples(), torn_bytes: torn as u64, corrupt: Vec::new() };
            assert_eq!(recovered, expected);
            assert!(journal.is_older() && journal.is_broken());
            for refused in [journal.append(b"more", Sync::Yes), journal.append(b"more", Sync::No), journal.sync()] {
                assert!(matches!(&refused, Err(error @ JournalError::Older { .. }) if error.wants_rewrite()));
            }
            assert_eq!(bed.bytes(), older, "it is left as it is");
            journal.rewrite(&recovered.records).unwrap();
            assert!(!journal.is_older());
            journal.append(b"more", Sync::Yes).unwrap();
            let (journal, recovered) = bed.open();
            let more = [samples(), vec![b"more".to_vec()]].concat();
            assert_eq!((recovered.version, recovered.records, journal.is_older()), (2, more, false));
        }
    }
}

#[test]
fn an_older_file_that_cannot_be_rewritten_stays_older() {
    for step in 0.. {
        let bed = Bed::new();
        bed.write(&first());
        let faulty = Arc::new(FailNth::new(Arc::new(OsDisk)));
        let disk: Arc<dyn Disk> = faulty.clone();
        let (mut journal, recovered) = Journal::open(&disk, &bed.path, SCHEMA).unwrap();
        faulty.fail_once(step, ENOSPC);
        let result = journal.rewrite(&recovered.records);
        if faulty.operations().len() <= step {
            result.unwrap();
            break;
        }
        assert!(result.is_err());
        faulty.heal();
        let now = bed.bytes();
        assert!(now == first() || now == of(SCHEMA), "{step}");
        let refused = journal.append(b"more", Sync::Yes).unwrap_err();
        assert!(refused.wants_rewrite(), "{refused}");
        assert_eq!(bed.bytes(), now);
        journal.rewrite(&recovered.records).unwrap();
        assert_eq!(bed.bytes(), of(SCHEMA));
    }
}

#[test]
fn a_file_that_was_cut_while_it_was_older_is_read_as_far_as_it_goes() {
    let whole = first();
    for len in 0..whole.len() {
        let bed = Bed::new();
        bed.write(&whole[..len]);
        let (journal, recovered) = bed.open();
        assert_eq!(recovered.records, samples()[..recovered.records.len()], "{len}");
        assert_eq!((recovered.corrupt.len(), journal.is_older()), (0, len >= 8), "{len}");
    }
}

#[test]
fn newer_files_are_refused_in_one_line() {
    let bed = Bed::new();
    let newer = by(of(Schema::new(b"sample", 3)), b"0.4.0");
    assert_eq!(
        refused(&bed, &newer),
        "PATH: written by checkvalve 0.4.0 (records of version 3; this program reads up to 2); \
         run that version or a newer one"
    );
    let mut container = newer.clone();
    container[..8].copy_from_slice(&magic(3));
    assert_eq!(
        refused(&bed, &container),
        "PATH: written by checkvalve 0.4.0 (a journal of version 3; this program reads up to 2); \
         run that version or a newer one"
    );
    assert!(
        refused(&bed, &container[..10]).starts_with("PATH: written by a newer checkvalve (a journal of version 3;")
    );
    assert!(refused(&bed, &by(newer.clone(), b"0.4\n0")).starts_with("PATH: written by a newer checkvalve (records"));
    // Also with a damaged header, with records or without.
    for damaged in flipped(&newer, HEADER).chain(flipped(&newer[..HEADER], 14)) {
        let line = refused(&bed, &damaged);
        assert!(line.contains("records of version 3") || line.contains("a journal of version"), "{line}");
    }
}

#[test]
fn journals_of_something_else_are_refused() {
    let bed = Bed::new();
    let other = of(Schema::new(b"ledger", 1));
    assert_eq!(refused(&bed, &other), "PATH: a journal of \"ledger\", not of \"sample\"; move the file away");
    for damaged in flipped(&other, HEADER) {
        refused(&bed, &damaged);
    }
}

#[test]
fn a_damaged_header_is_told_by_the_records() {
    for (bytes, header) in [(first(), 8), (of(Schema::new(b"sample", 1)), HEADER), (of(SCHEMA), HEADER)] {
        let bed = Bed::new();
        bed.write(&bytes);
        let (version, older) = (bed.open().1.version, bed.open().0.is_older());
        let gone = [&vec![0xa5; header][..], &bytes[header..]].concat();
        for damaged in flipped(&bytes, header).chain([gone]) {
            // Of a newer container, as far as it says.
            if damaged[6] == !damaged[7] && damaged[6] > 2 {
                continue;
            }
            bed.write(&damaged);
            let (journal, recovered) = bed.open();
            assert_eq!((recovered.version, journal.is_older()), (version, older));
            assert_eq!(recovered.records, samples());
            let corrupt = CorruptRange { offset: 0, len: header as u64 };
            assert_eq!((recovered.torn_bytes, recovered.corrupt), (0, vec![corrupt]));
            // Mended, but for what is rewritten as a whole.
            assert_eq!(bed.bytes(), if older { damaged } else { of(SCHEMA) });
        }
    }
}
