use std::path::Path;

use checkvalve_host::disk::OsDisk;
use checkvalve_host::disk::fault::FailNth;
use checkvalve_protocol::beacon::{Beacon, ChannelState, OnWire, Recent, RecentState};
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::id::SessionId;
use checkvalve_protocol::manifest::{Outcome as HashesOutcome, signed};
use checkvalve_protocol::partition::Oti;

use super::*;
use crate::hook::Outcome;
use crate::ledger::State;
use crate::sink::{RefuseReason, Sink, StoreError, Want};
use crate::testing::{Sample, default_channel, key, shuffled, trust};

mod crash;
mod disk;
mod hostile;
mod interleave;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

struct Bench {
    dir: tempfile::TempDir,
    disk: Arc<FailNth>,
    settings: Settings,
}

impl Bench {
    fn new() -> Self {
        let dir = crate::testing::dir();
        for name in ["inbox", "quarantine", "state"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let path = |name: &str| dir.path().join(name);
        let settings = Settings {
            inbox: path("inbox"),
            quarantine: path("quarantine"),
            state: path("state"),
            staging: path("state/staging"),
            durability: Durability::Syncfs,
            channels: BTreeMap::new(),
            silence_ms: 10_000,
            reserve: 0,
            quota: u64::MAX,
            crowd: crate::store::CROWD,
        };
        Self { disk: Arc::new(FailNth::new(Arc::new(OsDisk))), dir, settings }
    }

    fn with_hook(mut self, retries: Option<u32>) -> Self {
        let hook = HookPolicy {
            install: "/bin/true".into(),
            timeout: Duration::from_secs(1),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(8),
            retries,
        };
        let policy = Policy { hook: Some(Arc::new(hook)), wait_for_missing_ms: None };
        self.settings.channels.insert(default_channel(), policy);
        self
    }

    fn open(&self) -> Delivery {
        self.try_open(1).unwrap()
    }

    fn try_open(&self, boot: u8) -> Result<Delivery, OpenError> {
        Delivery::open(self.disk.clone(), self.settings.clone(), trust(), [boot; 16], 1_000)
    }

    fn inbox(&self, sequence: u64) -> PathBuf {
        self.settings.inbox.join(format!("default/{sequence:08}"))
    }

    fn reason(&self, sample: &Sample) -> serde_json::Value {
        let name = format!("default/{:08}-{}/reason.json", sample.announce.sequence, sample.id());
        serde_json::from_slice(&std::fs::read(self.settings.quarantine.join(name)).unwrap()).unwrap()
    }

    fn audit(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.dir.path().join("state/audit.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Nothing but the directories of the daemon has come into being.
    fn assert_contained(&self) {
        let names: Vec<_> = std::fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }
}

fn manifest(delivery: &Delivery, id: BundleId, kind: ObjectKind, bytes: &[u8]) -> Result<(), StoreError> {
    let oti = Oti::new(bytes.len() as u64, 1_408, 256).unwrap();
    match delivery.want(id, kind, &oti) {
        Want::Yes { .. } => {}
        _ => return Ok(()),
    }
    for sbn in 0..oti.blocks() {
        let offset = oti.block_offset(sbn).unwrap() as usize;
        delivery.block(id, kind, &oti, sbn, &bytes[offset..offset + oti.block_len(sbn).unwrap()])?;
    }
    Ok(())
}

fn data(delivery: &Delivery, sample: &Sample, blocks: impl IntoIterator<Item = u32>) -> Result<(), StoreError> {
    let oti = sample.oti();
    let Want::Yes { have } = delivery.want(sample.id(), ObjectKind::Data, &oti) else { return Ok(()) };
    for sbn in blocks.into_iter().filter(|&sbn| !have.contains(sbn)) {
        delivery.block(sample.id(), ObjectKind::Data, &oti, sbn, sample.block(sbn))?;
    }
    Ok(())
}

fn announce(delivery: &Delivery, sample: &Sample) -> Result<(), StoreError> {
    manifest(delivery, sample.id(), ObjectKind::Announce, &sample.signed())
}

fn hashes(delivery: &Delivery, sample: &Sample) -> Result<(), StoreError> {
    manifest(delivery, sample.id(), ObjectKind::Hashes, &sample.hashes())
}

fn work(delivery: &Delivery) {
    while delivery.work() {}
}

/// All of a bundle, as a first pass brings it.
fn send(delivery: &Delivery, sample: &Sample) {
    announce(delivery, sample).unwrap();
    if !sample.data.is_empty() {
        data(delivery, sample, 0..sample.oti().blocks()).unwrap();
    }
    hashes(delivery, sample).unwrap();
    work(delivery);
}

fn state(delivery: &Delivery, sample: &Sample) -> Option<State> {
    delivery.ledger.lock().entry(sample.id()).map(|e| e.state)
}

fn reason(delivery: &Delivery, sample: &Sample) -> String {
    delivery.ledger.lock().entry(sample.id()).unwrap().reason.clone().unwrap_or_default()
}

fn beacon(newest: u64, recent: Vec<Recent>, on_wire: Option<(u64, u64)>) -> Beacon {
    Beacon {
        session_number: 1,
        clock_ms: 0,
        rate_bits: 0,
        datagrams: 0,
        on_wire: on_wire.map(|(id, sequence)| OnWire {
            bundle: BundleId(id),
            channel: default_channel(),
            sequence,
            pass: 1,
            passes: 1,
            blocks: 1,
            blocks_sent: 0,
        }),
        channel: Some(ChannelState { name: default_channel(), priority: 0, newest, recent }),
    }
}

fn recent(id: u64, sequence: u64, state: RecentState) -> Recent {
    Recent { sequence, bundle: BundleId(id), bytes: 77, state, name: b"lost".to_vec() }
}

fn samples() -> Vec<Sample> {
    vec![
        Sample::file(1, 1, 5_000),
        Sample::file(2, 2, 0),
        Sample::tree(3, 3, &[0, 1, 511, 512, 513, 3_000, 0, 7, 1_024]),
        Sample::tree(4, 4, &[]),
        Sample::tree(5, 5, &[0, 0]),
        Sample::tree(6, 6, &[30; 40]),
    ]
}

#[test]
fn bundles_arrive_exactly_whatever_comes_first() {
    for sample in samples() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0], [2, 0, 1], [0, 2, 1]] {
            for durability in [Durability::Syncfs, Durability::Fsync] {
                let mut bench = Bench::new();
                bench.settings.durability = durability;
                let delivery = bench.open();
                for step in order {
                    assert!(sample.data.is_empty() || !bench.inbox(sample.announce.sequence).exists());
                    match step {
                        0 => announce(&delivery, &sample).unwrap(),
                        1 if sample.data.is_empty() => {}
                        1 => data(&delivery, &sample, shuffled(sample.oti().blocks(), 3)).unwrap(),
                        _ => hashes(&delivery, &sample).unwrap(),
                    }
                    work(&delivery);
                }
                sample.assert_at(&bench.inbox(sample.announce.sequence));
                assert_eq!(state(&delivery, &sample), Some(State::Complete));
                assert!(delivery.store.all().is_empty(), "staging is clean");
                assert_eq!(std::fs::read_dir(&bench.settings.staging).unwrap().count(), 1, "but for the journal");
                assert_eq!(bench.audit().iter().filter(|line| line["event"] == "published").count(), 1);
            }
        }
    }
}

