use super::*;
use crate::beacon::{ChannelState, Epoch, OnWire};
use crate::codec::{self, Bytes};
use crate::crypto::SigningKey;
use crate::id::EpochId;
use crate::manifest::raw::{RawAnnounce, RawEntry, RawHashes, RawHead, RawKind, RawOutcome};

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed([seed; 32])
}

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

/// Trusts keys 1 and 2; only 2 may sign for channel `other`.
fn trust() -> Trust {
    let mut trust = Trust::default();
    for seed in [1, 2] {
        assert!(trust.keys.insert(key(seed).public(), format!("key {seed}")));
    }
    trust.signers.insert(channel("other"), BTreeSet::from([key(2).public().id()]));
    trust
}

fn id(seed: u8) -> BundleId {
    BundleId::new(77, key(seed).public().id())
}

fn head(bundle: BundleId, channel: &'static str) -> RawHead<'static> {
    RawHead {
        bundle: bundle.0,
        channel,
        sequence: 1,
        name: Bytes(b"f"),
        created_ms: 0,
        symbol_size: 64,
        block_symbols: 8,
    }
}

fn announce(bundle: BundleId, channel: &'static str, key: &SigningKey) -> Vec<u8> {
    let entry = RawEntry { path: Bytes(b"f"), secs: 0, nanos: 0, kind: RawKind::File { size: 3, mode: 0o644 } };
    let payload = RawAnnounce { head: head(bundle, channel), entries: vec![entry] }.encode();
    signed::seal(signed::ANNOUNCE, &payload, key)
}

fn hashes(bundle: BundleId, announce: &[u8], count: usize, key: &SigningKey) -> Vec<u8> {
    let outcome = RawOutcome::Complete { files: vec![[7; 32]; count].into() };
    let payload = RawHashes { bundle: bundle.0, announce: *blake3::hash(announce).as_bytes(), outcome }.encode();
    signed::seal(signed::HASHES, &payload, key)
}

fn rule(result: Result<Admitted, Verdict>) -> (&'static str, &'static str) {
    match result {
        Ok(_) => ("admitted", ""),
        Err(verdict) => {
            let what = match &verdict {
                Verdict::Discard(_) => "discard",
                Verdict::Unknown { .. } => "unknown",
                Verdict::Refuse { .. } => "refuse",
            };
            (what, verdict.error().rule())
        }
    }
}

#[test]
fn a_signed_announce_with_its_hashes_counts() {
    let good = announce(id(1), "default", &key(1));
    let both = admit(id(1), &good, Some(&hashes(id(1), &good, 1, &key(1))), &trust()).unwrap();
    assert_eq!((both.announce.signer, both.announce.signer_name.as_str()), (key(1).public().id(), "key 1"));
    assert_eq!(both.outcome, Some(Outcome::Complete { files: vec![[7; 32]] }));
    assert_eq!(admit(id(1), &good, None, &trust()).unwrap().outcome, None);
    assert!(admit(id(2), &announce(id(2), "other", &key(2)), None, &trust()).is_ok());
}

#[test]
fn what_is_not_rightly_signed_is_discarded() {
    let good = announce(id(1), "default", &key(1));
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    let foreign = announce(id(1), "default", &key(2));
    let no_head = signed::seal(signed::ANNOUNCE, &codec::encode(&id(1).0), &key(1));
    let no_channel = announce(id(1), "NO", &key(1));
    let cases: [(&[u8], &str); 7] = [
        (b"rubbish", "container"),
        (&signed::seal_unsigned(b"x"), "unsigned"),
        (&changed, "bad-signature"),
        (&announce(BundleId::new(78, key(1).public().id()), "default", &key(1)), "other-bundle"),
        (&foreign, "foreign-bundle"),
        (&no_head, "truncated"),
        (&no_channel, "channel"),
    ];
    for (bytes, expect) in cases {
        assert_eq!(rule(admit(id(1), bytes, None, &trust())), ("discard", expect));
    }
    let cases: [(Vec<u8>, &str); 5] = [
        (b"rubbish".to_vec(), "container"),
        (hashes(id(2), &good, 1, &key(1)), "other-bundle"),
        (hashes(id(1), &good, 1, &key(2)), "foreign-bundle"),
        (hashes(id(1), b"another announce", 1, &key(1)), "other-announce"),
        (signed::seal(signed::HASHES, b"", &key(1)), "truncated"),
    ];
    for (bytes, expect) in cases {
        assert_eq!(rule(admit(id(1), &good, Some(&bytes), &trust())), ("discard", expect));
    }
}

#[test]
fn a_key_that_is_unknown_or_of_another_channel_may_be_allowed_later() {
    let stranger = announce(id(3), "default", &key(3));
    let Err(Verdict::Unknown { key: by, claims: Some(claims), .. }) = admit(id(3), &stranger, None, &trust()) else {
        panic!("it names the key")
    };
    assert_eq!((by, claims.bundle, claims.channel.as_str()), (key(3).public().id(), id(3), "default"));
    // Under a bundle of another key it claims nothing.
    let foreign = announce(id(1), "default", &key(3));
    assert!(matches!(admit(id(1), &foreign, None, &trust()), Err(Verdict::Unknown { claims: None, .. })));
    let other = announce(id(1), "other", &key(1));
    assert_eq!(rule(admit(id(1), &other, None, &trust())), ("unknown", "not-for-channel"));

    let mut more = trust();
    more.keys.insert(key(3).public(), "key 3");
    more.signers.clear();
    assert!(admit(id(3), &stranger, None, &more).is_ok());
    assert!(admit(id(1), &other, None, &more).is_ok());
}

#[test]
fn what_is_rightly_signed_and_breaks_a_rule_is_refused() {
    let nothing = RawAnnounce { head: head(id(1), "default"), entries: Vec::<RawEntry<'_>>::new() };
    let with =
        |payload: Vec<u8>| rule(admit(id(1), &signed::seal(signed::ANNOUNCE, &payload, &key(1)), None, &trust()));
    assert_eq!(with(nothing.encode()), ("refuse", "no-entries"));
    assert_eq!(with(nothing.encode_with(&[(1, b"")])), ("refuse", "critical-extension"));
    assert_eq!(with([nothing.encode(), vec![0]].concat()), ("refuse", "trailing-bytes"));
    let good = announce(id(1), "default", &key(1));
    let two = hashes(id(1), &good, 2, &key(1));
    assert_eq!(rule(admit(id(1), &good, Some(&two), &trust())), ("refuse", "hash-count"));
    let torn = signed::seal(signed::HASHES, &codec::encode(&id(1).0), &key(1));
    assert_eq!(rule(admit(id(1), &good, Some(&torn), &trust())), ("refuse", "truncated"));
    // Whose key is not known any more is refused no more.
    assert_eq!(rule(admit(id(1), &good, Some(&two), &Trust::default())), ("unknown", "unknown-key"));
}

#[test]
fn of_a_beacon_only_what_its_key_may_say_is_left() {
    let beacon = Beacon {
        epoch: Epoch { number: 1, id: EpochId(5) },
        session_number: 1,
        session: SessionId(9),
        counter: 1,
        clock_ms: 1,
        rate_bits: 2,
        datagrams: 3,
        on_wire: Some(OnWire {
            bundle: id(1),
            channel: channel("other"),
            sequence: 1,
            pass: 1,
            passes: 1,
            blocks: 0,
            blocks_sent: 0,
        }),
        channel: Some(ChannelState { name: channel("default"), priority: 0, newest: 4, recent: Vec::new() }),
    };
    let by = |beacon: &Beacon, seed: u8| beacon.sign(&key(seed), 1_408);
    let heard = trust().hear(SessionId(9), &by(&beacon, 1)).unwrap();
    assert_eq!(heard.signer, key(1).public().id());
    assert_eq!((heard.value.rate_bits, heard.value.on_wire), (2, None), "`other` is not its own");
    assert_eq!(heard.value.channel, beacon.channel);
    let rule = |session, bytes: &[u8]| trust().hear(session, bytes).unwrap_err().rule();
    assert_eq!(rule(SessionId(8), &by(&beacon, 1)), "other-session");
    assert_eq!(rule(SessionId(9), &by(&beacon, 2)), "foreign-bundle");
    assert_eq!(rule(SessionId(9), &by(&beacon, 3)), "unknown-key");
    assert_eq!(rule(SessionId(9), &announce(id(1), "default", &key(1))), "bad-signature");
}
