use std::path::Path;

use checkvalve_host::disk::OsDisk;
use checkvalve_host::disk::fault::FailNth;
use checkvalve_protocol::beacon::{Beacon, ChannelState, Epoch, OnWire, Recent, RecentState};
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::id::{EpochId, SessionId};
use checkvalve_protocol::manifest::{Outcome as HashesOutcome, signed};
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::ticket::Loss;

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
            space: space::Limits::new(0, u64::MAX),
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

fn state(delivery: &Delivery, sample: &Sample) -> Option<State> {
    delivery.ledger.lock().entry(sample.id()).map(|e| e.state)
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
fn what_is_not_rightly_signed_changes_nothing() {
    let sample = Sample::tree(7, 1, &[600, 30]);
    let mallory = SigningKey::from_seed([9; 32]);
    let unsigned = signed::seal_unsigned(signed::parse(&sample.signed()).unwrap().payload);
    let mut tampered = sample.signed();
    *tampered.last_mut().unwrap() ^= 1;
    let mut hashes = sample.hashes();
    hashes[50] ^= 1;
    let wrong_key = sample.announce.sign(&mallory).unwrap();
    let cases = [
        ("unsigned", Some(unsigned), None),
        ("unknown-key", Some(wrong_key), None),
        ("bad-signature", Some(tampered), None),
        ("bad-signature", None, Some(hashes)),
        ("container", None, Some(b"rubbish".to_vec())),
        ("other-bundle", Some(Sample::tree(8, 1, &[600, 30]).signed()), None),
        ("other-announce", None, Some(Sample::tree(7, 2, &[600, 30]).hashes())),
    ];
    for (rule, bad_announce, bad_hashes) in cases {
        for first in [true, false] {
            let bench = Bench::new().with_hook(None);
            let delivery = bench.open();
            let bring = |kind, bytes: &Option<Vec<u8>>| {
                if let Some(bytes) = bytes {
                    let taken = manifest(&delivery, sample.id(), kind, bytes);
                    assert!(matches!(taken, Err(StoreError::Refused) | Ok(())), "{taken:?}");
                }
            };
            if first {
                bring(ObjectKind::Announce, &bad_announce);
                announce(&delivery, &sample).unwrap();
            } else {
                announce(&delivery, &sample).unwrap();
                bring(ObjectKind::Announce, &bad_announce);
            }
            bring(ObjectKind::Hashes, &bad_hashes);
            work(&delivery);
            assert_ne!(state(&delivery, &sample), Some(State::Quarantined), "{rule}");
            send(&delivery, &sample);
            assert_eq!(state(&delivery, &sample), Some(State::Complete), "{rule}");
            sample.assert_at(&bench.inbox(1));
            assert_eq!(delivery.due_hooks(0).len(), 1, "{rule}");
            let counted = delivery.status(0).discarded.get(rule).copied().unwrap_or(0);
            assert!(counted > 0 || !first, "{rule}: {:?}", delivery.status(0).discarded);
            assert!(!bench.settings.quarantine.join("default").exists());
        }
    }
}

#[test]
fn what_is_signed_wrong_is_quarantined_until_somebody_retries() {
    let sample = Sample::tree(7, 1, &[600, 30]);
    let fewer = sample.hashes_as(HashesOutcome::Complete { files: vec![[0; 32]] });
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    announce(&delivery, &sample).unwrap();
    data(&delivery, &sample, 0..sample.oti().blocks()).unwrap();
    manifest(&delivery, sample.id(), ObjectKind::Hashes, &fewer).unwrap();
    work(&delivery);
    assert_eq!(state(&delivery, &sample), Some(State::Quarantined));
    assert!(!bench.inbox(1).exists() && delivery.due_hooks(0).is_empty());
    assert_eq!(bench.reason(&sample)["rule"], "hash-count");
    assert!(delivery.store.all().is_empty());
    assert_eq!(bench.audit().last().unwrap()["event"], "quarantined");
    // The next one is not held up.
    let next = Sample::file(20, 2, 10);
    send(&delivery, &next);
    assert_eq!(delivery.due_hooks(0).len(), 1);
    // It is not taken again, unless an operator says so.
    send(&delivery, &sample);
    assert_eq!(state(&delivery, &sample), Some(State::Quarantined));
    delivery.retry(&"default/1".parse().unwrap()).unwrap();
    assert_eq!(state(&delivery, &sample), Some(State::Missing));
    send(&delivery, &sample);
    sample.assert_at(&bench.inbox(1));
    assert!(!bench.settings.quarantine.join(format!("default/00000001-{}", sample.id())).exists());
}

#[test]
fn content_that_does_not_match_is_received_again() {
    for spoilt in [0, 1_500, 2_999] {
        let sample = Sample::tree(7, 1, &[1_000, 1_000, 1_000]);
        let mut other = sample.clone();
        other.data[spoilt] ^= 1;
        let bench = Bench::new().with_hook(None);
        let delivery = bench.open();
        announce(&delivery, &sample).unwrap();
        data(&delivery, &other, 0..sample.oti().blocks()).unwrap();
        hashes(&delivery, &sample).unwrap();
        work(&delivery);
        assert!(!bench.inbox(1).exists() && delivery.due_hooks(0).is_empty());
        let entry = delivery.ledger.lock().entry(sample.id()).cloned().unwrap();
        assert!(entry.state.is_open() && entry.spoilt == 1, "{entry:?}");
        assert_eq!(bench.audit().last().unwrap()["event"], "spoilt");
        assert_eq!(delivery.lost(), [sample.id()], "the data plane asks again");
        // Only what touches the file that was spoilt has to come again; also after a restart.
        drop(delivery);
        let delivery = bench.open();
        let Want::Yes { have, .. } = delivery.want(sample.id(), ObjectKind::Data, &sample.oti()) else { panic!() };
        assert!(have.len() >= 2, "{have:?}");
        send(&delivery, &sample);
        sample.assert_at(&bench.inbox(1));
        assert_eq!(delivery.due_hooks(0).len(), 1);
    }
}

/// Whoever spoils what is on the link goes on for a while: that must not be in the way of what is sent again.
#[test]
fn what_comes_after_spoilt_content_is_thrown_away_when_the_link_is_silent() {
    let sample = Sample::tree(7, 1, &[1_000, 1_000, 1_000]);
    let mut other = sample.clone();
    other.data[1_500] ^= 1;
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    delivery.tick(1_000);
    announce(&delivery, &sample).unwrap();
    data(&delivery, &other, 0..sample.oti().blocks()).unwrap();
    hashes(&delivery, &sample).unwrap();
    work(&delivery);
    assert_eq!(delivery.lost(), [sample.id()]);
    let have = |delivery: &Delivery| match delivery.want(sample.id(), ObjectKind::Data, &sample.oti()) {
        Want::Yes { have, .. } => have.iter().collect::<Vec<u32>>(),
        other => panic!("{other:?}"),
    };
    let good = have(&delivery);
    let bad: Vec<u32> = (0..sample.oti().blocks()).filter(|sbn| !good.contains(sbn)).collect();
    assert!(bad.len() > 1, "{bad:?}");
    // He sends on.
    delivery.tick(2_000);
    data(&delivery, &other, bad[0]..bad[0] + 1).unwrap();
    work(&delivery);
    assert_eq!(have(&delivery).len(), good.len() + 1, "nobody knows yet what that is");
    delivery.tick(40_000);
    work(&delivery);
    assert_eq!(state(&delivery, &sample), Some(State::Incomplete));
    assert_eq!(have(&delivery), good, "what was proven stays");
    assert_eq!(delivery.lost(), [sample.id()], "the data plane forgets what it has");
    // What comes then stays, however long the link is silent.
    data(&delivery, &sample, bad[0]..bad[0] + 1).unwrap();
    delivery.tick(90_000);
    work(&delivery);
    assert_eq!(have(&delivery).len(), good.len() + 1);
    assert!(delivery.noted(0).iter().any(|alarm| alarm.code == alarms::Code::Spoilt));
    send(&delivery, &sample);
    sample.assert_at(&bench.inbox(1));
    assert!(delivery.noted(0).iter().all(|alarm| alarm.code != alarms::Code::Spoilt), "it is over");
}

#[test]
fn keys_that_are_trusted_later_or_no_more_count_at_once() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let (done, waits, half, unknown) =
        (Sample::file(1, 1, 900), Sample::file(2, 2, 900), Sample::file(3, 3, 900), Sample::file(4, 4, 900));
    send(&delivery, &done);
    let run = delivery.due_hooks(0);
    delivery.hook_ended(&run[0], &Outcome::Done, 0);
    send(&delivery, &waits);
    announce(&delivery, &half).unwrap();
    data(&delivery, &half, 0..1).unwrap();
    work(&delivery);
    let judged = delivery.set_trust(Trust::default(), 5).unwrap();
    assert_eq!((judged.trusted, judged.refused.as_slice()), (0, &["default/2".to_owned(), "default/3".to_owned()][..]));
    assert_eq!(state(&delivery, &done), Some(State::Installed), "what is installed stays");
    assert!(!bench.inbox(2).exists() && delivery.due_hooks(0).is_empty());
    assert_eq!(bench.reason(&waits)["rule"], "unknown-key");
    // What comes now changes nothing, but is an alarm.
    assert!(matches!(announce(&delivery, &unknown), Err(StoreError::Refused)));
    assert_eq!(state(&delivery, &unknown), None);
    assert!(delivery.noted(0).iter().any(|alarm| alarm.code == alarms::Code::UnknownKey));

    let mut judged = delivery.set_trust(Trust::new(trust()), 6).unwrap();
    judged.admitted.sort();
    assert_eq!(judged.admitted, ["default/2", "default/3", "default/4"]);
    assert!(delivery.noted(0).is_empty());
    work(&delivery);
    waits.assert_at(&bench.inbox(2));
    assert_eq!(state(&delivery, &unknown), Some(State::Receiving), "its announce is known");
    for sample in [&half, &unknown] {
        send(&delivery, sample);
        sample.assert_at(&bench.inbox(sample.announce.sequence));
    }
    let sequences: Vec<u64> = (0..3)
        .map(|_| {
            let due = delivery.due_hooks(0);
            delivery.hook_ended(&due[0], &Outcome::Done, 0);
            due[0].sequence
        })
        .collect();
    assert_eq!(sequences, [2, 3, 4]);
}

