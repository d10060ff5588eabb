use checkvalve_host::disk::Free;
use checkvalve_protocol::id::SessionId;
use checkvalve_protocol::receive::{Limits as Memory, Reassembly, Wanted};
use checkvalve_protocol::time::Time;
use checkvalve_protocol::wire::{Content, Header, Symbol};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::*;
use crate::ranges::PAGE;

fn open(dir: &Path, limits: Limits) -> Store {
    Store::open(Arc::new(OsDisk), &dir.join("staging"), [1; 16], Space::new(limits), CROWD).unwrap()
}

/// What `du` says of the bundles in staging: bytes and inodes. A file system that needs no page for a name has less.
fn on_disk(path: &Path) -> (u64, u64) {
    let Ok(meta) = path.symlink_metadata() else { return (0, 0) };
    let mut sum = (meta.blocks() * 512, 1);
    if meta.is_dir() {
        for entry in path.read_dir().unwrap() {
            let inside = on_disk(&entry.unwrap().path());
            sum = (sum.0 + inside.0, sum.1 + inside.1);
        }
    }
    sum
}

/// Nothing is on the disk that is not counted.
fn assert_counted(store: &Store) {
    for staged in store.all() {
        let (bytes, files) = on_disk(staged.dir());
        let cost = staged.cost();
        assert!(cost.bytes >= bytes && cost.files >= files, "{cost:?}, on the disk {bytes} {files}");
    }
    assert_eq!(store.space().used(), store.all().iter().map(|staged| staged.cost()).sum());
}

fn assert_nothing(store: &Store) {
    for staged in store.all() {
        store.remove(staged.id).unwrap();
    }
    let space = store.space();
    assert_eq!((space.used(), space.unsigned(), space.unsigned_bundles()), Default::default());
    assert_eq!(space.of(&default_channel()), Cost::default());
}

/// An unfinished block, as it leaves memory.
fn unfinished(id: BundleId, oti: Oti, sbn: u32) -> ReceivedBlock {
    let seconds = Duration::from_secs(9);
    let mut reassembly =
        Reassembly::new(Memory { objects: 4, idle: seconds, ask_again: seconds, ..Memory::new(1 << 20) });
    let content = Content::Symbol(Symbol { bundle: id, kind: ObjectKind::Data, sbn, esi: 0, oti });
    let header = Header { sealed: true, session: SessionId(1), counter: 0, content };
    let want = |_: &Symbol| Wanted::Yes {
        have: Default::default(),
        parked: Vec::new(),
        origin: checkvalve_protocol::receive::Origin::Signed,
    };
    reassembly.handle(Time(0), &header, &vec![7; oti.symbol_size().into()]).unwrap();
    reassembly.answer_all(Time(0), want);
    reassembly.park_all();
    reassembly.poll_parked().unwrap()
}

#[test]
fn all_of_it_is_counted_and_given_back() {
    for (sample, announced_at) in samples().into_iter().flat_map(|s| [0, 3].map(|at| (s.clone(), at))) {
        let dir = dir();
        let mut store = open(dir.path(), Limits::new(0, u64::MAX));
        for (n, sbn) in shuffled(sample.oti().blocks(), 3).into_iter().enumerate() {
            if n == announced_at {
                adopt(&store, &sample).unwrap();
            }
            let staged = store.begin(sample.id()).unwrap();
            store.keep_oti(&staged, &sample.oti()).unwrap();
            if sample.oti().block_symbols(sbn) > Some(1) {
                store.park(&staged, &unfinished(sample.id(), sample.oti(), sbn)).unwrap();
            }
            assert_counted(&store);
            put(&store, &sample, sbn).unwrap();
            store.drop_parked(&staged, ObjectKind::Data, &sample.oti(), sbn);
            assert_counted(&store);
            if n == 4 {
                drop((staged, store));
                store = open(dir.path(), Limits::new(0, u64::MAX));
                adopt(&store, &sample).unwrap();
                assert_counted(&store);
            }
        }
        adopt(&store, &sample).unwrap();
        let staged = store.get(sample.id()).unwrap();
        store.keep_object(&staged, ObjectKind::Hashes, &sample.hashes()).unwrap();
        while store.move_flat(&staged).unwrap() {
            assert_counted(&store);
        }
        assert_whole(&store, &sample);
        assert_counted(&store);
        assert_eq!(store.space().unsigned(), Cost::default());
        store.give_up_unsynced();
        assert_counted(&store);
        assert_nothing(&store);
    }
}