#[test]
fn a_bundle_sent_twice_is_delivered_once() {
    let bench = Bench::new().with_hook(None);
    let sample = &samples()[2];
    for restart in [false, true] {
        let delivery = bench.open();
        send(&delivery, sample);
        let due = delivery.due_hooks(0);
        assert_eq!(due.len(), usize::from(!restart));
        due.iter().for_each(|run| delivery.hook_ended(run, &Outcome::Done, 0));
        send(&delivery, sample);
        assert!(delivery.due_hooks(0).is_empty());
        assert_eq!(delivery.want(sample.id(), ObjectKind::Data, &sample.oti()), Want::Done);
        assert_eq!(state(&delivery, sample), Some(State::Installed));
    }
}

#[test]
fn what_is_not_as_signed_is_quarantined() {
    let sample = Sample::tree(7, 1, &[600, 30]);
    let mut other = sample.clone();
    other.data[599] ^= 1;
    let mallory = SigningKey::from_seed([9; 32]);
    let unsigned = signed::seal_unsigned(signed::parse(&sample.signed()).unwrap().payload);
    let mut tampered = sample.signed();
    *tampered.last_mut().unwrap() ^= 1;
    let mut hashes = sample.hashes();
    hashes[50] ^= 1;
    let fewer = sample.hashes_as(HashesOutcome::Complete { files: vec![[0; 32]] });
    let swapped = {
        let mut digests = sample.digests();
        digests.swap(0, 1);
        sample.hashes_as(HashesOutcome::Complete { files: digests })
    };
    let wrong_key = sample.announce.sign(&mallory).unwrap();
    let cases = [
        ("content", sample.signed(), other.data.clone(), sample.hashes()),
        ("content", sample.signed(), sample.data.clone(), swapped),
        ("unsigned", unsigned, sample.data.clone(), sample.hashes()),
        ("unknown-key", wrong_key, sample.data.clone(), sample.hashes()),
        ("bad-signature", tampered, sample.data.clone(), sample.hashes()),
        ("bad-signature", sample.signed(), sample.data.clone(), hashes),
        ("hash-count", sample.signed(), sample.data.clone(), fewer),
        ("other-bundle", Sample::tree(8, 1, &[600, 30]).signed(), sample.data.clone(), sample.hashes()),
        ("other-announce", sample.signed(), sample.data.clone(), Sample::tree(7, 2, &[600, 30]).hashes()),
    ];
    for (rule, announce, content, hashes) in cases {
        let bench = Bench::new().with_hook(None);
        let delivery = bench.open();
        let sent = Sample { data: content, ..sample.clone() };
        manifest(&delivery, sent.id(), ObjectKind::Announce, &announce).unwrap();
        data(&delivery, &sent, 0..sent.oti().blocks()).unwrap();
        manifest(&delivery, sent.id(), ObjectKind::Hashes, &hashes).unwrap();
        work(&delivery);
        assert_eq!(state(&delivery, &sent), Some(State::Quarantined), "{rule}");
        assert!(!bench.inbox(1).exists() && delivery.due_hooks(0).is_empty());
        let reason = bench.reason(&sent);
        assert_eq!(reason["rule"], rule, "{reason}");
        assert!(delivery.store.all().is_empty());
        assert_eq!(bench.audit().last().unwrap()["event"], "quarantined");
        // The next one is not held up.
        let next = Sample::file(20, 2, 10);
        send(&delivery, &next);
        assert_eq!(delivery.due_hooks(0).len(), 1, "{rule}");
    }
}

