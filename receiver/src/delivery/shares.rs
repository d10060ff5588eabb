//! How staging is divided, so that one channel or key does not shut out the others.

use std::sync::Arc;

use checkvalve_protocol::id::ChannelName;

use super::shared::{CurrentTrust, Policies};
use crate::ledger::file::LedgerFile;
use crate::store::Store;
use crate::store::space::Share;

/// What each may take, by how much room there is now.
pub(super) struct Shares {
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) store: Arc<Store>,
    pub(super) trust: Arc<CurrentTrust>,
    pub(super) policies: Arc<Policies>,
}

impl Shares {
    /// What the bundles of a channel may take: one does not shut out the others.
    pub(super) fn of_channel(&self, channel: &ChannelName) -> Share {
        let quota = self.policies.0.get(channel).and_then(|policy| policy.quota);
        // Where there is but one, nobody else needs what it leaves.
        let channels = self.ledger.lock().channels().count();
        let part = self.part(channels);
        Share { bytes: quota.unwrap_or(part.bytes), ..part }
    }

    /// Divides the space among the keys, in all channels that each signs for.
    pub(super) fn divide_among_keys(&self) {
        let share = match self.trust.get().keys.len() {
            0 | 1 => Share::ALL,
            many => self.part(many),
        };
        self.store.space().set_key_share(share);
    }

    /// Divides the space again, since what is free has changed.
    pub(super) fn divide(&self) {
        self.divide_among_keys();
        let channels: Vec<_> = self.ledger.lock().channels().map(|(name, _)| name.clone()).collect();
        channels.iter().for_each(|channel| self.store.space().set_share(channel, self.of_channel(channel)));
    }

    /// What each of `keys` keys may take when others need room. A key that takes more then loses bundles that have stopped
    /// coming.
    pub(super) fn fair(&self, keys: usize) -> Share {
        let Share { bytes, files, ranges, blocks } = self.part(1);
        let fair = |all: u64| all.checked_div(keys as u64).unwrap_or(u64::MAX);
        Share { bytes: fair(bytes), files: fair(files), ranges: fair(ranges), blocks: fair(blocks) }
    }

    /// The most that one of so many may take of staging, so that it leaves something to the others.
    fn part(&self, of: usize) -> Share {
        const PART: u64 = 5;
        let part = if of > 1 { PART - 1 } else { PART };
        let space = self.store.space();
        let limits = space.limits();
        let most = space.staged().saturating_add(space.free().saturating_sub(limits.reserve)).min(limits.quota);
        let of = |all: u64| (all / PART).saturating_mul(part);
        Share {
            bytes: of(most),
            files: of(space.most_files()),
            ranges: of(limits.ranges),
            blocks: of(limits.parked_blocks),
        }
    }
}
