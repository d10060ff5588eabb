//! Numbers with units, as people write them in config files and on command lines: `"900 Mbit/s"`, `"64 MiB"`, `"10 ms"`,
//! `"5 %"`. A number may have a fraction as long as the result is whole; nothing is rounded. Every error says what to
//! write instead.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A rate in bits a second, above 0: `"900 Mbit/s"`. Units: bit/s, kbit/s, Mbit/s, Gbit/s (powers of 1,000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

/// A size in bytes: `"64 MiB"`. Units: B, KiB, MiB, GiB, TiB (powers of 1,024) and kB, MB, GB, TB (powers of 1,000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

/// A length of time in nanoseconds, at most 584 years: `"10 ms"`. Units: us, ms, s, min, h, d (24 h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

/// A [`Span`] or `"forever"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpanOrForever {
    /// This long.
    Span(Span),
    /// Without end.
    Forever,
}

/// A share in millionths, 0 to 1,000 %: `"5 %"`, `"0.25 %"`, with up to four digits after the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u32);

/// Why a text is not a number with a unit. Printed, each is one line that says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Nothing is there.
    #[error("nothing is there; write a number and a unit, for example \"{example}\"")]
    Empty {
        /// A text that would do.
        example: String,
    },
    /// A number and no unit.
    #[error("\"{text}\" has no unit; write a unit, for example \"{example}\"")]
    NoUnit {
        /// What was written.
        text: String,
        /// A text that would do.
        example: String,
    },
    /// The unit is none that this takes.
    #[error("\"{unit}\" is not a unit that this takes; write {units}, for example \"{example}\"")]
    UnknownUnit {
        /// What was written after the number.
        unit: String,
        /// The units that this takes.
        units: String,
        /// A text that would do.
        example: String,
    },
    /// What is before the unit is no plain decimal number.
    #[error("\"{text}\" is not a number with a unit; write digits and a unit, for example \"{example}\"")]
    NotANumber {
        /// What was written.
        text: String,
        /// A text that would do.
        example: String,
    },
    /// The fraction is finer than can be kept.
    #[error("\"{text}\" has too fine a fraction; write {finest}")]
    NotWhole {
        /// What was written.
        text: String,
        /// How fine it may be.
        finest: &'static str,
    },
    /// More than can be.
    #[error("\"{text}\" is too large; write at most \"{most}\"")]
    TooLarge {
        /// What was written.
        text: String,
        /// The largest that can be.
        most: &'static str,
    },
    /// A rate of 0.
    #[error("\"{text}\" would send nothing; write a rate above 0, for example \"{example}\"")]
    Zero {
        /// What was written.
        text: String,
        /// A text that would do.
        example: String,
    },
}

impl Rate {
    /// From bits a second. `None` for 0.
    #[must_use]
    pub const fn from_bits(bits_per_second: u64) -> Option<Self> {
        if bits_per_second == 0 { None } else { Some(Self(bits_per_second)) }
    }

    /// Bits a second, above 0.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Bytes that pass in `span`, rounded down, at most `u64::MAX`.
    #[must_use]
    pub fn bytes_in(self, span: Duration) -> u64 {
        let bytes = u128::from(self.0).saturating_mul(span.as_nanos()) / 8_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// How long `bytes` take, rounded up, at most 584 years.
    #[must_use]
    pub fn time_for(self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * 8_000_000_000).div_ceil(u128::from(self.0));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Size {
    /// From bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl Span {
    /// From a duration; one over 584 years becomes 584 years.
    #[must_use]
    pub fn from_duration(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }

    /// From milliseconds; over 584 years becomes 584 years.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// From seconds; over 584 years becomes 584 years.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    /// As a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// Whole milliseconds, rounded down.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0 / 1_000_000
    }
}

impl SpanOrForever {
    /// As a duration; `None` for ever.
    #[must_use]
    pub fn duration(self) -> Option<Duration> {
        match self {
            Self::Span(span) => Some(span.duration()),
            Self::Forever => None,
        }
    }
}

impl Percent {
    /// The largest: 1,000 %.
    pub const MAX: Self = Self(10_000_000);

    /// From whole percents; over 1,000 becomes 1,000.
    #[must_use]
    pub const fn from_percent(percent: u32) -> Self {
        Self::from_millionths(percent.saturating_mul(10_000))
    }

