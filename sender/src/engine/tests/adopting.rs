//! Another state after the sender's own was lost, restored or cloned.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_protocol::id::EpochId;

use super::rig::{Rig, Sent, channel, names};
use crate::adopt::{AdoptError, Adopted, Adoption, adopt};
use crate::engine::BundleState;

impl Rig {
    /// Stops the engine, and adopts.
    fn adopt(&mut self, sequences: &[(&str, u64)], again: &[(&str, u64)]) -> Result<Adopted, AdoptError> {
        self.adopt_as(sequences, again, None)
    }

    fn adopt_as(
        &mut self,
        sequences: &[(&str, u64)],
        again: &[(&str, u64)],
        epoch: Option<u64>,
    ) -> Result<Adopted, AdoptError> {
        self.engine = None;
        self.jobs.clear();
        let named =
            |named: &[(&str, u64)]| named.iter().map(|(name, n)| (channel(name), *n)).collect::<BTreeMap<_, _>>();
        let adoption = Adoption {
            spool: self.path("spool"),
            state: self.path("state"),
            parameters: self.parameters(),
            sequences: named(sequences),
            epoch,
            epoch_id: EpochId(0x1234_5678 + self.now.wall_ms),
            again: named(again),
        };
        adopt(&(Arc::clone(&self.disk) as Arc<dyn Disk>), &adoption)
    }

    /// Two that were transmitted, and two that wait, of which one has begun.
    fn with_a_past() -> Self {
        let mut rig = Self::new();
        rig.drop_file("a", "old", b"old");
        rig.drop_file("a", "older", b"older");
        rig.run(100);
        rig.running = false;
        for name in ["begun", "next", "last"] {
            rig.drop_file("a", name, name.as_bytes());
        }
        rig.run(100);
        rig.running = true;
        rig
    }
}

fn of<'a>(sent: &'a [Sent], name: &str) -> Vec<&'a Sent> {
    sent.iter().filter(|sent| sent.name == name).collect()
}

#[test]
fn what_is_unsent_begins_anew_after_what_the_other_side_knows() {
    let mut rig = Rig::with_a_past();
    let before = rig.engine().epoch();
    let begun: Vec<_> = rig.jobs.iter().map(|job| job.order.bundle).collect();
    assert_eq!(before.number, 1);
    rig.open();
    assert_eq!((rig.engine().epoch(), rig.engine().session_number()), (before, 2));
    let adopted = rig.adopt(&[("a", 413), ("b", 20)], &[]).unwrap();
    assert_eq!((adopted.epoch.number, adopted.before), (2, Some(before)));
    let raised: Vec<_> = adopted.channels.iter().map(|c| (c.channel.as_str(), c.before, c.newest)).collect();
    assert_eq!(raised, [("a", 5, 413), ("b", 0, 20)]);
    assert_eq!(adopted.again.iter().map(|b| b.sequence).collect::<Vec<_>>(), [Some(3), Some(4), Some(5)]);
    rig.open();
    assert_eq!((rig.engine().epoch(), rig.engine().session_number()), (adopted.epoch, 1));
    rig.run(100);
    rig.drop_file("a", "new", b"new");
    rig.drop_file("b", "new", b"new");
    rig.run(100);
    let sent: Vec<_> = rig.sent[2..].iter().map(|s| (s.channel.as_str(), s.sequence, s.name.as_str())).collect();
    let expected = [("a", 414, "begun"), ("a", 415, "next"), ("a", 416, "last"), ("a", 417, "new"), ("b", 21, "new")];
    assert_eq!(sent, expected);
    assert!(rig.sent[2..].iter().all(|s| !begun.contains(&s.bundle) && s.esis.start == 0 && s.hashes.is_some()));
    // What was transmitted stays what it was.
    let states: Vec<_> = rig.states().into_iter().map(|s| (s.1.unwrap(), s.3)).collect();
    let numbers: Vec<_> = states.iter().map(|s| s.0).collect();
    assert_eq!(numbers, [1, 2, 414, 415, 416, 417, 21]);
    assert!(states.iter().all(|s| s.1 == BundleState::Transmitted));
    let number = rig.engine().session_number();
    rig.open();
    assert_eq!((rig.engine().epoch(), rig.engine().session_number()), (adopted.epoch, number + 1));
}

#[test]
fn what_was_transmitted_is_sent_again_if_it_is_named() {
    let mut rig = Rig::with_a_past();
    rig.running = false;
    rig.adopt(&[("a", 3)], &[]).unwrap();
    rig.open();
    rig.running = true;
    rig.run(100);
    // Those before it, those of other channels and those that failed are not.
    let adopted = rig.adopt(&[("a", 6)], &[("a", 2)]).unwrap();
    assert_eq!(adopted.again.iter().map(|b| b.sequence).collect::<Vec<_>>(), [2, 6, 7, 8].map(Some));
    assert_eq!(adopted.channels[0].newest, 8, "it never goes back");
    let before = rig.sent.len();
    rig.open();
    rig.run(100);
    let sent: Vec<_> = rig.sent[before..].iter().map(|s| (s.sequence, s.name.as_str())).collect();
    assert_eq!(sent, [(9, "older"), (10, "begun"), (11, "next"), (12, "last")]);
    let older = of(&rig.sent, "older");
    assert!(older[0].bundle != older[1].bundle && older[0].announce != older[1].announce);
}

