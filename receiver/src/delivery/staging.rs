//! What staging, memory and the data plane have of a bundle: its place, its troubles, and how it goes.

use std::io;
use std::sync::Arc;

use checkvalve_host::disk::is_loss;
use checkvalve_host::log::Throttle;
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::manifest::Announce;

use super::jobs::{Job, Jobs};
use super::shared::Clock;
use super::shares::Shares;
use crate::ledger::file::LedgerFile;
use crate::ledger::{Entry, Live};
use crate::sink::Lost;
use crate::store::{Staged, Store};

/// After how long a bundle that failed to progress is tried again, in milliseconds.
pub(super) const RETRY_MS: u64 = 5_000;
/// A bundle that nobody signed for makes room for others when it is silent for so long, in milliseconds.
const QUIET_MS: u64 = 50;

/// Gives bundles their place in staging, and takes it.
pub(super) struct Staging {
    pub(super) clock: Arc<Clock>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) store: Arc<Store>,
    pub(super) shares: Arc<Shares>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) log: Arc<Throttle>,
}

impl Staging {
    /// Something of a bundle under way. None: nobody signed for it.
    pub(super) fn live<T>(&self, id: BundleId, what: impl FnOnce(&Live) -> T) -> Option<T> {
        self.ledger.lock().reception.get(id).map(what)
    }

    /// A bundle's place in staging. None: nobody signed for it, and there are many of those.
    pub(super) fn begin(&self, id: BundleId) -> Option<Arc<Staged>> {
        let (known, channel) = {
            let ledger = self.ledger.lock();
            let channel = || ledger.entry(id).and_then(|entry| entry.channel.clone());
            (ledger.reception.get(id).is_some(), channel())
        };
        if known {
            if let Some(staged) = self.store.get(id) {
                return Some(staged);
            }
            return match channel {
                Some(channel) => Some(self.begin_signed(id, &channel)),
                None => self.begin_unsigned(id),
            };
        }
        let staged = self.begin_unsigned(id)?;
        self.ledger.lock().reception.set_unsigned(id, self.clock.now());
        Some(staged)
    }

    /// The place of an announced bundle.
    pub(super) fn begin_signed(&self, id: BundleId, channel: &ChannelName) -> Arc<Staged> {
        self.store.begin_signed(id, channel, self.shares.of_channel(channel))
    }

    /// A place among the unsigned bundles. If none is free, the bundle that has been silent for longest is removed, so
    /// that many of them do not keep out one whose announce is late.
    pub(super) fn begin_unsigned(&self, id: BundleId) -> Option<Arc<Staged>> {
        if let Some(staged) = self.store.begin(id) {
            return Some(staged);
        }
        let now = self.clock.now();
        let oldest = self.ledger.lock().reception.most_silent();
        if let Some((silent, last)) = oldest
            && now.saturating_sub(last) >= QUIET_MS
        {
            self.let_go(silent);
        }
        self.store.begin(id)
    }

    /// Counts a bundle as signed from now on: it uses its channel's share of the space, and the data plane is told.
    pub(super) fn vouch(&self, id: BundleId, channel: Option<&ChannelName>) {
        let known = || self.ledger.lock().entry(id).and_then(|entry| entry.channel.clone());
        if let Some(channel) = channel.cloned().or_else(known) {
            self.store.vouch(id, &channel, self.shares.of_channel(&channel));
        }
        self.ledger.lock().reception.vouch(id);
    }

    /// The announce of a bundle, if it is in memory.
    pub(super) fn announce(&self, id: BundleId) -> Option<Arc<Announce>> {
        if let Some(adoption) = self.live(id, |live| live.adopting.clone()).flatten() {
            return Some(adoption.announce);
        }
        self.store.get(id)?.announce_in_memory()
    }

    /// The length of a bundle's data, if known, and how many bytes of it are stored. None: staging has nothing of it.
    pub(super) fn fill(&self, entry: &Entry) -> Option<(Option<u64>, u64)> {
        Some(of_its_data(entry, self.store.get(entry.id)?.fill()))
    }

    /// The same, also where the data turns out to be another's.
    pub(super) fn stored(&self, id: BundleId) -> (Option<u64>, u64) {
        self.store.get(id).map_or((None, 0), |staged| staged.fill())
    }

    /// Whether nothing more has to come of a bundle that is not published: then a ticket helps nobody.
    pub(super) fn is_all_here(&self, id: BundleId) -> bool {
        let stored = self.stored(id);
        self.live(id, |live| is_whole(live, stored)) == Some(true)
    }

    /// Something stands in the way of a bundle; it is tried again in a while.
    pub(super) fn trouble(&self, id: BundleId, what: &str) {
        let now = self.clock.now();
        let mut is_new = true;
        if let Some(live) = self.ledger.lock().reception.get_mut(id) {
            is_new = live.trouble.as_deref() != Some(what);
            live.trouble = Some(what.to_owned());
            live.retry_ms = now.saturating_add(RETRY_MS);
        }
        if is_new && let Some(suppressed) = self.log.allow(now) {
            tracing::warn!(bundle = %id, reason = what, suppressed, "bundle cannot go on");
        }
    }

