use super::*;

/// Where each file of a sample is in its data object.
fn spans(sample: &Sample) -> Vec<std::ops::Range<u64>> {
    sample.announce.files().map(|file| file.offset..file.offset + file.size).collect()
}

/// What came with another content than was signed: the files `bad`.
fn spoilt(sample: &Sample, bad: &[usize]) -> Sample {
    let mut spoilt = sample.clone();
    for at in bad {
        let span = spans(sample)[*at].clone();
        spoilt.data[span.start as usize..span.end as usize].fill(0xbb);
    }
    spoilt
}

fn put_and_hash(store: &Store, sample: &Sample) {
    put_all(store, sample);
    let staged = store.get(sample.id()).unwrap();
    while store.move_flat(&staged).unwrap() {}
    assert!(store.catch_up(&staged, u64::MAX).unwrap());
}

fn wrong(store: &Store, sample: &Sample) -> Vec<usize> {
    let staged = store.get(sample.id()).unwrap();
    store.differing(&staged, &store.tree(&staged).unwrap().unwrap(), &sample.digests()).unwrap()
}

fn have(store: &Store, sample: &Sample) -> Vec<u32> {
    store.have(sample.id(), ObjectKind::Data, &sample.oti()).iter().flatten().collect()
}

/// The blocks that have no byte of the files `bad`.
fn untouched(sample: &Sample, bad: &[usize]) -> Vec<u32> {
    let touches = |sbn: &u32| {
        let start = sample.oti().block_offset(*sbn).unwrap();
        let end = start + sample.block(*sbn).len() as u64;
        bad.iter().any(|at| spans(sample)[*at].start < end && start < spans(sample)[*at].end)
    };
    (0..sample.oti().blocks()).filter(|sbn| !touches(sbn)).collect()
}

fn discard(store: &Store, sample: &Sample, bad: &[usize]) -> Result<(), StoreError> {
    let ranges: Vec<_> = bad.iter().map(|at| spans(sample)[*at].clone()).collect();
    store.discard_ranges(&store.get(sample.id()).unwrap(), &ranges)
}

fn sample() -> Sample {
    Sample::tree(3, 3, &[700, 1, 511, 2_000, 513, 3_000, 0, 7, 1_024])
}

const BAD: [&[usize]; 5] = [&[3], &[0], &[1, 5], &[8], &[0, 1, 2, 3, 4, 5, 7, 8]];

#[test]
fn only_what_touches_a_wrong_file_comes_again() {
    for bad in BAD {
        let (bench, sample) = (Bench::new(), sample());
        let store = bench.open(1);
        adopt(&store, &sample).unwrap();
        put_and_hash(&store, &spoilt(&sample, bad));
        assert_eq!(wrong(&store, &sample), bad);
        let cost = store.space().used();
        discard(&store, &sample, bad).unwrap();
        assert_eq!(have(&store, &sample), untouched(&sample, bad));
        // Where a page was shared it is counted on both sides now, and one page more for each range.
        assert!(store.space().used().bytes <= cost.bytes + 2 * 4_096 * bad.len() as u64);
        let staged = store.get(sample.id()).unwrap();
        assert!(!staged.is_whole() && !store.catch_up(&staged, u64::MAX).unwrap());
        let tree = store.tree(&staged).unwrap().unwrap();
        for at in bad {
            let entry = tree.announce().entries.at(tree.files().get(*at).unwrap().entry as usize);
            assert!(!tree.is_finished(*at) && !tree.root().join(entry.path.as_path()).exists());
        }
        // Blocks that were right come again too; only what is lacking of them is written.
        for sbn in shuffled(sample.oti().blocks(), 7) {
            put(&store, &sample, sbn).unwrap();
        }
        assert_whole(&store, &sample);
        store.remove(sample.id()).unwrap();
        assert_eq!(store.space().used(), Cost::default());
    }
}