    /// From millionths; over 1,000 % becomes 1,000 %.
    #[must_use]
    pub const fn from_millionths(millionths: u32) -> Self {
        if millionths > Self::MAX.0 { Self::MAX } else { Self(millionths) }
    }

    /// Millionths: 50,000 for 5 %.
    #[must_use]
    pub const fn millionths(self) -> u32 {
        self.0
    }

    /// As a fraction: 0.05 for 5 %.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 1e6
    }

    /// This share of `whole`, rounded up, at most `u64::MAX`.
    #[must_use]
    pub fn of(self, whole: u64) -> u64 {
        let share = (u128::from(whole) * u128::from(self.0)).div_ceil(1_000_000);
        u64::try_from(share).unwrap_or(u64::MAX)
    }
}

/// Everything that reading and printing one of the types has to know.
struct Spec {
    /// Names and factors, smallest first.
    units: &'static [(&'static str, u64)],
    /// Other ways to write a unit.
    aliases: &'static [(&'static str, &'static str)],
    /// What the units are called together in an error.
    names: &'static str,
    example: &'static str,
    example_unit: &'static str,
    finest: &'static str,
    max: u64,
    max_text: &'static str,
}

const RATE: Spec = Spec {
    units: &[("bit/s", 1), ("kbit/s", 1_000), ("Mbit/s", 1_000_000), ("Gbit/s", 1_000_000_000)],
    aliases: &[],
    names: "bit/s, kbit/s, Mbit/s or Gbit/s",
    example: "900 Mbit/s",
    example_unit: "Mbit/s",
    finest: "a whole number of bit/s",
    max: u64::MAX,
    max_text: "18446744073 Gbit/s",
};

const SIZE: Spec = Spec {
    units: &[
        ("B", 1),
        ("kB", 1_000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
        ("TB", 1_000_000_000_000),
        ("TiB", 1 << 40),
    ],
    aliases: &[],
    names: "B, KiB, MiB, GiB or TiB (or kB, MB, GB, TB)",
    example: "64 MiB",
    example_unit: "MiB",
    finest: "a whole number of bytes",
    max: u64::MAX,
    max_text: "16777215 TiB",
};

const SPAN: Spec = Spec {
    units: &[
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("min", 60_000_000_000),
        ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
    ],
    aliases: &[("µs", "us"), ("μs", "us")],
    names: "us, ms, s, min, h or d",
    example: "10 ms",
    example_unit: "ms",
    finest: "a whole number of nanoseconds",
    max: u64::MAX,
    max_text: "213503 d",
};

const PERCENT: Spec = Spec {
    units: &[("%", 10_000)],
    aliases: &[],
    names: "%",
    example: "5 %",
    example_unit: "%",
    finest: "at most four digits after the point",
    max: Percent::MAX.0 as u64,
    max_text: "1000 %",
};

impl Spec {
    fn parse(&self, text: &str) -> Result<u64, UnitError> {
        let text = text.trim();
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..unit_at], text[unit_at..].trim_start());
        let shown = || show(text);
        if text.is_empty() {
            return Err(UnitError::Empty { example: self.example.into() });
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        // Signs, thousands separators and exponents end up in what is taken for the unit.
        if whole.is_empty()
            || fraction.is_empty()
            || fraction.contains('.')
            || unit.contains(|c: char| c.is_ascii_digit())
        {
            return Err(UnitError::NotANumber { text: shown(), example: self.example.into() });
        }
        if unit.is_empty() {
            // "0.05" is likely a fraction of one, not a twentieth of the unit.
            let is_likely = number.len() <= 20 && !number.starts_with("0.");
            let example = if is_likely { format!("{number} {}", self.example_unit) } else { self.example.into() };
            return Err(UnitError::NoUnit { text: shown(), example });
        }
        let name = self.aliases.iter().find(|(alias, _)| *alias == unit).map_or(unit, |(_, name)| name);
        let Some((_, factor)) = self.units.iter().find(|(known, _)| *known == name) else {
            let near = self.units.iter().rev().find(|(known, _)| known.eq_ignore_ascii_case(name));
            let example = near.map_or_else(|| self.example.into(), |(known, _)| format!("{number} {known}"));
            return Err(UnitError::UnknownUnit { unit: show(unit), units: self.names.into(), example });
        };
        let too_large = || UnitError::TooLarge { text: shown(), most: self.max_text };
        let not_whole = || UnitError::NotWhole { text: shown(), finest: self.finest };
        let fraction = fraction.trim_end_matches('0');
        let scale = u32::try_from(fraction.len()).ok().and_then(|digits| 10_u128.checked_pow(digits));
        let scale = scale.filter(|scale| *scale <= 1_000_000_000_000_000_000).ok_or_else(not_whole)?;
        let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
        let (whole, fraction) = (parse(whole).ok_or_else(too_large)?, parse(fraction).ok_or_else(too_large)?);
        let scaled = whole.checked_mul(scale).and_then(|n| n.checked_add(fraction));
        let scaled = scaled.and_then(|n| n.checked_mul(u128::from(*factor))).ok_or_else(too_large)?;
        if scaled / scale > u128::from(self.max) || (scaled / scale == u128::from(self.max) && scaled % scale != 0) {
            return Err(too_large());
        }
        if scaled % scale != 0 {
            return Err(not_whole());
        }
        u64::try_from(scaled / scale).map_err(|_| too_large())
    }

    /// In the largest unit that needs no more than `decimals` digits after the point; reading it gives `value` again.
    fn print(&self, value: u64, decimals: u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scale = 10_u128.pow(decimals);
        let fits = |factor: u64| value >= factor && (u128::from(value) * scale).is_multiple_of(u128::from(factor));
        let unit = self.units.iter().rev().find(|(_, factor)| fits(*factor)).or(self.units.first());
        let &(name, factor) = unit.unwrap_or(&("", 1));
        write!(f, "{}", value / factor)?;
        let rest = u128::from(value % factor);
        if rest != 0 {
            // The smallest unit may be coarser than what is kept; then as many digits as that takes.
            let digits = format!("{:018}", rest * 1_000_000_000_000_000_000 / u128::from(factor));
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        write!(f, " {name}")
    }
}

/// What was written, on one line and not too long of it.
fn show(text: &str) -> String {
    let mut shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().count() > 40 {
        shown.push('…');
    }
    shown
}

macro_rules! unit {
    ($name:ident, $spec:expr, $decimals:expr, $expecting:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $spec.print(u64::from(self.0), $decimals, f)
            }
        }
        text_serde!($name, $spec, $expecting);
    };
}

