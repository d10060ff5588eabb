//! Two threads of the data plane bring the last parts of a bundle, and a third moves it on: any order of their steps on the
//! disk leads to the same end.

use std::sync::mpsc;
use std::thread;

use super::*;

/// The other thread gets so long at the step where the first one stands; it may wait for a lock that the first one holds.
const TURN: Duration = Duration::from_millis(20);

/// Parts of a bundle, and what else happens to it meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Announce,
    LastBlock,
    Hashes,
    /// What is stored is made durable.
    Checkpoint,
    /// Half a minute goes by, after which what stands still gives back its memory.
    Pause,
}

impl Part {
    const PARTS: [Self; 3] = [Self::Announce, Self::LastBlock, Self::Hashes];
    const ALL: [Self; 5] = [Self::Announce, Self::LastBlock, Self::Hashes, Self::Checkpoint, Self::Pause];

    fn bring(self, delivery: &Delivery, sample: &Sample) {
        let last = sample.oti().blocks() - 1;
        match self {
            Self::Announce => announce(delivery, sample),
            Self::LastBlock => data(delivery, sample, [last]),
            Self::Hashes => hashes(delivery, sample),
            Self::Checkpoint => {
                delivery.jobs.push(Job::Checkpoint);
                Ok(())
            }
            Self::Pause => {
                delivery.tick(delivery.clock.now() + 31_000);
                Ok(())
            }
        }
        .unwrap();
    }
}

/// `first` is interrupted at its operation `step` by `second`, and by whatever there is to do then. False: it has fewer.
fn interleave(sample: &Sample, first: Part, second: Part, step: usize) -> bool {
    let bench = Bench::new();
    let delivery = Arc::new(bench.open());
    data(&delivery, sample, 0..sample.oti().blocks() - 1).unwrap();
    let before = Part::PARTS.into_iter().filter(|&part| part != first && part != second);
    before.for_each(|part| part.bring(&delivery, sample));
    work(&delivery);
    let (others, other) = mpsc::channel();
    let (theirs, their_sample) = (Arc::clone(&delivery), sample.clone());
    bench.disk.interrupt(step, move || {
        let (done, is_done) = mpsc::channel();
        let other = thread::spawn(move || {
            if second != first {
                second.bring(&theirs, &their_sample);
            }
            work(&theirs);
            done.send(()).unwrap_or_default();
        });
        // Either is fine: it is done, or it waits for us.
        let _ = is_done.recv_timeout(TURN);
        others.send(other).unwrap();
    });
    first.bring(&delivery, sample);
    work(&delivery);
    bench.disk.heal();
    let Ok(other) = other.try_recv() else { return false };
    other.join().unwrap();
    work(&delivery);
    let at = format!("{first:?} interrupted by {second:?} at {step}");
    assert_eq!(state(&delivery, sample), Some(State::Complete), "{at}: {}", reason(&delivery, sample));
    assert_eq!(reason(&delivery, sample), "", "{at}");
    assert!(delivery.lost().is_empty(), "{at}");
    sample.assert_at(&bench.inbox(sample.announce.sequence));
    assert_eq!(bench.audit().iter().filter(|line| line["event"] == "published").count(), 1, "{at}");
    true
}

#[test]
fn threads_that_bring_the_last_parts_do_not_hinder_one_another() {
    for sample in [
        Sample::file(1, 1, 500),
        Sample::file(1, 1, 1_200),
        Sample::tree(1, 1, &[700, 0, 30, 300]),
        Sample::tree(1, 1, &[40; 30]),
    ] {
        for (first, second) in Part::PARTS.into_iter().flat_map(|a| Part::ALL.map(|b| (a, b))) {
            let steps = (0..).take_while(|&step| interleave(&sample, first, second, step)).count();
            assert!(steps > 1, "{first:?} has {steps} steps");
        }
    }
}

#[test]
fn a_bundle_waits_for_no_files_that_another_one_makes() {
    for durability in [Durability::Syncfs, Durability::Fsync] {
        let (long, short) = (Sample::tree(1, 1, &[0, 700, 0, 0]), Sample::file(2, 2, 700));
        let ready = || {
            let mut bench = Bench::new();
            bench.settings.durability = durability;
            let delivery = Arc::new(bench.open());
            for sample in [&long, &short] {
                announce(&delivery, sample).unwrap();
                data(&delivery, sample, 0..sample.oti().blocks()).unwrap();
            }
            work(&delivery);
            hashes(&delivery, &long).unwrap();
            bench.disk.heal();
            (bench, delivery)
        };
        let (bench, delivery) = ready();
        work(&delivery);
        let made = bench.disk.operations().iter().rposition(|&operation| operation == "set_mtime").unwrap();
        let (bench, delivery) = ready();
        let (theirs, their_sample) = (Arc::clone(&delivery), short.clone());
        let (tell, told) = mpsc::channel();
        bench.disk.interrupt(made, move || {
            let (done, is_done) = mpsc::channel();
            thread::spawn(move || {
                hashes(&theirs, &their_sample).unwrap();
                work(&theirs);
                done.send(()).unwrap_or_default();
            });
            tell.send(is_done.recv_timeout(Duration::from_secs(10)).is_ok()).unwrap();
        });
        work(&delivery);
        assert_eq!(told.recv(), Ok(true), "{durability:?}");
        short.assert_at(&bench.inbox(2));
    }
}

/// What is to be synced is removed just then: nothing was lost, and nothing of another bundle has to come again.
#[test]
fn a_bundle_that_ends_while_it_is_synced_costs_no_other() {
    for durability in [Durability::Syncfs, Durability::Fsync] {
        let (ends, other) = (Sample::tree(1, 1, &[0, 700, 0, 0]), Sample::file(2, 2, 1_200));
        let run = |step: usize| {
            let mut bench = Bench::new();
            bench.settings.durability = durability;
            let delivery = Arc::new(bench.open());
            for sample in [&ends, &other] {
                announce(&delivery, sample).unwrap();
                data(&delivery, sample, 0..1).unwrap();
            }
            data(&delivery, &ends, 1..ends.oti().blocks()).unwrap();
            work(&delivery);
            hashes(&delivery, &ends).unwrap();
            let (theirs, id) = (Arc::clone(&delivery), ends.id());
            let (others, other_thread) = mpsc::channel();
            bench.disk.interrupt(step, move || {
                let (done, is_done) = mpsc::channel();
                let thread = thread::spawn(move || {
                    theirs.refusing.withdrawn(id, "out of date");
                    done.send(()).unwrap_or_default();
                });
                let _ = is_done.recv_timeout(TURN);
                others.send(thread).unwrap();
            });
            work(&delivery);
            let at = format!("{durability:?} at {step}");
            bench.disk.heal();
            let interrupted = other_thread.try_recv().map(|thread| thread.join().unwrap()).is_ok();
            work(&delivery);
            let stored = delivery.store.get(other.id()).map(|staged| staged.fill().1);
            assert_eq!(stored, Some(448), "{at}");
            assert!(delivery.store.failed_syncs() == 0 && delivery.store.get(ends.id()).is_none(), "{at}");
            data(&delivery, &other, 1..other.oti().blocks()).unwrap();
            hashes(&delivery, &other).unwrap();
            work(&delivery);
            other.assert_at(&bench.inbox(2));
            match state(&delivery, &ends) {
                Some(State::Complete) => ends.assert_at(&bench.inbox(1)),
                ended => assert!(ended == Some(State::Withdrawn) && !bench.inbox(1).exists(), "{at}: {ended:?}"),
            }
            interrupted
        };
        assert!((0..).take_while(|&step| run(step)).count() > 10);
    }
}
