//! The flat file: whoever sends first says how long it is, and nothing of that may be left.

use super::*;

/// Bytes that somebody sent of the same bundle as a longer object.
fn put_longer(store: &Store, sample: &Sample, more: usize) {
    let length = sample.data.len() as u64 + more as u64;
    let junk = vec![0xbb; more];
    store.write(&store.begin(sample.id()).unwrap(), length, sample.data.len() as u64, &junk).unwrap();
}

#[test]
fn of_an_object_of_another_length_nothing_stays() {
    let sample = &samples()[0];
    for step in 0.. {
        let bench = Bench::new();
        let store = bench.open(1);
        put_longer(&store, sample, 9_000);
        let flat = store.get(sample.id()).unwrap().object(ObjectKind::Data);
        bench.disk.fail_once(step, EIO);
        let failed = adopt(&store, sample).is_err();
        let staged = store.get(sample.id()).unwrap();
        // Where removing it failed, what is behind the object goes later.
        assert!(!flat.exists() || staged.stored().all.len() == 9_000 || step < 3, "{step}: it does not count");
        bench.disk.heal();
        for sbn in 0..sample.oti().blocks() {
            drop(put(&store, sample, sbn));
        }
        adopt(&store, sample).unwrap();
        put_all(&store, sample);
        assert_whole(&store, sample);
        let file = staged.tree().unwrap().sole_file().unwrap();
        assert_eq!(std::fs::metadata(file).unwrap().len(), sample.data.len() as u64, "{step}");
        if !failed {
            assert!(step > 3, "{step}");
            return;
        }
    }
}

#[test]
fn what_is_behind_the_object_in_the_flat_file_is_no_part_of_its_file() {
    let (bench, sample) = (Bench::new(), &samples()[0]);
    let store = bench.open(1);
    put(&store, sample, 0).unwrap();
    let flat = store.get(sample.id()).unwrap().object(ObjectKind::Data);
    std::fs::File::options().write(true).open(&flat).unwrap().set_len(50_000).unwrap();
    adopt(&store, sample).unwrap();
    let file = store.get(sample.id()).unwrap().tree().unwrap().sole_file().unwrap();
    assert_eq!(std::fs::metadata(file).unwrap().len(), sample.data.len() as u64);
}

#[test]
fn of_two_lengths_at_once_one_counts() {
    let (bench, sample) = (Bench::new(), &samples()[0]);
    let store = Arc::new(bench.open(1));
    bench.disk.heal();
    put(&store, sample, 0).unwrap();
    let nth = bench.disk.operations().iter().position(|&op| op == "start_writeback").unwrap();
    let bench = Bench::new();
    let store = Arc::new(bench.open(1));
    let (other, longer) = (Arc::clone(&store), sample.clone());
    bench.disk.interrupt(nth, move || put_longer(&other, &longer, 700));
    assert!(matches!(put(&store, sample, 0), Err(StoreError::Unwanted)));
    bench.disk.heal();
    let length = sample.data.len() as u64;
    assert_eq!(store.get(sample.id()).unwrap().stored().length, Some(length + 700));
    adopt(&store, sample).unwrap();
    assert_eq!(store.get(sample.id()).unwrap().fill(), (Some(length), 0), "the other one was not what was signed");
    put_all(&store, sample);
    assert_whole(&store, sample);
}

#[test]
fn nothing_is_moved_into_what_is_being_removed() {
    let (bench, sample) = (Bench::new(), &samples()[2]);
    let store = Arc::new(bench.open(1));
    put_all(&store, sample);
    adopt(&store, sample).unwrap();
    let staged = store.get(sample.id()).unwrap();
    assert!(staged.has_to_move());
    bench.disk.heal();
    assert!(store.move_flat(&staged).unwrap());
    let writes = |op: &&str| *op == "write_all_at" || *op == "create_new";
    let first = bench.disk.operations().iter().position(writes).unwrap();
    let (bench, id) = (Bench::new(), sample.id());
    let store = Arc::new(bench.open(1));
    put_all(&store, sample);
    adopt(&store, sample).unwrap();
    let staged = store.get(id).unwrap();
    let (other, (gone, is_gone)) = (Arc::clone(&store), std::sync::mpsc::channel());
    // While the first part is written.
    bench.disk.interrupt(first, move || {
        let (removed, is_removed) = std::sync::mpsc::channel();
        std::thread::spawn(move || removed.send(other.remove(id)));
        let early = is_removed.recv_timeout(std::time::Duration::from_millis(100)).is_ok();
        gone.send((early, is_removed)).unwrap();
    });
    drop(store.move_flat(&staged));
    let (early, is_removed) = is_gone.recv().unwrap();
    assert!(!early, "it waits for the part");
    is_removed.recv_timeout(std::time::Duration::from_secs(10)).unwrap().unwrap();
    assert!(!staged.dir().exists());
}
