//! What is on the disk does not grow with how long the pair has run.

use super::*;
use crate::hook::log::{KEPT_LOGS, log_path};

/// Bundles that are remembered here.
const SOME: usize = 12;

fn files(dir: &Path) -> usize {
    let Ok(names) = std::fs::read_dir(dir) else { return 0 };
    names.map(|name| name.unwrap().path()).map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

/// One day, on which nothing waits for the day before any more: a bundle comes, and hooks end so.
fn day(delivery: &Delivery, bench: &Bench, sample: Option<&Sample>, outcome: &Outcome, now_ms: u64) {
    delivery.tick(now_ms);
    sample.into_iter().for_each(|sample| send(delivery, sample));
    while let [run] = &delivery.due_hooks(now_ms)[..] {
        let log = log_path(&bench.settings.state.join("logs"), &run.channel, run.sequence, run.id, run.attempt);
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        std::fs::write(log, "done").unwrap();
        delivery.hook_ended(run, outcome, now_ms);
    }
}

#[test]
fn files_go_with_the_bundle_and_starts_stay_short() {
    let mut bench = Bench::new().with_hook(None);
    // What does not come is not waited for.
    bench.settings.channels.get_mut(&default_channel()).unwrap().wait_for_missing_ms = Some(1);
    let count = |name: &str| files(&bench.settings.state.join(name));
    let (mut starts, mut kept) = (Vec::new(), Vec::new());
    let mut now = 1_000_000;
    let mut lost = 0;
    for year in 0..6 {
        bench.disk.heal();
        let delivery = bench.open();
        starts.push(bench.disk.operations().len());
        delivery.ledger.lock().remember(SOME);
        for n in year * 40 + 1..=year * 40 + 40 {
            now += 86_400_000;
            let sample = Sample::file(n, n, 100);
            match n % 40 {
                7 => {
                    announce(&delivery, &sample).unwrap();
                    lost += 1;
                }
                9 => {}
                13 => day(&delivery, &bench, Some(&sample), &Outcome::Failed("exit 1".into()), now),
                17 => day(&delivery, &bench, Some(&sample), &Outcome::Quarantine(65), now),
                _ => day(&delivery, &bench, Some(&sample), &Outcome::Done, now),
            }
        }
        for _ in 0..3 {
            now += 86_400_000;
            day(&delivery, &bench, None, &Outcome::Done, now);
        }
        let entries = delivery.ledger.lock().entries().count();
        kept.push((entries - lost, count("manifests"), count("logs")));
    }
    assert_eq!(kept, vec![(SOME, 2 * SOME, SOME); 6]);
    // Each that is still open has a few files in staging; nothing else makes a start longer.
    let longer = |year: usize| starts[year + 1] - starts[year];
    assert!((2..5).all(|year| longer(year) <= longer(1)), "{starts:?}");
    let refused = std::fs::read_dir(bench.settings.quarantine.join("default")).unwrap().count();
    assert_eq!(refused, 6, "what was published stays, also in quarantine");
}

#[test]
fn a_crash_before_the_files_went_leaves_nothing_behind() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    delivery.ledger.lock().remember(SOME);
    let samples: Vec<Sample> = (1..=SOME as u64 + 3).map(|n| Sample::file(n, n, 100)).collect();
    samples.iter().for_each(|sample| day(&delivery, &bench, Some(sample), &Outcome::Done, 1_000));
    let refusal = |sample: &Sample| {
        let place = crate::inbox::Address {
            id: sample.id(),
            channel: Some(default_channel()),
            sequence: sample.announce.sequence,
        };
        bench.settings.quarantine.join(delivery.forgetting.inbox.quarantine_path(&place))
    };
    for sample in [&samples[0], &samples[SOME]] {
        std::fs::create_dir_all(refusal(sample)).unwrap();
        std::fs::write(refusal(sample).join("reason.json"), "{}").unwrap();
    }
    let kept = [refusal(&samples[0]), refusal(&samples[SOME])];
    let theirs = bench.settings.state.join("logs/default/notes-1.log");
    std::fs::write(&theirs, "mine").unwrap();
    assert_eq!(delivery.ledger.lock().prune(usize::MAX).len(), 3);
    delivery.ledger.keep();
    drop(delivery);
    drop(bench.open());
    assert_eq!(files(&bench.settings.state.join("manifests")), 2 * SOME);
    assert_eq!(files(&bench.settings.state.join("logs")), SOME + 1);
    assert!(theirs.exists() && !kept[0].exists() && kept[1].exists());
    // What a lost ledger does not know may be asked for: its manifests stay.
    for name in ["ledger", "audit.jsonl"] {
        std::fs::remove_file(bench.settings.state.join(name)).unwrap();
    }
    let delivery = bench.open();
    day(&delivery, &bench, Some(&Sample::file(99, 99, 100)), &Outcome::Done, 2_000);
    drop(delivery);
    drop(bench.open());
    assert_eq!(files(&bench.settings.state.join("manifests")), 2 * SOME + 2);
}

#[test]
fn the_logs_of_all_runs_that_are_kept_go() {
    let bench = Bench::new();
    let delivery = bench.open();
    delivery.ledger.lock().remember(0);
    let sample = Sample::file(1, 1, 100);
    send(&delivery, &sample);
    let attempt = KEPT_LOGS + 5;
    delivery.ledger.lock().change(sample.id(), 0, |e| {
        e.installed();
        e.attempt = attempt;
    });
    let logs = bench.settings.state.join("logs");
    std::fs::create_dir_all(logs.join("default")).unwrap();
    for attempt in 6..=attempt {
        std::fs::write(log_path(&logs, &default_channel(), 1, sample.id(), attempt), "").unwrap();
    }
    assert!(!delivery.forgetting.prune());
    assert_eq!((files(&logs), files(&bench.settings.state.join("manifests"))), (0, 0));
    sample.assert_at(&bench.inbox(1));
}
