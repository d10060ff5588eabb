mod costs;
mod discard;
mod durable;
mod flat;
mod open;

use checkvalve_host::disk::OsDisk;
use checkvalve_host::disk::fault::FailNth;
use checkvalve_protocol::manifest::EntryKind;

use super::*;
use crate::testing::{Sample, default_channel, dir, shuffled};
use space::Limits;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const ALL: Share = Share::ALL;

struct Bench {
    dir: tempfile::TempDir,
    disk: Arc<FailNth>,
}

impl Bench {
    fn new() -> Self {
        Self { dir: crate::testing::dir(), disk: Arc::new(FailNth::new(Arc::new(OsDisk))) }
    }

    fn open(&self, boot: u8) -> Store {
        let root = self.dir.path().join("staging");
        Store::open(self.disk.clone(), &root, [boot; 16], Space::new(Limits::new(0, u64::MAX)), CROWD).unwrap()
    }
}

fn adopt(store: &Store, sample: &Sample) -> Result<(), StoreError> {
    let staged = store.begin_signed(sample.id(), &default_channel(), ALL);
    store.adopt(&staged, Arc::new(sample.announce.clone()), &sample.signed())
}

fn put(store: &Store, sample: &Sample, sbn: u32) -> Result<(), StoreError> {
    let offset = sample.oti().block_offset(sbn).unwrap();
    store.write(&store.begin(sample.id()).unwrap(), sample.data.len() as u64, offset, sample.block(sbn))
}

fn put_all(store: &Store, sample: &Sample) {
    (0..sample.oti().blocks()).for_each(|sbn| put(store, sample, sbn).unwrap());
}

/// Moves and hashes what is left; asserts that the bytes in the files hash to what they should.
fn assert_whole(store: &Store, sample: &Sample) {
    let staged = store.get(sample.id()).unwrap();
    assert!(staged.is_whole());
    while store.move_flat(&staged).unwrap() {}
    assert!(store.catch_up(&staged, u64::MAX).unwrap());
    let tree = store.tree(&staged).unwrap().unwrap();
    assert_eq!(store.differing(&staged, &tree, &sample.digests()).unwrap(), [0; 0]);
    for (span, digest) in tree.files().iter().zip(sample.digests()).filter(|(span, _)| span.size > 0) {
        let path = tree.root().join(tree.announce().entries.at(span.entry as usize).path.as_path());
        assert_eq!(blake3::hash(&std::fs::read(path).unwrap()), digest);
    }
}

fn samples() -> Vec<Sample> {
    vec![
        Sample::file(1, 1, 5_000),
        Sample::file(2, 2, 1),
        Sample::tree(3, 3, &[0, 1, 511, 512, 513, 3_000, 0, 7, 1_024]),
        Sample::tree(4, 4, &[9_000, 0]),
        Sample::tree(5, 5, &[40; 60]),
    ]
}

#[test]
fn any_order_of_blocks_and_announce_gives_the_same_files() {
    for (seed, sample) in samples().into_iter().flat_map(|s| (0..12).map(move |seed| (seed, s.clone()))) {
        let bench = Bench::new();
        let store = bench.open(1);
        let order =
            if seed == 0 { (0..sample.oti().blocks()).collect() } else { shuffled(sample.oti().blocks(), seed) };
        let announced_at = order.len() * seed as usize / 11;
        for (n, &sbn) in order.iter().enumerate() {
            if n == announced_at {
                adopt(&store, &sample).unwrap();
            }
            put(&store, &sample, sbn).unwrap();
            put(&store, &sample, sbn).unwrap();
        }
        adopt(&store, &sample).unwrap();
        assert_whole(&store, &sample);
        assert!(!store.begin(sample.id()).unwrap().object(ObjectKind::Data).exists());
    }
}

#[test]
fn blocks_in_order_are_never_read_back() {
    let bench = Bench::new();
    let store = bench.open(1);
    let sample = &samples()[2];
    adopt(&store, sample).unwrap();
    bench.disk.heal();
    put_all(&store, sample);
    assert_eq!(store.get(sample.id()).unwrap().hashed(), sample.data.len() as u64);
    assert!(!bench.disk.operations().iter().any(|op| op.starts_with("read")), "{:?}", bench.disk.operations());
}

/// Making files may take longer than the wire waits: a block of many is one write, and they are made when it moves.
#[test]
fn a_block_of_many_files_is_one_write_until_it_moves() {
    let bench = Bench::new();
    let store = bench.open(1);
    let sample = Sample::tree(5, 5, &[40; 60]);
    adopt(&store, &sample).unwrap();
    let files = |bench: &Bench| bench.disk.operations().iter().filter(|op| op.starts_with("create_new")).count();
    let staged = store.get(sample.id()).unwrap();
    let flat = staged.object(ObjectKind::Data);
    bench.disk.heal();
    for sbn in 0..sample.oti().blocks() {
        put(&store, &sample, sbn).unwrap();
        assert_eq!(files(&bench), 1, "{:?}", bench.disk.operations());
    }
    assert!(staged.is_whole() && staged.has_to_move() && flat.exists());
    assert!(!store.catch_up(&staged, u64::MAX).unwrap(), "hashed, but not in its files");
    assert!(store.move_flat(&staged).unwrap());
    assert_eq!(files(&bench), 1 + 60);
    assert!(!staged.has_to_move() && !flat.exists());
    assert_whole(&store, &sample);
}

