use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use checkvalve_host::disk::OsDisk;
use checkvalve_host::disk::fault::FailNth;
use checkvalve_protocol::beacon::{Beacon, ChannelState, Epoch, OnWire, Recent, RecentState};
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::id::{BundleId, EpochId, SessionId};
use checkvalve_protocol::manifest::{Outcome as HashesOutcome, signed};
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::ticket::Loss;

use super::operator::find;
use super::*;
use crate::delivery::trusting::NOT_ITS;
use crate::hook::Outcome;
use crate::ledger::State;
use crate::sink::{RefuseReason, Sink, StoreError, Want};
use crate::testing::{Sample, default_channel, key, shuffled, trust};

mod counts;
mod crash;
mod disk;
mod hostile;
mod install;
mod interleave;
mod lines;

mod senders;
mod told;
mod trusting;
mod verify;
mod watch;
mod years;

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
            space: space::Limits::new(0, u64::MAX),
            crowd: crate::store::CROWD,
            open_files: 2,
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
        let policy = Policy { hook: Some(Arc::new(hook)), wait_for_missing_ms: None, quota: None };
        self.settings.channels.insert(default_channel(), policy);
        self
    }

    fn open(&self) -> Delivery {
        self.try_open(1).unwrap()
    }

    fn try_open(&self, boot: u8) -> Result<Delivery, OpenError> {
        Delivery::open(self.disk.clone(), self.settings.clone(), Trust::new(trust()), [boot; 16], 1_000)
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
    if oti.blocks() == 1 {
        return delivery.manifest(id, kind, bytes);
    }
    for sbn in 0..oti.blocks() {
        let offset = oti.block_offset(sbn).unwrap() as usize;
        delivery.block(id, kind, &oti, sbn, &bytes[offset..offset + oti.block_len(sbn).unwrap()])?;
    }
    Ok(())
}

