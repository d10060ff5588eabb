//! Values to bytes and back: the only user of bincode, so that it can be exchanged. `SPEC.md` specifies the bytes.
//!
//! Configuration: bincode 2 `standard()` (little endian, variable-length integers), through serde.

use std::fmt;

use bincode::config;
use bincode::error::DecodeError;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes are not the encoding of the type asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More bytes than the caller's limit; both in bytes.
    #[error("{len} bytes where at most {limit} may be")]
    TooLong {
        /// What was given.
        len: usize,
        /// What the caller allows.
        limit: usize,
    },
    /// The bytes end early, or declare more than there is.
    #[error("the bytes end before the value does")]
    Truncated,
    /// The value ends before the bytes do.
    #[error("{0} bytes follow the value")]
    Trailing(usize),
    /// An integer is wider than its field.
    #[error("an integer is too large for its field")]
    Integer,
    /// A tag names no variant, or a boolean is neither 0 nor 1.
    #[error("a tag names no variant")]
    Tag,
    /// Text is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// The type's own check refused the value; what it said.
    #[error("{0}")]
    Value(String),
}

/// Encodes `value`.
///
/// # Panics
/// When `T` serialises a sequence of unknown length or fails by itself, which none of this project's types does.
#[must_use]
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    match bincode::serde::encode_to_vec(value, config::standard()) {
        Ok(bytes) => bytes,
        Err(e) => panic!("a value that cannot be encoded: {e}"),
    }
}

/// Decodes one value from all of `bytes`, of which there may be at most `limit`.
///
/// Memory: owned bytes and text never reserve more than about 256 times the input whatever they declare; borrowed ones
/// (`&[u8]`, `&str`, [`Bytes`]) and sequences reserve nothing by what is declared. Do not decode sequences of
/// zero-sized elements: their length costs no input. Errors: every [`CodecError`].
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], limit: usize) -> Result<T, CodecError> {
    let (value, used) = decode_prefix(bytes, limit)?;
    match bytes.len().saturating_sub(used) {
        0 => Ok(value),
        rest => Err(CodecError::Trailing(rest)),
    }
}

/// Decodes one value from the front of `bytes`, of which there may be at most `limit`; gives it and the bytes used.
/// Memory and errors as [`decode`], but never [`CodecError::Trailing`].
pub fn decode_prefix<'a, T: Deserialize<'a>>(bytes: &'a [u8], limit: usize) -> Result<(T, usize), CodecError> {
    if bytes.len() > limit {
        return Err(CodecError::TooLong { len: bytes.len(), limit });
    }
    // bincode counts an integer at its full width (at most 16 bytes for one byte on the wire), and its limit must be a
    // constant. So take the lowest of these limits that no honest input of this length can reach.
    let result = match bytes.len() {
        0..=0x100 => with_limit::<T, 0x1000>(bytes),
        0x101..=0x1000 => with_limit::<T, 0x1_0000>(bytes),
        0x1001..=0x1_0000 => with_limit::<T, 0x10_0000>(bytes),
        0x1_0001..=0x10_0000 => with_limit::<T, 0x100_0000>(bytes),
        _ => with_limit::<T, 0x8000_0000>(bytes),
    };
    result.map_err(CodecError::from)
}

fn with_limit<'a, T: Deserialize<'a>, const LIMIT: usize>(bytes: &'a [u8]) -> Result<(T, usize), DecodeError> {
    bincode::serde::borrow_decode_from_slice(bytes, config::standard().with_limit::<LIMIT>())
}

impl CodecError {
    /// The error's name, for the test vectors: stable, lower case, words joined by `-`.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too-long",
            Self::Truncated => "truncated",
            Self::Trailing(_) => "trailing-bytes",
            Self::Integer => "integer",
            Self::Tag => "tag",
            Self::Utf8 => "utf8",
            Self::Value(_) => "value",
        }
    }
}

