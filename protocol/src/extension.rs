//! The list that every signed payload ends in, so that a later version can say more without being another format.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{self, Bytes, CodecError};
use crate::limits::{MAX_EXTENSION_LEN, MAX_EXTENSIONS};

/// One extension as it is encoded: what it is, and its bytes.
pub type RawExtension<'a> = (u32, &'a [u8]);

/// Why a payload's extensions are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExtensionError {
    /// Not encoded as they should be.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// More than [`MAX_EXTENSIONS`].
    #[error("more than {MAX_EXTENSIONS} extensions")]
    TooMany,
    /// One is longer than [`MAX_EXTENSION_LEN`].
    #[error("an extension of more than {MAX_EXTENSION_LEN} bytes")]
    TooLong,
    /// Tags do not rise.
    #[error("its extensions are not in the order of their tags")]
    Order,
    /// Whoever does not know it must not go on, and this version does not.
    #[error("it needs extension {0}, which this version does not have: upgrade this side")]
    Critical(u32),
}

impl ExtensionError {
    /// The rule's name, for the test vectors: stable, lower case, words joined by `-`.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Codec(error) => error.rule(),
            Self::TooMany => "too-many-extensions",
            Self::TooLong => "extension-too-long",
            Self::Order => "extension-order",
            Self::Critical(_) => "critical-extension",
        }
    }
}

/// Encodes a list of extensions, whatever they are.
pub(crate) fn encode(extensions: &[RawExtension<'_>]) -> Vec<u8> {
    codec::encode(&Listed(extensions))
}

/// Checks the extensions that `bytes` consist of. None is known in this version, so that nothing comes out.
pub(crate) fn check(bytes: &[u8]) -> Result<(), ExtensionError> {
    let (checked, used) = codec::decode_prefix::<CheckedExtensions>(bytes, bytes.len())?;
    checked.0?;
    match bytes.len().saturating_sub(used) {
        0 => Ok(()),
        rest => Err(CodecError::Trailing(rest).into()),
    }
}

struct Listed<'a>(&'a [RawExtension<'a>]);

impl Serialize for Listed<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.0.iter().map(|&(tag, bytes)| (tag, Bytes(bytes))))
    }
}

/// Whether a list holds what may be; the first that may not ends it.
struct CheckedExtensions(Result<(), ExtensionError>);

impl<'de> Deserialize<'de> for CheckedExtensions {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_seq(ExtensionVisitor).map(Self)
    }
}

struct ExtensionVisitor;

impl<'de> Visitor<'de> for ExtensionVisitor {
    type Value = Result<(), ExtensionError>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("extensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        if seq.size_hint().is_none_or(|declared| declared > MAX_EXTENSIONS) {
            return Ok(Err(ExtensionError::TooMany));
        }
        let mut before = None;
        while let Some((tag, bytes)) = seq.next_element::<(u32, Bytes<'de>)>()? {
            if bytes.0.len() > MAX_EXTENSION_LEN {
                return Ok(Err(ExtensionError::TooLong));
            }
            if before.is_some_and(|before| tag <= before) {
                return Ok(Err(ExtensionError::Order));
            }
            if tag & 1 == 1 {
                return Ok(Err(ExtensionError::Critical(tag)));
            }
            before = Some(tag);
        }
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_ones_are_skipped_and_odd_ones_refused() {
        let long = [0; MAX_EXTENSION_LEN + 1];
        assert_eq!(check(&encode(&[])), Ok(()));
        assert_eq!(check(&encode(&[(0, b"x"), (2, b""), (u32::MAX - 1, &long[1..])])), Ok(()));
        assert_eq!(check(&encode(&[(0, b"x"), (3, b"y")])), Err(ExtensionError::Critical(3)));
        assert_eq!(check(&encode(&[(4, b""), (4, b"")])), Err(ExtensionError::Order));
        assert_eq!(check(&encode(&[(4, b""), (2, b"")])), Err(ExtensionError::Order));
        assert_eq!(check(&encode(&[(4, &long)])), Err(ExtensionError::TooLong));
        let many: Vec<RawExtension<'_>> = (0..33).map(|n| (n * 2, &b""[..])).collect();
        assert_eq!(check(&encode(&many[1..])), Ok(()));
        assert_eq!(check(&encode(&many)), Err(ExtensionError::TooMany));
    }

    #[test]
    fn all_bytes_are_used() {
        let bytes = encode(&[(2, b"abc")]);
        for len in 0..bytes.len() {
            assert_eq!(check(&bytes[..len]), Err(CodecError::Truncated.into()), "{len}");
        }
        assert_eq!(check(&[bytes, vec![0]].concat()), Err(CodecError::Trailing(1).into()));
        let declared = codec::encode(&u64::MAX);
        assert_eq!(check(&declared), Err(ExtensionError::TooMany));
    }
}
