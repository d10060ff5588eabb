use super::*;

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

fn recent(sequence: u64, name_len: usize) -> Recent {
    Recent {
        sequence,
        bundle: BundleId(!sequence),
        bytes: 1 << 40,
        state: RecentState::Transmitted,
        name: vec![b'n'; name_len],
    }
}

fn beacon(names: &[usize]) -> Beacon {
    Beacon {
        session_number: 3,
        clock_ms: 1_700_000_000_000,
        rate_bits: 900_000_000,
        datagrams: u64::MAX,
        on_wire: Some(OnWire {
            bundle: BundleId(7),
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
        assert_eq!(Beacon::decode(&beacon.encode(1_408)), Ok(beacon));
    }
}

#[test]
fn a_beacon_fits_and_keeps_the_newest() {
    for count in [0, 1, 2, 3, 10, 1_000] {
        let full = beacon(&(0..count).map(|i| i * 37 % 256).collect::<Vec<_>>());
        for limit in (38..=1_500).step_by(7) {
            let bytes = full.encode(limit);
            assert!(bytes.len() <= limit, "{count} {limit}: {}", bytes.len());
            let read = Beacon::decode(&bytes).unwrap();
            assert_eq!((read.session_number, read.clock_ms, read.datagrams), (3, 1_700_000_000_000, u64::MAX));
            let Some(state) = read.channel else {
                assert!(limit < 120);
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
    let read = Beacon::decode(&beacon(&[MAX_NAME_LEN + 1, 3]).encode(1_408)).unwrap();
    let names: Vec<_> = read.channel.unwrap().recent.into_iter().map(|r| r.name.len()).collect();
    assert_eq!(names, [0, 3]);
}

#[test]
fn truncations_are_refused_and_mutations_harmless() {
    let bytes = beacon(&[20, 0, 255]).encode(1_408);
    for len in 0..bytes.len() {
        assert_eq!(Beacon::decode(&bytes[..len]), Err(BeaconError::Codec(CodecError::Truncated)), "{len}");
    }
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 250, 251, 252, 253, 254, 255] {
            let mut forged = bytes.clone();
            forged[at] = value;
            if let Ok(read) = Beacon::decode(&forged) {
                assert_eq!(Beacon::decode(&read.encode(usize::MAX)), Ok(read));
            }
        }
    }
    let long = vec![0; usize::from(MAX_MTU) + 1];
    assert!(matches!(Beacon::decode(&long), Err(BeaconError::Codec(CodecError::TooLong { .. }))));
}

#[test]
fn beacons_that_cannot_be() {
    let with = |change: fn(&mut Beacon)| {
        let mut beacon = beacon(&[3, 3]);
        change(&mut beacon);
        Beacon::decode(&beacon.encode(1_408))
    };
    assert_eq!(with(|b| b.on_wire.as_mut().unwrap().sequence = 0), Err(BeaconError::SequenceZero));
    assert_eq!(with(|b| b.channel.as_mut().unwrap().recent[1].sequence = 0), Err(BeaconError::SequenceZero));
    assert_eq!(with(|b| b.channel.as_mut().unwrap().recent.reverse()), Err(BeaconError::Order));
    assert_eq!(with(|b| b.channel.as_mut().unwrap().recent[1].sequence = 1_000), Err(BeaconError::Order));
    assert_eq!(with(|b| b.channel.as_mut().unwrap().newest = 999), Err(BeaconError::Order));
}
