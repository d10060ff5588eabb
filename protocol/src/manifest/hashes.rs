//! How reading a bundle ended, and what its files hash to.

use std::borrow::Cow;

use super::raw::{RawHashes, RawOutcome};
use super::{Announce, ManifestError, Opened, signed};
use crate::codec;
use crate::crypto::{SigningKey, TrustStore};
use crate::id::BundleId;
use crate::limits::{MAX_ENTRIES, MAX_MANIFEST_LEN};

/// Longest reason of a withdrawal in bytes.
pub const MAX_REASON_LEN: usize = 1_024;

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
        let raw: RawHashes<'_> = codec::decode(envelope.payload, MAX_MANIFEST_LEN)?;
        let outcome = match raw.outcome {
            RawOutcome::Complete { files } => Outcome::Complete { files: files.into_owned() },
            RawOutcome::Withdrawn { reason } => Outcome::Withdrawn { reason: reason.to_owned() },
        };
        let value = Self { bundle: BundleId(raw.bundle), announce: raw.announce, outcome };
        value.check()?;
        Ok(Opened {
            value,
            signer: envelope.signer,
            signer_name: envelope.signer_name,
            digest: blake3::hash(bytes).into(),
        })
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
        if self.value.bundle != announce.value.bundle {
            return Err(ManifestError::OtherBundle);
        }
        if self.value.announce != announce.digest {
            return Err(ManifestError::OtherAnnounce);
        }
        if self.signer != announce.signer {
            return Err(ManifestError::OtherSigner(self.signer));
        }
        match &self.value.outcome {
            Outcome::Complete { files: hashes } => {
                let (hashes, files) = (hashes.len(), announce.value.files().count());
                if hashes == files { Ok(()) } else { Err(ManifestError::HashCount { hashes, files }) }
            }
            Outcome::Withdrawn { .. } => Ok(()),
        }
    }
}