#[test]
fn reading_back_leaves_a_finished_file_its_mode() {
    let dir = dir();
    let sample = Sample::tree(1, 1, &[3_000, 5_000, 4_000, 2_000]);
    let tree = Tree::new(
        Arc::new(OsDisk),
        dir.path().join("out"),
        Arc::new(sample.announce.clone()),
        OpenFiles::new(1).group(),
    );
    tree.create_directories().unwrap();
    tree.write(0, &sample.data).unwrap();
    for (n, part) in sample.data.chunks(700).enumerate() {
        let mut buf = vec![0; part.len()];
        tree.read(n as u64 * 700, &mut buf).unwrap();
        assert_eq!(buf, part);
    }
    for span in tree.files().iter() {
        let entry = sample.announce.entries.at(span.entry as usize);
        let EntryKind::File { mode, .. } = entry.kind else { unreachable!() };
        let meta = OsDisk.lstat(&tree.root().join(entry.path.as_path())).unwrap();
        assert_eq!(meta.mode & 0o7777, u32::from(mode), "{entry:?}");
    }
}

#[test]
fn a_restart_of_the_daemon_loses_no_block_at_any_point() {
    for sample in samples() {
        let order = shuffled(sample.oti().blocks(), 5);
        for stop in 0..=order.len() {
            for announced_at in [0, stop / 2, stop] {
                let bench = Bench::new();
                let store = bench.open(1);
                for (n, &sbn) in order[..stop].iter().enumerate() {
                    if n == announced_at {
                        adopt(&store, &sample).unwrap();
                    }
                    put(&store, &sample, sbn).unwrap();
                }
                drop(store);
                let store = bench.open(1);
                adopt(&store, &sample).unwrap();
                let have = store.have(sample.id(), ObjectKind::Data, &sample.oti());
                assert!(order[..stop].iter().all(|&sbn| have.contains(sbn)) && have.len() == stop as u64);
                for &sbn in &order[stop..] {
                    put(&store, &sample, sbn).unwrap();
                }
                assert_whole(&store, &sample);
            }
            if sample.data.len() > 4_000 && stop > 3 {
                break;
            }
        }
    }
}

#[test]
fn a_crash_between_rename_and_journal_loses_nothing() {
    let bench = Bench::new();
    let sample = &samples()[0];
    let store = bench.open(1);
    for sbn in 0..5 {
        put(&store, sample, sbn).unwrap();
    }
    let staged = store.get(sample.id()).unwrap();
    drop(store);
    std::fs::create_dir(staged.out()).unwrap();
    std::fs::rename(staged.object(ObjectKind::Data), staged.out().join("one file")).unwrap();
    let store = bench.open(1);
    adopt(&store, sample).unwrap();
    assert_eq!(store.have(sample.id(), ObjectKind::Data, &sample.oti()).len(), 5);
    for sbn in 5..sample.oti().blocks() {
        put(&store, sample, sbn).unwrap();
    }
    assert_whole(&store, sample);
}

#[test]
fn the_journal_of_an_empty_staging_is_short_again() {
    let bench = Bench::new();
    let store = bench.open(1);
    let sample = &samples()[0];
    let len = || std::fs::metadata(bench.dir.path().join("staging/journal")).unwrap().len();
    let before = len();
    while len() <= 256 << 10 {
        (0..100).for_each(|id| drop(store.begin_signed(BundleId(1_000 + id), &default_channel(), ALL)));
        (0..100).for_each(|id| store.remove(BundleId(1_000 + id)).unwrap());
    }
    // Not while there is anything in staging.
    adopt(&store, sample).unwrap();
    put(&store, sample, 0).unwrap();
    store.mend();
    assert!(len() > 256 << 10);
    store.remove(sample.id()).unwrap();
    bench.disk.heal();
    bench.disk.fail_from(0, 28);
    store.mend();
    assert!(len() > 256 << 10, "the disk did not take it");
    bench.disk.heal();
    store.mend();
    assert!(len() <= before + 64, "{}", len());
    adopt(&store, sample).unwrap();
    put(&store, sample, 0).unwrap();
    drop(store);
    let have = bench.open(1).have(sample.id(), ObjectKind::Data, &sample.oti());
    assert!(have.contains(0));
}

