//! What operators decide: whom to trust, what to give up.

use std::collections::BTreeMap;
use std::io;
use std::sync::PoisonError;

use checkvalve_host::disk::{read_all, write_atomic};
use checkvalve_protocol::crypto::TrustStore;
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};

use super::Delivery;
use super::manifests::subject;
use crate::audit::{Event, Subject};
use crate::ledger::State;

/// Which bundle an operator means: `channel/sequence`, or the first digits of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// By its number.
    Sequence(ChannelName, u64),
    /// By the first digits of its id.
    Prefix(String),
}

/// Why a bundle is not given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RejectError {
    /// There is none.
    #[error("no such bundle; `status` lists them")]
    Unknown,
    /// There are several.
    #[error("several bundles begin so; give more digits")]
    Ambiguous,
    /// It is over.
    #[error("the bundle is {} already", .0.as_str())]
    Over(State),
    /// Its hook runs.
    #[error("its hook is running; wait for it to end")]
    Running,
    /// It is neither a sequence nor the beginning of an id.
    #[error("write `channel/sequence`, or the first digits of the bundle's id")]
    Malformed,
    /// The ledger cannot be written.
    #[error("the ledger cannot be written; see the log")]
    Disk,
}

impl std::str::FromStr for Which {
    type Err = RejectError;
    fn from_str(text: &str) -> Result<Self, RejectError> {
        if let Some((channel, sequence)) = text.rsplit_once('/') {
            let channel = ChannelName::new(channel).map_err(|_| RejectError::Malformed)?;
            return Ok(Self::Sequence(channel, sequence.parse().map_err(|_| RejectError::Malformed)?));
        }
        let digits = (1..=16).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        if digits { Ok(Self::Prefix(text.to_ascii_lowercase())) } else { Err(RejectError::Malformed) }
    }
}

impl Delivery {
    /// Gives a bundle up, so that later ones go on. What staging has of it is removed; what is published stays.
    pub fn reject(&self, which: &Which) -> Result<(), RejectError> {
        let id = match self.find(which) {
            Ok(id) => id,
            Err(RejectError::Unknown) => return self.reject_unknown(which),
            Err(error) => return Err(error),
        };
        let now = self.now();
        let staged = self.store.get(id);
        let _alone = staged.as_ref().map(|s| s.advancing.lock().unwrap_or_else(PoisonError::into_inner));
        let entry = self.ledger.lock().entry(id).cloned().ok_or(RejectError::Unknown)?;
        if entry.state.is_over() {
            return Err(RejectError::Over(entry.state));
        }
        {
            // Held until the state has changed, so that the hook does not start in between.
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if entry.state == State::Installing && entry.channel.as_ref().is_some_and(|c| running.contains(c)) {
                return Err(RejectError::Running);
            }
            self.ledger.lock().change(id, now, |e| {
                e.state = State::Rejected;
                e.reason = Some("given up by an operator".into());
            });
        }
        self.note(now, &Event::Rejected { bundle: subject(&entry) });
        let saved = self.save();
        self.discard(id);
        tracing::warn!(bundle = %id, sequence = entry.sequence, "rejected");
        self.wake();
        if saved { Ok(()) } else { Err(RejectError::Disk) }
    }

    /// Trusts these keys from now on. What was refused because one of them was not trusted may come again. Changes go to
    /// the audit trail, also those that were made while no daemon ran. Errors: the list of trusted keys in the state
    /// directory.
    pub fn set_trust(&self, trust: TrustStore, now_ms: u64) -> io::Result<()> {
        let path = self.settings.state.join("trust.json");
        let before: BTreeMap<KeyId, String> = match read_all(self.disk.as_ref(), &path, 16 << 20) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        let after: BTreeMap<KeyId, String> = trust.iter().map(|(id, _, name)| (id, name.to_owned())).collect();
        for (&key, name) in after.iter().filter(|(key, _)| !before.contains_key(key)) {
            tracing::warn!(%key, name, "key is trusted");
            self.note(now_ms, &Event::TrustAdded { key, name });
            self.ledger.lock().trusted(key, now_ms);
        }
        for (&key, name) in before.iter().filter(|(key, _)| !after.contains_key(key)) {
            tracing::warn!(%key, name, "key is trusted no more");
            self.note(now_ms, &Event::TrustRemoved { key, name });
        }
        *self.trust.write().unwrap_or_else(PoisonError::into_inner) = trust;
        if before != after {
            self.save();
            let json = serde_json::to_vec(&after).map_err(io::Error::other)?;
            write_atomic(self.disk.as_ref(), &path, &json, 0o640)?;
        }
        Ok(())
    }

    /// The bundle that an operator means.
    pub(super) fn find(&self, which: &Which) -> Result<BundleId, RejectError> {
        let ledger = self.ledger.lock();
        match which {
            Which::Sequence(channel, sequence) => {
                ledger.at(channel, *sequence).map(|entry| entry.id).ok_or(RejectError::Unknown)
            }
            Which::Prefix(prefix) => {
                let mut found = ledger.entries().map(|e| e.id).filter(|id| id.to_string().starts_with(prefix.as_str()));
                match (found.next(), found.next()) {
                    (Some(id), None) => Ok(id),
                    (None, _) => Err(RejectError::Unknown),
                    (Some(_), Some(_)) => Err(RejectError::Ambiguous),
                }
            }
        }
    }

    fn reject_unknown(&self, which: &Which) -> Result<(), RejectError> {
        let Which::Sequence(channel, sequence) = which else { return Err(RejectError::Unknown) };
        if !self.ledger.lock().reject_unknown(channel, *sequence) {
            return Err(RejectError::Unknown);
        }
        let subject = Subject {
            bundle: None,
            channel: Some(channel),
            sequence: *sequence,
            name: String::new(),
            signer: None,
            signer_name: None,
        };
        self.note(self.now(), &Event::Rejected { bundle: subject });
        self.wake();
        if self.save() { Ok(()) } else { Err(RejectError::Disk) }
    }
}
