//! How reading a bundle ended, and what its files hash to.

use std::borrow::Cow;

use super::raw::{RawHashes, RawOutcome};
use super::{Announce, ManifestError, Opened, signed};
use crate::codec;
use crate::crypto::{SigningKey, TrustStore};
use crate::extension;
use crate::id::{BundleId, KeyId};
use crate::limits::{MAX_ENTRIES, MAX_MANIFEST_LEN};

/// Longest reason of a withdrawal in bytes.
pub const MAX_REASON_LEN: usize = 1_024;

/// The tag of [`Outcome::Complete`].
const COMPLETE: u32 = 0;

/// What is known of a bundle once its data was read: the transport object of kind hashes, once signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashes {
    /// The bundle.
    pub bundle: BundleId,
    /// The BLAKE3 of its signed announce, all bytes of it ([`Opened::digest`]).
    pub announce: [u8; 32],
    /// How reading it ended.
    pub outcome: Outcome,
}

/// How reading a bundle ended at the sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it was read.
    Complete {
        /// The BLAKE3 of each regular file's contents, in the order of [`Announce::files`].
        files: Vec<[u8; 32]>,
    },
    /// It could not be read as announced, and no more of it will come.
    Withdrawn {
        /// Why, for people: at most [`MAX_REASON_LEN`] bytes.
        reason: String,
    },
}

impl Outcome {
    /// A withdrawal, `reason` cut to [`MAX_REASON_LEN`] bytes.
    #[must_use]
    pub fn withdrawn(reason: &str) -> Self {
        let reason = reason.get(..reason.floor_char_boundary(MAX_REASON_LEN)).unwrap_or_default();
        Self::Withdrawn { reason: reason.to_owned() }
    }
}

impl Hashes {
    /// Encodes and signs. Errors: [`ManifestError::TooManyEntries`], `ReasonTooLong`, `TooLong`.
    pub fn sign(&self, key: &SigningKey) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let outcome = match &self.outcome {
            Outcome::Complete { files } => RawOutcome::Complete { files: Cow::Borrowed(files) },
            Outcome::Withdrawn { reason } => RawOutcome::Withdrawn { reason },
        };
        let payload = RawHashes { bundle: self.bundle.0, announce: self.announce, outcome }.encode();
        signed::within_limit(signed::seal(signed::HASHES, &payload, key))
    }

    /// Opens what [`Hashes::sign`] made; the signature is checked before anything is decoded. Whether they belong to an
    /// announce is [`Opened::belongs_to`]'s to say.
    ///
    /// Errors: [`ManifestError::TooLong`], `Container`, `Unsigned`, `UnknownKey`, `BadSignature`, `Codec`, `TooManyEntries`,
    /// `ReasonTooLong`.
    pub fn open(bytes: &[u8], trust: &TrustStore) -> Result<Opened<Self>, ManifestError> {
        let envelope = signed::open(signed::HASHES, bytes, trust)?;
        Ok(Opened {
            value: Self::decode(envelope.payload)?,
            signer: envelope.signer,
            signer_name: envelope.signer_name,
            digest: blake3::hash(bytes).into(),
        })
    }

    /// Of a payload whose signature was checked.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, ManifestError> {
        let (value, rest) = match Self::decode_list(payload) {
            Some(decoded) => decoded,
            None => {
                let (raw, used) = codec::decode_prefix::<RawHashes<'_>>(payload, MAX_MANIFEST_LEN)?;
                let outcome = match raw.outcome {
                    RawOutcome::Complete { files } => Outcome::Complete { files: files.into_owned() },
                    RawOutcome::Withdrawn { reason } => Outcome::Withdrawn { reason: reason.to_owned() },
                };
                let value = Self { bundle: BundleId(raw.bundle), announce: raw.announce, outcome };
                (value, payload.get(used..).unwrap_or_default())
            }
        };
        value.check()?;
        extension::check(rest)?;
        Ok(value)
    }

    /// Hashes of a bundle that was read, and what follows them. They lie end to end as they are, so that a million of them
    /// need be neither read byte by byte nor gathered in a list that grows. None: it is not that, or not all there.
    fn decode_list(payload: &[u8]) -> Option<(Self, &[u8])> {
        let (head, used) = codec::decode_prefix::<(u64, [u8; 32], u32, u64)>(payload, MAX_MANIFEST_LEN).ok()?;
        let (bundle, announce, COMPLETE, count) = head else { return None };
        let len = usize::try_from(count).ok()?.checked_mul(32)?;
        let (files, rest) = payload.get(used..)?.split_at_checked(len)?;
        let (files, _) = files.as_chunks::<32>();
        let outcome = Outcome::Complete { files: files.to_vec() };
        Some((Self { bundle: BundleId(bundle), announce, outcome }, rest))
    }

    /// The bundle that a payload speaks of, if it says nothing else that can be read.
    pub(crate) fn peek_bundle(payload: &[u8]) -> Result<BundleId, ManifestError> {
        let (bundle, _) = codec::decode_prefix::<u64>(payload, MAX_MANIFEST_LEN)?;
        Ok(BundleId(bundle))
    }

    fn check(&self) -> Result<(), ManifestError> {
        match &self.outcome {
            Outcome::Complete { files } if files.len() > MAX_ENTRIES => Err(ManifestError::TooManyEntries),
            Outcome::Withdrawn { reason } if reason.len() > MAX_REASON_LEN => {
                Err(ManifestError::ReasonTooLong(reason.len()))
            }
            _ => Ok(()),
        }
    }
}

impl Opened<Hashes> {
    /// Whether these are the hashes of `announce`: the same bundle, the same signed bytes, the same signer, a hash a file.
    /// Errors: [`ManifestError::OtherBundle`], `OtherAnnounce`, `OtherSigner`, `HashCount`.
    pub fn belongs_to(&self, announce: &Opened<Announce>) -> Result<(), ManifestError> {
        self.value.belong_to(self.signer, &announce.value, announce.signer, &announce.digest)
    }
}

impl Hashes {
    /// The same of hashes that `signer` signed, and an announce with this `digest` that `by` did.
    pub(crate) fn belong_to(
        &self,
        signer: KeyId,
        announce: &Announce,
        by: KeyId,
        digest: &[u8; 32],
    ) -> Result<(), ManifestError> {
        if self.bundle != announce.bundle {
            return Err(ManifestError::OtherBundle);
        }
        if self.announce != *digest {
            return Err(ManifestError::OtherAnnounce);
        }
        if signer != by {
            return Err(ManifestError::OtherSigner(signer));
        }
        match &self.outcome {
            Outcome::Complete { files: hashes } => {
                let (hashes, files) = (hashes.len(), announce.files().count());
                if hashes == files { Ok(()) } else { Err(ManifestError::HashCount { hashes, files }) }
            }
            Outcome::Withdrawn { .. } => Ok(()),
        }
    }
}
