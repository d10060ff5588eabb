//! How many files are open.

use super::*;

#[test]
fn however_many_bundles_are_under_way_few_of_their_files_are_open() {
    let bench = Bench::new();
    let store = bench.open(1);
    store.keep_open(3);
    // Flat files, files of a tree, and a flat file beside the tree.
    let mut samples: Vec<Sample> = (1..=20).map(|n| Sample::file(n, n, 5_000)).collect();
    samples.extend((21..=30).map(|n| Sample::tree(n, n, &[3_000, 1_000, 4_000])));
    let blocks = |sample: &Sample| sample.oti().blocks();
    let last = samples.iter().map(blocks).max().unwrap();
    for sbn in 0..last {
        for (n, sample) in samples.iter().enumerate() {
            if n % 3 == 0 && sbn == n as u32 % 4 {
                adopt(&store, sample).unwrap();
            }
            if sbn < blocks(sample) {
                put(&store, sample, sbn).unwrap();
            }
            assert!(store.open.count() <= 3, "{} are open", store.open.count());
        }
    }
    for sample in &samples {
        adopt(&store, sample).unwrap();
        assert_whole(&store, sample);
        store.remove(sample.id()).unwrap();
    }
    assert_eq!(store.open.count(), 0);
}

#[test]
fn parts_of_signed_objects_are_closed_for_others_and_go_on() {
    let bench = Bench::new();
    let store = bench.open(1);
    store.keep_open(1);
    let object: Vec<u8> = (0..5_000_u32).map(|n| n as u8).collect();
    let oti = Oti::new(object.len() as u64, 64, 8).unwrap();
    let kinds = [ObjectKind::Announce, ObjectKind::Hashes];
    let ids: Vec<_> = (1..=4).map(|n| Sample::file(n, n, 1).id()).collect();
    let mut whole = 0;
    for sbn in 0..oti.blocks() {
        let start = oti.block_offset(sbn).unwrap() as usize;
        let block = &object[start..start + oti.block_len(sbn).unwrap()];
        for (&id, kind) in ids.iter().flat_map(|id| kinds.map(|kind| (id, kind))) {
            let staged = store.begin(id).unwrap();
            if let Some(found) = store.assemble(&staged, kind, &oti, sbn, block).unwrap() {
                assert_eq!(found, object);
                whole += 1;
            }
            assert!(store.open.count() <= 1);
        }
    }
    assert_eq!((whole, store.open.count()), (8, 0));
}