impl From<DecodeError> for CodecError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::UnexpectedEnd { .. } | DecodeError::LimitExceeded => Self::Truncated,
            DecodeError::InvalidIntegerType { .. } | DecodeError::OutsideUsizeRange(_) => Self::Integer,
            DecodeError::UnexpectedVariant { .. } | DecodeError::InvalidBooleanValue(_) => Self::Tag,
            DecodeError::Utf8 { .. } | DecodeError::InvalidCharEncoding(_) => Self::Utf8,
            DecodeError::OtherString(text) => Self::Value(text),
            other => Self::Value(other.to_string()),
        }
    }
}

/// Borrowed bytes that are encoded and decoded at once instead of one by one: their length, then they themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Bytes<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        <&'a [u8]>::deserialize(d).map(Self)
    }
}

/// For `#[serde(with = "checkvalve_protocol::codec::bytes")]` on a `Vec<u8>`: as [`Bytes`], but owned.
pub mod bytes {
    use super::{Bytes, Deserializer, Serialize, Serializer, de, fmt};

    /// Encodes the length, then the bytes.
    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        Bytes(bytes).serialize(s)
    }

    /// Decodes what [`serialize`] wrote, without reserving what is not there.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        d.deserialize_bytes(Owned)
    }

    struct Owned;

    impl de::Visitor<'_> for Owned {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Owned {
        #[serde(with = "bytes")]
        raw: Vec<u8>,
        text: String,
        list: Vec<u64>,
    }

    #[test]
    fn integers_are_as_specified() {
        let cases: [(u64, &[u8]); 7] = [
            (0, &[0]),
            (250, &[250]),
            (251, &[251, 251, 0]),
            (0xffff, &[251, 0xff, 0xff]),
            (0x1_0000, &[252, 0, 0, 1, 0]),
            (0xffff_ffff, &[252, 0xff, 0xff, 0xff, 0xff]),
            (0x1_0000_0000, &[253, 0, 0, 0, 0, 1, 0, 0, 0]),
        ];
        for (value, bytes) in cases {
            assert_eq!(encode(&value), bytes);
            assert_eq!(decode::<u64>(bytes, 9), Ok(value));
        }
        for (value, folded) in [(0i64, 0u64), (-1, 1), (1, 2), (i64::MAX, u64::MAX - 1), (i64::MIN, u64::MAX)] {
            assert_eq!(encode(&value), encode(&folded));
            assert_eq!(decode::<i64>(&encode(&value), 9), Ok(value));
        }
        assert_eq!(decode::<u64>(&[254; 17], 17), Err(CodecError::Integer));
        assert_eq!(decode::<u16>(&[252, 1, 0, 0, 0], 9), Err(CodecError::Integer));
        assert_eq!(decode::<Option<u8>>(&[2, 0], 9), Err(CodecError::Tag));
    }

    #[test]
    fn the_whole_input_is_used_and_no_more() {
        let value = Owned { raw: vec![7; 300], text: "é".into(), list: vec![1, 1 << 40] };
        let bytes = encode(&value);
        assert_eq!(decode::<Owned>(&bytes, bytes.len()).as_ref(), Ok(&value));
        for len in 0..bytes.len() {
            assert_eq!(decode::<Owned>(&bytes[..len], 1 << 20), Err(CodecError::Truncated), "{len}");
        }
        let longer = [bytes.clone(), vec![0; 3]].concat();
        assert_eq!(decode::<Owned>(&longer, 1 << 20), Err(CodecError::Trailing(3)));
        assert_eq!(decode::<Owned>(&bytes, 10), Err(CodecError::TooLong { len: bytes.len(), limit: 10 }));
    }

    #[test]
    fn a_declared_length_reserves_nothing() {
        for declared in [u64::MAX, u64::MAX / 8, 1 << 62, 1 << 40, 1 << 31] {
            let bytes = encode(&declared);
            assert_eq!(decode::<String>(&bytes, 64), Err(CodecError::Truncated));
            assert_eq!(decode::<Bytes<'_>>(&bytes, 64), Err(CodecError::Truncated));
            assert_eq!(decode::<Vec<[u8; 32]>>(&bytes, 64), Err(CodecError::Truncated));
            assert_eq!(decode::<Owned>(&bytes, 64), Err(CodecError::Truncated));
        }
    }
}
