//! The one place that decides whether something signed counts.
//!
//! An object that is not properly signed changes nothing ([`Verdict::Discard`], [`Verdict::Unknown`]). An object that
//! breaks a rule, signed by a key that may sign for the channel, is refused for good ([`Verdict::Refuse`]). See
//! SPEC.md, "What a receiver believes".
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use std::collections::{BTreeMap, BTreeSet};

use crate::beacon::{Beacon, BeaconError};
use crate::crypto::TrustStore;
use crate::id::{BundleId, ChannelName, KeyId, SessionId};
use crate::manifest::{Announce, Hashes, Head, ManifestError, Opened, Outcome, signed};

/// Who is trusted, and for what.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The trusted keys.
    pub keys: TrustStore,
    /// Channels that only some of them may sign for. Any of them may sign for the others.
    pub signers: BTreeMap<ChannelName, BTreeSet<KeyId>>,
}

/// Why something signed does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is not rightly signed: as if it had not come.
    Discard(ManifestError),
    /// The same, but an operator could change that: a key is not trusted, or may not sign for the channel.
    Unknown {
        /// The key.
        key: KeyId,
        /// What the announce says of itself, which nobody vouches for.
        claims: Option<Box<Head>>,
        /// [`ManifestError::UnknownKey`] or [`ManifestError::NotForChannel`].
        error: ManifestError,
    },
    /// It is rightly signed and breaks a rule: the bundle is refused.
    Refuse {
        /// The key that signed.
        signer: KeyId,
        /// What the trust store calls it.
        signer_name: String,
        /// What can be read of it: none where the hashes are at fault.
        head: Option<Box<Head>>,
        /// The rule.
        error: ManifestError,
    },
}

/// An announce that counts, and the hashes that belong to it if they do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The announce.
    pub announce: Opened<Announce>,
    /// How reading the bundle ended, once that is known.
    pub outcome: Option<Outcome>,
}

impl Trust {
    /// Trusts these keys for every channel.
    #[must_use]
    pub fn new(keys: TrustStore) -> Self {
        Self { keys, signers: BTreeMap::new() }
    }

    /// Whether `key` is trusted, and may sign for `channel`.
    #[must_use]
    pub fn may_sign(&self, key: KeyId, channel: &ChannelName) -> bool {
        self.keys.get(&key).is_some() && self.signers.get(channel).is_none_or(|signers| signers.contains(&key))
    }

    /// As [`Trust::may_sign`], with the reason. Errors: [`ManifestError::UnknownKey`], [`ManifestError::NotForChannel`].
    pub fn check(&self, key: KeyId, channel: &ChannelName) -> Result<(), ManifestError> {
        if self.keys.get(&key).is_none() {
            return Err(ManifestError::UnknownKey(key));
        }
        if self.may_sign(key, channel) {
            return Ok(());
        }
        Err(ManifestError::NotForChannel { key, channel: channel.clone() })
    }

    /// Whether `signed`, which came in a datagram of `session`, is a beacon that counts: who says so, and what is left of it
    /// without the channels that its signer may not sign for. Errors: it is dropped.
    pub fn hear(&self, session: SessionId, signed: &[u8]) -> Result<Opened<Beacon>, BeaconError> {
        self.hear_apart(session, signed).map(|(opened, _)| opened)
    }

    /// As [`Trust::hear`], with the channels that were left out.
    pub fn hear_apart(
        &self,
        session: SessionId,
        signed: &[u8],
    ) -> Result<(Opened<Beacon>, BTreeSet<ChannelName>), BeaconError> {
        let mut opened = Beacon::open(signed, &self.keys)?;
        let Opened { value, signer, .. } = &mut opened;
        if value.session != session {
            return Err(BeaconError::OtherSession);
        }
        let on_wire = value.on_wire.take_if(|on_wire| !self.may_sign(*signer, &on_wire.channel));
        let channel = value.channel.take_if(|channel| !self.may_sign(*signer, &channel.name));
        let apart = on_wire.map(|on_wire| on_wire.channel).into_iter().chain(channel.map(|channel| channel.name));
        let apart = apart.collect();
        Ok((opened, apart))
    }
}

/// Whether the announce and the hashes that came for `bundle` count, as `trust` says. Without hashes, only the announce
/// is judged.
///
/// Errors: [`Verdict`]; the one on the hashes only if the announce counts.
pub fn admit(bundle: BundleId, announce: &[u8], hashes: Option<&[u8]>, trust: &Trust) -> Result<Admitted, Verdict> {
    let mut admitted = Admitted { announce: admit_announce(bundle, announce, trust)?, outcome: None };
    if let Some(hashes) = hashes {
        let Opened { value, signer, digest, .. } = &admitted.announce;
        admitted.outcome = Some(admit_hashes(value, *signer, digest, hashes, trust)?.outcome);
    }
    Ok(admitted)
}

