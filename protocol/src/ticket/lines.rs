//! Bits as lines of Crockford base32, and lines as a person typed them back to bits.

use std::fmt;

use super::ParseError;
use super::check::{self, GROUP, GROUPS, Guess, LINE};

/// Most lines of a ticket.
pub const MAX_LINES: usize = 1_023;

/// Crockford's alphabet (crockford.com/base32.html): no `I`, `L`, `O`, `U`.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const BITS: usize = 5;
const GROUP_BITS: usize = BITS * GROUP;
/// Symbols of a full line that are not its check.
const LINE_DATA: usize = LINE - GROUP;

/// A line that was not copied as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// Which, from 1, not counting empty ones and those that begin with `#`.
    pub line: usize,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a line. What it might be instead is a guess: a person should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A character that no ticket has.
    Character(char),
    /// This many symbols, which is wrong. A line has 32, and the last line at least two groups of four.
    Length(usize),
    /// One symbol is wrong, it seems, and the line right with another.
    Symbol {
        /// Group in the line, from 1.
        group: usize,
        /// The group as it is.
        read: [char; GROUP],
        /// The group as it would be right.
        right: [char; GROUP],
    },
    /// This group, from 1, and the next are swapped, it seems.
    Swapped(usize),
    /// It seems to be the line of that number.
    OtherLine(usize),
    /// Several symbols are wrong.
    Unclear,
}

/// Lines for bits: the bits, then the check of the whole.
pub(super) fn write(bits: &[bool]) -> Option<String> {
    if count(bits.len()) > MAX_LINES {
        return None;
    }
    let mut symbols = to_symbols(bits);
    symbols.extend(check_of_whole(&symbols));
    let mut text = String::new();
    for (i, data) in symbols.chunks(LINE_DATA).enumerate() {
        let check = check::check_symbols(data, i.saturating_add(1));
        let groups: Vec<String> =
            [data, &check].concat().chunks(GROUP).map(|g| g.iter().map(shown).collect()).collect();
        text.push_str(&groups.join(" "));
        text.push('\n');
    }
    Some(text)
}

/// How many lines so many bits take.
pub(super) fn count(bits: usize) -> usize {
    bits.div_ceil(GROUP_BITS).saturating_add(1).div_ceil(GROUPS.saturating_sub(1))
}

/// The bits of a text, every check made, zeros up to the end of the last group after them.
pub(super) fn read(text: &str) -> Result<Vec<bool>, ParseError> {
    let texts = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let lines: Vec<_> = texts.map(line_symbols).filter(|line| line != &Ok(Vec::new())).collect();
    let lines = match rejoined(&lines) {
        Some(lines) if lines.iter().zip(1..).all(|(line, n)| problem_of(line, n, true).is_none()) => lines,
        _ => as_typed(lines)?,
    };
    match lines.len() {
        0 => return Err(ParseError::Empty),
        1..=MAX_LINES => {}
        _ => return Err(ParseError::TooManyLines),
    }
    let data = lines.iter().filter_map(|line| line.get(..line.len().saturating_sub(GROUP)));
    let symbols: Vec<u8> = data.flatten().copied().collect();
    match symbols.split_last_chunk() {
        Some((content, check)) if *check == check_of_whole(content) => Ok(to_bits(content)),
        _ => Err(ParseError::Whole),
    }
}

/// All the symbols cut into full lines anew, for a text whose line breaks are not where they were.
fn rejoined(lines: &[Result<Vec<u8>, char>]) -> Option<Vec<Vec<u8>>> {
    let all: Vec<u8> = lines.iter().map(|line| line.as_deref().ok()).collect::<Option<Vec<_>>>()?.concat();
    Some(all.chunks(LINE).map(<[u8]>::to_vec).collect())
}

/// The lines as they are; every one with a problem is named.
fn as_typed(lines: Vec<Result<Vec<u8>, char>>) -> Result<Vec<Vec<u8>>, ParseError> {
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    let last = lines.len();
    for (line, number) in lines.into_iter().zip(1..) {
        match line {
            Err(found) => wrong.push(LineError { line: number, problem: Problem::Character(found) }),
            Ok(symbols) => match problem_of(&symbols, number, number == last) {
                Some(problem) => wrong.push(LineError { line: number, problem }),
                None => right.push(symbols),
            },
        }
    }
    if wrong.is_empty() { Ok(right) } else { Err(ParseError::Lines(wrong)) }
}

