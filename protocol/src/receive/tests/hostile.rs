//! What a sender can do that has the link key and nothing else, while an honest one sends.

use super::super::vouch::{TRIES, TRY_AGAIN};
use super::*;

/// Wanted, and nobody signed for it.
fn named(_: &Symbol) -> Wanted {
    Wanted::Yes { have: BlockSet::new(), parked: Vec::new(), origin: Origin::Named }
}

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
        reassembly.handle_with(now, &header, &vec![0xa5; usize::from(symbol.oti.symbol_size())], &mut named)
    }

    /// A symbol of an object that the caller refuses.
    fn refused(&mut self, reassembly: &mut Reassembly, now: Time, symbol: Symbol) {
        let header =
            Header { sealed: true, session: self.session, counter: self.counter, content: Content::Symbol(symbol) };
        self.counter = self.counter.wrapping_add(1);
        let mut want = |_: &Symbol| Wanted::No(DropReason::Refused);
        let payload = vec![0xa5; usize::from(symbol.oti.symbol_size())];
        assert!(reassembly.handle_with(now, &header, &payload, &mut want).is_err());
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
        reassembly.sent(SessionId(1), Sent { by: BundleId(1).tag(), datagrams: n });
        for tally in reassembly.tally() {
            assert!(tally.sent <= n && tally.received <= tally.sent, "{tally:?}");
        }
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
            let _ = peer.put(reassembly, now, tiny(100 + n % 5_000, kind, 0));
        }
        refused += reassembly.given_up().get(DropReason::Limit);
        let usage = reassembly.usage();
        assert!(usage.unsigned_objects <= 1_024 + 256, "{usage:?}");
    });
    assert!(refused > 50, "{refused}");
    // Now an honest bundle that nobody has signed for yet.
    let mut reassembly = Reassembly::new(limits(16 << 20));
    let mut honest = Peer::new(3);
    let oti = Oti::new(64 * 8, 64, 8).unwrap();
    let announce = |esi| Symbol { bundle: BundleId(7), kind: ObjectKind::Announce, sbn: 0, esi, oti };
    let mut esi = 0;
    for n in 0..200_000_u64 {
        let now = Time(1_000_000_000 + n * 50_000);
        let _ = peer.put(&mut reassembly, now, tiny(1_000 + n, ObjectKind::Announce, 0));
        // When there is no room any more, one of five hundred is honest: it takes 0.2 s.
        if n > 50_000 && n % 500 == 0 && esi < 8 {
            honest.put(&mut reassembly, now, announce(esi)).unwrap();
            esi += 1;
        }
    }
    assert_eq!(esi, 8);
    assert!(std::iter::from_fn(|| reassembly.poll_complete()).any(|block| block.bundle() == BundleId(7)));
}

#[test]
fn of_bundles_that_nobody_signed_for_the_one_with_more_traffic_is_checked_first() {
    let mut reassembly = Reassembly::new(limits(16 << 20));
    let mut peer = Peer::new(2);
    // All of one key.
    let id = |n: u64| n << 24;
    for sbn in 0..40 {
        peer.put(&mut reassembly, Time(sbn.into()), tiny(id(7), ObjectKind::Data, sbn)).unwrap();
    }
    let oti = Oti::new(64, 64, 8).unwrap();
    let announce = |n| Symbol { bundle: BundleId(id(n)), kind: ObjectKind::Announce, sbn: 0, esi: 0, oti };
    let put = |reassembly: &mut Reassembly, peer: &mut Peer| {
        for bundle in [8, 7, 9] {
            peer.put(reassembly, Time(50), announce(bundle)).unwrap();
        }
    };
    put(&mut reassembly, &mut peer);
    let first = reassembly.poll_complete().unwrap();
    assert_eq!(first.bundle(), BundleId(id(7)));
    reassembly.discarded(first);
    while let Some(block) = reassembly.poll_complete() {
        reassembly.discarded(block);
    }
    // It was nothing, again and again: each time what came of it speaks half as much for it.
    for _ in 0..6 {
        peer.put(&mut reassembly, Time(55), announce(7)).unwrap();
        let block = reassembly.poll_complete().unwrap();
        reassembly.discarded(block);
    }
    peer.put(&mut reassembly, Time(60), tiny(id(9), ObjectKind::Data, 1)).unwrap();
    put(&mut reassembly, &mut peer);
    assert_eq!(reassembly.poll_complete().map(|block| block.bundle()), Some(BundleId(id(9))));
}

