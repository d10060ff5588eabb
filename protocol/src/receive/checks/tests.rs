use super::*;
use crate::id::KeyId;
use crate::partition::Oti;
use crate::wire::Symbol;

#[test]
fn a_budget_is_kept_and_not_saved_up() {
    let mut budget = CheckBudget::new(100);
    let start = Time(5_000_000_000);
    let taken = |budget: &mut CheckBudget, now: Time| std::iter::from_fn(|| budget.take(now).ok()).count();
    assert!((10..=12).contains(&taken(&mut budget, start)));
    assert!(
        (99..=101).contains(&(0..1_000).map(|ms| taken(&mut budget, start + Duration::from_millis(ms))).sum::<usize>())
    );
    assert!(budget.take(start).is_err());
    assert!((10..=12).contains(&taken(&mut budget, start + Duration::from_secs(3_600))));
}

fn id(key: u16, n: u64) -> BundleId {
    let mut id = [0; 8];
    id[..2].copy_from_slice(&key.to_be_bytes());
    BundleId::new(n, KeyId(id))
}

/// An announce that came whole, of a bundle whose id names `key`.
fn block(key: u16, n: u64, origin: Origin) -> ReceivedBlock {
    let oti = Oti::new(64, 64, 1).unwrap();
    let symbol = Symbol { bundle: id(key, n), kind: ObjectKind::Announce, sbn: 0, esi: 0, oti };
    let mut block = ReceivedBlock::on_heap(&symbol, 1);
    block.set_origin(origin);
    block
}

const WAITING: usize = 256;
const BEACONS: usize = 64;

fn checks() -> Checks {
    Checks::new(&Limits { checks: WAITING, beacons: BEACONS, ..Limits::new(1 << 20) })
}

const ALIKE: Traffic<'static> = &|_| 1;

fn next_of(checks: &mut Checks) -> Option<BundleId> {
    match checks.next(ALIKE)? {
        Check::Object(block) => Some(block.bundle()),
        Check::Beacon(..) => None,
    }
}

#[test]
fn beacons_keep_no_object_waiting() {
    for origin in [Origin::Signed, Origin::Named] {
        let mut checks = checks();
        for n in 0..BEACONS as u64 {
            checks.push_beacon(SessionId(n), n % 2 == 0, b"beacon");
        }
        assert!(checks.push(block(1, 7, origin), ALIKE).is_none());
        assert!((0..3).any(|_| next_of(&mut checks) == Some(id(1, 7))), "{origin:?}");
    }
}

#[test]
fn what_somebody_signed_for_is_neither_turned_away_nor_last() {
    for honest in [1, 300, 900] {
        let mut checks = checks();
        assert!(checks.push(block(honest, 1, Origin::Signed), ALIKE).is_none());
        for n in 0..1_000 {
            let key = if n % 2 == 0 { honest } else { n as u16 };
            let origin = if n % 3 == 0 { Origin::Unknown } else { Origin::Named };
            let away = checks.push(block(key, 100 + n, origin), ALIKE).map(|block| block.bundle());
            assert_ne!(away, Some(id(honest, 1)), "of key {honest}, at {n}");
        }
        assert!((0..4).any(|_| next_of(&mut checks) == Some(id(honest, 1))), "of key {honest}");
    }
}

#[test]
fn keys_take_turns() {
    for origin in [Origin::Signed, Origin::Named] {
        let mut checks = checks();
        (0..200).for_each(|n| assert!(checks.push(block(1, n, origin), ALIKE).is_none()));
        assert!(checks.push(block(2, 1, origin), ALIKE).is_none());
        assert!((0..3).any(|_| next_of(&mut checks) == Some(id(2, 1))), "{origin:?}");
        // Where there are too many, one of those goes of whose key there are most.
        (0..300).for_each(|n| drop(checks.push(block(1, 1_000 + n, origin), ALIKE)));
        assert_ne!(checks.push(block(2, 2, origin), ALIKE).map(|block| block.bundle()), Some(id(2, 2)));
        assert!((0..3).any(|_| next_of(&mut checks) == Some(id(2, 2))), "{origin:?}");
    }
}

#[test]
fn what_is_vouched_for_waits_with_the_signed() {
    let mut checks = checks();
    (0..5).for_each(|n| drop(checks.push(block(1, n % 2, Origin::Named), ALIKE)));
    assert!(checks.vouch(id(1, 1), ALIKE).is_empty());
    assert_eq!((checks.signed.len, checks.named.len), (2, 3));
    let Some(Check::Object(block)) = checks.next(ALIKE) else { panic!("one waits") };
    assert_eq!((block.bundle(), block.origin()), (id(1, 1), Origin::Signed));
}