fn problem_of(line: &[u8], number: usize, may_be_short: bool) -> Option<Problem> {
    let short = may_be_short && line.len() < LINE && line.len().is_multiple_of(GROUP) && line.len() > GROUP;
    if line.len() != LINE && !short {
        return Some(Problem::Length(line.len()));
    }
    match check::check(line, number).err()? {
        Guess::Symbol(place, right) => {
            let group = place / GROUP;
            let at = |i: usize| group.saturating_mul(GROUP).saturating_add(i);
            let read = |i: usize| shown(line.get(at(i)).unwrap_or(&0));
            let right = |i: usize| if at(i) == place { shown(&right) } else { read(i) };
            Some(Problem::Symbol {
                group: group.saturating_add(1),
                read: std::array::from_fn(read),
                right: std::array::from_fn(right),
            })
        }
        Guess::Swapped(group) => Some(Problem::Swapped(group.saturating_add(1))),
        Guess::Line(other) => Some(Problem::OtherLine(other)),
        Guess::Unclear => Some(Problem::Unclear),
    }
}

/// The symbols of a line as a person types them; or the first character that is none.
fn line_symbols(line: &str) -> Result<Vec<u8>, char> {
    let separates = |c: &char| c.is_whitespace() || matches!(c, '-' | '\u{2010}'..='\u{2015}' | '\u{2212}');
    line.chars().filter(|c| !separates(c)).map(|c| symbol(c).ok_or(c)).collect()
}

fn symbol(c: char) -> Option<u8> {
    let c = match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        c => c,
    };
    let index = ALPHABET.iter().position(|&a| char::from(a) == c)?;
    u8::try_from(index).ok()
}

fn shown(symbol: &u8) -> char {
    ALPHABET.get(usize::from(*symbol)).map_or('?', |&a| char::from(a))
}

/// The first 20 bits of the BLAKE3 of the content's symbols as text.
fn check_of_whole(content: &[u8]) -> [u8; GROUP] {
    let text: String = content.iter().map(shown).collect();
    let hash = blake3::hash(text.as_bytes());
    let bits: Vec<bool> = hash.as_bytes().iter().take(3).flat_map(|&byte| to_bits_of(byte, 8)).collect();
    let symbols = to_symbols(bits.get(..GROUP_BITS).unwrap_or_default());
    symbols.try_into().unwrap_or_default()
}

/// Whole groups: zeros after the last bit.
fn to_symbols(bits: &[bool]) -> Vec<u8> {
    let mut bits = bits.to_vec();
    bits.resize(bits.len().next_multiple_of(GROUP_BITS), false);
    bits.chunks(BITS).map(|five| five.iter().fold(0, |symbol, &bit| symbol << 1 | u8::from(bit))).collect()
}

fn to_bits(symbols: &[u8]) -> Vec<bool> {
    symbols.iter().flat_map(|&symbol| to_bits_of(symbol, 5)).collect()
}

fn to_bits_of(value: u8, width: u32) -> impl Iterator<Item = bool> {
    (0..width).rev().map(move |bit| value.checked_shr(bit).is_some_and(|v| v & 1 == 1))
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        let text = String::from_iter::<[char; GROUP]>;
        match self.problem {
            Problem::Character(c) => write!(f, " has the character {c:?}, which no ticket has"),
            Problem::Length(n) => {
                write!(f, " has {n} symbols; a line has 8 groups of 4, the last may have fewer groups")
            }
            Problem::Symbol { group, read, right } => {
                write!(f, " is wrong: group {group} is {}, perhaps it should be {}", text(read), text(right))
            }
            Problem::Swapped(group) => {
                write!(f, " is wrong: perhaps groups {group} and {} are swapped", group.saturating_add(1))
            }
            Problem::OtherLine(n) => write!(f, " is wrong: perhaps it is line {n}"),
            Problem::Unclear => f.write_str(" is wrong in more than one place"),
        }
    }
}

pub(super) fn list(lines: &[LineError]) -> String {
    lines.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
