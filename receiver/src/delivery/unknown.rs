//! Announces that failed only because a key is not trusted, or may not sign for their channel: kept in memory, so that nothing of
//! them is lost when an operator changes that.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_host::log::escape_bytes;
use checkvalve_protocol::admit::{Trust, Verdict, admit};
use checkvalve_protocol::id::{BundleId, KeyId};
use checkvalve_protocol::manifest::{Head, ManifestError};

use super::alarms::{Alarms, Code};

/// Announces that are kept.
const KEPT: usize = 16;
/// Longest announce that is kept, in bytes; of a longer one only the bundle's id and the key are kept.
const MOST_BYTES: usize = 1 << 20;

/// The newest of them.
pub(super) struct Unknown {
    alarms: Arc<Alarms>,
    /// Oldest first.
    kept: Mutex<VecDeque<UnknownAnnounce>>,
}

#[derive(Clone)]
struct UnknownAnnounce {
    id: BundleId,
    key: KeyId,
    announce: Vec<u8>,
}

impl Unknown {
    pub(super) fn new(alarms: Arc<Alarms>) -> Self {
        Self { alarms, kept: Mutex::default() }
    }

    /// An announce that another trust would admit.
    pub(super) fn remember(&self, id: BundleId, key: KeyId, claims: &Head, error: &ManifestError, announce: &[u8]) {
        if !self.keep(id, key, announce) {
            return;
        }
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
        self.alarms.raise(Code::UnknownKey, &key.to_string(), &what);
    }

    /// Takes out the announces that this trust admits, or refuses: those that are no longer unknown.
    pub(super) fn take_known(&self, trust: &Trust) -> Vec<(BundleId, Vec<u8>)> {
        let kept = std::mem::take(&mut *self.lock());
        let mut known = Vec::new();
        for kept in kept {
            if trust.keys.get(&kept.key).is_some() {
                self.alarms.clear(Code::UnknownKey, &kept.key.to_string());
            }
            match admit(kept.id, &kept.announce, None, trust) {
                Err(Verdict::Unknown { .. } | Verdict::Discard(_)) => self.lock().push_back(kept),
                _ => known.push((kept.id, kept.announce)),
            }
        }
        known
    }

    /// False: it is kept already.
    fn keep(&self, id: BundleId, key: KeyId, announce: &[u8]) -> bool {
        let mut all = self.lock();
        if all.iter().any(|kept| kept.id == id) {
            return false;
        }
        if all.len() >= KEPT {
            // Of the key that has most of them the newest goes, so that one key does not push the others out.
            let of = |key: KeyId| all.iter().filter(|kept| kept.key == key).count();
            let most = all.iter().map(|kept| kept.key).max_by_key(|&key| of(key));
            if let Some(at) = all.iter().rposition(|kept| Some(kept.key) == most) {
                all.remove(at);
            }
        }
        let announce = if announce.len() <= MOST_BYTES { announce.to_vec() } else { Vec::new() };
        all.push_back(UnknownAnnounce { id, key, announce });
        true
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<UnknownAnnounce>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
