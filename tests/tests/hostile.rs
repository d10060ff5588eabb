//! A flood of hostile datagrams on the real socket, during a transfer.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use checkvalve_protocol::limits::HEADER_LEN;
use checkvalve_tests::pair::Pair;
use checkvalve_tests::rng::Rng;
use checkvalve_tests::{require_link, tree};

/// How many datagrams of each kind are sent.
const EACH: u64 = 1_000_000;
/// Largest UDP payload at MTU 1500.
const LARGEST: usize = 1472;

#[test]
fn a_million_datagrams_of_each_hostile_kind_during_a_transfer() {
    require_link!();
    // The flood shares the kernel's queue with the real datagrams. Losses there are a long burst on a slow link.
    let setup = Pair::setup().rate("50 Mbit/s").repair("30 %").sender("fec.burst", "1 s");
    let mut pair = setup.without_receiver().on_tmpfs().start();

    // Real datagrams of this sender's session, while no receiver runs.
    let recorder = pair.link.recorder();
    let recorded_bundle = pair.drop_file("recorded", &Rng::new(1).bytes(1_000_000));
    pair.wait_sender_state(&recorded_bundle, &["transmitted"]);
    let recorded = record(&recorder);
    drop(recorder);
    assert!(recorded.len() > 700, "{} datagrams recorded", recorded.len());
    // A session that was never used: the header is valid, the tag is not. For most of these, not even the key is derived.
    let mut forged = recorded[recorded.len() / 2].clone();
    forged[4..12].copy_from_slice(&0xdead_beef_u64.to_be_bytes());

    pair.start_receiver();
    // While nobody listened, the kernel would have answered beacons with ICMP.
    let stopped_before = pair.link.high_stopped();
    let warm_up = pair.drop_file("warm-up", b"so that the session has gone on");
    pair.wait_state(&warm_up, &["complete", "installed"]);
    let before = Drops::of(&pair);
    let rss_before = pair.receiver().usage().rss;

    tree::large(&pair.place("image"), 300 << 20, 2);
    let image = pair.drop("image");
    pair.wait_state(&image, &["receiving"]);
    let injector = pair.link.injector();
    let mut rng = Rng::new(3);
    let mut rss_peak = rss_before;
    let mut flood = |kind: &str, make: &mut dyn FnMut(&mut Rng, u64, &mut Vec<u8>)| {
        let started = Instant::now();
        let mut datagram = Vec::new();
        for number in 0..EACH {
            datagram.clear();
            make(&mut rng, number, &mut datagram);
            send(&injector, &datagram);
            if number % 200 == 199 {
                // At most 150,000 a second: a flood that fills the kernel's queue only tests the kernel.
                let due = started + Duration::from_nanos(6_667 * (number + 1));
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        println!("{kind}: {EACH} in {:?}", started.elapsed());
        rss_peak = rss_peak.max(pair.receiver().usage().rss);
    };
    flood("random bytes of every length", &mut |rng, number, datagram| {
        datagram.resize(number as usize % (LARGEST + 1), 0);
        rng.fill(datagram);
    });
    flood("valid header, wrong tag", &mut |rng, number, datagram| {
        datagram.extend(if number % 2 == 0 { &forged } else { &recorded[number as usize % recorded.len()] });
        let at = HEADER_LEN + rng.below((datagram.len() - HEADER_LEN) as u64) as usize;
        datagram[at] ^= 1 << rng.below(8);
    });
    // The first replay delivers its bundle. Later ones achieve nothing.
    flood("replayed", &mut |_, number, datagram| {
        datagram.extend(&recorded[number as usize % recorded.len()]);
    });
    flood("truncated", &mut |rng, number, datagram| {
        let whole = &recorded[number as usize % recorded.len()];
        datagram.extend(&whole[..rng.below(whole.len() as u64) as usize]);
    });
    flood("bit-flipped", &mut |rng, number, datagram| {
        datagram.extend(&recorded[number as usize % recorded.len()]);
        let bit = rng.below(datagram.len() as u64 * 8) as usize;
        datagram[bit / 8] ^= 1 << (bit % 8);
    });

    // The transfer was under way all the time, and completes.
    let state = pair.receiver_status().unwrap().find("default", "image").unwrap().state;
    println!("the image was {state} when the flood ended");
    pair.wait_state(&image, &["complete", "installed"]);

    let drops = Drops::of(&pair).since(&before);
    println!("{drops:?}");
    for (reason, least) in [
        ("magic", EACH / 2),
        ("tag", EACH / 2),
        ("place", EACH / 2),
        ("session", EACH / 4),
        ("short", EACH / 50),
        ("version", 1),
        ("kind", 1),
    ] {
        assert!(drops.get(reason) >= least, "dropped as {reason}: {}", drops.get(reason));
    }
    // The image's own surplus symbols are a tenth of that.
    let twice: u64 = ["duplicate", "surplus", "done"].iter().map(|reason| drops.get(reason)).sum();
    assert!(twice >= EACH / 2, "{twice} dropped because they came before");
    let counted: u64 = drops.0.values().sum();
    assert!(counted >= EACH * 5 * 9 / 10, "{counted} of {} counted", EACH * 5);
    let grown = rss_peak.saturating_sub(rss_before) >> 20;
    assert!(rss_peak < 200 << 20, "the receiver's RSS reached {} MiB, {grown} more than before", rss_peak >> 20);
    assert_eq!(pair.link.high_transmitted(), 0);
    assert_eq!(pair.link.high_stopped(), stopped_before, "something tried to answer");
}

/// The counts of dropped datagrams in `status`, by reason.
#[derive(Debug)]
struct Drops(std::collections::BTreeMap<String, u64>);

impl Drops {
    fn of(pair: &Pair) -> Self {
        let status = pair.receiver_status().expect("the receiver answers");
        let drops = status.0["link"]["dropped"].as_object().unwrap_or_else(|| panic!("no drops in {:#}", status.0));
        Self(drops.iter().map(|(reason, count)| (reason.clone(), count.as_u64().unwrap())).collect())
    }

    fn get(&self, reason: &str) -> u64 {
        *self.0.get(reason).unwrap_or_else(|| panic!("no count of {reason} in {:?}", self.0))
    }

    fn since(mut self, before: &Self) -> Self {
        for (reason, count) in &mut self.0 {
            *count -= before.0.get(reason).copied().unwrap_or(0);
        }
        self
    }
}

fn record(recorder: &UdpSocket) -> Vec<Vec<u8>> {
    recorder.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut buf = [0; 2048];
    let mut recorded = Vec::new();
    while let Ok(len) = recorder.recv(&mut buf) {
        recorded.push(buf[..len].to_vec());
    }
    recorded
}

fn send(socket: &UdpSocket, datagram: &[u8]) {
    // ENOBUFS means that the device's queue is full. No other error may occur.
    while let Err(error) = socket.send(datagram) {
        assert_eq!(error.raw_os_error(), Some(105), "{error}");
        std::thread::sleep(Duration::from_micros(100));
    }
}
