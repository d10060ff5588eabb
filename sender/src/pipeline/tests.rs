use std::collections::HashMap;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::mpsc;

use checkvalve_host::disk::OsDisk;
use checkvalve_protocol::beacon::Beacon;
use checkvalve_protocol::crypto::TrustStore;
use checkvalve_protocol::id::{ChannelName, EpochId};
use checkvalve_protocol::manifest::{Announce, Hashes, Outcome};
use checkvalve_protocol::partition::BlockSet;
use checkvalve_protocol::receive::{Limits, Origin, Reassembly, Wanted};
use checkvalve_protocol::seal::Opener;
use checkvalve_protocol::transmit::Link as Shape;
use checkvalve_protocol::wire::{Content, ObjectKind, Symbol};

use super::*;
use crate::bundle::{Identity, plan};

const KEY: [u8; 32] = [5; 32];
const EPOCH: Epoch = Epoch { number: 3, id: EpochId(33) };

/// What came out of the other end.
#[derive(Default)]
struct Arrived {
    objects: HashMap<(BundleId, ObjectKind), Vec<u8>>,
    beacons: Vec<Beacon>,
}

/// Takes what arrives until nothing has for half a second.
fn receive(socket: &UdpSocket) -> Arrived {
    let limits = Limits {
        objects: 64,
        idle: Duration::from_secs(60),
        ask_again: Duration::from_secs(1),
        ..Limits::new(64 << 20)
    };
    let (mut opener, mut reassembly) = (Opener::new(Some(KEY)), Reassembly::new(limits));
    let mut arrived = Arrived::default();
    let mut buffer = vec![0; 65_536];
    while let Ok(len) = socket.recv(&mut buffer) {
        let (header, payload) = opener.open(&mut buffer[..len]).unwrap();
        if header.content == Content::Beacon {
            arrived.beacons.push(Beacon::open(payload, &trust()).unwrap().value);
        }
        let want = |_: &Symbol| Wanted::Yes { have: BlockSet::new(), parked: Vec::new(), origin: Origin::Signed };
        let _ = reassembly.handle(Time(1), &header, payload);
        reassembly.answer_all(Time(1), want);
        while let Some(mut block) = reassembly.poll_complete() {
            block.decode(&Plans::new()).unwrap();
            let oti = block.oti();
            let object = arrived.objects.entry((block.bundle(), block.kind())).or_default();
            object.resize(oti.transfer_length() as usize, 0);
            let at = oti.block_offset(block.sbn()).unwrap() as usize;
            object[at..at + block.data().len()].copy_from_slice(block.data());
            reassembly.stored(block);
        }
    }
    arrived
}

/// A pipeline, its parameters, and how jobs end.
fn pipeline(to: &UdpSocket, encoders: usize) -> (Pipeline, Parameters, mpsc::Receiver<(BundleId, Finished)>) {
    let link = Shape { mtu: 1_500, rate: 200_000_000, repair: 0.2, burst: Duration::from_millis(5), memory: 64 << 20 };
    let parameters = Parameters::derive(&link).unwrap();
    let config = PipelineConfig {
        destinations: vec![to.local_addr().unwrap()],
        parameters,
        session: SessionId(77),
        session_number: 1,
        epoch: EPOCH,
    };
    let keys = Keys { link: Some(LinkKey::from_bytes(KEY)), signing: Arc::new(SigningKey::from_seed([1; 32])) };
    let (tell, told) = mpsc::channel();
    let when_done = Box::new(move |bundle, how| tell.send((bundle, how)).unwrap());
    (Pipeline::start_with(config, keys, Arc::new(OsDisk), when_done, encoders).unwrap(), parameters, told)
}

fn bundle(sequence: u64) -> BundleId {
    BundleId::new(sequence, SigningKey::from_seed([1; 32]).public().id())
}

fn job(root: &Path, name: &str, sequence: u64, parameters: &Parameters) -> Job {
    let identity = Identity {
        bundle: bundle(sequence),
        channel: ChannelName::new("default").unwrap(),
        sequence,
        name: name.as_bytes().to_vec(),
        created_ms: 1,
        symbol_size: parameters.symbol_size(),
        block_symbols: parameters.block_symbols(),
    };
    let plan = plan(&OsDisk, root, identity).unwrap();
    let announce = plan.announce.sign(&SigningKey::from_seed([1; 32])).unwrap();
    Job {
        order: Transmission {
            bundle: plan.announce.bundle,
            channel: plan.announce.channel.clone(),
            sequence,
            priority: 0,
            announce_digest: blake3::hash(&announce).into(),
            announce: Arc::new(announce),
            data_len: plan.data_len(),
            symbol_size: parameters.symbol_size(),
            block_symbols: parameters.block_symbols(),
            first_esi: 0,
            pass: 1,
            passes: 1,
            selection: Selection::All,
            withdrawn: None,
            progress: Arc::default(),
        },
        plan: Arc::new(plan),
        root: root.to_path_buf(),
        esi_limit: parameters.esis_per_pass(),
        known_hashes: None,
    }
}

fn socket() -> UdpSocket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    socket.set_recv_buffer_size(4 << 20).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.into()
}

fn trust() -> TrustStore {
    let mut trust = TrustStore::new();
    trust.insert(SigningKey::from_seed([1; 32]).public(), "test");
    trust
}

