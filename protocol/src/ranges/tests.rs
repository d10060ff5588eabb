use std::collections::BTreeSet;

use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tens;

impl Measure<u32> for Tens {
    fn of(range: &Range<u32>) -> u64 {
        u64::from(range.end.div_ceil(10) - range.start / 10)
    }
}

#[test]
fn agrees_with_a_plain_set() {
    let mut state = 11_u64;
    let mut next = |below: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u32 % below
    };
    let (mut set, mut plain) = (RangeSet::<u32, Tens>::new(), BTreeSet::new());
    for _ in 0..8_000 {
        let start = next(60);
        let range = start..start + next(9);
        match next(4) {
            0 => {
                set.insert(range.clone());
                plain.extend(range);
            }
            1 => {
                set.remove(range.clone());
                plain.retain(|n| !range.contains(n));
            }
            2 => assert_eq!(set.add(start), plain.insert(start)),
            _ => assert_eq!(set.take(start), plain.remove(&start)),
        }
        assert_eq!(set.len(), plain.len() as u64);
        assert_eq!(set.is_empty(), plain.is_empty());
        assert_eq!(set.measured(), set.iter().map(|r| Tens::of(&r)).sum::<u64>());
        assert!(set.iter().flatten().eq(plain.iter().copied()));
        assert_eq!(set.iter().collect::<RangeSet<u32, Tens>>(), set);
        let probe = next(60)..next(70);
        let gaps: Vec<u32> = set.gaps(probe.clone()).into_iter().flatten().collect();
        assert!(gaps.iter().copied().eq(probe.clone().filter(|n| !plain.contains(n))), "{probe:?}");
        let inside: Vec<u32> = set.within(probe.clone()).into_iter().flatten().collect();
        assert!(inside.iter().copied().eq(probe.clone().filter(|n| plain.contains(n))), "{probe:?}");
        assert_eq!(set.covers(probe.clone()), probe.clone().all(|n| plain.contains(&n)), "{probe:?}");
        let mut touching = set.iter().zip(set.iter().skip(1));
        assert!(touching.all(|(a, b)| a.end < b.start), "ranges neither touch nor overlap");
    }
}

#[test]
fn the_ends_of_the_numbers_do_no_harm() {
    let mut set = RangeSet::<u64>::new();
    set.insert(5..u64::MAX);
    assert!(!set.add(u64::MAX) && !set.contains(u64::MAX) && !set.take(u64::MAX) && set.contains(u64::MAX - 1));
    set.insert(0..u64::MAX);
    assert_eq!((set.count(), set.len(), set.end_of(7)), (1, u64::MAX, Some(u64::MAX)));
    assert_eq!(set.gaps(0..u64::MAX), Vec::<Range<u64>>::new());
    set.remove(1..u64::MAX - 1);
    assert_eq!(set.iter().collect::<Vec<_>>(), [0..1, u64::MAX - 1..u64::MAX]);
}
