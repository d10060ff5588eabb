//! The ticket that a person carries back across the gap: what is missing of a bundle, as short text. `SPEC.md` section
//! "Ticket" specifies every bit of it.
//!
//! A ticket has one text and a text one ticket, so that nothing else can be hidden in it. A wrong symbol or two swapped
//! groups in a line are always found, and the line is named.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod bits;
mod check;
mod content;
mod explain;
mod fit;
mod lines;
mod loss;

use std::fmt;
use std::ops::Range;

use crate::id::{BundleId, ChannelName};
use crate::limits::MAX_BLOCK_SYMBOLS;
use crate::partition::Oti;
pub use fit::Cost;
pub use lines::{LineError, MAX_LINES, Problem};
pub use loss::Loss;

/// What a receiver lacks, and what a sender is asked to send again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    subject: Subject,
    loss: Loss,
}

/// What a ticket is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One bundle, of which something is lacking.
    Bundle {
        /// The bundle.
        bundle: BundleId,
        /// Whether its announce is lacking; the whole object is asked for.
        announce: bool,
        /// Whether its hashes are lacking; the whole object is asked for.
        hashes: bool,
        /// What is lacking of its data.
        data: Data,
    },
    /// Bundles of which all that is known is that they should be there: every object of each is lacking.
    Sequences {
        /// Their channel.
        channel: ChannelName,
        /// The first one's number, from 1.
        first: u64,
        /// How many there are, at least 1.
        count: u64,
    },
}

/// What is lacking of a bundle's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing.
    Nothing,
    /// All of it, or so much that all is asked for.
    All,
    /// Some source blocks: at least one range, ascending, apart from or differing from the one before.
    Ranges(Vec<Lack>),
}

/// Neighbouring source blocks that each lack the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack {
    /// SBN of the first.
    pub first: u32,
    /// How many blocks, at least 1; `first + blocks` is at most 2³² − 1.
    pub blocks: u32,
    /// What each of them lacks.
    pub need: Need,
}

/// How many symbols a source block lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// So many more of any ESI, 1 to [`MAX_BLOCK_SYMBOLS`].
    Symbols(u16),
    /// All of it: the block's own number of source symbols.
    Whole,
}

/// Why there is no such ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Nothing is lacking.
    #[error("nothing is lacking")]
    Nothing,
    /// A range of no blocks, one that ends beyond 2³² − 1, or one that another overlaps.
    #[error("a range of blocks is empty, too long, or overlaps another")]
    Range,
    /// A block lacks no symbols, or more than [`MAX_BLOCK_SYMBOLS`].
    #[error("a block lacks no symbols or more than {MAX_BLOCK_SYMBOLS}")]
    Need,
    /// Sequence 0, no bundles, or sequences beyond 2⁶⁴ − 1.
    #[error("sequences begin at 1 and there is at least one")]
    Sequences,
}

/// Why a text is not a ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// There is no text.
    #[error("there is no ticket here")]
    Empty,
    /// More than [`MAX_LINES`] lines.
    #[error("more than {MAX_LINES} lines")]
    TooManyLines,
    /// Lines that were not copied as they are, each with what is wrong, in their order.
    #[error("{}", lines::list(.0))]
    Lines(Vec<LineError>),
    /// Each line is right, but they are not one ticket: lines are missing, or of another one.
    #[error("every line is right by itself, but lines are missing or come from another ticket")]
    Whole,
    /// The ticket is of a format that this version does not know; its number.
    #[error("a ticket of format {0}; this version reads format {VERSION} only")]
    Version(u8),
    /// Not what any receiver writes: bits left over, a value out of bounds, or not the one way to say it.
    #[error("not what a receiver would write")]
    NotCanonical,
}

/// A ticket names blocks that its bundle does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ticket asks for block {asked}, the bundle has {blocks}")]
pub struct OtherBundle {
    /// Highest SBN that is asked for.
    pub asked: u32,
    /// How many blocks there are.
    pub blocks: u32,
}

/// The format that this version writes.
const VERSION: u8 = 1;

impl ParseError {
    /// The error's name, for the test vectors: stable, lower case, words joined by `-`.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooManyLines => "too-many-lines",
            Self::Lines(_) => "lines",
            Self::Whole => "whole",
            Self::Version(_) => "version",
            Self::NotCanonical => "not-canonical",
        }
    }
}

impl Ticket {
    /// Makes a ticket; ranges are put in order and joined where they say the same. `loss` is what the link lost lately, for the sender's margin. Errors: every [`BuildError`].
    pub fn new(subject: Subject, loss: Loss) -> Result<Self, BuildError> {
        let subject = match subject {
            Subject::Bundle { bundle, announce, hashes, data } => {
                let data = data.normal()?;
                if !announce && !hashes && data == Data::Nothing {
                    return Err(BuildError::Nothing);
                }
                Subject::Bundle { bundle, announce, hashes, data }
            }
            Subject::Sequences { first, count, .. }
                if first == 0 || count == 0 || first.checked_add(count.saturating_sub(1)).is_none() =>
            {
                return Err(BuildError::Sequences);
            }
            sequences @ Subject::Sequences { .. } => sequences,
        };
        Ok(Self { subject, loss })
    }

