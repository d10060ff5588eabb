//! Whose turn it is for the hook, and what its end means.

use super::*;

#[test]
fn a_hook_that_failed_runs_again_when_somebody_says_so() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    send(&delivery, &samples()[0]);
    let run = delivery.due_hooks(0);
    delivery.hook_ended(&run[0], &Outcome::Failed("exit 1".into()), 0);
    assert!(delivery.due_hooks(0).is_empty());
    delivery.retry(&"default/1".parse().unwrap()).unwrap();
    let again = delivery.due_hooks(0);
    assert_eq!((again[0].sequence, again[0].attempt), (1, 2));
    delivery.hook_ended(&again[0], &Outcome::Quarantine(65), 0);
    assert!(!bench.inbox(1).exists());
    delivery.retry(&"default/1".parse().unwrap()).unwrap();
    samples()[0].assert_at(&bench.inbox(1));
    let again = delivery.due_hooks(0);
    delivery.hook_ended(&again[0], &Outcome::Failed("exit 1".into()), 0);
    send(&delivery, &samples()[1]);
    let second = delivery.due_hooks(0);
    delivery.hook_ended(&second[0], &Outcome::Done, 0);
    assert_eq!(delivery.retry(&"default/1".parse().unwrap()), Err(DecideError::Older("default/2".into())));
    assert_eq!(delivery.retry(&"default/2".parse().unwrap()), Err(DecideError::NothingToRetry(State::Installed)));
    // Of two that failed the older one may run first.
    let samples: Vec<Sample> = (3..=4).map(|n| Sample::file(n, n, 50)).collect();
    for sample in &samples {
        send(&delivery, sample);
        let run = delivery.due_hooks(0);
        delivery.hook_ended(&run[0], &Outcome::Failed("exit 1".into()), 0);
    }
    for sample in &samples {
        delivery.retry(&format!("default/{}", sample.announce.sequence).parse().unwrap()).unwrap();
        let run = delivery.due_hooks(0);
        assert_eq!(run[0].sequence, sample.announce.sequence);
        delivery.hook_ended(&run[0], &Outcome::Done, 0);
        assert_eq!(state(&delivery, sample), Some(State::Installed));
    }
    assert!(delivery.due_hooks(0).is_empty());
}

#[test]
fn hooks_follow_the_contract_of_exit_codes() {
    let bench = Bench::new().with_hook(Some(2));
    let delivery = bench.open();
    let bundles: Vec<Sample> = (1..=5).map(|n| Sample::file(n, n, 100)).collect();
    for sample in bundles.iter().rev() {
        send(&delivery, sample);
    }
    let one = |now| {
        let due = delivery.due_hooks(now);
        assert!(due.len() == 1 && delivery.due_hooks(now).is_empty(), "one at a time");
        due[0].clone()
    };
    let first = one(0);
    assert_eq!((first.sequence, first.attempt, &first.previous), (1, 1, &None));
    delivery.hook_ended(&first, &Outcome::Again, 10_000);
    assert!(delivery.due_hooks(10_999).is_empty());
    let again = one(11_000);
    assert_eq!((again.sequence, again.attempt), (1, 2));
    delivery.hook_ended(&again, &Outcome::NotStarted("gone".into()), 11_000);
    assert!(delivery.due_hooks(12_999).is_empty(), "the pause doubles");
    let third = one(13_000);
    delivery.hook_ended(&third, &Outcome::Done, 13_000);
    let second = one(13_000);
    assert_eq!(second.previous, Some(bench.inbox(1).join("one file")));
    delivery.hook_ended(&second, &Outcome::Quarantine(65), 13_000);
    assert!(!bench.inbox(2).exists());
    assert_eq!(bench.reason(&bundles[1])["rule"], "hook");
    let moved = bench.settings.quarantine.join(format!("default/00000002-{}/content", bundles[1].id()));
    bundles[1].assert_at(&moved);
    let third = one(13_000);
    delivery.hook_ended(&third, &Outcome::Failed("exit 1".into()), 13_000);
    bundles[2].assert_at(&bench.inbox(3));
    let mut fourth = one(13_000);
    for attempt in 1..=3 {
        assert_eq!(fourth.attempt, attempt);
        delivery.hook_ended(&fourth, &Outcome::Again, 13_000);
        if attempt < 3 {
            fourth = one(100_000);
        }
    }
    let fifth = one(13_000);
    assert_eq!((fifth.sequence, &fifth.previous), (5, &Some(bench.inbox(1).join("one file"))));
    let states: Vec<_> = bundles.iter().map(|b| state(&delivery, b).unwrap().as_str()).collect();
    assert_eq!(states, ["installed", "quarantined", "failed", "failed", "installing"]);
}

#[test]
fn an_interrupted_hook_runs_again_as_the_next_attempt() {
    let bench = Bench::new().with_hook(None);
    send(&bench.open(), &samples()[0]);
    for attempt in 1..=3 {
        let delivery = bench.open();
        let due = delivery.due_hooks(0);
        assert_eq!((due[0].attempt, due.len()), (attempt, 1));
        if attempt == 2 {
            delivery.hook_ended(&due[0], &Outcome::Interrupted, 0);
        }
    }
}

#[test]
fn a_late_bundle_is_published_but_never_installed() {
    let mut bench = Bench::new().with_hook(None);
    bench.settings.channels.get_mut(&default_channel()).unwrap().wait_for_missing_ms = Some(1_000);
    let delivery = bench.open();
    hear(&delivery, 0, 1, vec![recent(1, 1, RecentState::Transmitting)], None);
    send(&delivery, &samples()[1]);
    delivery.tick(9_000);
    assert!(delivery.due_hooks(60_000).is_empty(), "it may still come");
    delivery.tick(10_000);
    assert!(delivery.due_hooks(10_999).is_empty());
    let due = delivery.due_hooks(11_000);
    assert_eq!(due[0].sequence, 2, "waited long enough");
    send(&delivery, &samples()[0]);
    samples()[0].assert_at(&bench.inbox(1));
    assert_eq!(state(&delivery, &samples()[0]), Some(State::Superseded));
    delivery.hook_ended(&due[0], &Outcome::Done, 21_000);
    assert!(delivery.due_hooks(30_000).is_empty());
}