#[test]
fn a_journal_that_could_not_be_synced_takes_blocks_again() {
    let bench = Bench::new();
    let sample = &samples()[0];
    let store = bench.open(1);
    adopt(&store, sample).unwrap();
    put(&store, sample, 0).unwrap();
    bench.disk.heal();
    store.checkpoint().unwrap();
    let nth = bench.disk.operations().iter().position(|&op| op == "sync_data").unwrap();
    put(&store, sample, 1).unwrap();
    bench.disk.fail_once(nth, 5);
    assert!(store.checkpoint().is_err());
    assert_eq!(bench.disk.operations()[nth], "sync_data");
    bench.disk.heal();
    put(&store, sample, 2).unwrap();
    store.checkpoint().unwrap();
    drop(store);
    // All that was stored is known, whatever was given up in between.
    let store = bench.open(2);
    adopt(&store, sample).unwrap();
    let have = store.have(sample.id(), ObjectKind::Data, &sample.oti());
    assert!(have.contains(0) && have.contains(2), "{have:?}");
    put_all(&store, sample);
    assert_whole(&store, sample);
}

#[test]
fn whatever_fails_the_block_may_come_again() {
    let sample = &samples()[2];
    let order = shuffled(sample.oti().blocks(), 3);
    let mut failed = 0;
    for nth in 0..400 {
        let bench = Bench::new();
        let store = bench.open(1);
        bench.disk.fail_once(nth, ENOSPC);
        let mut again = Vec::new();
        for (n, &sbn) in order.iter().enumerate() {
            if n == 3 && adopt(&store, sample).is_err() {
                again.push(u32::MAX);
            }
            match put(&store, sample, sbn) {
                Ok(()) => {}
                Err(StoreError::NoRoom) => again.push(sbn),
                Err(other) => panic!("{other}"),
            }
        }
        failed += again.len();
        for sbn in again {
            if sbn == u32::MAX { adopt(&store, sample).unwrap() } else { put(&store, sample, sbn).unwrap() }
        }
        let staged = store.get(sample.id()).unwrap();
        drop(store.move_flat(&staged));
        let done = bench.disk.operations().len();
        bench.disk.heal();
        assert_whole(&store, sample);
        if done < nth {
            break;
        }
    }
    assert!(failed > 20, "{failed}");
}

#[test]
fn another_partition_of_the_same_object_overwrites_nothing() {
    let bench = Bench::new();
    let store = bench.open(1);
    let sample = &samples()[0];
    adopt(&store, sample).unwrap();
    put(&store, sample, 0).unwrap();
    put(&store, sample, 2).unwrap();
    let other = Oti::new(sample.data.len() as u64, 128, 9).unwrap();
    let have = store.have(sample.id(), ObjectKind::Data, &other);
    assert!(have.is_empty(), "none of the larger blocks is covered");
    let staged = store.begin(sample.id()).unwrap();
    // Whoever has the link key but not the signing key may send this; what is hashed and stored stays.
    let lies = vec![0xee; other.block_len(0).unwrap()];
    store.write(&staged, sample.data.len() as u64, 0, &lies).unwrap();
    let tree = store.tree(&staged).unwrap().unwrap();
    let mut first = vec![0; 512];
    tree.read(0, &mut first).unwrap();
    assert_eq!(first, sample.data[..512]);
}

#[test]
fn several_threads_store_one_bundle() {
    let bench = Bench::new();
    let store = bench.open(1);
    let sample = Sample::tree(9, 1, &[4_096; 60]);
    adopt(&store, &sample).unwrap();
    let order = shuffled(sample.oti().blocks(), 8);
    std::thread::scope(|scope| {
        for part in order.chunks(order.len().div_ceil(4)) {
            let (store, sample) = (&store, &sample);
            scope.spawn(move || part.iter().for_each(|&sbn| put(store, sample, sbn).unwrap()));
        }
    });
    assert_whole(&store, &sample);
}

#[test]
fn a_sleeping_bundle_wakes_with_all_it_had() {
    for announced in [false, true] {
        let bench = Bench::new();
        let store = bench.open(1);
        let sample = &samples()[2];
        let digest = *blake3::hash(&sample.signed()).as_bytes();
        if announced {
            adopt(&store, sample).unwrap();
        }
        for sbn in 0..sample.oti().blocks() {
            put(&store, sample, sbn).unwrap();
            store.sleep(&store.begin(sample.id()).unwrap(), announced.then_some(digest));
        }
        adopt(&store, sample).unwrap();
        assert_whole(&store, sample);
    }
}

#[test]
fn a_long_manifest_comes_in_blocks() {
    let bench = Bench::new();
    let store = bench.open(1);
    let bytes: Vec<u8> = (0..5_000_u32).map(|n| n as u8).collect();
    let oti = Oti::new(5_000, 64, 8).unwrap();
    let staged = store.begin(BundleId(1)).unwrap();
    let last = oti.blocks() - 1;
    for sbn in shuffled(oti.blocks(), 2).into_iter().filter(|&sbn| sbn != last) {
        let offset = oti.block_offset(sbn).unwrap() as usize;
        let part = &bytes[offset..offset + oti.block_len(sbn).unwrap()];
        assert!(store.assemble(&staged, ObjectKind::Announce, &oti, sbn, part).unwrap().is_none());
    }
    assert_eq!(store.have(BundleId(1), ObjectKind::Announce, &oti).len(), u64::from(last));
    let part = &bytes[oti.block_offset(last).unwrap() as usize..];
    assert_eq!(store.assemble(&staged, ObjectKind::Announce, &oti, last, part).unwrap(), Some(bytes));
}
