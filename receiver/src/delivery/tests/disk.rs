//! What a fault of the disk leaves behind is not believed, is said, and is mended.

use std::os::unix::fs::{FileExt, PermissionsExt};

use checkvalve_protocol::manifest::EntryKind;
use checkvalve_protocol::ticket::Loss;

use super::super::ticket::TicketError;
use super::*;
use crate::testing::entry;

const EACCES: i32 = 13;

/// All of a bundle is stored and waits to be proven and published.
fn stored(bench: &Bench, sample: &Sample) -> Delivery {
    let delivery = bench.open();
    delivery.tick(1_000);
    announce(&delivery, sample).unwrap();
    data(&delivery, sample, 0..sample.oti().blocks()).unwrap();
    hashes(&delivery, sample).unwrap();
    bench.disk.heal();
    delivery
}

/// The blocks that need not come again.
fn have(delivery: &Delivery, sample: &Sample) -> Vec<u32> {
    match delivery.want(sample.id(), ObjectKind::Data, &sample.oti()) {
        Want::Yes { have, .. } => have.iter().flatten().collect(),
        Want::Done => (0..sample.oti().blocks()).collect(),
        other => panic!("{other:?}"),
    }
}

fn tickets(delivery: &Delivery, which: &[String]) -> Result<usize, TicketError> {
    delivery.tickets(which, &|_| Loss::of(1, 100), 40, &|_| Vec::new()).map(|tickets| tickets.len())
}

/// Every ticket that status offers is there, and no other.
fn assert_tickets_agree(delivery: &Delivery) -> usize {
    let mut offered = 0;
    for row in delivery.status(0).bundles {
        let number = format!("{}/{}", row.channel, row.sequence);
        let printed = tickets(delivery, &[number]);
        assert_eq!(row.ticket.is_some(), printed.is_ok(), "{row:?}: {printed:?}");
        offered += usize::from(row.ticket.is_some());
    }
    assert_eq!(tickets(delivery, &[]).unwrap(), offered, "ticket --all");
    offered
}

#[test]
fn no_ticket_is_offered_where_only_the_disk_is_in_the_way() {
    let bench = Bench::new();
    let (whole, partial) = (&samples()[0], Sample::file(9, 2, 5_000));
    let delivery = stored(&bench, whole);
    announce(&delivery, &partial).unwrap();
    data(&delivery, &partial, 0..4).unwrap();
    bench.disk.fail_from(0, EIO);
    work(&delivery);
    delivery.tick(20_000);
    bench.disk.heal();
    assert_eq!(state(&delivery, whole), Some(State::Incomplete));
    let said = reason(&delivery, whole);
    assert!(said.contains("os error 5") && said.contains("once that is mended"), "{said}");
    assert_eq!(assert_tickets_agree(&delivery), 1, "of the other one");
    let error = tickets(&delivery, &["default/1".to_owned()]).unwrap_err();
    assert!(matches!(&error, TicketError::Disk(_, why) if *why == said), "{error:?}");
    // It goes on by itself.
    delivery.tick(30_000);
    work(&delivery);
    whole.assert_at(&bench.inbox(1));
    assert_eq!(assert_tickets_agree(&delivery), 1);
}

#[test]
fn a_sync_that_failed_while_publishing_is_not_tried_again_and_believed() {
    let sample = &samples()[2];
    for durability in [Durability::Syncfs, Durability::Fsync] {
        let bench = || {
            let mut bench = Bench::new();
            bench.settings.durability = durability;
            bench
        };
        let clean = bench();
        work(&stored(&clean, sample));
        let operations = clean.disk.operations();
        let at = |name| operations.iter().position(|&op| op == name).unwrap();
        let (recorded, renamed) = (at("create_dir_all"), at("rename_noreplace"));
        let is_sync = |n: &usize| operations[*n].starts_with("sync");
        let settled = (0..renamed).rfind(is_sync).unwrap();
        // Those of the manifests in between write a new file each time.
        let syncs: Vec<usize> = (0..recorded).chain([settled]).filter(is_sync).collect();
        assert!(syncs.len() > if durability == Durability::Fsync { 10 } else { 0 }, "{operations:?}");
        for nth in syncs {
            let bench = bench();
            let delivery = stored(&bench, sample);
            bench.disk.fail_once(nth, EIO);
            work(&delivery);
            bench.disk.heal();
            assert_eq!(
                delivery.lost(),
                [(sample.id(), crate::sink::Lost::Stored)],
                "{durability:?} {nth}: the data plane asks again"
            );
            assert!(have(&delivery, sample).is_empty());
            delivery.tick(20_000);
            work(&delivery);
            assert!(!bench.inbox(3).exists(), "{durability:?} {nth}");
            let said = reason(&delivery, sample);
            assert!(said.starts_with("sync failed, to be sent again") && said.contains("os error 5"), "{said}");
            assert_eq!(assert_tickets_agree(&delivery), 1);
            send(&delivery, sample);
            sample.assert_at(&bench.inbox(3));
        }
    }
}