#[test]
fn a_key_that_may_not_sign_for_a_channel_does_nothing_there() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let neighbour = SigningKey::from_seed([5; 32]);
    let mut allowed = Trust::new(trust());
    allowed.keys.insert(neighbour.public(), "neighbour");
    let mut only = allowed.clone();
    only.signers.insert(default_channel(), [key().public().id()].into());
    delivery.set_trust(only, 5).unwrap();
    let mut sample = Sample::file(1, 1, 100);
    sample.announce.bundle = BundleId::new(1, neighbour.public().id());
    let announce = sample.announce.sign(&neighbour).unwrap();
    assert!(matches!(manifest(&delivery, sample.id(), ObjectKind::Announce, &announce), Err(StoreError::Refused)));
    assert_eq!(state(&delivery, &sample), None);
    // Nor do its beacons.
    let mut says = beacon(9_000, vec![], None);
    says.channel.as_mut().unwrap().recent =
        vec![Recent { bundle: sample.id(), ..recent(1, 1, RecentState::Transmitted) }];
    assert!(hear_of(&delivery, 5, &says, &neighbour), "that it lives is its own to say");
    assert_eq!(delivery.ledger.lock().channel(&default_channel()).unwrap().newest(), 0);
    // Until it may.
    let judged = delivery.set_trust(allowed, 6).unwrap();
    assert_eq!(judged.admitted, ["default/1"]);
}