/// Somebody sends junk of ever new bundles twenty times as fast. The honest announce comes late, and one symbol of it is enough.
#[test]
fn a_flood_of_junk_loses_nothing_of_a_bundle_whose_announce_is_late() {
    let mut reassembly = Reassembly::new(limits(64 << 20));
    let (mut peer, mut honest) = (Peer::new(2), Peer::new(3));
    let junk = |n: u64| {
        let kind = [ObjectKind::Data, ObjectKind::Hashes, ObjectKind::Announce][n as usize % 3];
        let oti = Oti::new(1 << 26, 1_408, 256).unwrap();
        Symbol { bundle: BundleId(1_000 + n), kind, sbn: 0, esi: 0, oti }
    };
    let (data, announce) = (Oti::new(30 * 1_408, 1_408, 64).unwrap(), Oti::new(500, 1_408, 64).unwrap());
    let mine = |kind, oti, esi| Symbol { bundle: BundleId(7), kind, sbn: 0, esi, oti };
    for n in 0..9_000 {
        let now = Time(1_000_000_000 + n * 50_000);
        peer.put(&mut reassembly, now, junk(n)).unwrap();
        if n >= 5_000 && n % 20 == 0 && n < 5_600 {
            honest.put(&mut reassembly, now, mine(ObjectKind::Data, data, (n as u32 - 5_000) / 20)).unwrap();
        }
    }
    assert!(reassembly.poll_block().is_none());
    let now = Time(2_000_000_000);
    honest.put(&mut reassembly, now, mine(ObjectKind::Announce, announce, 3)).unwrap();
    let NextCheck::Check(Check::Object(block)) = reassembly.poll_check(now) else { panic!("it waits to be checked") };
    assert_eq!((block.bundle(), block.origin()), (BundleId(7), Origin::Named));
    reassembly.vouch(now, BundleId(7));
    reassembly.answer_all(now, signed);
    reassembly.stored(*block);
    let block = reassembly.poll_block().expect("all of its data was here");
    assert_eq!((block.bundle(), block.kind(), block.is_whole()), (BundleId(7), ObjectKind::Data, true));
    reassembly.stored(block);
    assert!(reassembly.usage().unsigned_memory <= 16 << 20);
    for n in 0..100 {
        reassembly.handle_timeout(now + Duration::from_secs(40 + n));
    }
    assert_eq!(reassembly.usage(), Usage::default(), "every byte came back");
}

fn signed(_: &Symbol) -> Wanted {
    Wanted::Yes { have: BlockSet::new(), parked: Vec::new(), origin: Origin::Signed }
}

#[test]
fn objects_of_signed_bundles_leave_room_for_blocks() {
    // Room for some hundred objects; a foreign signer has bundles without end, each under many OTIs.
    let mut reassembly = Reassembly::new(limits(1 << 20));
    let mut peer = Peer::new(2);
    for n in 0..3_000 {
        let now = Time(n * 1_000_000);
        for length in 1..=4 {
            let oti = Oti::new((1 << 20) + length, 64, 8).unwrap();
            let symbol = Symbol { bundle: BundleId(n), kind: ObjectKind::Data, sbn: 0, esi: 0, oti };
            let _ = peer.put(&mut reassembly, now, symbol);
        }
        reassembly.vouch(now, BundleId(n));
        reassembly.answer_all(now, signed);
        while let Some(block) = reassembly.poll_parked() {
            reassembly.recycle(block);
        }
        let usage = reassembly.usage();
        assert!(usage.objects as u64 * super::super::buffers::OBJECT_OVERHEAD <= (1 << 20) / 4, "{usage:?}");
    }
    for esi in 0..8 {
        let symbol = Symbol { esi, ..tiny(7_777, ObjectKind::Data, 0) };
        peer.put(&mut reassembly, Time(1 << 40), symbol).unwrap();
    }
    assert_eq!(reassembly.poll_block().map(|block| block.bundle()), Some(BundleId(7_777)));
}