#[test]
fn an_epoch_is_as_high_as_it_is_told_to_be() {
    let mut rig = Rig::new();
    for (told, number) in [(None, 2), (Some(1), 3), (Some(9), 9), (None, 10)] {
        assert_eq!(rig.adopt_as(&[], &[], told).unwrap().epoch.number, number);
    }
    assert_eq!(rig.adopt_as(&[], &[], Some((1 << 53) - 1)).unwrap().epoch.number, (1 << 53) - 1);
    assert!(matches!(rig.adopt(&[], &[]), Err(AdoptError::Epoch)));
    rig.open();
    assert_eq!(rig.engine().session_number(), 1);
}

#[test]
fn a_state_that_was_lost_goes_on_with_what_is_held() {
    for all in [false, true] {
        let mut rig = Rig::with_a_past();
        rig.engine = None;
        fs::remove_file(rig.path("state/ledger")).unwrap();
        if all {
            fs::remove_dir_all(rig.path("state/bundles")).unwrap();
        }
        let adopted = rig.adopt(&[("a", 413)], &[]).unwrap();
        assert_eq!((adopted.epoch.number, adopted.before), (2, None), "the one that was lost was the first");
        assert_eq!(adopted.taken_back, if all { 0 } else { 5 });
        rig.open();
        rig.run(100);
        rig.drop_file("a", "new", b"new");
        rig.run(100);
        let sent: Vec<_> = rig.sent[2..].iter().map(|s| (s.sequence, s.name.as_str())).collect();
        let expected = [(414, "begun"), (415, "next"), (416, "last"), (417, "new")];
        if all {
            assert_eq!(sent, [(414, "new")]);
        } else {
            assert_eq!(sent, expected, "what was transmitted is not sent again");
            assert!(rig.bundles()[0].retained);
        }
    }
}

#[test]
fn an_end_at_any_step_leaves_the_one_state_or_the_other() {
    for lost in [false, true] {
        let mut nth = 0;
        loop {
            let mut rig = Rig::with_a_past();
            rig.engine = None;
            if lost {
                fs::remove_file(rig.path("state/ledger")).unwrap();
            }
            rig.disk.heal();
            rig.disk.fail_from(nth, 5);
            let adopted = rig.adopt(&[("a", 413)], &[]).is_ok();
            let steps = rig.disk.operations().len();
            rig.disk.heal();
            // Whoever starts the daemon now all the same, and then hears that nothing was changed.
            if nth % 2 == 0 {
                rig.open();
                rig.run(100);
                let anew = rig.sent[2..].iter().all(|s| s.sequence > 413);
                let as_before = rig.sent[2..].iter().all(|s| s.sequence <= 5);
                assert!(if adopted { anew } else { anew || as_before }, "step {nth}: {:?}", rig.sent);
            }
            let epoch = rig.adopt(&[("a", 413)], &[]).unwrap().epoch;
            rig.open();
            rig.run(30_000);
            assert_eq!((rig.engine().epoch(), rig.engine().session_number()), (epoch, 1));
            rig.drop_file("a", "new", b"new");
            rig.run(100);
            for name in ["begun", "next", "last", "new"] {
                let sent = of(&rig.sent, name);
                assert!(!sent.is_empty() && sent.iter().all(|s| s.hashes.is_some()), "step {nth}: {name}");
            }
            assert!(rig.sent.last().unwrap().sequence > 413, "step {nth}");
            let mut by_sequence: BTreeMap<u64, _> = BTreeMap::new();
            for sent in &rig.sent {
                assert_eq!(*by_sequence.entry(sent.sequence).or_insert(sent.bundle), sent.bundle, "step {nth}");
            }
            if nth > steps {
                assert!(adopted && nth > 5);
                break;
            }
            nth += 1;
        }
    }
}

#[test]
fn an_end_at_any_step_of_the_start_after_it_does_no_harm() {
    let mut nth = 0;
    loop {
        let mut rig = Rig::with_a_past();
        rig.adopt(&[("a", 413)], &[]).unwrap();
        rig.disk.heal();
        rig.disk.fail_from(nth, 5);
        let opened = rig.try_open();
        let steps = rig.disk.operations().len();
        rig.disk.heal();
        rig.open();
        rig.run(30_000);
        let sent: Vec<_> = rig.sent[2..].iter().map(|s| (s.sequence, s.name.as_str())).collect();
        assert_eq!(sent, [(414, "begun"), (415, "next"), (416, "last")], "step {nth}");
        assert_eq!(names(&rig.path("state/bundles/a")).len(), 5, "step {nth}");
        if opened && nth > steps {
            break;
        }
        nth += 1;
    }
    assert!(nth > 10);
}
