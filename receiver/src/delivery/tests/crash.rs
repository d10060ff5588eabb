//! The process ends, or the disk fails, at every step.

use super::*;

/// What stands in the inbox is the whole bundle or nothing.
fn assert_all_or_nothing(bench: &Bench, sample: &Sample) -> bool {
    let path = bench.inbox(sample.announce.sequence);
    if path.exists() {
        sample.assert_at(&path);
    }
    path.exists()
}

fn try_send(delivery: &Delivery, sample: &Sample) -> Result<(), StoreError> {
    announce(delivery, sample)?;
    if !sample.data.is_empty() {
        data(delivery, sample, 0..sample.oti().blocks())?;
    }
    hashes(delivery, sample)?;
    work(delivery);
    Ok(())
}

#[test]
fn an_end_at_any_operation_leads_to_the_same_end_once() {
    for (sample, durability) in [(&samples()[2], Durability::Syncfs), (&samples()[0], Durability::Fsync)] {
        let mut published_before = 0;
        for nth in 0.. {
            let mut bench = Bench::new().with_hook(None);
            bench.settings.durability = durability;
            let delivery = bench.open();
            bench.disk.heal();
            bench.disk.fail_from(nth, EIO);
            let ended = try_send(&delivery, sample).is_ok() && state(&delivery, sample) == Some(State::Complete);
            let mut runs = delivery.due_hooks(2_000);
            runs.iter().for_each(|run| delivery.hook_ended(run, &Outcome::Done, 2_000));
            let done = bench.disk.operations().len() < nth;
            drop(delivery);
            bench.disk.heal();
            published_before += usize::from(assert_all_or_nothing(&bench, sample));
            // After the restart, what is in the inbox is known, and a second pass brings the rest.
            let delivery = bench.open();
            work(&delivery);
            if assert_all_or_nothing(&bench, sample) {
                let state = state(&delivery, sample).unwrap();
                let known = matches!(state, State::Complete | State::Installing | State::Installed);
                assert!(known, "operation {nth}: in the inbox, but {state:?}");
            }
            try_send(&delivery, sample).unwrap();
            runs.extend(delivery.due_hooks(3_000));
            runs.iter().for_each(|run| delivery.hook_ended(run, &Outcome::Done, 3_000));
            sample.assert_at(&bench.inbox(sample.announce.sequence));
            assert_eq!(state(&delivery, sample), Some(State::Installed), "operation {nth}");
            assert!(runs.len() <= 2 && !runs.is_empty());
            assert!(runs.iter().map(|run| run.attempt).is_sorted_by(|a, b| a < b), "attempts count up");
            assert!(delivery.store.all().is_empty());
            if done {
                assert!(ended);
                break;
            }
        }
        assert!(published_before > 3, "it was interrupted after the rename too");
    }
}

#[test]
fn a_failure_of_any_single_operation_is_survived() {
    let sample = &samples()[2];
    for nth in 0.. {
        for errno in [EIO, ENOSPC] {
            let bench = Bench::new().with_hook(None);
            let delivery = bench.open();
            bench.disk.heal();
            bench.disk.fail_once(nth, errno);
            let mut sent = try_send(&delivery, sample);
            let mut now = 10_000;
            let operations = bench.disk.operations().len();
            for _ in 0..4 {
                assert_all_or_nothing(&bench, sample);
                delivery.tick(now);
                work(&delivery);
                sent = try_send(&delivery, sample);
                now += 10_000;
            }
            sent.unwrap();
            sample.assert_at(&bench.inbox(3));
            assert!(matches!(state(&delivery, sample), Some(State::Complete)), "operation {nth}, {errno}");
            if operations < nth {
                return;
            }
        }
    }
}