macro_rules! text_serde {
    ($name:ident, $spec:expr, $expecting:expr) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct FromText;
                impl Visitor<'_> for FromText {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$name, E> {
                        number.to_string().parse().map_err(E::custom)
                    }
                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$name, E> {
                        number.to_string().parse().map_err(E::custom)
                    }
                    fn visit_f64<E: de::Error>(self, number: f64) -> Result<$name, E> {
                        number.to_string().parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(FromText)
            }
        }
    };
}

unit!(Rate, RATE, 3, "a rate, for example \"900 Mbit/s\"");
unit!(Size, SIZE, 0, "a size, for example \"64 MiB\"");
unit!(Span, SPAN, 0, "a time, for example \"10 ms\"");
unit!(Percent, PERCENT, 4, "a share, for example \"5 %\"");
text_serde!(SpanOrForever, SPAN, "a time, for example \"10 ms\", or \"forever\"");

impl FromStr for Rate {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bits = RATE.parse(text)?;
        Self::from_bits(bits).ok_or_else(|| UnitError::Zero { text: show(text.trim()), example: RATE.example.into() })
    }
}

impl FromStr for Size {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        SIZE.parse(text).map(Self)
    }
}

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        SPAN.parse(text).map(Self)
    }
}

impl FromStr for SpanOrForever {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        match text.trim() {
            "forever" => Ok(Self::Forever),
            text => text.parse().map(Self::Span),
        }
    }
}

impl FromStr for Percent {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let millionths = PERCENT.parse(text)?;
        Ok(Self::from_millionths(u32::try_from(millionths).unwrap_or(u32::MAX)))
    }
}

impl fmt::Display for SpanOrForever {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Span(span) => span.fmt(f),
            Self::Forever => f.write_str("forever"),
        }
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.duration()
    }
}

#[cfg(test)]
mod tests;
