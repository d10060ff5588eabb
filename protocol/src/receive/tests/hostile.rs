//! What a sender can do that has the link key and nothing else, while an honest one sends.

use super::*;

/// Puts symbols in as somebody with the link key would.
struct Peer {
    counter: u64,
    session: SessionId,
}

impl Peer {
    fn new(session: u64) -> Self {
        Self { counter: 0, session: SessionId(session) }
    }

    /// A symbol of anything. Nobody signed for it.
    fn put(&mut self, reassembly: &mut Reassembly, now: Time, symbol: Symbol) -> Result<(), DropReason> {
        let header =
            Header { sealed: true, session: self.session, counter: self.counter, content: Content::Symbol(symbol) };
        self.counter = self.counter.wrapping_add(1);
        let mut want = |_: &Symbol| Wanted::Yes { have: BlockSet::new(), parked: Vec::new(), signed: false };
        reassembly.handle(now, &header, &vec![0xa5; usize::from(symbol.oti.symbol_size())], &mut want)
    }

    /// A symbol of an object that the caller refuses.
    fn refused(&mut self, reassembly: &mut Reassembly, now: Time, symbol: Symbol) {
        let header =
            Header { sealed: true, session: self.session, counter: self.counter, content: Content::Symbol(symbol) };
        self.counter = self.counter.wrapping_add(1);
        let mut want = |_: &Symbol| Wanted::No(DropReason::Refused);
        let payload = vec![0xa5; usize::from(symbol.oti.symbol_size())];
        assert!(reassembly.handle(now, &header, &payload, &mut want).is_err());
    }
}

fn tiny(bundle: u64, kind: ObjectKind, sbn: u32) -> Symbol {
    let oti = Oti::new(1 << 30, 64, 8).unwrap();
    Symbol { bundle: BundleId(bundle), kind, sbn, esi: sbn % 8, oti }
}

/// All of an honest transmission arrives, whatever `hostile` does before each datagram.
fn honest_arrives_beside(mut hostile: impl FnMut(&mut Reassembly, Time, u64)) -> High {
    let bytes = data(3_000_000);
    let mut high = High::new(bytes.len(), 16 << 20);
    for (n, (now, datagram)) in (0..).zip(transmit(&parameters(0.05, 10), 1, &bytes, 0)) {
        hostile(&mut high.reassembly, now, n);
        high.receive(now, &datagram);
        assert!(high.reassembly.memory() <= 16 << 20, "{}", high.reassembly.memory());
    }
    assert!(high.data == bytes);
    let last = Time(1_000_000_000) + Duration::from_secs(3_600);
    (0..1_000).for_each(|_| high.reassembly.handle_timeout(last));
    assert_eq!(high.reassembly.usage(), Usage::default(), "every byte came back");
    high
}

#[test]
fn counters_at_their_extremes_are_harmless() {
    let mut peer = Peer::new(1);
    honest_arrives_beside(|reassembly, now, n| {
        for counter in [0, u64::MAX, 1 << 63, n + 1, n + (1 << 20)] {
            peer.counter = counter;
            let _ = peer.put(reassembly, now, tiny(9, ObjectKind::Data, 0));
        }
        reassembly.sent(SessionId(1), n);
        let tally = reassembly.tally();
        assert!(tally.sent <= n && tally.received <= tally.sent, "{tally:?}");
    });
}

#[test]
fn tiny_symbols_stay_in_their_room() {
    let mut peer = Peer::new(2);
    let mut most = 0;
    honest_arrives_beside(|reassembly, now, n| {
        for sbn in 0..200 {
            let _ = peer.put(reassembly, now, tiny(100 + n % 50, ObjectKind::Data, n as u32 * 200 + sbn));
        }
        let usage = reassembly.usage();
        assert!(usage.unsigned_memory <= 4 << 20, "{usage:?}");
        most = most.max(usage.open_blocks);
    });
    assert!(most > 1_000, "it used what it may: {most}");
}

#[test]
fn junk_objects_keep_no_announce_and_no_signed_bundle_out() {
    let mut peer = Peer::new(2);
    let mut refused = 0;
    // As fast as the honest one, and again and again the same, so that none is ever silent.
    honest_arrives_beside(|reassembly, now, n| {
        for kind in [ObjectKind::Data, ObjectKind::Hashes, ObjectKind::Announce] {
            let put = peer.put(reassembly, now, tiny(100 + n % 5_000, kind, 0));
            refused += u32::from(put == Err(DropReason::Limit));
        }
        let usage = reassembly.usage();
        assert!(usage.unsigned_objects <= 1_024 + 256, "{usage:?}");
    });
    assert!(refused > 1_000, "{refused}");
    // Now an honest bundle that nobody has signed for yet.
    let mut reassembly = Reassembly::new(limits(16 << 20));
    let mut honest = Peer::new(3);
    let announce = |esi: u32| Symbol { esi, ..tiny(7, ObjectKind::Announce, 0) };
    let (mut taken, mut esi) = (0, 0);
    for n in 0..200_000_u64 {
        let now = Time(1_000_000_000 + n * 50_000);
        let _ = peer.put(&mut reassembly, now, tiny(1_000 + n, ObjectKind::Announce, 0));
        // One of ten is honest.
        if n % 10 == 0 && taken < 8 && honest.put(&mut reassembly, now, announce(esi)).is_ok() {
            (taken, esi) = (taken + 1, esi + 1);
        }
    }
    assert_eq!(taken, 8);
    assert!(std::iter::from_fn(|| reassembly.poll_block()).any(|block| block.bundle() == BundleId(7)));
}

