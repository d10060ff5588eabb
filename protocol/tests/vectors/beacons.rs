//! Beacons: good ones, and one for every rule that may be broken.

use checkvalve_protocol::beacon::{Beacon, ChannelState, OnWire, Recent, RecentState};
use checkvalve_protocol::codec;
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::{MAX_MTU, MAX_NAME_LEN};
use toml::{Table, Value};

use crate::cases::{Case, fields, hex, number};

/// What was read, every field of it.
pub(crate) fn describe(beacon: &Beacon) -> Table {
    let mut table = fields([
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

fn recent(sequence: u64, state: RecentState, name: &[u8]) -> Recent {
    Recent { sequence, bundle: BundleId(0x1111 * sequence), bytes: 1_000_000 * sequence, state, name: name.to_vec() }
}

fn busy() -> Beacon {
    Beacon {
        session_number: 3,
        clock_ms: 1_700_000_000_123,
        rate_bits: 900_000_000,
        datagrams: 70_000,
        on_wire: Some(OnWire {
            bundle: BundleId(0x0123_4567_89ab_cdef),
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

fn case(name: &str, expect: &'static str, why: &str, bytes: Vec<u8>) -> Case {
    let value = (expect == "ok").then(|| describe(&Beacon::decode(&bytes).unwrap()));
    Case { file: format!("beacon/{name}.toml"), kind: "beacon", expect, why: why.to_owned(), bytes, value }
}

pub(crate) fn cases() -> Vec<Case> {
    let with = |name: &str, expect, why: &str, change: fn(&mut Beacon)| {
        let mut beacon = busy();
        change(&mut beacon);
        case(name, expect, why, beacon.encode(1_408))
    };
    let recent_of = |beacon: &mut Beacon, at: usize, sequence: u64| {
        beacon.channel.as_mut().unwrap().recent[at].sequence = sequence;
    };
    let busy_bytes = busy().encode(1_408);
    let idle = Beacon { on_wire: None, channel: None, ..busy() };
    let idle_bytes = idle.encode(1_408);
    let fixed = &idle_bytes[..idle_bytes.len() - 2];
    let channel = |count: u64, rest: &[u8]| [fixed, &[0, 1, 1, b'a', 0, 9], &codec::encode(&count), rest].concat();
    let named = |len: usize| [&[9, 9, 0, 0], codec::encode(&(len as u64)).as_slice(), &vec![b'n'; len]].concat();
    let mut cases = vec![
        case(
            "good-busy",
            "ok",
            "a bundle on the wire, and a channel's recent past with a gap in it",
            busy_bytes.clone(),
        ),
        case("good-idle", "ok", "nothing on the wire and no channel", idle_bytes.clone()),
        case("good-fresh-channel", "ok", "a channel that has given out no sequence yet", {
            [fixed, &[0, 1, 1, b'a', 0, 0, 0]].concat()
        }),
        case("good-name-255-bytes", "ok", "a name as long as may be", channel(1, &named(MAX_NAME_LEN))),
        case("empty", "truncated", "a beacon of no bytes", vec![]),
        case("truncated", "truncated", "the last byte is missing", busy_bytes[..busy_bytes.len() - 1].to_vec()),
        case("trailing-bytes", "trailing-bytes", "a byte after the last field", [&idle_bytes, [0].as_slice()].concat()),
        case("option-not-0-or-1", "tag", "the mark of what is on the wire is 2", [fixed, &[2, 0]].concat()),
        case("state-unknown", "value", "a recent bundle in state 4", channel(1, &[9, 9, 0, 4, 0])),
        case("recent-declared-huge", "truncated", "2^64 - 1 recent bundles are declared", channel(u64::MAX, &[])),
        case("name-declared-huge", "truncated", "a name of 2^64 - 1 bytes is declared", {
            channel(1, &[&[9, 9, 0, 0], codec::encode(&u64::MAX).as_slice()].concat())
        }),
        case("name-256-bytes", "name-too-long", "a bundle's name of 256 bytes", channel(1, &named(MAX_NAME_LEN + 1))),
        case("channel-name", "channel", "a channel named `/`", [fixed, &[0, 1, 1, b'/', 0, 0, 0]].concat()),
        case(
            "channel-not-utf8",
            "utf8",
            "a channel's name that is not UTF-8",
            [fixed, &[0, 1, 1, 0xff, 0, 0, 0]].concat(),
        ),
        case("too-long", "too-long", "a beacon longer than any datagram", vec![0; usize::from(MAX_MTU) + 1]),
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
        cases.push(case(name, expect, why, beacon.encode(1_408)));
    }
    cases
}