/// A file system that cannot write its own records calls later syncs good, and what it did not keep can be read until it leaves the
/// cache. Only reading it from the device tells.
#[test]
fn what_the_device_did_not_keep_after_a_sync_that_failed_comes_again() {
    let sample = &samples()[2];
    let bench = Bench::new();
    let delivery = stored(&bench, sample);
    bench.disk.fail_once(0, EIO);
    delivery.staging.checkpoint();
    assert!(delivery.store.failed_syncs() == 1);
    bench.disk.heal();
    delivery.tick(20_000);
    let put = |delivery: &Delivery| {
        data(delivery, sample, 0..sample.oti().blocks()).unwrap();
        let out = delivery.store.get(sample.id()).unwrap().out();
        let largest = files_in(&out).into_iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
        std::fs::set_permissions(&largest, std::fs::Permissions::from_mode(0o600)).unwrap();
        largest
    };
    // Twice: what came again is read again, too.
    for _ in 0..2 {
        let largest = put(&delivery);
        let file = std::fs::File::options().write(true).open(&largest).unwrap();
        file.write_all_at(&[0; 64], 8).unwrap();
        work(&delivery);
        assert!(!bench.inbox(3).exists(), "it is not what was signed");
        delivery.tick(40_000);
        let said = reason(&delivery, sample);
        assert!(said.starts_with("the disk did not keep 1 of its files"), "{said}");
        assert_eq!(delivery.lost(), [(sample.id(), crate::sink::Lost::All)], "the data plane asks again");
    }
    send(&delivery, sample);
    sample.assert_at(&bench.inbox(3));
}