    /// Discards everything that staging has of a bundle: all of it has to come again.
    pub(super) fn begin_again(&self, id: BundleId, why: &str) {
        self.trouble(id, why);
        self.discard(id);
        let now = self.clock.now();
        self.ledger.lock().change(id, now, |entry| {
            if entry.state().is_open() {
                entry.reason = Some(why.to_owned());
            }
        });
    }

    /// A bundle that nobody signed for is silent: what staging has of it goes.
    pub(super) fn let_go(&self, id: BundleId) {
        let was_unsigned = self.ledger.lock().reception.take_unsigned(id);
        if was_unsigned {
            self.discard(id);
        }
    }

    /// A bundle came to an end. What staging has of it goes once nobody moves it on.
    pub(super) fn end(&self, id: BundleId) {
        {
            let mut ledger = self.ledger.lock();
            ledger.reception.remove(id);
            if self.store.get(id).is_some() {
                // If nothing is known of it any more when its turn comes, it goes as what nobody signed for.
                ledger.reception.set_unsigned(id, self.clock.now());
            }
        }
        self.lose(id, Lost::All);
        self.jobs.push(Job::Advance(id)); // which removes it
    }

    /// Removes what staging and the data plane have of a bundle that has to come again. Whoever may be moving it on is the caller.
    pub(super) fn discard(&self, id: BundleId) {
        self.clean_up(id);
        self.lose(id, Lost::All);
    }

    /// Removes what staging has of a bundle that is published.
    pub(super) fn clean_up(&self, id: BundleId) {
        self.ledger.lock().reception.remove(id);
        if let Err(error) = self.store.remove(id)
            && let Some(suppressed) = self.log.allow(self.clock.now())
        {
            tracing::warn!(bundle = %id, %error, suppressed, "staging cannot be cleaned; the next start does it");
        }
    }

    /// Makes durable what staging has. If that fails, what it took since the last time may be given up.
    pub(super) fn checkpoint(&self) {
        if let Err(error) = self.telling_losses(|| self.store.checkpoint()) {
            tracing::error!(%error, "staging cannot be made durable; it is tried again");
        }
    }

    /// If staging gives something up meanwhile because a sync failed, the data plane is told.
    pub(super) fn telling_losses<T>(&self, sync: impl FnOnce() -> T) -> T {
        let before = self.store.failed_syncs();
        let done = sync();
        if self.store.failed_syncs() != before {
            tracing::error!("a sync failed: what staging took since the last one is given up");
            self.all_lost();
        }
        done
    }

    /// A sync of a bundle failed. If that may have lost something, what staging holds and was not synced before has to come again.
    pub(super) fn sync_failed(&self, id: BundleId, error: &io::Error) {
        if !is_loss(error) {
            return;
        }
        tracing::error!(bundle = %id, %error, "a sync failed");
        self.telling_losses(|| self.store.give_up_unsynced());
    }

    fn all_lost(&self) {
        let ids: Vec<BundleId> = self.store.all().into_iter().map(|staged| staged.id).collect();
        let mut ledger = self.ledger.lock();
        // What the data plane counted is not so any more.
        ledger.reception.iter_mut().for_each(|live| live.progress = None);
        ids.into_iter().for_each(|id| ledger.reception.lose(id, Lost::Stored));
    }

    pub(super) fn lose(&self, id: BundleId, what: Lost) {
        self.ledger.lock().reception.lose(id, what);
    }

    /// Frees a bundle's memory, unless a thread is advancing it: that may take longer than the idle time after which
    /// memory is freed, and would start over each time.
    pub(super) fn sleep(&self, staged: &Staged) {
        let Ok(_alone) = staged.advancing.try_lock() else { return };
        let digest = {
            let ledger = self.ledger.lock();
            let announced = ledger.reception.get(staged.id).is_some_and(|live| live.announced);
            ledger.entry(staged.id).and_then(|entry| entry.announce).filter(|_| announced)
        };
        self.store.sleep(staged, digest);
    }
}

/// Whether nothing more has to come of a bundle of which so much is stored ([`Staging::stored`]).
pub(super) fn is_whole(live: &Live, (length, stored): (Option<u64>, u64)) -> bool {
    live.announced && live.hashes && stored >= length.unwrap_or(live.data_len)
}

/// What is stored of a bundle's own data: what is of another length is another's.
pub(super) fn of_its_data(entry: &Entry, (length, stored): (Option<u64>, u64)) -> (Option<u64>, u64) {
    let is_its = entry.channel.is_none() || length.is_none_or(|length| length == entry.bytes);
    if is_its { (length, stored) } else { (Some(entry.bytes), 0) }
}
