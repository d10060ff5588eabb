//! Keys as one line of text, the form of a key file.

use std::fmt::Write;

pub(super) const LINK: &str = "checkvalve-link-1";
pub(super) const SIGNING: &str = "checkvalve-signing-1";
pub(super) const PUBLIC: &str = "checkvalve-public-1";

/// Longest comment of a public key in bytes.
const MAX_COMMENT_LEN: usize = 256;

/// Text is not a key of the kind asked for. Never shows the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Another kind of key: what it is and what it should be.
    #[error("this is a key of kind {found}; it should be one line that begins with {expected}")]
    Kind {
        /// The kind asked for.
        expected: &'static str,
        /// The kind found.
        found: &'static str,
    },
    /// No key at all.
    #[error("not a key; it should be one line that begins with {0}")]
    NotAKey(&'static str),
    /// The digits are not 64 hexadecimal ones.
    #[error("the key after {0} should be 64 hexadecimal digits")]
    Digits(&'static str),
    /// Something after a secret key, or a second line.
    #[error("there is more than one line with a key that begins with {0}")]
    Extra(&'static str),
    /// The comment has control characters or more than 256 bytes.
    #[error("the comment after the key should be at most {MAX_COMMENT_LEN} bytes without control characters")]
    Comment,
}

/// Reads a secret: nothing may follow the digits.
pub(super) fn secret(text: &str, kind: &'static str) -> Result<[u8; 32], KeyError> {
    match read(text, kind)? {
        (bytes, "") => Ok(bytes),
        _ => Err(KeyError::Extra(kind)),
    }
}

/// Reads the one line of a key; blanks and newlines around it do not matter.
pub(super) fn read<'a>(text: &'a str, kind: &'static str) -> Result<([u8; 32], &'a str), KeyError> {
    let mut lines = text.trim().lines();
    let line = lines.next().unwrap_or_default();
    let (found, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    if found != kind {
        let other = [LINK, SIGNING, PUBLIC].into_iter().find(|&k| k == found);
        return Err(other.map_or(KeyError::NotAKey(kind), |found| KeyError::Kind { expected: kind, found }));
    }
    if lines.next().is_some() {
        return Err(KeyError::Extra(kind));
    }
    let rest = rest.trim();
    let (digits, comment) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
    let comment = comment.trim();
    if comment.len() > MAX_COMMENT_LEN || comment.contains(char::is_control) {
        return Err(KeyError::Comment);
    }
    Ok((unhex(digits).ok_or(KeyError::Digits(kind))?, comment))
}

/// Writes the one line of a key.
pub(super) fn line(kind: &str, bytes: &[u8; 32], comment: &str) -> String {
    let mut line = format!("{kind} ");
    for byte in bytes {
        let _ = write!(line, "{byte:02x}");
    }
    let comment: String = comment.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let comment = comment.trim();
    if !comment.is_empty() {
        line.push(' ');
        let mut end = comment.len().min(MAX_COMMENT_LEN);
        while !comment.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        line.push_str(comment.get(..end).unwrap_or_default().trim_end());
    }
    line.push('\n');
    line
}

fn unhex(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = nibble(high)? << 4 | nibble(low)?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok())
}
