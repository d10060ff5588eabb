use super::*;
use checkvalve_host::disk::OsDisk;
use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::receive::{Limits, Reassembly, Wanted};
use checkvalve_protocol::time::Time;
use checkvalve_protocol::wire::{Content, Header, Symbol};
use std::time::Duration;

const DATA: ObjectKind = ObjectKind::Data;

/// Forty small blocks, of which many share a file.
fn small() -> Oti {
    Oti::new(64 * 400, 64, 10).unwrap()
}

/// Three blocks of 64 KiB.
fn large() -> Oti {
    Oti::new(3 << 16, 128, 512).unwrap()
}

fn symbol(oti: &Oti, sbn: u32, esi: u32) -> Vec<u8> {
    vec![(sbn * 17 + esi) as u8; oti.symbol_size().into()]
}

/// A block with these symbols.
fn block(oti: Oti, sbn: u32, esis: &[u32]) -> ReceivedBlock {
    let limits = Limits { objects: 4, idle: Duration::from_secs(9), ..Limits::new(1 << 20) };
    let mut reassembly = Reassembly::new(limits);
    for (counter, &esi) in esis.iter().enumerate() {
        let content = Content::Symbol(Symbol { bundle: BundleId(1), kind: DATA, sbn, esi, oti });
        let header = Header { sealed: true, session: SessionId(1), counter: counter as u64, content };
        let want = |_: &Symbol| Wanted::Yes {
            have: Default::default(),
            parked: Vec::new(),
            origin: checkvalve_protocol::receive::Origin::Signed,
        };
        reassembly.handle(Time(counter as u64), &header, &symbol(&oti, sbn, esi)).unwrap();
        reassembly.answer_all(Time(counter as u64), want);
    }
    reassembly.park_all();
    reassembly.poll_parked().unwrap()
}

