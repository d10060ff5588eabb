use super::*;

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

fn key() -> SigningKey {
    SigningKey::from_seed([4; 32])
}

fn own(random: u64) -> BundleId {
    BundleId::new(random, key().public().id())
}

fn decode(payload: &[u8]) -> Result<Beacon, BeaconError> {
    Beacon::decode(payload, key().public().id().tag())
}

fn recent(sequence: u64, name_len: usize) -> Recent {
    Recent {
        sequence,
        bundle: own(!sequence),
        bytes: 1 << 40,
        state: RecentState::Transmitted,
        name: vec![b'n'; name_len],
    }
}

fn beacon(names: &[usize]) -> Beacon {
    Beacon {
        epoch: Epoch { number: 2, id: EpochId(!5) },
        session_number: 3,
        session: SessionId(!6),
        counter: 86_400,
        clock_ms: 1_700_000_000_000,
        rate_bits: 900_000_000,
        datagrams: u64::MAX,
        on_wire: Some(OnWire {
            bundle: own(7),
            channel: channel("default"),
            sequence: 1_000,
            pass: 1,
            passes: 2,
            blocks: 70_000,
            blocks_sent: 69_999,
        }),
        channel: Some(ChannelState {
            name: channel("os-images"),
            priority: -5,
            newest: 1_000,
            recent: names.iter().zip((1..=1_000).rev()).map(|(&len, sequence)| recent(sequence, len)).collect(),
        }),
    }
}

#[test]
fn a_beacon_reads_what_it_writes() {
    let idle = Beacon { on_wire: None, channel: None, ..beacon(&[]) };
    let fresh = ChannelState { name: channel("a"), priority: i16::MIN, newest: 0, recent: vec![] };
    for beacon in [beacon(&[]), beacon(&[0, 255, 4]), idle.clone(), Beacon { channel: Some(fresh), ..idle }] {
        assert_eq!(decode(&beacon.encode(1_408)), Ok(beacon));
    }
}

#[test]
fn a_beacon_can_be_read_without_trust() {
    let (beacon, mut trust) = (beacon(&[0, 255, 4]), TrustStore::new());
    trust.insert(key().public(), "low");
    let mut signed = beacon.sign(&key(), 1_408);
    assert_eq!(Beacon::open(&signed, &trust).map(|opened| opened.value), Ok(beacon.clone()));
    signed[signed::PREFIX_LEN - 1] ^= 1;
    assert!(Beacon::open(&signed, &trust).is_err());
    assert_eq!(Beacon::peek(&signed), Ok(beacon));
    assert!(Beacon::peek(&signed[..signed.len() - 1]).is_err());
}

#[test]
fn a_beacon_fits_and_keeps_the_newest() {
    for count in [0, 1, 2, 3, 10, 1_000] {
        let full = beacon(&(0..count).map(|i| i * 37 % 256).collect::<Vec<_>>());
        for limit in (MIN_BEACON_LEN - signed::PREFIX_LEN..=1_500).step_by(7) {
            let bytes = full.encode(limit);
            assert!(bytes.len() <= limit, "{count} {limit}: {}", bytes.len());
            let read = decode(&bytes).unwrap();
            assert_eq!((read.session_number, read.clock_ms, read.datagrams), (3, 1_700_000_000_000, u64::MAX));
            let Some(state) = read.channel else {
                assert!(limit < 170);
                continue;
            };
            assert_eq!((state.newest, &read.on_wire), (1_000, &full.on_wire));
            let whole = full.channel.as_ref().unwrap();
            for (i, (read, full)) in state.recent.iter().zip(&whole.recent).enumerate() {
                let name = if i == 0 && read.name.is_empty() { vec![] } else { full.name.clone() };
                assert_eq!(read, &Recent { name, ..full.clone() });
            }
            if let Some(next) = whole.recent.get(state.recent.len()) {
                assert!(bytes.len() + 30 + next.name.len() > limit, "room was left for one more: {count} {limit}");
            }
        }
    }
}

#[test]
fn a_name_that_nobody_would_take_is_left_out() {
    let read = decode(&beacon(&[MAX_NAME_LEN + 1, 3]).encode(1_408)).unwrap();
    let names: Vec<_> = read.channel.unwrap().recent.into_iter().map(|r| r.name.len()).collect();
    assert_eq!(names, [0, 3]);
}