#[test]
fn several_threads_count_together() {
    let (dir, sample) = (dir(), Sample::tree(9, 1, &[4_096; 60]));
    let store = open(dir.path(), Limits::new(0, u64::MAX));
    let order = shuffled(sample.oti().blocks(), 8);
    let work = |part: &[u32]| {
        for &sbn in part {
            let Some(staged) = store.begin(sample.id()) else { continue };
            // One of them removes it under the others now and then.
            drop(store.park(&staged, &unfinished(sample.id(), sample.oti(), sbn)));
            drop(put(&store, &sample, sbn));
            store.drop_parked(&staged, ObjectKind::Data, &sample.oti(), sbn);
            match sbn % 50 {
                7 => drop(adopt(&store, &sample)),
                8 => drop(store.move_flat(&staged)),
                9 => drop(store.discard_ranges(&staged, &[0..4_096, 9_000..9_000])),
                10 => store.give_up_unsynced(),
                11 => drop(store.remove(sample.id())),
                _ => {}
            }
        }
    };
    std::thread::scope(|scope| {
        for part in order.chunks(order.len().div_ceil(4)) {
            scope.spawn(|| work(part));
        }
    });
    assert_eq!(store.space().used(), store.all().iter().map(|staged| staged.cost()).sum());
    assert_nothing(&store);
}

#[test]
fn whatever_fails_nothing_stays_counted() {
    let sample = &samples()[2];
    for nth in 0..200 {
        let bench = Bench::new();
        let store = bench.open(1);
        bench.disk.fail_once(nth, EIO);
        for (n, sbn) in shuffled(sample.oti().blocks(), 3).into_iter().enumerate() {
            if n == 3 {
                drop(adopt(&store, sample));
            }
            let staged = store.begin(sample.id()).unwrap();
            drop(store.park(&staged, &unfinished(sample.id(), sample.oti(), sbn)));
            drop(put(&store, sample, sbn));
            store.drop_parked(&staged, ObjectKind::Data, &sample.oti(), sbn);
            drop(store.move_flat(&staged));
        }
        if bench.disk.operations().len() < nth {
            return;
        }
        bench.disk.heal();
        assert_nothing(&store);
    }
}

#[test]
fn room_is_bounded_and_given_back() {
    let dir = dir();
    // Directory, flat file, two ranges in a page each, and the page more that each may be in.
    let store = open(dir.path(), Limits { unsigned_bytes: u64::MAX, ..Limits::new(0, 6 * 4_096) });
    let sample = Sample::file(1, 1, 40_000);
    put(&store, &sample, 0).unwrap();
    put(&store, &sample, 1).unwrap();
    put(&store, &sample, 20).unwrap();
    assert_eq!(store.space().staged(), 6 * 4_096);
    assert!(matches!(put(&store, &sample, 40), Err(StoreError::NoRoom)));
    assert_eq!(store.space().staged(), 6 * 4_096);
    store.remove(sample.id()).unwrap();
    assert_nothing(&store);
    put(&store, &sample, 40).unwrap();
    let full = Store::open(
        Arc::new(OsDisk),
        &dir.path().join("t"),
        [0; 16],
        Space::new(Limits::new(u64::MAX, u64::MAX)),
        CROWD,
    );
    assert!(matches!(put(&full.unwrap(), &sample, 2), Err(StoreError::NoRoom)));
}

