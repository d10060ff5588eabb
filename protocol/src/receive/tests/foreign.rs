//! What a key can do that is trusted for another channel, while an honest one sends.

use super::*;

const MEMORY: u64 = 16 << 20;

fn signed(_: &Symbol) -> Wanted {
    Wanted::Yes { have: BlockSet::new(), parked: Vec::new(), origin: Origin::Signed }
}

fn foreign(n: u64, symbols: u16) -> Header {
    let oti = Oti::new(64 << 20, 64, symbols).unwrap();
    let sbn = n as u32 % oti.blocks();
    let bundle = BundleId(2 + ((n / u64::from(oti.blocks())) << 24));
    let symbol = Symbol { bundle, kind: ObjectKind::Data, sbn, esi: 0, oti };
    Header { sealed: true, session: SessionId(2), counter: n, content: Content::Symbol(symbol) }
}

/// All of an honest transmission arrives while a foreign key sends the first symbol of blocks of so many as fast as it can, and none of
/// them is ever stored. `keep`: what of the honest one leaves memory is kept. Gives how many of the foreign blocks were waiting to be
/// stored, and why the rest of its symbols was dropped.
fn honest_arrives_beside_blocks_of(symbols: u16, limits: Limits, keep: bool) -> (usize, Drops) {
    let bytes = data(3_000_000);
    let mut high = High { reassembly: Reassembly::new(limits), keep, ..High::new(bytes.len(), 0) };
    let (mut working, mut drops, mut n) = (Vec::new(), Drops::default(), 0);
    // It has all that it may have before the honest one begins.
    let mut flood = |reassembly: &mut Reassembly, now: Time, count: u64| {
        for _ in 0..count {
            if let Err(reason) = reassembly.handle_with(now, &foreign(n, symbols), &[0xa5; 64], &mut signed) {
                drops.add(reason);
            }
            working.extend(reassembly.poll_block());
            while let Some(block) = reassembly.poll_parked() {
                assert_eq!(block.bundle().tag(), BundleId(2).tag(), "it pushes none of the honest one's out");
                reassembly.recycle(block);
            }
            n += 1;
        }
    };
    flood(&mut high.reassembly, Time(1), 100_000);
    for (now, datagram) in transmit(&parameters(0.05, 10), 1, &bytes, 0) {
        flood(&mut high.reassembly, now, 50);
        high.receive(now, &datagram);
        assert!(high.reassembly.memory() <= MEMORY, "{}", high.reassembly.memory());
    }
    assert!(high.data == bytes && high.drops.get(DropReason::Memory) == 0, "{:?}", high.drops);
    let waited = working.len();
    working.into_iter().for_each(|block| high.reassembly.stored(block));
    let last = Time(1_000_000_000) + Duration::from_secs(3_600);
    for _ in 0..1_000 {
        high.reassembly.handle_timeout(last);
        while let Some(block) = high.reassembly.poll_parked() {
            high.reassembly.recycle(block);
        }
    }
    assert_eq!(
        high.reassembly.memory(),
        high.reassembly.usage().objects as u64 * super::super::buffers::OBJECT_OVERHEAD
    );
    (waited, drops)
}

#[test]
fn complete_blocks_of_a_key_leave_room_for_those_of_another() {
    // What is left is an eighth, and some of the honest one's blocks have to be parked.
    let (waited, drops) = honest_arrives_beside_blocks_of(1, limits(MEMORY), true);
    assert!(waited > 5_000 && drops.get(DropReason::Memory) > 50_000, "it used what it may: {waited}, {drops:?}");
}

#[test]
fn blocks_of_a_key_count_towards_the_most_that_may_be_open() {
    let limits = Limits { open_blocks: 1_000, ..limits(MEMORY) };
    let (waited, _) = honest_arrives_beside_blocks_of(1, limits, false);
    assert!((437..=875).contains(&waited), "{waited}");
}

#[test]
fn unfinished_blocks_of_a_key_push_none_of_another_out() {
    let (waited, drops) = honest_arrives_beside_blocks_of(8, limits(MEMORY), false);
    // One leaves for each that is dropped, until it has no more than half.
    assert!(waited == 0 && drops.get(DropReason::Memory) < 10_000, "its own make room: {drops:?}");
}
