//! The check of a line: four symbols that make the whole line a word of a code over GF(32).
//!
//! A generalised Reed-Solomon code of length 32 (MacWilliams and Sloane, "The Theory of Error-Correcting Codes", chapter 10
//! section 8): four check symbols give it distance 5, so that up to four wrong symbols, a whole group, never go
//! unnoticed. Its column multipliers are the groups' numbers, which makes every swap of two different groups change the
//! syndrome; and the syndrome that a line should have is its number, so that a line in another's place is known too.

use std::array;

/// Symbols in a group.
pub(super) const GROUP: usize = 4;
/// Groups in a full line, the last of them the check.
pub(super) const GROUPS: usize = 8;
/// Symbols in a full line.
pub(super) const LINE: usize = GROUP * GROUPS;
/// Where the check group is, also in a line with fewer groups before it.
const CHECK_AT: usize = LINE - GROUP;

/// Gives the check symbols from the syndrome that they have to make: the inverse of the columns of the last group.
const SOLVE: [[u8; GROUP]; GROUP] = [[1, 28, 21, 26], [18, 6, 15, 26], [12, 27, 4, 26], [9, 1, 30, 26]];

pub(super) type Syndrome = [u8; GROUP];

/// What a line that does not check most probably is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guess {
    /// One symbol is wrong: its place among all, and what it should be.
    Symbol(usize, u8),
    /// This group, from 0, and the next were swapped.
    Swapped(usize),
    /// It is the line of that number.
    Line(usize),
    /// No telling.
    Unclear,
}

/// The four symbols that go after `data` (full groups, at most 28 symbols) in line `number`, from 1 to 1,023.
pub(super) fn check_symbols(data: &[u8], number: usize) -> [u8; GROUP] {
    let mut wanted = target(number);
    for (place, &symbol) in data.iter().enumerate() {
        wanted = add(wanted, scaled(symbol, column(place)));
    }
    SOLVE.map(|row| row.into_iter().zip(wanted).fold(0, |sum, (factor, s)| sum ^ times(factor, s)))
}

/// Whether `line` (full groups, the last of them the check) is a line of that number; if not, what it might be.
pub(super) fn check(line: &[u8], number: usize) -> Result<(), Guess> {
    let syndrome = syndrome(line);
    let error = add(syndrome, target(number));
    if error == [0; GROUP] {
        return Ok(());
    }
    if let Some(place) = (0..line.len()).find(|&place| is_multiple(error, column(placed(line, place)))) {
        let [head, ..] = column(placed(line, place));
        let [wrong, ..] = error;
        let was = line.get(place).copied().unwrap_or(0);
        return Err(Guess::Symbol(place, was ^ times(wrong, inverse(head))));
    }
    let groups = line.len() / GROUP;
    let swapped = |&group: &usize| {
        let (here, there) = (group.saturating_mul(GROUP), group.saturating_add(1).saturating_mul(GROUP));
        let mut line = line.to_vec();
        for i in 0..GROUP {
            line.swap(here.saturating_add(i), there.saturating_add(i));
        }
        add(self::syndrome(&line), target(number)) == [0; GROUP]
    };
    if let Some(group) = (0..groups.saturating_sub(1)).find(swapped) {
        return Err(Guess::Swapped(group));
    }
    match syndrome {
        [0, 0, high, low] if high | low != 0 => Err(Guess::Line(usize::from(high) << 5 | usize::from(low))),
        _ => Err(Guess::Unclear),
    }
}

/// The syndrome of a right line. Its first symbol is 0, which that of one wrong symbol never is.
fn target(number: usize) -> Syndrome {
    let low = |n: usize| u8::try_from(n & 31).unwrap_or(0);
    [0, 0, low(number >> 5), low(number)]
}

fn syndrome(line: &[u8]) -> Syndrome {
    let terms = line.iter().enumerate().map(|(place, &symbol)| scaled(symbol, column(placed(line, place))));
    terms.fold([0; GROUP], add)
}

/// The place in a full line of what is at `place` in this one.
fn placed(line: &[u8], place: usize) -> usize {
    let data = line.len().saturating_sub(GROUP);
    place.checked_sub(data).map_or(place, |in_check| CHECK_AT.saturating_add(in_check))
}

/// Column `place` of the parity check matrix: v, v·x, v·x², v·x³, x being the place and v the group's number from 1.
fn column(place: usize) -> Syndrome {
    let small = |n: usize| u8::try_from(n & 31).unwrap_or(0);
    let (x, v) = (small(place), small((place / GROUP).saturating_add(1)));
    let vx = times(v, x);
    let vxx = times(vx, x);
    [v, vx, vxx, times(vxx, x)]
}

fn add(a: Syndrome, b: Syndrome) -> Syndrome {
    array::from_fn(|i| a.get(i).copied().unwrap_or(0) ^ b.get(i).copied().unwrap_or(0))
}

