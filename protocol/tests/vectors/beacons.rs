//! Beacons: good ones, and one for every rule that may be broken.

use checkvalve_protocol::beacon::{Beacon, ChannelState, Epoch, OnWire, Recent, RecentState};
use checkvalve_protocol::codec;
use checkvalve_protocol::id::{BundleId, ChannelName, EpochId, SessionId};
use checkvalve_protocol::limits::{MAX_MTU, MAX_NAME_LEN, MAX_SEQUENCE};
use checkvalve_protocol::manifest::{Opened, signed};
use toml::{Table, Value};

use crate::cases::{Case, bundle, fields, hex, number, signer, trust};

/// What was read, every field of it.
pub(crate) fn describe(opened: &Opened<Beacon>) -> Table {
    let beacon = &opened.value;
    let mut table = fields([
        ("signer", Value::String(opened.signer.to_string())),
        ("epoch_number", number(beacon.epoch.number)),
        ("epoch_id", Value::String(beacon.epoch.id.to_string())),
        ("session", Value::String(beacon.session.to_string())),
        ("counter", number(beacon.counter)),
        ("session_number", number(beacon.session_number)),
        ("clock_ms", number(beacon.clock_ms)),
        ("rate_bits", number(beacon.rate_bits)),
        ("datagrams", number(beacon.datagrams)),
    ]);
    if let Some(on_wire) = &beacon.on_wire {
        let on_wire = fields([
            ("bundle", Value::String(on_wire.bundle.to_string())),
            ("channel", Value::String(on_wire.channel.to_string())),
            ("sequence", number(on_wire.sequence)),
            ("pass", Value::Integer(on_wire.pass.into())),
            ("passes", Value::Integer(on_wire.passes.into())),
            ("blocks", Value::Integer(on_wire.blocks.into())),
            ("blocks_sent", Value::Integer(on_wire.blocks_sent.into())),
        ]);
        table.insert("on_wire".into(), Value::Table(on_wire));
    }
    if let Some(channel) = &beacon.channel {
        let recent = channel.recent.iter().map(|recent| {
            Value::Table(fields([
                ("sequence", number(recent.sequence)),
                ("bundle", Value::String(recent.bundle.to_string())),
                ("bytes", number(recent.bytes)),
                ("state", Value::String(format!("{:?}", recent.state).to_lowercase())),
                ("name", Value::String(hex(&recent.name))),
            ]))
        });
        let channel = fields([
            ("name", Value::String(channel.name.to_string())),
            ("priority", Value::Integer(channel.priority.into())),
            ("newest", number(channel.newest)),
            ("recent", Value::Array(recent.collect())),
        ]);
        table.insert("channel".into(), Value::Table(channel));
    }
    table
}

fn own(random: u64) -> BundleId {
    BundleId::new(random, signer("trusted").public().id())
}

fn seal(payload: &[u8]) -> Vec<u8> {
    signed::seal(signed::BEACON, payload, &signer("trusted"))
}

/// The payload of a beacon that nothing was left out of.
fn payload(beacon: &Beacon) -> Vec<u8> {
    beacon.sign(&signer("trusted"), 1_408).split_off(signed::PREFIX_LEN)
}

fn recent(sequence: u64, state: RecentState, name: &[u8]) -> Recent {
    Recent { sequence, bundle: own(0x1111 * sequence), bytes: 1_000_000 * sequence, state, name: name.to_vec() }
}

fn busy() -> Beacon {
    Beacon {
        epoch: Epoch { number: 2, id: EpochId(0xe0e1_e2e3_e4e5_e6e7) },
        session_number: 3,
        session: SessionId(0x0102_0304_0506_0708),
        counter: 86_400,
        clock_ms: 1_700_000_000_123,
        rate_bits: 900_000_000,
        datagrams: 70_000,
        on_wire: Some(OnWire {
            bundle: bundle(),
            channel: ChannelName::new("default").unwrap(),
            sequence: 7,
            pass: 1,
            passes: 2,
            blocks: 300,
            blocks_sent: 42,
        }),
        channel: Some(ChannelState {
            name: ChannelName::new("os-images").unwrap(),
            priority: -5,
            newest: 9,
            recent: vec![
                recent(9, RecentState::Queued, b"caf\xc3\xa9\xff"),
                recent(8, RecentState::Transmitting, b"b"),
                recent(7, RecentState::Transmitted, b""),
                recent(5, RecentState::Withdrawn, b"a"),
            ],
        }),
    }
}

/// A case that a trusted key signed: nothing but its payload is wrong.
fn case(name: &str, expect: &'static str, why: &str, payload: Vec<u8>) -> Case {
    whole(name, expect, why, seal(&payload))
}

fn whole(name: &str, expect: &'static str, why: &str, bytes: Vec<u8>) -> Case {
    let value = (expect == "ok").then(|| describe(&Beacon::open(&bytes, &trust()).unwrap()));
    Case { file: format!("beacon/{name}.toml"), kind: "beacon", expect, why: why.to_owned(), bytes, value }
}

