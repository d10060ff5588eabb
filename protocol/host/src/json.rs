//! How both daemons write what programs read: times, names of any bytes, the version of the format.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The `schema` of everything that is printed with `--json`. Fields are added to it, never changed.
pub const SCHEMA: u32 = 1;

/// A moment in Unix milliseconds; in JSON a text by RFC 3339, in UTC: `"2026-11-26T08:15:30.250Z"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Stamp(pub u64);

/// The last moment that RFC 3339 can write, in Unix milliseconds: the end of the year 9999.
const LAST_MS: u64 = 253_402_300_799_999;

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let moment = UNIX_EPOCH + Duration::from_millis(self.0.min(LAST_MS));
        std::fmt::Display::fmt(&humantime::format_rfc3339_millis(moment), f)
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str>>::deserialize(d)?;
        let moment: SystemTime = humantime::parse_rfc3339(&text).map_err(de::Error::custom)?;
        let since = moment.duration_since(UNIX_EPOCH).map_err(de::Error::custom)?;
        Ok(Self(u64::try_from(since.as_millis()).map_err(de::Error::custom)?))
    }
}

/// The bytes of a name in hexadecimal digits, where they are not UTF-8: for a field that ends in `_hex`, beside the escaped text.
#[must_use]
pub fn hex_unless_utf8(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).is_err().then(|| hex(bytes))
}

/// Bytes in hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_text_and_back() {
        let json = |ms| serde_json::to_string(&Stamp(ms)).unwrap();
        assert_eq!(json(0), "\"1970-01-01T00:00:00.000Z\"");
        assert_eq!(json(1_795_291_939_308), "\"2026-11-21T20:12:19.308Z\"");
        assert_eq!(json(u64::MAX), "\"9999-12-31T23:59:59.999Z\"");
        for ms in [0, 1, 999, 1_795_291_939_308, LAST_MS] {
            assert_eq!(serde_json::from_str::<Stamp>(&json(ms)).unwrap(), Stamp(ms));
        }
        for bad in ["\"yesterday\"", "5", "\"1960-01-01T00:00:00Z\""] {
            assert!(serde_json::from_str::<Stamp>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_is_no_text_is_shown_as_digits() {
        assert_eq!(hex_unless_utf8("café\n".as_bytes()), None);
        assert_eq!(hex_unless_utf8(b"caf\xe9").as_deref(), Some("636166e9"));
    }
}