/// The ESIs that come back beside `esi`.
fn given(parked: &Parked, dir: &Path, oti: Oti, sbn: u32, esi: u32) -> Vec<u32> {
    let mut again = block(oti, sbn, &[esi]);
    parked.give(&OsDisk, dir, &mut again).unwrap();
    let check = |(esi, bytes): (u32, &[u8])| (esi, assert_eq!(bytes, symbol(&oti, sbn, esi))).0;
    let mut esis: Vec<u32> = again.received_symbols().map(check).filter(|&found| found != esi).collect();
    esis.sort_unstable();
    esis
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

/// What the disk says that the directory and its files take.
fn counted(dir: &Path) -> (u64, u64) {
    let sizes = std::fs::read_dir(dir).unwrap().map(|entry| Cost::file(entry.unwrap().metadata().unwrap().len()));
    let cost = sizes.sum::<Cost>() + Cost::files(1);
    (cost.bytes, cost.files)
}

fn agrees(parked: &Parked, dir: &Path) {
    let cost = parked.cost();
    assert_eq!((cost.bytes, cost.files), counted(dir));
    let found = Parked::default();
    found.find(&OsDisk, dir).unwrap();
    assert_eq!(found.cost(), cost, "after a restart too");
}

#[test]
fn symbols_come_back_each_once() {
    for (oti, sbn) in [(small(), 0), (small(), 39), (large(), 2)] {
        let dir = crate::testing::dir();
        let dir = dir.path().join("parked");
        let parked = Parked::default();
        let one = block(oti, sbn, &[0, 1, 2]);
        let more = parked.more(&one);
        assert_eq!(parked.keep(&OsDisk, &dir, &one).unwrap(), 3);
        assert!(parked.cost().bytes <= more.bytes && parked.cost().files == more.files, "{more:?}");
        assert_eq!(parked.keep(&OsDisk, &dir, &block(oti, sbn, &[2, 5])).unwrap(), 4);
        agrees(&parked, &dir);
        let found = Parked::default();
        found.find(&OsDisk, &dir).unwrap();
        assert_eq!(found.of(DATA, &oti), [(sbn, 4)]);
        assert!(found.of(ObjectKind::Announce, &oti).is_empty());
        assert_eq!(given(&found, &dir, oti, sbn, 3), [0, 1, 2, 5]);
        assert!(found.drop_block(&OsDisk, &dir, DATA, &oti, sbn));
        assert_eq!(files(&dir), 0);
        assert_eq!(found.cost(), Cost::files(1));
        assert!(!found.drop_block(&OsDisk, &dir, DATA, &oti, sbn));
    }
}

#[test]
fn small_blocks_share_a_file_until_none_is_wanted() {
    let dir = crate::testing::dir();
    let dir = dir.path().join("parked");
    let parked = Parked::default();
    for sbn in 0..40 {
        parked.keep(&OsDisk, &dir, &block(small(), sbn, &[sbn % 10, 12])).unwrap();
    }
    assert_eq!((files(&dir), parked.cost().blocks), (1, 40));
    for sbn in 0..3 {
        parked.keep(&OsDisk, &dir, &block(large(), sbn, &[1])).unwrap();
    }
    assert_eq!((files(&dir), parked.cost().blocks), (4, 43));
    agrees(&parked, &dir);
    for sbn in 0..39 {
        assert!(parked.drop_block(&OsDisk, &dir, DATA, &small(), sbn));
        agrees(&parked, &dir);
    }
    assert_eq!(given(&parked, &dir, small(), 39, 0), [9, 12]);
    assert_eq!(given(&parked, &dir, small(), 38, 0), [0; 0], "what was dropped does not come back");
    parked.keep(&OsDisk, &dir, &block(small(), 38, &[4])).unwrap();
    let found = Parked::default();
    found.find(&OsDisk, &dir).unwrap();
    assert_eq!(found.of(DATA, &small()), [(38, 1), (39, 2)]);
    assert_eq!(given(&found, &dir, small(), 38, 0), [4]);
    for sbn in [38, 39] {
        found.drop_block(&OsDisk, &dir, DATA, &small(), sbn);
    }
    assert_eq!(files(&dir), 3);
}

#[test]
fn dropped_blocks_do_not_make_a_file_grow_without_end() {
    let dir = crate::testing::dir();
    let dir = dir.path().join("parked");
    let parked = Parked::default();
    parked.keep(&OsDisk, &dir, &block(small(), 0, &[1, 2, 3])).unwrap();
    // Two blocks of a hundred at a time would fill it many times over.
    for _ in 0..20_000 {
        parked.keep(&OsDisk, &dir, &block(small(), 7, &[1, 2, 3, 4])).unwrap();
        parked.drop_block(&OsDisk, &dir, DATA, &small(), 7);
    }
    assert!(parked.cost().bytes <= most(&small()) + 3 * 4_096, "{:?}", parked.cost());
    agrees(&parked, &dir);
    assert_eq!(given(&parked, &dir, small(), 0, 0), [1, 2, 3]);
}

#[test]
fn what_is_torn_or_damaged_is_left_out() {
    let dir = crate::testing::dir();
    let dir = dir.path().join("parked");
    let parked = Parked::default();
    parked.keep(&OsDisk, &dir, &block(small(), 0, &[0, 1, 2])).unwrap();
    let path = dir.join(name(DATA, &small(), 0));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[76 + 30] ^= 1;
    bytes.truncate(3 * 76 - 1);
    std::fs::write(&path, bytes).unwrap();
    let parked = Parked::default();
    parked.find(&OsDisk, &dir).unwrap();
    assert_eq!(given(&parked, &dir, small(), 0, 7), [0]);
    assert_eq!(parked.keep(&OsDisk, &dir, &block(small(), 0, &[1, 8])).unwrap(), 3);
    assert_eq!(given(&parked, &dir, small(), 0, 7), [0, 1, 8]);
    parked.keep(&OsDisk, &dir, &block(small(), 1, &[3])).unwrap();
    assert_eq!(given(&parked, &dir, small(), 1, 7), [3]);
}

#[test]
fn what_is_no_such_file_goes() {
    let dir = crate::testing::dir();
    for name in ["nonsense", "2-640-64-10-0", "blocks-2-640-64-10-1", "blocks-2-640-64-10-0"] {
        std::fs::write(dir.path().join(name), [0; 72]).unwrap();
    }
    let parked = Parked::default();
    parked.find(&OsDisk, dir.path()).unwrap();
    assert_eq!(files(dir.path()), 0);
    assert_eq!(parked.cost(), Cost::files(1));
}

#[test]
fn blocks_are_found_by_their_bytes() {
    let dir = crate::testing::dir();
    let dir = dir.path().join("parked");
    let parked = Parked::default();
    for sbn in [0, 1, 5] {
        parked.keep(&OsDisk, &dir, &block(small(), sbn, &[0])).unwrap();
    }
    let found = |range| parked.in_range(&range).into_iter().map(|(_, sbn)| sbn).collect::<Vec<_>>();
    assert_eq!(found(639..640), [0]);
    assert_eq!(found(640..641), [1]);
    assert_eq!(found(0..4_000), [0, 1, 5]);
    assert_eq!(found(1_280..3_200), [0; 0]);
}

#[test]
fn the_layout_of_a_file_is_that_of_its_name() {
    let dir = crate::testing::dir();
    let dir = dir.path().join("parked");
    let parked = Parked::default();
    parked.keep(&OsDisk, &dir, &block(small(), 0, &[0, 1])).unwrap();
    parked.keep(&OsDisk, &dir, &block(small(), 3, &[9, 300])).unwrap();
    assert!(parked.drop_block(&OsDisk, &dir, DATA, &small(), 0));
    let path = dir.join("blocks-2-25600-64-10-0");
    let made = std::fs::read(&path).unwrap();
    let vector = crate::testing::vector("parked-blocks", &made);
    assert!(made == vector, "a layout is never changed");
    std::fs::write(&path, vector).unwrap();
    // Of another layout, as a newer program may leave it: it can come again.
    std::fs::write(dir.join("blocks2-2-25600-64-10-1"), b"whatever").unwrap();
    let parked = Parked::default();
    parked.find(&OsDisk, &dir).unwrap();
    assert_eq!((parked.of(DATA, &small()), files(&dir)), (vec![(3, 2)], 1));
    assert_eq!(given(&parked, &dir, small(), 3, 8), [9, 300]);
}