pub(crate) fn cases() -> Vec<Case> {
    let with = |name: &str, expect, why: &str, change: fn(&mut Beacon)| {
        let mut beacon = busy();
        change(&mut beacon);
        case(name, expect, why, payload(&beacon))
    };
    let recent_of = |beacon: &mut Beacon, at: usize, sequence: u64| {
        beacon.channel.as_mut().unwrap().recent[at].sequence = sequence;
    };
    let busy_bytes = payload(&busy());
    let idle = Beacon { on_wire: None, channel: None, ..busy() };
    let idle_bytes = payload(&idle);
    // Two options and the number of extensions are a byte each.
    let fixed = &idle_bytes[..idle_bytes.len() - 3];
    let id = codec::encode(&own(9).0);
    let channel =
        |count: u64, rest: &[u8]| [fixed, &[0, 1, 1, b'a', 0, 9], &codec::encode(&count), rest, &[0]].concat();
    let named = |len: usize| [&[9], &id[..], &[0, 0], &codec::encode(&(len as u64)), &vec![b'n'; len]].concat();
    let mut cases = vec![
        case(
            "good-busy",
            "ok",
            "a bundle on the wire, and a channel's recent past with a gap in it",
            busy_bytes.clone(),
        ),
        case("good-idle", "ok", "nothing on the wire and no channel", idle_bytes.clone()),
        case("good-fresh-channel", "ok", "a channel that has given out no sequence yet", {
            [fixed, &[0, 1, 1, b'a', 0, 0, 0, 0]].concat()
        }),
        case("good-name-255-bytes", "ok", "a name as long as may be", channel(1, &named(MAX_NAME_LEN))),
        case("empty", "truncated", "a beacon of no bytes", vec![]),
        case("truncated", "truncated", "the last byte is missing", busy_bytes[..busy_bytes.len() - 1].to_vec()),
        case("trailing-bytes", "trailing-bytes", "a byte after the extensions", [&idle_bytes, [0].as_slice()].concat()),
        case("option-not-0-or-1", "tag", "the mark of what is on the wire is 2", [fixed, &[2, 0, 0]].concat()),
        case("state-unknown", "value", "a recent bundle in state 4", channel(1, &[&[9], &id[..], &[0, 4, 0]].concat())),
        case("recent-declared-huge", "truncated", "2^64 - 1 recent bundles are declared", channel(u64::MAX, &[])),
        case("name-declared-huge", "truncated", "a name of 2^64 - 1 bytes is declared", {
            channel(1, &[&[9], &id[..], &[0, 0], &codec::encode(&u64::MAX)].concat())
        }),
        case("name-256-bytes", "name-too-long", "a bundle's name of 256 bytes", channel(1, &named(MAX_NAME_LEN + 1))),
        case("channel-name", "channel", "a channel named `/`", [fixed, &[0, 1, 1, b'/', 0, 0, 0, 0]].concat()),
        case(
            "channel-not-utf8",
            "utf8",
            "a channel's name that is not UTF-8",
            [fixed, &[0, 1, 1, 0xff, 0, 0, 0, 0]].concat(),
        ),
        whole("too-long", "too-long", "a beacon longer than any datagram", vec![0; usize::from(MAX_MTU) + 1]),
        whole("unsigned", "unsigned", "key id and signature are all zero", signed::seal_unsigned(&busy_bytes)),
        whole("wrong-key", "unknown-key", "signed by a key that is not trusted", {
            signed::seal(signed::BEACON, &busy_bytes, &signer("stranger"))
        }),
        whole("bad-signature", "bad-signature", "one bit of the payload is flipped", {
            let mut bytes = seal(&busy_bytes);
            bytes[signed::PREFIX_LEN] ^= 1;
            bytes
        }),
        whole("wrong-domain", "bad-signature", "a beacon's payload signed in the role of hashes", {
            signed::seal(signed::HASHES, &busy_bytes, &signer("trusted"))
        }),
        case("extension-critical", "critical-extension", "an extension with an odd tag", {
            [&idle_bytes[..idle_bytes.len() - 1], &[1, 1, 0]].concat()
        }),
        case("good-extension", "ok", "an extension with an even tag is skipped", {
            [&idle_bytes[..idle_bytes.len() - 1], &[1, 2, 1, b'x']].concat()
        }),
        with("epoch-zero", "number", "epoch numbers begin at 1", |b| b.epoch.number = 0),
        with("session-too-large", "number", "session 2^53", |b| b.session_number = MAX_SEQUENCE + 1),
        with("counter-zero", "number", "the first beacon of a session is number 1", |b| b.counter = 0),
        with("foreign-bundle-on-wire", "foreign-bundle", "the bundle on the wire has another key's tag", |b| {
            b.on_wire.as_mut().unwrap().bundle.0 ^= 1;
        }),
        with("foreign-bundle-recent", "foreign-bundle", "a recent bundle has another key's tag", |b| {
            b.channel.as_mut().unwrap().recent[2].bundle.0 ^= 0x80_0000;
        }),
        with("sequence-too-large", "sequence-too-large", "a newest sequence of 2^53", |b| {
            b.channel.as_mut().unwrap().newest = MAX_SEQUENCE + 1;
        }),
        with("sequence-zero-on-wire", "sequence-zero", "a bundle on the wire with sequence 0", |b| {
            b.on_wire.as_mut().unwrap().sequence = 0;
        }),
        with("order-newest-last", "order", "recent bundles come newest first", |b| {
            b.channel.as_mut().unwrap().recent.reverse();
        }),
        with("order-above-newest", "order", "a recent bundle is newer than the newest", |b| {
            b.channel.as_mut().unwrap().newest = 8;
        }),
    ];
    for (name, expect, why, at, sequence) in [
        ("sequence-zero-recent", "sequence-zero", "a recent bundle with sequence 0", 3, 0),
        ("order-twice", "order", "two recent bundles of one sequence", 1, 9),
    ] {
        let mut beacon = busy();
        recent_of(&mut beacon, at, sequence);
        cases.push(case(name, expect, why, payload(&beacon)));
    }
    cases
}