#[test]
fn of_a_bundle_that_is_signed_for_only_what_was_signed_stays() {
    let mut reassembly = Reassembly::new(limits(16 << 20));
    let mut peer = Peer::new(2);
    let otis = [1 << 20, 1 << 21].map(|length| Oti::new(length, 64, 8).unwrap());
    for oti in otis {
        let symbol = Symbol { bundle: BundleId(7), kind: ObjectKind::Data, sbn: 1, esi: 0, oti };
        peer.put(&mut reassembly, Time(1), symbol).unwrap();
    }
    let want = |symbol: &Symbol| if symbol.oti == otis[0] { signed(symbol) } else { Wanted::No(DropReason::Refused) };
    reassembly.vouch(Time(2), BundleId(7));
    reassembly.answer_all(Time(2), want);
    let left: Vec<Oti> = reassembly.progress().map(|progress| progress.oti).collect();
    assert_eq!(left, [otis[0]]);
    assert_eq!(reassembly.lacking(BundleId(7)), [(1, 7)]);
    assert!(reassembly.poll_expired().is_none(), "the bundle is not over");
}

#[test]
fn objects_that_come_while_the_announce_is_checked_lose_nothing_of_those_before() {
    let mut reassembly = Reassembly::new(limits(1 << 20));
    let mut peer = Peer::new(2);
    // All room for blocks is taken, so that some of the data is in a block and the rest waits.
    let data = Oti::new(64 * 16, 64, 8).unwrap();
    let mine = |kind, sbn, esi| Symbol { bundle: BundleId(7), kind, sbn, esi, oti: data };
    peer.put(&mut reassembly, Time(1), mine(ObjectKind::Data, 0, 0)).unwrap();
    let junk = Oti::new(1 << 30, 64, 1_000).unwrap();
    for n in 0..100 {
        let symbol = Symbol { bundle: BundleId(100 + n), kind: ObjectKind::Data, sbn: 0, esi: 0, oti: junk };
        peer.put(&mut reassembly, Time(2), symbol).unwrap();
    }
    (0..8).for_each(|esi| peer.put(&mut reassembly, Time(3), mine(ObjectKind::Data, 1, esi)).unwrap());
    (1..8).for_each(|esi| peer.put(&mut reassembly, Time(3), mine(ObjectKind::Data, 0, esi)).unwrap());
    // The announce is good, and before that is said here something of the bundle comes that was not known.
    let symbol = Symbol { oti: Oti::new(64 * 3, 64, 8).unwrap(), ..mine(ObjectKind::Hashes, 0, 0) };
    let header = Header { sealed: true, session: SessionId(9), counter: 0, content: Content::Symbol(symbol) };
    reassembly.handle_with(Time(4), &header, &[1; 64], &mut signed).unwrap();
    reassembly.vouch(Time(5), BundleId(7));
    reassembly.answer_all(Time(5), signed);
    let whole: Vec<u32> = std::iter::from_fn(|| reassembly.poll_block()).map(|block| block.sbn()).collect();
    assert_eq!(whole.len(), 2, "{whole:?}");
}

