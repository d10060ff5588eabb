//! Announces that failed only because a key is not trusted, or may not sign for their channel: kept in memory, so that nothing of
//! them is lost when an operator changes that.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_protocol::admit::{Trust, Verdict, admit};
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};
use checkvalve_protocol::manifest::{Head, ManifestError};

use super::alarms::{Alarms, Code};
use super::telling::{quoted, quoted_bytes};

/// Announces that are kept.
const KEPT: usize = 16;
/// What an operator can do for a key that is not trusted.
const ADD: &str =
    "if you know that key and it should be, `checkvalve-receiver trust add FILE.pub` with its public half";
/// And for one that may not sign for a channel.
const NAME_IT: &str = "if it may sign for that channel, add it there, then `systemctl reload checkvalve-receiver`";
/// Longest announce that is kept, in bytes; of a longer one only the bundle's id and the key are kept.
const MOST_BYTES: usize = 1 << 20;

/// Says which keys are refused, and where, as long as they are.
pub(super) struct Strangers {
    alarms: Arc<Alarms>,
}

impl Strangers {
    pub(super) fn new(alarms: Arc<Alarms>) -> Self {
        Self { alarms }
    }

    /// A beacon names a key that is not trusted. Nobody vouches for that: it may be anybody's.
    pub(super) fn beacon(&self, key: KeyId) {
        let about = key.to_string();
        if !self.alarms.still(Code::UnknownKey, &about) {
            let text = format!("beacons come that name key {key}, which is not trusted: {ADD}");
            self.alarms.raise(Code::UnknownKey, &about, &text);
        }
    }

    /// A beacon of a trusted key speaks of a channel that is not its own.
    pub(super) fn beacon_for(&self, key: KeyId, name: &str, channel: &ChannelName) {
        let about = format!("{key} {channel}");
        if !self.alarms.still(Code::UnknownKey, &about) {
            let text = format!(
                "the sender with key {key} ({}) speaks of channel {channel}, and `channel.{channel}.signers` does not name that key: {NAME_IT}",
                quoted(name)
            );
            self.alarms.raise(Code::UnknownKey, &about, &text);
        }
    }

    /// An announce that another trust would admit.
    fn announce(&self, key: KeyId, claims: &Head, error: &ManifestError) {
        let claimed = format!("{}/{} ({})", claims.channel, claims.sequence, quoted_bytes(&claims.name));
        let (about, text) = match error {
            ManifestError::NotForChannel { channel, .. } => (
                format!("{key} {channel}"),
                format!(
                    "a bundle that says it is {claimed} is signed by key {key}, which `channel.{channel}.signers` does not name: {NAME_IT}"
                ),
            ),
            _ => (
                key.to_string(),
                format!("a bundle that says it is {claimed} names key {key}, which is not trusted: {ADD}"),
            ),
        };
        self.alarms.raise(Code::UnknownKey, &about, &text);
    }

    /// Those end whose key counts now.
    fn end(&self, trust: &Trust) {
        self.alarms.end(Code::UnknownKey, |about| {
            let (key, channel) = about.split_once(' ').map_or((about, None), |(key, channel)| (key, Some(channel)));
            let Ok(key) = key.parse::<KeyId>() else { return false };
            match channel {
                None => trust.keys.get(&key).is_some(),
                Some(channel) => ChannelName::new(channel).is_ok_and(|channel| trust.may_sign(key, &channel)),
            }
        });
    }
}

/// The newest of them.
pub(super) struct Unknown {
    strangers: Strangers,
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
        Self { strangers: Strangers::new(alarms), kept: Mutex::default() }
    }

    /// An announce that another trust would admit.
    pub(super) fn remember(&self, id: BundleId, key: KeyId, claims: &Head, error: &ManifestError, announce: &[u8]) {
        self.keep(id, key, announce);
        self.strangers.announce(key, claims, error);
    }

    /// Takes out the announces that this trust admits, or refuses: those that are no longer unknown.
    pub(super) fn take_known(&self, trust: &Trust) -> Vec<(BundleId, Vec<u8>)> {
        self.strangers.end(trust);
        let kept = std::mem::take(&mut *self.lock());
        let mut known = Vec::new();
        for kept in kept {
            match admit(kept.id, &kept.announce, None, trust) {
                Err(Verdict::Unknown { .. } | Verdict::Discard(_)) => self.lock().push_back(kept),
                _ => known.push((kept.id, kept.announce)),
            }
        }
        known
    }

    fn keep(&self, id: BundleId, key: KeyId, announce: &[u8]) {
        let mut all = self.lock();
        if all.iter().any(|kept| kept.id == id) {
            return;
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
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<UnknownAnnounce>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