#[test]
fn a_key_that_is_trusted_later_lets_its_bundles_come_again() {
    let bench = Bench::new();
    let delivery = bench.open();
    let sample = &samples()[0];
    delivery.set_trust(TrustStore::new(), 5).unwrap();
    send(&delivery, sample);
    assert_eq!(state(&delivery, sample), Some(State::Quarantined));
    drop(delivery);
    let delivery = bench.open(); // with the key
    assert_eq!(state(&delivery, sample), Some(State::Missing));
    send(&delivery, sample);
    sample.assert_at(&bench.inbox(1));
    let events: Vec<_> = bench.audit().iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(events, ["trust_added", "trust_removed", "quarantined", "trust_added", "published"]);
}

#[test]
fn the_sender_may_withdraw_a_bundle() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let sample = &samples()[0];
    announce(&delivery, sample).unwrap();
    data(&delivery, sample, 0..3).unwrap();
    let withdrawn = sample.hashes_as(HashesOutcome::withdrawn("it changed"));
    manifest(&delivery, sample.id(), ObjectKind::Hashes, &withdrawn).unwrap();
    work(&delivery);
    assert_eq!((state(&delivery, sample), reason(&delivery, sample).as_str()), (Some(State::Withdrawn), "it changed"));
    assert!(delivery.store.all().is_empty());
    send(&delivery, &samples()[1]);
    assert_eq!(delivery.due_hooks(0)[0].sequence, 2);
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
fn what_was_sent_and_never_arrived_is_missing_by_name() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let bundles: Vec<Sample> = (1..=4).map(|n| Sample::file(n, n, 100)).collect();
    send(&delivery, &bundles[0]);
    let first = delivery.due_hooks(0);
    delivery.hook_ended(&first[0], &Outcome::Done, 0);
    let sent = vec![recent(4, 4, RecentState::Queued), recent(3, 3, RecentState::Transmitted)];
    delivery.beacon(2_000, SessionId(1), beacon(4, sent, None));
    delivery.tick(2_000);
    delivery.tick(6_900);
    let rows = |delivery: &Delivery| -> Vec<(u64, String, &'static str)> {
        let status = delivery.status(6_900);
        status.bundles.into_iter().map(|b| (b.sequence, b.id, b.state.as_str())).collect()
    };
    let id = |id| BundleId(id).to_string();
    let expected = [(3, id(3), "missing"), (2, String::new(), "missing"), (1, id(1), "installed")];
    assert_eq!(rows(&delivery), expected, "of 2 not even the id is known; 4 was not sent yet");
    send(&delivery, &bundles[3]);
    assert!(delivery.due_hooks(0).is_empty());
    let status = delivery.status(0);
    assert_eq!(status.bundles[0].waiting_for, Some(2));
    assert_eq!(status.channels[0].blocked_by, Some(2));
    delivery.reject(&"default/2".parse().unwrap()).unwrap();
    send(&delivery, &bundles[2]);
    let sequences: Vec<u64> = (0..2)
        .map(|_| {
            let due = delivery.due_hooks(0);
            delivery.hook_ended(&due[0], &Outcome::Done, 0);
            due[0].sequence
        })
        .collect();
    assert_eq!(sequences, [3, 4]);
    send(&delivery, &bundles[1]);
    assert!(!bench.inbox(2).exists(), "given up");
}