#[test]
fn beacons_that_are_not_news_do_nothing_but_alarm() {
    let bench = Bench::new();
    let delivery = bench.open();
    delivery.tick(1_000);
    let codes = |delivery: &Delivery| delivery.noted(1_000).iter().map(|alarm| alarm.code).collect::<Vec<_>>();
    let first = beacon(3, vec![], None);
    assert!(hear_of(&delivery, 1_000, &first, &key()));
    assert!(!hear_of(&delivery, 1_000, &first, &key()), "it was recorded");
    let unsigned = signed::seal_unsigned(b"anything");
    assert!(delivery.beacon(1_000, SessionId(1), &unsigned).is_none());
    let stranger = SigningKey::from_seed([9; 32]);
    assert!(!hear_of(&delivery, 1_000, &Beacon { channel: None, ..beacon(0, vec![], None) }, &stranger));
    assert!(codes(&delivery).is_empty());
    // Another state under the same number.
    let epoch = Epoch { number: 1, id: EpochId(99) };
    assert!(!hear_of(&delivery, 1_000, &Beacon { epoch, ..beacon(1, vec![], None) }, &key()));
    assert_eq!(codes(&delivery), [alarms::Code::AnotherState]);
    let text = delivery.noted(1_000)[0].text.clone();
    assert!(text.contains("checkvalve-sender adopt --epoch 2 --sequences default=3"), "{text}");
    // A session goes on although another began; after a restart, too.
    let second = Beacon { session_number: 2, session: SessionId(2), ..beacon(3, vec![], None) };
    assert!(hear_of(&delivery, 1_000, &second, &key()));
    delivery.tick_last(1_000);
    drop(delivery);
    let delivery = bench.open();
    for _ in 0..3 {
        assert!(!hear_of(&delivery, 1_000, &beacon(3, vec![], None), &key()));
    }
    assert_eq!(codes(&delivery), [alarms::Code::TwoSenders]);
    // The operator's mend: a new epoch.
    let adopted = Epoch { number: 2, id: EpochId(100) };
    let mended = Beacon { epoch: adopted, session: SessionId(3), ..beacon(3, vec![], None) };
    assert!(hear_of(&delivery, 1_000, &mended, &key()));
    assert!(codes(&delivery).is_empty());
    // An older copy of the state.
    let behind = Beacon { epoch: adopted, session: SessionId(3), ..beacon(2, vec![], None) };
    assert!(hear_of(&delivery, 1_000, &behind, &key()));
    assert_eq!(codes(&delivery), [alarms::Code::OlderState]);
}