fn scaled(factor: u8, column: Syndrome) -> Syndrome {
    column.map(|c| times(factor, c))
}

fn is_multiple(error: Syndrome, column: Syndrome) -> bool {
    let ([wrong, ..], [head, ..]) = (error, column);
    wrong != 0 && scaled(times(wrong, inverse(head)), column) == error
}

/// Product in GF(32), modulo x⁵ + x² + 1; both factors below 32.
fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        b >>= 1;
        a <<= 1;
        if a & 32 != 0 {
            a ^= 0b10_0101;
        }
    }
    product
}

/// What times `a` is 1: a³⁰; 0 for 0.
fn inverse(a: u8) -> u8 {
    (0..30).fold(1, |power, _| times(power, a))
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    /// Whether four columns are linearly independent, by elimination.
    fn independent(mut columns: [Syndrome; GROUP]) -> bool {
        for i in 0..GROUP {
            let Some(pivot) = (i..GROUP).find(|&r| columns[r][i] != 0) else { return false };
            columns.swap(i, pivot);
            for r in i + 1..GROUP {
                let factor = times(columns[r][i], inverse(columns[i][i]));
                columns[r] = add(columns[r], scaled(factor, columns[i]));
            }
        }
        true
    }

    fn symbols(mut seed: u64, len: usize) -> Vec<u8> {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u8::try_from(seed >> 59).unwrap()
        };
        (0..len).map(|_| next()).collect()
    }

    fn line(seed: u64, groups: usize, number: usize) -> Vec<u8> {
        let mut line = symbols(seed, (groups - 1) * GROUP);
        line.extend(check_symbols(&line, number));
        line
    }

    #[test]
    fn the_field_is_one() {
        for a in 0..32 {
            assert_eq!(times(a, inverse(a)), u8::from(a != 0));
            for b in 0..32 {
                assert!(times(a, b) < 32);
                assert_eq!(times(a, b), times(b, a));
                assert_eq!(times(a, b) == 0, a == 0 || b == 0);
            }
        }
    }

    /// Any four columns are independent: up to four wrong symbols anywhere in a line never go unnoticed.
    #[test]
    fn the_distance_is_five() {
        for a in 0..LINE {
            for b in 0..a {
                for c in 0..b {
                    for d in 0..c {
                        assert!(independent([a, b, c, d].map(column)), "{a} {b} {c} {d}");
                    }
                }
            }
        }
    }

    /// A swap adds δ to one group and the same δ to the other: no δ but 0 leaves the syndrome as it was.
    #[test]
    fn every_swap_of_two_groups_is_seen() {
        for a in 0..GROUPS {
            for b in 0..a {
                let sums = array::from_fn(|i| add(column(a * GROUP + i), column(b * GROUP + i)));
                assert!(independent(sums), "{a} {b}");
            }
        }
    }

    #[test]
    fn a_right_line_checks_under_its_own_number_only() {
        for groups in 2..=GROUPS {
            for number in [1, 2, 31, 32, 1_023] {
                let line = line(number as u64, groups, number);
                assert_eq!(check(&line, number), Ok(()));
                for other in (1..=1_023).filter(|&other| other != number) {
                    assert!(check(&line, other).is_err());
                }
            }
        }
    }

    #[test]
    fn one_wrong_symbol_is_found_and_named() {
        for groups in 2..=GROUPS {
            for number in [1, 40] {
                let right = line(groups as u64, groups, number);
                for place in 0..right.len() {
                    for wrong in (0..32).filter(|&wrong| wrong != right[place]) {
                        let mut line = right.clone();
                        line[place] = wrong;
                        assert_eq!(check(&line, number), Err(Guess::Symbol(place, right[place])));
                    }
                }
            }
        }
    }

    #[test]
    fn swapped_groups_are_found_and_mostly_named() {
        let (mut swaps, mut named) = (0, 0);
        for seed in 0..2_000 {
            let groups = 2 + usize::try_from(seed % 7).unwrap();
            let right = line(seed, groups, 3);
            for group in 0..groups - 1 {
                let mut line = right.clone();
                (0..GROUP).for_each(|i| line.swap(group * GROUP + i, (group + 1) * GROUP + i));
                if line == right {
                    continue;
                }
                swaps += 1;
                named += u32::from(check(&line, 3).unwrap_err() == Guess::Swapped(group));
            }
        }
        assert!(named * 100 > swaps * 99, "{named} of {swaps}");
    }

    #[test]
    fn a_line_in_the_place_of_another_is_named() {
        let mut named = 0;
        for seed in 0..1_000 {
            match check(&line(seed, GROUPS, 3), 2) {
                Err(Guess::Line(3)) => named += 1,
                Err(_) => {}
                Ok(()) => panic!(),
            }
        }
        assert!(named > 990, "{named}");
    }
}