#[test]
fn truncations_are_refused_and_mutations_harmless() {
    let bytes = beacon(&[20, 0, 255]).encode(1_408);
    for len in 0..bytes.len() {
        assert_eq!(decode(&bytes[..len]), Err(BeaconError::Codec(CodecError::Truncated)), "{len}");
    }
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 250, 251, 252, 253, 254, 255] {
            let mut forged = bytes.clone();
            forged[at] = value;
            if let Ok(read) = decode(&forged) {
                assert_eq!(decode(&read.encode(usize::MAX)), Ok(read));
            }
        }
    }
    let long = vec![0; MAX_BEACON_LEN + 1];
    assert_eq!(Beacon::open(&long, &TrustStore::new()), Err(BeaconError::Signed(ManifestError::TooLong(long.len()))));
}

#[test]
fn beacons_that_cannot_be() {
    let with = |change: fn(&mut Beacon)| {
        let mut beacon = beacon(&[3, 3]);
        change(&mut beacon);
        decode(&beacon.encode(1_408))
    };
    assert_eq!(with(|b| b.on_wire.as_mut().unwrap().sequence = 0), Err(BeaconError::SequenceZero));
    assert_eq!(with(|b| b.channel.as_mut().unwrap().recent[1].sequence = 0), Err(BeaconError::SequenceZero));
    assert_eq!(with(|b| b.channel.as_mut().unwrap().recent.reverse()), Err(BeaconError::Order));
    assert_eq!(with(|b| b.channel.as_mut().unwrap().recent[1].sequence = 1_000), Err(BeaconError::Order));
    assert_eq!(with(|b| b.channel.as_mut().unwrap().newest = 999), Err(BeaconError::Order));
    let large = |b: &mut Beacon| b.channel.as_mut().unwrap().newest = MAX_SEQUENCE + 1;
    assert_eq!(with(large), Err(BeaconError::SequenceTooLarge));
    assert_eq!(with(|b| b.on_wire.as_mut().unwrap().sequence = u64::MAX), Err(BeaconError::SequenceTooLarge));
    assert_eq!(with(|b| b.counter = 0), Err(BeaconError::Number));
    assert_eq!(with(|b| b.session_number = MAX_SEQUENCE + 1), Err(BeaconError::Number));
    assert_eq!(with(|b| b.epoch.number = 0), Err(BeaconError::Number));
    assert_eq!(with(|b| b.on_wire.as_mut().unwrap().bundle.0 ^= 1), Err(BeaconError::ForeignBundle));
    assert_eq!(with(|b| b.channel.as_mut().unwrap().recent[1].bundle.0 ^= 1), Err(BeaconError::ForeignBundle));
}

#[test]
fn a_signed_beacon_fits_in_the_smallest_datagram() {
    let long = BeaconError::Signed(ManifestError::BadSignature);
    let mut trust = TrustStore::new();
    trust.insert(key().public(), "low");
    let full = beacon(&[255; 20]);
    for limit in (MIN_BEACON_LEN..2_000).step_by(13).chain([448]) {
        let signed = full.sign(&key(), limit);
        assert!(signed.len() <= limit, "{limit}: {}", signed.len());
        let opened = Beacon::open(&signed, &trust).unwrap();
        assert_eq!((opened.signer, opened.value.counter), (key().public().id(), 86_400));
        let mut changed = signed.clone();
        changed[signed::PREFIX_LEN] ^= 1;
        assert_eq!(Beacon::open(&changed, &trust), Err(long.clone()));
    }
    let largest = Beacon { channel: None, on_wire: None, ..full };
    let largest = Beacon { session_number: MAX_SEQUENCE, counter: MAX_SEQUENCE, clock_ms: u64::MAX, ..largest };
    let epoch = Epoch { number: MAX_SEQUENCE, id: EpochId(u64::MAX) };
    let largest = Beacon { epoch, rate_bits: u64::MAX, ..largest };
    assert_eq!(largest.sign(&key(), 0).len(), MIN_BEACON_LEN);
}