#[test]
fn a_bundle_with_more_traffic_says_so() {
    let mut reassembly = Reassembly::new(limits(16 << 20));
    let mut peer = Peer::new(2);
    for sbn in 0..40 {
        peer.put(&mut reassembly, Time(sbn.into()), tiny(7, ObjectKind::Data, sbn)).unwrap();
    }
    let oti = Oti::new(64, 64, 8).unwrap();
    let announce = |bundle| Symbol { bundle: BundleId(bundle), kind: ObjectKind::Announce, sbn: 0, esi: 0, oti };
    peer.put(&mut reassembly, Time(50), announce(7)).unwrap();
    peer.put(&mut reassembly, Time(50), announce(8)).unwrap();
    let traffic: Vec<u64> = std::iter::from_fn(|| reassembly.poll_block()).map(|block| block.traffic()).collect();
    assert_eq!(traffic, [41, 1]);
}

#[test]
fn blocks_of_an_object_that_goes_while_they_are_out_come_back() {
    for again in [false, true] {
        let mut reassembly = Reassembly::new(limits(16 << 20));
        let mut peer = Peer::new(2);
        let oti = Oti::new(64 * 4, 64, 2).unwrap();
        let symbol = |sbn, esi| Symbol { bundle: BundleId(7), kind: ObjectKind::Data, sbn, esi, oti };
        let complete = |reassembly: &mut Reassembly, peer: &mut Peer| {
            for (sbn, esi) in [(0, 0), (0, 1), (1, 0), (1, 9)] {
                peer.put(reassembly, Time(5), symbol(sbn, esi)).unwrap();
            }
            std::iter::from_fn(|| reassembly.poll_block()).collect::<Vec<_>>()
        };
        for _ in 0..1_000 {
            let out = complete(&mut reassembly, &mut peer);
            assert_eq!(out.len(), 2);
            // Late symbols of a block that is out.
            let _ = peer.put(&mut reassembly, Time(5), symbol(1, 8));
            reassembly.forget(BundleId(7));
            let new = if again { complete(&mut reassembly, &mut peer) } else { Vec::new() };
            if again {
                // Collecting when the old ones come back.
                peer.put(&mut reassembly, Time(5), Symbol { esi: 700, ..symbol(0, 0) }).unwrap_err();
            }
            for (n, block) in out.into_iter().enumerate() {
                match n % 3 {
                    0 => reassembly.stored(block),
                    1 => reassembly.undecodable(block),
                    _ => reassembly.failed(block),
                }
            }
            new.into_iter().for_each(|block| reassembly.failed(block));
            reassembly.forget(BundleId(7));
            assert_eq!((reassembly.memory(), reassembly.usage().open_blocks), (0, 0));
        }
    }
}

#[test]
fn what_nobody_signs_for_leaves_and_is_told_of() {
    let mut reassembly = Reassembly::new(limits(16 << 20));
    let mut peer = Peer::new(2);
    for bundle in 0..900 {
        peer.put(&mut reassembly, Time(0), tiny(bundle, ObjectKind::Data, 0)).unwrap();
    }
    reassembly.vouch(BundleId(5));
    assert!(reassembly.usage().unsigned_memory < reassembly.usage().memory);
    // More than half of the room is taken, so the silent leave after a second.
    for tick in 0..200 {
        reassembly.handle_timeout(Time(1_500_000_000 + tick));
    }
    let usage = reassembly.usage();
    assert!(usage.unsigned_objects <= (1_024 + 256) / 2, "{usage:?}");
    for tick in 0..200 {
        reassembly.handle_timeout(Time(31_000_000_000 + tick));
    }
    assert_eq!((reassembly.usage().unsigned_objects, reassembly.usage().unsigned_memory), (0, 0));
    let expired: Vec<BundleId> = std::iter::from_fn(|| reassembly.poll_expired()).collect();
    assert_eq!(expired.len(), 899);
    assert!(!expired.contains(&BundleId(5)));
}

#[test]
fn lengths_that_are_refused_put_no_announced_object_out() {
    let mut peer = Peer::new(2);
    honest_arrives_beside(|reassembly, now, n| {
        for length in 1..=6 {
            let oti = Oti::new(n * 8 + length, 64, 8).unwrap();
            let symbol = Symbol { bundle: BundleId(1), kind: ObjectKind::Data, sbn: 0, esi: 9, oti };
            peer.refused(reassembly, now, symbol);
        }
    });
}

#[test]
fn one_bundle_under_many_lengths_is_a_few_objects() {
    let mut reassembly = Reassembly::new(limits(16 << 20));
    let mut peer = Peer::new(2);
    for length in 1..5_000 {
        let oti = Oti::new(length, 64, 8).unwrap();
        let symbol = Symbol { bundle: BundleId(7), kind: ObjectKind::Data, sbn: 0, esi: 9, oti };
        let _ = peer.put(&mut reassembly, Time(length), symbol);
        assert!(reassembly.usage().objects <= 4);
    }
}