#[test]
fn incomplete_says_what_is_lacking_and_a_second_pass_mends_it() {
    let bench = Bench::new();
    let delivery = bench.open();
    let sample = &samples()[0];
    delivery.tick(1_000);
    announce(&delivery, sample).unwrap();
    data(&delivery, sample, 0..4).unwrap();
    delivery.tick(2_000);
    assert_eq!(state(&delivery, sample), Some(State::Receiving));
    delivery.beacon(2_500, SessionId(1), beacon(1, vec![recent(1, 1, RecentState::Transmitted)], None));
    delivery.tick(3_000);
    assert_eq!(state(&delivery, sample), Some(State::Incomplete));
    assert_eq!(reason(&delivery, sample), "lacks 2952 of 5000 bytes, its hashes");
    delivery.tick(40_000);
    data(&delivery, sample, 4..6).unwrap();
    delivery.beacon(40_000, SessionId(1), beacon(1, vec![], Some((1, 1))));
    delivery.tick(40_500);
    assert_eq!(state(&delivery, sample), Some(State::Receiving), "while it is on the wire again");
    send(&delivery, sample);
    sample.assert_at(&bench.inbox(1));
}

#[test]
fn silence_makes_incomplete_without_any_beacon() {
    let bench = Bench::new();
    let delivery = bench.open();
    let sample = &samples()[0];
    delivery.tick(1_000);
    data(&delivery, sample, 0..4).unwrap();
    delivery.tick(9_000);
    assert_eq!(state(&delivery, sample), Some(State::Receiving));
    delivery.tick(12_000);
    assert_eq!(state(&delivery, sample), Some(State::Incomplete));
    assert!(reason(&delivery, sample).contains("its announce"), "{}", reason(&delivery, sample));
}

