//! The public keys that a receiver trusts.

use std::collections::BTreeMap;

use super::PublicKey;
use crate::id::{KeyId, KeyTag};

/// Public keys by their id, each with a name for people (the comment of its file, or the file's own name).
#[derive(Clone, Debug, Default)]
pub struct TrustStore {
    keys: BTreeMap<KeyId, (PublicKey, String)>,
}

impl TrustStore {
    /// Trusts nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts `key` under `name`. Gives `false`, and changes nothing, when a key of the same tag is there already: bundles
    /// would not tell which of them signs.
    pub fn insert(&mut self, key: PublicKey, name: impl Into<String>) -> bool {
        let id = key.id();
        if self.by_tag(id.tag()).is_some() {
            return false;
        }
        self.keys.insert(id, (key, name.into()));
        true
    }

    /// The key of that tag, which is in the ids of its bundles.
    #[must_use]
    pub fn by_tag(&self, tag: KeyTag) -> Option<KeyId> {
        // The tag is what an id begins with.
        let [_, a, b, c] = tag.to_bytes();
        let first = KeyId([a, b, c, 0, 0, 0, 0, 0]);
        self.keys.range(first..).next().map(|(id, _)| *id).filter(|id| id.tag() == tag)
    }

    /// The key of that id and its name.
    #[must_use]
    pub fn get(&self, id: &KeyId) -> Option<(&PublicKey, &str)> {
        self.keys.get(id).map(|(key, name)| (key, name.as_str()))
    }

    /// How many keys are trusted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (KeyId, &PublicKey, &str)> {
        self.keys.iter().map(|(id, (key, name))| (*id, key, name.as_str()))
    }
}