/// Only as many bytes are hashed as were announced.
#[test]
fn what_is_behind_the_proven_bytes_of_a_file_is_not_published() {
    let sample = &samples()[2];
    let bench = Bench::new();
    let delivery = stored(&bench, sample);
    let out = delivery.store.get(sample.id()).unwrap().out();
    let len = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
    let largest = files_in(&out).into_iter().max_by_key(len).unwrap();
    std::fs::set_permissions(&largest, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::File::options().write(true).open(&largest).unwrap().write_all_at(b"junk", len(&largest)).unwrap();
    work(&delivery);
    sample.assert_at(&bench.inbox(3));
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let each = entries.map(|e| (e.file_type().unwrap(), e.path()));
    each.flat_map(|(kind, path)| match kind {
        kind if kind.is_dir() => files_in(&path),
        kind if kind.is_file() => vec![path],
        _ => Vec::new(),
    })
    .collect()
}

#[test]
fn blocks_that_come_again_get_into_read_only_directories() {
    let entries = vec![
        entry("tree", EntryKind::Directory { mode: 0o555 }),
        entry("tree/file", EntryKind::File { size: 700, mode: 0o444 }),
    ];
    let sample = Sample::new(1, 1, "tree", entries);
    let mode = |delivery: &Delivery| {
        let root = delivery.store.get(sample.id()).unwrap().out();
        std::fs::metadata(root.join("tree")).unwrap().permissions().mode() & 0o777
    };
    // The directory has its mode when its sync fails.
    let failed = |sync: usize| {
        let mut bench = Bench::new();
        bench.settings.durability = Durability::Fsync;
        let delivery = stored(&bench, &sample);
        bench.disk.fail_once(sync, EIO);
        work(&delivery);
        (bench.disk.operations()[sync] == "sync_dir").then_some((bench, delivery))
    };
    let sync = (0..).find(|&sync| failed(sync).is_some()).unwrap();
    let mut refused = 0;
    for nth in 0..20 {
        let (bench, delivery) = failed(sync).unwrap();
        assert_eq!((mode(&delivery), have(&delivery, &sample)), (0o555, vec![]));
        // As the kernel answers whoever is not root.
        bench.disk.fail_once(nth, EACCES);
        let again = data(&delivery, &sample, 0..sample.oti().blocks());
        if bench.disk.operations().get(nth) == Some(&"create_new") {
            refused += 1;
            again.unwrap();
            assert_eq!(mode(&delivery), 0o700);
        }
        bench.disk.heal();
        send(&delivery, &sample);
        sample.assert_at(&bench.inbox(1));
    }
    assert!(refused > 0);
}

#[test]
fn a_staged_file_that_is_too_short_comes_again() {
    let bench = Bench::new();
    let sample = &samples()[0];
    let delivery = bench.open();
    delivery.tick(1_000);
    announce(&delivery, sample).unwrap();
    data(&delivery, sample, 1..sample.oti().blocks()).unwrap();
    hashes(&delivery, sample).unwrap();
    let file = delivery.store.get(sample.id()).unwrap().out().join("one file");
    std::fs::File::options().write(true).open(file).unwrap().set_len(700).unwrap();
    for _ in 0..2 {
        drop(delivery.block(sample.id(), ObjectKind::Data, &sample.oti(), 0, sample.block(0)));
    }
    work(&delivery);
    comes_again(&bench, &delivery, sample);
}

#[test]
fn what_somebody_removed_from_staging_comes_again() {
    for all_of_it in [false, true] {
        for hashed in [false, true] {
            let bench = Bench::new();
            let sample = &samples()[2];
            let delivery = bench.open();
            delivery.tick(1_000);
            announce(&delivery, sample).unwrap();
            let blocks = sample.oti().blocks();
            data(&delivery, sample, if hashed { 0..blocks } else { 1..blocks }).unwrap();
            let removed = delivery.store.get(sample.id()).unwrap().dir().to_owned();
            let removed = if all_of_it { bench.settings.staging.clone() } else { removed };
            std::fs::remove_dir_all(removed).unwrap();
            drop(hashes(&delivery, sample));
            drop(data(&delivery, sample, 0..1));
            delivery.tick(1_500);
            work(&delivery);
            comes_again(&bench, &delivery, sample);
        }
    }
}

#[test]
fn a_clock_that_jumps_loses_nothing_and_makes_nothing_wait() {
    const DAY: u64 = 86_400_000;
    for (before, after) in [(DAY, 30 * DAY), (30 * DAY, DAY)] {
        let bench = Bench::new();
        let sample = &samples()[0];
        let delivery = bench.open();
        delivery.tick(before);
        announce(&delivery, sample).unwrap();
        data(&delivery, sample, 0..4).unwrap();
        delivery.tick(before + 1_000);
        assert_eq!(state(&delivery, sample), Some(State::Receiving));
        // Set forward, silence seems to be over; what comes next goes on all the same.
        delivery.tick(after);
        assert_eq!(state(&delivery, sample) == Some(State::Incomplete), after > before);
        data(&delivery, sample, 4..6).unwrap();
        delivery.tick(after + 500);
        assert_eq!(state(&delivery, sample), Some(State::Receiving));
        // Nothing more comes: that is told as soon as ever.
        delivery.tick(after + 11_000);
        assert_eq!(state(&delivery, sample), Some(State::Incomplete));
        // A disk in trouble is tried again five seconds later, not weeks.
        announce(&delivery, sample).unwrap();
        data(&delivery, sample, 6..sample.oti().blocks()).unwrap();
        work(&delivery);
        hashes(&delivery, sample).unwrap();
        bench.disk.fail_once(0, EIO);
        work(&delivery);
        bench.disk.heal();
        assert!(!bench.inbox(1).exists());
        delivery.tick(before);
        delivery.tick(before + 6_000);
        work(&delivery);
        sample.assert_at(&bench.inbox(1));
    }
}

/// It is reported with a ticket for all of it, and completes when that was answered.
fn comes_again(bench: &Bench, delivery: &Delivery, sample: &Sample) {
    assert_eq!(delivery.lost(), [(sample.id(), crate::sink::Lost::All)]);
    delivery.tick(40_000);
    assert_eq!(state(delivery, sample), Some(State::Missing));
    assert!(reason(delivery, sample).contains("come again"), "{}", reason(delivery, sample));
    assert_eq!(assert_tickets_agree(delivery), 1);
    assert!(have(delivery, sample).is_empty());
    send(delivery, sample);
    sample.assert_at(&bench.inbox(sample.announce.sequence));
    delivery.tick(60_000);
    drop(bench.open());
}