#[test]
fn two_bundles_of_one_sequence_are_received_and_the_first_to_be_whole_has_it() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let (announced_only, honest) = (Sample::file(1, 1, 100), Sample::file(2, 1, 200));
    announce(&delivery, &announced_only).unwrap();
    work(&delivery);
    let first: Which = "default/1".parse().unwrap();
    assert_eq!(delivery.find(&first), Ok(announced_only.id()));
    announce(&delivery, &honest).unwrap();
    work(&delivery);
    // Which of them is meant is for the operator to say.
    let Err(DecideError::Claimed(ids)) = delivery.find(&first) else { panic!("{:?}", delivery.find(&first)) };
    assert_eq!(ids.len(), 2);
    assert_eq!(delivery.find(&ids[1].parse().unwrap()), Ok(honest.id()));
    send(&delivery, &honest);
    honest.assert_at(&bench.inbox(1));
    assert_eq!(delivery.find(&first), Ok(honest.id()));
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
fn what_beacons_tell_of_unknown_channels_keeps_nobody_out() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    for n in 0..100 {
        let name = ChannelName::new(format!("junk-{n}")).unwrap();
        let mut says = beacon(1, vec![], None);
        says.channel = Some(ChannelState { name, priority: 0, newest: 1, recent: vec![] });
        hear_of(&delivery, 1_000, &says, &key());
    }
    drop(delivery);
    let delivery = bench.open();
    send(&delivery, &samples()[0]);
    samples()[0].assert_at(&bench.inbox(1));
    // Of channels that are not in the config, some.
    let mut held = 0;
    for n in 0..70_u64 {
        let mut sample = Sample::file(100 + n, 1, 10);
        sample.announce.channel = ChannelName::new(format!("new-{n}")).unwrap();
        send(&delivery, &sample);
        held += u32::from(state(&delivery, &sample) == Some(State::Held));
    }
    assert_eq!(held, 54);
}

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
    hear(&delivery, 2_000, 4, sent, None);
    delivery.tick(2_000);
    delivery.tick(6_900);
    let rows = |delivery: &Delivery| -> Vec<(u64, String, &'static str)> {
        let status = delivery.status(6_900);
        status.bundles.into_iter().map(|b| (b.sequence, b.id, b.state.as_str())).collect()
    };
    let id = |id| own(id).to_string();
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
    hear(&delivery, 2_500, 1, vec![recent(1, 1, RecentState::Transmitted)], None);
    delivery.tick(3_000);
    assert_eq!(state(&delivery, sample), Some(State::Incomplete));
    assert_eq!(reason(&delivery, sample), "lacks 2952 of 5000 bytes, its hashes");
    delivery.tick(40_000);
    data(&delivery, sample, 4..6).unwrap();
    hear(&delivery, 40_000, 1, vec![], Some((1, 1)));
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
    announce(&delivery, sample).unwrap();
    data(&delivery, sample, 0..4).unwrap();
    delivery.tick(9_000);
    assert_eq!(state(&delivery, sample), Some(State::Receiving));
    delivery.tick(12_000);
    assert_eq!(state(&delivery, sample), Some(State::Incomplete));
    assert!(reason(&delivery, sample).contains("its hashes"), "{}", reason(&delivery, sample));
}

