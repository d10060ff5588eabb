//! Announces that failed only because a key is not trusted, or may not sign for their channel: kept in memory, so that nothing of
//! them is lost when an operator changes that.

use std::collections::VecDeque;
use std::sync::PoisonError;

use checkvalve_host::log::escape_bytes;
use checkvalve_protocol::admit::{Verdict, admit};
use checkvalve_protocol::id::{BundleId, KeyId};
use checkvalve_protocol::manifest::{Head, ManifestError};
use checkvalve_protocol::wire::ObjectKind;

use super::Delivery;
use super::alarms::Code;

/// Announces that are kept.
const KEPT: usize = 16;
/// Longest announce that is kept, in bytes; of a longer one only the bundle's id and the key are kept.
const MOST_BYTES: usize = 1 << 20;

/// The newest of them, oldest first.
#[derive(Default)]
pub(super) struct Unknown(VecDeque<UnknownAnnounce>);

#[derive(Clone)]
struct UnknownAnnounce {
    id: BundleId,
    key: KeyId,
    announce: Vec<u8>,
}

impl Delivery {
    /// An announce, or hashes, that another trust would admit.
    pub(super) fn remember_unknown(
        &self,
        id: BundleId,
        key: KeyId,
        claims: Option<Head>,
        error: &ManifestError,
        announce: Option<&[u8]>,
    ) {
        let (Some(claims), Some(announce)) = (claims, announce) else { return };
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if unknown.0.iter().any(|kept| kept.id == id) {
            return;
        }
        if unknown.0.len() >= KEPT {
            // Of the key that has most of them the newest goes, so that one key does not push the others out.
            let of = |key: KeyId| unknown.0.iter().filter(|kept| kept.key == key).count();
            let most = unknown.0.iter().map(|kept| kept.key).max_by_key(|&key| of(key));
            if let Some(at) = unknown.0.iter().rposition(|kept| Some(kept.key) == most) {
                unknown.0.remove(at);
            }
        }
        let announce = if announce.len() <= MOST_BYTES { announce.to_vec() } else { Vec::new() };
        unknown.0.push_back(UnknownAnnounce { id, key, announce });
        drop(unknown);
        let claimed = format!("{}/{} ({})", claims.channel, claims.sequence, escape_bytes(&claims.name));
        let what = match error {
            ManifestError::NotForChannel { channel, .. } => format!(
                "a bundle that says it is {claimed} is signed by key {key}, which `channel.{channel}.signers` does not name: if it may \
                 sign for that channel, add it there, then `systemctl reload checkvalve-receiver`"
            ),
            _ => format!(
                "a bundle that says it is {claimed} names key {key}, which is not trusted: if you know that key and it should be, \
                 `checkvalve-receiver trust add FILE.pub` with its public half"
            ),
        };
        self.alarm(Code::UnknownKey, &key.to_string(), &what);
    }

    /// Judges again what was kept, by what is trusted now. Gives the bundles that count now.
    pub(super) fn judge_unknown(&self) -> Vec<BundleId> {
        let kept = std::mem::take(&mut self.unknown.lock().unwrap_or_else(PoisonError::into_inner).0);
        let trust = self.trust();
        let mut counts = Vec::new();
        for kept in kept {
            if trust.keys.get(&kept.key).is_some() {
                self.no_alarm(Code::UnknownKey, &kept.key.to_string());
            }
            match admit(kept.id, &kept.announce, None, &trust) {
                Err(Verdict::Unknown { .. } | Verdict::Discard(_)) => {
                    self.unknown.lock().unwrap_or_else(PoisonError::into_inner).0.push_back(kept);
                }
                _ => {
                    if self.take_object(kept.id, ObjectKind::Announce, &kept.announce).is_ok() {
                        counts.push(kept.id);
                    }
                }
            }
        }
        counts
    }
}
