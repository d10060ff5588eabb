//! Keys: the link key that both sides share, and the Ed25519 pair (RFC 8032) that signs bundles.
//!
//! Nothing here is random: whoever makes a key passes its 32 bytes in. `Debug` of a secret shows its id only.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod text;
mod trust;

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::id::KeyId;
pub use text::KeyError;
pub use trust::TrustStore;

/// Length of a signature in bytes.
pub const SIGNATURE_LEN: usize = 64;

/// The secret that sender and receiver of a link share; every session's key is derived from it.
#[derive(Clone)]
pub struct LinkKey([u8; 32]);

/// The secret half of a signing pair.
pub struct SigningKey {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

/// The public half of a signing pair.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl LinkKey {
    /// A link key of 32 bytes, which should be random.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads `checkvalve-link-1 <64 hex>`. Errors: [`KeyError`], which never shows what was read.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        text::secret(text, text::LINK).map(Self)
    }

    /// Writes what [`LinkKey::from_text`] reads, a newline at the end.
    #[must_use]
    pub fn to_text(&self) -> String {
        text::line(text::LINK, &self.0, "")
    }

    /// The secret bytes, for the derivation of session keys.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Names the key without giving it away: the first 8 bytes of BLAKE3's key derivation from it, so that two hosts
    /// can be seen to have the same one.
    #[must_use]
    pub fn id(&self) -> KeyId {
        first_8(blake3::derive_key("checkvalve link key id v1", &self.0))
    }
}

impl SigningKey {
    /// The pair whose Ed25519 seed (RFC 8032 section 5.1.5) is `seed`, which should be random.
    ///
    /// # Panics
    /// Never: every 32 bytes are a seed.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let Ok(pair) = Ed25519KeyPair::from_seed_unchecked(&seed) else { unreachable!("32 bytes are a seed") };
        Self { seed, pair }
    }

    /// Reads `checkvalve-signing-1 <64 hex>`, the seed. Errors: [`KeyError`], which never shows what was read.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        text::secret(text, text::SIGNING).map(Self::from_seed)
    }

    /// Writes what [`SigningKey::from_text`] reads, a newline at the end.
    #[must_use]
    pub fn to_text(&self) -> String {
        text::line(text::SIGNING, &self.seed, "")
    }

    /// The public half.
    ///
    /// # Panics
    /// Never: an Ed25519 public key has 32 bytes.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let Ok(bytes) = self.pair.public_key().as_ref().try_into() else { unreachable!("a public key has 32 bytes") };
        PublicKey(bytes)
    }

    /// Signs `domain` ‖ `payload`. The domain ends with NUL and holds no other, so that no two domains run into one.
    ///
    /// # Panics
    /// Never: an Ed25519 signature has 64 bytes.
    #[must_use]
    pub fn sign(&self, domain: &'static [u8], payload: &[u8]) -> [u8; SIGNATURE_LEN] {
        let signature = self.pair.sign(&[domain, payload].concat());
        let Ok(bytes) = signature.as_ref().try_into() else { unreachable!("a signature has 64 bytes") };
        bytes
    }
}

impl PublicKey {
    /// A public key of 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads `checkvalve-public-1 <64 hex> <comment>`; gives the key and the comment, which may be empty.
    pub fn from_text(text: &str) -> Result<(Self, String), KeyError> {
        text::read(text, text::PUBLIC).map(|(bytes, comment)| (Self(bytes), comment.to_owned()))
    }

    /// Writes what [`PublicKey::from_text`] reads, a newline at the end. Control characters in `comment` become spaces.
    #[must_use]
    pub fn to_text(&self, comment: &str) -> String {
        text::line(text::PUBLIC, &self.0, comment)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Names the key: the first 8 bytes of the BLAKE3 of its bytes.
    #[must_use]
    pub fn id(&self) -> KeyId {
        first_8(blake3::hash(&self.0).into())
    }

    /// Whether `signature` is this key's over `domain` ‖ `payload`.
    #[must_use]
    pub fn verify(&self, domain: &'static [u8], payload: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(&[domain, payload].concat(), signature).is_ok()
    }
}

fn first_8(hash: [u8; 32]) -> KeyId {
    let (id, _) = hash.split_first_chunk().unwrap_or((&[0; 8], &[]));
    KeyId(*id)
}

impl fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkKey({})", self.id())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().id())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

#[cfg(test)]
mod tests;