#[test]
fn bundles_arrive_whole_with_and_without_encoders() {
    for encoders in [0, 2] {
        let dir = tempfile::tempdir().unwrap();
        let contents: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(dir.path().join("large"), &contents).unwrap();
        std::fs::write(dir.path().join("empty"), b"").unwrap();
        let to = socket();
        let (pipeline, parameters, told) = pipeline(&to, encoders);
        let receiver = std::thread::spawn({
            let to = to.try_clone().unwrap();
            move || receive(&to)
        });
        for (sequence, name) in [(1, "large"), (2, "empty")] {
            pipeline.submit(job(dir.path(), name, sequence, &parameters));
        }
        for _ in 0..2 {
            let (bundle, how) = told.recv_timeout(Duration::from_secs(30)).unwrap();
            assert!(matches!(how, Finished::Transmitted { .. }), "{encoders} encoders, {bundle}: {how:?}");
        }
        pipeline.stop();
        let arrived = receiver.join().unwrap();
        let get = |sequence, kind| arrived.objects.get(&(bundle(sequence), kind));
        assert!(get(1, ObjectKind::Data) == Some(&contents), "{encoders} encoders");
        assert_eq!(get(2, ObjectKind::Data), None);
        for sequence in [1, 2] {
            let announce = Announce::open(get(sequence, ObjectKind::Announce).unwrap(), &trust()).unwrap();
            let hashes = Hashes::open(get(sequence, ObjectKind::Hashes).unwrap(), &trust()).unwrap();
            assert_eq!(hashes.value.announce, announce.digest);
        }
        assert!(!arrived.beacons.is_empty());
        for (beacon, counter) in arrived.beacons.iter().zip(1..) {
            assert_eq!((beacon.epoch, beacon.session_number, beacon.counter), (EPOCH, 1, counter));
            assert_eq!(beacon.session, SessionId(77));
        }
    }
}

#[test]
fn a_file_that_changed_withdraws_its_bundle_and_the_next_one_goes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("changed"), vec![1; 2_000_000]).unwrap();
    std::fs::write(dir.path().join("next"), b"next").unwrap();
    let to = socket();
    let (pipeline, parameters, told) = pipeline(&to, 0);
    let (first, second) = (job(dir.path(), "changed", 1, &parameters), job(dir.path(), "next", 2, &parameters));
    let mut withdrawal = job(dir.path(), "changed", 1, &parameters);
    (withdrawal.order.first_esi, withdrawal.order.withdrawn) = (first.esi_limit, Some("it shrank".to_owned()));
    std::fs::write(dir.path().join("changed"), vec![2; 1_500_000]).unwrap();
    let receiver = std::thread::spawn({
        let to = to.try_clone().unwrap();
        move || receive(&to)
    });
    pipeline.submit(first);
    let failed = told.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(matches!(&failed, (id, Finished::Failed { .. }) if *id == bundle(1)), "{failed:?}");
    // Only now that this could be written down is the other side told.
    pipeline.submit(second);
    pipeline.submit(withdrawal);
    let mut ends: Vec<_> = (0..2).map(|_| told.recv_timeout(Duration::from_secs(30)).unwrap()).collect();
    ends.sort_by_key(|(id, _)| *id != bundle(1));
    assert_eq!(ends[0], (bundle(1), Finished::Withdrawn));
    assert!(matches!(ends[1].1, Finished::Transmitted { .. }), "{:?}", ends[1]);
    pipeline.stop();
    let arrived = receiver.join().unwrap();
    let hashes = Hashes::open(&arrived.objects[&(bundle(1), ObjectKind::Hashes)], &trust()).unwrap();
    assert_eq!(hashes.value.outcome, Outcome::withdrawn("it shrank"));
    assert_eq!(arrived.objects[&(bundle(2), ObjectKind::Data)], b"next");
}

#[test]
fn a_later_transmission_that_cannot_be_read_is_over_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gone", "next"] {
        std::fs::write(dir.path().join(name), name).unwrap();
    }
    let socket = socket();
    let (pipeline, parameters, told) = pipeline(&socket, 0);
    for (sequence, name) in [(1, "gone"), (2, "next")] {
        let mut job = job(dir.path(), name, sequence, &parameters);
        job.order.first_esi = parameters.esis_per_pass();
        job.esi_limit = 2 * parameters.esis_per_pass();
        job.known_hashes = Some(Arc::new(vec![blake3::hash(name.as_bytes()).into()]));
        if name == "gone" {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        pipeline.submit(job);
    }
    let second = Duration::from_secs(10);
    assert!(matches!(told.recv_timeout(second), Ok((_, Finished::Failed { .. }))));
    assert!(matches!(told.recv_timeout(second), Ok((_, Finished::Transmitted { .. }))), "its channel goes on");
    pipeline.stop();
}

#[test]
fn a_stop_aborts_what_is_not_over() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("large"), vec![1; 50_000_000]).unwrap();
    let to = socket();
    let (pipeline, parameters, told) = pipeline(&to, 2);
    for sequence in 1..4 {
        pipeline.submit(job(dir.path(), "large", sequence, &parameters));
    }
    std::thread::sleep(Duration::from_millis(200));
    pipeline.stop();
    let ends: Vec<Finished> = told.try_iter().map(|(_, how)| how).collect();
    assert_eq!(ends, [Finished::Aborted, Finished::Aborted, Finished::Aborted]);
}
