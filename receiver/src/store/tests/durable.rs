//! What a power cut leaves, and what is not believed after a sync that failed.

use super::*;

/// How many writes there were since the count began.
fn writes(bench: &Bench) -> usize {
    bench.disk.operations().into_iter().filter(|op| *op == "write_all_at").count()
}

#[test]
fn a_reboot_loses_what_was_not_synced() {
    let bench = Bench::new();
    let sample = &samples()[3];
    let store = bench.open(1);
    adopt(&store, sample).unwrap();
    put(&store, sample, 0).unwrap();
    put(&store, sample, 4).unwrap();
    store.checkpoint().unwrap();
    put(&store, sample, 1).unwrap();
    drop(store);
    let store = bench.open(2);
    adopt(&store, sample).unwrap();
    let have = store.have(sample.id(), ObjectKind::Data, &sample.oti());
    assert_eq!(have.iter().flatten().collect::<Vec<_>>(), [0, 4]);
    put_all(&store, sample);
    assert_whole(&store, sample);
}

#[test]
fn a_failed_sync_gives_up_what_it_should_have_kept() {
    let bench = Bench::new();
    let sample = &samples()[0];
    let store = bench.open(1);
    adopt(&store, sample).unwrap();
    put(&store, sample, 0).unwrap();
    store.checkpoint().unwrap();
    put(&store, sample, 1).unwrap();
    bench.disk.fail_once(0, 5);
    assert!(store.checkpoint().is_err());
    let have = store.have(sample.id(), ObjectKind::Data, &sample.oti());
    assert_eq!(have.iter().flatten().collect::<Vec<_>>(), [0]);
    put_all(&store, sample);
    assert_whole(&store, sample);
}

#[test]
fn what_was_written_before_a_sync_failed_and_noted_after_it_is_given_up() {
    let bench = Bench::new();
    let sample = &samples()[0];
    let store = Arc::new(bench.open(1));
    // Before the announce is known, in the flat file.
    put(&store, sample, 0).unwrap();
    bench.disk.heal();
    put(&store, sample, 1).unwrap();
    let nth = bench.disk.operations().iter().position(|&op| op == "start_writeback").unwrap();
    let other = Arc::clone(&store);
    bench.disk.interrupt(nth, move || other.give_up_unsynced());
    assert!(matches!(put(&store, sample, 2), Err(StoreError::Disk(_))));
    let have = |store: &Store| store.have(sample.id(), ObjectKind::Data, &sample.oti());
    assert!(have(&store).iter().next().is_none(), "{:?}", have(&store));
    store.checkpoint().unwrap();
    put(&store, sample, 2).unwrap();
    assert_eq!(have(&store).iter().flatten().collect::<Vec<_>>(), [2]);
    adopt(&store, sample).unwrap();
    put_all(&store, sample);
    assert_whole(&store, sample);
}

#[test]
fn what_was_copied_to_its_files_before_a_sync_failed_is_still_in_the_flat_file() {
    let sample = &samples()[2];
    let flat = || {
        let bench = Bench::new();
        let store = Arc::new(bench.open(1));
        put_all(&store, sample);
        store.checkpoint().unwrap();
        adopt(&store, sample).unwrap();
        let staged = store.get(sample.id()).unwrap();
        bench.disk.heal();
        (bench, store, staged)
    };
    let (bench, store, staged) = flat();
    assert!(store.move_flat(&staged).unwrap());
    let writes = bench.disk.operations().into_iter().enumerate().filter(|(_, op)| *op == "write_all_at");
    let (second, _) = writes.take(2).last().unwrap();
    let (bench, store, staged) = flat();
    let other = Arc::clone(&store);
    bench.disk.interrupt(second, move || other.give_up_unsynced());
    assert!(matches!(store.move_flat(&staged), Err(StoreError::Disk(_))));
    let blocks = staged.blocks();
    assert_eq!(blocks.stored.flat.len(), sample.data.len() as u64, "all of it is where it was synced");
    drop(blocks);
    bench.disk.heal();
    assert_whole(&store, sample);
}

