//! The names of things: bundle, session, channel, key. Small values that are checked once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_CHANNEL_LEN;

/// Identifies a bundle for ever: 40 random bits and the [`KeyTag`] of the key that signs it, shown as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleId(pub u64);

/// The part of a signing key's id that is in the ids of its bundles: only that key can speak of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyTag(u32);

/// Identifies a sender's state, as long as it was neither lost, restored nor cloned: 64 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochId(pub u64);

/// Identifies one run of a sender: 64 random bits. With the link key it gives the key that seals its datagrams.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Identifies a signing key: the first 8 bytes of the BLAKE3 of its public half, shown as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

/// The name of a channel: 1 to [`MAX_CHANNEL_LEN`] of `a-z 0-9 _ -`, not beginning with `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChannelName(String);

/// A text is not an id, or not the name of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 16 hexadecimal digits.
    #[error("an id is 16 hexadecimal digits")]
    Hex,
    /// Not the name of a channel.
    #[error("a channel's name is 1 to {MAX_CHANNEL_LEN} of a-z, 0-9, _ and -, and does not begin with -")]
    Channel,
}

/// Bits of a bundle's id that are a [`KeyTag`].
const TAG_BITS: u32 = 24;

impl BundleId {
    /// The id of a bundle that `signer` signs: the lower 40 bits of `random`, and the key's tag.
    #[must_use]
    pub fn new(random: u64, signer: KeyId) -> Self {
        Self(random << TAG_BITS | u64::from(signer.tag().0))
    }

    /// The tag of the key that signs it.
    #[must_use]
    pub const fn tag(self) -> KeyTag {
        // The lower 24 bits.
        KeyTag(self.0 as u32 & ((1 << TAG_BITS) - 1))
    }
}

impl KeyId {
    /// Its first 3 bytes.
    #[must_use]
    pub const fn tag(self) -> KeyTag {
        let [a, b, c, ..] = self.0;
        KeyTag(u32::from_be_bytes([0, a, b, c]))
    }
}

impl KeyTag {
    /// As a number, big endian; the first byte is 0.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }
}

impl fmt::Debug for KeyTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

impl fmt::Display for KeyTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl ChannelName {
    /// Checks `name`. Errors: [`IdError::Channel`].
    pub fn new(name: impl Into<String>) -> Result<Self, IdError> {
        let name = name.into();
        let fits = (1..=MAX_CHANNEL_LEN).contains(&name.len()) && !name.starts_with('-');
        let plain = name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        if fits && plain { Ok(Self(name)) } else { Err(IdError::Channel) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ChannelName {
    type Error = IdError;
    fn try_from(name: String) -> Result<Self, IdError> {
        Self::new(name)
    }
}

impl From<ChannelName> for String {
    fn from(name: ChannelName) -> Self {
        name.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

macro_rules! hex_id {
    ($name:ident, $to:expr, $from:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let to: fn(&Self) -> u64 = $to;
                write!(f, "{:016x}", to(self))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
                let from: fn(u64) -> Self = $from;
                if digits {
                    u64::from_str_radix(text, 16).map(from).map_err(|_| IdError::Hex)
                } else {
                    Err(IdError::Hex)
                }
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(BundleId, |id| id.0, Self);
hex_id!(SessionId, |id| id.0, Self);
hex_id!(EpochId, |id| id.0, Self);
hex_id!(KeyId, |id| u64::from_be_bytes(id.0), |n| Self(n.to_be_bytes()));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_what_they_print() {
        let id = BundleId(0x00ab);
        assert_eq!(id.to_string(), "00000000000000ab");
        assert_eq!("00000000000000ab".parse(), Ok(id));
        for bad in ["", "ab", "+0000000000000ab", "00000000000000ag", "00000000000000ab0"] {
            assert_eq!(bad.parse::<BundleId>(), Err(IdError::Hex), "{bad}");
        }
    }

    #[test]
    fn a_bundle_has_the_tag_of_its_signer() {
        let signer = KeyId([0xab, 0xcd, 0xef, 1, 2, 3, 4, 5]);
        let id = BundleId::new(0xffff_ff12_3456_789a, signer);
        assert_eq!(id.to_string(), "123456789aabcdef");
        assert_eq!(id.tag(), signer.tag());
        assert_ne!(id.tag(), KeyId([0xab, 0xcd, 0xee, 1, 2, 3, 4, 5]).tag());
    }

    #[test]
    fn channel_names_are_safe_as_folder_names() {
        assert!(ChannelName::new("os-images_2").is_ok());
        for bad in ["", ".", "..", "a/b", "A", "-a", "a b", "é", &"a".repeat(33)] {
            assert_eq!(ChannelName::new(bad), Err(IdError::Channel), "{bad}");
        }
    }
}