#[test]
fn a_full_disk_is_told_and_the_same_bundle_completes_later() {
    let bench = Bench::new();
    let delivery = bench.open();
    let sample = &samples()[0];
    delivery.tick(1_000);
    announce(&delivery, sample).unwrap();
    bench.disk.fail_from(0, ENOSPC);
    assert!(matches!(data(&delivery, sample, 0..9), Err(StoreError::NoRoom)));
    delivery.tick(20_000);
    bench.disk.heal();
    assert_eq!(state(&delivery, sample), Some(State::Incomplete));
    assert_eq!(reason(&delivery, sample), "no room in staging; lacks 5000 of 5000 bytes, its hashes");
    send(&delivery, sample);
    sample.assert_at(&bench.inbox(1));
}

#[test]
fn rejecting_gives_up_what_there_is_and_nothing_else() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let (first, second) = (&samples()[0], &samples()[1]);
    announce(&delivery, first).unwrap();
    data(&delivery, first, 0..4).unwrap();
    send(&delivery, second);
    assert!(delivery.due_hooks(0).is_empty());
    let which: Which = first.id().to_string()[..].parse().unwrap();
    delivery.reject(&which).unwrap();
    assert_eq!(delivery.reject(&which), Err(RejectError::Over(State::Rejected)));
    assert_eq!(delivery.reject(&Which::Prefix("0".into())), Err(RejectError::Ambiguous));
    assert_eq!(delivery.reject(&"default/9".parse().unwrap()), Err(RejectError::Unknown));
    assert!(matches!("x".parse::<Which>(), Err(RejectError::Malformed)));
    assert!(delivery.store.all().is_empty());
    let due = delivery.due_hooks(0);
    assert_eq!(due[0].sequence, 2);
    assert_eq!(delivery.reject(&"default/2".parse().unwrap()), Err(RejectError::Running));
    send(&delivery, first);
    let late = delivery.block(first.id(), ObjectKind::Data, &first.oti(), 0, first.block(0));
    assert!(matches!(late, Err(StoreError::Unwanted)));
    assert!(!bench.inbox(1).exists() && delivery.store.all().is_empty());
}

#[test]
fn a_late_bundle_is_published_but_never_installed() {
    let mut bench = Bench::new().with_hook(None);
    bench.settings.channels.get_mut(&default_channel()).unwrap().wait_for_missing_ms = Some(1_000);
    let delivery = bench.open();
    delivery.beacon(0, SessionId(1), beacon(1, vec![recent(1, 1, RecentState::Transmitting)], None));
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

#[test]
fn data_without_announces_is_bounded() {
    let bench = Bench::new();
    let delivery = bench.open();
    let oti = Oti::new(5_000, 64, 8).unwrap();
    for id in 0..MAX_UNANNOUNCED as u64 {
        assert!(matches!(delivery.want(BundleId(100 + id), ObjectKind::Data, &oti), Want::Yes { .. }));
        delivery.block(BundleId(100 + id), ObjectKind::Data, &oti, 0, &[0; 512]).unwrap();
    }
    assert_eq!(delivery.want(BundleId(1), ObjectKind::Data, &oti), Want::Refuse(RefuseReason::TooMany));
    delivery.tick(60_000);
    send(&delivery, &samples()[0]);
    samples()[0].assert_at(&bench.inbox(1));
}

#[test]
fn a_length_other_than_announced_is_refused() {
    let bench = Bench::new();
    let delivery = bench.open();
    let sample = &samples()[0];
    announce(&delivery, sample).unwrap();
    let longer = Oti::new(5_001, 64, 8).unwrap();
    assert_eq!(delivery.want(sample.id(), ObjectKind::Data, &longer), Want::Refuse(RefuseReason::Length));
    assert!(delivery.block(sample.id(), ObjectKind::Data, &longer, 0, &[0; 512]).is_err());
    let huge = Oti::new(MAX_MANIFEST_LEN as u64 + 1, 1_408, 256).unwrap();
    assert_eq!(delivery.want(BundleId(9), ObjectKind::Announce, &huge), Want::Refuse(RefuseReason::Length));
    // Data of a wrong length that came first gives way to the announce.
    let other = &samples()[2];
    delivery.want(other.id(), ObjectKind::Data, &longer);
    delivery.block(other.id(), ObjectKind::Data, &longer, 0, &[0; 512]).unwrap();
    send(&delivery, other);
    other.assert_at(&bench.inbox(3));
}