fn admit_announce(bundle: BundleId, bytes: &[u8], trust: &Trust) -> Result<Opened<Announce>, Verdict> {
    let envelope = signed::open(signed::ANNOUNCE, bytes, &trust.keys).map_err(|error| match error {
        ManifestError::UnknownKey(key) => {
            let claims =
                Announce::peek_head(bytes).ok().filter(|head| is_of(head.bundle, bundle, key).is_ok()).map(Box::new);
            Verdict::Unknown { key, claims, error }
        }
        error => Verdict::Discard(error),
    })?;
    let signer = envelope.signer;
    let head = Box::new(Head::decode(envelope.payload).map_err(Verdict::Discard)?);
    is_of(head.bundle, bundle, signer).map_err(Verdict::Discard)?;
    if let Err(error) = trust.check(signer, &head.channel) {
        return Err(Verdict::Unknown { key: signer, claims: Some(head), error });
    }
    match Announce::decode(envelope.payload) {
        Ok(value) => {
            let digest = blake3::hash(bytes).into();
            Ok(Opened { value, signer, signer_name: envelope.signer_name, digest })
        }
        Err(error) => Err(Verdict::Refuse { signer, signer_name: envelope.signer_name, head: Some(head), error }),
    }
}

/// Whether `bytes` are the hashes of `announce`, which was admitted: `by` signed it, and `digest` is the BLAKE3 of all its signed bytes.
/// Errors: [`Verdict`].
pub fn admit_hashes(
    announce: &Announce,
    by: KeyId,
    digest: &[u8; 32],
    bytes: &[u8],
    trust: &Trust,
) -> Result<Hashes, Verdict> {
    let envelope = open_hashes(announce.bundle, bytes, trust)?;
    let signer = envelope.signer;
    if let Err(error) = trust.check(signer, &announce.channel) {
        return Err(Verdict::Unknown { key: signer, claims: None, error });
    }
    let refuse = |error| Verdict::Refuse { signer, signer_name: envelope.signer_name.clone(), head: None, error };
    let value = Hashes::decode(envelope.payload).map_err(refuse)?;
    match value.belong_to(signer, announce, by, digest) {
        Ok(()) => Ok(value),
        Err(error @ ManifestError::HashCount { .. }) => Err(refuse(error)),
        // Of another announce that this key signed for the bundle, which may yet come.
        Err(error) => Err(Verdict::Discard(error)),
    }
}

/// Whether a trusted key signed `bytes` as hashes of `bundle`, whose announce is not known yet. Errors: [`Verdict`]; never
/// [`Verdict::Refuse`].
pub fn admit_hashes_alone(bundle: BundleId, bytes: &[u8], trust: &Trust) -> Result<KeyId, Verdict> {
    open_hashes(bundle, bytes, trust).map(|envelope| envelope.signer)
}

fn open_hashes<'a>(bundle: BundleId, bytes: &'a [u8], trust: &Trust) -> Result<signed::Verified<'a>, Verdict> {
    let envelope = signed::open(signed::HASHES, bytes, &trust.keys).map_err(|error| match error {
        ManifestError::UnknownKey(key) => Verdict::Unknown { key, claims: None, error },
        error => Verdict::Discard(error),
    })?;
    let of = Hashes::peek_bundle(envelope.payload).map_err(Verdict::Discard)?;
    is_of(of, bundle, envelope.signer).map_err(Verdict::Discard)?;
    Ok(envelope)
}

/// Whether an object that speaks of `bundle`, came under `id` and was signed by `signer` is of that bundle.
fn is_of(bundle: BundleId, id: BundleId, signer: KeyId) -> Result<(), ManifestError> {
    if bundle != id {
        return Err(ManifestError::OtherBundle);
    }
    if bundle.tag() != signer.tag() {
        return Err(ManifestError::ForeignBundle(bundle.tag()));
    }
    Ok(())
}

impl Verdict {
    /// The rule that is broken.
    #[must_use]
    pub fn error(&self) -> &ManifestError {
        match self {
            Self::Discard(error) | Self::Unknown { error, .. } | Self::Refuse { error, .. } => error,
        }
    }
}

#[cfg(test)]
mod tests;