/// Blocks of one symbol, each far from the next: a page and a range each, and a file for nothing else.
#[test]
fn whoever_cannot_sign_fills_no_more_than_his_part() {
    let dir = dir();
    let limits = Limits {
        unsigned_files: 200,
        unsigned_bundles: 3,
        ranges: 200,
        parked_blocks: 100,
        ..Limits::new(0, 32 << 20)
    };
    let store = open(dir.path(), limits);
    let (oti, two) = (Oti::new(1 << 30, 64, 1).unwrap(), Oti::new(1 << 30, 64, 2).unwrap());
    let (mut refused, mut stored, mut parked) = (0, 0, 0);
    for id in 0..20 {
        let Some(staged) = store.begin(BundleId(id)) else {
            refused += 1;
            continue;
        };
        for n in 0..2_000 {
            let offset = oti.block_offset(n * 200).unwrap();
            match store.write(&staged, oti.transfer_length(), offset, &[1; 64]) {
                Ok(()) => stored += 1,
                Err(StoreError::NoRoom) => {}
                Err(error) => panic!("{error}"),
            }
            match store.park(&staged, &unfinished(BundleId(id), two, n * 77)) {
                Ok(1) => parked += 1,
                Err(StoreError::NoRoom) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((refused, stored, parked), (17, 100, 50));
    assert!(store.space().unsigned().bytes <= 4 << 20);
    assert_counted(&store);
    // What is signed finds room all the same.
    let sample = &samples()[2];
    adopt(&store, sample).unwrap();
    put_all(&store, sample);
    assert_whole(&store, sample);
    assert_nothing(&store);
}

#[test]
fn a_channel_fills_no_more_than_its_share() {
    let dir = dir();
    let store = open(dir.path(), Limits::new(0, 1 << 30));
    let share = Share { bytes: 60_000, files: 30, ..Share::ALL };
    let (mine, other) = (Sample::file(1, 1, 90_000), Sample::file(2, 1, 90_000));
    for sample in [&mine, &other] {
        put(&store, sample, 0).unwrap();
    }
    let theirs = checkvalve_protocol::id::ChannelName::new("other").unwrap();
    let staged = store.begin_signed(mine.id(), &default_channel(), share);
    store.vouch(other.id(), &theirs, ALL);
    assert_eq!(staged.channel(), Some(default_channel()));
    assert_eq!((store.space().unsigned(), store.space().unsigned_bundles()), Default::default());
    let full = (0..mine.oti().blocks()).find(|&sbn| put(&store, &mine, sbn).is_err()).unwrap();
    assert!((70..100).contains(&full), "{full}");
    assert!(!store.fits(mine.id(), 4_096) && store.fits(other.id(), 4_096));
    put_all(&store, &other);
    // A tree that has more files than its channel may have is not begun.
    let many = Sample::tree(3, 3, &[0; 30]);
    assert!(matches!(
        store.adopt(&store.begin_signed(many.id(), &default_channel(), share), Arc::new(many.announce.clone()), &[1]),
        Err(StoreError::NoRoom)
    ));
    assert!(!store.get(many.id()).unwrap().out().exists());
    assert_nothing(&store);
    assert_eq!(store.space().of(&theirs), Cost::default());
}

/// Moving what came before the announce takes room twice; where there is none, the flat file is cut as it empties.
#[test]
fn moving_needs_no_more_room_than_it_has_to() {
    let bench = Bench::new();
    let size = 24 << 20;
    let sample = Sample::tree(1, 1, &[size / 2, size / 2]);
    let oti = Oti::new(size as u64, 8_192, 64).unwrap();
    let limits = Limits { unsigned_bytes: u64::MAX, ..Limits::new(0, size as u64 + (1 << 20)) };
    let store =
        Store::open(bench.disk.clone(), &bench.dir.path().join("s"), [1; 16], Space::new(limits), CROWD).unwrap();
    let staged = store.begin(sample.id()).unwrap();
    for sbn in 0..oti.blocks() {
        let at = oti.block_offset(sbn).unwrap();
        let bytes = &sample.data[at as usize..][..oti.block_len(sbn).unwrap()];
        store.write(&staged, size as u64, at, bytes).unwrap();
    }
    adopt(&store, &sample).unwrap();
    let (mut largest, mut rounds) = (0, 0);
    while store.move_flat(&staged).unwrap() {
        largest = largest.max(on_disk(staged.dir()).0);
        rounds += 1;
        assert!(rounds < 4);
    }
    assert_eq!(rounds, 2);
    assert!(largest <= size as u64 + (1 << 20), "{largest}");
    assert_whole(&store, &sample);
    assert_nothing(&store);
}

/// What is free is counted down by what is written, once, so that a large bundle is not kept out of a disk that has room.
#[test]
fn what_is_written_is_taken_once_from_what_is_free() {
    let dir = dir();
    let store = open(dir.path(), Limits::new(0, u64::MAX));
    let sample = Sample::file(6, 6, 100_000);
    adopt(&store, &sample).unwrap();
    let length = sample.data.len() as u64;
    let before = store.space().used().bytes;
    store.space().refresh(Free { bytes: 2 * length, files: u64::MAX });
    for sbn in 0..sample.oti().blocks() {
        put(&store, &sample, sbn).unwrap();
        assert!(store.fits(sample.id(), length - store.get(sample.id()).unwrap().fill().1), "block {sbn}");
    }
    let written = store.space().used().bytes - before;
    assert!(written >= length && written < length + length / 10, "{written}");
    assert_eq!(store.space().free(), 2 * length - written);
    assert_nothing(&store);
}

/// What it has not been signed for yet counts for no key, and is moved to its key's account once it is.
#[test]
fn a_key_that_has_its_share_begins_no_more_bundles() {
    let bench = Bench::new();
    let store = bench.open(1);
    let id = |n: u64| BundleId(n << 24 | 7);
    let channel = ChannelName::new("other").unwrap();
    store.space().set_key_share(Share { files: 10, ..Share::ALL });
    let mut taken = 0;
    for n in 0..100 {
        let staged = store.begin(id(n)).unwrap();
        taken += u64::from(store.write(&staged, 100, 0, &[7; 50]).is_ok());
        store.vouch(id(n), &channel, Share::ALL);
    }
    assert!((3..=5).contains(&taken), "{taken} bundles of two files each");
    assert!(store.space().of_key(id(0).tag()).files <= 11, "{:?}", store.space().of_key(id(0).tag()));
    let other = store.begin(BundleId(8)).unwrap();
    store.write(&other, 100, 0, &[7; 50]).unwrap();
}

/// What is written is counted once the journal says so. A kill may come in between.
#[test]
fn what_was_being_written_at_a_kill_leaves_at_the_next_start() {
    let bench = Bench::new();
    let sample = &samples()[0];
    let store = bench.open(1);
    put(&store, sample, 0).unwrap();
    let flat = store.get(sample.id()).unwrap().object(ObjectKind::Data);
    store.log().forget(sample.id()).unwrap();
    drop(store);
    assert!(flat.exists());
    let store = bench.open(1);
    assert!(!flat.exists());
    put_all(&store, sample);
    adopt(&store, sample).unwrap();
    assert_whole(&store, sample);
    assert!(!flat.exists(), "the only file takes its place");
}

#[test]
fn a_block_of_a_manifest_costs_every_page_that_it_is_in() {
    let bench = Bench::new();
    let store = open(bench.dir.path(), Limits::new(0, u64::MAX));
    let staged = store.begin(BundleId(1)).unwrap();
    let oti = Oti::new(100_000, 192, 8).unwrap();
    // Each crosses the end of a page.
    for sbn in [2, 5, 10, 13] {
        let block = vec![7; oti.block_len(sbn).unwrap()];
        assert!(store.assemble(&staged, ObjectKind::Hashes, &oti, sbn, &block).unwrap().is_none());
        assert_counted(&store);
    }
    assert_eq!(store.space().unsigned().bytes, (2 + 8) * PAGE, "a directory, a file, and two pages for each");
    assert_eq!(store.space().unsigned().ranges, 4);
}

/// The second file begins one byte before a page of the data object, so what ends with a page there crosses one in the file.
#[test]
fn a_range_costs_the_pages_that_it_is_in_in_its_file() {
    let dir = dir();
    let store = open(dir.path(), Limits::new(0, u64::MAX));
    let sample = Sample::tree(4, 4, &[4_095, 300_000]);
    adopt(&store, &sample).unwrap();
    let staged = store.get(sample.id()).unwrap();
    for n in (2..70).step_by(2) {
        let at = n * PAGE - 33;
        store.write(&staged, sample.data.len() as u64, at, &sample.data[at as usize..][..33]).unwrap();
        assert_counted(&store);
    }
    assert_nothing(&store);
}