#[test]
fn ids_that_name_no_key_take_one_turn_of_sixteen() {
    let mut checks = checks();
    let mut honest = 0;
    for n in 0..1_600 {
        (0..4).for_each(|more| drop(checks.push(block(n as u16, 10 * n + more, Origin::Unknown), ALIKE)));
        let _ = checks.push(block(2, n, Origin::Named), ALIKE);
        honest += usize::from(next_of(&mut checks).is_some_and(|id| id.tag() == self::id(2, 0).tag()));
    }
    assert_eq!(honest, 1_500);
}

#[test]
fn of_one_key_whose_bundle_more_came_of_is_neither_turned_away_nor_late() {
    let honest = id(1, 5);
    let traffic: Traffic<'_> = &|id: BundleId| if id == honest { 3 } else { 1 };
    let mut checks = checks();
    assert!(checks.push(block(1, 5, Origin::Named), traffic).is_none());
    for n in 0..5_000 {
        let away = checks.push(block(1, 100 + n, Origin::Named), traffic);
        assert_ne!(away.map(|block| block.bundle()), Some(honest), "at {n}");
    }
    assert!(matches!(checks.next(traffic), Some(Check::Object(block)) if block.bundle() == honest));
}

#[test]
fn what_is_vouched_for_is_bounded_too() {
    let mut checks = checks();
    let mut away = 0;
    for n in 0..200 {
        (0..7).for_each(|_| drop(checks.push(block(1, n, Origin::Named), ALIKE)));
        away += checks.vouch(id(1, n), ALIKE).len();
        assert!(checks.signed.len <= WAITING);
    }
    assert_eq!(away, 200 * 7 - WAITING);
}

#[test]
fn of_one_bundle_the_announce_is_checked_first() {
    let mut checks = checks();
    assert!(checks.push(block(1, 1, Origin::Named), ALIKE).is_none());
    let oti = Oti::new(64, 64, 1).unwrap();
    let hashes = Symbol { bundle: id(1, 1), kind: ObjectKind::Hashes, sbn: 0, esi: 0, oti };
    let mut hashes = ReceivedBlock::on_heap(&hashes, 1);
    hashes.set_origin(Origin::Named);
    assert!(checks.push(hashes, ALIKE).is_none());
    assert!(matches!(checks.next(ALIKE), Some(Check::Object(block)) if block.kind() == ObjectKind::Announce));
}

#[test]
fn of_too_many_that_are_alike_new_ones_are_looked_at() {
    let mut checks = checks();
    (0..10_000).for_each(|n| drop(checks.push(block(1, n, Origin::Named), ALIKE)));
    assert_eq!(next_of(&mut checks), Some(id(1, 9_999)));
    assert_eq!(checks.named.len, WAITING - 1);
}

#[test]
fn of_too_many_beacons_some_are_looked_at() {
    let mut checks = checks();
    let pushed = (0..10_000_u64).filter(|&n| checks.push_beacon(SessionId(n), false, &n.to_be_bytes())).count();
    assert_eq!(pushed, BEACONS);
    let mut sessions: Vec<u64> = Vec::new();
    while let Some(Check::Beacon(session, _)) = checks.next(ALIKE) {
        sessions.push(session.0);
    }
    assert_eq!(sessions.len(), BEACONS);
    assert!(sessions.iter().any(|&n| n > 5_000), "{sessions:?}");
    assert!(checks.is_empty());
}

#[test]
fn a_beacon_of_a_session_that_counts_waits_for_few_others() {
    let mut checks = checks();
    let flood = |checks: &mut Checks| {
        for n in 0..10_000 {
            checks.push_beacon(SessionId(n), false, b"junk");
        }
    };
    flood(&mut checks);
    assert!(checks.push_beacon(SessionId(7), true, b"its"));
    flood(&mut checks);
    // Nor for those of another key's session, however many these are.
    (0..10_000).for_each(|n| assert!(!checks.push_beacon(SessionId(8), true, b"junk") || n < OF_A_SESSION));
    let next = |checks: &mut Checks| match checks.next(ALIKE) {
        Some(Check::Beacon(_, signed)) => signed == b"its",
        _ => false,
    };
    assert!((0..4).any(|_| next(&mut checks)));
}