#[test]
fn what_waited_goes_on_as_room_comes() {
    let mut reassembly = Reassembly::new(limits(1 << 20));
    let mut peer = Peer::new(2);
    let oti = Oti::new(1 << 30, 64, 1_000).unwrap();
    let put = |reassembly: &mut Reassembly, peer: &mut Peer, bundle, sbn, esi| {
        let symbol = Symbol { bundle: BundleId(bundle), kind: ObjectKind::Data, sbn, esi, oti };
        peer.put(reassembly, Time(2), symbol).unwrap();
    };
    // Junk takes the room for blocks, so that what comes then waits: three symbols of each of twenty blocks, which are larger than memory.
    (0..100).for_each(|n| put(&mut reassembly, &mut peer, 100 + n, 0, 0));
    (0..3).for_each(|esi| (0..20).for_each(|sbn| put(&mut reassembly, &mut peer, 7, sbn, esi)));
    reassembly.vouch(Time(5), BundleId(7));
    reassembly.answer_all(Time(5), signed);
    assert!(reassembly.has_admitted(), "not all at once");
    let mut placed = 0;
    for n in 1..100 {
        // The caller has time to keep some.
        while let Some(block) = reassembly.poll_parked() {
            placed += block.received();
            reassembly.recycle(block);
        }
        reassembly.take_admitted(Time(5) + TRY_AGAIN * n);
        reassembly.answer_all(Time(5) + TRY_AGAIN * n, signed);
    }
    assert!(!reassembly.has_admitted());
    placed += reassembly.lacking(BundleId(7)).iter().map(|(_, lacking)| 1_000 - lacking).sum::<u32>();
    assert_eq!(placed, 60, "{:?}", reassembly.given_up());
}

/// A block that is larger than all memory is tried some times, and no more.
#[test]
fn what_can_never_have_room_is_given_up() {
    let mut reassembly = Reassembly::new(limits(64 << 10));
    let mut peer = Peer::new(2);
    let oti = Oti::new(1 << 30, 64, 1_024).unwrap();
    let symbol = Symbol { bundle: BundleId(7), kind: ObjectKind::Data, sbn: 0, esi: 0, oti };
    peer.put(&mut reassembly, Time(1), symbol).unwrap();
    reassembly.vouch(Time(2), BundleId(7));
    reassembly.answer_all(Time(2), signed);
    for n in 1..=TRIES {
        assert!(reassembly.has_admitted());
        // Not before its time.
        reassembly.take_admitted(Time(2) + TRY_AGAIN * n - Duration::from_millis(1));
        reassembly.answer_all(Time(2) + TRY_AGAIN * n - Duration::from_millis(1), signed);
        reassembly.take_admitted(Time(2) + TRY_AGAIN * n);
        reassembly.answer_all(Time(2) + TRY_AGAIN * n, signed);
        while let Some(block) = reassembly.poll_parked() {
            reassembly.recycle(block);
        }
    }
    assert!(!reassembly.has_admitted());
    assert_eq!(reassembly.given_up().get(DropReason::Memory), 1);
}

#[test]
fn what_no_key_is_named_for_keeps_nobody_out() {
    let mut reassembly = Reassembly::new(limits(16 << 20));
    let mut unknown = |_: &Symbol| Wanted::Yes { have: BlockSet::new(), parked: Vec::new(), origin: Origin::Unknown };
    let oti = Oti::new(60_000, 64, 1_000).unwrap();
    let mut dropped = 0;
    for n in 0..2_000 {
        let symbol = Symbol { bundle: BundleId(100 + n), kind: ObjectKind::Announce, sbn: 0, esi: 0, oti };
        let header = Header { sealed: true, session: SessionId(9), counter: n, content: Content::Symbol(symbol) };
        dropped +=
            u32::from(reassembly.handle_with(Time(n), &header, &[1; 64], &mut unknown) == Err(DropReason::Limit));
    }
    assert!(dropped > 1_900, "{dropped}");
    let usage = reassembly.usage();
    assert!(usage.unsigned_memory <= (1 << 20) + (32 << 10), "half of the room for blocks: {usage:?}");
    let mut peer = Peer::new(2);
    for esi in 0..8 {
        peer.put(&mut reassembly, Time(5_000), Symbol { esi, ..tiny(7, ObjectKind::Data, 0) }).unwrap();
    }
    assert_eq!(reassembly.poll_block().map(|block| block.bundle()), Some(BundleId(7)));
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
            std::iter::from_fn(|| reassembly.poll_complete()).collect::<Vec<_>>()
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
                    1 => reassembly.undecodable(Time(5), block),
                    _ => reassembly.failed(Time(5), block),
                }
            }
            new.into_iter().for_each(|block| reassembly.failed(Time(5), block));
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
    reassembly.vouch(Time(0), BundleId(5));
    reassembly.answer_all(Time(0), named);
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