#[test]
fn a_power_cut_loses_only_what_was_not_synced() {
    let bench = Bench::new();
    let sample = &samples()[0];
    let delivery = bench.open();
    announce(&delivery, sample).unwrap();
    data(&delivery, sample, 0..5).unwrap();
    delivery.jobs.push(Job::Checkpoint);
    work(&delivery);
    data(&delivery, sample, 5..7).unwrap();
    drop(delivery);
    let delivery = bench.try_open(2).unwrap();
    let Want::Yes { have, .. } = delivery.want(sample.id(), ObjectKind::Data, &sample.oti()) else { panic!() };
    assert_eq!(have.iter().flatten().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    send(&delivery, sample);
    sample.assert_at(&bench.inbox(1));
}

#[test]
fn a_damaged_announce_in_staging_comes_again() {
    let bench = Bench::new();
    let sample = &samples()[2];
    let delivery = bench.open();
    announce(&delivery, sample).unwrap();
    data(&delivery, sample, 0..5).unwrap();
    let path = delivery.store.get(sample.id()).unwrap().object(ObjectKind::Announce);
    drop(delivery);
    std::fs::write(&path, b"").unwrap();
    let delivery = bench.open();
    assert!(delivery.staging.live(sample.id(), |live| live.announced) == Some(false));
    send(&delivery, sample);
    sample.assert_at(&bench.inbox(3));
}

#[test]
fn a_ledger_that_is_lost_or_damaged_is_rebuilt_and_nothing_is_installed_twice() {
    let samples = &samples()[..3];
    let outcomes = [Outcome::Done, Outcome::Failed("exit 1".into()), Outcome::Quarantine(65)];
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    for (sample, outcome) in samples.iter().zip(&outcomes) {
        send(&delivery, sample);
        let due = delivery.due_hooks(2_000);
        assert_eq!(due[0].id, sample.id());
        delivery.hook_ended(&due[0], outcome, 2_000);
    }
    let known = |delivery: &Delivery| -> Vec<_> {
        let ledger = delivery.ledger.lock();
        samples
            .iter()
            .map(|s| ledger.entry(s.id()).map(|e| (e.state(), e.name.clone(), e.attempt, e.is_published())))
            .collect()
    };
    let before = known(&delivery);
    let expected = [State::Installed, State::Failed, State::Quarantined];
    assert_eq!(before.iter().map(|known| known.as_ref().unwrap().0).collect::<Vec<_>>(), expected);
    drop(delivery);
    let path = bench.settings.state.join("ledger");
    let whole = std::fs::read(&path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        Some(bytes)
    };
    let cut = |len: usize| Some(whole[..len].to_vec());
    let damages = (0..whole.len()).step_by(61).map(flipped).chain([cut(0), cut(whole.len() - 3), None]);
    for (round, damage) in damages.enumerate() {
        match damage {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let delivery = bench.open();
        assert_eq!(known(&delivery), before, "round {round}");
        samples.iter().for_each(|sample| send(&delivery, sample));
        assert!(delivery.due_hooks(3_000).is_empty(), "round {round}: it is over");
        drop(delivery);
        // It was written down: the next start finds it whole.
        assert_eq!(known(&bench.open()), before, "round {round}, started again");
    }
}

#[test]
fn a_hook_that_was_to_run_again_does_so_without_the_ledger() {
    let bench = Bench::new().with_hook(None);
    let sample = &samples()[0];
    let delivery = bench.open();
    send(&delivery, sample);
    let due = delivery.due_hooks(2_000);
    delivery.hook_ended(&due[0], &Outcome::Failed("exit 1".into()), 2_000);
    delivery.retry(&Which::Prefix(sample.id().to_string())).unwrap();
    drop(delivery);
    std::fs::remove_file(bench.settings.state.join("ledger")).unwrap();
    let delivery = bench.open();
    assert_eq!(state(&delivery, sample), Some(State::Complete));
    assert_eq!(delivery.due_hooks(3_000).first().map(|due| due.id), Some(sample.id()));
}

#[test]
fn a_ledger_that_was_made_again_is_an_alarm_until_the_next_start() {
    let bench = Bench::new();
    let codes = |delivery: &Delivery| delivery.noted(u64::MAX / 2).iter().map(|a| a.code).collect::<Vec<_>>();
    send(&bench.open(), &samples()[0]);
    let trail = bench.settings.state.join("audit.jsonl");
    let lines = std::fs::read(&trail).unwrap();
    std::fs::write(&trail, [b"{\"no\n", &lines[..]].concat()).unwrap();
    std::fs::remove_file(bench.settings.state.join("ledger")).unwrap();
    let delivery = bench.open();
    assert_eq!(codes(&delivery), [alarms::Code::LedgerRebuilt, alarms::Code::TrailUnreadable]);
    let told = delivery.noted(0);
    assert!(told[0].text.starts_with("the ledger was gone") && told[0].text.contains("1 bundle of it was"), "{told:?}");
    assert!(told[1].text.contains(&format!("told of: 1 (`sed -n 1p {}`)", trail.display())), "{told:?}");
    drop(delivery);
    assert!(codes(&bench.open()).is_empty());
}

#[test]
fn after_a_lost_ledger_a_hook_runs_again_that_was_to_for_an_older_bundle() {
    let bench = Bench::new().with_hook(None);
    let all = samples();
    let delivery = bench.open();
    for (sample, now) in all[..2].iter().zip([2_000, 3_000]) {
        send(&delivery, sample);
        let due = delivery.due_hooks(now);
        delivery.hook_ended(&due[0], &Outcome::Failed("exit 1".into()), now);
    }
    delivery.retry(&Which::Prefix(all[0].id().to_string())).unwrap();
    drop(delivery);
    std::fs::remove_file(bench.settings.state.join("ledger")).unwrap();
    let delivery = bench.open();
    assert_eq!(delivery.due_hooks(4_000).first().map(|due| due.id), Some(all[0].id()));
}

#[test]
fn a_lost_ledger_does_not_publish_twice_or_over_something_else() {
    let bench = Bench::new();
    let sample = &samples()[2];
    send(&bench.open(), sample);
    // With the audit trail, from which it would be rebuilt.
    let lose = || {
        ["ledger", "audit.jsonl"]
            .iter()
            .for_each(|name| std::fs::remove_file(bench.settings.state.join(name)).unwrap());
    };
    lose();
    let delivery = bench.open();
    send(&delivery, sample);
    assert_eq!(state(&delivery, sample), Some(State::Complete), "the same is there already");
    let other = Sample::tree(30, 3, &[5]);
    lose();
    let delivery = bench.open();
    send(&delivery, &other);
    assert_eq!(state(&delivery, &other), Some(State::Quarantined));
    assert_eq!(bench.reason(&other)["rule"], "inbox");
    sample.assert_at(&bench.inbox(3));
}

#[test]
fn a_quarantine_by_the_hook_is_finished_after_a_crash() {
    let sample = &samples()[2];
    for nth in 0.. {
        let bench = Bench::new().with_hook(None);
        let delivery = bench.open();
        send(&delivery, sample);
        let due = delivery.due_hooks(0);
        bench.disk.heal();
        bench.disk.fail_from(nth, EIO);
        delivery.hook_ended(&due[0], &Outcome::Quarantine(77), 0);
        let done = bench.disk.operations().len() < nth;
        drop(delivery);
        bench.disk.heal();
        let delivery = bench.open();
        let again = delivery.due_hooks(0);
        again.iter().for_each(|run| delivery.hook_ended(run, &Outcome::Quarantine(77), 0));
        assert!(!bench.inbox(3).exists(), "operation {nth}");
        let name = format!("default/00000003-{}/content", sample.id());
        sample.assert_at(&bench.settings.quarantine.join(name));
        assert_eq!(bench.reason(sample)["rule"], "hook");
        if done {
            return;
        }
    }
}