    /// What it is about.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// What the link lost when the ticket was made.
    #[must_use]
    pub fn loss(&self) -> Loss {
        self.loss
    }

    /// Reads a ticket as a person copied it: case, blanks and dashes do not matter, `O` is read as 0, `I` and `L` as 1, lines
    /// that begin with `#` are passed over, and line breaks may be elsewhere if all else is right.
    /// Errors: every [`ParseError`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        content::decode(&lines::read(text)?)
    }

    /// Reads several tickets, parted by empty lines, which no ticket may then have inside. Errors: those of the first that cannot be read, with its index from 0.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, (usize, ParseError)> {
        let mut texts = vec![String::new()];
        for line in text.lines() {
            match texts.last_mut() {
                Some(last) if !line.trim().is_empty() => *last += &format!("{line}\n"),
                Some(last) if last.is_empty() => {}
                _ => texts.push(String::new()),
            }
        }
        let texts = texts.iter().filter(|text| text.lines().any(|line| !line.trim_start().starts_with('#')));
        texts.enumerate().map(|(i, text)| Self::parse(text).map_err(|e| (i, e))).collect()
    }

    /// The text: lines of up to eight groups of four symbols. `None` where it would have more than [`MAX_LINES`]; what
    /// [`Ticket::fit`] gave never has.
    #[must_use]
    pub fn to_text(&self) -> Option<String> {
        lines::write(&content::encode(self))
    }

    /// How many lines the text has, or would have.
    #[must_use]
    pub fn lines(&self) -> usize {
        lines::count(content::encode(self).len())
    }

    /// Asks for more where that makes the text shorter, until it has at most `max_lines` lines (at least 2, at most
    /// [`MAX_LINES`]), and says what that costs. Goes by steps: what joins neighbours at the least cost first, at the end all
    /// of the data. `oti` is that of the data object; it does not matter when there are no ranges.
    #[must_use]
    pub fn fit(&self, oti: &Oti, max_lines: usize) -> (Self, Cost) {
        fit::fit(self, oti, max_lines)
    }

    /// Says in words what the ticket asks for, and what every bit of it means.
    #[must_use]
    pub fn explain(&self) -> String {
        explain::explain(self)
    }

    /// The source blocks that are asked for, ascending, and how many symbols of each range's blocks. Empty for a ticket about
    /// sequences. Errors: [`OtherBundle`] when the object has no such blocks.
    pub fn blocks(&self, oti: &Oti) -> Result<Vec<(Range<u32>, Need)>, OtherBundle> {
        let Subject::Bundle { data, .. } = &self.subject else { return Ok(Vec::new()) };
        match data {
            Data::Nothing => Ok(Vec::new()),
            Data::All => Ok(vec![(0..oti.blocks(), Need::Whole)]),
            Data::Ranges(ranges) => {
                let end = ranges.last().map_or(0, Lack::end);
                if end > oti.blocks() {
                    return Err(OtherBundle { asked: end.saturating_sub(1), blocks: oti.blocks() });
                }
                Ok(ranges.iter().map(|lack| (lack.first..lack.end(), lack.need)).collect())
            }
        }
    }
}

impl Data {
    /// The data of a bundle that lacks these blocks, each by its SBN with what it lacks, in any order.
    #[must_use]
    pub fn of_blocks(blocks: impl IntoIterator<Item = (u32, Need)>) -> Self {
        let ranges: Vec<_> = blocks.into_iter().map(|(first, need)| Lack { first, blocks: 1, need }).collect();
        if ranges.is_empty() { Self::Nothing } else { Self::Ranges(ranges) }
    }

    /// The one way to say it: ascending, without overlap, neighbours that need the same in one.
    fn normal(self) -> Result<Self, BuildError> {
        let Self::Ranges(mut ranges) = self else { return Ok(self) };
        for lack in &ranges {
            if lack.blocks == 0 || lack.first.checked_add(lack.blocks).is_none() {
                return Err(BuildError::Range);
            }
            if matches!(lack.need, Need::Symbols(n) if n == 0 || n > MAX_BLOCK_SYMBOLS) {
                return Err(BuildError::Need);
            }
        }
        ranges.sort_by_key(|lack| lack.first);
        let mut normal: Vec<Lack> = Vec::with_capacity(ranges.len());
        for lack in ranges {
            match normal.last_mut() {
                Some(last) if lack.first < last.end() => return Err(BuildError::Range),
                Some(last) if lack.first == last.end() && lack.need == last.need => {
                    last.blocks = last.blocks.saturating_add(lack.blocks);
                }
                _ => normal.push(lack),
            }
        }
        Ok(if normal.is_empty() { Self::Nothing } else { Self::Ranges(normal) })
    }
}

impl Lack {
    /// One above the SBN of the last.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.first.saturating_add(self.blocks)
    }
}

impl Need {
    /// How many symbols that is for a block of `source_symbols` source symbols.
    #[must_use]
    pub fn symbols(self, source_symbols: u16) -> u16 {
        match self {
            Self::Symbols(n) => n,
            Self::Whole => source_symbols,
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symbols(1) => f.write_str("1 symbol"),
            Self::Symbols(n) => write!(f, "{n} symbols"),
            Self::Whole => f.write_str("all symbols"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests;