fn data(delivery: &Delivery, sample: &Sample, blocks: impl IntoIterator<Item = u32>) -> Result<(), StoreError> {
    let oti = sample.oti();
    let Want::Yes { have, .. } = delivery.want(sample.id(), ObjectKind::Data, &oti) else { return Ok(()) };
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

/// The hooks that are due end well, one after the other; gives the numbers of their bundles.
fn install_next(delivery: &Delivery, count: usize) -> Vec<u64> {
    let one = |_| {
        let due = delivery.due_hooks(0);
        delivery.hook_ended(&due[0], &Outcome::Done, 0);
        due[0].sequence
    };
    (0..count).map(one).collect()
}

fn state(delivery: &Delivery, sample: &Sample) -> Option<State> {
    delivery.ledger.lock().entry(sample.id()).map(|e| e.state())
}

fn reason(delivery: &Delivery, sample: &Sample) -> String {
    delivery.ledger.lock().entry(sample.id()).unwrap().reason.clone().unwrap_or_default()
}

/// The next beacon of the sender's only session.
fn beacon(newest: u64, recent: Vec<Recent>, on_wire: Option<(u64, u64)>) -> Beacon {
    static COUNTER: AtomicU64 = AtomicU64::new(1);
    Beacon {
        epoch: Epoch { number: 1, id: EpochId(11) },
        session_number: 1,
        session: SessionId(1),
        counter: COUNTER.fetch_add(1, Ordering::Relaxed),
        clock_ms: 0,
        rate_bits: 0,
        datagrams: 0,
        on_wire: on_wire.map(|(id, sequence)| OnWire {
            bundle: own(id),
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

/// A beacon arrives that this key signed; whether it counts.
fn hear_of(delivery: &Delivery, now_ms: u64, beacon: &Beacon, key: &SigningKey) -> bool {
    delivery.beacon(now_ms, beacon.session, &beacon.sign(key, 1_408)).is_some()
}

/// The sender's next beacon arrives.
fn hear(delivery: &Delivery, now_ms: u64, newest: u64, recent: Vec<Recent>, on_wire: Option<(u64, u64)>) {
    assert!(hear_of(delivery, now_ms, &beacon(newest, recent, on_wire), &key()));
}

fn own(id: u64) -> BundleId {
    BundleId::new(id, key().public().id())
}

fn recent(id: u64, sequence: u64, state: RecentState) -> Recent {
    Recent { sequence, bundle: own(id), bytes: 77, state, name: b"lost".to_vec() }
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
fn two_bundles_of_one_sequence_are_received_and_the_first_to_be_whole_has_it() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let (announced_only, honest) = (Sample::file(1, 1, 100), Sample::file(2, 1, 200));
    announce(&delivery, &announced_only).unwrap();
    work(&delivery);
    let first: Which = "default/1".parse().unwrap();
    assert_eq!(find(&delivery.ledger, &first), Ok(announced_only.id()));
    announce(&delivery, &honest).unwrap();
    work(&delivery);
    // Which of them is meant is for the operator to say.
    let Err(DecideError::Claimed(ids)) = find(&delivery.ledger, &first) else {
        panic!("{:?}", find(&delivery.ledger, &first))
    };
    assert_eq!(ids.len(), 2);
    assert_eq!(find(&delivery.ledger, &ids[1].parse().unwrap()), Ok(honest.id()));
    send(&delivery, &honest);
    honest.assert_at(&bench.inbox(1));
    assert_eq!(find(&delivery.ledger, &first), Ok(honest.id()));
    assert_eq!(delivery.due_hooks(0)[0].id, honest.id());
    // The other one is whole too late.
    send(&delivery, &announced_only);
    assert_eq!(state(&delivery, &announced_only), Some(State::Held));
    assert!(reason(&delivery, &announced_only).contains("adopt --epoch"), "{}", reason(&delivery, &announced_only));
    honest.assert_at(&bench.inbox(1));
    let third = Sample::file(3, 1, 300);
    send(&delivery, &third);
    assert_eq!(state(&delivery, &third), Some(State::Held));
    delivery.reject(&third.id().to_string()[..].parse().unwrap()).unwrap();
}

#[test]
fn a_jump_is_held_until_an_operator_approves_it() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let (first, far) = (Sample::file(1, 1, 100), Sample::file(2, 50_000, 200));
    send(&delivery, &first);
    send(&delivery, &far);
    assert_eq!(state(&delivery, &far), Some(State::Held));
    assert!(reason(&delivery, &far).contains("approve default/50000"));
    hear(&delivery, 1_000, (1 << 53) - 1, vec![], None);
    assert_eq!(delivery.ledger.lock().channel(&default_channel()).unwrap().newest(), 1);
    assert_eq!(delivery.noted(0)[0].code, alarms::Code::SequenceJump);
    // The next one goes on.
    send(&delivery, &Sample::file(3, 2, 100));
    assert!(bench.inbox(2).exists());
    delivery.approve(&"default/50000".parse().unwrap()).unwrap();
    send(&delivery, &far);
    far.assert_at(&bench.inbox(50_000));
    assert!(matches!(delivery.approve(&"default/50000".parse().unwrap()), Err(DecideError::NotHeld(State::Complete))));
}

#[test]
fn missing_ones_are_given_up_together() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    send(&delivery, &Sample::file(1, 1, 50));
    let run = delivery.due_hooks(0);
    delivery.hook_ended(&run[0], &Outcome::Done, 0);
    delivery.approve(&"default/90000".parse().unwrap()).unwrap();
    send(&delivery, &Sample::file(2, 90_000, 50));
    send(&delivery, &Sample::file(3, 500, 50));
    assert!(delivery.due_hooks(0).is_empty());
    let all = "default/2-89999".parse().unwrap();
    delivery.reject(&all).unwrap();
    assert_eq!(delivery.reject(&all), Err(DecideError::Unknown));
    assert_eq!(delivery.ledger.lock().channel(&default_channel()).unwrap().gaps(0, 9), []);
    for sequence in [500, 90_000] {
        let run = delivery.due_hooks(0);
        assert_eq!(run[0].sequence, sequence);
        delivery.hook_ended(&run[0], &Outcome::Done, 0);
    }
    // What is in the audit trail is enough to know it again.
    drop(delivery);
    std::fs::remove_file(bench.dir.path().join("state/ledger")).unwrap();
    let delivery = bench.open();
    assert_eq!(delivery.ledger.lock().channel(&default_channel()).unwrap().gaps(0, 9), []);
    send(&delivery, &Sample::file(4, 700, 50));
    assert_eq!(state(&delivery, &Sample::file(4, 700, 50)), None);
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
fn a_withdrawal_counts_that_came_before_the_announce() {
    let bench = Bench::new();
    let delivery = bench.open();
    let sample = &samples()[0];
    let withdrawn = sample.hashes_as(HashesOutcome::withdrawn("a \u{9b}31m \\ b"));
    manifest(&delivery, sample.id(), ObjectKind::Hashes, &withdrawn).unwrap();
    work(&delivery);
    announce(&delivery, sample).unwrap();
    work(&delivery);
    let (state, reason) = (state(&delivery, sample), reason(&delivery, sample));
    assert_eq!((state, reason.as_str()), (Some(State::Withdrawn), r"a \u{9b}31m \\ b"));
    assert!(delivery.store.all().is_empty());
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
    assert_eq!(delivery.reject(&which), Err(DecideError::Over(State::Rejected)));
    assert_eq!(delivery.reject(&Which::Prefix("0".into())), Err(DecideError::Ambiguous));
    assert_eq!(delivery.reject(&"default/9".parse().unwrap()), Err(DecideError::Unknown));
    assert!(matches!("x".parse::<Which>(), Err(DecideError::Malformed)));
    assert!(delivery.store.all().is_empty());
    let due = delivery.due_hooks(0);
    assert_eq!(due[0].sequence, 2);
    assert_eq!(delivery.reject(&"default/2".parse().unwrap()), Err(DecideError::Running));
    send(&delivery, first);
    let late = delivery.block(first.id(), ObjectKind::Data, &first.oti(), 0, first.block(0));
    assert!(matches!(late, Err(StoreError::Unwanted)));
    assert!(!bench.inbox(1).exists() && delivery.store.all().is_empty());
}

#[test]
fn data_without_announces_is_bounded() {
    let bench = Bench::new();
    let delivery = bench.open();
    let oti = Oti::new(5_000, 64, 8).unwrap();
    let most = bench.settings.space.unsigned_bundles;
    for id in 0..most + 20 {
        assert!(matches!(
            delivery.want(own(100 + id), ObjectKind::Data, &oti),
            Want::Yes { origin: checkvalve_protocol::receive::Origin::Named, .. }
        ));
        let stored = delivery.block(own(100 + id), ObjectKind::Data, &oti, 0, &[0; 512]);
        assert_eq!(stored.is_ok(), id < most, "{id}: {stored:?}");
    }
    // Those that are silent make room, one for each that comes.
    delivery.tick(delivery.clock.now() + 250);
    for id in most..most + 20 {
        delivery.block(own(100 + id), ObjectKind::Data, &oti, 0, &[0; 512]).unwrap();
        assert_eq!(delivery.store.space().unsigned_bundles(), most);
    }
    send(&delivery, &samples()[0]);
    samples()[0].assert_at(&bench.inbox(1));
    let stranger = BundleId(7);
    assert_eq!(delivery.want(stranger, ObjectKind::Data, &oti), Want::Refuse(RefuseReason::Signer));
    assert_eq!(delivery.want(stranger, ObjectKind::Hashes, &oti), Want::Refuse(RefuseReason::Signer));
}

#[test]
fn what_came_just_before_a_stop_is_kept() {
    let bench = Bench::new();
    let sample = &samples()[2];
    let delivery = bench.open();
    announce(&delivery, sample).unwrap();
    hashes(&delivery, sample).unwrap();
    delivery.tick_last(2_000);
    drop(delivery);
    let delivery = bench.open();
    work(&delivery);
    data(&delivery, sample, 0..sample.oti().blocks()).unwrap();
    work(&delivery);
    sample.assert_at(&bench.inbox(3));
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
    assert_eq!(delivery.want(own(9), ObjectKind::Announce, &huge), Want::Refuse(RefuseReason::Length));
    // Data of a wrong length that came first gives way to the announce.
    let other = &samples()[2];
    delivery.want(other.id(), ObjectKind::Data, &longer);
    delivery.block(other.id(), ObjectKind::Data, &longer, 0, &[0; 512]).unwrap();
    send(&delivery, other);
    other.assert_at(&bench.inbox(3));
}
