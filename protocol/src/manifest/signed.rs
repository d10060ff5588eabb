//! The container of a signed object: `CVS2`, the signer's id, the signature, the payload.
//!
//! Public so that tests of a receiver can sign what no sender would.

use super::ManifestError;
use crate::crypto::{SIGNATURE_LEN, SigningKey, TrustStore};
use crate::id::KeyId;
use crate::limits::MAX_MANIFEST_LEN;

/// The role of an announce, which its signature covers before the payload.
pub const ANNOUNCE: &[u8] = b"checkvalve announce v2\0";
/// The role of hashes, which their signature covers before the payload.
pub const HASHES: &[u8] = b"checkvalve hashes v2\0";
/// The role of a beacon, which its signature covers before the payload.
pub const BEACON: &[u8] = b"checkvalve beacon v2\0";
/// What a signed object begins with.
pub const MAGIC: [u8; 4] = *b"CVS2";
/// Length of all that comes before the payload, in bytes.
pub const PREFIX_LEN: usize = 4 + 8 + SIGNATURE_LEN;

/// The parts of a signed object, nothing about them verified.
#[derive(Clone, Copy, Debug)]
pub struct Parsed<'a> {
    /// Who is said to have signed.
    pub signer: KeyId,
    /// The signature.
    pub signature: &'a [u8; SIGNATURE_LEN],
    /// What is signed.
    pub payload: &'a [u8],
}

/// A payload that a trusted key signed.
#[derive(Clone, Debug)]
pub struct Verified<'a> {
    /// Who signed.
    pub signer: KeyId,
    /// What the trust store calls that key.
    pub signer_name: String,
    /// What is signed.
    pub payload: &'a [u8],
}

/// Signs `payload` in the role `domain`, whatever it is.
#[must_use]
pub fn seal(domain: &'static [u8], payload: &[u8], key: &SigningKey) -> Vec<u8> {
    let signature = key.sign(domain, payload);
    [&MAGIC, key.public().id().0.as_slice(), &signature, payload].concat()
}

/// The same with no signature, which every receiver refuses.
#[must_use]
pub fn seal_unsigned(payload: &[u8]) -> Vec<u8> {
    [&MAGIC, [0; 8].as_slice(), &[0; SIGNATURE_LEN], payload].concat()
}

/// Takes a signed object apart. Errors: [`ManifestError::TooLong`], [`ManifestError::Container`].
pub fn parse(bytes: &[u8]) -> Result<Parsed<'_>, ManifestError> {
    if bytes.len() > MAX_MANIFEST_LEN {
        return Err(ManifestError::TooLong(bytes.len()));
    }
    let parts = || {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (signer, rest) = rest.split_first_chunk()?;
        let (signature, payload) = rest.split_first_chunk()?;
        (*magic == MAGIC).then_some(Parsed { signer: KeyId(*signer), signature, payload })
    };
    parts().ok_or(ManifestError::Container)
}

/// Verifies a signed object. Errors: those of [`parse`], then `Unsigned`, `UnknownKey`, `BadSignature`.
pub fn open<'a>(domain: &'static [u8], bytes: &'a [u8], trust: &TrustStore) -> Result<Verified<'a>, ManifestError> {
    let Parsed { signer, signature, payload } = parse(bytes)?;
    if signer == KeyId([0; 8]) && signature == &[0; SIGNATURE_LEN] {
        return Err(ManifestError::Unsigned);
    }
    let (key, name) = trust.get(&signer).ok_or(ManifestError::UnknownKey(signer))?;
    if !key.verify(domain, payload, signature) {
        return Err(ManifestError::BadSignature);
    }
    Ok(Verified { signer, signer_name: name.to_owned(), payload })
}

pub(super) fn within_limit(bytes: Vec<u8>) -> Result<Vec<u8>, ManifestError> {
    if bytes.len() > MAX_MANIFEST_LEN { Err(ManifestError::TooLong(bytes.len())) } else { Ok(bytes) }
}