#[test]
fn data_that_nobody_signed_for_is_no_bundle_and_goes() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    let sample = &samples()[0];
    delivery.tick(1_000);
    data(&delivery, sample, 0..4).unwrap();
    delivery.tick(9_000);
    assert!(state(&delivery, sample).is_none() && delivery.status(9_000).bundles.is_empty());
    // A beacon names it: it lacks its announce.
    hear(&delivery, 9_400, 1, vec![], Some((1, 1)));
    hear(&delivery, 9_500, 1, vec![recent(1, 1, RecentState::Transmitted)], None);
    delivery.tick(60_000);
    assert_eq!(state(&delivery, sample), Some(State::Incomplete));
    assert!(reason(&delivery, sample).contains("its announce"), "{}", reason(&delivery, sample));
    send(&delivery, sample);
    sample.assert_at(&bench.inbox(1));
    // Nobody ever speaks of this one.
    let stray = Sample::file(9, 9, 5_000);
    data(&delivery, &stray, 0..4).unwrap();
    assert_eq!(delivery.store.all().len(), 1);
    delivery.tick(90_000);
    drop(delivery);
    let delivery = bench.open();
    assert_eq!(delivery.store.all().len(), 1, "it may still be announced");
    delivery.tick(1_000 + 41_000);
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
    delivery.tick(delivery.now() + 250);
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
fn tickets_and_status_count_ranges_not_blocks() {
    let bench = Bench::new();
    let delivery = bench.open();
    delivery.tick(1_000);
    let mut sample = Sample::file(1, 1, 0);
    let kind = checkvalve_protocol::manifest::EntryKind::File { size: 64 * u64::from(u32::MAX), mode: 0o600 };
    sample.announce.entries = vec![crate::testing::entry("one file", kind)].into();
    sample.announce.block_symbols = 1;
    announce(&delivery, &sample).unwrap();
    let oti = Oti::new(64 * u64::from(u32::MAX), 64, 1).unwrap();
    let stored = [0, 5, 1 << 31, u32::MAX - 1];
    for sbn in stored {
        delivery.block(sample.id(), ObjectKind::Data, &oti, sbn, &[1; 64]).unwrap();
    }
    delivery.tick(100_000);
    assert_eq!(state(&delivery, &sample), Some(State::Incomplete));
    for _ in 0..50 {
        let tickets = delivery.tickets(&[], Loss::of(1, 100), 40, &|_| vec![(7, 1), (u32::MAX, 9)]).unwrap();
        assert_eq!(tickets[0].symbols_lacking, Some(u64::from(u32::MAX) - stored.len() as u64));
        let mut status = delivery.status(100_000);
        delivery.count_lacking(&mut status, &|_| Vec::new());
        let lacking = status.bundles[0].lacking.as_ref().unwrap();
        assert_eq!(lacking.blocks, u32::MAX - stored.len() as u32);
    }
    // A datagram that is not signed cannot say how a bundle is cut.
    let junk = Oti::new(64 * u64::from(u32::MAX), 128, 1).unwrap();
    assert_eq!(delivery.want(sample.id(), ObjectKind::Data, &junk), Want::Refuse(RefuseReason::Length));
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