/// A sync may have failed just before the daemon was killed, so that nobody could say so, and the next sync is good.
#[test]
fn what_no_sync_was_seen_of_before_a_kill_is_written_again_before_the_next() {
    for sample in [&samples()[0], &samples()[2]] {
        let bench = Bench::new();
        let again = |store: Store| {
            drop(store);
            let store = bench.open(1);
            adopt(&store, sample).unwrap();
            let staged = store.get(sample.id()).unwrap();
            (store, staged)
        };
        let store = bench.open(1);
        put(&store, sample, 0).unwrap();
        adopt(&store, sample).unwrap();
        (1..sample.oti().blocks()).for_each(|sbn| put(&store, sample, sbn).unwrap());
        let whole = 0..sample.data.len() as u64;
        let may_have_lost = |store: &Store, staged: &Staged| store.may_have_lost(staged, std::slice::from_ref(&whole));
        assert!(!may_have_lost(&store, &store.get(sample.id()).unwrap()));
        let (store, staged) = again(store);
        assert!(store.is_doubtful(&staged), "a kill");
        bench.disk.heal();
        store.checkpoint().unwrap();
        assert!(writes(&bench) > 1, "each part is written again before the journal says that it is synced");
        assert!(store.is_doubtful(&staged), "what was in the cache may not have been what came");
        while store.move_flat(&staged).unwrap() {}
        store.read_again(&staged, &store.tree(&staged).unwrap().unwrap()).unwrap();
        assert!(!store.is_doubtful(&staged) && may_have_lost(&store, &staged));
        assert_whole(&store, sample);
        store.checkpoint().unwrap();
        let (store, staged) = again(store);
        assert!(!may_have_lost(&store, &staged), "all of it was written again and synced");
        store.give_up_unsynced();
        for _ in 0..2 {
            let (store, staged) = again(bench.open(1));
            assert!(store.is_doubtful(&staged), "the journal says that one failed, until the machine is started again");
        }
        let store = bench.open(2);
        adopt(&store, sample).unwrap();
        let staged = store.get(sample.id()).unwrap();
        assert!(!may_have_lost(&store, &staged));
        assert_whole(&store, sample);
    }
}

#[test]
fn that_a_sync_failed_is_written_down_as_soon_as_the_disk_allows() {
    for failing in 1..6 {
        let bench = Bench::new();
        let sample = &samples()[0];
        let store = bench.open(1);
        adopt(&store, sample).unwrap();
        put(&store, sample, 0).unwrap();
        // The sync fails, and so does all that follows, so that this cannot be written down either.
        bench.disk.fail_from(0, EIO);
        assert!(store.checkpoint().is_err());
        (0..failing).for_each(|_| store.mend());
        assert!(put(&store, sample, 1).is_err(), "nothing is stored on top of it");
        bench.disk.heal();
        store.mend();
        drop(store);
        let store = bench.open(1);
        assert_eq!(store.get(sample.id()).unwrap().fill().1, 0, "the kernel may have dropped what it could not write");
        put(&store, sample, 0).unwrap();
        assert_eq!(store.get(sample.id()).unwrap().fill().1, 512);
    }
}

/// Until a checkpoint covers the move, a power cut leaves only what the flat file has.
#[test]
fn a_flat_file_that_a_power_cut_would_need_stays_over_a_restart() {
    let sample = &samples()[2];
    let scene = || {
        let bench = Bench::new();
        let store = bench.open(1);
        put_all(&store, sample);
        store.checkpoint().unwrap();
        adopt(&store, sample).unwrap();
        bench.disk.heal();
        (bench, store)
    };
    let move_all = |store: &Store| while store.move_flat(&store.get(sample.id()).unwrap()).is_ok_and(|more| more) {};
    let (bench, store) = scene();
    move_all(&store);
    let before = bench.disk.operations().iter().position(|op| *op == "sync_fs").unwrap();
    // Killed when all has moved: the checkpoint before the flat file is cut fails.
    let (bench, store) = scene();
    bench.disk.fail_from(before, ENOSPC);
    move_all(&store);
    bench.disk.heal();
    drop(store);
    let store = bench.open(1);
    adopt(&store, sample).unwrap();
    let flat = store.get(sample.id()).unwrap().object(ObjectKind::Data);
    assert!(flat.exists());
    drop(store);
    // The power goes: what had moved is in the flat file.
    let store = bench.open(2);
    adopt(&store, sample).unwrap();
    assert_eq!(store.get(sample.id()).unwrap().fill().1, sample.data.len() as u64);
    assert_whole(&store, sample);
    assert!(!flat.exists(), "it is cut once a checkpoint covers what has moved");
}

#[test]
fn what_is_in_files_is_written_again_once_its_announce_is_taken_again() {
    let (bench, sample) = (Bench::new(), &samples()[0]);
    let store = bench.open(1);
    adopt(&store, sample).unwrap();
    put_all(&store, sample);
    drop(store);
    let store = bench.open(1);
    let written = |store: &Store| {
        bench.disk.heal();
        store.checkpoint().unwrap();
        writes(&bench)
    };
    let before = written(&store);
    let staged = store.get(sample.id()).unwrap();
    assert!(!staged.object(ObjectKind::Data).exists(), "a checkpoint makes nothing");
    adopt(&store, sample).unwrap();
    assert!(written(&store) > before);
    assert_eq!(written(&store), before, "once");
}