#[test]
fn a_checkpoint_that_was_under_way_does_not_bring_it_back() {
    let (bench, sample) = (Bench::new(), sample());
    let store = Arc::new(bench.open(1));
    adopt(&store, &sample).unwrap();
    put_and_hash(&store, &spoilt(&sample, &[3]));
    bench.disk.heal();
    let (inside, data) = (Arc::clone(&store), sample.clone());
    bench.disk.interrupt(0, move || discard(&inside, &data, &[3]).unwrap());
    store.checkpoint().unwrap();
    assert_eq!(bench.disk.operations()[0], "sync_fs");
    assert_eq!(have(&store, &sample), untouched(&sample, &[3]));
    store.give_up_unsynced();
    let left = have(&store, &sample);
    assert!(untouched(&sample, &[3]).iter().all(|sbn| left.contains(sbn)) || left.is_empty());
    assert!(left.iter().all(|sbn| untouched(&sample, &[3]).contains(sbn)), "{left:?}");
    drop(store);
    for boot in [1, 2] {
        let store = bench.open(boot);
        assert!(have(&store, &sample).iter().all(|sbn| untouched(&sample, &[3]).contains(sbn)));
    }
}

/// A crash, and a power cut, at every step: each of the files is stored as before or not at all, and the bundle gets whole.
#[test]
fn a_crash_at_any_point_leaves_it_or_takes_it() {
    let bad = [1, 5];
    for (nth, boot) in (0..40).flat_map(|nth| [(nth, 1), (nth, 2)]) {
        let (bench, sample) = (Bench::new(), sample());
        let store = bench.open(1);
        adopt(&store, &sample).unwrap();
        put_and_hash(&store, &spoilt(&sample, &bad));
        store.checkpoint().unwrap();
        bench.disk.fail_from(nth, EIO);
        let done = discard(&store, &sample, &bad).is_ok();
        let steps = bench.disk.operations().len();
        bench.disk.heal();
        drop(store);
        let store = bench.open(boot);
        adopt(&store, &sample).unwrap();
        let left = have(&store, &sample);
        assert!(untouched(&sample, &bad).iter().all(|sbn| left.contains(sbn)), "{nth}: what is right stays");
        if done {
            assert_eq!(left, untouched(&sample, &bad));
        }
        // What is stored still is found wrong again.
        put_and_hash(&store, &sample);
        let again = wrong(&store, &sample);
        assert!(again.iter().all(|at| bad.contains(at)) && (again.is_empty() || !done), "{nth} {again:?}");
        discard(&store, &sample, &again).unwrap();
        put_and_hash(&store, &sample);
        assert_whole(&store, &sample);
        if done && steps <= nth {
            return;
        }
    }
    panic!("it never got through");
}

#[test]
fn one_failing_step_may_be_tried_again() {
    let bad = [3, 4];
    for nth in 0..40 {
        let (bench, sample) = (Bench::new(), sample());
        let store = bench.open(1);
        adopt(&store, &sample).unwrap();
        put_and_hash(&store, &spoilt(&sample, &bad));
        bench.disk.fail_once(nth, EIO);
        let first = discard(&store, &sample, &bad);
        let over = bench.disk.operations().len() <= nth;
        bench.disk.heal();
        discard(&store, &sample, &bad).unwrap();
        assert_eq!(have(&store, &sample), untouched(&sample, &bad));
        put_and_hash(&store, &sample);
        assert_whole(&store, &sample);
        if over {
            first.unwrap();
            return;
        }
    }
    panic!("it never got through");
}

#[test]
fn before_the_announce_it_goes_too() {
    let (bench, sample) = (Bench::new(), sample());
    let store = bench.open(1);
    for sbn in 0..sample.oti().blocks() {
        put(&store, &spoilt(&sample, &[3]), sbn).unwrap();
    }
    discard(&store, &sample, &[3]).unwrap();
    assert_eq!(have(&store, &sample), untouched(&sample, &[3]));
    put_all(&store, &sample);
    adopt(&store, &sample).unwrap();
    assert_whole(&store, &sample);
}
